"""The lane: runs a handler for one partition number of a set of topics, one batch at a time.

                             ┌──► ENDED ────┐
    CREATED ──► PREPARED ──► OPEN ──────────┼──► CLOSING ──► CLOSED
       │           │         └──► FENCED ───┘       ▲
       └───────────┴────────────────────────────────┘

A lane is made for one assignment and goes this way once: it is never opened again. LaneState says what each
state means. That a batch is being handled is no state of its own: one may be in OPEN, in CLOSING, and even in
CLOSED if the handler doesn't react, but then nothing may be written for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from faust.types import TP

from streams.transport.batch import LaneBatch, OpenLane
from streams.transport.clock import Clock, Now
from streams.transport.delivery import Delivery, Outcome
from streams.transport.errors import ImpossibleTransition, LeaseLost, Stale
from streams.transport.held import Held
from streams.transport.intake import Intake, Taken
from streams.transport.offset_tracker import OffsetTracker
from streams.transport.producer import LaneProducer
from streams.transport.records import DueState, Moved, OutRecord, Record, Slice
from streams.transport.table import Page, StateTable
from streams.transport.waits import WAITS, awaited
from wire.log import Stretch

Handler = Callable[[LaneBatch], Awaitable[None]]
Opened = Callable[[OpenLane], Coroutine[Any, Any, None]]
CANCEL_TIMEOUT = 5.0


class LaneState(enum.Enum):
    """Where a lane is on its way. See the module for the way."""

    CREATED = "created"
    """It has its partition number, and nobody has been shut out yet."""
    PREPARED = "prepared"
    """Its producer works: with transactions, its former owner can't write any more. Recovery is under way."""
    OPEN = "open"
    """It takes batches."""
    ENDED = "ended"
    """It has stopped by itself: its batch was stale, as the group will say, or an error ends the worker."""
    FENCED = "fenced"
    """It has stopped by itself: the broker has refused its producer, and the group was asked who has it."""
    CLOSING = "closing"
    """It takes nothing more. The batch that is being handled may still be written and acknowledged."""
    CLOSED = "closed"
    """Its assignment is over. Whatever its handler still does, nothing may be written for it."""


TRANSITIONS: Final[Mapping[LaneState, frozenset[LaneState]]] = {
    LaneState.CREATED: frozenset({LaneState.PREPARED, LaneState.CLOSING}),
    LaneState.PREPARED: frozenset({LaneState.OPEN, LaneState.CLOSING}),
    LaneState.OPEN: frozenset({LaneState.ENDED, LaneState.FENCED, LaneState.CLOSING}),
    LaneState.ENDED: frozenset({LaneState.CLOSING}),
    LaneState.FENCED: frozenset({LaneState.CLOSING}),
    LaneState.CLOSING: frozenset({LaneState.CLOSED}),
    LaneState.CLOSED: frozenset(),
}
"""Each state, and the states that may follow it."""


@dataclass(frozen=True, eq=False, slots=True)
class LaneSpec:
    """What BatchApp.batches registers: topics that are read together, by partition number."""

    topics: tuple[str, ...]
    handler: Handler
    max_records: int
    due: StateTable | None = None
    """Table whose states may be due: then the handler is called with a batch of time."""
    clock: str | None = None
    """Topic that tells the brokers' time; with `due`."""
    opened: Opened | None = None
    """Runs beside the batches, from before the first one until the lane is over."""
    committed: Callable[[float], None] | None = None
    """Is told how many seconds each commit of a transaction took."""
    awaited: Callable[[Record], bool] | None = None
    """Tells whether somebody waits for what becomes of a record: how long these wait is noted in WAITS."""
    tracked: tuple[str, ...] = ()
    """Topics that the lane publishes to, its own partition of each. Where they end is noted beside the
    offsets (not with transactions, whose records go with them): what lies behind was told by a run that was
    killed.
    """


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one lane may hold in memory before its fetching rests."""

    records: int
    bytes: int


class Claim:
    """The right to a partition number: an assignment object and its generation. Asked before every write."""

    __slots__ = ("_current", "_leased", "assignment", "generation")

    def __init__(
        self,
        assignment: object,
        generation: int,
        current: Callable[[object, int], bool],
        leased: Callable[[], bool],
    ) -> None:
        self.assignment = assignment
        self.generation = generation
        self._current = current
        self._leased = leased

    def current(self) -> bool:
        """False for ever once the group has gone on without it."""
        return self._current(self.assignment, self.generation)

    def leased(self) -> bool:
        """False while membership isn't proven."""
        return self._leased()


