"""Give topics with a history more partitions, and so more lanes, while no worker runs. Records stay, states
move.

    note the old number ─► changelog ─► states to their new lanes ─► every other topic, the lanes' topics last

The new number is a multiple of the old one, so all orders of a new lane come from one old lane: its number
modulo the old count. A worker doesn't start if topics have different numbers of partitions or its setting
isn't the noted number, so none starts before the last step is done. If it is cut short, it is run again and
goes on. A replay of a lane reads the old partition too: see operations.history.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Final

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from redis.asyncio import Redis
from redis.exceptions import RedisError

from contracts import ids
from contracts.topics import LANE, PARTITIONS
from errors import OrdersError
from operations.changelog import producer_of, version
from operations.grouplock import GroupLock
from operations.history import HistoryReader
from settings import Settings
from sinks.clients import open_client
from sinks.redis import CHECKPOINT_TTL, checkpoint_key
from streams import topics
from streams.lanes import Lanes, noted
from streams.partitioner import partition_of
from streams.transport.producer import LaneProducer
from streams.transport.records import OutRecord
from streams.transport.table import of_states
from tables import codec

Progress = Callable[[str, int, int], None]
"""(what is being done, done, of how many)"""

_KEY: Final = b"partitions"
_STATES: Final = 5_000
"""States that are sent at once."""


class CannotGrow(OrdersError):
    """The topics can't have this number of partitions. The message says why."""


class CutShort(OrdersError):
    """A server went away in the middle. What was done stays."""


async def look(settings: Settings) -> tuple[list[int], Lanes]:
    """Numbers of partitions that topics have (one, unless a change is under way), and the lanes.

    Raises TopicsMissing; blocks.
    """
    states = await topics.describe(settings)
    if not states:
        topics.require(settings, LANE, states)
    return sorted({state.partitions for state in states.values()}), await noted(settings) or Lanes(
        settings.partitions
    )


async def change(
    settings: Settings, partitions: int, *, cache: bool, progress: Progress = lambda what, done, total: None
) -> int:
    """Lock the group and call grow(). Blocks.

    With `cache` it also moves what Redis lacks; Redis must be there. Raises CannotGrow or GroupBusy before
    anything is changed, LockLost or CutShort in between; run again, it goes on.
    """
    try:
        async with AsyncExitStack() as stack:
            redis = None
            if cache:
                redis = await stack.enter_async_context(open_client(settings, timeout=10))
                await redis.ping()
            await _planned(settings, partitions)  # before anybody stops workers for what can't be done
            lock = await stack.enter_async_context(GroupLock(settings))
            return await grow(settings, lock, partitions, redis, progress)
    except (KafkaError, RedisError) as error:
        raise CutShort(
            f"{error}; not done yet", f"run orders partitions --to {partitions} again, it goes on"
        ) from error


async def grow(
    settings: Settings,
    lock: GroupLock,
    partitions: int,
    cache: Redis | None,
    progress: Progress = lambda what, done, total: None,
) -> int:
    """Give every topic this many partitions, and return how many states were moved. The group must be locked.

    Without `cache`, an order that Redis lacks stays missing or old there until it changes again. Needs memory
    for the states of one partition. Blocks while the changelog is read. Raises CannotGrow before anything is
    changed, LeaseLost if the lock is lost, KafkaError and RedisError; run again, it goes on.
    """
    names, noted_lanes, old = await _planned(settings, partitions)
    if old == partitions:
        return 0
    changelog = settings.changelog_topic
    producer = producer_of(settings, lock)
    try:
        note = json.dumps({"partitions": partitions, "former": sorted({*noted_lanes.former, old})}).encode()
        await producer.send({PARTITIONS: [OutRecord(_KEY, note, [])]}, 0)
        lock.check()
        await topics.grow(settings, [changelog], partitions)
        moved = 0
        async with HistoryReader(settings) as reader:
            for number in range(old):
                progress("partitions of the changelog", number, old)
                moved += await _move(
                    reader,
                    producer,
                    TopicPartition(changelog, number),
                    partitions,
                    _Checkpoints(settings, cache),
                )
    finally:
        await producer.close()
    progress("partitions of the changelog", old, old)
    lock.check()
    # The lanes' topics last: while one of them has fewer partitions than the changelog no worker starts.
    await topics.grow(settings, [name for name in names if name not in LANE], partitions)
    await topics.grow(settings, LANE, partitions)
    return moved


