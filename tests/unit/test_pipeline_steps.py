"""Effects before state, state before the cache: in every batch, whether of records or of deadlines."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from contracts import ids
from contracts.topics import DECISIONS, DLQ
from domain.order import Order
from settings import Settings
from sinks.redis import RedisSink
from sinks.rows import RowBatch
from streams.pipeline import Pipeline
from streams.transport.records import Moved, OutRecord, Slice
from tables import codec
from tests.unit.builders import ORDER, OrderBuilder, created, raw, record
from tests.unit.test_deadlines import T0

LONG = T0 + 10_000_000_000
CREATED = "order.created"


class Batch:
    """A LaneBatch that writes down what is asked of it, and fails where `fails` says."""

    partition = 0
    work: Any = None

    def __init__(
        self,
        *,
        moment: int | None = None,
        state: bytes | None = None,
        fails: str = "",
        value: bytes | None = None,
    ) -> None:
        self.moment = moment
        self.state = state
        self.fails = fails
        self.did: list[str] = []
        headers, valid = record(CREATED, created())
        key = ids.text(raw(ORDER)).encode()
        taken: Any = SimpleNamespace(
            topic=CREATED,
            partition=0,
            offset=0,
            timestamp=T0,
            timestamp_type=1,
            key=key,
            value=valid if value is None else value,
            headers=headers,
        )
        self.slices = () if moment is not None else (Slice(CREATED, (taken,), 1),)

    def __len__(self) -> int:
        return len(self.slices)

    def _do(self, step: str) -> None:
        if self.fails == step:
            raise ConnectionError(step)
        self.did.append(step)

    def check(self) -> None:
        """The lease is there."""

    def get_states(self, table: object, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.state for _ in keys]

    def due_states(self, table: object, until: int, limit: int) -> list[tuple[int, bytes, bytes | None]]:
        assert self.state is not None
        return [(codec.due_of(self.state), raw(ORDER), self.state)]

    async def publish(self, records: Mapping[str, Sequence[OutRecord]]) -> None:
        assert self.moment is None or set(records) == {DECISIONS}
        if self.fails in records:
            await asyncio.sleep(0)  # a broker answers later
            raise ConnectionError(self.fails)
        self._do("publish")

    async def write_table(self, table: object, states: Mapping[bytes, bytes], moved: Sequence[Moved]) -> None:
        self._do("state")

    async def write(self, rows: RowBatch) -> None:
        """Postgres."""
        self._do("postgres")


class Cache:
    def __init__(self, batch: Batch) -> None:
        self._batch = batch

    async def write(self, batch: Any, entries: Any) -> None:
        self._batch._do("redis")


def pipeline(batch: Batch) -> Pipeline:
    built = Pipeline(Settings(partitions=1), None, cast(Any, batch), cast(RedisSink, None))
    built.cache = cast(Any, Cache(batch))
    return built


def waiting() -> bytes:
    """The state of an order that waits for its money."""
    builder = OrderBuilder()
    builder.create()
    order: Order = builder.order
    order.appended = order.due = T0
    return codec.encode(order)


@pytest.mark.parametrize("moment", [None, LONG], ids=["records", "deadlines"])
@pytest.mark.parametrize("fails", ["", "publish", "postgres", "state"])
async def test_each_step_waits_for_the_one_before(moment: int | None, fails: str) -> None:
    steps = ["publish", "postgres", "state", "redis"] if moment is None else ["publish", "state"]
    batch = Batch(moment=moment, state=None if moment is None else waiting(), fails=fails)
    built = pipeline(batch)
    if fails not in steps:
        await built.handle(cast(Any, batch))
        assert batch.did == steps
        return
    with pytest.raises(ConnectionError, match=fails):
        await built.handle(cast(Any, batch))
    assert batch.did == steps[: steps.index(fails)]
    batch.fails = ""
    await built.handle(
        cast(Any, batch)
    )  # tried again, as the delivery policy does: what succeeded isn't repeated
    assert batch.did == steps


async def test_a_dead_letter_is_waited_for() -> None:
    batch = Batch(value=b"no JSON", fails=DLQ)
    with pytest.raises(ConnectionError, match=DLQ):
        await pipeline(batch).handle(cast(Any, batch))
    assert batch.did == []
