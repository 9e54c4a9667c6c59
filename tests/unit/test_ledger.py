"""The offset ledger: what may be delivered, and what may be committed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.transport.ledger import Ledger, Offer, shares


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


def offsets(ledger: Ledger, limit: int = 100) -> list[int]:
    chunk = ledger.take(limit)
    return [record.offset for record in chunk.records] if chunk else []


def test_a_list_that_follows_is_taken() -> None:
    ledger = Ledger("t", 0, 5, None)
    assert ledger.offer(5, 8, recs(5, 6, 7)) is Offer.TAKEN
    assert (ledger.next, ledger.done, ledger.count) == (8, 5, 3)


def test_a_gap_between_lists_is_refused() -> None:
    ledger = Ledger("t", 0, 5, None)
    assert ledger.offer(6, 8, recs(6, 7)) is Offer.GAP
    assert (ledger.next, ledger.count) == (5, 0)


def test_a_gap_inside_a_list_is_real() -> None:
    ledger = Ledger("t", 0, 5, None)
    assert ledger.offer(5, 20, recs(7, 12)) is Offer.TAKEN
    chunk = ledger.take(100)
    assert chunk is not None
    assert ([record.offset for record in chunk.records], chunk.to) == ([7, 12], 20)


def test_an_overlap_is_trimmed() -> None:
    ledger = Ledger("t", 0, 5, None)
    assert ledger.offer(3, 8, recs(3, 4, 5, 7)) is Offer.OVERLAP
    assert offsets(ledger) == [5, 7]


def test_a_list_seen_before_adds_nothing() -> None:
    ledger = Ledger("t", 0, 5, None)
    assert ledger.offer(2, 5, recs(2, 3, 4)) is Offer.OVERLAP
    assert (ledger.next, ledger.count, ledger.take(10)) == (5, 0, None)


def test_taking_moves_nothing_that_is_committed() -> None:
    ledger = Ledger("t", 0, 0, 0)
    ledger.offer(0, 3, recs(0, 1, 2))
    ledger.take(10)
    assert ledger.done == 0
    assert not ledger.uncommitted
    ledger.finish(3)
    assert ledger.done == 3
    assert ledger.uncommitted


def test_a_list_is_divided_at_the_limit() -> None:
    ledger = Ledger("t", 0, 0, None)
    ledger.offer(0, 12, recs(0, 4, 5, 9))
    first = ledger.take(3)
    assert first is not None
    assert ([record.offset for record in first.records], first.to) == ([0, 4, 5], 6)
    second = ledger.take(3)
    assert second is not None
    assert ([record.offset for record in second.records], second.to) == ([9], 12)
    assert (ledger.count, ledger.size) == (0, 0)


def test_a_stretch_without_records_is_finished_too() -> None:
    ledger = Ledger("t", 0, 0, None)
    ledger.offer(0, 4, [])
    chunk = ledger.take(0)
    assert chunk is not None
    assert (list(chunk.records), chunk.to) == ([], 4)


def test_a_fresh_partition_has_something_to_commit_only_when_something_is_done() -> None:
    ledger = Ledger("t", 0, 0, None)
    assert ledger.uncommitted  # nothing committed yet: position 0 is worth saying
    ledger.committed = 0
    assert not ledger.uncommitted


def test_skip_goes_on_at_the_log_start() -> None:
    ledger = Ledger("t", 0, 5, 5)
    ledger.skip(9)
    assert (ledger.next, ledger.done) == (9, 9)
    ledger.skip(7)
    assert ledger.next == 9


@given(
    starts=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    lengths=st.lists(st.integers(1, 12), min_size=40, max_size=40),
    limits=st.lists(st.integers(1, 9), min_size=1, max_size=8),
)
def test_whatever_arrives_everything_is_delivered_once_in_order(starts: list[int], lengths: list[int], limits: list[int]) -> None:
    """Lists from anywhere, lost ones included: what comes out is the log without a hole, from the start to `next`."""
    ledger = Ledger("t", 0, 0, None)
    out: list[int] = []
    for turn, start in enumerate(starts):
        ledger.offer(start, start + lengths[turn], recs(*range(start, start + lengths[turn])))
        out += offsets(ledger, limits[turn % len(limits)])
    while part := offsets(ledger, 5):
        out += part
    assert out == list(range(ledger.next))
    assert (ledger.count, ledger.size) == (0, 0)


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


@given(counts=st.lists(st.integers(0, 50), max_size=14), limit=st.integers(1, 200), first=st.integers(0, 1000))
def test_shares_are_fair_and_leave_nothing_idle(counts: list[int], limit: int, first: int) -> None:
    given_ = shares(counts, limit, first)
    assert all(0 <= share <= count for share, count in zip(given_, counts, strict=True))
    assert sum(given_) == min(limit, sum(counts))
    short = [share for share, count in zip(given_, counts, strict=True) if share < count]
    if short:
        assert max(given_) <= min(short) + 1
