"""Rows of suborders, payments and refunds as the auditor reads the contract: worked examples, computed by
hand.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.findings import Finding, Findings, Report
from audit.index import Index
from audit.judge import FACT, ROW, Item, Judge, Lane
from audit.reference import Fact, Order, Reading, Refusal, parse, parse_decision
from audit.rows import payments_of
from audit.stores import TABLES, Rows, StoreUnavailable, columns, comparable, line_of, row_of
from audit.topics import CREATED, LANE
from audit.topics import DECISIONS as DECIDED
from tests.unit.test_audit_reference import (
    ANN,
    BOB,
    HISTORY,
    ORDER,
    USER,
    A,
    B,
    C,
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
from tests.unit.test_audit_tax import tax

WHOSE = {"order_id": ORDER, "user_id": USER, "region": ""}


def rows_in(table: str, reading: Reading) -> list[dict[str, Any]]:
    """Rows by the names of their columns; each comes back from a line of COPY as it was."""
    rows = reading.rows()[table]
    assert [row_of(table, line_of(table, row)) for row in rows] == [comparable(table, row) for row in rows]
    return [dict(zip(columns(table), row, strict=True)) for row in rows]


def moment(minute: int) -> str:
    return f"2026-01-02T03:{minute:02d}:00+00:00"


def stamps(first: int, last: int, version: int) -> dict[str, Any]:
    return {"created_at": moment(first), "updated_at": moment(last), "version": version}


# -- suborders -----------------------------------------------------------------------------------------------

# Ann's A: 4 of 10.00, shipping 2.00; Ann's B: 1 of 5.00, shipping 1.00; Bob's C: 2 of 7.50. Goods 60.00, of
# which the discount of 6.00 is a tenth: 4.00 of A (1.00 a unit), 0.50 of B, 1.50 of C (0.75 a unit). Total
# 57.00.
LINES = (
    item(A, ANN, 4, "10.00", shipping_amount="2.00"),
    item(B, ANN, 1, "5.00", shipping_amount="1.00"),
    item(C, BOB, 2, "7.50"),
)
BEGUN = order(*LINES, discount_amount="6.00")
AMOUNTS = ("items_amount", "shipping_amount", "discount_amount", "tax_amount", "total_amount")
UNITS = ("units_ordered", "units_live", "units_in_transit", "units_delivered", "units_returned")


def suborder(seller: str, *facts: Fact, begun: Fact = BEGUN) -> dict[str, Any]:
    (row,) = [row for row in rows_in("orders_suborder", fold(begun, *facts)) if row["seller_id"] == seller]
    return row


def test_a_suborder_of_an_order_that_has_just_begun() -> None:
    reading = fold(order(*LINES, discount_amount="6.00", region="SP"))
    ann, bob = sorted(rows_in("orders_suborder", reading), key=lambda row: row["seller_id"] != ANN)
    own = {**WHOSE, "region": "SP", "status": "pending", "closed_because": None, "currency": "EUR"}
    later = {
        **dict.fromkeys(("units_in_transit", "units_delivered", "units_returned"), 0),
        **dict.fromkeys(("ship_by", "deliver_by", "late_since")),
        "order_status": "pending",
        "parcels": 0,
        "parcels_in_transit": 0,
        "parcels_delivered": 0,
        "parcels_returned": 0,
        "returns": 0,
        **stamps(0, 0, 1),
    }
    assert ann == {
        "id": reading.made_id(f"suborder:{ANN}"),
        "seller_id": ANN,
        **own,
        **later,
        **dict(zip(AMOUNTS, ("45.00", "3.00", "4.50", "0.00", "43.50"), strict=True)),
        "units_ordered": 5,
        "units_live": 5,
        "items": 2,
        "units": 5,
    }
    assert bob == {
        "id": reading.made_id(f"suborder:{BOB}"),
        "seller_id": BOB,
        **own,
        **later,
        **dict(zip(AMOUNTS, ("15.00", "0.00", "1.50", "0.00", "13.50"), strict=True)),
        "units_ordered": 2,
        "units_live": 2,
        "items": 1,
        "units": 2,
    }


ALL_OF_ANN = ("45.00", "3.00", "4.50", "0.00", "43.50")


@pytest.mark.parametrize(
    ("facts", "status", "amounts", "counts"),
    [
        ([paid("57.00")], "confirmed", ALL_OF_ANN, (5, 5, 0, 0, 0)),
        ([scan("pending")], "pending", ALL_OF_ANN, (5, 5, 0, 0, 0)),
        ([scan("in_transit")], "shipped", ALL_OF_ANN, (5, 5, 5, 0, 0)),
        # What is delivered was in transit: units at that rank or above.
        ([scan("delivered", items=units(A, 3))], "shipped", ALL_OF_ANN, (5, 5, 3, 3, 0)),
        ([scan("delivered")], "delivered", ALL_OF_ANN, (5, 5, 5, 5, 0)),
        ([scan("delivered"), back(quantity=2)], "delivered", ALL_OF_ANN, (5, 5, 5, 5, 2)),
        ([scan("delivered"), back("requested")], "delivered", ALL_OF_ANN, (5, 5, 5, 5, 0)),
        ([scan("returned")], "returned", ALL_OF_ANN, (5, 5, 5, 5, 5)),
        # A unit that nothing moved and that a return names counts as returned all the same.
        ([back(quantity=1)], "shipped", ALL_OF_ANN, (5, 5, 1, 1, 1)),
        # One of A gone: three live ones of 10.00 less 1.00 each, B, and the shipping of both lines.
        (
            [stock("released", items=units(A, 1))],
            "pending",
            ("35.00", "3.00", "3.50", "0.00", "34.50"),
            (5, 4, 0, 0, 0),
        ),
        # All of B gone: its shipping isn't due any more.
        (
            [stock("rejected", items=units(B, 1))],
            "pending",
            ("40.00", "2.00", "4.00", "0.00", "38.00"),
            (5, 4, 0, 0, 0),
        ),
        # Two of A are under way, so they are live whatever the inventory says; B isn't.
        (
            [scan("in_transit", items=units(A, 2)), stock("released")],
            "shipped",
            ("20.00", "2.00", "2.00", "0.00", "20.00"),
            (5, 2, 2, 0, 0),
        ),
        ([stock("rejected")], "closed", ("0.00",) * 5, (5, 0, 0, 0, 0)),
        # Units that went and came back by a return aren't live: they count as ordered alone.
        ([stock("released"), back(quantity=4)], "closed", ("0.00",) * 5, (5, 0, 0, 0, 0)),
    ],
)
def test_status_amounts_and_units_of_a_suborder(
    facts: Sequence[Fact], status: str, amounts: Sequence[str], counts: Sequence[int]
) -> None:
    row = suborder(ANN, *facts)
    assert row["status"] == status
    assert tuple(row[name] for name in AMOUNTS) == amounts
    assert tuple(row[name] for name in UNITS) == counts
    other = suborder(BOB, *facts)
    assert (other["units_ordered"], other["units_live"], other["total_amount"]) == (2, 2, "13.50")


def deadline(what: str, seller: str | None = None, *, final: bool = True) -> Fact:
    data = {"order_id": ORDER, "deadline": what, "attempt": 1, "final": final}
    raw = json.dumps(data if seller is None else {**data, "seller_id": seller}).encode()
    passed = parse_decision(raw, headers("deadline.passed", time=at(20)))
    assert isinstance(passed, Fact)
    return passed


CANCELLED = fact("order.cancel_requested", 1, reason="x", seller_id=ANN)


@pytest.mark.parametrize(
    ("facts", "why"),
    [
        ([], None),
        ([CANCELLED], None),
        ([CANCELLED, stock("released", items=units(A, 4))], None),
        ([CANCELLED, stock("released")], "cancelled"),
        ([deadline("payment"), stock("released")], "payment_overdue"),
        ([deadline("payment"), CANCELLED, stock("released")], "cancelled"),
        ([stock("released")], "stock_released"),
        ([stock("rejected")], "stock_rejected"),
        ([deadline("stock", ANN)], "stock_unanswered"),
    ],
)
def test_why_a_suborder_is_closed(facts: Sequence[Fact], why: str | None) -> None:
    row = suborder(ANN, *facts)
    assert (row["closed_because"], row["status"] == "closed") == (why, why is not None)
    assert suborder(BOB, *facts)["closed_because"] is None


@pytest.mark.parametrize(
    ("included", "total", "amounts"),
    [
        # Three of 10.00 with 5.00 and 0.01 of tax, shipping 2.00 with 0.38; one of the three is gone, with a
        # third of 5.00 (1.67, 1.67, 1.66: the last one) and none of the cent: 3.34 + 0.01 + 0.38.
        (False, "37.39", ("20.00", "2.00", "0.00", "3.73", "25.73")),
        (True, "32.00", ("20.00", "2.00", "0.00", "3.73", "22.00")),
    ],
)
def test_a_suborder_has_the_tax_of_what_is_live(included: bool, total: str, amounts: Sequence[str]) -> None:
    line = item(A, ANN, 3, shipping_amount="2.00", taxes=tax("5.00", "0.01"), shipping_taxes=tax("0.38"))
    begun = fact("order.created", 0, **created([line], total_amount=total, prices_include_tax=included))
    row = suborder(ANN, stock("released", items=units(A, 1)), begun=begun)
    assert tuple(row[name] for name in AMOUNTS) == amounts


def test_a_suborder_counts_the_parcels_and_returns_of_its_seller() -> None:
    facts = [
        scan("in_transit", 2, "s1", items=units(A, 1)),
        scan("delivered", 3, "s2", items=units(A, 1)),
        scan("delivered", 4, "s3", items=units(B, 1)),
        scan("returned", 5, "s4", items=units(A, 1)),
        scan("pending", 6, "s5", items=units(A, 1)),
        scan("in_transit", 7, "t1", BOB),
        back("requested", 8, "r1", quantity=1),
        back("rejected", 9, "r1", quantity=1),
        back("processed", 9, "r2", quantity=1),
        back("requested", 9, "r3", C, quantity=1),
    ]
    names = ("parcels", "parcels_in_transit", "parcels_delivered", "parcels_returned", "returns")
    ann, bob = suborder(ANN, *facts), suborder(BOB, *facts)
    assert tuple(ann[name] for name in names) == (5, 1, 2, 1, 2)
    assert tuple(bob[name] for name in names) == (1, 1, 0, 0, 1)
    # Of the four units that moved one had come back; the processed return turns the next one.
    assert tuple(ann[name] for name in UNITS) == (5, 5, 4, 3, 2)
    assert {ann["order_status"], bob["order_status"], ann["status"]} == {"shipped"}


def test_version_and_times_of_a_suborder_are_the_orders() -> None:
    facts = [
        fact("payment.failed", 7, payment_id=uid("p"), reason="no"),
        paid("1.00", "usd", currency="USD"),  # refused: it counts as a key
        scan("in_transit", 9, "t", BOB),
    ]
    earlier = paid("1.00")  # at minute 1, before an order that is known since minute 4 only
    begun = fact("order.created", 4, **created(LINES, discount_amount="6.00", total_amount="57.00"))
    assert {name: suborder(ANN, *facts, earlier, begun=begun)[name] for name in stamps(0, 0, 0)} == stamps(
        1, 9, 5
    )
    # A decision counts in neither.
    reading = fold(BEGUN, paid(), decisions=[decision(0, 1, "stock", BOB, minute=59)])
    for row in rows_in("orders_suborder", reading):
        assert {name: row[name] for name in stamps(0, 0, 0)} == stamps(0, 1, 2)


# -- payments ------------------------------------------------------------------------------------------------


def declined(minute: int, name: str = "p", reason: str = "no funds") -> Fact:
    return fact("payment.failed", minute, payment_id=uid(name), reason=reason)


def captured(minute: int, amount: str = "20.00", name: str = "p", **more: Any) -> Fact:
    content = {"payment_id": uid(name), "amount": amount, "currency": "EUR"}
    return fact("order.paid", minute, **{**content, **more})


NOTHING = {"amount": None, "currency": None, "method": None}


@pytest.mark.parametrize(
    ("facts", "row"),
    [
        (
            [captured(3, "20.5", method="card")],
            {"status": "captured", "amount": "20.50", "currency": "EUR", "method": "card", "reason": None}
            | stamps(3, 3, 1),
        ),
        (
            [captured(3)],
            {"status": "captured", "amount": "20.00", "currency": "EUR", "method": None, "reason": None}
            | stamps(3, 3, 1),
        ),
        ([declined(5)], {"status": "failed", **NOTHING, "reason": "no funds"} | stamps(5, 5, 1)),
        # Of both captured; why it failed at first is still known.
        (
            [declined(2), captured(6, method="card")],
            {"status": "captured", "amount": "20.00", "currency": "EUR", "method": "card"}
            | {"reason": "no funds"}
            | stamps(2, 6, 2),
        ),
        (
            [captured(2), declined(6)],
            {"status": "captured", "amount": "20.00", "currency": "EUR", "method": None}
            | {"reason": "no funds"}
            | stamps(2, 6, 2),
        ),
        # Of repetitions the earliest time stays, with its reason.
        ([declined(5), declined(4, reason="sooner")], {"reason": "sooner"} | stamps(4, 4, 1)),
        ([captured(5), captured(4)], {"status": "captured"} | stamps(4, 4, 1)),
        # A refused payment counts as a key, and in nothing else.
        (
            [declined(5), captured(1, currency="USD")],
            {"status": "failed", **NOTHING, "reason": "no funds"} | stamps(5, 5, 2),
        ),
        # Another content of its key: the first in the log stays, and the key counts once.
        ([captured(3, "7.00"), captured(1, "8.00")], {"amount": "7.00"} | stamps(3, 3, 1)),
    ],
)
def test_a_payment(facts: Sequence[Fact], row: dict[str, Any]) -> None:
    (there,) = rows_in("orders_payment", fold(order(), *facts))
    expected = {"id": uid("p"), **WHOSE, **row}
    assert {name: there[name] for name in expected} == expected
    assert list(there) == columns("orders_payment")


def test_each_payment_has_a_row_of_its_own_unless_it_is_refused() -> None:
    facts = [paid("5.00"), paid("5.00", "q"), declined(2, "z"), paid("5.00", "usd", currency="USD")]
    rows = rows_in("orders_payment", fold(order(region="SP"), *facts))
    assert [(row["id"], row["region"], row["version"]) for row in rows] == [
        (payment_id, "SP", 1) for payment_id in sorted((uid("p"), uid("q"), uid("z")))
    ]
    yen = order(item(price="500"), currency="JPY")
    (row,) = rows_in("orders_payment", fold(yen, paid("1000", currency="JPY")))
    assert (row["amount"], row["currency"]) == ("1000", "JPY")


def test_the_fact_behind_a_payment_is_the_one_that_makes_its_status() -> None:
    both, failed = [captured(6), declined(2)], declined(3, "z")
    assert payments_of(fold(order(), failed, *both)) == {uid("p"): both[0], uid("z"): failed}


# -- refunds -------------------------------------------------------------------------------------------------

REFUND_0, REFUND_1 = (fold(order()).made_id(f"refund:{n}") for n in (0, 1))


def replied(kind: str, minute: int, refund_id: str = REFUND_0, **more: Any) -> Fact:
    return fact(f"refund.{kind}", minute, refund_id=refund_id, **more)


RETURNED = decision(0, 1000, "return", uid("r"), [(A, 0)], minute=10)
ASKED = {"status": "requested", "attempt": 1, "reason": None, "settled_at": None, **stamps(10, 10, 1)}


@pytest.mark.parametrize(
    ("replies", "row"),
    [
        ([], ASKED),
        (
            [replied("completed", 12)],
            ASKED | {"status": "completed", "settled_at": moment(12)} | stamps(10, 12, 2),
        ),
        (
            [replied("completed", 12, reason="done")],
            {"status": "completed", "reason": "done", "settled_at": moment(12)},
        ),
        (
            [replied("failed", 13, reason="account closed")],
            ASKED | {"status": "failed", "reason": "account closed"} | stamps(10, 13, 2),
        ),
        ([replied("failed", 13)], ASKED | {"status": "failed"} | stamps(10, 13, 2)),
        # Completed if any attempt is: the reason is that of what the status says.
        (
            [replied("failed", 12, reason="account closed"), replied("completed", 14)],
            ASKED | {"status": "completed", "settled_at": moment(14)} | stamps(10, 14, 3),
        ),
        (
            [replied("completed", 12, reason="done"), replied("failed", 14, reason="too late")],
            {"status": "completed", "reason": "done", "settled_at": moment(12)} | stamps(10, 14, 3),
        ),
        # Of repetitions the earliest.
        (
            [replied("completed", 14), replied("completed", 12)],
            {"status": "completed", "settled_at": moment(12)} | stamps(10, 12, 2),
        ),
        # By the clock of whoever sent it, before it was decided.
        ([replied("completed", 5)], {"settled_at": moment(5), "requested_at": moment(10)} | stamps(5, 10, 2)),
        # Of another refund.
        ([replied("completed", 12, REFUND_1), replied("failed", 12, uid("whose"))], ASKED),
    ],
)
def test_a_refund(replies: Sequence[Fact], row: dict[str, Any]) -> None:
    whole = {
        "id": REFUND_0,
        **WHOSE,
        "number": 0,
        "amount": "10.00",
        "tax_amount": "0.00",
        "currency": "EUR",
        "cause": "return",
        "cause_id": uid("r"),
        "requested_at": moment(10),
        "attempt": 1,
        **row,
    }
    facts = [order(), paid(), scan("delivered"), back(quantity=1), *replies]
    for history in (facts, [*reversed(facts)]):
        (there,) = rows_in("orders_refund", fold(*history, decisions=[RETURNED]))
        assert {name: there[name] for name in whole} == whole
        assert list(there) == columns("orders_refund")


def test_each_decision_has_a_row_of_its_own() -> None:
    decisions = [
        replace(RETURNED, tax_amount=170),
        decision(1, 250, "stock", BOB, [(C, 0)], minute=11),
        decision(2, 7, "closed", ORDER, minute=12),
    ]
    facts = [BEGUN, paid("57.00"), replied("failed", 20, REFUND_1)]
    reading = fold(*facts, decisions=decisions)
    names = ("id", "number", "status", "amount", "tax_amount", "cause", "cause_id", "requested_at", "version")
    assert [tuple(row[name] for name in names) for row in rows_in("orders_refund", reading)] == [
        (REFUND_0, 0, "requested", "10.00", "1.70", "return", uid("r"), moment(10), 1),
        (REFUND_1, 1, "failed", "2.50", "0.00", "stock", BOB, moment(11), 2),
        (reading.made_id("refund:2"), 2, "requested", "0.07", "0.00", "closed", ORDER, moment(12), 1),
    ]


def test_a_refund_has_the_time_of_the_first_record_of_its_number() -> None:
    held = Order(ORDER)
    held.add(order())
    assert held.decide(RETURNED)
    assert not held.decide(replace(RETURNED, time=datetime(2026, 1, 1, tzinfo=UTC)))
    (row,) = rows_in("orders_refund", held.reading())
    assert (row["requested_at"], row["created_at"]) == (moment(10), moment(10))


# -- all of them ---------------------------------------------------------------------------------------------


async def test_tables_that_lack_a_column_are_those_of_a_version_before() -> None:
    async def ask() -> None:
        raise asyncpg.UndefinedColumnError('column "seller_id" does not exist')

    with pytest.raises(StoreUnavailable, match='Postgres: column "seller_id"') as caught:
        await Rows._run(ask())
    assert caught.value.remedy == "run orders init"


def test_there_are_no_rows_of_an_order_that_is_not_known() -> None:
    reading = fold(paid(), declined(2, "z"), replied("completed", 3), decisions=[RETURNED])
    assert reading.rows() == {table: [] for table in TABLES}


DECISIONS = [RETURNED, decision(1, 100, "stock", BOB, [(B, 0)], minute=11)]
REPLIES = [replied("failed", 12), replied("completed", 20), replied("failed", 3, REFUND_1), declined(9, "q")]


@settings(max_examples=60)
@given(st.permutations([*HISTORY, *REPLIES]), st.lists(st.sampled_from([*HISTORY, *REPLIES]), max_size=6))
def test_any_order_of_arrival_and_any_repetition_gives_these_rows(
    history: list[Fact], again: list[Fact]
) -> None:
    known, other = (
        fold(*facts, decisions=DECISIONS).rows() for facts in ([*HISTORY, *REPLIES], [*history, *again])
    )
    assert other == known
    assert {table: len(known[table]) for table in TABLES[4:]} == {
        "orders_suborder": 2,
        "orders_payment": 3,
        "orders_refund": 2,
        "orders_attention": 4,
    }


# -- what is judged ------------------------------------------------------------------------------------------


def record(topic: str, offset: int, minute: int, **data: Any) -> Item:
    own = headers("refund.decided" if topic == DECIDED else topic, time=at(minute))
    raw = json.dumps({"order_id": ORDER, **data}).encode()
    return (ORDER.encode(), FACT, LANE.index(topic), 0, offset, 0, raw, own)


NAMED = {"units": [[A, 0]], "shipping": [], "cause": "return", "cause_id": uid("r")}
RECORDS = [
    record(CREATED, 3, 0, **created()),
    record("order.paid", 5, 1, payment_id=uid("p"), amount="20.00", currency="EUR"),
    record("payment.failed", 6, 2, payment_id=uid("z"), reason="no"),
    record("order.returned", 7, 3, return_id=uid("r"), item_id=A, quantity=1, reason="x", status="processed"),
    record(DECIDED, 8, 3, n=0, amount=1000, **NAMED),
    record("refund.failed", 9, 4, refund_id=REFUND_0),
]
SUBORDER = fold(order()).made_id(f"suborder:{ANN}")


def judged(tmp_path: Path, changes: dict[tuple[str, str], dict[str, Any] | None]) -> list[Finding]:
    """What is told of the rows of an order, where (table, id) has other values, or None: no row."""
    held = Order(ORDER)
    for item_ in RECORDS:
        parse_ = parse_decision if LANE[item_[2]] == DECIDED else partial(parse, LANE[item_[2]], None)
        read = parse_(item_[-2], item_[-1])
        assert not isinstance(read, Refusal)
        assert held.add(read) if isinstance(read, Fact) else held.decide(read)
    rows = {
        (table, row[columns(table)[0]]): row for table in TABLES for row in rows_in(table, held.reading())
    }
    for place, changed in changes.items():
        if changed is None:
            del rows[place]
        else:
            rows[place] = {
                **rows.get(place, next(row for at, row in rows.items() if at[0] == place[0])),
                **changed,
            }
    items = [
        (ORDER.encode(), ROW, TABLES.index(table), line_of(table, list(row.values())))
        for (table, _), row in rows.items()
    ]
    index = Index(tmp_path)
    findings = Findings(Report("g"), index, 100)
    judge = Judge(Lane(0, None, set(), [], False), index, findings, lambda key: 0)
    judge.order(ORDER.encode(), [*RECORDS, *items])
    findings.judge()
    index.close()
    return [each for each in findings.report.findings if each.check == "rows"]


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({}, []),
        # Wrong.
        (
            {("orders_suborder", SUBORDER): {"units_live": 1}},
            [(f"orders_suborder {SUBORDER} units_live", "2", "1", "order.created/0@3")],
        ),
        (
            {("orders_suborder", SUBORDER): {"closed_because": "cancelled", "ship_by": moment(9)}},
            [
                (f"orders_suborder {SUBORDER} closed_because", "None", "cancelled", "order.created/0@3"),
                (
                    f"orders_suborder {SUBORDER} ship_by",
                    "None",
                    "2026-01-02 03:09:00+00:00",
                    "order.created/0@3",
                ),
            ],
        ),
        (
            {("orders_payment", uid("p")): {"amount": "20.01"}},
            [(f"orders_payment {uid('p')} amount", "20.00", "20.0100", "order.paid/0@5")],
        ),
        (
            {("orders_payment", uid("z")): {"currency": "EUR"}},
            [(f"orders_payment {uid('z')} currency", "None", "EUR", "payment.failed/0@6")],
        ),
        (
            {("orders_refund", REFUND_0): {"status": "requested", "version": 1}},
            [
                (f"orders_refund {REFUND_0} status", "failed", "requested", f"{DECIDED}/0@8"),
                (f"orders_refund {REFUND_0} version", "2", "1", f"{DECIDED}/0@8"),
            ],
        ),
        (
            {("orders_refund", REFUND_0): {"settled_at": moment(4), "attempt": 2}},
            [
                (f"orders_refund {REFUND_0} attempt", "1", "2", f"{DECIDED}/0@8"),
                (
                    f"orders_refund {REFUND_0} settled_at",
                    "None",
                    "2026-01-02 03:04:00+00:00",
                    f"{DECIDED}/0@8",
                ),
            ],
        ),
        # Missing.
        (
            {("orders_suborder", SUBORDER): None, ("orders_payment", uid("z")): None},
            [
                (f"orders_suborder {SUBORDER}", "a row of version 5", "none", "order.created/0@3"),
                (f"orders_payment {uid('z')}", "a row of version 1", "none", "payment.failed/0@6"),
            ],
        ),
        (
            {("orders_refund", REFUND_0): None},
            [(f"orders_refund {REFUND_0}", "a row of version 2", "none", f"{DECIDED}/0@8")],
        ),
        # Foreign.
        (
            {("orders_payment", uid("other")): {"id": uid("other")}},
            [(f"orders_payment {uid('other')}", "no row", "a row of version 1", "")],
        ),
        (
            {("orders_refund", REFUND_1): {"id": REFUND_1, "number": 1}},
            [(f"orders_refund {REFUND_1}", "no row", "a row of version 2", "")],
        ),
        (
            {("orders_suborder", uid("other")): {"id": uid("other"), "seller_id": BOB}},
            [(f"orders_suborder {uid('other')}", "no row", "a row of version 5", "")],
        ),
    ],
)
def test_rows_that_are_wrong_or_missing_or_foreign_are_named(
    tmp_path: Path,
    changes: dict[tuple[str, str], dict[str, Any] | None],
    differences: list[tuple[str, str, str, str]],
) -> None:
    findings = judged(tmp_path, changes)
    assert {(each.where, each.expected, each.actual, each.fact) for each in findings} == set(differences)
    assert {each.severity for each in findings} <= {"broken"}
