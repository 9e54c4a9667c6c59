"""Read and write states in the changelog while the group is locked, for repair and rebuild."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from operator import attrgetter
from typing import Any, Final

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import KafkaTimeoutError
from msgspec import structs

from contracts.incoming import FACT_FIELDS
from domain.order import Order, SimpleFact
from operations.grouplock import GroupLock
from operations.history import HistoryReader
from operations.replay import LocalStates
from settings import Settings
from streams.transport.producer import BATCH_BYTES, REQUEST_BYTES, LaneProducer
from streams.transport.records import OutRecord
from streams.transport.table import newest, of_states
from tables import codec

STALE: Final = b"<"
_STALL: Final = 30.0


def version(raw: bytes) -> int:
    """Return a state's version; 0 for bytes that are no state."""
    try:
        return codec.version_of(raw)
    except (IndexError, KeyError):
        return 0


async def write_states(
    settings: Settings, lock: GroupLock, lane: int, states: Mapping[bytes, tuple[int, bytes | None]]
) -> None:
    """Append states to a lane's partition of the changelog.

    `states` gives, by raw order id, the highest version that the changelog holds and the new state; None
    deletes it. A higher version than the new state's is deleted first, because a deletion counts as later
    than all before it.

    Blocks until all is delivered. Raises LeaseLost or Stale when the lock is lost, KafkaTimeoutError, and
    what the brokers raise; some states may be written then.
    """
    records: list[OutRecord] = []
    for raw_id, (highest, state) in states.items():
        if state is None or codec.version_of(state) < highest:
            records.append(OutRecord(raw_id, None, []))
        if state is not None:
            records.append(OutRecord(raw_id, state, []))
    producer = producer_of(settings, lock)
    try:
        await producer.send({settings.changelog_topic: records}, lane)
    finally:
        await producer.close()


async def read_changelog(
    reader: HistoryReader, partition: TopicPartition, start: int, states: LocalStates
) -> int:
    """Read a changelog from `start` on into `states`, as a worker recovers from it, and return where it
    ended.

    Of each key the highest version counts. Where an older version comes last, which is the one that
    compaction would keep, `states` also gets the key STALE + key. Blocks.
    """
    end = (await reader.ends([partition]))[partition]
    async with aclosing(reader.read(partition, start, end)) as stretches:
        async for stretch, _ in stretches:
            records = of_states(stretch, codec.is_state, f"{partition.topic}/{partition.partition}")
            kept, deleted = newest(records, version)
            last = {record.key: record.value for record in records}
            puts: dict[bytes, bytes | None] = {}
            for (key, value), old in zip(kept.items(), states.get(list(kept)), strict=True):
                if value is None or old is None or key in deleted or version(value) >= version(old):
                    puts[key] = value
                highest = puts.get(key, old)
                if highest is not None and version(last[key] or b"") < version(highest):
                    puts[STALE + key] = b""
            stale = [STALE + key for key in kept]
            puts |= {
                key: None
                for key, old in zip(stale, states.get(stale), strict=True)
                if old is not None and key not in puts
            }
            states.write(puts)
    return end


def producer_of(settings: Settings, lock: GroupLock) -> LaneProducer:
    """Return a producer that writes only as long as the group is locked. Close it afterwards."""
    options = {
        "settings": settings,
        "client_id": "orders-repair",
        "max_batch_size": BATCH_BYTES,
        "max_request_size": REQUEST_BYTES,
    }
    return LaneProducer(lambda: options, lock.check, _give_up, _STALL)


def _give_up(what: str) -> None:
    raise KafkaTimeoutError(f"{what} within {_STALL:.0f} s")


def decode(raw: bytes) -> Order | None:
    """Decode a state; None for bytes that are no state."""
    try:
        return codec.decode(raw)
    except msgspec.DecodeError:
        return None


def same(actual: Order, expected: Order) -> bool:
    """Tell whether two states of an order are the same but for what depends on the order in which its facts
    arrived.

    That is: the order of facts, whether and when labels were requested and so when the next ones are due, and
    a decision that has been proposed and isn't in the log yet. Nor does it count that a version before didn't
    keep when the broker took a fact's record.
    """
    if actual.labelled_at == expected.labelled_at and actual.due != expected.due:
        return False
    if _fixed(actual) != _fixed(expected) or _waiting(actual) != _waiting(expected):
        return False
    return all(
        _alike(_sorted(getattr(actual, name)), _sorted(getattr(expected, name))) for name in FACT_FIELDS
    )


_fixed = attrgetter("version", "created", "status", "suborders", "decisions", "appended")


def _alike(actual: list[SimpleFact], expected: list[SimpleFact]) -> bool:
    return len(actual) == len(expected) and all(
        one == other or (getattr(one, "appended", None) == 0 and one == structs.replace(other, appended=0))
        for one, other in zip(actual, expected, strict=True)
    )


def _sorted(facts: list[SimpleFact]) -> list[SimpleFact]:
    return facts if len(facts) < 2 else sorted(facts, key=lambda fact: repr(fact.key()))


def _waiting(order: Order) -> list[tuple[Any, ...]]:
    return sorted(
        (
            each.field,
            repr(getattr(order, each.field)[each.index].key()),
            each.record.topic,
            each.record.partition,
            each.record.offset,
        )
        for each in order.waiting
    )