class LaneContext(NamedTuple):
    """What all lanes of a worker share."""

    delivery: Delivery
    limits: Limits
    producer: Callable[[str, Callable[[], None]], LaneProducer]
    """(name of a lane, its `check`) -> what it writes with, not started."""
    rested: Callable[[], None]
    """Is called when a lane that was full has room again."""
    ends: Callable[[Sequence[TP]], Awaitable[Mapping[TP, int]]]
    """Tells where logs end now."""
    stretches: Callable[[TP, int, int], AsyncGenerator[Stretch, None]]
    """Reads a changelog: see changelog.stretches."""
    held: Held = Held()
    """What is left alone for now."""


class LaneTasks(NamedTuple):
    """What runs for a lane, from when it opens."""

    batches: asyncio.Task[None]
    beside: asyncio.Task[None] | None
    """What LaneSpec.opened does."""


@dataclass(slots=True)
class LaneProgress:
    """What a lane has done and is doing."""

    batches: int = 0
    records: int = 0
    stepped_at: float = 0.0
    """By time.monotonic(): when a handler last began to write. What came before, it got through."""
    busy_since: float | None = None
    """By time.monotonic(): since when a batch is being handled or acknowledged. None: there is none."""


class _Attempt:
    """What a lane does with what it has taken: the handler, once it works, then the acknowledgement.
    Called until both have returned.
    """

    def __init__(self, lane: Lane, taken: Sequence[Taken], moment: int | None) -> None:
        self.batch = LaneBatch(lane, tuple(item.part for item in taken if item.part.records), moment)
        self._lane = lane
        self._taken = taken
        self._handled = not self.batch and moment is None
        self.notes = {_tp(item.tracker): item.tracker.note for item in taken}
        """As they were at first: a transaction whose end nobody saw has these."""

    @property
    def finished(self) -> list[Taken]:
        """What the handler has taken in, once it has returned: all, unless it has shortened the batch."""
        parts = {part.topic: part for part in self.batch.slices}
        return [
            item if not item.part.records else Taken(item.tracker, parts[item.part.topic])
            for item in self._taken
            if not item.part.records or item.part.topic in parts
        ]

    @property
    def left(self) -> list[Taken]:
        """The rest of a batch that was shortened."""
        trackers = {item.part.topic: item.tracker for item in self._taken}
        return [Taken(trackers[part.topic], part) for part in self.batch.rest]

    async def __call__(self) -> None:
        lane = self._lane
        if not self._handled:
            await lane.spec.handler(self.batch)
            self._handled = True
        started = time.perf_counter()
        offsets = {_tp(item.tracker): item.part.to for item in self.finished}
        before = {_tp(tracker): tracker.committed for tracker in lane.trackers}
        await lane.producer.acknowledge(offsets, before, self.notes)
        if lane.commits and lane.spec.committed is not None:
            lane.spec.committed(time.perf_counter() - started)


def _tp(tracker: OffsetTracker) -> TP:
    return TP(tracker.topic, tracker.partition)


class LaneLook(NamedTuple):
    """How a lane does at one moment."""

    name: str
    lag: int
    """Records in the logs that aren't finished, as far as the brokers have told where the logs end."""
    oldest: int | None
    """The brokers' time (ms since 1970) of the oldest record that isn't finished; None: none has come."""
    still: float | None
    """Seconds for which its batch hasn't got on; None: it has no batch."""


