"""Promises, lateness and new attempts of refunds as the auditor reads the contract: worked examples, by
hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from audit import states
from audit.derived import DERIVED
from audit.findings import Finding, Findings, Report
from audit.index import Index
from audit.judge import DERIVED_EVENT, FACT, Item, Judge, Known, Lane
from audit.promises import DELIVER, SHIP, Late
from audit.reference import Fact, Order, Refusal, parse_decision
from audit.states import read_state, state_of
from audit.topics import CREATED, DECISIONS, LANE
from tests.unit.test_audit_reference import (
    ANN,
    BOB,
    ORDER,
    A,
    B,
    C,
    at,
    back,
    binary,
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


def time(minute: int) -> datetime:
    """The same as `at`, as a time."""
    return datetime(2026, 1, 2, 3, tzinfo=UTC) + timedelta(minutes=minute)


def promise(minute: int, seller: str = ANN, **by: int) -> Fact:
    """promise.updated of this minute; until when: minutes."""
    return fact("promise.updated", minute, seller_id=seller, **{name: at(each) for name, each in by.items()})


def passed_data(what: str, due: int | None = None, **more: Any) -> dict[str, Any]:
    whose = {"return": {"return_id": uid("r")}, "refund_retry": {"refund_id": REFUND}, "payment": {}}
    until = {} if due is None else {"due": at(due)}
    data = {"order_id": ORDER, "deadline": what, "attempt": 1, "final": True}
    return {**data, **whose.get(what, {"seller_id": ANN}), **until, **more}


def passed(what: str, due: int | None = None, minute: int = 40, **more: Any) -> Fact:
    value = json.dumps(passed_data(what, due, **more)).encode()
    parsed = parse_decision(value, headers("deadline.passed", time=at(minute)))
    assert isinstance(parsed, Fact), parsed
    return parsed


REFUND = fold().made_id("refund:0")


# -- fields --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("promised", "expected"),
    [
        ({}, {}),
        ({"ship_by": at(5)}, {"ship_by": time(5)}),
        (
            {"ship_by": "2026-01-02T04:05:00.1234567+01:00", "deliver_by": at(9)},
            {"ship_by": time(5) + timedelta(microseconds=123_456), "deliver_by": time(9)},
        ),
    ],
)
def test_promises_of_an_order(promised: dict[str, str], expected: dict[str, datetime]) -> None:
    data = created([{**item(), **promised}])
    for parsed in (
        binary("order.created", data),
        binary("checkout.completed", {**data, "checkout_id": uid("c")}),
    ):
        assert isinstance(parsed, Fact)
        (line,) = parsed.content["items"]
        assert {name: line[name] for name in ("ship_by", "deliver_by") if name in line} == expected


BAD_TIMES = [None, 5, "", "soon", "2026-01-02", "2026-01-02T03:00:00", "2026-01-02T25:00:00Z"]


@pytest.mark.parametrize("name", ["ship_by", "deliver_by"])
@pytest.mark.parametrize("bad", BAD_TIMES)
def test_bad_promises(name: str, bad: Any) -> None:
    line = {**item(), name: bad}
    assert binary("order.created", created([line])) == Refusal("field_malformed", f"items[0].{name}")
    data = {"order_id": ORDER, "seller_id": ANN, name: bad}
    assert binary("promise.updated", data) == Refusal("field_malformed", name)


@pytest.mark.parametrize("missing", ["order_id", "seller_id"])
def test_a_promise_names_its_order_and_seller(missing: str) -> None:
    data = {"order_id": ORDER, "seller_id": ANN, "ship_by": at(5)}
    del data[missing]
    assert binary("promise.updated", data) == Refusal("field_missing", missing)


def test_a_promise_is_one_of_a_seller_and_a_time() -> None:
    held = Order(ORDER)
    for each in (
        order(item(A), item(B, BOB)),
        promise(1, ship_by=5),
        promise(1, ship_by=5),
        promise(1, BOB, ship_by=5),
        promise(2, ship_by=5),
        promise(3),  # says nothing, and is one all the same
    ):
        held.add(each)
    assert held.version == 5
    held.add(promise(1, ship_by=6))
    held.add(promise(1, ship_by=5, deliver_by=5))
    assert held.version == 5
    assert [len(rivals) for rivals in held.candidates.values()] == [1, 3, 1, 1, 1]
    assert held.reading().promised(SHIP, ANN) == time(5)


def test_a_promise_of_a_strange_seller_is_refused() -> None:
    reading = fold(order(), promise(1, BOB, ship_by=5))
    assert [each.code for each in reading.refused.values()] == ["order_seller"]
    assert reading.version == 2
    assert reading.rows()["orders_order"][0][11] == at(0).replace("Z", "+00:00")
    assert len(fold(promise(1, BOB, ship_by=5)).waiting()) == 1


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"deadline": "ship"}, ("ship", ANN, time(5))),
        ({"deadline": "unshipped"}, ("unshipped", ANN, time(5))),
        ({"deadline": "deliver", "due": "2026-01-02T04:05:00+01:00"}, ("deliver", ANN, time(5))),
        ({"deadline": "ship", "attempt": 2, "final": False}, ("ship", ANN, time(5))),
        ({"deadline": "return"}, ("return", uid("r"), 1)),
        ({"deadline": "refund_retry", "attempt": 2}, ("refund_retry", REFUND, 2)),
        ({"deadline": "payment"}, ("payment", None, 1)),
        ({"deadline": "label"}, ("label", ANN, 1)),
        ({"deadline": "ship", "due": None}, Refusal("field_malformed", "due")),
        ({"deadline": "ship", "due": 5}, Refusal("field_malformed", "due")),
        ({"deadline": "ship", "due": ...}, Refusal("field_missing", "due")),
        ({"deadline": "unshipped", "seller_id": ...}, Refusal("field_missing", "seller_id")),
        ({"deadline": "return", "return_id": ...}, Refusal("field_missing", "return_id")),
        ({"deadline": "refund_retry", "refund_id": ...}, Refusal("field_missing", "refund_id")),
        ({"deadline": "arrive"}, Refusal("field_malformed", "deadline")),
    ],
)
def test_deadlines(changes: dict[str, Any], expected: Any) -> None:
    whose = {"seller_id": ANN, "return_id": uid("r"), "refund_id": REFUND}
    data = {"order_id": ORDER, "attempt": 1, "final": True, **whose, "due": at(5), **changes}
    value = json.dumps({name: each for name, each in data.items() if each is not ...}).encode()
    parsed = parse_decision(value, headers("deadline.passed"))
    if isinstance(expected, Refusal):
        assert parsed == expected
    else:
        assert isinstance(parsed, Fact)
        assert parsed.key == ("deadline.passed", *expected)
        # What isn't the deadline's own is none of its content.
        assert len(parsed.content) == 4 + (expected[1] is not None) + (type(expected[2]) is datetime)


@pytest.mark.parametrize("type_", ["refund.completed", "refund.failed"])
@pytest.mark.parametrize(
    ("attempt", "expected"),
    [(..., 1), (1, 1), (2, 2), (100, 100), (0, None), (101, None), ("1", None), (None, None), (True, None)],
)
def test_the_attempt_of_a_reply(type_: str, attempt: Any, expected: int | None) -> None:
    data = {"order_id": ORDER, "refund_id": REFUND, "attempt": attempt}
    parsed = binary(type_, {name: each for name, each in data.items() if each is not ...})
    if expected is None:
        assert parsed == Refusal("field_malformed", "attempt")
    else:
        assert isinstance(parsed, Fact)
        assert parsed.key == (type_, REFUND, expected)


def reply(kind: str, minute: int = 10, **more: Any) -> Fact:
    return fact(f"refund.{kind}", minute, refund_id=REFUND, **more)


def test_replies_of_several_attempts_are_several_facts() -> None:
    held = Order(ORDER)
    for each in (reply("failed"), reply("failed", attempt=1), reply("failed", attempt=2), reply("completed")):
        held.add(each)
    assert held.version == 3
    assert [len(rivals) for rivals in held.candidates.values()] == [1, 1, 1]


# -- what is in force ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("promises", "ship_by", "deliver_by"),
    [
        ([], [5, None], [None, 30]),
        ([promise(2, ship_by=9)], [9, 9], [None, 30]),
        ([promise(2, deliver_by=20)], [5, None], [20, 20]),
        ([promise(2)], [5, None], [None, 30]),
        # Of each field the latest by its own time, whatever it says and whenever it came.
        ([promise(3, ship_by=4), promise(2, ship_by=9, deliver_by=20)], [4, 4], [20, 20]),
        ([promise(2, ship_by=9), promise(3, deliver_by=20)], [9, 9], [20, 20]),
        ([promise(3, BOB, ship_by=4)], [5, None], [None, 30]),
    ],
)
def test_the_promise_in_force(
    promises: Sequence[Fact], ship_by: list[int | None], deliver_by: list[int | None]
) -> None:
    reading = fold(
        *promises, order(item(A, ship_by=at(5)), item(B, deliver_by=at(30)), item(C, BOB, deliver_by=at(1)))
    )
    for what, expected in ((SHIP, ship_by), (DELIVER, deliver_by)):
        assert [reading.promises.in_force(what, reading.items[each]) for each in (A, B)] == [
            None if minute is None else time(minute) for minute in expected
        ]
        known = [minute for minute in expected if minute is not None]
        assert reading.promised(what, ANN) == (time(min(known)) if known else None)
    assert reading.promised(DELIVER, BOB) == time(1)


# -- lateness ------------------------------------------------------------------------------------------------
#
# Two lines of Ann's: A (2 units, to be shipped until minute 5, delivered until 15), B (3 units, until 8 and
# 20), one of Bob's without a promise. 2 * 10 + 3 * 10 + 2 * 10 = 70.00 in all.

THREE = (
    item(A, ship_by=at(5), deliver_by=at(15)),
    item(B, quantity=3, ship_by=at(8), deliver_by=at(20)),
    item(C, BOB),
)
WHOLE = paid("70.00")


def late(what: str, due: int, count: int, seller: str = ANN) -> Late:
    return Late(what, seller, time(due), count)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        # Nothing is late before its deadline has passed.
        ([WHOLE], []),
        ([WHOLE, passed("ship", 5)], [late(SHIP, 5, 2)]),
        # The later deadline is about both lines.
        ([WHOLE, passed("ship", 8)], [late(SHIP, 8, 5)]),
        ([WHOLE, passed("ship", 5), passed("ship", 8)], [late(SHIP, 5, 5)]),
        # Only of an order that is confirmed or further.
        ([passed("ship", 5)], [late(SHIP, 5, 2)]),
        ([paid("69.99"), passed("ship", 5)], [late(SHIP, 5, 2)]),
        ([scan("in_transit", seller=BOB), passed("ship", 5)], [late(SHIP, 5, 2)]),
        # Units in transit or given back aren't waited for, nor what is announced only not.
        ([WHOLE, passed("ship", 5), scan("in_transit", items=units(A, 1))], [late(SHIP, 5, 1)]),
        ([WHOLE, passed("ship", 5), scan("in_transit", items=units(A, 2))], []),
        ([WHOLE, passed("ship", 5), scan("pending")], [late(SHIP, 5, 2)]),
        ([WHOLE, passed("ship", 5), back(quantity=1)], [late(SHIP, 5, 1)]),
        ([WHOLE, passed("ship", 5), stock("released", items=units(A, 1))], [late(SHIP, 5, 1)]),
        ([WHOLE, passed("ship", 5), stock("rejected", items=units(A, 2))], []),
        # A later promise is in force: in whatever order they came.
        ([WHOLE, passed("ship", 5), promise(2, ship_by=6)], []),
        ([promise(2, ship_by=6), WHOLE, passed("ship", 5)], []),
        ([WHOLE, passed("ship", 5), promise(2, ship_by=6), passed("ship", 6)], [late(SHIP, 6, 5)]),
        ([WHOLE, passed("ship", 5), promise(2, ship_by=4)], [late(SHIP, 5, 5)]),
        ([WHOLE, passed("ship", 5), promise(2, deliver_by=59)], [late(SHIP, 5, 2)]),
        ([WHOLE, passed("ship", 5), promise(2, BOB, ship_by=59)], [late(SHIP, 5, 2)]),
        # Who was asked to release ships nothing any longer.
        # Until the units are gone, whatever was asked for.
        ([WHOLE, passed("ship", 5), fact("order.cancel_requested", 6, reason="x")], [late(SHIP, 5, 2)]),
        (
            [WHOLE, passed("ship", 5), fact("order.cancel_requested", 6, reason="x", seller_id=ANN)],
            [late(SHIP, 5, 2)],
        ),
        (
            [WHOLE, passed("ship", 5), fact("order.cancel_requested", 6, reason="x", seller_id=BOB)],
            [late(SHIP, 5, 2)],
        ),
        ([WHOLE, passed("ship", 5), passed("payment")], [late(SHIP, 5, 2)]),
        ([WHOLE, passed("ship", 5), passed("unshipped", 5)], [late(SHIP, 5, 2)]),
        ([WHOLE, passed("ship", 5), passed("unshipped", 5, seller_id=BOB)], [late(SHIP, 5, 2)]),
        # A line without a promise: by a deadline that no line of its seller explains.
        ([WHOLE, passed("ship", 5, seller_id=BOB)], [late(SHIP, 5, 2, BOB)]),
        ([WHOLE, passed("ship", 5, seller_id=BOB), promise(2, BOB, ship_by=9)], []),
        # What is in transit is waited for until it is delivered.
        ([passed("deliver", 15)], []),
        ([WHOLE, passed("deliver", 15)], []),
        ([passed("deliver", 15), scan("in_transit")], [late(DELIVER, 15, 2)]),
        ([passed("deliver", 20), scan("in_transit")], [late(DELIVER, 20, 5)]),
        ([passed("deliver", 15), scan("in_transit", items=units(A, 1))], [late(DELIVER, 15, 1)]),
        ([passed("deliver", 15), scan("in_transit", items=units(B, 1))], []),
        ([passed("deliver", 15), scan("in_transit"), scan("delivered", 3)], []),
        ([passed("deliver", 15), scan("in_transit"), scan("returned", 3)], []),
        (
            [passed("deliver", 15), scan("in_transit"), scan("delivered", 3, "s2", items=units(A, 1))],
            [late(DELIVER, 15, 1)],
        ),
        ([passed("deliver", 15), scan("in_transit"), back(quantity=1)], [late(DELIVER, 15, 1)]),
        ([passed("deliver", 15), scan("in_transit"), promise(2, deliver_by=16)], []),
        # Asked to release or not: what has left has left, be it gone by its inventory too.
        (
            [passed("deliver", 15), scan("in_transit"), passed("unshipped", 5), stock("released")],
            [late(DELIVER, 15, 2)],
        ),
        (
            [WHOLE, scan("in_transit", items=units(A, 1)), passed("ship", 5), passed("deliver", 15)],
            [late(DELIVER, 15, 1), late(SHIP, 5, 1)],
        ),
        # Deadlines of sellers that the order hasn't.
        ([WHOLE, passed("ship", 5, seller_id=uid("stranger"))], []),
    ],
)
def test_what_is_late(facts: Sequence[Fact], expected: list[Late]) -> None:
    for given in ([order(*THREE), *facts], [*facts[::-1], order(*THREE)]):
        reading = fold(*given)
        assert reading.late == expected
        assert [
            (each.code, each.detail) for each in reading.anomalies() if each.code.startswith("late_")
        ] == [(f"late_to_{each.what}", f"{each.seller_id} since {each.due.isoformat()}") for each in expected]
        for seller in (ANN, BOB):
            since = [each.due for each in expected if each.seller_id == seller]
            assert reading.late_since(seller) == min(since, default=None)
    assert fold(*facts).late == []


def test_of_lines_with_and_without_a_promise_each_is_late_by_its_own_deadline() -> None:
    facts = [order(item(A, ship_by=at(5)), item(B, quantity=3)), paid("50.00")]
    assert fold(*facts, passed("ship", 5)).late == [late(SHIP, 5, 2)]
    assert fold(*facts, passed("ship", 7)).late == [late(SHIP, 7, 5)]
    assert fold(*facts, passed("ship", 4)).late == [late(SHIP, 4, 3)]
    assert fold(*facts, passed("ship", 5), passed("ship", 7)).late == [late(SHIP, 5, 5)]


# -- other anomalies -----------------------------------------------------------------------------------------


def codes(*facts: Fact, code: str) -> list[str]:
    return [each.detail for each in fold(order(), *facts).anomalies() if each.code == code]


@pytest.mark.parametrize(
    ("stages", "overdue"),
    [
        ([back("requested")], True),
        ([back("requested"), back("processed", 9)], False),
        ([back("requested"), back("rejected", 9)], False),
        ([back("processed", 9)], False),
        ([], False),
        ([back("requested", name="other")], False),
        ([back("requested", item_id=B)], False),  # which the order doesn't have
    ],
)
def test_a_return_that_nobody_judges_is_overdue(stages: Sequence[Fact], overdue: bool) -> None:
    assert codes(*stages, code="return_overdue") == []
    assert codes(*stages, passed("return"), code="return_overdue") == ([uid("r")] if overdue else [])


@pytest.mark.parametrize(
    ("replies", "failed"),
    [
        ([reply("failed")], True),
        ([reply("failed"), reply("failed", 11, attempt=2)], True),
        ([reply("failed", attempt=2)], True),
        ([reply("failed"), passed("refund_retry")], True),
        ([reply("failed"), reply("completed", 11, attempt=2)], False),
        ([reply("completed"), reply("failed", 11)], False),
        ([reply("completed")], False),
    ],
)
def test_a_refund_has_failed_until_it_is_completed(replies: Sequence[Fact], failed: bool) -> None:
    assert codes(*replies, code="refund_failed") == ([REFUND] if failed else [])


@pytest.mark.parametrize(
    ("scans", "unscanned"),
    [
        ([], True),
        ([scan("pending")], True),
        ([scan("in_transit")], False),
        ([scan("pending"), scan("returned", 4)], False),
    ],
)
def test_a_parcel_that_is_only_announced_is_waited_for(scans: Sequence[Fact], unscanned: bool) -> None:
    assert codes(*scans, passed("label"), code="label_unscanned") == ([ANN] if unscanned else [])


# -- why a suborder is closed --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ([stock("released")], "stock_released"),
        ([stock("released"), passed("unshipped", 5)], "not_shipped"),
        ([stock("released"), passed("unshipped", 5, seller_id=BOB)], "stock_released"),
        ([stock("released"), passed("ship", 5)], "stock_released"),
        ([stock("released"), passed("unshipped", 5), passed("payment")], "payment_overdue"),
        (
            [stock("released"), passed("unshipped", 5), fact("order.cancel_requested", 6, reason="x")],
            "cancelled",
        ),
        ([stock("rejected"), passed("unshipped", 5)], "stock_rejected"),
        ([stock("released", items=units(A, 1)), passed("unshipped", 5)], ""),
        ([passed("unshipped", 5)], ""),
    ],
)
def test_why_a_suborder_is_closed(facts: Sequence[Fact], expected: str) -> None:
    (suborder,) = fold(order(), *facts).suborders
    assert fold(order(), *facts).why_closed(suborder) == expected


def test_what_was_not_shipped_is_paid_back() -> None:
    reading = fold(order(), paid(), passed("ship", 5), passed("unshipped", 6), stock("released"))
    (owed,) = reading.owed()
    assert (owed.cause, owed.amount) == ("closed", 2000)


# -- what is judged ------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index(tmp_path)
    yield opened
    opened.close()


def record(topic: str, offset: int, value: Any, appended: int, minute: int = 0) -> Item:
    type_ = "deadline.passed" if "deadline" in value else "refund.decided" if topic == DECISIONS else topic
    own = [(name, text) for name, text in headers(type_, id="e", time=at(minute))]
    raw = json.dumps(value).encode()
    return (ORDER.encode(), FACT, LANE.index(topic), 0, offset, appended, raw, own)


def event(type_: str, name: str, data: Any) -> Item:
    """A derived event with the id that follows from `name`."""
    event_id = fold().made_id(f"{type_}:{name}")
    number, value = DERIVED.index(type_), json.dumps(data).encode()
    return (ORDER.encode(), DERIVED_EVENT, number, 0, 0, event_id, "e", None, value)


def judge_order(index: Index, items: Sequence[Item], known: Known | None = None) -> tuple[list[Finding], Any]:
    """What is broken about the derived events of an order, but for those of suborders, stock.reserve and
    payment.initiate that are missing, and what is known of it then.
    """
    findings = Findings(Report("g"), index, 100)
    judge = Judge(Lane(0, None, set(DERIVED), [], False, True), index, findings, lambda key: 0)
    known = judge.order(ORDER.encode(), items, known)
    findings.judge()
    of_others = ("suborder.created", "stock.reserve", "payment.initiate", "shipping.label.create")
    broken = [each for each in findings.report.findings if each.check == "derived"]
    return [each for each in broken if each.where not in of_others], known


PAID = {"order_id": ORDER, "payment_id": uid("p"), "amount": "70.00", "currency": "EUR"}
LINES = created(THREE)
SHIPPED = {"order_id": ORDER, "shipment_id": uid("s"), "seller_id": ANN, "status": "in_transit"}
CANCELLED = {"order_id": ORDER, "reason": "x"}
TOLD = {
    "suborder_id": fold().made_id(f"suborder:{ANN}"),
    "order_id": ORDER,
    "seller_id": ANN,
    "what": "ship",
    "due": at(5),
    "units": 2,
    "version": 3,
}


SHIPPED_A = {**SHIPPED, "items": units(A, 2)}
GONE = {"order_id": ORDER, "seller_id": ANN, "reservation_id": uid("x"), "items": units(A, 2)}
RETURN = {
    "order_id": ORDER,
    "return_id": uid("r"),
    "item_id": A,
    "quantity": 1,
    "reason": "x",
    "status": "processed",
    "restock": False,
}
MIXED = created([item(A, ship_by=at(5)), item(B, quantity=5)])
"""Two lines of 70.00, one without a promise."""


def story(
    deadline: dict[str, Any], *more: tuple[str, dict[str, Any], int], lines: Any = LINES, pays: int = 2
) -> list[Item]:
    """The order, appended at 1 ms, a payment at `pays`, `more` (topic, data, appended), a deadline at 9."""
    facts = [(CREATED, lines, 1), ("order.paid", PAID, pays), *more, (DECISIONS, deadline, 9)]
    return [record(topic, n, data, appended, minute=n) for n, (topic, data, appended) in enumerate(facts)]


def late_event(**changes: Any) -> Item:
    data = {name: each for name, each in {**TOLD, **changes}.items() if each is not ...}
    return event("suborder.late", f"{data['what']}:{data['seller_id']}:{data.get('due')}", data)


@pytest.mark.parametrize(
    ("changes", "actual"),
    [
        ({}, None),
        ({"due": "2026-01-02T04:05:00.000+01:00"}, None),
        ({"version": 1, "units": 1}, None),
        ({"more": "later"}, None),
        ({"due": at(8)}, "what ship"),
        ({"what": "deliver"}, "what deliver"),
        ({"what": "unshipped"}, "what unshipped"),
        ({"seller_id": BOB}, f"what ship, seller_id {BOB}"),
        ({"suborder_id": uid("x")}, "suborder_id"),
        ({"suborder_id": ...}, "no suborder_id"),
        ({"order_id": uid("x")}, uid("x")),
        ({"due": "soon"}, "soon"),
        ({"due": ...}, "None"),
        ({"units": 0}, "0"),
        ({"units": 3}, "3"),  # line B isn't late yet in any order of arrival
        ({"units": "2"}, "2"),
        ({"units": True}, "True"),
        ({"units": ...}, "None"),
        ({"version": 4}, "4"),
        ({"version": 0}, "0"),
        ({"version": ...}, "None"),
    ],
)
def test_what_is_told_of_a_late_suborder(index: Index, changes: dict[str, Any], actual: str | None) -> None:
    broken, _ = judge_order(index, [*story(passed_data("ship", 5)), late_event(**changes)])
    broken = [each for each in broken if each.where != "suborder.late"]
    assert [each.actual[: len(actual or "")] for each in broken] == ([] if actual is None else [actual])


def test_of_a_line_without_a_promise_all_units_may_be_late(index: Index) -> None:
    items = story(passed_data("ship", 30, seller_id=BOB))
    bob = {"seller_id": BOB, "suborder_id": fold().made_id(f"suborder:{BOB}"), "due": at(30)}
    assert judge_order(index, [*items, late_event(**bob)])[0] == []
    broken, _ = judge_order(index, [*items, late_event(**bob, units=3)])
    assert [each.actual for each in broken] == ["3"]


def test_a_lateness_has_its_own_id(index: Index) -> None:
    wrong = event("suborder.late", f"3:{ANN}", TOLD)
    broken, _ = judge_order(index, [*story(passed_data("ship", 5)), wrong])
    assert [each.expected for each in broken] == [f"id {fold().made_id(f'suborder.late:ship:{ANN}:{at(5)}')}"]


@pytest.mark.parametrize(
    ("items", "missing"),
    [
        (story(passed_data("ship", 5)), True),
        (story(passed_data("ship", 8)), True),
        # A line without a promise, and a deadline that none of its seller's explains.
        (story(passed_data("ship", 30, seller_id=BOB)), True),
        # Nothing was late then: the order wasn't confirmed yet; nobody knows when it was.
        (story(passed_data("ship", 5), pays=10), False),
        # What arrived before the deadline was folded, or did it?
        (story(passed_data("ship", 5), ("shipment.updated", SHIPPED, 9)), False),
        (story(passed_data("ship", 5), ("shipment.updated", {**SHIPPED, "items": units(A, 1)}, 50)), False),
        (story(passed_data("ship", 5), ("shipment.updated", {**SHIPPED, "items": units(B, 1)}, 50)), True),
        (story(passed_data("ship", 5), ("shipment.updated", {**SHIPPED, "status": "pending"}, 5)), True),
        (story(passed_data("ship", 5), ("order.cancel_requested", CANCELLED, 50)), False),
        (story(passed_data("ship", 5), ("order.cancel_requested", {**CANCELLED, "seller_id": BOB}, 5)), True),
        (
            story(
                passed_data("ship", 5),
                ("promise.updated", {"order_id": ORDER, "seller_id": ANN, "ship_by": at(9)}, 50),
            ),
            False,
        ),
        (
            story(
                passed_data("ship", 5),
                ("promise.updated", {"order_id": ORDER, "seller_id": ANN, "ship_by": at(4)}, 5),
            ),
            True,
        ),
        (
            story(
                passed_data("ship", 5),
                ("promise.updated", {"order_id": ORDER, "seller_id": ANN, "deliver_by": at(40)}, 5),
            ),
            True,
        ),
        # Which of two promises was in force when the deadline was folded?
        (
            story(
                passed_data("ship", 8),
                *(
                    ("promise.updated", {"order_id": ORDER, "seller_id": ANN, "ship_by": at(by)}, appended)
                    for by, appended in ((8, 5), (9, 50))
                ),
            ),
            False,
        ),
        (story(passed_data("ship", 5), ("order.returned", RETURN, 50)), False),
        (story(passed_data("ship", 5), ("stock.released", GONE, 50)), False),
        (story(passed_data("ship", 5), ("stock.released", {**GONE, "items": units(A, 1)}, 5)), True),
        # Of two lines the one without a promise is not what this deadline is about.
        (story(passed_data("ship", 5), lines=MIXED), True),
        (story(passed_data("ship", 5), ("shipment.updated", SHIPPED_A, 50), lines=MIXED), False),
        (story(passed_data("deliver", 15)), False),
        (story(passed_data("deliver", 15), ("shipment.updated", SHIPPED, 5)), True),
        # Another scan of the parcel says that nothing of the line was in it.
        (
            story(
                passed_data("deliver", 15),
                ("shipment.updated", SHIPPED_A, 5),
                ("shipment.updated", {**SHIPPED, "items": units(B, 1)}, 50),
            ),
            False,
        ),
        (story(passed_data("deliver", 15), ("shipment.updated", SHIPPED, 10)), False),
        (
            story(
                passed_data("deliver", 15),
                ("shipment.updated", SHIPPED, 5),
                ("shipment.updated", {**SHIPPED, "status": "delivered"}, 50),
            ),
            False,
        ),
    ],
)
def test_a_lateness_that_nobody_told(index: Index, items: Sequence[Item], missing: bool) -> None:
    broken, _ = judge_order(index, items)
    assert [(each.where, each.actual) for each in broken if each.where == "suborder.late"] == (
        [("suborder.late", "none")] if missing else []
    )


RELEASED = fold().made_id(f"reservation:{ANN}")


def release(*items: dict[str, Any]) -> Item:
    data = {"reservation_id": RELEASED, "order_id": ORDER, "seller_id": ANN, "items": list(items)}
    return event("stock.release", RELEASED, data)


@pytest.mark.parametrize(
    ("items", "actual"),
    [
        ([*story(passed_data("unshipped", 5)), release(*units(A, 2))], None),
        ([*story(passed_data("unshipped", 5)), release(*units(A, 1))], None),
        (story(passed_data("unshipped", 5)), "none"),
        (story(passed_data("unshipped", 5), ("shipment.updated", SHIPPED, 50)), None),
        (story(passed_data("unshipped", 5), pays=10), None),
        ([*story(passed_data("ship", 5)), late_event(), release(*units(A, 2))], f"reservation_id {RELEASED}"),
        (
            [*story(passed_data("unshipped", 5, seller_id=BOB), pays=10), release(*units(A, 2))],
            f"reservation_id {RELEASED}",
        ),
        # B was late at no time: until the minute 8 nothing of it is asked back.
        ([*story(passed_data("unshipped", 5)), release(*units(A, 2), *units(B, 3))], str(units(B, 3)[0])),
        ([*story(passed_data("unshipped", 8)), release(*units(A, 2), *units(B, 3))], None),
        # But for a cancellation, and once more after a release that wasn't answered.
        (
            [
                *story(passed_data("unshipped", 5), ("order.cancel_requested", CANCELLED, 5)),
                release(*units(A, 2), *units(B, 3)),
            ],
            "none",  # Bob's
        ),
        (
            [
                *story(passed_data("unshipped", 5)),
                record(DECISIONS, 9, passed_data("release", final=False), 20, minute=6),
                release(*units(A, 2), *units(B, 3)),
            ],
            None,
        ),
    ],
)
def test_what_is_not_shipped_is_asked_back(index: Index, items: Sequence[Item], actual: str | None) -> None:
    broken, _ = judge_order(index, items)
    where = {each.actual for each in broken if each.where.startswith("stock.release")}
    assert where == (set() if actual is None else {actual})


# -- refunds asked for again ---------------------------------------------------------------------------------

DECIDED = {
    "order_id": ORDER,
    "n": 0,
    "amount": 1000,
    "cause": "return",
    "cause_id": uid("r"),
    "units": [[A, 0]],
    "shipping": [],
}
ASKED = {
    "refund_id": REFUND,
    "order_id": ORDER,
    "amount": "10.00",
    "currency": "EUR",
    "cause": "return",
    "cause_id": uid("r"),
}


def refunded(*attempts: int, replies: Sequence[tuple[str, int, int]] = (("failed", 1, 8),)) -> list[Item]:
    """The order with a refund: replies (what, attempt, appended), and for each of `attempts` the deadline
    that passed after it failed.
    """
    facts: list[tuple[str, dict[str, Any], int]] = [
        (CREATED, LINES, 1),
        ("order.paid", PAID, 2),
        ("order.returned", RETURN, 3),
        (DECISIONS, DECIDED, 4),
        *(
            (f"refund.{what}", {"order_id": ORDER, "refund_id": REFUND, "attempt": attempt}, appended)
            for what, attempt, appended in replies
        ),
        *((DECISIONS, passed_data("refund_retry", attempt=attempt), 8 + attempt) for attempt in attempts),
    ]
    return [record(topic, n, data, appended, minute=n) for n, (topic, data, appended) in enumerate(facts)]


def asked(attempt: int | None = None, name: str | None = None, **changes: Any) -> Item:
    data = {**ASKED, **({} if attempt is None else {"attempt": attempt}), **changes}
    own = REFUND if attempt in (None, 1) else f"{REFUND}:{attempt}"
    return event("refund.request", own if name is None else name, data)


@pytest.mark.parametrize(
    ("items", "actual"),
    [
        ([*refunded(), asked()], []),
        # Of a decision without allocations it stays as it was.
        ([*refunded(), asked(1)], ["1"]),
        ([*refunded(), asked(True)], ["none", f"refund_id {REFUND}:True"]),
        ([*refunded(), asked(), asked(2)], [f"refund_id {REFUND}:2"]),
        ([*refunded(1), asked(), asked(2)], []),
        ([*refunded(1), asked(), asked(2), asked(2)], []),
        ([*refunded(1), asked()], ["none"]),
        ([*refunded(1), asked(), asked(2), asked(3)], [f"refund_id {REFUND}:3"]),
        ([*refunded(1, 2), asked(), asked(2), asked(3)], []),
        ([*refunded(1, 2), asked(), asked(3)], ["none"]),
        ([*refunded(1), asked(), asked(2, amount="9.00")], ["amount 9.00"]),
        # Its id is over the refund and the attempt.
        ([*refunded(1), asked(), asked(2, REFUND)], [fold().made_id(f"refund.request:{REFUND}")]),
        ([*refunded(1), asked(name=f"{REFUND}:1"), asked(2)], [fold().made_id(f"refund.request:{REFUND}:1")]),
        # Completed before it was asked for again, or did that come later?
        ([*refunded(1, replies=[("failed", 1, 8), ("completed", 1, 50)]), asked()], []),
        ([*refunded(1, replies=[("failed", 1, 8), ("completed", 1, 50)]), asked(), asked(2)], []),
        # Nothing had failed when the deadline passed: nothing has to follow.
        ([*refunded(1, replies=[]), asked()], []),
        ([*refunded(1, replies=[("failed", 1, 50)]), asked()], []),
    ],
)
def test_a_refund_that_failed_is_asked_for_again(
    index: Index, items: Sequence[Item], actual: list[str]
) -> None:
    broken, _ = judge_order(index, items)
    assert [each.actual for each in broken if each.where.startswith("refund.request")] == actual


def test_what_is_asked_for_again_is_the_same_but_for_its_attempt() -> None:
    reading = fold(
        order(*THREE),
        WHOLE,
        back(quantity=1),
        passed("refund_retry"),
        passed("refund_retry", attempt=2),
        passed("refund_retry", refund_id=uid("x")),
        decisions=[decision(0, 1000, "return", uid("r"), [(A, 0)])],
    )
    asked = {key[1]: data for key, data in reading.derived().items() if key[0] == "refund.request"}
    assert asked == {
        REFUND: ASKED,
        f"{REFUND}:2": {**ASKED, "attempt": 2},
        f"{REFUND}:3": {**ASKED, "attempt": 3},
    }


# -- an audit that goes on -----------------------------------------------------------------------------------


def test_what_was_told_before_is_known(index: Index) -> None:
    """Of an order that is judged again with what came since nothing is asked for twice."""
    first = [*refunded(1), record(DECISIONS, 20, passed_data("ship", 8), 30)]
    events = [asked(), asked(2), late_event(due=at(8), units=5)]
    broken, known = judge_order(index, [*first, *events])
    assert broken == []
    assert {name for type_, name in known.seen if type_ in ("refund.request", "suborder.late")} == {
        REFUND,
        f"{REFUND}:2",
        f"ship:{ANN}:{time(8).isoformat()}",
    }
    later = record("refund.failed", 9, {"order_id": ORDER, "refund_id": REFUND, "attempt": 2}, 40)
    broken, known = judge_order(index, [later], known)
    assert broken == []
    broken, _ = judge_order(index, [record(DECISIONS, 21, passed_data("refund_retry", attempt=2), 50)], known)
    assert [(each.where, each.expected) for each in broken] == [("refund.request", f"refund_id {REFUND}:3")]


# -- states --------------------------------------------------------------------------------------------------


def micros(minute: int) -> int:
    return int(time(minute).timestamp()) * 1_000_000


def test_a_state_holds_promises() -> None:
    ann, refund = bytes.fromhex(ANN.replace("-", "")), bytes.fromhex(REFUND.replace("-", ""))
    back_id = bytes.fromhex(uid("r").replace("-", ""))
    state = state_of(
        fold(
            order(item(A, ship_by=at(5)), item(B, deliver_by=at(6))),
            promise(1, ship_by=7),
            promise(2, deliver_by=8),
            promise(3, BOB),
            passed("ship", 7),
            passed("unshipped", 8),
            passed("deliver", 9),
            passed("return"),
            passed("refund_retry", attempt=2),
            reply("failed"),
            reply("completed", attempt=3),
            stock("released"),
        )
    )
    assert [line[10:] for line in state["created"][6]] == [(micros(5), None), (None, micros(6))]
    bob = bytes.fromhex(BOB.replace("-", ""))
    assert state["promises"] == {
        (micros(1), ann, micros(7), None, False),
        (micros(2), ann, None, micros(8), False),
        (micros(3), bob, None, None, True),
    }
    assert state["deadlines"] == set()
    assert state["lapses"] == {
        (micros(40), 5, ann, 1, True, False, micros(7)),
        (micros(40), 6, ann, 1, True, False, micros(8)),
        (micros(40), 7, ann, 1, True, False, micros(9)),
        (micros(40), 8, back_id, 1, True, False, None),
        (micros(40), 9, refund, 2, True, False, None),
    }
    assert state["refunds"] == {
        (micros(10), refund, True, None, False, 1),
        (micros(10), refund, False, None, False, 3),
    }
    # stock_released, to a version that doesn't know that nobody shipped.
    assert [(each[8], each[10]) for each in state["suborders"]] == [(3, True)]


def test_a_state_of_before_has_no_promises() -> None:
    line = [b"i", b"p", b"s", None, "SKU", 1, 100, None, None, None]
    head = [5, b"u", None, "EUR", 100, None]

    def read(lines: list[Any], refund: list[Any], suborder: list[Any], *more: Any) -> states.State:
        known = [1, [*head, [lines], None], [], [], [], [], [], [], [refund], [], [], 0, [suborder], False, 1]
        return read_state(msgspec.msgpack.encode([*known, [], 3, 2, 1, 2, *more]))

    failed, part = [7, b"f", True, None, False], [0, 100, 0, 0, 1, 0, 0, 0, 3, 0]
    before = read(line, failed, part)
    assert before == read([*line, None, None], [*failed, 1, 55], [*part, False], [], [], [], [])
    assert before["promises"] == before["lapses"] == set()
    assert before["refunds"] == {(7, b"f", True, None, False, 1)}
    now = read(
        [*line, 5, 6, "later"],
        [*failed, 2, 55, "later"],
        [*part, True, "later"],
        [],
        [[1, b"s", 2, None, False, "later"]],
        [[8, 5, b"s", 1, False, False, 44, 9, "later"]],
        [66],
    )
    assert now["created"][6][0][8:] == (None, None, 5, 6)
    assert now["refunds"] == {(7, b"f", True, None, False, 2)}
    assert now["lapses"] == {(8, 5, b"s", 1, False, False, 9)}
    assert now["suborders"][0][9:] == (0, True)
    assert now["promises"] == {(1, b"s", 2, None, False)}
