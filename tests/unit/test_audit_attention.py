"""What a person should look at, as the auditor reads the contract: worked examples, computed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pytest

from audit import attention
from audit.attention import KINDS, TABLE, TOPIC, attention_of, named_in, no_later
from audit.derived import DERIVED
from audit.findings import Finding, Findings, Report
from audit.index import Index
from audit.judge import DERIVED_EVENT, FACT, ROW, Item, Judge, Known, Lane
from audit.reference import Decision, Fact
from audit.stores import TABLES, columns, line_of
from audit.topics import CREATED, DECISIONS, LANE
from tests.unit.test_audit_promises import passed, promise, time
from tests.unit.test_audit_reference import (
    ANN,
    BOB,
    ORDER,
    USER,
    A,
    B,
    at,
    back,
    created,
    decision,
    fact,
    fold,
    headers,
    item,
    order,
    paid,
    scan,
    stock,
    uid,
    units,
)

REFUND = fold().made_id("refund:0")
FOREIGN = uid("f")
CANCEL = fact("order.cancel_requested", 3, reason="x")
RETURNED = decision(0, 1000, "return", uid("r"), [(A, 0)], minute=6)
CLOSED = [order(), paid(), stock("rejected")]
WHOLE = decision(0, 2000, "closed", ORDER, minute=6)


def reply(kind: str, minute: int, refund_id: str = REFUND, **more: Any) -> Fact:
    return fact(f"refund.{kind}", minute, refund_id=refund_id, **more)


def given_up(what: str, minute: int = 40, **more: Any) -> Fact:
    return passed(what, minute=minute, **more)


# -- which kinds hold, since when ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "decisions", "expected"),
    [
        # Nothing is odd.
        ([order(), paid()], [], {}),
        ([order(), paid(), scan("delivered"), back()], [], {}),
        # 20.01 of 20.00 captured; before 03:01 nothing was.
        ([order(), paid("20.01")], [], {"overpaid": ("", 1)}),
        # Nothing holds before order.created has happened.
        ([fact("order.created", 9, **created()), paid("20.01")], [], {"overpaid": ("", 9)}),
        ([order(), paid(), back(quantity=3)], [], {"over_returned": (A, 5)}),
        (
            [order(), scan("in_transit"), stock("released", items=units(A, 1))],
            [],
            {"moved_though_gone": (A, 2)},
        ),
        (
            [order(), stock("reserved", reservation_id=FOREIGN)],
            [],
            {"reservation_unknown": (" ".join(sorted((ANN, FOREIGN))), 1)},
        ),
        # 10.00 of 20.00 are captured, 15.00 decided.
        (
            [order(), paid("10.00")],
            [decision(0, 1500, "return", uid("r"), [(A, 0)], minute=6)],
            {"refund_above_captured": ("", 6), "refund_contradicted": ("0", 6)},
        ),
        # 20.00 are owed for what the inventory rejected of one seller, and nothing is captured.
        (
            [order(item(A), item(B, BOB)), stock("rejected")],
            [],
            {"refund_uncovered": (ANN, 1)},
        ),
        # A processed return was decided about; an earlier rejection turns up.
        (
            [order(), paid(), scan("delivered"), back(), back("rejected", 4)],
            [RETURNED],
            {"refund_contradicted": ("0", 6)},
        ),
        (
            [order(), paid(), stock("rejected"), scan("in_transit", 9)],
            [WHOLE],
            {"refund_contradicted": ("0", 9), "moved_though_gone": (A, 9)},
        ),
        ([*CLOSED, reply("failed", 8)], [WHOLE], {"refund_failed": (REFUND, 8)}),
        ([*CLOSED, reply("failed", 8), reply("completed", 9, attempt=2)], [WHOLE], {}),
        (
            [*CLOSED, reply("completed", 8), reply("completed", 9, attempt=2)],
            [WHOLE],
            {"refund_paid_twice": (f"{REFUND} 2", 9)},
        ),
        (
            [order(), paid(), reply("completed", 8, FOREIGN)],
            [],
            {"refund_unknown": (FOREIGN, 8)},
        ),
        # Nobody answers.
        (
            [order(), CANCEL, given_up("release")],
            [],
            {"release_unanswered": (ANN, 40)},
        ),
        ([order(), paid(), given_up("label")], [], {"label_unscanned": (ANN, 40)}),
        ([order(), paid(), given_up("label"), scan("in_transit", 50)], [], {}),
        ([*CLOSED, given_up("refund", refund_id=REFUND)], [WHOLE], {"refund_unconfirmed": (REFUND, 40)}),
        # Promises: two of A are due at 03:05, three of B at no time that anybody said.
        (
            [order(item(A, ship_by=at(5)), item(B, quantity=3)), paid("50.00"), passed("ship", 5)],
            [],
            {"late_to_ship": (f"{ANN} {time(5).isoformat()} 2", 40)},
        ),
        (
            [
                order(item(A, ship_by=at(5)), item(B, quantity=3)),
                paid("50.00"),
                passed("ship", 5),
                passed("ship", 20, 41),
            ],
            [],
            {"late_to_ship": (f"{ANN} {time(5).isoformat()} 5", 40)},
        ),
        (
            [order(), scan("in_transit", items=units(A, 1)), passed("deliver", 9)],
            [],
            {"late_to_deliver": (f"{ANN} {time(9).isoformat()} 1", 40)},
        ),
        ([order(), back("requested"), passed("return")], [], {"return_overdue": (uid("r"), 40)}),
        ([order(), back("requested"), passed("return"), back("rejected", 50)], [], {}),
        # A parcel brought two back; a processed return names one of them.
        ([order(), scan("returned")], [], {"came_back": (f"{A} 2", 2)}),
        ([order(), paid(), scan("returned"), back(quantity=1)], [], {"came_back": (f"{A} 1", 2)}),
        ([order(), paid(), scan("returned"), back(quantity=2)], [], {}),
        # No more than there are, whatever parcels hold; another parcel brings nothing back.
        (
            [order(), *(scan("returned", 4 + n, str(n), items=units(A, 2)) for n in range(3))],
            [],
            {"came_back": (f"{A} 2", 4), "moved_though_gone": (A, 5)},
        ),
    ],
)
def test_what_holds_and_since_when(
    facts: list[Fact], decisions: Sequence[Decision], expected: dict[str, tuple[str, int]]
) -> None:
    rng = Random(1)
    for _ in range(4):
        reading = fold(*facts, decisions=decisions)
        held = {kind: (named_in(each.detail), each.since) for kind, each in attention_of(reading).items()}
        assert held == {kind: (names, time(minute)) for kind, (names, minute) in expected.items()}
        assert all(each.exact for each in attention_of(reading).values())
        rng.shuffle(facts)


def test_a_kind_is_known_by_the_name_that_orders_show_has() -> None:
    assert len(KINDS) == len(set(KINDS)) == 17
    assert set(what_holds_somewhere()) == set(KINDS)


def what_holds_somewhere() -> Iterator[str]:
    """Kinds of the examples above."""
    (mark,) = test_what_holds_and_since_when.pytestmark
    for _, _, expected in mark.args[1]:
        yield from expected


@pytest.mark.parametrize(
    ("facts", "since"),
    [
        # Late from 03:40 to 03:41, when a later promise was made, and again from 03:51 on.
        ([passed("ship", 5), promise(41, ship_by=50), passed("ship", 50, 51)], 51),
        # The promise turns out to be of before the deadline passed.
        ([passed("ship", 5), promise(30, ship_by=50), passed("ship", 50, 51)], 51),
        ([passed("ship", 5), passed("ship", 50, 51)], 40),
        # One unit after the other is shipped; the last is late all the time.
        ([passed("ship", 5), scan("in_transit", 45, items=units(A, 1))], 40),
        # Everything moved at 03:45: that an earlier parcel held a unit less doesn't matter.
        ([passed("ship", 5), scan("in_transit", 45)], None),
    ],
)
def test_it_holds_since_the_moment_from_which_on_it_always_did(facts: list[Fact], since: int | None) -> None:
    held = attention_of(fold(order(item(ship_by=at(5))), paid(), *facts))
    assert [each.since for each in held.values()] == ([] if since is None else [time(since)])


def test_of_repetitions_the_earliest_time_counts() -> None:
    again = fact("order.paid", 7, payment_id=uid("p"), amount="30.00", currency="EUR")
    for facts in ([paid("30.00"), again], [again, paid("30.00")]):
        assert attention_of(fold(order(), *facts))["overpaid"].since == time(1)


def test_a_decision_counts_once_those_before_it_do() -> None:
    """The second one has the earlier time, and isn't there before the first one is."""
    decisions = [
        decision(0, 1000, "return", uid("r"), [(A, 0)], minute=9),
        decision(1, 1000, "return", uid("q"), [(A, 1)], minute=7),
    ]
    facts = [order(), paid(), scan("delivered"), back(quantity=1), back(name="q", quantity=1)]
    failed = reply("failed", 8, fold().made_id("refund:1"))
    reading = fold(*facts, failed, decisions=decisions)
    assert attention.what_holds(attention.as_of(reading, time(8))).keys() == {
        "refund_failed",
        "refund_unknown",
    }
    assert attention_of(reading).keys() == {"refund_failed"}
    assert [len(attention.as_of(reading, time(minute)).decisions) for minute in (7, 8, 9)] == [0, 0, 2]


