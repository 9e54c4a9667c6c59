"""A lane's history: its topics read as one stream, in about the order in which the lane read them, and folded again.

A lane reads the partitions of its number. Since the topics were given more partitions (streams.growth), what is older lies in other ones,
among records of other lanes, which the fold leaves out as the pipeline does: by their keys. Records are put in order by the brokers' time,
each log's in its own order. Which of two records of different topics a lane took first can't be known; rows and states come out the same in
any order (docs/architecture.md). Nothing here writes anywhere.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from itertools import groupby
from operator import attrgetter, itemgetter
from types import TracebackType
from typing import Annotated, Any, Final, NamedTuple, Self, cast

import msgspec
from aiokafka import TopicPartition

from domain.topics import LANE, PARTITIONS
from settings import Settings
from sinks.base import Sink
from sinks.redis import RedisSink
from sinks.rows import RowBatch
from streams.lag import Lag
from streams.pipeline import Pipeline, Record, Touched, Work
from streams.transport.batch import LaneBatch, Slice, cut
from streams.transport.errors import PartitionMismatch
from tables import codec
from wire import AIOKafkaConsumer, learn_topics

FOLD_RECORDS: Final = 4_000
"""Records that are folded at once."""
_FETCH_BYTES: Final = 1 << 20
"""Of each topic, as it is on the wire: what a reader holds in memory."""

Positions = Mapping[str, int]
"""Of one lane: log ("topic/partition") -> offset."""


class Lanes(NamedTuple):
    """By how many partitions an order's lane is found, and was found before, the fewest first."""

    number: int
    former: Sequence[int] = ()


def sources(lane: int, former: Sequence[int]) -> list[int]:
    """Partitions that hold the history of a lane's orders, the oldest first. `former`: see Lanes. Pure."""
    return [*dict.fromkeys([*(lane % count for count in former), lane])]


class LogIncomplete(Exception):
    """Records at the beginning of a lane's log are gone, so its orders can't be folded again. The message names the partition."""


async def noted(settings: Settings) -> Lanes | None:
    """What was noted when the topics were given more partitions; None: they never were. Reads one small topic. Raises KafkaError."""
    newest: Lanes | None = None
    async with HistoryReader(settings) as reader:
        partition = TopicPartition(PARTITIONS, 0)
        if not await reader.exists(PARTITIONS):
            return None
        end = (await reader.ends([partition]))[partition]
        async with aclosing(reader.stretch(partition, 0, end)) as stretches:
            async for records in stretches:
                for record in records:
                    newest = _note(record.value) or newest
    return newest


class _Note(msgspec.Struct):
    partitions: Annotated[int, msgspec.Meta(ge=1)]
    former: list[Annotated[int, msgspec.Meta(ge=1)]]


def _note(value: bytes | None) -> Lanes | None:
    """What a record of orders.partitions says; None if it is no note: anybody may write there."""
    try:
        note = msgspec.json.decode(value or b"", type=_Note)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return Lanes(note.partitions, sorted(note.former))


async def lanes(settings: Settings) -> Lanes:
    """The lanes that there are. Blocks as noted() does. Raises KafkaError, PartitionMismatch when ORDERS_PARTITIONS isn't their number."""
    found = await noted(settings) or Lanes(settings.partitions)
    if found.number != settings.partitions:
        raise PartitionMismatch(
            f"the orders are spread over {found.number} lanes, ORDERS_PARTITIONS is {settings.partitions}: set it to {found.number}"
        )
    return found


def folder(settings: Settings) -> Pipeline:
    """A pipeline that only folds and renders: it has nothing to write to."""
    return Pipeline(settings, None, cast("Sink[RowBatch]", None), cast(RedisSink, None))


def committed(lag: Lag, former: Sequence[int]) -> dict[int, dict[str, int]]:
    """Partition number -> positions that the group has committed, in all logs that hold the history of the lane with this number."""
    return {
        lane: {f"{topic}/{number}": lag[topic, number].committed for topic in LANE for number in sources(lane, former)}
        for lane in sorted({number for _, number in lag})
    }


