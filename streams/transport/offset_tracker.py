"""The offset tracker: which records a lane has, and which it has finished. Pure.

One tracker keeps one topic's partition during one assignment:

    committed <= done <= next
                   |       the next offset that may be delivered
                   end of the last batch whose handler has returned; nothing else is ever committed

Positions come from the reader (where it stood before and after a list), never from the offsets of
the records: a gap inside a list is real (compaction, transaction markers), a gap between lists
means that a list was lost.
"""

from __future__ import annotations

import bisect
import enum
import sys
from collections import deque
from collections.abc import Sequence
from operator import attrgetter
from typing import NamedTuple

from streams.transport.records import Record
from wire import raw_bytes

OVERHEAD = 100
"""Bytes that a record costs in memory beside its value, roughly."""


class Offer(enum.Enum):
    """A tracker's answer to a list."""

    TAKEN = "taken"
    # Taken as far as it was new, if at all: the reader stood behind the tracker, which it should not.
    OVERLAP = "overlap"
    GAP = "gap"  # refused: records between the tracker and the list are missing, read again from `next`


class Chunk(NamedTuple):
    """Records in offset order, and the position after them."""

    records: Sequence[Record]
    to: int
    size: int


class OffsetTracker:
    """See the module. Offsets are Kafka's; sizes are bytes."""

    __slots__ = (
        "committed",
        "count",
        "done",
        "ends",
        "next",
        "note",
        "noted",
        "partition",
        "pending",
        "size",
        "topic",
    )

    def __init__(
        self,
        topic: str,
        partition: int,
        start: int,
        committed: int | None,
        noted: str = "",
        ends: tuple[int, ...] = (),
    ) -> None:
        self.topic = topic
        self.partition = partition
        self.next = start
        self.done = start
        self.committed = committed
        self.noted = noted
        """The lane's note that is committed beside the offset (streams.transport.lane_notes)."""
        self.note = noted
        """The one that shall be."""
        self.ends = ends
        """Where the logs ended that the lane tells, by what was found beside the offset; empty: it says
        nothing."""
        self.pending: deque[Chunk] = deque()
        self.count = 0
        self.size = 0

    def offer(self, start: int, to: int, records: Sequence[Record]) -> Offer:
        """Deliver everything in [start, to): `records` is all of it."""
        if start > self.next:
            return Offer.GAP
        if to <= self.next:
            return Offer.OVERLAP
        if records and records[0].offset < self.next:
            records = records[bisect.bisect_left(records, self.next, key=attrgetter("offset")) :]
        size = sum(map(size_of, records))
        self.pending.append(Chunk(records, to, size))
        self.count += len(records)
        self.size += size
        overlap = start < self.next
        self.next = to
        return Offer.OVERLAP if overlap else Offer.TAKEN

    def take(self, limit: int, most_bytes: int = sys.maxsize) -> Chunk | None:
        """The oldest pending records, at most `limit` and about `most_bytes`, and the position after them.
        None if there is nothing to finish.

        With records, or with a position only (a stretch of the log that holds none).
        """
        taken: list[Record] = []
        to: int | None = None
        size = 0
        while self.pending:
            chunk = self.pending[0]
            fits = size + chunk.size <= most_bytes
            if fits and len(taken) + len(chunk.records) <= limit:
                count, part_size = len(chunk.records), chunk.size
            else:
                some = chunk.records[: limit - len(taken)]
                if fits:  # their sizes aren't worth being added up
                    count, part_size = len(some), chunk.size * len(some) // len(chunk.records)
                else:
                    count, part_size = _fitting(
                        some, most_bytes - size, at_least=0 if taken else min(1, len(some))
                    )
            if count < len(chunk.records):
                if count:
                    self.pending[0] = Chunk(chunk.records[count:], chunk.to, chunk.size - part_size)
                    to = chunk.records[count - 1].offset + 1
            else:
                self.pending.popleft()
                to = chunk.to
            taken.extend(chunk.records[:count])
            size += part_size
            if count < len(chunk.records) or not fits:
                break
        if to is None:
            return None
        self.count -= len(taken)
        self.size -= size
        return Chunk(taken, to, size)

    def finish(self, to: int) -> None:
        """The handler has returned for everything below `to`."""
        self.done = max(self.done, to)

    def skip(self, to: int) -> None:
        """The log begins at `to` now: what was below is lost, whoever deleted it."""
        self.next = max(self.next, to)
        if not self.pending:
            self.done = max(self.done, self.next)

    @property
    def uncommitted(self) -> bool:
        """True if there is something to commit."""
        return self.done != self.committed or self.note != self.noted


def size_of(record: Record) -> int:
    """Bytes that a record takes in memory, roughly."""
    size = OVERHEAD + len(record.value or raw_bytes(record) or b"") + len(record.key or b"")
    for _, value in record.headers:
        if value is not None:
            size += len(value)
    return size


def _fitting(records: Sequence[Record], room: int, at_least: int) -> tuple[int, int]:
    """How many of the first records take no more than `room`, or `at_least` so many, and what these take."""
    count = size = 0
    for record in records:
        here = size_of(record)
        if size + here > room and count >= at_least:
            break
        count += 1
        size += here
    return count, size


def shares(counts: Sequence[int], limit: int, first: int = 0) -> list[int]:
    """Divide `limit` records fairly: nobody gets more than it has, what one leaves is
    divided among the others.

    `first` is who is served first when there is less than one record for each.
    Returns a list as long as `counts`.
    """
    given = [0] * len(counts)
    order = [(first + i) % len(counts) for i in range(len(counts))] if counts else []
    unfilled = [i for i in order if counts[i]]
    while limit > 0 and unfilled:
        each = max(1, limit // len(unfilled))
        for i in unfilled:
            portion = min(each, counts[i] - given[i], limit)
            given[i] += portion
            limit -= portion
        unfilled = [i for i in unfilled if given[i] < counts[i]]
    return given