def test_while_an_order_waits_nothing_holds() -> None:
    reading = fold(paid("30.00"), reply("failed", 3, FOREIGN))
    assert reading.attention == {}
    assert reading.rows()[TABLE] == []


def test_of_very_many_moments_only_some_are_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """Overpaid since 03:01, with a scan in each of the next ten minutes: 12 facts are read 3 times."""
    facts = [order(), paid("30.00"), *(scan("pending", 2 + n) for n in range(10))]
    assert attention_of(fold(*facts))["overpaid"][1:] == (time(1), True)
    monkeypatch.setattr(attention, "MOST_FACTS", 36)
    reading = fold(*facts)
    assert reading.attention["overpaid"][1:] == (time(8), False)
    assert no_later(reading) == {"overpaid"}
    # What was found out is exact all the same.
    late = attention_of(fold(*facts, scan("returned", 12)))
    assert (late["came_back"].since, late["came_back"].exact) == (time(12), True)


# -- details -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("detail", "names"),
    [
        ("", ""),
        ("captured above the order's total", ""),
        (f"seller {ANN}: 2 not in transit, due 2026-01-02T03:05:00Z", f"{ANN} {time(5).isoformat()} 2"),
        (
            f"due 2026-01-02T04:05:00.000000+01:00 of {ANN}, of {ANN}: 10, 9",
            f"{ANN} {time(5).isoformat()} 9 10",
        ),
        ("due 2026-99-02T03:05:00Z", "2026-99-02T03:05:00Z"),
        (f"item {max(A, B)}; item {min(A, B)}", f"{min(A, B)} {max(A, B)}"),
    ],
)
def test_what_a_detail_names(detail: str, names: str) -> None:
    assert named_in(detail) == names