class HistoryReader:
    """Reads stretches of logs, one at a time. Joins no group and commits nothing; sees committed records only.

    Use as `async with HistoryReader(settings) as reader`. Entering raises KafkaConnectionError when no broker answers.
    """

    def __init__(self, settings: Settings) -> None:
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=settings.brokers,
            client_id="orders-history",
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=_FETCH_BYTES,
        )

    async def __aenter__(self) -> Self:
        try:
            await self._consumer.start()
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._consumer.stop()

    async def exists(self, topic: str) -> bool:
        """Whether the brokers have a topic."""
        return topic in await self._consumer.topics()

    async def require(self, starts: Mapping[int, Positions], ends: Mapping[int, Positions]) -> None:
        """Raises LogIncomplete if a lane's logs (those of `ends`) don't reach back to its start; what isn't named there starts at 0."""
        wanted: dict[TopicPartition, int] = {}
        for lane, logs in ends.items():
            for log in logs:
                start = starts.get(lane, {}).get(log, 0)
                wanted[_partition(log)] = min(start, wanted.get(_partition(log), start))
        await learn_topics(self._consumer, {partition.topic for partition in wanted})
        for partition, start in (await self._consumer.beginning_offsets(list(wanted))).items():
            if start > wanted[partition]:
                raise LogIncomplete(f"{partition.topic}/{partition.partition} begins at {start}: its orders can't be folded again")

    async def beginnings(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Where these logs begin."""
        return cast(dict[TopicPartition, int], await self._consumer.beginning_offsets(list(partitions)))

    async def ends(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Where these logs end now, for a reader of committed records."""
        return cast(dict[TopicPartition, int], await self._consumer.end_offsets(list(partitions)))

    async def stretch(self, partition: TopicPartition, start: int, end: int) -> AsyncGenerator[list[Any], None]:
        """The records of one partition from `start` and below `end`, in order, some at a time. A log that begins later is read from there.

        Blocks while the broker is away.
        """
        consumer = self._consumer
        consumer.assign([partition])
        start = max(start, (await self.beginnings([partition]))[partition])
        consumer.seek(partition, start)
        while await consumer.position(partition) < end:
            records = (await consumer.getmany(partition, timeout_ms=500)).get(partition, ())
            wanted = [record for record in records if record.offset < end]
            if wanted:
                yield wanted

    async def lane(self, start: Positions, end: Positions) -> AsyncGenerator[list[Any], None]:
        """The records of a lane's logs (those of `end`) between these positions as one stream, at least one at a time.

        Holds one fetch of each log at most, however long the log is. Blocks while the broker is away. The positions must exist (require).
        """
        logs = [log for log in end if start.get(log, 0) < end[log]]
        sources = [Source(_partition(log), end[log]) for log in logs]
        consumer = self._consumer
        consumer.assign([source.partition for source in sources])
        for log in logs:
            consumer.seek(_partition(log), start.get(log, 0))
        while True:
            while hungry := {source.partition: source for source in sources if source.open and not source.records}:
                for partition, records in (await consumer.getmany(*hungry, timeout_ms=500)).items():
                    hungry[partition].add(records)
                for partition, source in hungry.items():
                    if await consumer.position(partition) >= source.end:
                        source.open = False
                        consumer.pause(partition)
            if not any(source.records for source in sources):
                return
            yield merge(sources)


def _partition(log: str) -> TopicPartition:
    topic, _, number = log.rpartition("/")
    return TopicPartition(topic, int(number))


class Source:
    """What was fetched of one topic and not yet merged. `times`: of each record the latest up to it, so that none overtakes another."""

    def __init__(self, partition: TopicPartition, end: int) -> None:
        self.partition = partition
        self.end = end
        self.open = True
        """There may be more."""
        self.records: list[Any] = []
        self.times: list[int] = []
        self._latest = 0

    def add(self, records: Iterable[Any]) -> None:
        for record in records:
            if record.offset < self.end:
                self._latest = max(self._latest, record.timestamp)
                self.records.append(record)
                self.times.append(self._latest)

    def take(self, count: int) -> list[tuple[int, Any]]:
        taken = list(zip(self.times[:count], self.records[:count], strict=True))
        del self.times[:count], self.records[:count]
        return taken


def merge(sources: Sequence[Source]) -> list[Any]:
    """Takes what can be put in order: nothing that is still to be fetched comes before it. Of equal times, the earlier topic's first.

    Every open source must have records. Takes all of one source at least.
    """
    last = min(((source.times[-1], at) for at, source in enumerate(sources) if source.open), default=None)
    taken: list[tuple[int, Any]] = []
    for at, source in enumerate(sources):
        if last is None:
            count = len(source.records)
        else:
            count = (bisect_right if at <= last[1] else bisect_left)(source.times, last[0])
        taken += source.take(count)
    taken.sort(key=itemgetter(0))  # stable, and so in the order of topics where times are equal
    return [record for _, record in taken]


class MemoryBatch:
    """What Pipeline.fold asks of a batch: records of one lane, and where the states are."""

    def __init__(self, lane: int, records: Sequence[Record], states: Callable[[Sequence[bytes]], list[bytes | None]]) -> None:
        self.partition = lane
        self.moment = None
        self.slices = tuple(
            Slice(topic, part, part[-1].offset + 1) for topic, group in groupby(records, attrgetter("topic")) for part in (list(group),)
        )
        self.left: Sequence[Record] = ()
        self._records = records
        self._states = states

    def __len__(self) -> int:
        return sum(len(part.records) for part in self.slices)

    def shorten(self, count: int) -> None:
        self.slices, self.left = cut(self.slices, count)[0], self._records[count:]

    def get_states(self, table: object, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._states(keys)


def fold(
    pipeline: Pipeline, lane: int, records: Sequence[Record], states: Callable[[Sequence[bytes]], list[bytes | None]]
) -> Iterator[Work]:
    """What these records of a lane come to, given the `states` by raw id: once, or some of them after others where it is more than is held
    at once. The states of what came must be there before the next one is asked for. Blocks for the states only."""
    while True:
        batch = MemoryBatch(lane, records, states)
        yield pipeline.fold(cast(LaneBatch, batch))
        if not batch.left:
            return
        records = batch.left


def render(pipeline: Pipeline, states: Mapping[bytes, bytes]) -> Work:
    """All that is to be written of these orders, by raw id, whatever is there: states with their due times, rows, cache entries. Pure."""
    touched: dict[bytes, Touched] = {}
    for raw_id, raw in states.items():
        order = codec.decode(raw)
        # A decision of ours that isn't in the log was never made. It is looked at again when the order's next event comes.
        order.proposed = len(order.decisions)
        whole = touched[raw_id] = Touched(order)
        whole.changed = whole.created = True
    work = Work()
    pipeline.render(work, touched)
    return work
