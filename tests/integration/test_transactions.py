"""Exactly once: what readers of committed records see, and what becomes of a worker whose lane another one has taken over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from faust.types import TP

from streams.transport.offsets import stable_offsets
from tests.integration.counting import Counting, counting
from tests.stackfixture import Servers
from tests.waiting import eventually


@pytest.fixture
async def group(stack: Servers, tmp_path: Path) -> AsyncIterator[Counting]:
    async with counting(stack.env["ORDERS_KAFKA"], tmp_path) as group:
        yield group


@pytest.mark.parametrize("ending", ["commit", "abort"])
async def test_committed_offsets_are_read_when_their_transaction_has_ended(
    group: Counting, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    written, untouched = (TopicPartition(group.topics[0], part) for part in (0, 1))
    await group.commit({written: 0})
    producer = AIOKafkaProducer(bootstrap_servers=group.brokers, transactional_id=group.group)
    await producer.start()
    await producer.begin_transaction()
    await producer.send_offsets_to_transaction({written: 7}, group.group)
    async with group.consumer(group_id=group.group) as consumer:
        asking = asyncio.create_task(stable_offsets(consumer._coordinator, [TP(*written), TP(*untouched)]))

        async def waits() -> bool:
            return f"waiting for the end of a transaction that commits offsets of {written.topic}/0" in caplog.text

        await eventually(waits, "the question waits")
        assert not asking.done()
        if ending == "commit":
            await producer.commit_transaction()
        else:
            await producer.abort_transaction()
        async with asyncio.timeout(20):
            found = await asking
    await producer.stop()
    assert found == {TP(*written): 7 if ending == "commit" else 0, TP(*untouched): None}