# -- rows ----------------------------------------------------------------------------------------------------

# Paid 30.00 of 20.00 at 03:01; two units come back at 03:04; a return of one is processed at 03:05 and paid
# at 03:06, which fails at 03:08: 5 facts and a decision.
FACTS = [
    order(region="SP"),
    paid("30.00"),
    scan("returned", 4),
    back(quantity=1),
    reply("failed", 8),
]


def utc(minute: int) -> str:
    return time(minute).isoformat()


def row(kind: str, detail: str, since: int, **changes: Any) -> dict[str, Any]:
    stamps = {"created_at": utc(0), "updated_at": utc(8), "version": 6}
    whose = {"kind": kind, "order_id": ORDER, "user_id": USER, "region": "SP"}
    return {**whose, "detail": detail, "since": utc(since), "cleared_at": None, **stamps, **changes}


OVERPAID = row("overpaid", "captured above the order's total", 1)
CAME_BACK = row("came_back", f"item {A}: 1 came back, and no processed return names them", 4)
FAILED = row("refund_failed", f"refund {REFUND}", 8)


def test_rows_of_what_holds() -> None:
    rows = fold(*FACTS, decisions=[RETURNED]).rows()[TABLE]
    assert [dict(zip(columns(TABLE), each, strict=True)) for each in rows] == [CAME_BACK, OVERPAID, FAILED]


