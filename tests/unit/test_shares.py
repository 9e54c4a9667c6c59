"""Lanes shared out among processes: what these tell as if it were one, where their states are, and what
comes of all of them.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from operations import differences, whatif
from operations.differences import Differences
from operations.postgres.compare import COLUMNS, Difference
from operations.replay import LocalStates, Parts
from operations.shares import ALL, Done, Log, Result, Share, Step, Tell, Together, share_out
from operations.whatif import Deadlines, EventDifference, Published, WhatIfResult
from streams.lag import Position


@dataclass(frozen=True)
class Work:
    """It tells two steps, and as its result the process in which it ran."""

    number: int

    async def __call__(self, tell: Tell) -> None:
        tell(Step("first"))
        tell(Done(self.number, 10))
        tell(Step("second"))
        tell(Result((self.number, os.getpid())))


@pytest.mark.parametrize(("apart", "processes"), [(True, 2), (False, 1)])
async def test_results_come_in_the_order_of_the_shares(apart: bool, processes: int) -> None:
    steps: list[str] = []
    results = await share_out(
        [Work(number) for number in range(2)], lambda done, total: None, steps.append, apart=apart
    )
    assert [number for number, _ in results] == [0, 1]
    assert len({pid for _, pid in results}) == processes
    assert (os.getpid() in {pid for _, pid in results}) == (not apart)
    assert steps == ["first", "second"]


def test_the_step_of_the_last_one_is_shown_and_what_all_have_done_of_it() -> None:
    shown: list[object] = []
    together = Together(2, lambda done, total: shown.append((done, total)), shown.append)
    for number, message in (
        (0, Step("folding")),
        (1, Step("folding")),
        (0, Done(5, 10)),
        (1, Done(1, 30)),
        (0, Done(10, 10)),
        (0, Step("comparing")),
        (0, Done(1, 2)),  # of a step that isn't shown yet
        (1, Done(30, 30)),
        (1, Step("comparing")),
        (0, Step("comparing 3 orders again")),
        (0, Result("a")),
        (1, Done(2, 2)),
        (1, Result("b")),
    ):
        together.hear(number, message)
    assert list(dict.fromkeys(shown)) == [
        "folding",
        (5, 10),
        (6, 40),
        (11, 40),
        (40, 40),
        "comparing",
        (1, 2),
        (3, 4),
    ]
    assert together.results == ["a", "b"]


def test_a_short_log_isnt_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("operations.shares.usable_cores", lambda: 8)

    def processes(lanes: int, records: int) -> int:
        return Log(
            {("order.paid", lane): Position(records // lanes, 0) for lane in range(lanes)}, ()
        ).processes

    assert [processes(4, records) for records in (0, 79_996, 80_000, 130_000, 10_000_000)] == [1, 1, 2, 3, 4]
    assert processes(20, 10_000_000) == 8


def test_states_of_shares_are_read_as_if_they_were_together(tmp_path: Path) -> None:
    ids = [b"%016d" % number for number in range(6)]
    parts = Parts.create(tmp_path / "two", 2)
    assert [*parts.shares] == [Share(0, 2), Share(1, 2)]
    for number, path in enumerate(parts.shares.values()):
        states = LocalStates(path)
        lane = number + 2
        states.write({each: b"s" + each for each in ids[number::2]}, (lane, {f"order.paid/{lane}": number}))
        states.close()
    parts = Parts(tmp_path / "two")
    parts.open()
    assert [*parts.ids()] == ids
    assert parts.get([ids[3], b"?" * 16, ids[0]]) == [b"s" + ids[3], None, b"s" + ids[0]]
    assert (parts.positions(2), parts.positions(3)) == ({"order.paid/2": 0}, {"order.paid/3": 1})
    assert [*parts.of_lane(5).ids()] == ids[1::2]
    parts.close()
    # One share is where the states of the release before are.
    assert Parts.create(tmp_path / "one", 1).shares == {ALL: tmp_path / "one"}
    LocalStates(tmp_path / "one").close()


def _row(order_id: str, region: str) -> Difference:
    actual: tuple[str | None, ...] = tuple("" for _ in COLUMNS["orders_order"])
    expected = tuple(region if name == "region" else "" for name in COLUMNS["orders_order"])
    return Difference("orders_order", order_id, order_id, actual, expected)


def _rows(*ids: str) -> Differences:
    rows = Differences(compared=10, inconclusive=1, lag=3)
    for each in ids:
        rows.add([_row(each, "X")], 2)
    return rows


def test_differences_of_shares_are_counted_together() -> None:
    whole = differences.put_together([_rows("b", "d"), _rows("a", "c", "e")], 3)
    assert (whole.compared, whole.orders, whole.inconclusive, whole.lag) == (20, 5, 2, 3)
    changes = whole.tables["orders_order"]
    assert (changes.different, changes.columns, changes.values["region"]) == (
        5,
        {"region": 5},
        {("", "X"): 5},
    )
    assert [each.order_id for each in whole.examples] == ["a", "b", "c"]


def test_what_would_change_in_shares_is_counted_together() -> None:
    def result(*ids: str) -> WhatIfResult:
        published, deadlines = Published(inconclusive=1, by_arrival=2), Deadlines(Counter(later=len(ids)))
        for each in ids:
            published.add([EventDifference("order.status_changed", "notice", each, each, "paid", "new")], 2)
            deadlines.examples.append((each, "later", 1, 2))
        published.incomplete["orders.dlq"] = "orders.dlq/0 begins at 1"
        return WhatIfResult(100, 2.0 + len(ids), _rows(*ids), published, deadlines)

    whole = whatif._put_together([result("b", "d"), result("a")], 2)
    assert (whole.records, whole.seconds, whole.rows.orders, whole.same) == (200, 4.0, 3, False)
    published = whole.published
    assert (published.orders, published.total, published.inconclusive, published.by_arrival) == (3, 3, 2, 4)
    assert published.notices == {"order.status_changed": {("paid", "new"): 3}}
    assert published.incomplete == {"orders.dlq": "orders.dlq/0 begins at 1"}
    assert [each.order_id for each in published.examples] == ["a", "b"]
    assert whole.deadlines.counts == {"later": 3}
    assert [each[0] for each in whole.deadlines.examples] == ["a", "b"]
