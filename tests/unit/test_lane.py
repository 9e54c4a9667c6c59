"""A lane on trackers: one batch at a time, from all topics, finished only when the handler has returned."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from settings import Settings
from streams.transport import lane as lane_module
from streams.transport.batch import LaneBatch, OpenLane
from streams.transport.clock import Now
from streams.transport.delivery import Delivery
from streams.transport.errors import Fenced, ImpossibleTransition, LeaseLost, Stale
from streams.transport.intake import BATCH_BYTES
from streams.transport.lane import (
    TRANSITIONS,
    Claim,
    Handler,
    Lane,
    LaneContext,
    LaneSpec,
    LaneState,
    Limits,
    Opened,
)
from streams.transport.lease import Lease
from streams.transport.offset_tracker import OffsetTracker
from streams.transport.producer import LaneProducer
from streams.transport.records import Record
from streams.transport.waits import Totals, Waited, Waits, read_notes
from tests.unit.test_offset_tracker import Rec, recs


class Group:
    """What the broker thinks of this worker."""

    def __init__(self) -> None:
        self.current = True
        self.leased = True

    def claim(self) -> Claim:
        return Claim(object(), 1, lambda assignment, generation: self.current, lambda: self.leased)


def producer_of(name: str, check: Callable[[], None]) -> LaneProducer:
    return LaneProducer(dict, check, lambda why: None, 1.0)


def unused(*arguments: object) -> Any:
    raise AssertionError("nothing of this lane is ever due")


def lane_of(
    handler: Handler,
    group: Group,
    *,
    max_records: int = 100,
    limit: int = 1000,
    producer: Callable[[str, Callable[[], None]], LaneProducer] = producer_of,
    rested: Callable[[], None] = lambda: None,
    opened: Opened | None = None,
    awaited: Callable[[Record], bool] | None = None,
    tracked: tuple[str, ...] = (),
    ends: Sequence[tuple[int, ...]] = ((), ()),
) -> Lane:
    delivery = Delivery(Settings(retry_first=0.001, retry_longest=0.001))
    context = LaneContext(delivery, Limits(limit, 1 << 20), producer, rested, unused, unused)
    topics = ("a", "b")
    spec = LaneSpec(topics, handler, max_records, opened=opened, awaited=awaited, tracked=tracked)
    lane = Lane("0", spec, 0, group.claim(), context)
    committed = 0 if any(ends) else None
    lane.trackers.extend(
        OffsetTracker(topic, 0, 0, committed, ends=noted) for topic, noted in zip(topics, ends, strict=True)
    )
    return lane


async def start(lane: Lane) -> asyncio.Task[None]:
    await lane.prepare()
    return lane.start().batches


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0)


async def end(lane: Lane, task: asyncio.Task[None]) -> None:
    lane.close()
    await asyncio.wait_for(task, 5)
    await lane.end()


async def test_a_batch_holds_all_topics_and_is_finished_when_the_handler_returns() -> None:
    release = asyncio.Event()
    seen: list[LaneBatch] = []

    async def handler(batch: LaneBatch) -> None:
        seen.append(batch)
        await release.wait()

    lane = lane_of(handler, Group())
    a, b = lane.trackers
    a.offer(0, 3, recs(0, 1, 2))
    b.offer(0, 9, recs(4))
    task = await start(lane)
    await until(lambda: bool(seen))
    assert [(part.topic, len(part.records), part.to) for part in seen[0].slices] == [("a", 3, 3), ("b", 1, 9)]
    assert (a.done, b.done) == (0, 0)
    release.set()
    await until(lambda: (a.done, b.done) == (3, 9))
    await end(lane, task)
    assert (lane.progress.batches, lane.progress.records) == (1, 4)


async def test_records_wait_from_their_arrival_to_their_acknowledgement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also behind the batch before; those for which somebody waits are counted apart."""
    waits, now = Waits(), 10.0
    monkeypatch.setattr(lane_module, "WAITS", waits)
    clock = dict.fromkeys(("monotonic", "time", "perf_counter"), lambda: now)
    monkeypatch.setattr(lane_module, "time", SimpleNamespace(**clock))

    async def handler(batch: LaneBatch) -> None:
        nonlocal now
        if lane.progress.batches == 0:
            now += 1
            a.offer(3, 5, recs(3, 4))
            lane.wake()
        now += 2

    lane = lane_of(handler, Group(), awaited=lambda record: record.offset > 1)
    a, _ = lane.trackers
    a.offer(0, 3, recs(0, 1, 2))
    lane.wake()
    now += 0.5
    task = await start(lane)
    await until(lambda: lane.progress.records == 5)
    await end(lane, task)
    first, second = 0.5 + 1 + 2, 2 + 2
    [totals] = read_notes([waits.note()]).values()
    assert totals == Totals(Waited(3, round(1000 * (first + 2 * second))), Waited(2, round(2000 * first)))


