"""A lane's history: its topics read as one stream, in about the order in which the lane read them, and folded again.

A lane reads the partitions of its number. Since the topics were given more partitions (operations.repartition), what is older lies in
other ones, among records of other lanes, which the fold leaves out as the pipeline does: by their keys. Records are put in order by the
brokers' time, each log's in its own order. Which of two records of different topics a lane took first can't be known; rows and states come
out the same in any order (docs/architecture.md). Nothing here writes anywhere.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from operator import attrgetter, itemgetter
from typing import Any, Final

from aiokafka import TopicPartition

from contracts.topics import LANE
from errors import OrdersError
from settings import Settings
from streams.dead_letters import Record
from streams.folder import BatchFolder, BatchOutput, OrderInBatch, States
from streams.lag import Lag
from streams.lanes import sources
from streams.transport.batch import Slice, cut
from tables import codec
from wire import learn_topics
from wire.log import LogReader

FOLD_RECORDS: Final = 4_000
"""Records that are folded at once."""

Positions = Mapping[str, int]
"""Of one lane: log ("topic/partition") -> offset."""


class LogIncomplete(OrdersError):
    """Records at the beginning of a lane's log are gone, so its orders can't be folded again. The message names the partition."""

    remedy = "bring back what is missing: without it there is nothing to fold them from"


def committed(lag: Lag, former: Sequence[int]) -> dict[int, dict[str, int]]:
    """Partition number -> positions that the group has committed, in all logs that hold the history of the lane with this number."""
    return {
        lane: {f"{topic}/{number}": lag[topic, number].committed for topic in LANE for number in sources(lane, former)}
        for lane in sorted({number for _, number in lag})
    }


class HistoryReader(LogReader):
    """A LogReader that also reads a lane's logs as one stream."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings.brokers, "orders-history")

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
    """Records of one lane. A streams.folder.Batch."""

    def __init__(self, lane: int, records: Sequence[Record]) -> None:
        self.partition = lane
        self.slices = tuple(
            Slice(topic, part, part[-1].offset + 1) for topic, group in groupby(records, attrgetter("topic")) for part in (list(group),)
        )
        self.left: Sequence[Record] = ()
        self._records = records

    def shorten(self, count: int) -> None:
        """End the batch after so many of its records; the others are `left`."""
        self.slices, self.left = cut(self.slices, count)[0], self._records[count:]


def fold(folder: BatchFolder, lane: int, records: Sequence[Record], states: States) -> Iterator[BatchOutput]:
    """What these records of a lane come to, given the `states` by raw id: once, or some of them after others where it is more than is held
    at once. The states of what came must be there before the next one is asked for. Blocks for the states only."""
    while True:
        batch = MemoryBatch(lane, records)
        yield folder.fold(batch, states)
        if not batch.left:
            return
        records = batch.left


def project(folder: BatchFolder, states: Mapping[bytes, bytes]) -> BatchOutput:
    """All that is to be written of these orders, by raw id, whatever is there: states with their due times, rows, cache entries. Pure."""
    touched: dict[bytes, OrderInBatch] = {}
    for raw_id, raw in states.items():
        order = codec.decode(raw)
        # A decision of ours that isn't in the log was never made. It is looked at again when the order's next event comes.
        order.proposed = len(order.decisions)
        whole = touched[raw_id] = OrderInBatch(order)
        whole.changed = whole.created = True
    work = BatchOutput()
    folder.project(work, touched)
    return work