class Lane:
    """One partition number. Made when it is assigned, opened when its state is there, closed at a rebalance.

    What moves it to a state raises ImpossibleTransition where the drawing has no arrow.
    """

    def __init__(self, name: str, spec: LaneSpec, partition: int, claim: Claim, context: LaneContext) -> None:
        self.spec = spec
        self.partition = partition
        self.name = name
        self.claim = claim
        self._state = LaneState.CREATED
        self.state_since = time.monotonic()
        """Since when it is in its state."""
        self.intake = Intake(spec.max_records, context.limits.records, context.limits.bytes, context.held)
        self.producer = context.producer(name, self.check)
        self.tasks: LaneTasks | None = None
        """None until it opens."""
        self.progress = LaneProgress()
        self._context = context
        self._delivery = context.delivery
        self._clock = Clock()
        self._wake = asyncio.Event()
        self._arrived: float | None = None
        """By time.monotonic(): when the first record came that the next batch will hold, about."""
        self._in_hand: Sequence[Taken] = ()
        """What the batch holds that is being handled or acknowledged."""
        self._closing = asyncio.Event()
        """Set when it comes to CLOSING: ends a wait for the next attempt."""
        self.tracked_ends: tuple[int, ...] = ()
        """Where the topics of LaneSpec.tracked end, as it is noted beside offsets; empty: nobody knows."""
        self._ends_at_open: tuple[int, ...] | None = None
        """Where they ended as the lane opened, once what lay behind tracked_ends doesn't matter any more."""

    @property
    def state(self) -> LaneState:
        """Where it is on its way."""
        return self._state

    def _to(self, state: LaneState) -> None:
        if state not in TRANSITIONS[self._state]:
            raise ImpossibleTransition(f"lane {self.name} can't go from {self._state.value} to {state.value}")
        self._state = state
        self.state_since = time.monotonic()
        if state is LaneState.CLOSING:
            self._closing.set()

    def _is(self, *states: LaneState) -> bool:
        return self._state in states

    # -- what the consumer sees ------------------------------------------------------------------------------

    async def prepare(self) -> None:
        """CREATED to PREPARED: start the producer. Does nothing again, or if the lane was closed meanwhile.

        Blocks until the producer works or the lane closes. Raises what Delivery.run raises.
        """
        if self._is(LaneState.CREATED):
            outcome = await self._delivery.run(self.name, self.producer.start, self._closing)
            if outcome is Outcome.DONE and self._is(LaneState.CREATED):
                self._to(LaneState.PREPARED)

    def start(self) -> LaneTasks:
        """PREPARED to OPEN: begin with the batches. Its trackers are there."""
        self._to(LaneState.OPEN)
        self._update_due()
        noted = [tracker.ends for tracker in self.trackers if len(tracker.ends) == len(self.spec.tracked)]
        self.tracked_ends = tuple(map(max, zip(*noted, strict=True)))
        if self.note is None:  # nobody has finished anything: whatever is there was told by killed runs
            self.tracked_ends = (0,) * len(self.spec.tracked)
        beside: asyncio.Task[None] | None = None
        if self.spec.opened is not None:
            # Tasks begin in the order in which they are made: this one before the first batch.
            opened = OpenLane(self, self._context.ends, self._context.stretches)
            beside = asyncio.ensure_future(self.spec.opened(opened))
        self.tasks = LaneTasks(asyncio.ensure_future(self._run()), beside)
        return self.tasks

    def close(self) -> None:
        """To CLOSING: take nothing more; finish what is in the handler's hands. Again it does nothing."""
        if not self._is(LaneState.CLOSING, LaneState.CLOSED):
            self._to(LaneState.CLOSING)
        self._wake.set()

    def revoke(self) -> None:
        """To CLOSED: the assignment is over, nothing may be written from now on. Again it does nothing."""
        self.close()
        if not self._is(LaneState.CLOSED):
            self._to(LaneState.CLOSED)

    async def end(self) -> None:
        """Revoke it, end what runs beside it, and close its producer. Blocks for seconds at most."""
        self.revoke()
        self._delivery.forget(self.name)
        if self.tasks is not None and self.tasks.beside is not None:
            self.tasks.beside.cancel()
            await asyncio.wait([self.tasks.beside], timeout=CANCEL_TIMEOUT)
        await self.producer.close()

    def wake(self) -> None:
        """There is something to take."""
        if self._arrived is None:
            self._arrived = time.monotonic()
        self._wake.set()

    def look_again(self) -> None:
        """What is held back has changed."""
        self._wake.set()

    def wanted(self) -> list[OffsetTracker]:
        """Trackers to fetch for: none once it is closing, otherwise see Intake.wanted."""
        return [] if self._is(LaneState.CLOSING, LaneState.CLOSED) else self.intake.wanted()

    @property
    def trackers(self) -> list[OffsetTracker]:
        """One for each of its topics."""
        return self.intake.trackers

    @property
    def commits(self) -> bool:
        """Whether the lane's offsets are committed with each batch, by its own producer."""
        return self.producer.commits

    @property
    def moved_at(self) -> float | None:
        """By time.monotonic(): when the batch that is being handled began, last began to write, or last got
        records acknowledged. None: there is no such batch.
        """
        busy = self.progress.busy_since
        return None if busy is None else max(busy, self.progress.stepped_at, self.producer.delivered_at)

    def look(self, now: float, ends: Callable[[TP], int | None]) -> LaneLook:
        """How it does. `now`: by time.monotonic(). `ends` tells where a log ends, if that is known."""
        moved = self.moved_at
        return LaneLook(
            self.name,
            sum(max(0, (ends(_tp(tracker)) or 0) - tracker.done) for tracker in self.trackers),
            min(
                (item.part.records[0].timestamp for item in self._in_hand if item.part.records),
                default=self.intake.oldest,
            ),
            None if moved is None else now - moved,
        )

    # -- what the batch sees, and what runs beside it --------------------------------------------------------

    @property
    def generation(self) -> int:
        """Of the group, when it gave the lane to this worker."""
        return self.claim.generation

    @property
    def busy(self) -> bool:
        """Whether a batch is being handled or acknowledged."""
        return self.progress.busy_since is not None

    def check(self) -> None:
        """Raises Stale or LeaseLost."""
        self._check_claim()
        if not self.claim.leased():
            raise LeaseLost(f"lane {self.name}: no heartbeat was accepted recently")

    async def publish(self, records: Mapping[str, Sequence[OutRecord]]) -> None:
        """See LaneBatch.publish."""
        self.progress.stepped_at = time.monotonic()
        await self.producer.publish(records, self.partition)

    def get_states(self, table: StateTable, keys: Sequence[bytes]) -> list[bytes | None]:
        """See LaneBatch.get_states."""
        self._check_claim()
        return table.store.states(self.partition, keys)

    def position(self, table: StateTable) -> int:
        """See LaneBatch.position."""
        self._check_claim()
        return table.store.position(self.partition)

    def latest(self, table: StateTable) -> list[bytes]:
        """See OpenLane.latest."""
        self._check_claim()
        return table.store.latest(self.partition)

    def states_after(self, table: StateTable, key: bytes) -> Page:
        """See OpenLane.states_after."""
        self._check_claim()
        return table.store.after(self.partition, key)

    @property
    def note(self) -> str | None:
        """See OpenLane.found."""
        if all(tracker.committed is None for tracker in self.trackers):
            return None
        return next((tracker.note for tracker in self.trackers if tracker.note), "")

    def leave_note(self, note: str) -> None:
        """See OpenLane.leave_note."""
        for tracker in self.trackers:
            tracker.note = ""
        # The last topic is the one that moves least, so that others' versions seldom commit it without.
        self.trackers[-1].note = note
        self._wake.set()

    def track_from(self, ends: Sequence[int]) -> None:
        """See OpenLane.track_from."""
        self._ends_at_open = tuple(ends)

    def due_states(self, table: StateTable, until: int, limit: int) -> list[DueState]:
        """See LaneBatch.due_states."""
        self._check_claim()
        return table.store.due(self.partition, until, limit)

    async def write_table(
        self, table: StateTable, puts: Mapping[bytes, bytes | None], moved: Sequence[Moved]
    ) -> None:
        """See LaneBatch.write_table."""
        if not puts and not moved:
            return
        self.progress.stepped_at = time.monotonic()
        await self.producer.write_states(table, puts, self.partition, moved)

    def _owned(self) -> bool:
        return not self._is(LaneState.CLOSED) and self.claim.current()

    def _check_claim(self) -> None:
        if not self._owned():
            raise Stale(f"lane {self.name} belongs to another assignment now")

    # -- the loop --------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        try:
            await self._take_batches()
        finally:
            if self._is(LaneState.OPEN):  # nobody has told it to stop
                self._to(LaneState.FENCED if self.producer.fenced else LaneState.ENDED)

    async def _take_batches(self) -> None:
        while self._is(LaneState.OPEN):
            moment: int | None = None
            taken: list[Taken] = []
            if self.partition in self._context.held.partitions:
                self._wake.clear()
                await self._wake.wait()
                continue
            if self._clock.ripe(self._done):
                moment = self._clock.moment
            elif self._clock.pause(_now()) == 0:
                outcome = await self._delivery.run(self.name, self._look, self._closing)
                if self._ended(outcome, "a look at the brokers' time"):
                    return
                continue
            else:
                taken = self._take()
                if not taken:
                    await self._rest()
                    continue
            if not await self._handle(taken, moment):
                return
            await asyncio.sleep(0)

    async def _handle(self, taken: Sequence[Taken], moment: int | None) -> bool:
        """Take one batch through the handler and acknowledge it. False if the lane ends with it.

        Raises what Delivery.run raises.
        """
        attempt = _Attempt(self, taken, moment)
        progress = self.progress
        progress.busy_since = time.monotonic()
        self._in_hand = taken
        arrived = self._arrived or progress.busy_since
        if taken:
            self._arrived = progress.busy_since if self.intake.pending_records else None
        try:
            outcome = await self._delivery.run(self.name, attempt, self._closing)
        except Exception as exc:
            exc.add_note(f"in {attempt.batch!r}")
            raise
        finally:
            progress.busy_since = None
            self._in_hand = ()
        if self._ended(outcome, attempt.batch):
            return False
        if attempt.batch:
            progress.batches += 1
            progress.records += len(attempt.batch)
            if self.spec.awaited is not None:
                number = awaited(attempt.batch.slices, self.spec.awaited)
                WAITS.add(number, len(attempt.batch) - number, time.monotonic() - arrived)
        if self._is(LaneState.CLOSED):
            return False
        self._update_due(fired=moment is not None)
        if self._ends_at_open is not None:
            by_topic = zip(self.spec.tracked, self._ends_at_open, strict=True)
            self.tracked_ends = tuple(self.producer.ends.get(topic, end) for topic, end in by_topic)
        for item in attempt.finished:
            item.tracker.finish(item.part.to)
            if self.commits:
                item.tracker.committed, item.tracker.noted = item.part.to, attempt.notes[_tp(item.tracker)]
        if taken:
            self.intake.put_back(attempt.left)
        return True

    def _ended(self, outcome: Outcome, what: object) -> bool:
        """Whether the lane ends with this.
        Raises RuntimeError if nobody else can have its partition: it would stand still for ever.
        """
        if outcome is Outcome.STALE and not self.producer.fenced and self._owned():
            raise RuntimeError(f"{what!r} was called stale, but its assignment is the current one")
        return outcome is not Outcome.DONE

    def _take(self) -> list[Taken]:
        was_full = self.intake.full
        taken = self.intake.take()
        if was_full and not self.intake.full:
            self._context.rested()
        if self.commits:  # otherwise the consumer commits the note, now and then
            moving = {id(item.tracker) for item in taken}
            taken += [
                Taken(tracker, Slice(tracker.topic, (), tracker.done))
                for tracker in self.trackers
                if tracker.note != tracker.noted and id(tracker) not in moving
            ]
        return taken

    async def _rest(self) -> None:
        """Wait until there may be something to take, or it is time to look for what is due."""
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), self._clock.pause(_now()))

    # -- time ------------------------------------------------------------------------------------------------

    def _update_due(self, *, fired: bool = False) -> None:
        if self.spec.due is not None:
            self._clock.see(self.spec.due.store.first_due(self.partition), fired=fired)

    async def _look(self) -> None:
        """Learn the brokers' time, and then where the logs end: everything appended
        before that time lies below.
        """
        assert self.spec.clock is not None
        moment = await self.producer.tell_time(self.spec.clock, self.partition)
        ends = await self._context.ends([TP(tracker.topic, tracker.partition) for tracker in self.trackers])
        self._clock.looked(_now(), moment, ends)

    def _done(self, tp: TP) -> int:
        return next(tracker.done for tracker in self.trackers if tracker.topic == tp.topic)


def _now() -> Now:
    return Now(int(time.time() * 1000), int(time.monotonic() * 1000))
