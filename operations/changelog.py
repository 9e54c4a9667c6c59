"""States in the changelog, read and written while the group keeps workers out: for repair and rebuild."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing
from operator import attrgetter
from typing import Any, Final

import msgspec
from aiokafka import TopicPartition
from aiokafka.errors import KafkaTimeoutError

from contracts.incoming import FACT_FIELDS
from domain.order import Order, SimpleFact
from operations.grouplock import GroupLock
from operations.history import HistoryReader
from operations.replay import LocalStates
from settings import Settings
from streams.transport import OutRecord
from streams.transport.producer import BATCH_BYTES, REQUEST_BYTES, LaneProducer
from streams.transport.table import newest, of_states
from tables import codec

STALE: Final = b"<"
_PATIENCE: Final = 30.0


def version(raw: bytes) -> int:
    """A state's version; 0 for bytes that are no state."""
    try:
        return codec.version_of(raw)
    except (IndexError, KeyError):
        return 0


async def write_states(settings: Settings, lock: GroupLock, lane: int, states: Mapping[bytes, tuple[int, bytes | None]]) -> None:
    """Append states to a lane's part of the changelog, by raw id: (the highest version that is there, the state; None takes it away).

    Where a higher version is there, it is deleted first: a deletion counts as later than all before it. Blocks until all is delivered.
    Raises LeaseLost or Stale when the lock is lost, KafkaTimeoutError, and what the brokers raise; some may be written then.
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


async def read_changelog(reader: HistoryReader, partition: TopicPartition, start: int, states: LocalStates) -> int:
    """Take a changelog over into `states`, from a position on, as a worker recovers from it: each key's highest version. Where an older
    one comes last, which compaction would keep, STALE + key is there too. Returns where it ended. Blocks."""
    end = (await reader.ends([partition]))[partition]
    async with aclosing(reader.read(partition, start, end)) as stretches:
        async for found, _ in stretches:
            records = of_states(found, codec.is_state, f"{partition.topic}/{partition.partition}")
            kept, deleted = newest(records, version)
            last = {record.key: record.value for record in records}
            puts: dict[bytes, bytes | None] = {}
            for (key, value), old in zip(kept.items(), states.get(list(kept)), strict=True):
                if value is None or old is None or key in deleted or version(value) >= version(old):
                    puts[key] = value
                highest = puts.get(key, old)
                if highest is not None and version(last[key] or b"") < version(highest):
                    puts[STALE + key] = b""
            known = [STALE + key for key in kept]
            puts |= {key: None for key, was in zip(known, states.get(known), strict=True) if was is not None and key not in puts}
            states.write(puts)
    return end


def producer_of(settings: Settings, lock: GroupLock) -> LaneProducer:
    """A producer that writes only as long as the group is locked. To be closed."""
    options = {
        "settings": settings,
        "client_id": "orders-repair",
        "max_batch_size": BATCH_BYTES,
        "max_request_size": REQUEST_BYTES,
    }
    return LaneProducer(lambda: options, lock.check, _give_up, _PATIENCE)


def _give_up(what: str) -> None:
    raise KafkaTimeoutError(f"{what} within {_PATIENCE:.0f} s")


def decode(raw: bytes) -> Order | None:
    """None for bytes that are no state."""
    try:
        return codec.decode(raw)
    except msgspec.DecodeError:
        return None


def same(live: Order, anew: Order) -> bool:
    """Whether two states tell the same. In which order the facts came, and what hangs on that alone, doesn't count: whether and when labels
    were asked for, and so when the next one is due; a decision that is on its way."""
    if live.labelled_at == anew.labelled_at and live.due != anew.due:
        return False
    if (live.version, live.created, live.status, live.suborders, live.decisions, live.appended) != (
        anew.version,
        anew.created,
        anew.status,
        anew.suborders,
        anew.decisions,
        anew.appended,
    ):
        return False
    return all(_sorted(getattr(live, name)) == _sorted(getattr(anew, name)) for name in FACT_FIELDS) and _waiting(live) == _waiting(anew)


def _sorted(facts: list[SimpleFact]) -> list[SimpleFact]:
    return facts if len(facts) < 2 else sorted(facts, key=lambda fact: repr(fact.key()))


_origin = attrgetter("topic", "partition", "offset")


def _waiting(order: Order) -> list[tuple[Any, ...]]:
    return sorted((each.field, repr(getattr(order, each.field)[each.index].key()), *_origin(each.origin)) for each in order.waiting)
