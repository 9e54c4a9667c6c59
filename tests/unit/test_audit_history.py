"""Orders that another system handled before, as the auditor reads the contract: worked examples, computed by
hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.derived import DERIVED
from audit.findings import Finding, Findings, Report
from audit.history import counted_as_paid, paid_back
from audit.index import Index
from audit.judge import DERIVED_EVENT, FACT, Item, Judge, Lane
from audit.reference import Anomaly, Decision, Fact, Order, Reading, Refusal, parse, parse_decision
from audit.states import differences, read_state, state_of
from audit.topics import CHECKOUT, CREATED, DECISIONS, LANE
from tests.unit.test_audit_grants import decide_all, decided, granted
from tests.unit.test_audit_reference import (
    ANN,
    BOB,
    ORDER,
    A,
    B,
    at,
    binary,
    created,
    fact,
    fold,
    headers,
    item,
    uid,
    units,
)

PAST, NOW = 5, 40
"""Minutes before and after the time from which orders are live."""
LIVE: dict[str, Any] = {"live_from": at(30)}
TAKEN = 1_767_323_400_000
"""2026-01-02T03:10:00Z in ms."""

# -- fields --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "taken", "path"),
    [
        ({"live_from": at(10)}, None, None),
        ({"live_from": at(10)}, TAKEN, None),
        ({"live_from": at(11)}, None, None),
        ({"live_from": "2026-01-02T03:10:00.000999Z"}, TAKEN, None),  # in the millisecond of its taking
        ({"live_from": "2026-01-02T03:10:00.001Z"}, TAKEN, "live_from"),
        ({"live_from": "2026-01-02T04:10:00+01:00"}, TAKEN, None),
        ({"live_from": "1969-12-31T23:59:59Z"}, TAKEN, None),
        ({"live_from": at(11)}, TAKEN, "live_from"),
        ({"live_from": "2026-01-02"}, TAKEN, "live_from"),
        ({"live_from": None}, TAKEN, "live_from"),
        ({"live_from": at(10), "refunded_amount": "0"}, TAKEN, None),
        ({"live_from": at(10), "refunded_amount": "99999.99"}, TAKEN, None),
        ({"live_from": at(10), "refunded_amount": "0.001"}, TAKEN, "refunded_amount"),
        ({"live_from": at(10), "refunded_amount": "-1"}, TAKEN, "refunded_amount"),
        ({"live_from": at(10), "refunded_amount": 1}, TAKEN, "refunded_amount"),
        ({"live_from": at(10), "refunded_amount": None}, TAKEN, "refunded_amount"),
        ({"refunded_amount": "1.00"}, TAKEN, "refunded_amount"),
    ],
)
def test_what_another_system_handled(changes: dict[str, Any], taken: int | None, path: str | None) -> None:
    data = created(**changes)
    for topic in (CREATED, CHECKOUT):
        value = json.dumps({**data, "checkout_id": uid("c")}).encode()
        parsed = parse(topic, None, value, headers(topic), taken)
        assert isinstance(parsed, Fact) if path is None else parsed == Refusal("field_malformed", path)


def test_both_are_content() -> None:
    held = Order(ORDER)
    for changes in ({}, LIVE, {"live_from": at(31)}, {**LIVE, "refunded_amount": "0"}):
        parsed = binary("order.created", created(**changes))
        assert isinstance(parsed, Fact)
        held.add(parsed)
    same = binary("order.created", created(live_from="2026-01-02T04:30:00+01:00"))
    assert isinstance(same, Fact)
    held.add(same)
    contents = [each.fact.content for each in held.candidates["created",]]
    assert [each.get("live_from") for each in contents] == [
        None,
        *(datetime(2026, 1, 2, 3, minute, tzinfo=UTC) for minute in (30, 31, 30)),
    ]
    assert contents[3]["refunded_amount"] == 0


# -- what counts as paid for ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("live", "decisions", "returned", "gone", "expected"),
    [
        # Of a line of five units.
        (5, [], 0, 0, []),
        (5, [], 2, 0, [0, 1]),
        (5, [0, 2], 2, 0, [1, 3]),
        (5, [], 9, 0, [0, 1, 2, 3, 4]),
        (3, [], 0, 1, [3]),  # the lowest that isn't live
        (3, [3], 0, 1, [4]),
        (3, [], 0, 2, [3, 4]),
        (3, [], 0, 3, [2, 3, 4]),  # then the highest live: it moved though it was gone
        (3, [2], 0, 3, [1, 3, 4]),
        (5, [], 0, 1, [4]),
        (3, [], 2, 1, [0, 1, 3]),
        (3, [], 4, 1, [0, 1, 2, 3, 4]),
        (0, [], 1, 2, [0, 1, 2]),
        (3, [0, 1, 2, 3, 4], 5, 5, []),
        (1, [], 0, 9, [0, 1, 2, 3, 4]),
    ],
)
def test_units_that_count_as_paid_for(
    live: int, decisions: list[int], returned: int, gone: int, expected: list[int]
) -> None:
    assert counted_as_paid(5, live, decisions, returned, gone) == expected


@pytest.mark.parametrize(
    ("said", "captured", "cost", "expected"),
    [
        # Of an order of 42.00.
        (None, 4200, 0, 0),
        (None, 4200, 1000, 1000),
        (None, 3900, 1000, 700),
        (None, 3200, 1000, 0),  # it had captured no more than what stays
        (None, 0, 1000, 0),
        (None, 6000, 1000, 1000),  # at most what they cost
        (None, 4200, 4200, 4200),
        (0, 4200, 1000, 0),
        (5000, 4200, 0, 5000),
    ],
)
def test_what_the_other_system_paid_back(said: int | None, captured: int, cost: int, expected: int) -> None:
    assert paid_back(said, captured, 4200, cost) == expected


# -- refunds -------------------------------------------------------------------------------------------------
#
# A: three units of 10.00 of Ann's, shipping 2.00. B: two of 5.00 of Bob's. 42.00 in all.

LINES = [item(A, ANN, 3, "10.00", shipping_amount="2.00"), item(B, BOB, 2, "5.00")]


def taken_over(*items: dict[str, Any], minute: int = 0, **more: Any) -> Fact:
    return fact("order.created", minute, **created(items or LINES, **{**LIVE, **more}))


def paid(minute: int, amount: str = "42.00", name: str = "p", **more: Any) -> Fact:
    data = {"payment_id": uid(name), "amount": amount, "currency": "EUR", **more}
    return fact("order.paid", minute, **data)


def back(minute: int, quantity: int = 1, name: str = "r", status: str = "processed", **more: Any) -> Fact:
    data = {"return_id": uid(name), "item_id": A, "quantity": quantity, "reason": "x", **more}
    return fact("order.returned", minute, status=status, **data)


def gone(minute: int, seller: str = ANN, kind: str = "released", **more: Any) -> Fact:
    return fact(f"stock.{kind}", minute, seller_id=seller, reservation_id=uid("theirs"), **more)


def scan(minute: int, status: str = "in_transit", name: str = "s", seller: str = ANN) -> Fact:
    return fact("shipment.updated", minute, shipment_id=uid(name), seller_id=seller, status=status)


def passed(
    name: str, minute: int = NOW, seller: str | None = ANN, *, final: bool = True, **more: str
) -> Fact:
    data = {"order_id": ORDER, "deadline": name, "attempt": 1, "final": final, **more}
    value = json.dumps(data if seller is None else {**data, "seller_id": seller}).encode()
    parsed = parse_decision(value, headers("deadline.passed", time=at(minute)))
    assert isinstance(parsed, Fact)
    return parsed


def owed(reading: Reading) -> list[tuple[int, str, tuple[tuple[str, int], ...], tuple[str, ...], bool]]:
    return [(each.amount, each.cause, each.units, each.shipping, each.covered) for each in reading.owed()]


PAID = paid(PAST)
R, R2 = uid("r"), uid("r2")
REFUND = fold(taken_over()).made_id("refund:0")


def failed(minute: int) -> Fact:
    return fact("refund.failed", minute, refund_id=REFUND)


RETRIED = passed("refund_retry", seller=None, refund_id=REFUND)


@pytest.mark.parametrize(
    ("facts", "decisions", "expected"),
    [
        ([PAID, back(PAST)], [], []),
        ([PAID, back(NOW)], [], [(1000, "return", ((A, 0),), (), True)]),
        ([PAID, back(30)], [], [(1000, "return", ((A, 0),), (), True)]),
        ([PAID, back(29)], [], []),
        # 42.00 less 10.00 that the other system paid back.
        ([PAID, back(PAST), back(NOW, name="r2")], [], [(1000, "return", ((A, 1),), (), True)]),
        ([PAID, back(PAST, 2), back(NOW, 2, "r2")], [], [(1000, "return", ((A, 2),), (), True)]),
        # It captured 32.00: nothing was paid back, since the rest costs as much.
        (
            [paid(PAST, "32.00"), back(PAST), back(NOW, name="r2")],
            [],
            [(1000, "return", ((A, 1),), (), True)],
        ),
        ([paid(PAST, "9.99"), back(NOW)], [], [(1000, "return", ((A, 0),), (), False)]),
        # A stage that doesn't win says nothing.
        (
            [PAID, back(PAST, status="rejected"), back(6), back(NOW, name="r2")],
            [],
            [(1000, "return", ((A, 0),), (), True)],
        ),
        ([PAID, back(PAST, status="requested"), back(NOW)], [], [(1000, "return", ((A, 0),), (), True)]),
        # One unit gone there, one here: theirs is the lowest that isn't live.
        (
            [PAID, gone(PAST, items=units(A, 1)), gone(NOW, items=units(A, 1), kind="rejected")],
            [],
            [(1000, "stock", ((A, 2),), (), True)],
        ),
        (
            [PAID, gone(PAST, items=units(A, 1)), gone(NOW, items=units(A, 1), kind="rejected")],
            [decided(0, 1000, "stock", ANN, units=((A, 2),))],
            [],
        ),
        # The line is gone, and shipping with it: they didn't name it whole.
        (
            [PAID, gone(PAST, items=units(A, 1)), gone(NOW, items=units(A, 2))],
            [],
            [(2200, "stock", ((A, 1), (A, 2)), (A,), True)],
        ),
        # They did, by two replies.
        ([PAID, gone(PAST, items=units(A, 1)), gone(PAST, items=units(A, 2), kind="rejected")], [], []),
        ([PAID, gone(PAST)], [], []),
        # Stock that was never answered here is ours.
        (
            [PAID, gone(PAST, items=units(A, 1)), passed("stock")],
            [],
            [(2200, "stock", ((A, 1), (A, 2)), (A,), True)],
        ),
        # Nothing is live: 42.00 less 32.00.
        ([PAID, gone(PAST), gone(NOW, BOB)], [], [(1000, "closed", (), (), True)]),
        ([PAID, gone(PAST), gone(PAST, BOB)], [], []),
        ([PAID, gone(PAST), passed("stock", seller=BOB)], [], [(1000, "closed", (), (), True)]),
        # All is history but a payment: 45.00 less 42.00.
        ([PAID, gone(PAST), gone(PAST, BOB), paid(NOW, "3.00", "q")], [], [(300, "closed", (), (), True)]),
        # Theirs was 40.00, of which they paid back 40.00; 3.00 came since.
        (
            [paid(PAST, "40.00"), gone(PAST), gone(PAST, BOB), paid(NOW, "3.00", "q")],
            [],
            [(300, "closed", (), (), True)],
        ),
        # Grants.
        ([PAID, granted("1.00", PAST)], [], []),
        ([PAID, granted("1.00", NOW)], [], [(100, "grant", (), (), True)]),
        # What we paid for, before it turned out to be history, counts once.
        (
            [PAID, back(PAST), back(NOW, name="r2")],
            [decided(0, 1000, "return", R, units=((A, 0),))],
            [(1000, "return", ((A, 1),), (), True)],
        ),
    ],
)
def test_what_is_owed_of_an_order_that_was_taken_over(
    facts: list[Fact], decisions: list[Decision], expected: list[Any]
) -> None:
    assert owed(fold(taken_over(), *facts, decisions=decisions)) == expected
    assert owed(fold(*reversed(facts), taken_over(), decisions=decisions)) == expected


@pytest.mark.parametrize(
    ("refunded", "facts", "expected", "anomalies"),
    [
        ("0", [PAID, back(PAST), back(NOW, name="r2")], [(1000, "return", ((A, 1),), (), True)], []),
        ("32.00", [PAID, back(NOW)], [(1000, "return", ((A, 0),), (), True)], []),
        # Paid whole, and only what they paid back is in the way: what is left.
        ("32.01", [PAID, back(NOW)], [(999, "return", ((A, 0),), (), True)], []),
        ("42.00", [PAID, back(NOW)], [], []),
        (
            "32.01",
            [paid(PAST, "41.99"), back(NOW)],
            [(1000, "return", ((A, 0),), (), False)],
            [("refund_not_covered", f"return {R}")],
        ),
        ("42.01", [PAID, back(NOW)], [], [("refunded_above_history", "0.01")]),
        (
            "1.00",
            [paid(NOW), back(NOW)],
            [(1000, "return", ((A, 0),), (), True)],
            [("refunded_above_history", "1.00")],
        ),
        ("0", [PAID, gone(PAST), gone(PAST, BOB)], [], []),
        ("30.00", [PAID, gone(PAST), gone(PAST, BOB)], [], []),
        ("30.00", [PAID, gone(PAST), gone(NOW, BOB)], [(1200, "closed", (), (), True)], []),
        # Grants wait for money that was paid back.
        (
            "41.50",
            [PAID, granted("1.00", NOW)],
            [(100, "grant", (), (), False)],
            [("refund_not_covered", f"grant {uid('g') if uid('g') < uid('h') else uid('h')}")],
        ),
    ],
)
def test_refunds_stay_within_what_the_other_system_left(
    refunded: str, facts: list[Fact], expected: list[Any], anomalies: list[tuple[str, str]]
) -> None:
    reading = fold(taken_over(refunded_amount=refunded), *facts)
    assert owed(reading) == expected
    seen = [each for each in reading.anomalies() if each.code != "reservation_unknown"]
    assert seen == [Anomaly(*each) for each in anomalies]


def test_an_order_that_was_not_taken_over_has_no_history() -> None:
    placed = fact("order.created", 0, **created(LINES))
    reading = fold(placed, PAID, back(PAST), gone(PAST, BOB))
    assert [each[:2] for each in owed(reading)] == [(1000, "return"), (1000, "stock")]
    assert reading.paid_back_elsewhere == 0


def test_a_closed_refund_tells_the_tax_of_what_was_not_paid_for_elsewhere() -> None:
    # Two units of 10.00 with 2.10 of tax on top each. One was released there; they say that they paid back
    # 5.00, so 19.20 are left of 24.20. What is not paid for costs 12.10, of it 2.10 tax.
    line = item(quantity=2, taxes=[{"code": "T", "amount": "4.20"}])
    placed = taken_over(line, total_amount="24.20", prices_include_tax=False, refunded_amount="5.00")
    reading = fold(
        placed,
        paid(PAST, "24.20"),
        gone(PAST, items=units(A, 1)),
        gone(NOW, items=units(A, 1), kind="rejected"),
    )
    (closed,) = reading.owed()
    assert (closed.amount, closed.cause) == (1920, "closed")
    assert reading.tax_of(decided(0, 1920)) == 210
    assert reading.tells_what_is_paid_elsewhere


def test_what_was_paid_back_elsewhere_took_of_the_first_payments() -> None:
    first, second = uid("p"), uid("q")
    facts = [paid(PAST, "30.00"), paid(6, "12.00", "q")]
    assert fold(taken_over(refunded_amount="32.00"), *facts).allocate(1000) == ((second, 1000),)
    assert fold(taken_over(refunded_amount="25.00"), *facts).allocate(1000) == ((first, 500), (second, 500))
    # 10.00 for a unit that came back there, and what we paid back before by name.
    reading = fold(
        taken_over(),
        *facts,
        back(PAST),
        decisions=[decided(0, 1500, "return", R2, units=((A, 1),), allocations=((first, 1500),))],
    )
    assert reading.allocate(600) == ((first, 500), (second, 100))
    assert reading.misallocated(0) is None


def test_their_reservations_and_refunds_are_not_ours() -> None:
    reply = {"refund_id": uid("theirs")}
    past = [gone(PAST, items=units(A, 1)), fact("refund.failed", PAST, **reply)]
    live = [gone(NOW, items=units(B, 1), seller=BOB), fact("refund.failed", NOW, refund_id=uid("mine"))]
    codes = [each.code for each in fold(taken_over(), PAID, *past).anomalies()]
    assert codes == []
    codes = [each.code for each in fold(taken_over(), PAID, *past, *live).anomalies()]
    assert codes == ["reservation_unknown", "refund_failed"]


def test_a_refund_that_failed_in_history_is_as_one_that_nobody_answered() -> None:
    facts = [taken_over(), PAID, back(NOW), passed("refund", seller=None, refund_id=REFUND)]
    decisions = [decided(0, 1000, "return", R, units=((A, 0),))]

    def codes(*more: Fact) -> list[str]:
        return [each.code for each in fold(*facts, *more, decisions=decisions).anomalies()]

    assert codes() == codes(failed(PAST)) == ["refund_unconfirmed"]
    assert codes(failed(NOW)) == ["refund_failed"]
    completed = fact("refund.completed", PAST, refund_id=REFUND)
    assert codes(failed(NOW), completed) == codes(failed(PAST), completed) == []


def test_promises_of_history_count() -> None:
    promised = fact("promise.updated", PAST, seller_id=ANN, ship_by=at(8))
    reading = fold(taken_over(), PAID, promised, passed("ship", due=at(8)))
    assert [each.code for each in reading.anomalies()] == ["late_to_ship"]
    (ann, _) = reading.rows()["orders_suborder"]
    assert at(8).replace("Z", "+00:00") in ann
    assert fold(taken_over(), PAID, promised, passed("ship", due=at(7))).late == []


def test_history_has_rows_of_suborders_and_payments_and_none_of_refunds() -> None:
    facts = [PAID, back(PAST), fact("refund.completed", PAST, refund_id=uid("theirs")), granted("1.00", PAST)]
    plain, taken = fold(fact("order.created", 0, **created(LINES)), *facts), fold(taken_over(), *facts)
    for table in ("orders_suborder", "orders_payment", "orders_refund"):
        assert taken.rows()[table] == plain.rows()[table]
    assert len(taken.rows()["orders_payment"]) == 1
    assert taken.rows()["orders_refund"] == []


def test_history_counts_in_status_and_rows() -> None:
    reading = fold(taken_over(), PAID, scan(6, "delivered"), scan(7, name="t", seller=BOB), back(8))
    assert reading.status() == "shipped"
    assert reading.version == 5
    rows = reading.rows()
    assert rows["orders_order"][0][3] == "shipped"
    assert [row[-3:-1] for row in rows["orders_order"]] == [
        ("2026-01-02T03:00:00+00:00", "2026-01-02T03:08:00+00:00")
    ]
    assert (len(rows["orders_shipment"]), len(rows["orders_return"])) == (2, 1)


# -- commands ------------------------------------------------------------------------------------------------


def commands(events: dict[tuple[str, str], Any]) -> set[str]:
    return {type_ for type_, _ in events if type_ != "suborder.created"}


BEGIN = {"stock.reserve", "payment.initiate"}


@pytest.mark.parametrize(
    ("placed", "facts", "surely", "possibly"),
    [
        (taken_over(), [], set(), set()),
        (taken_over(minute=29), [], set(), set()),
        (taken_over(minute=30), [], BEGIN, BEGIN),
        (taken_over(), [back(PAST)], set(), set()),
        (taken_over(), [back(NOW)], {"stock.restock"}, {"stock.restock"}),
        # A repetition with an earlier time made it history, perhaps after it had left.
        (taken_over(), [back(NOW), back(PAST)], set(), {"stock.restock"}),
        (taken_over(), [taken_over(minute=NOW)], set(), BEGIN),
        (taken_over(minute=NOW), [back(NOW), back(PAST)], BEGIN, {*BEGIN, "stock.restock"}),
    ],
)
def test_history_causes_no_command(
    placed: Fact, facts: list[Fact], surely: set[str], possibly: set[str]
) -> None:
    for each in (fold(placed, *facts), fold(*facts, placed)):
        assert commands(each.derived()) == surely
        assert commands(each.possible()) == possibly
        assert {type_ for type_, _ in each.derived()} - surely == {"suborder.created"}


BOTH = {ANN, BOB}


@pytest.mark.parametrize(
    ("placed", "facts", "surely", "possibly"),
    [
        (taken_over(), [paid(PAST)], set(), False),
        (taken_over(), [paid(NOW)], BOTH, True),
        (taken_over(), [paid(NOW, "41.99")], set(), True),
        (taken_over(), [paid(PAST, "20.00"), paid(NOW, "22.00", "q")], set(), True),
        (taken_over(), [paid(NOW), paid(PAST)], set(), True),  # repeated with an earlier time
        (taken_over(), [paid(NOW), scan(NOW)], {BOB}, True),
        (taken_over(), [paid(NOW), scan(PAST)], set(), True),
        (taken_over(), [scan(NOW)], set(), False),
        (taken_over(), [paid(NOW), gone(NOW, items=units(A, 1))], set(), True),
        (taken_over(minute=30), [paid(NOW)], BOTH, True),
        (taken_over(minute=30), [scan(NOW)], {BOB}, True),
        (taken_over(minute=30), [paid(PAST)], set(), True),
        (fact("order.created", 0, **created(LINES)), [paid(PAST)], BOTH, True),
    ],
)
def test_which_labels_leave(placed: Fact, facts: list[Fact], surely: set[str], possibly: bool) -> None:
    reading = fold(placed, *facts)
    assert reading.surely_labelled() == surely
    assert reading.may_be_labelled is possibly


def asked(minute: int, **more: Any) -> Fact:
    return fact("order.cancel_requested", minute, reason="x", **more)


@pytest.mark.parametrize(
    ("facts", "surely", "possibly"),
    [
        ([asked(PAST)], set(), set()),
        ([asked(NOW)], BOTH, BOTH),
        ([asked(PAST), asked(NOW, seller_id=BOB)], {BOB}, {BOB}),
        ([asked(NOW), asked(PAST)], set(), BOTH),
        ([passed("payment", seller=None)], set(), BOTH),
        ([asked(PAST), gone(PAST, BOB)], set(), set()),
    ],
)
def test_which_releases_leave(facts: list[Fact], surely: set[str], possibly: set[str]) -> None:
    reading = fold(taken_over(), *facts)
    assert reading.surely_released() == surely
    assert reading.asked_back == possibly
    # It counts in what is told, whoever saw to it.
    closed = [reading.why_closed(each) for each in reading.suborders if each.status == "closed"]
    assert closed == ["cancelled"] * len(closed)


@pytest.mark.parametrize(
    ("scans", "surely", "possibly"),
    [
        ([scan(PAST)], set(), 0),
        ([scan(NOW)], {uid("s")}, 1),
        ([scan(PAST), scan(NOW, "delivered")], set(), 1),  # first in transit there, if that came first
        ([scan(PAST, "pending"), scan(NOW)], {uid("s")}, 1),
        ([scan(NOW), scan(NOW + 1, "delivered")], {uid("s")}, 2),
    ],
)
def test_which_commits_leave(scans: list[Fact], surely: set[str], possibly: int) -> None:
    reading = fold(taken_over(), *scans)
    assert reading.surely_committed() == surely
    assert len(reading.commits.get(uid("s"), [])) == possibly


@pytest.mark.parametrize(
    ("placed", "facts", "expected"),
    [
        (taken_over(), [passed("stock", final=False), passed("label", final=False)], ["stock", "label"]),
        (taken_over(), [PAID, passed("label")], ["label"]),
        (taken_over(), [paid(NOW), passed("stock"), passed("label")], ["stock"]),
        (taken_over(), [passed("payment", seller=None), passed("release")], []),
        (taken_over(), [taken_over(minute=NOW), passed("stock"), passed("label")], []),
        (taken_over(minute=30), [passed("stock"), passed("label")], []),
        # Whether it ships is watched, and what failed there isn't asked for again.
        (taken_over(), [PAID, passed("ship", due=at(NOW)), passed("unshipped", due=at(NOW))], []),
        (taken_over(), [passed("deliver", due=at(NOW)), RETRIED], ["refund_retry"]),
        (taken_over(), [failed(PAST), RETRIED], ["refund_retry"]),
        (taken_over(minute=30), [failed(PAST), RETRIED], ["refund_retry"]),
        (taken_over(), [failed(NOW), RETRIED], []),
        (taken_over(), [failed(NOW), failed(PAST), RETRIED], []),
        (fact("order.created", 0, **created(LINES)), [RETRIED], []),
        (fact("order.created", 0, **created(LINES)), [passed("stock"), passed("label")], []),
    ],
)
def test_deadlines_that_nobody_waits_for(placed: Fact, facts: list[Fact], expected: list[str]) -> None:
    unexpected = fold(placed, *facts).unexpected_deadlines()
    assert [each.content["deadline"] for each in unexpected] == expected


# -- in any order of arrival ---------------------------------------------------------------------------------


@st.composite
def stories(draw: st.DrawFn) -> list[Fact]:
    """order.created that was taken over, and facts before and after that, some of them told twice."""
    when = st.sampled_from([PAST, 6, NOW, 41])
    more: dict[str, Any] = {"currency": "JPY"}
    if draw(st.booleans()):
        more["refunded_amount"] = str(draw(st.integers(0, 12)))
    lines = [
        item(A, ANN, draw(st.integers(1, 3)), "3", shipping_amount=str(draw(st.integers(0, 2)))),
        item(B, draw(st.sampled_from([ANN, BOB])), draw(st.integers(1, 2)), str(draw(st.integers(0, 4)))),
    ]
    facts = [taken_over(*lines, **more)]
    for number in range(draw(st.integers(1, 3))):
        facts.append(paid(draw(when), str(draw(st.integers(1, 12))), f"p{number}", currency="JPY"))
    for number in range(draw(st.integers(0, 3))):
        line = draw(st.sampled_from(lines))
        chosen, count = draw(st.integers(0, 2)), draw(st.integers(1, 2))
        if chosen == 0:
            facts.append(back(draw(when), count, f"r{number}", item_id=line["item_id"]))
        elif chosen == 1:
            kind = draw(st.sampled_from(["rejected", "released"]))
            facts.append(gone(draw(when), line["seller_id"], kind, items=units(line["item_id"], count)))
        else:
            facts.append(granted(str(count), draw(when), uid(f"g{number}"), currency="JPY"))
    if draw(st.booleans()):
        facts.append(passed("stock", seller=draw(st.sampled_from([ANN, BOB]))))
    again = draw(st.lists(st.sampled_from(facts[1:]), max_size=2))
    facts += [each._replace(time=draw(st.sampled_from([PAID.time, paid(NOW).time]))) for each in again]
    return draw(st.permutations(facts))


@settings(max_examples=400, deadline=None)
@given(stories())
def test_every_decision_may_be_made_whatever_comes_later(facts: list[Fact]) -> None:
    decisions: list[Decision] = []
    now: list[Fact] = []
    for each in facts:
        now.append(each)
        decide_all(now, decisions)
    reading = fold(*now, decisions=decisions)
    assert reading.refunded + reading.known.get("refunded_amount", 0) <= reading.captured or not decisions
    assert [each for each in decisions if reading.misallocated(each.n)] == []
    assert [each for each in decisions if not reading.may_pay(each)] == []
    assert [each for each in decisions if not reading.may_be_decided(each)] == []
    named = [unit for each in decisions for unit in each.units]
    assert len(set(named)) == len(named)


# -- what is judged ------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index(tmp_path)
    yield opened
    opened.close()


def record(each: Fact, data: dict[str, Any]) -> Item:
    """The record of a fact, with an event id that tells its type and minute."""
    topic = each.type if each.type in LANE else DECISIONS
    own = headers(each.type, id=f"{each.type} {each.time.minute}", time=each.time.isoformat())
    number, value = LANE.index(topic), json.dumps({"order_id": ORDER, **data}).encode()
    return (ORDER.encode(), FACT, number, 0, each.time.minute, TAKEN * 2, value, own)


def judged(
    index: Index,
    records: Sequence[Item],
    events: Sequence[tuple[str, str, str, str | None]] = (),
    **said: Any,
) -> list[str]:
    """What is broken about derived events, as they should be. `events`: type, id, cause, attribute history;
    their data are `said`, or those that the reading calls for.
    """
    findings = Findings(Report("g"), index, 100)
    judge = Judge(Lane(0, None, set(), [], False), index, findings, lambda key: 0)
    held = judge._fold(ORDER.encode(), ORDER, True, records)
    assert held is not None
    derived = []
    for n, (type_, made_id, cause, history) in enumerate(events):
        other = {"order_id": ORDER, "seller_id": ANN, **said}
        data = held.reading.possible().get((type_, made_id), other)
        event_id = held.reading.event_id(type_, made_id)
        place, value = (DERIVED.index(type_), 0, n), json.dumps(data).encode()
        derived.append((ORDER.encode(), DERIVED_EVENT, *place, event_id, cause, None, value, history))
    judge.order(ORDER.encode(), [*records, *derived])
    findings.judge()
    return [each.expected for each in findings.report.findings if each.check in ("derived", "refunds")]


OWN = fold(taken_over())
PLACED = created(LINES, **LIVE)
BEGUN = record(taken_over(), PLACED)
BEGUN_LIVE = record(taken_over(minute=30), PLACED)
UNTOLD = record(fact("order.created", 0, **created(LINES)), created(LINES))
SUBORDER = ("suborder.created", OWN.made_id(f"suborder:{ANN}"))
RESERVE = ("stock.reserve", OWN.made_id(f"reservation:{ANN}"))
RESTOCK = ("stock.restock", OWN.made_id(f"restock:{R}"))
RETURN = {"return_id": R, "item_id": A, "reason": "x", "status": "processed", "quantity": 1}
CAME_BACK = {minute: record(back(minute), RETURN) for minute in (PAST, NOW)}
STARTED, PROCESSED_THEN, PROCESSED = "order.created 0", f"order.returned {PAST}", f"order.returned {NOW}"
ASKS = "no attribute history: a command"
NONE = "no attribute history"


@pytest.mark.parametrize(
    ("records", "event", "expected"),
    [
        ([UNTOLD], (*SUBORDER, STARTED, None), []),
        ([UNTOLD], (*SUBORDER, STARTED, "true"), [NONE]),
        ([BEGUN], (*SUBORDER, STARTED, "true"), []),
        ([BEGUN], (*SUBORDER, STARTED, None), ["attribute history true"]),
        ([BEGUN], (*SUBORDER, STARTED, "yes"), ["attribute history true"]),
        ([BEGUN_LIVE], (*SUBORDER, "order.created 30", None), []),
        ([BEGUN_LIVE], (*SUBORDER, "order.created 30", "true"), ["attribute history none"]),
        # Live facts may have waited for it: then a reader is to send its e-mail.
        ([BEGUN, CAME_BACK[NOW]], (*SUBORDER, STARTED, None), []),
        ([BEGUN, CAME_BACK[NOW]], (*SUBORDER, STARTED, "true"), []),
        ([BEGUN, CAME_BACK[PAST]], (*SUBORDER, STARTED, None), ["attribute history true"]),
        ([BEGUN_LIVE], (*RESERVE, "order.created 30", None), []),
        ([BEGUN_LIVE], (*RESERVE, "order.created 30", "true"), [ASKS]),
        ([BEGUN], (*RESERVE, STARTED, None), ["no command: history made it", "no such event"]),
        # Were it live in itself: history made it all the same.
        ([BEGUN, CAME_BACK[NOW]], (*RESTOCK, PROCESSED, None), []),
        ([BEGUN, CAME_BACK[NOW]], (*RESTOCK, STARTED, None), []),
        ([BEGUN, CAME_BACK[NOW]], (*RESTOCK, PROCESSED, "true"), [ASKS]),
        (
            [BEGUN, CAME_BACK[PAST]],
            (*RESTOCK, PROCESSED_THEN, None),
            ["no command: history made it", "no such event"],
        ),
        ([BEGUN, CAME_BACK[NOW], CAME_BACK[PAST]], (*RESTOCK, PROCESSED, None), []),
        (
            [BEGUN, CAME_BACK[NOW], CAME_BACK[PAST]],
            (*RESTOCK, PROCESSED_THEN, None),
            ["no command: history made it"],
        ),
    ],
)
def test_what_history_makes(
    index: Index, records: list[Item], event: tuple[str, str, str, str | None], expected: list[str]
) -> None:
    broken = judged(index, records, [event])
    assert [each for each in broken if not each.startswith("return")] == expected


@pytest.mark.parametrize("waited", [True, False])
@pytest.mark.parametrize(("history", "expected"), [(None, []), ("true", [ASKS])])
def test_what_a_deadline_makes_is_no_history(
    index: Index, waited: bool, history: str | None, expected: list[str]
) -> None:
    """Also where it was read before order.created, which then makes what it calls for."""
    due = at(20)
    data = {"deadline": "ship", "attempt": 1, "final": True, "seller_id": ANN, "due": due}
    records = [BEGUN, PAYMENT, record(passed("ship", due=due), data)]
    cause = STARTED if waited else f"deadline.passed {NOW}"
    late = ("suborder.late", f"ship:{ANN}:{due}", cause, history)
    suborder_id = OWN.made_id(f"suborder:{ANN}")
    said = {"suborder_id": suborder_id, "what": "ship", "due": due, "units": 3, "version": 3}
    broken = judged(index, records, [late], **said)
    assert [each for each in broken if "history" in each or "event" in each] == expected


PAYMENT = record(PAID, {"payment_id": uid("p"), "amount": "42.00", "currency": "EUR"})


def decision(**changes: Any) -> Item:
    data = {"n": 0, "amount": 1000, "cause": "return", "cause_id": R, "units": [[A, 0]], "shipping": []}
    value = json.dumps({"order_id": ORDER, **data, **changes}).encode()
    return (ORDER.encode(), FACT, LANE.index(DECISIONS), 0, 0, TAKEN * 2, value, headers("refund.decided"))


@pytest.mark.parametrize(
    ("records", "expected"),
    [
        ([CAME_BACK[NOW], decision()], []),
        ([CAME_BACK[PAST], decision()], [f"no refund of return {R}: it is history"]),
        ([CAME_BACK[PAST], CAME_BACK[NOW], decision()], []),
        ([CAME_BACK[NOW]], [f"return {R}: 1000 decided"]),
        ([CAME_BACK[PAST]], []),
        (
            [
                record(gone(PAST), {"seller_id": ANN, "reservation_id": uid("x")}),
                decision(cause="stock", cause_id=ANN),
            ],
            [f"no refund of stock {ANN}: it is history"],
        ),
        (
            [decision(cause="closed", cause_id=ORDER, units=[])],
            [f"no refund of closed {ORDER}: it is history"],
        ),
    ],
)
def test_refunds_of_history_are_broken(index: Index, records: list[Item], expected: list[str]) -> None:
    assert judged(index, [BEGUN, PAYMENT, *records]) == expected


def test_refunds_above_what_the_other_system_left_are_broken(index: Index) -> None:
    begun = record(taken_over(), created(LINES, **LIVE, refunded_amount="32.01"))
    whole, rest = decision(), decision(amount=999)
    assert judged(index, [begun, PAYMENT, CAME_BACK[NOW], rest]) == []
    (broken, *_) = judged(index, [begun, PAYMENT, CAME_BACK[NOW], whole])
    assert broken == "refunds <= captured 4200 less 3201 paid back elsewhere"


@pytest.mark.parametrize(
    ("begun", "expected"), [(BEGUN, ["no such deadline: another system saw to it"]), (BEGUN_LIVE, [])]
)
def test_a_deadline_that_nobody_waits_for_is_broken(index: Index, begun: Item, expected: list[str]) -> None:
    data = {"deadline": "stock", "attempt": 1, "final": False, "seller_id": ANN}
    assert judged(index, [begun, record(passed("stock", final=False), data)]) == expected


def test_an_order_from_the_future_is_refused(index: Index) -> None:
    early = (*BEGUN[:5], TAKEN, *BEGUN[6:])
    findings = Findings(Report("g"), index, 100)
    judge = Judge(Lane(0, None, set(), [], False), index, findings, lambda key: 0)
    assert judge._fold(ORDER.encode(), ORDER, True, [early]) is None
    findings.judge()
    broken: list[Finding] = findings.report.findings
    assert [each.expected for each in broken] == ["a dead letter (field_malformed)"]


def test_what_is_kept_of_a_notice_keeps_its_attribute(index: Index) -> None:
    findings = Findings(Report("g"), index, 100)
    judge = Judge(Lane(0, None, set(), [], False, kept=True), index, findings, lambda key: 0)
    last = OWN.last_suborder(OWN.suborders[0])
    event_id = OWN.event_id("suborder.updated", f"1:{last['seller_id']}")
    said = (event_id, STARTED, None, json.dumps({**last, "version": 1}).encode(), "true")
    known = judge.order(
        ORDER.encode(),
        [BEGUN, (ORDER.encode(), DERIVED_EVENT, DERIVED.index("suborder.updated"), 0, 0, *said)],
    )
    assert known is not None
    (notice,) = known.last
    assert (notice[5], notice[9]) == (event_id, "true")
    again = judge.order(ORDER.encode(), [], known)
    assert again is not None
    assert again.last == known.last


# -- states --------------------------------------------------------------------------------------------------


def test_a_state_says_what_was_handled_elsewhere() -> None:
    thirty = 1_767_324_600_000_000  # 2026-01-02T03:30:00Z
    assert state_of(fold(taken_over(refunded_amount="1.00")))["created"][10:] == (thirty, 100)
    assert state_of(fold(taken_over()))["created"][10:] == (thirty, None)
    assert state_of(fold(fact("order.created", 0, **created())))["created"][10:] == (None, None)


def test_a_state_is_read_with_what_was_handled_elsewhere() -> None:
    line = [b"i", b"p", b"s", None, "SKU", 1, 100, None]
    head = [5, b"u", None, "EUR", 100, None, [line], True]

    def read(*more: Any) -> Any:
        known: list[Any] = [1, [*head, *more], [], [], [], [], [], [], [], [], [], 0, [], False, 0]
        return read_state(msgspec.msgpack.encode(known))["created"][10:]

    cart = (b"c", 5, b"checkout")
    assert read() == (None, None)
    assert read(*cart) == (None, None)
    assert read(*cart, 7) == (7, None)
    assert read(*cart, 7, 100, "later") == (7, 100)


@pytest.mark.parametrize(
    ("placed", "facts", "may_be_unlabelled"),
    [
        (taken_over(), [PAID], True),
        (taken_over(), [paid(NOW)], True),
        (taken_over(minute=30), [PAID], True),
        (taken_over(minute=30), [paid(NOW)], False),
        (fact("order.created", 0, **created(LINES)), [PAID], False),
    ],
)
def test_an_order_that_history_confirmed_may_have_no_labels(
    placed: Fact, facts: list[Fact], may_be_unlabelled: bool
) -> None:
    reading = fold(placed, *facts)
    state = {**state_of(reading), "waiting": (), "proposed": 0, "labelled": False}
    apart = [each.field for each in differences(reading, state, lambda each: None, [])]
    assert apart == ([] if may_be_unlabelled else ["labelled"])
