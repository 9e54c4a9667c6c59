"""What a lane has been brought and no handler has got yet, and what of it makes the next batch. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from streams.transport.held import Held
from streams.transport.offset_tracker import OffsetTracker, shares
from streams.transport.records import Slice

BATCH_BYTES: Final = 16 << 20
"""What the records of a batch hold at most, about; one larger record is a batch of its own."""


class Taken(NamedTuple):
    """One topic's part of what was taken, and the tracker that it has to be finished with."""

    tracker: OffsetTracker
    part: Slice


class Intake:
    """One lane's. Sizes are bytes."""

    __slots__ = ("_batch_records", "_held", "_left", "_most_bytes", "_most_records", "_turn", "trackers")

    def __init__(
        self, batch_records: int, most_records: int, most_bytes: int, held: Held | None = None
    ) -> None:
        """At most `batch_records` are taken at once. With `most_records` or `most_bytes` it is full.
        Of what is `held` nothing is taken, wanted or counted.
        """
        self.trackers: list[OffsetTracker] = []
        self._batch_records = batch_records
        self._held = held or Held()
        self._most_records = most_records
        self._most_bytes = most_bytes
        self._turn = 0
        """Which topic is served first where there isn't room for all: another one each time."""
        self._left: list[Taken] = []
        """Of a batch that its handler has shortened."""

    @property
    def pending_records(self) -> int:
        """Records in memory that nobody has taken yet."""
        return sum(tracker.count for tracker in self._free)

    @property
    def pending_bytes(self) -> int:
        """The same in bytes."""
        return sum(tracker.size for tracker in self._free)

    @property
    def oldest(self) -> int | None:
        """When the brokers took the oldest pending record, ms since 1970; None: nothing is pending."""
        chunks = [tracker.pending[0].records for tracker in self._free if tracker.pending]
        return min((records[0].timestamp for records in chunks if records), default=None)

    @property
    def full(self) -> bool:
        """True while only trackers that have nothing pending are fetched."""
        return self.pending_records >= self._most_records or self.pending_bytes >= self._most_bytes

    def wanted(self) -> list[OffsetTracker]:
        """Trackers to fetch for. If it is full, the empty ones: no topic starves behind another's backlog."""
        if self.full:
            return [tracker for tracker in self._free if not tracker.pending]
        return self._free

    @property
    def _free(self) -> list[OffsetTracker]:
        """Trackers that aren't held back."""
        held = self._held
        if not held.topics and not held.partitions:
            return self.trackers
        return [tracker for tracker in self.trackers if not held.has(tracker.topic, tracker.partition)]

    def take(self) -> list[Taken]:
        """The next batch: what the one before has left, otherwise the oldest records of all topics.

        Empty if there is nothing to finish.
        """
        taken, self._left = self._left or self._oldest(), []
        return taken

    def put_back(self, left: Sequence[Taken]) -> None:
        """What was taken with the last batch and belongs to the next one."""
        self._left = list(left)

    def _oldest(self) -> list[Taken]:
        trackers = self._free
        counts = [tracker.count for tracker in trackers]
        given = shares(counts, self._batch_records, self._turn)
        taken: dict[int, Taken] = {}
        room = BATCH_BYTES
        for turn in range(len(counts)):
            at = (self._turn + turn) % len(counts)
            tracker = trackers[at]
            chunk = tracker.take(given[at], max(0, room)) if room > 0 or not given[at] else None
            if chunk is not None:
                taken[at] = Taken(tracker, Slice(tracker.topic, chunk.records, chunk.to))
                room -= chunk.size
        self._turn += 1
        return [taken[at] for at in sorted(taken)]