def test_a_decision_is_among_the_times_of_a_row() -> None:
    later = decision(0, 1000, "return", uid("r"), [(A, 0)], minute=20)
    rows = fold(*FACTS, decisions=[later]).rows()[TABLE]
    assert {each[-3:] for each in rows} == {(utc(0), utc(20), 6)}


# -- what is judged ------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index(tmp_path)
    yield opened
    opened.close()


def record(topic: str, offset: int, minute: int, data: dict[str, Any]) -> Item:
    """Appended at 1000 ms and its offset more."""
    type_ = "deadline.passed" if "deadline" in data else "refund.decided" if topic == DECISIONS else topic
    own = headers(type_, time=at(minute))
    raw = json.dumps({"order_id": ORDER, **data}).encode()
    return (ORDER.encode(), FACT, LANE.index(topic), 0, offset, 1000 + offset, raw, own)


DECIDED = {"units": [[A, 0]], "shipping": [], "cause": "return", "cause_id": uid("r"), "amount": 1000}
PAID = {"payment_id": uid("p"), "amount": "30.00", "currency": "EUR"}
SCANNED = {"shipment_id": uid("s"), "seller_id": ANN, "status": "returned"}
SENT_BACK = {"return_id": uid("r"), "item_id": A, "quantity": 1, "reason": "broken", "status": "processed"}
RECORDS = [
    record(CREATED, 0, 0, created(region="SP")),
    record("order.paid", 1, 1, PAID),
    record("shipment.updated", 2, 4, SCANNED),
    record("order.returned", 3, 5, SENT_BACK),
    record(DECISIONS, 4, 6, {"n": 0, **DECIDED}),
    record("refund.failed", 5, 8, {"refund_id": REFUND}),
]
"""FACTS and RETURNED as the log has them."""


def row_item(given: dict[str, Any]) -> Item:
    line = line_of(TABLE, [given[name] for name in columns(TABLE)])
    return (ORDER.encode(), ROW, TABLES.index(TABLE), line)


def judge(
    index: Index,
    items: Sequence[Item],
    *,
    complete: Sequence[str] = DERIVED,
    told_from: int | None = 0,
    known: Known | None = None,
) -> tuple[Report, Known | None]:
    findings = Findings(Report("g"), index, 100)
    lane = Lane(0, None, set(complete), [], False, True, told_from)
    left = Judge(lane, index, findings, lambda key: 0).order(ORDER.encode(), items, known)
    findings.judge()
    return findings.report, left


def of_attention(findings: Sequence[Finding]) -> list[tuple[str, str, str]]:
    return [
        (each.where, each.expected, each.actual)
        for each in findings
        if TABLE in each.where or TOPIC in each.where
    ]


