"""A lane on trackers: one batch at a time, from all topics, finished only when the handler has returned."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from settings import Settings
from streams.transport.batch import LaneBatch
from streams.transport.delivery import Delivery
from streams.transport.errors import LeaseLost, Stale
from streams.transport.lane import BATCH_BYTES, Claim, Handler, Lane, LaneSpec, Limits
from streams.transport.lease import Lease
from streams.transport.offset_tracker import OffsetTracker
from streams.transport.producer import LaneProducer
from tests.unit.test_offset_tracker import Rec, recs


class Group:
    """What the broker thinks of this worker."""

    def __init__(self) -> None:
        self.current = True
        self.leased = True

    def claim(self) -> Claim:
        return Claim(object(), 1, lambda assignment, generation: self.current, lambda: self.leased)


def lane_of(handler: Handler, group: Group, *, topics: tuple[str, ...] = ("a", "b"), max_records: int = 100, limit: int = 1000) -> Lane:
    settings = Settings(retry_first=0.001, retry_longest=0.001)
    spec = LaneSpec(topics, handler, max_records)
    lane = Lane("0", spec, 0, group.claim(), Delivery(settings), Limits(limit, 1 << 20))
    lane.trackers.extend(OffsetTracker(topic, 0, 0, None) for topic in topics)
    return lane


def start(lane: Lane, rested: Callable[[], None] = lambda: None) -> asyncio.Task[None]:
    return lane.start(LaneProducer(dict, lane.check, lambda why: None, 1.0), rested)


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
    task = start(lane)
    await until(lambda: bool(seen))
    assert [(part.topic, len(part.records), part.to) for part in seen[0].slices] == [("a", 3, 3), ("b", 1, 9)]
    assert (a.done, b.done) == (0, 0)
    release.set()
    await until(lambda: (a.done, b.done) == (3, 9))
    await end(lane, task)
    assert (lane.batches, lane.records) == (1, 4)


async def test_a_backlog_of_one_topic_does_not_starve_another() -> None:
    sizes: list[dict[str, int]] = []

    async def handler(batch: LaneBatch) -> None:
        sizes.append({part.topic: len(part.records) for part in batch.slices})

    lane = lane_of(handler, Group(), max_records=10)
    lane.trackers[0].offer(0, 95, recs(*range(95)))
    lane.trackers[1].offer(0, 3, recs(0, 1, 2))
    task = start(lane)
    await until(lambda: lane.records == 98)
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
        seen.append([(part.topic, [record.offset for record in part.records], part.to) for part in batch.slices])
        if len(seen) == 2:
            a.offer(12, 13, recs(12))
            raise ConnectionError("away")
        await release.wait()

    lane = lane_of(handler, Group())
    a, b = lane.trackers
    a.offer(0, 12, recs(0, 4, 7))
    b.offer(0, 9, recs(4, 5))
    release.set()
    task = start(lane)
    await until(lambda: (a.done, b.done) == (13, 9))
    await end(lane, task)
    rest = [("a", [7], 12), ("b", [4], 5)]
    assert seen == [[("a", [0, 4], 5)], rest, rest, [("b", [5], 9)], [("a", [12], 13)]]
    assert done == [(0, 0), (5, 0), (5, 0), (12, 5), (12, 9)]
    assert (lane.batches, lane.records) == (4, 6)


async def test_a_batch_holds_no_more_bytes_than_it_may_and_no_topic_starves() -> None:
    sizes: list[dict[str, int]] = []

    async def handler(batch: LaneBatch) -> None:
        sizes.append({part.topic: len(part.records) for part in batch.slices})

    large = bytes(BATCH_BYTES // 3)
    lane = lane_of(handler, Group())
    lane.trackers[0].offer(0, 9, [Rec(offset, large) for offset in range(9)])
    lane.trackers[1].offer(0, 1, [Rec(0, bytes(2 * BATCH_BYTES))])
    task = start(lane)
    await until(lambda: lane.records == 10)
    await end(lane, task)
    assert sizes == [{"a": 2, "b": 1}, {"a": 2}, {"a": 2}, {"a": 2}, {"a": 1}]


async def test_a_temporary_failure_is_tried_again_with_the_same_batch() -> None:
    seen: list[LaneBatch] = []

    async def handler(batch: LaneBatch) -> None:
        seen.append(batch)
        if len(seen) < 3:
            raise ConnectionError("away")

    lane = lane_of(handler, Group())
    lane.trackers[0].offer(0, 3, recs(0, 1, 2))
    task = start(lane)
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
    task = start(lane)
    await asyncio.wait_for(tried.wait(), 5)
    await end(lane, task)
    assert lane.trackers[0].done == 0


async def test_a_bug_ends_the_lane_with_its_exception() -> None:
    async def handler(batch: LaneBatch) -> None:
        raise KeyError("bug")

    lane = lane_of(handler, Group())
    lane.trackers[0].offer(0, 3, recs(0, 1, 2))
    task = start(lane)
    with pytest.raises(KeyError) as caught:
        await asyncio.wait_for(task, 5)
    assert "a 3 to 3" in caught.value.__notes__[0]
    assert lane.trackers[0].done == 0


async def test_a_stale_batch_is_dropped_without_a_word() -> None:
    group = Group()

    async def handler(batch: LaneBatch) -> None:
        group.current = False
        batch.check()

    lane = lane_of(handler, group)
    lane.trackers[0].offer(0, 3, recs(0, 1, 2))
    await asyncio.wait_for(start(lane), 5)
    assert lane.trackers[0].done == 0


async def test_a_batch_that_ends_after_the_epoch_is_not_finished() -> None:
    entered, release = asyncio.Event(), asyncio.Event()

    async def handler(batch: LaneBatch) -> None:
        entered.set()
        await release.wait()

    lane = lane_of(handler, Group())
    lane.trackers[0].offer(0, 3, recs(0, 1, 2))
    task = start(lane)
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

    lane = lane_of(handler, Group(), max_records=5, limit=10)
    a, b = lane.trackers
    assert lane.wanted() == [a, b]
    a.offer(0, 20, recs(*range(20)))
    assert lane.wanted() == [b]
    task = start(lane, lambda: rested.append(True))
    release.set()
    await until(lambda: a.done == 20)
    assert rested == [True]
    assert lane.wanted() == [a, b]
    await end(lane, task)
    assert lane.wanted() == []


def test_the_lease_counts_from_when_the_heartbeat_was_sent() -> None:
    lease = Lease(10.0)
    assert not lease.valid(0.0)
    lease.renew(100.0)
    assert lease.valid(107.9)
    assert not lease.valid(108.0)
    lease.renew(95.0)  # an answer that comes late proves nothing newer
    assert not lease.valid(108.0)
