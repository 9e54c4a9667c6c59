"""The offset tracker: what may be delivered, and what may be committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.transport.offset_tracker import Offer, OffsetTracker, shares


@dataclass
class Rec:
    offset: int
    value: bytes | None = b"v"
    key: bytes | None = b"k"
    topic: str = "t"
    partition: int = 0
    timestamp: int = 0
    timestamp_type: int = 0
    headers: Sequence[tuple[str, bytes]] = ()


def recs(*offsets: int) -> list[Rec]:
    return [Rec(offset) for offset in offsets]


def offsets(tracker: OffsetTracker, limit: int = 100) -> list[int]:
    chunk = tracker.take(limit)
    return [record.offset for record in chunk.records] if chunk else []


def test_a_list_that_follows_is_taken() -> None:
    tracker = OffsetTracker("t", 0, 5, None)
    assert tracker.offer(5, 8, recs(5, 6, 7)) is Offer.TAKEN
    assert (tracker.next, tracker.done, tracker.count) == (8, 5, 3)


def test_a_gap_between_lists_is_refused() -> None:
    tracker = OffsetTracker("t", 0, 5, None)
    assert tracker.offer(6, 8, recs(6, 7)) is Offer.GAP
    assert (tracker.next, tracker.count) == (5, 0)


def test_a_gap_inside_a_list_is_real() -> None:
    tracker = OffsetTracker("t", 0, 5, None)
    assert tracker.offer(5, 20, recs(7, 12)) is Offer.TAKEN
    chunk = tracker.take(100)
    assert chunk is not None
    assert ([record.offset for record in chunk.records], chunk.to) == ([7, 12], 20)


def test_an_overlap_is_trimmed() -> None:
    tracker = OffsetTracker("t", 0, 5, None)
    assert tracker.offer(3, 8, recs(3, 4, 5, 7)) is Offer.OVERLAP
    assert offsets(tracker) == [5, 7]


def test_a_list_seen_before_adds_nothing() -> None:
    tracker = OffsetTracker("t", 0, 5, None)
    assert tracker.offer(2, 5, recs(2, 3, 4)) is Offer.OVERLAP
    assert (tracker.next, tracker.count, tracker.take(10)) == (5, 0, None)


def test_taking_moves_nothing_that_is_committed() -> None:
    tracker = OffsetTracker("t", 0, 0, 0)
    tracker.offer(0, 3, recs(0, 1, 2))
    tracker.take(10)
    assert tracker.done == 0
    assert not tracker.uncommitted
    tracker.finish(3)
    assert tracker.done == 3
    assert tracker.uncommitted


def test_a_list_is_divided_at_the_limit() -> None:
    tracker = OffsetTracker("t", 0, 0, None)
    tracker.offer(0, 12, recs(0, 4, 5, 9))
    first = tracker.take(3)
    assert first is not None
    assert ([record.offset for record in first.records], first.to) == ([0, 4, 5], 6)
    second = tracker.take(3)
    assert second is not None
    assert ([record.offset for record in second.records], second.to) == ([9], 12)
    assert (tracker.count, tracker.size) == (0, 0)


def test_a_stretch_without_records_is_finished_too() -> None:
    tracker = OffsetTracker("t", 0, 0, None)
    tracker.offer(0, 4, [])
    chunk = tracker.take(0)
    assert chunk is not None
    assert (list(chunk.records), chunk.to) == ([], 4)


def test_a_fresh_partition_has_something_to_commit_only_when_something_is_done() -> None:
    tracker = OffsetTracker("t", 0, 0, None)
    assert tracker.uncommitted  # nothing committed yet: position 0 is worth saying
    tracker.committed = 0
    assert not tracker.uncommitted


def test_skip_goes_on_at_the_log_start() -> None:
    tracker = OffsetTracker("t", 0, 5, 5)
    tracker.skip(9)
    assert (tracker.next, tracker.done) == (9, 9)
    tracker.skip(7)
    assert tracker.next == 9


@given(
    starts=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    lengths=st.lists(st.integers(1, 12), min_size=40, max_size=40),
    limits=st.lists(st.integers(1, 9), min_size=1, max_size=8),
)
def test_whatever_arrives_everything_is_delivered_once_in_order(
    starts: list[int], lengths: list[int], limits: list[int]
) -> None:
    """Lists from anywhere, lost ones included: what comes out is the log without a hole,
    from the start to `next`.
    """
    tracker = OffsetTracker("t", 0, 0, None)
    out: list[int] = []
    for turn, start in enumerate(starts):
        tracker.offer(start, start + lengths[turn], recs(*range(start, start + lengths[turn])))
        out += offsets(tracker, limits[turn % len(limits)])
    while part := offsets(tracker, 5):
        out += part
    assert out == list(range(tracker.next))
    assert (tracker.count, tracker.size) == (0, 0)


@pytest.mark.parametrize(
    ("counts", "limit", "first", "given_"),
    [
        ([], 10, 0, []),
        ([3, 4], 10, 0, [3, 4]),
        ([100, 2, 0], 10, 0, [8, 2, 0]),
        ([100, 100], 10, 0, [5, 5]),
        ([9, 9, 9], 2, 1, [0, 1, 1]),
        ([9, 9, 9], 2, 2, [1, 0, 1]),
    ],
)
def test_shares(counts: list[int], limit: int, first: int, given_: list[int]) -> None:
    assert shares(counts, limit, first) == given_


@given(
    counts=st.lists(st.integers(0, 50), max_size=14), limit=st.integers(1, 200), first=st.integers(0, 1000)
)
def test_shares_are_fair_and_leave_nothing_idle(counts: list[int], limit: int, first: int) -> None:
    given_ = shares(counts, limit, first)
    assert all(0 <= share <= count for share, count in zip(given_, counts, strict=True))
    assert sum(given_) == min(limit, sum(counts))
    short = [share for share, count in zip(given_, counts, strict=True) if share < count]
    if short:
        assert max(given_) <= min(short) + 1