@pytest.mark.parametrize(
    ("rows", "differences"),
    [
        ([OVERPAID, CAME_BACK, FAILED], []),
        # Other words that name the same.
        ([OVERPAID | {"detail": "too much"}, CAME_BACK | {"detail": f"1 of {A}"}, FAILED], []),
        # What was seen and holds no longer isn't asked for, whatever else it says.
        (
            [OVERPAID, CAME_BACK, FAILED, row("late_to_ship", "x", 3, cleared_at=utc(5), version=2)],
            [],
        ),
        (
            [OVERPAID, CAME_BACK, FAILED, row("late_to_ship", "x", 3, cleared_at=utc(5), version=7)],
            [("late_to_ship version", "at most 6", "7")],
        ),
        # Open, though it doesn't hold.
        (
            [OVERPAID, CAME_BACK, FAILED, row("late_to_ship", "x", 3)],
            [("late_to_ship", "no row", "a row of version 6")],
        ),
        # Missing, or cleared though it holds.
        ([OVERPAID, FAILED], [("came_back", "a row of version 6", "none")]),
        (
            [OVERPAID | {"cleared_at": utc(7)}, CAME_BACK, FAILED],
            [("overpaid cleared_at", "None", str(time(7)))],
        ),
        # Twice: under two users.
        (
            [OVERPAID, OVERPAID | {"user_id": uid("other")}, CAME_BACK, FAILED],
            [
                (
                    "overpaid",
                    "one row",
                    f"2 rows: {(ORDER, USER, 'SP')}, {(ORDER, uid('other'), 'SP')}",
                )
            ],
        ),
        # Wrong.
        ([OVERPAID, CAME_BACK | {"detail": f"2 of {A}"}, FAILED], [("came_back detail", f"{A} 1", f"{A} 2")]),
        ([OVERPAID, CAME_BACK | {"detail": "1"}, FAILED], [("came_back detail", f"{A} 1", "1")]),
        ([OVERPAID | {"since": utc(2)}, CAME_BACK, FAILED], [("overpaid since", str(time(1)), str(time(2)))]),
        ([OVERPAID | {"since": utc(0)}, CAME_BACK, FAILED], [("overpaid since", str(time(1)), str(time(0)))]),
        ([OVERPAID | {"version": 5}, CAME_BACK, FAILED], [("overpaid version", "6", "5")]),
        ([OVERPAID | {"version": 7}, CAME_BACK, FAILED], [("overpaid version", "6", "7")]),
        ([OVERPAID | {"region": ""}, CAME_BACK, FAILED], [("overpaid region", "SP", "")]),
        ([OVERPAID | {"user_id": uid("x")}, CAME_BACK, FAILED], [("overpaid user_id", USER, uid("x"))]),
        (
            [OVERPAID | {"created_at": utc(1)}, CAME_BACK, FAILED],
            [("overpaid created_at", str(time(0)), str(time(1)))],
        ),
        (
            [OVERPAID | {"updated_at": utc(9)}, CAME_BACK, FAILED],
            [("overpaid updated_at", str(time(8)), str(time(9)))],
        ),
    ],
)
def test_rows_are_compared(
    index: Index, rows: list[dict[str, Any]], differences: list[tuple[str, str, str]]
) -> None:
    report, _ = judge(index, [*RECORDS, *map(row_item, rows)])
    rows_found = [each for each in report.findings if each.check == "rows" and TABLE in each.where]
    assert of_attention(rows_found) == [(f"{TABLE} {where}", *rest) for where, *rest in differences]
    assert {each.severity for each in rows_found} <= {"broken"}
    assert {each.fact for each in rows_found} <= {"order.created/0@0", ""}
    assert report.checked[TABLE] == 3


def test_rows_of_an_order_that_waits_or_that_nobody_knows(index: Index) -> None:
    cleared = row("overpaid", "x", 3, cleared_at=utc(5), version=1)
    report, _ = judge(index, [RECORDS[1], row_item(cleared)])
    assert of_attention(report.findings) == [(f"{TABLE} overpaid", "no row", "a row of version 1")]


