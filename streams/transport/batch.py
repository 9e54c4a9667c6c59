"""What a handler gets: a batch of one lane, and the only ways to write for it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self

from faust.types import TP

from streams.transport.records import DueState, Moved, OutRecord, Slice, cut
from streams.transport.table import Page, StateTable, newest, of_states
from wire.log import Stretch


class ReadableLane(Protocol):
    """What everything that a lane hands out may ask of it."""

    partition: int

    def check(self) -> None:
        """Raises Stale or LeaseLost if nothing may be written now."""

    def get_states(self, table: StateTable, keys: Sequence[bytes]) -> list[bytes | None]:
        """See LaneBatch.get_states."""

    def position(self, table: StateTable) -> int:
        """See LaneBatch.position."""

    def latest(self, table: StateTable) -> list[bytes]:
        """See OpenLane.latest."""


class BatchLane(ReadableLane, Protocol):
    """The lane as its batches see it."""

    async def publish(self, records: Mapping[str, Sequence[OutRecord]]) -> None:
        """See LaneBatch.publish."""

    def due_states(self, table: StateTable, until: int, limit: int) -> list[DueState]:
        """See LaneBatch.due_states."""

    async def write_table(
        self, table: StateTable, puts: Mapping[bytes, bytes | None], moved: Sequence[Moved]
    ) -> None:
        """See LaneBatch.write_table."""


class OpenedLane(ReadableLane, Protocol):
    """The lane as what runs beside its batches sees it."""

    @property
    def generation(self) -> int:
        """Of the group, when it gave the lane to this worker."""

    @property
    def busy(self) -> bool:
        """Whether a batch is being handled or acknowledged."""

    @property
    def note(self) -> str | None:
        """See OpenLane.found."""

    def leave_note(self, note: str) -> None:
        """See OpenLane.leave_note."""

    @property
    def tracked_ends(self) -> tuple[int, ...]:
        """Where the topics of LaneSpec.tracked end, as it is noted."""

    def track_from(self, ends: Sequence[int]) -> None:
        """See OpenLane.track_from."""

    def states_after(self, table: StateTable, key: bytes) -> Page:
        """See OpenLane.states_after."""


class LaneBatch:
    """Records of several topics of one partition number. Acknowledged, all of it, when the handler returns.

    The handler may be called again with the same batch: after a temporary failure, or by another worker after
    a crash. Called again it must not repeat a step that has returned: `work` is there to remember that.

    With exactly_once what it writes to Kafka and to tables is kept until it returns, and goes out in one
    transaction with the offsets; this batch doesn't see its own states. With at_least_once each step is
    written when it is taken.
    """

    __slots__ = ("_lane", "_whole", "moment", "partition", "rest", "slices", "work")

    def __init__(self, lane: BatchLane, slices: tuple[Slice, ...], moment: int | None = None) -> None:
        self._lane = lane
        self.moment = moment
        """No records, but time has passed: everything appended before this, ms by the brokers' clock, has
        been handled. See due_states.
        """
        self.partition = lane.partition
        self.slices = self._whole = slices
        self.rest: tuple[Slice, ...] = ()
        """What shorten has left for the next batch."""
        self.work: Any = None
        """The handler's own: what it has done so far, should it be called again with this batch."""

    def __len__(self) -> int:
        return sum(len(part.records) for part in self.slices)

    def shorten(self, count: int) -> None:
        """End the batch after so many of its records, in the order of `slices`: the rest becomes the lane's
        next batch. Before anything is written.
        """
        self.slices, self.rest = cut(self._whole, count)

    def __repr__(self) -> str:
        parts = ", ".join(f"{part.topic} {len(part.records)} to {part.to}" for part in self.slices)
        return f"<LaneBatch {self.partition}: {parts}>"

    def check(self) -> None:
        """To be called right before a write anywhere. Raises Stale or LeaseLost. Never blocks."""
        self._lane.check()

    async def publish(self, records: Mapping[str, Sequence[OutRecord]]) -> None:
        """Write records to topics, in order within a topic. Returns when all in-sync replicas have all of
        them (with exactly_once: when they are part of the batch's transaction, at once).

        Blocks while Kafka is away, up to retry_limit. Raises KafkaError, Stale, LeaseLost or GaveUp; some of
        the records may then have been written, and a second call writes all of them again.
        """
        await self._lane.publish(records)

    def get_states(self, table: StateTable, keys: Sequence[bytes]) -> list[bytes | None]:
        """States of `keys`, in their order, None where there is none. Reads the local disk. Raises Stale."""
        return self._lane.get_states(table, keys)

    def position(self, table: StateTable) -> int:
        """A position of the table's changelog below which everything comes from batches that are done; with
        at_least_once also from this one, if its states are written. Reads the local disk. Raises Stale.
        """
        return self._lane.position(table)

    def due_states(self, table: StateTable, until: int, limit: int) -> list[DueState]:
        """At most `limit` states due at `until` (ms) or before, the earliest first.
        Reads the local disk. Raises Stale.
        """
        return self._lane.due_states(table, until, limit)

    async def write_table(
        self, table: StateTable, puts: Mapping[bytes, bytes | None], moved: Sequence[Moved] = ()
    ) -> None:
        """Write states (None deletes): to the changelog, and when that is delivered to the local store in one
        step, with what changed of their due times.

        Blocks and raises like publish.
        """
        await self._lane.write_table(table, puts, moved)


