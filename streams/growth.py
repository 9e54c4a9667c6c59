"""More lanes for topics that hold a history, while the workers are stopped: records stay where they are, states move.

    note how many there were ─► changelog ─► states to their new lanes ─► every other topic, the lanes' last

The new number is a multiple of the old one, so all orders of a new lane come out of one old lane: its own number modulo the old count.
Workers refuse topics of unequal numbers, and a setting that isn't the note's, so none starts before the last step, wherever the others were
cut short; run again, they are finished. Whoever folds a lane's history again reads the old partition too: see sources().
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaTimeoutError
from uuid_utils import UUID

from domain.topics import LANE, PARTITIONS
from settings import Settings
from streams import topics
from streams.grouplock import GroupLock
from streams.partitioner import partition_of
from streams.transport import OutRecord
from streams.transport.errors import PartitionMismatch
from streams.transport.producer import BATCH_BYTES, REQUEST_BYTES, LaneProducer
from tables import codec

Progress = Callable[[str, int, int], None]
"""(what is being done, done, of how many)"""

_KEY: Final = b"partitions"
_STATES: Final = 5_000
"""States that are sent at once."""
_PATIENCE: Final = 30.0


class CannotGrow(Exception):
    """The topics can't have this number of partitions. The message says why."""


class Lanes(NamedTuple):
    """By how many partitions an order's lane is found, and was found before, the fewest first."""

    number: int
    former: Sequence[int] = ()


def sources(lane: int, former: Sequence[int]) -> list[int]:
    """Partitions that hold the history of a lane's orders, the oldest first. `former`: see Lanes. Pure."""
    return [*dict.fromkeys([*(lane % count for count in former), lane])]


async def noted(settings: Settings) -> Lanes | None:
    """What the note says; None: the lanes have never been made more. Blocks while one small topic is read. Raises KafkaError."""
    newest: bytes | None = None
    async with _consumer(settings) as consumer:
        if PARTITIONS not in await consumer.topics():
            return None
        async for record in _read(consumer, TopicPartition(PARTITIONS, 0)):
            newest = record.value
    if newest is None:
        return None
    note = json.loads(newest)
    return Lanes(note["partitions"], sorted(note["former"]))


async def lanes(settings: Settings) -> Lanes:
    """The lanes that there are. Blocks as noted() does. Raises KafkaError, PartitionMismatch when ORDERS_PARTITIONS isn't their number."""
    found = await noted(settings) or Lanes(settings.partitions)
    if found.number != settings.partitions:
        raise PartitionMismatch(
            f"the orders are spread over {found.number} lanes, ORDERS_PARTITIONS is {settings.partitions}: set it to {found.number}"
        )
    return found


async def grow(settings: Settings, lock: GroupLock, partitions: int, progress: Progress = lambda what, done, whole: None) -> int:
    """Give every topic so many partitions, and as many lanes; returns how many states have moved. The group is locked: no worker runs.

    Needs memory for the states of one partition. Blocks while the changelog is read. Raises CannotGrow before anything is changed,
    LeaseLost when the lock is lost and KafkaError: run again it goes on.
    """
    names = [spec.name for spec in topics.specs(settings, 1)]
    counts = {name: state.partitions for name, state in (await topics.describe(settings)).items()}
    known = await noted(settings) or Lanes(settings.partitions)
    old = check(names, counts, known, partitions)
    if old == partitions:
        return 0
    changelog = settings.changelog_topic
    producer = LaneProducer(lambda: _options(settings), lock.check, _give_up, _PATIENCE)
    try:
        note = json.dumps({"partitions": partitions, "former": sorted({*known.former, old})}).encode()
        await producer.send({PARTITIONS: [OutRecord(_KEY, note, [])]}, 0)
        lock.check()
        await topics.grow(settings, [changelog], partitions)
        moved = 0
        async with _consumer(settings) as consumer:
            for number in range(old):
                progress("partitions of the changelog", number, old)
                moved += await _move(consumer, producer, TopicPartition(changelog, number), partitions)
    finally:
        await producer.close()
    progress("partitions of the changelog", old, old)
    lock.check()
    # The lanes' topics last: while one of them has fewer partitions than the changelog no worker starts.
    await topics.grow(settings, [name for name in names if name not in LANE], partitions)
    await topics.grow(settings, LANE, partitions)
    return moved


def check(names: Sequence[str], counts: Mapping[str, int], known: Lanes, partitions: int) -> int:
    """The number of lanes that `partitions` of them are made of; `partitions`: nothing is left to be done. Pure. Raises CannotGrow."""
    missing = [name for name in names if name not in counts]
    if missing:
        raise CannotGrow(f"topic {missing[0]} doesn't exist; run orders init first")
    fewest, most = min(counts.values()), max(counts.values())
    begun = fewest < known.number
    if begun and not known.former:
        raise CannotGrow(f"ORDERS_PARTITIONS is {known.number}, but a topic has {fewest}: leave it as it was until this is done")
    if begun and partitions != known.number:
        raise CannotGrow(f"a change to {known.number} was begun and not finished: run orders partitions --to {known.number} first")
    old = known.former[-1] if begun else known.number
    if partitions < most:
        raise CannotGrow(f"a topic has {most} partitions, and Kafka takes none away")
    if partitions % old:
        raise CannotGrow(f"{partitions} is no multiple of {old}: one lane's orders would come out of several; take {old * 2} or {old * 3}")
    return old


async def _move(consumer: Any, producer: LaneProducer, partition: TopicPartition, partitions: int) -> int:
    """The states of one partition that belong to others now: written there, then deleted here."""
    kept: dict[bytes, bytes] = {}
    async for record in _read(consumer, partition):
        raw, value = record.key, record.value
        if partition_of(str(UUID(bytes=raw)).encode(), partitions) == partition.partition:
            continue
        if value is None:
            kept.pop(raw, None)
        elif raw not in kept or codec.version_of(value) >= codec.version_of(kept[raw]):
            kept[raw] = value
    for some in _chunks(list(kept)):
        puts = [OutRecord(raw, kept[raw], [], partition_of(str(UUID(bytes=raw)).encode(), partitions)) for raw in some]
        await producer.send({partition.topic: puts}, partition.partition)
        await producer.send({partition.topic: [OutRecord(raw, None, []) for raw in some]}, partition.partition)
    return len(kept)


def _chunks(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (keys[start : start + _STATES] for start in range(0, len(keys), _STATES))


async def _read(consumer: Any, partition: TopicPartition) -> Any:
    """All records of a partition, in order."""
    consumer.assign([partition])
    end = (await consumer.end_offsets([partition]))[partition]
    await consumer.seek_to_beginning(partition)
    while await consumer.position(partition) < end:
        for record in (await consumer.getmany(partition, timeout_ms=500)).get(partition, ()):
            yield record


def _consumer(settings: Settings) -> AIOKafkaConsumer:
    return AIOKafkaConsumer(
        bootstrap_servers=settings.brokers,
        client_id="orders-partitions",
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=4 << 20,
    )


def _options(settings: Settings) -> dict[str, Any]:
    return {
        "bootstrap_servers": settings.brokers,
        "client_id": "orders-partitions",
        "acks": "all",
        "enable_idempotence": True,
        "max_batch_size": BATCH_BYTES,
        "max_request_size": REQUEST_BYTES,
    }


def _give_up(what: str) -> None:
    raise KafkaTimeoutError(f"{what} within {_PATIENCE:.0f} s")