async def test_a_backlog_of_one_topic_does_not_starve_another() -> None:
    sizes: list[dict[str, int]] = []

    async def handler(batch: LaneBatch) -> None:
        sizes.append({part.topic: len(part.records) for part in batch.slices})

    lane = lane_of(handler, Group(), max_records=10)
    lane.trackers[0].offer(0, 95, recs(*range(95)))
    lane.trackers[1].offer(0, 3, recs(0, 1, 2))
    task = await start(lane)
    await until(lambda: lane.progress.records == 98)
    await end(lane, task)
    assert sizes[0] == {"a": 7, "b": 3}
    assert all(sum(size.values()) <= 10 for size in sizes)


async def test_what_a_handler_leaves_comes_first_and_is_finished_by_itself() -> None:
    release = asyncio.Event()
    seen: list[list[tuple[str, list[int], int]]] = []
    done: list[tuple[int, int]] = []

    async def handler(batch: LaneBatch) -> None:
        done.append((a.done, b.done))
        if len(batch) > 2:
            batch.shorten(2)
        seen.append(
            [(part.topic, [record.offset for record in part.records], part.to) for part in batch.slices]
        )
        if len(seen) == 2:
            a.offer(12, 13, recs(12))
            raise ConnectionError("away")
        await release.wait()

    lane = lane_of(handler, Group())
    a, b = lane.trackers
    a.offer(0, 12, recs(0, 4, 7))
    b.offer(0, 9, recs(4, 5))
    release.set()
    task = await start(lane)
    await until(lambda: (a.done, b.done) == (13, 9))
    await end(lane, task)
    rest = [("a", [7], 12), ("b", [4], 5)]
    assert seen == [[("a", [0, 4], 5)], rest, rest, [("b", [5], 9)], [("a", [12], 13)]]
    assert done == [(0, 0), (5, 0), (5, 0), (12, 5), (12, 9)]
    assert (lane.progress.batches, lane.progress.records) == (4, 6)


async def test_a_look_at_what_is_due_keeps_what_a_handler_left() -> None:
    seen: list[int | list[int]] = []

    async def handler(batch: LaneBatch) -> None:
        if batch.moment is not None:
            seen.append(batch.moment)
            lane._clock.see(0, fired=True)
            return
        if not seen:
            batch.shorten(2)
            lane._clock.see(60, fired=False)
            lane._clock.looked(Now(0, 0), 70, {TP("a", 0): 5})
        seen.append([record.offset for part in batch.slices for record in part.records])

    lane = lane_of(handler, Group())
    a = lane.trackers[0]
    a.offer(0, 12, recs(0, 4, 7))
    task = await start(lane)
    await until(lambda: a.done == 12)
    await end(lane, task)
    assert seen == [[0, 4], 70, [7]]