class Changes(NamedTuple):
    """Of some records of a changelog the state of each key that counts, and the position behind them."""

    states: dict[bytes, bytes]
    position: int


class ChangesReader:
    """An async iterator over Changes.
    No generator around the one that it reads: closing it closes that one.
    """

    def __init__(self, stretches: AsyncGenerator[Stretch, None], table: StateTable, where: str) -> None:
        """`where` names the changelog in the log."""
        self._stretches = stretches
        self._table = table
        self._where = where

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Changes:
        records, position = await anext(self._stretches)
        kept, _ = newest(of_states(records, self._table.is_state, self._where), self._table.version_of)
        return Changes({key: state for key, state in kept.items() if state is not None}, position)

    async def aclose(self) -> None:
        """Stop reading. Blocks until the reader's connection is closed."""
        await self._stretches.aclose()


class OpenLane:
    """What a lane's `opened` gets: reading, and the lane's note.
    It runs beside the batches and is cancelled when the lane is over.
    """

    __slots__ = ("_ends", "_lane", "_stretches", "found", "generation", "partition", "tracked_ends")

    def __init__(
        self,
        lane: OpenedLane,
        ends: Callable[[Sequence[TP]], Awaitable[Mapping[TP, int]]],
        stretches: Callable[[TP, int, int], AsyncGenerator[Stretch, None]],
    ) -> None:
        """`ends` tells where logs end now, `stretches` reads them: see changelog."""
        self._lane = lane
        self._ends = ends
        self._stretches = stretches
        self.partition = lane.partition
        self.generation = lane.generation
        self.found = lane.note
        """The note that was left with the lane's offsets when it opened; empty: none. None: the group has
        committed none of its offsets, so that nothing is known of what came before.
        """
        self.tracked_ends = lane.tracked_ends
        """Where the topics of LaneSpec.tracked ended with the last batch that the group has committed: what
        lies behind was published by a run that was killed. Empty: nobody knows.
        """

    @property
    def busy(self) -> bool:
        """Whether a batch is being handled or acknowledged."""
        return self._lane.busy

    def leave_note(self, note: str) -> None:
        """Have `note` (at most 32 small letters and dashes; empty: none) committed with the lane's offsets,
        for whoever opens the lane next. Never blocks: it is committed within the interval between two
        commits, in a transaction at once.
        """
        self._lane.leave_note(note)

    def states_after(self, table: StateTable, key: bytes) -> Page:
        """Some of the lane's states after `key`, in the order of keys. Reads the local disk. Raises Stale."""
        return self._lane.states_after(table, key)

    def position(self, table: StateTable) -> int:
        """As LaneBatch.position."""
        return self._lane.position(table)

    def latest(self, table: StateTable) -> list[bytes]:
        """Keys of states that were written last, some 32 at most. Reads the local disk. Raises Stale."""
        return self._lane.latest(table)

    def check(self) -> None:
        """Whatever lies in the changelog now is the lane's, or was there when it opened.
        Raises Stale, or LeaseLost if that isn't sure.
        """
        self._lane.check()

    def get_states(self, table: StateTable, keys: Sequence[bytes]) -> list[bytes | None]:
        """As LaneBatch.get_states."""
        return self._lane.get_states(table, keys)

    async def ends(self, topics: Sequence[str]) -> tuple[int, ...]:
        """Where these topics end now, the lane's partition of each. Blocks for a round trip. Raises
        KafkaError.
        """
        tps = [TP(topic, self.partition) for topic in topics]
        ends = await self._ends(tps)
        return tuple(ends[tp] for tp in tps)

    def records(self, topic: str, since: int, end: int) -> AsyncGenerator[Stretch, None]:
        """What the lane's partition of a topic got from the position `since` on and below `end`: see
        changelog.stretches.
        """
        return self._stretches(TP(topic, self.partition), since, end)

    def track_from(self, ends: Sequence[int]) -> None:
        """What LaneSpec.tracked's topics held behind `tracked_ends` as the lane opened doesn't matter any
        more: from the next batch on it is noted where they end, `ends` where the lane hasn't published. Never
        blocks.
        """
        self._lane.track_from(ends)

    async def end(self, table: StateTable) -> int:
        """Where the table's changelog ends now. Blocks for a round trip. Raises KafkaError."""
        tp = TP(table.changelog_topic_name, self.partition)
        return (await self._ends([tp]))[tp]

    def changes(self, table: StateTable, since: int, end: int) -> ChangesReader:
        """The states that the table's changelog got from the position `since` on and below `end`, some at a
        time: of a key the highest version among them, as in a recovery. See changelog.stretches.
        """
        tp = TP(table.changelog_topic_name, self.partition)
        return ChangesReader(self._stretches(tp, since, end), table, f"{tp.topic}/{tp.partition}")