async def _planned(settings: Settings, partitions: int) -> tuple[list[str], Lanes, int]:
    """Return the names of the topics, the lanes that are noted, and what check() says of them.
    Raises CannotGrow.
    """
    names = [spec.name for spec in topics.specs(settings, 1)]
    counts = {name: state.partitions for name, state in (await topics.describe(settings)).items()}
    lanes = await noted(settings) or Lanes(settings.partitions)
    return names, lanes, check(names, counts, lanes, partitions)


def check(names: Sequence[str], counts: Mapping[str, int], noted_lanes: Lanes, partitions: int) -> int:
    """The number of lanes that `partitions` of them are made of; `partitions`: nothing is left to be done.
    Pure. Raises CannotGrow.
    """
    missing = [name for name in names if name not in counts]
    if missing:
        raise CannotGrow(f"topic {missing[0]} doesn't exist", "run orders init first")
    fewest, most = min(counts.values()), max(counts.values())
    begun = fewest < noted_lanes.number
    if begun and not noted_lanes.former:
        raise CannotGrow(
            f"ORDERS_PARTITIONS is {noted_lanes.number}, but a topic has {fewest}",
            "leave it as it was until this is done",
        )
    if begun and partitions != noted_lanes.number:
        begun_to = noted_lanes.number
        raise CannotGrow(
            f"a change to {begun_to} was begun and not finished",
            f"run orders partitions --to {begun_to} first",
        )
    old = noted_lanes.former[-1] if begun else noted_lanes.number
    if partitions < most:
        raise CannotGrow(f"a topic has {most} partitions, and Kafka takes none away", f"take {most} or more")
    if partitions % old:
        raise CannotGrow(
            f"{partitions} is no multiple of {old}: one lane's orders would come out of several",
            f"take {old * 2} or {old * 3}",
        )
    return old


class _Checkpoints:
    """The lanes' checkpoints in the cache (streams.cache)."""

    def __init__(self, settings: Settings, cache: Redis | None) -> None:
        self._settings = settings
        self._cache = cache

    async def of(self, lane: int) -> int | None:
        """Return a lane's checkpoint; None if there is none, so that nothing is known to be missing."""
        checkpoint = (
            None if self._cache is None else await self._cache.get(checkpoint_key(self._settings, lane))
        )
        return None if checkpoint is None else int(checkpoint.split()[2])

    async def begin(self, lane: int, position: int) -> None:
        """Set the checkpoint of a new lane. One that is there is from an earlier run and lower, and stays."""
        if self._cache is not None:
            await self._cache.set(
                checkpoint_key(self._settings, lane), f"0 0 {position}", nx=True, ex=CHECKPOINT_TTL
            )


async def _move(
    reader: HistoryReader,
    producer: LaneProducer,
    partition: TopicPartition,
    partitions: int,
    checkpoints: _Checkpoints,
) -> int:
    """Move the states of one partition that belong to other lanes now: write them there, then delete them
    here.

    The states that the cache lacks come last, after their new lanes' checkpoints are set.
    """
    kept: dict[bytes, tuple[bytes, int]] = {}
    end = (await reader.ends([partition]))[partition]
    async with aclosing(reader.read(partition, 0, end)) as stretches:
        async for records, _ in stretches:
            for record in of_states(records, codec.is_state, f"{partition.topic}/{partition.partition}"):
                raw, value = record.key or b"", record.value
                if _lane(raw, partitions) == partition.partition:
                    continue
                if value is None:
                    kept.pop(raw, None)
                elif raw not in kept or version(value) >= version(kept[raw][0]):
                    kept[raw] = value, record.offset
    checkpoint = await checkpoints.of(partition.partition)
    lacking = [] if checkpoint is None else [raw for raw, (_, offset) in kept.items() if offset >= checkpoint]
    cached = kept.keys() - set(lacking)

    async def move(raws: Sequence[bytes]) -> None:
        for some in _chunks(raws):
            puts = [OutRecord(raw, kept[raw][0], [], _lane(raw, partitions)) for raw in some]
            await producer.send({partition.topic: puts}, partition.partition)
            await producer.send(
                {partition.topic: [OutRecord(raw, None, []) for raw in some]}, partition.partition
            )

    await move(list(cached))
    new = [
        TopicPartition(partition.topic, lane) for lane in sorted({_lane(raw, partitions) for raw in lacking})
    ]
    for place, end in (await reader.ends(new)).items() if new else ():
        await checkpoints.begin(place.partition, end)
    await move(lacking)
    return len(kept)


def _lane(raw_id: bytes, partitions: int) -> int:
    return partition_of(ids.text(raw_id).encode(), partitions)


def _chunks(keys: Sequence[bytes]) -> Iterator[Sequence[bytes]]:
    return (keys[start : start + _STATES] for start in range(0, len(keys), _STATES))
