"""LaneProducer on a connection that fails: what it never does again with it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.errors import RequestTimedOutError

from streams.transport.producer import NOTHING, Batch, Connection, Gate, LaneProducer, Outgoing


class Records:
    """A batch of any number of records."""

    def __init__(self) -> None:
        self._count = 0

    def extend(self, records: list[Outgoing], first: int, timestamp: int) -> int:
        self._count += len(records) - first
        return len(records)

    def record_count(self) -> int:
        return self._count


class Connected:
    """A connection whose batches get the answers of `answers`, one after the other, and then offset 0."""

    def __init__(self, *answers: Exception) -> None:
        self._answers = list(answers)
        self.abandoned = False

    async def start(self) -> None:
        """There is nobody to ask."""

    def create_batch(self) -> Batch:
        return Records()

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> asyncio.Future[Any]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        if self._answers:
            answer.set_exception(self._answers.pop(0))
        else:
            answer.set_result(SimpleNamespace(offset=0, timestamp=0, timestamp_type=1))
        return answer

    def take_back(self) -> None:
        """Nothing is under way."""

    async def abandon(self) -> None:
        self.abandoned = True


async def test_a_connection_of_which_a_batch_failed_is_not_used_again() -> None:
    connections = [Connected(RequestTimedOutError()), Connected()]
    left = list(connections)

    def connect(options: Mapping[str, Any], gate: Gate) -> Connection:
        return cast(Connection, left.pop(0))

    producer = LaneProducer(dict, lambda: None, lambda why: None, 1.0, connect)
    with pytest.raises(RequestTimedOutError):
        await producer.send({"out": [NOTHING]}, 0)
    await producer.send({"out": [NOTHING]}, 0)
    assert (left, [each.abandoned for each in connections]) == ([], [True, False])
    await producer.close()
    assert connections[1].abandoned