def test_rows_of_an_order_that_the_log_does_not_have(index: Index) -> None:
    report, _ = judge(index, [row_item(row("overpaid", "x", 3, cleared_at=utc(5))), row_item(CAME_BACK)])
    assert of_attention(report.findings) == [
        (f"{TABLE} {kind}", "no row: the log has no such order", "a row")
        for kind in ("came_back", "overpaid")
    ]


def test_where_not_all_moments_were_looked_at_a_row_may_say_an_earlier_one(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention, "MOST_FACTS", 10)  # two looks of five facts each: 03:06 and 03:05
    for since, differences in ((1, []), (0, []), (5, []), (6, [("overpaid since", utc(5), utc(6))])):
        rows = [OVERPAID | {"since": utc(since)}, CAME_BACK, FAILED]
        report, _ = judge(index, [*RECORDS, *map(row_item, rows)])
        expected = [
            (f"{TABLE} {where}", want.replace("T", " "), got.replace("T", " "))
            for where, want, got in differences
        ]
        rows_found = [each for each in report.findings if TABLE in each.where]
        assert of_attention(rows_found) == expected


# -- events --------------------------------------------------------------------------------------------------


def event(
    kind: str = "overpaid",
    state: str = "raised",
    *,
    event_id: str | None = None,
    at_: int = 0,
    **changes: Any,
) -> Item:
    """An order.attention at an offset of its topic, with what `changes` says (...: without that)."""
    held = {"overpaid": OVERPAID, "came_back": CAME_BACK, "refund_failed": FAILED}.get(kind, OVERPAID)
    data = {"order_id": ORDER, "user_id": USER, "kind": kind, "state": state, "version": 6}
    data |= {"detail": held["detail"], "since": held["since"], **changes}
    data = {name: each for name, each in data.items() if each is not ...}
    name = f"{data.get('kind')}:{data.get('state')}:{data.get('version')}"
    made_id = fold().made_id(f"{TOPIC}:{name}") if event_id is None else event_id
    value = json.dumps(data).encode()
    return (ORDER.encode(), DERIVED_EVENT, DERIVED.index(TOPIC), 0, at_, made_id, "event-1", None, value)


RAISED = [event(kind, at_=n) for n, kind in enumerate(("overpaid", "came_back", "refund_failed"))]
ROWS = [row_item(each) for each in (OVERPAID, CAME_BACK, FAILED)]


def told(report: Report) -> list[tuple[str, str, str, str]]:
    return [
        (each.severity, each.where.removeprefix(TOPIC).strip(), each.expected, each.actual)
        for each in report.findings
        if each.where.startswith(TOPIC)
    ]


