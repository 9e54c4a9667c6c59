"""The lane: runs a handler for one partition number of a set of topics, one batch at a time."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from faust.types import TP

from streams.transport.batch import LaneBatch, OpenLane, OutRecord, Slice
from streams.transport.clock import Clock, Now
from streams.transport.delivery import Delivery, Outcome
from streams.transport.errors import LeaseLost, Stale
from streams.transport.offset_tracker import OffsetTracker, shares
from streams.transport.producer import LaneProducer

if TYPE_CHECKING:
    from streams.transport.table import DueState, Moved, StateTable

Handler = Callable[[LaneBatch], Awaitable[None]]
Opened = Callable[[OpenLane], Coroutine[Any, Any, None]]
CANCEL_TIMEOUT = 5.0
BATCH_BYTES = 16 << 20
"""What the records of a batch hold at most, about; one larger record is a batch of its own."""
Ends = Callable[[Sequence[TP]], Awaitable[Mapping[TP, int]]]
"""Where logs end now."""


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


@dataclass(frozen=True, slots=True)
class Limits:
    """How much one lane may hold in memory before its fetching rests."""

    records: int
    bytes: int


class Claim:
    """The right to a partition number: an assignment object and its generation. Asked before every write."""

    __slots__ = ("_current", "_leased", "assignment", "generation")

    def __init__(self, assignment: object, generation: int, current: Callable[[object, int], bool], leased: Callable[[], bool]) -> None:
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


class _Taken(NamedTuple):
    tracker: OffsetTracker
    part: Slice


class _Attempt:
    """What a lane does with what it has taken: the handler, once it works, then the acknowledgement. Called until both have returned."""

    def __init__(self, lane: Lane, taken: Sequence[_Taken], moment: int | None) -> None:
        self.batch = LaneBatch(lane, tuple(item.part for item in taken if item.part.records), moment)
        self._lane = lane
        self._taken = taken
        self._handled = not self.batch and moment is None

    @property
    def finished(self) -> list[_Taken]:
        """What the handler has taken in, once it has returned: all, unless it has shortened the batch."""
        parts = {part.topic: part for part in self.batch.slices}
        return [
            item if not item.part.records else _Taken(item.tracker, parts[item.part.topic])
            for item in self._taken
            if not item.part.records or item.part.topic in parts
        ]

    @property
    def left(self) -> list[_Taken]:
        """The rest of a batch that was shortened."""
        trackers = {item.part.topic: item.tracker for item in self._taken}
        return [_Taken(trackers[part.topic], part) for part in self.batch.rest]

    async def __call__(self) -> None:
        lane = self._lane
        if not self._handled:
            await lane.spec.handler(self.batch)
            self._handled = True
        assert lane.producer is not None
        started = time.perf_counter()
        offsets = {_tp(item.tracker): item.part.to for item in self.finished}
        await lane.producer.acknowledge(offsets, {_tp(tracker): tracker.committed for tracker in lane.trackers})
        if lane.commits and lane.spec.committed is not None:
            lane.spec.committed(time.perf_counter() - started)


def _tp(tracker: OffsetTracker) -> TP:
    return TP(tracker.topic, tracker.partition)


class Lane:
    """One partition number. Made when it is assigned, begun when its trackers open, closed at the next rebalance; never reopened."""

    def __init__(self, name: str, spec: LaneSpec, partition: int, claim: Claim, delivery: Delivery, limits: Limits) -> None:
        self.spec = spec
        self.partition = partition
        self.name = name
        self.claim = claim
        self.trackers: list[OffsetTracker] = []
        self.producer: LaneProducer | None = None
        self.task: asyncio.Task[None] | None = None
        self.beside: asyncio.Task[None] | None = None
        """What LaneSpec.opened does."""
        self.closing = asyncio.Event()
        self.closed = False
        self.busy_since: float | None = None
        """By time.monotonic(): since when a batch is being handled."""
        self.ended_since: float | None = None
        self.batches = 0
        self.records = 0
        self._delivery = delivery
        self._limits = limits
        self._wake = asyncio.Event()
        self._served = 0
        self._rested: Callable[[], None] = lambda: None
        self._clock = Clock()
        self._ends: Ends | None = None
        self._left: list[_Taken] = []
        """Of a batch that its handler has shortened."""

    async def prepare(self) -> None:
        """Start the producer; may be called again. Blocks until it works or the lane closes. Raises what Delivery.run raises."""
        assert self.producer is not None
        await self._delivery.run(self.name, self.producer.start, self.closing)

    # -- what the reader sees ----------------------------------------------------------------------------------

    def start(self, producer: LaneProducer, rested: Callable[[], None], ends: Ends | None = None) -> asyncio.Task[None]:
        """Begin. `rested` is called when a full lane has room again. `ends` is needed if states may be due."""
        self.producer = producer
        self._rested = rested
        self._ends = ends
        self._see_due()
        self.task = asyncio.ensure_future(self._run())
        return self.task

    def wake(self) -> None:
        """There is something to take."""
        self._wake.set()

    @property
    def commits(self) -> bool:
        """Whether the lane's offsets are committed with each batch, by its own producer."""
        return self.producer is not None and self.producer.commits

    @property
    def fenced(self) -> bool:
        """True if the broker has refused the lane's producer: the lane can't go on, whatever the group says."""
        return self.producer is not None and self.producer.fenced

    @property
    def pending_records(self) -> int:
        """Records in memory that no handler has got yet."""
        return sum(tracker.count for tracker in self.trackers)

    @property
    def pending_bytes(self) -> int:
        """The same in bytes."""
        return sum(tracker.size for tracker in self.trackers)

    @property
    def full(self) -> bool:
        """True while only trackers that have nothing pending are fetched."""
        return self.pending_records >= self._limits.records or self.pending_bytes >= self._limits.bytes

    def wanted(self) -> list[OffsetTracker]:
        """Trackers to fetch for. A full lane still fetches for its empty trackers: no topic starves behind another's backlog."""
        if self.closing.is_set():
            return []
        if self.full:
            return [tracker for tracker in self.trackers if not tracker.pending]
        return self.trackers

    def close(self) -> None:
        """Take nothing more; finish what is in the handler's hands."""
        self.closing.set()
        self._wake.set()

    async def end(self) -> None:
        """The assignment is over: whatever the handler still does, it can't write (`closed`). Blocks for seconds at most."""
        self.closed = True
        self._delivery.forget(self.name)
        if self.beside is not None:
            self.beside.cancel()
            await asyncio.wait([self.beside], timeout=CANCEL_TIMEOUT)
        if self.producer is not None:
            await self.producer.close()

    # -- what the batch sees -----------------------------------------------------------------------------------

    def check(self) -> None:
        """Raises Stale or LeaseLost."""
        if self.closed or not self.claim.current():
            raise Stale(f"lane {self.name} belongs to another assignment now")
        if not self.claim.leased():
            raise LeaseLost(f"lane {self.name}: no heartbeat was accepted recently")

    async def publish(self, records: Mapping[str, Sequence[OutRecord]]) -> None:
        """See LaneBatch.publish."""
        assert self.producer is not None
        await self.producer.publish(records, self.partition)

    def get_states(self, table: StateTable, keys: Sequence[bytes]) -> list[bytes | None]:
        """See LaneBatch.get_states."""
        self._check_claim()
        return table.store.states(self.partition, keys)

    def position(self, table: StateTable) -> int:
        """See LaneBatch.position."""
        self._check_claim()
        return table.store.position(self.partition)

    def due_states(self, table: StateTable, until: int, limit: int) -> list[DueState]:
        """See LaneBatch.due_states."""
        self._check_claim()
        return table.store.due(self.partition, until, limit)

    async def write_table(self, table: StateTable, puts: Mapping[bytes, bytes | None], moved: Sequence[Moved]) -> None:
        """See LaneBatch.write_table."""
        if not puts and not moved:
            return
        assert self.producer is not None
        await self.producer.write_states(table, puts, self.partition, moved)

    @property
    def moved_at(self) -> float | None:
        """By time.monotonic(): when the batch that is being handled began, or last got records acknowledged. None: there is none."""
        busy = self.busy_since
        return busy if busy is None or self.producer is None else max(busy, self.producer.delivered_at)

    def _check_claim(self) -> None:
        if self.closed or not self.claim.current():
            raise Stale(f"lane {self.name} belongs to another assignment now")

    # -- the loop ----------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        while not self.closing.is_set():
            moment: int | None = None
            taken: list[_Taken] = []
            if self._clock.ripe(self._done):
                moment = self._clock.moment
            elif self._clock.pause(_now()) == 0:
                if self._ended(await self._delivery.run(self.name, self._look, self.closing), "a look at the brokers' time"):
                    return
                continue
            else:
                taken, self._left = self._left or self._take(), []
                if not taken:
                    await self._rest()
                    continue
            attempt = _Attempt(self, taken, moment)
            self.busy_since = time.monotonic()
            try:
                outcome = await self._delivery.run(self.name, attempt, self.closing)
            except Exception as exc:
                exc.add_note(f"in {attempt.batch!r}")
                raise
            finally:
                self.busy_since = None
            if self._ended(outcome, attempt.batch):
                return
            if attempt.batch:
                self.batches += 1
                self.records += len(attempt.batch)
            if self.closed:
                return
            self._see_due(fired=moment is not None)
            for item in attempt.finished:
                item.tracker.finish(item.part.to)
                if self.commits:
                    item.tracker.committed = item.part.to
            if taken:
                self._left = attempt.left
            await asyncio.sleep(0)

    def _ended(self, outcome: Outcome, what: object) -> bool:
        """Whether the lane ends with this. Raises RuntimeError if nobody else can have its partition: it would stand still for ever."""
        if outcome is Outcome.STALE and not self.fenced and not self.closed and self.claim.current():
            raise RuntimeError(f"{what!r} was called stale, but its assignment is the current one")
        return outcome is not Outcome.DONE

    async def _rest(self) -> None:
        """Wait until there may be something to take, or it is time to look for what is due."""
        self._wake.clear()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), self._clock.pause(_now()))

    # -- time --------------------------------------------------------------------------------------------------

    def _see_due(self, *, fired: bool = False) -> None:
        if self.spec.due is not None:
            self._clock.see(self.spec.due.store.first_due(self.partition), fired=fired)

    async def _look(self) -> None:
        """Learn the brokers' time, and then where the logs end: everything appended before that time lies below."""
        assert self.producer is not None
        assert self._ends is not None
        assert self.spec.clock is not None
        moment = await self.producer.tell_time(self.spec.clock, self.partition)
        ends = await self._ends([TP(tracker.topic, tracker.partition) for tracker in self.trackers])
        self._clock.looked(_now(), moment, ends)

    def _done(self, tp: TP) -> int:
        return next(tracker.done for tracker in self.trackers if tracker.topic == tp.topic)

    def _take(self) -> list[_Taken]:
        was_full = self.full
        counts = [tracker.count for tracker in self.trackers]
        given = shares(counts, self.spec.max_records, self._served)
        taken: dict[int, _Taken] = {}
        room = BATCH_BYTES
        for turn in range(len(counts)):
            at = (self._served + turn) % len(counts)  # where there isn't room for all, another topic comes first each time
            tracker = self.trackers[at]
            chunk = tracker.take(given[at], max(0, room)) if room > 0 or not given[at] else None
            if chunk is not None:
                taken[at] = _Taken(tracker, Slice(tracker.topic, chunk.records, chunk.to))
                room -= chunk.size
        self._served += 1
        if was_full and not self.full:
            self._rested()
        return [taken[at] for at in sorted(taken)]


def _now() -> Now:
    return Now(int(time.time() * 1000), int(time.monotonic() * 1000))
