"""A state is found where it is, however little of the changelog is read for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from aiokafka import TopicPartition

import queries.state
import wire.log
from domain.order import Order, PaymentFailure
from queries.state import Known, States, read_known
from settings import Settings
from streams.partitioner import partition_of
from tables import codec
from tests.unit.test_log import Broker

ORDER, OTHER = UUID(int=1 << 70), UUID(int=2 << 70)
SETTINGS = Settings()
LOG = TopicPartition(SETTINGS.changelog_topic, partition_of(str(ORDER).encode(), SETTINGS.partitions))


def state(version: int) -> bytes:
    return codec.encode(Order(version=version, failures=[PaymentFailure(1, bytes(16), "x")] * version))


class Timed(Broker):
    """A log whose records have their offsets as times, in seconds. `looked`: offsets that were given."""

    def __init__(self, records: Sequence[tuple[UUID, bytes | None]]) -> None:
        log = [
            SimpleNamespace(offset=n, key=key.bytes, value=value) for n, (key, value) in enumerate(records)
        ]
        super().__init__(log, len(log), log=LOG)
        self.looked: list[int] = []

    async def offsets_for_times(self, times: dict[TopicPartition, int]) -> dict[TopicPartition, Any]:
        offset = max(0, -(-times[LOG] // 1000))
        return {LOG: SimpleNamespace(offset=offset) if offset < self.end else None}

    async def getmany(self, *args: Any, **options: Any) -> Any:
        given = await super().getmany(*args, **options)
        self.looked += [record.offset for records in given.values() for record in records]
        return given


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Timed]:
    def use(*records: tuple[UUID, bytes | None]) -> Timed:
        broker = Timed(records)
        monkeypatch.setattr(wire.log, "consumer", lambda *_, **__: broker)
        return broker

    return use


def at(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


async def test_what_was_written_since_it_changed_is_read_first(log: Callable[..., Timed]) -> None:
    records = [(OTHER, state(1)), (ORDER, state(1)), (ORDER, state(2)), (OTHER, state(2))]
    # The broker gives two at a time, also where the second one isn't asked for.
    for since, looked in ((2.0, [2, 3]), (3.0, [3, 0, 1, 2, 3]), (99.0, [0, 1, 2, 3]), (0.0, [0, 1, 2, 3])):
        broker = log(*records)
        assert await read_known(SETTINGS, ORDER, since=at(since)) == Known(state(2), 4)
        assert broker.looked == looked, since
    log(*records)
    assert await read_known(SETTINGS, UUID(int=3 << 70), since=at(2)) == Known(None, 4)


async def test_a_second_look_reads_what_is_new(log: Callable[..., Timed]) -> None:
    states = States(SETTINGS)
    first = log((ORDER, state(1)), (OTHER, state(1)))
    order = await states.of(ORDER)
    assert order is not None
    assert (order.version, first.looked) == (1, [0, 1])
    again = log((ORDER, state(1)), (OTHER, state(1)))
    order = await states.of(ORDER)
    assert order is not None
    assert (order.version, again.looked) == (1, [])
    more = log((ORDER, state(1)), (OTHER, state(1)), (ORDER, b"foreign"), (ORDER, state(2)))
    order = await states.of(ORDER)
    assert order is not None
    assert (order.version, more.looked) == (2, [2, 3])


async def test_what_is_kept_is_left_alone_where_the_log_is_another(
    log: Callable[..., Timed], monkeypatch: pytest.MonkeyPatch
) -> None:
    states = States(SETTINGS)
    log((OTHER, state(1)), (ORDER, state(3)))
    await states.of(ORDER)
    shorter = log((ORDER, state(1)))
    order = await states.of(ORDER)
    assert order is not None
    assert (order.version, shorter.looked) == (1, [0])
    monkeypatch.setattr(queries.state, "_KEPT_SECONDS", 0.0)
    late = log((ORDER, state(2)))
    order = await states.of(ORDER)
    assert order is not None
    assert (order.version, late.looked) == (2, [0])


async def test_little_is_kept(log: Callable[..., Timed], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queries.state, "_KEPT", 1)
    states = States(SETTINGS)
    same_lane = [id_ for id_ in map(UUID, [f"{n:032x}" for n in range(1, 99)]) if _lane(id_) == LOG.partition]
    log()
    await states.of(same_lane[0])
    await states.of(same_lane[1])
    assert list(states._kept) == [same_lane[1]]
    monkeypatch.setattr(queries.state, "_KEPT_BYTES", 1)
    log((same_lane[0], state(1)))
    await states.of(same_lane[0])
    assert list(states._kept) == [same_lane[1]]


def _lane(order_id: UUID) -> int:
    return partition_of(str(order_id).encode(), SETTINGS.partitions)