async def test_a_batch_holds_no_more_bytes_than_it_may_and_no_topic_starves() -> None:
    sizes: list[dict[str, int]] = []

    async def handler(batch: LaneBatch) -> None:
        sizes.append({part.topic: len(part.records) for part in batch.slices})

    large = bytes(BATCH_BYTES // 3)
    lane = lane_of(handler, Group())
    lane.trackers[0].offer(0, 9, [Rec(offset, large) for offset in range(9)])
    lane.trackers[1].offer(0, 1, [Rec(0, bytes(2 * BATCH_BYTES))])
    task = await start(lane)
    await until(lambda: lane.progress.records == 10)
    await end(lane, task)
    assert sizes == [{"a": 2, "b": 1}, {"a": 2}, {"a": 2}, {"a": 2}, {"a": 1}]


async def test_where_there_is_no_room_for_all_each_topic_comes_first_in_turn() -> None:
    seen: list[str] = []

    async def handler(batch: LaneBatch) -> None:
        seen.extend(part.topic for part in batch.slices)

    lane = lane_of(handler, Group(), max_records=1)
    for tracker in lane.trackers:
        tracker.offer(0, 3, recs(0, 1, 2))
    task = await start(lane)
    await until(lambda: lane.progress.records == 6)
    await end(lane, task)
    assert seen == ["a", "b"] * 3


async def test_a_temporary_failure_is_tried_again_with_the_same_batch() -> None:
    seen: list[LaneBatch] = []

    async def handler(batch: LaneBatch) -> None:
        seen.append(batch)
        if len(seen) < 3:
            raise ConnectionError("away")

    lane = lane_of(handler, Group())
    lane.trackers[0].offer(0, 3, recs(0, 1, 2))
    task = await start(lane)
    await until(lambda: lane.trackers[0].done == 3)
    await end(lane, task)
    assert seen[0] is seen[1] is seen[2]


async def test_closing_during_an_outage_leaves_the_batch_unfinished() -> None:
    tried = asyncio.Event()

    async def handler(batch: LaneBatch) -> None:
        tried.set()
        raise ConnectionError("away")

    lane = lane_of(handler, Group())
    lane.trackers[0].offer(0, 3, recs(0, 1, 2))
    task = await start(lane)
    await asyncio.wait_for(tried.wait(), 5)
    await end(lane, task)
    assert lane.trackers[0].done == 0


async def test_a_bug_ends_the_lane_with_its_exception() -> None:
    async def handler(batch: LaneBatch) -> None:
        raise KeyError("bug")

    lane = lane_of(handler, Group())
    lane.trackers[0].offer(0, 3, recs(0, 1, 2))
    task = await start(lane)
    with pytest.raises(KeyError) as caught:
        await asyncio.wait_for(task, 5)
    assert "a 3 to 3" in caught.value.__notes__[0]
    assert (lane.state, lane.trackers[0].done) == (LaneState.ENDED, 0)


async def test_a_stale_batch_is_dropped_without_a_word() -> None:
    group = Group()

    async def handler(batch: LaneBatch) -> None:
        group.current = False
        batch.check()

    lane = lane_of(handler, group)
    lane.trackers[0].offer(0, 3, recs(0, 1, 2))
    await asyncio.wait_for(await start(lane), 5)
    assert lane.trackers[0].done == 0


async def test_a_batch_that_ends_after_the_epoch_is_not_finished() -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def handler(batch: LaneBatch) -> None:
        entered.set()
        await release.wait()

    lane = lane_of(handler, Group())
    lane.trackers[0].offer(0, 3, recs(0, 1, 2))
    task = await start(lane)
    await asyncio.wait_for(entered.wait(), 5)
    lane.close()
    await lane.end()
    release.set()
    await asyncio.wait_for(task, 5)
    assert lane.trackers[0].done == 0


async def test_the_check_before_a_write() -> None:
    group = Group()

    async def handler(batch: LaneBatch) -> None:
        return

    lane = lane_of(handler, group)
    batch = LaneBatch(lane, ())
    batch.check()
    group.leased = False
    with pytest.raises(LeaseLost):
        batch.check()
    group.current = False
    with pytest.raises(Stale):
        batch.check()
    group.current = group.leased = True
    await lane.end()
    with pytest.raises(Stale):
        batch.check()


async def test_a_full_lane_fetches_only_for_its_empty_trackers() -> None:
    release = asyncio.Event()
    rested: list[bool] = []

    async def handler(batch: LaneBatch) -> None:
        await release.wait()

    lane = lane_of(handler, Group(), max_records=5, limit=10, rested=lambda: rested.append(True))
    a, b = lane.trackers
    assert lane.wanted() == [a, b]
    a.offer(0, 20, recs(*range(20)))
    assert lane.wanted() == [b]
    task = await start(lane)
    release.set()
    await until(lambda: a.done == 20)
    assert rested == [True]
    assert lane.wanted() == [a, b]
    await end(lane, task)
    assert lane.wanted() == []


# -- its state --------------------------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]


async def nothing(batch: LaneBatch) -> None:
    """A handler that has nothing to do."""


def state_of(lane: Lane) -> LaneState:
    """Asked anew each time: the type checker takes an attribute for what it was before."""
    return lane.state


def brought_to(state: LaneState) -> Lane:
    """A lane in this state, whatever way led there."""
    lane = lane_of(nothing, Group())
    lane._state = state
    return lane


def test_the_drawing_of_the_states_has_every_arrow_and_no_other() -> None:
    page = (ROOT / "docs/architecture.md").read_text()
    arrows = re.findall(r"^ +([A-Z]+) --> ([A-Z]+)", page, re.MULTILINE)
    drawn = {(LaneState[before], LaneState[after]) for before, after in arrows}
    assert drawn == {(before, after) for before, following in TRANSITIONS.items() for after in following}
    assert len(arrows) == len(drawn)
    assert TRANSITIONS.keys() == set(LaneState)
    drawing = (lane_module.__doc__ or "").partition("A lane is made")[0]
    assert set(re.findall(r"\b[A-Z]{4,}\b", drawing)) == {state.name for state in LaneState}


@pytest.mark.parametrize(("before", "after"), list(product(LaneState, LaneState)))
async def test_an_impossible_transition_raises(before: LaneState, after: LaneState) -> None:
    lane = brought_to(before)
    if after in TRANSITIONS[before]:
        lane._to(after)
        assert state_of(lane) is after
    else:
        with pytest.raises(ImpossibleTransition, match=f"from {before.value} to {after.value}"):
            lane._to(after)
        assert state_of(lane) is before


@pytest.mark.parametrize("state", [state for state in LaneState if state is not LaneState.PREPARED])
async def test_only_a_prepared_lane_starts(state: LaneState) -> None:
    lane = brought_to(state)
    with pytest.raises(ImpossibleTransition):
        lane.start()
    assert lane.tasks is None


async def test_the_life_of_a_lane() -> None:
    entered, release, cancelled = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def handler(batch: LaneBatch) -> None:
        entered.set()
        await release.wait()

    async def opened(view: OpenLane) -> None:
        assert (view.generation, view.busy) == (1, False)
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    lane = lane_of(handler, Group(), opened=opened)
    lane.trackers[0].offer(0, 3, recs(0, 1, 2))
    assert state_of(lane) is LaneState.CREATED
    await lane.prepare()
    await lane.prepare()
    assert state_of(lane) is LaneState.PREPARED
    lane.start()
    assert state_of(lane) is LaneState.OPEN
    await asyncio.wait_for(entered.wait(), 5)
    assert lane.busy
    lane.close()
    lane.close()
    assert (state_of(lane), lane.wanted()) == (LaneState.CLOSING, [])
    release.set()
    assert lane.tasks is not None
    await asyncio.wait_for(lane.tasks.batches, 5)
    assert (state_of(lane), lane.trackers[0].done, lane.busy) == (LaneState.CLOSING, 3, False)
    await lane.end()
    await lane.end()
    assert state_of(lane) is LaneState.CLOSED
    assert cancelled.is_set()


class Refused(LaneProducer):
    """Its start and its acknowledgements raise what they are given, and work then."""

    def __init__(
        self, check: Callable[[], None], start: list[Exception], acknowledge: list[Exception]
    ) -> None:
        super().__init__(dict, check, lambda why: None, 1.0)
        self.failures = {"start": start, "acknowledge": acknowledge}
        self.failed = asyncio.Event()

    async def start(self) -> None:
        self._fail("start")

    async def acknowledge(self, offsets: object, before: object, notes: object) -> None:
        self._fail("acknowledge")

    def _fail(self, step: str) -> None:
        if self.failures[step]:
            self.failed.set()
            failure = self.failures[step].pop(0)
            self.fenced = isinstance(failure, Fenced)
            raise failure


async def test_a_lane_is_prepared_when_its_producer_works() -> None:
    failures: list[Exception] = [ConnectionError("away")] * 3
    lane = lane_of(nothing, Group(), producer=lambda name, check: Refused(check, failures, []))
    await lane.prepare()
    assert state_of(lane) is LaneState.PREPARED


async def test_a_lane_that_closes_while_its_producer_starts_is_not_prepared() -> None:
    failures: list[Exception] = [ConnectionError("away")] * 10**6
    lane = lane_of(nothing, Group(), producer=lambda name, check: Refused(check, failures, []))
    preparing = asyncio.ensure_future(lane.prepare())
    assert isinstance(lane.producer, Refused)
    await asyncio.wait_for(lane.producer.failed.wait(), 5)
    lane.close()
    await asyncio.wait_for(preparing, 5)
    assert state_of(lane) is LaneState.CLOSING
    await lane.end()
    await lane.prepare()
    assert state_of(lane) is LaneState.CLOSED


@pytest.mark.parametrize(
    ("failure", "state"), [(Fenced("by another"), LaneState.FENCED), (Stale("late"), LaneState.ENDED)]
)
async def test_a_lane_that_stops_by_itself_says_how(failure: Exception, state: LaneState) -> None:
    group = Group()

    async def handler(batch: LaneBatch) -> None:
        group.current = False

    lane = lane_of(handler, group, producer=lambda name, check: Refused(check, [], [failure]))
    lane.trackers[0].offer(0, 3, recs(0, 1, 2))
    await asyncio.wait_for(await start(lane), 5)
    assert (state_of(lane), lane.trackers[0].done) == (state, 0)
    await lane.end()


async def test_a_lane_that_is_fenced_while_it_closes_goes_on_closing() -> None:
    async def handler(batch: LaneBatch) -> None:
        lane.close()

    lane = lane_of(handler, Group(), producer=lambda name, check: Refused(check, [], [Fenced("by another")]))
    lane.trackers[0].offer(0, 3, recs(0, 1, 2))
    await asyncio.wait_for(await start(lane), 5)
    assert (state_of(lane), lane.producer.fenced, lane.trackers[0].done) == (LaneState.CLOSING, True, 0)
    await lane.end()


async def test_a_batch_that_is_stale_by_nobodys_word_is_a_bug() -> None:
    """Its partition would stand still for ever: nobody else can have it."""
    lane = lane_of(nothing, Group(), producer=lambda name, check: Refused(check, [], [Stale("late")]))
    lane.trackers[0].offer(0, 3, recs(0, 1, 2))
    with pytest.raises(RuntimeError, match="assignment is the current one"):
        await asyncio.wait_for(await start(lane), 5)
    assert state_of(lane) is LaneState.ENDED


def test_the_lease_counts_from_when_the_heartbeat_was_sent() -> None:
    lease = Lease(10.0)
    assert not lease.valid(0.0)
    lease.renew(100.0)
    assert lease.valid(107.9)
    assert not lease.valid(108.0)
    lease.renew(95.0)  # an answer that comes late proves nothing newer
    assert not lease.valid(108.0)


@pytest.mark.parametrize(
    ("noted", "known"),
    [([(), ()], (0, 0)), ([(3, 7), (2, 9)], (3, 9)), ([(3, 7), ()], (3, 7)), ([(3, 7, 1), ()], ())],
    ids=["nobody has committed anything", "the latest", "of one topic", "of other topics"],
)
async def test_where_topics_end_is_kept_until_what_killed_runs_told_is_taken_back(
    noted: list[tuple[int, ...]], known: tuple[int, ...]
) -> None:
    group = Group()
    lane = lane_of(nothing, group, tracked=("x", "y"), ends=noted)
    task = await start(lane)
    assert lane.tracked_ends == known

    async def take() -> None:
        tracker = lane.trackers[0]
        done = tracker.done
        tracker.offer(done, done + 1, recs(done))
        lane.wake()
        await until(lambda: tracker.done > done)

    lane.producer.ends = {"y": 12}
    await take()
    assert lane.tracked_ends == known, "a killed run's word behind it is still to be taken back"
    lane.track_from((4, 11))
    await take()
    assert lane.tracked_ends == (4, 12)
    await end(lane, task)