@pytest.mark.parametrize(
    ("items", "differences"),
    [
        ([], []),
        # The last one counts: not what was told in between, nor what is told again after a kill.
        (
            [
                event(state="cleared", version=3),
                event(version=2),
                event(version=4),
                event("late_to_ship", version=2),
                event("late_to_ship", "cleared", version=5, detail="", since=...),
            ],
            [],
        ),
        ([*RAISED, *RAISED], []),
        # The same in other words, and since a time that was known then.
        ([event("came_back", detail=f"1 of {A}", since=at(5), version=5)], []),
        ([event(more="later")], []),
        (
            [event(state="cleared", at_=7)],
            [("/0@7", "raised: captured above the order's total", "cleared")],
        ),
        ([event("late_to_ship", detail="x", at_=7)], [("/0@7", "cleared", "raised: x")]),
        (
            [event("came_back", detail=f"2 of {A}", at_=7)],
            [("/0@7", f"raised: {CAME_BACK['detail']}", f"raised: 2 of {A}")],
        ),
        # What an event says by itself.
        ([event(user_id=uid("x"))], [("/0@0", f"user_id {USER}", uid("x"))]),
        ([event(user_id=...)], [("/0@0", f"user_id {USER}", "None")]),
        ([event(state="seen")], [("/0@0", "state raised or cleared", "seen")]),
        ([event("eaten")], [("/0@0", f"kind {' or '.join(KINDS)}"[:200] + "...", "eaten")]),
        ([event(since="soon")], [("/0@0", "since, a time", "soon")]),
        ([event(since=...)], [("/0@0", "since, a time", "None")]),
        ([event(detail=...)], [("/0@0", "detail, a text", "None")]),
        ([event(detail=5)], [("/0@0", "detail, a text", "5")]),
        ([event(order_id=uid("x"))], [("/0@0", f"order_id {ORDER}", uid("x"))]),
        ([event(version=7)], [("/0@0", "at most version 6", "7")]),
        ([event(version=0)], [("/0@0", "a version", "0")]),
        (
            [event(event_id=uid("x"))],
            [("/0@0", f"id {fold().made_id(TOPIC + ':overpaid:raised:6')}", uid("x"))],
        ),
        (
            [event(event_id=fold().made_id(TOPIC + ":overpaid:raised:5"))],
            [
                (
                    "/0@0",
                    f"id {fold().made_id(TOPIC + ':overpaid:raised:6')}",
                    fold().made_id(TOPIC + ":overpaid:raised:5"),
                )
            ],
        ),
    ],
)
def test_what_is_told_of_attention(
    index: Index, items: list[Item], differences: list[tuple[str, str, str]]
) -> None:
    report, _ = judge(index, [*RECORDS, *ROWS, *RAISED, *items])
    assert told(report) == [("broken", *each) for each in differences]


def test_what_is_told_of_an_order_that_waits(index: Index) -> None:
    report, _ = judge(index, [RECORDS[1], event()])
    assert told(report) == [("broken", "/0@0", "no such event", "overpaid:raised:6")]


MISSING = ("came_back", f"raised: {CAME_BACK['detail']}", "none")


@pytest.mark.parametrize(
    ("told_from", "complete", "differences"),
    [
        # The last record was appended at 1005 ms.
        (0, DERIVED, [("broken", *MISSING)]),
        (1005, DERIVED, [("broken", *MISSING)]),
        # Nothing came about the order since the event is written, or it isn't known since when that is.
        (1006, DERIVED, [("report", *MISSING)]),
        (None, DERIVED, [("report", *MISSING)]),
        # Some events were deleted.
        (0, (), []),
    ],
)
def test_attention_that_was_not_told(
    index: Index,
    told_from: int | None,
    complete: Sequence[str],
    differences: list[tuple[str, str, str, str]],
) -> None:
    items = [*RECORDS, *ROWS, RAISED[0], RAISED[2]]
    report, _ = judge(index, items, told_from=told_from, complete=complete)
    assert told(report) == differences


def test_the_last_event_of_each_kind_is_known_to_the_next_audit(index: Index) -> None:
    lates = [event("late_to_ship", version=2, detail="x"), event("late_to_ship", "cleared", version=3)]
    report, known = judge(index, [*RECORDS, *ROWS, *RAISED, *lates])
    assert told(report) == []
    assert known is not None
    assert len([each for each in known.last if DERIVED[each[2]] == TOPIC]) == 4
    # 10.00 more are captured: still overpaid, nothing to tell but in the rows.
    more = record("order.paid", 9, 9, {**PAID, "payment_id": uid("q"), "amount": "10.00"})
    report, known = judge(index, [more], known=known)
    assert told(report) == []
    assert known is not None
    # The refund is completed: that has to be told.
    done = record("refund.completed", 10, 10, {"refund_id": REFUND, "attempt": 2})
    report, _ = judge(index, [done, event("refund_failed", "cleared", version=8)], known=known)
    assert told(report) == []
    report, _ = judge(index, [done], known=known)
    assert told(report) == [("broken", "/0@2", "cleared", f"raised: refund {REFUND}")]
