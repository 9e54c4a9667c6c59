"""A lane's history: its topics read as one stream, in about the order in which the lane read them, and folded
again.

A lane reads the partitions of its number. Once the topics got more partitions (operations.repartition), its
older records are in other partitions, among records of other lanes; the fold leaves those out by their keys,
as the pipeline does. Records of one log keep their order, and logs are merged by the brokers' time. Which of
two records of different topics a lane took in first isn't known, but rows and states are the same in any
order (docs/architecture.md). Nothing here writes anywhere.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from math import inf
from operator import attrgetter, itemgetter
from typing import Any, Final

from aiokafka import TopicPartition

from contracts.topics import LANE
from domain.attention import renew
from errors import OrdersError
from settings import Settings
from streams.dead_letters import Record
from streams.folder import BatchFolder, BatchOutput, OrderInBatch, States
from streams.lag import Lag
from streams.lanes import sources
from streams.transport.records import Slice, cut
from tables import codec
from wire.log import LogReader

FOLD_RECORDS: Final = 4_000
"""Records that are folded at once."""

Positions = Mapping[str, int]
"""Of one lane: log ("topic/partition") -> offset."""


class LogIncomplete(OrdersError):
    """Records at the beginning of a lane's log are gone, so its orders can't be folded again.
    The message names the partition.
    """

    remedy = "bring back what is missing: without it there is nothing to fold them from"


def committed(lag: Lag, former: Sequence[int]) -> dict[int, dict[str, int]]:
    """Partition number -> positions that the group has committed, in all logs that hold the history of
    the lane with this number.
    """
    return {
        lane: {
            f"{topic}/{number}": lag[topic, number].committed
            for topic in LANE
            for number in sources(lane, former)
        }
        for lane in sorted({number for _, number in lag})
    }


class HistoryReader(LogReader):
    """A LogReader that also reads a lane's logs as one stream.
    It waits for the brokers, however long they are away.
    """

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, "orders-history", stall_timeout=inf)

    async def require(self, starts: Mapping[int, Positions], ends: Mapping[int, Positions]) -> None:
        """Raise LogIncomplete if the logs in `ends` don't reach back to `starts`; a log without a start
        starts at 0. Blocks."""
        needed: dict[TopicPartition, int] = {}
        for lane, logs in ends.items():
            for log in logs:
                start = starts.get(lane, {}).get(log, 0)
                needed[_partition(log)] = min(start, needed.get(_partition(log), start))
        for partition, start in (await self.beginnings(list(needed))).items():
            if start > needed[partition]:
                raise LogIncomplete(
                    f"{partition.topic}/{partition.partition} begins at {start}: its orders can't be folded"
                    " again"
                )

    async def lane(self, start: Positions, end: Positions) -> AsyncGenerator[list[Any], None]:
        """The records of a lane's logs (those of `end`) between these positions as one
        stream, at least one at a time.

        Holds one fetch of each log at most, however long the log is. Blocks while the broker is away.
        The positions must exist (require).
        """
        logs = [log for log in end if start.get(log, 0) < end[log]]
        sources = {_partition(log): Source(end[log]) for log in logs}
        self._seek({_partition(log): start.get(log, 0) for log in logs})
        while True:
            while lacking := {
                partition: each.end for partition, each in sources.items() if each.open and not each.records
            }:
                for partition, (records, position) in (await self._fetch(lacking)).items():
                    sources[partition].add(records)
                    sources[partition].open = position < lacking[partition]
            if not any(source.records for source in sources.values()):
                return
            yield merge([*sources.values()])


def _partition(log: str) -> TopicPartition:
    topic, _, number = log.rpartition("/")
    return TopicPartition(topic, int(number))


class Source:
    """Records of one topic that were fetched and not merged yet.

    `times` are the latest up to each, so that none overtakes another.
    """

    def __init__(self, end: int) -> None:
        self.end = end
        """Where its log ends, for this read."""
        self.open = True
        """There may be more."""
        self.records: list[Any] = []
        self.times: list[int] = []
        self._latest = 0

    def add(self, records: Iterable[Any]) -> None:
        for record in records:
            self._latest = max(self._latest, record.timestamp)
            self.records.append(record)
            self.times.append(self._latest)

    def take(self, count: int) -> list[tuple[int, Any]]:
        taken = list(zip(self.times[:count], self.records[:count], strict=True))
        del self.times[:count], self.records[:count]
        return taken


def merge(sources: Sequence[Source]) -> list[Any]:
    """Take the records whose order is certain: no record that is still to be fetched comes before them.

    Of equal times, the earlier topic's records come first. Every open source must have records. It takes all
    records of at least one source.
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
            Slice(topic, part, part[-1].offset + 1)
            for topic, group in groupby(records, attrgetter("topic"))
            for part in (list(group),)
        )
        self.left: Sequence[Record] = ()
        self._records = records

    def shorten(self, count: int) -> None:
        """End the batch after so many of its records; the others are `left`."""
        self.slices, self.left = cut(self.slices, count)[0], self._records[count:]


def fold(folder: BatchFolder, lane: int, records: Sequence[Record], states: States) -> Iterator[BatchOutput]:
    """Fold a lane's records, given the `states` by raw id, and yield the output.

    It yields more than once if the output is more than is held at once; then the states of each output must
    be stored before the next one is taken. Blocks only for the states.
    """
    while True:
        batch = MemoryBatch(lane, records)
        yield folder.fold(batch, states)
        if not batch.left:
            return
        records = batch.left


def at_hand(states: Mapping[bytes, bytes]) -> States:
    """These states, as fold() asks for them: also those that are put among them later."""
    return lambda keys: [states.get(key) for key in keys]


def project(folder: BatchFolder, states: Mapping[bytes, bytes]) -> BatchOutput:
    """Return what the stores should hold of these orders, by raw id: states with due times, rows and cache
    entries. Pure."""
    touched: dict[bytes, OrderInBatch] = {}
    for raw_id, raw in states.items():
        order = codec.decode(raw)
        # A decision of ours that isn't in the log was never made.
        # It is looked at again when the order's next event comes.
        order.proposed = len(order.decisions)
        # A state of an earlier version says nothing of it.
        renew(order, raw_id)
        order_in_batch = touched[raw_id] = OrderInBatch(order)
        order_in_batch.changed = order_in_batch.created = True
    work = BatchOutput()
    folder.project(work, touched)
    return work
