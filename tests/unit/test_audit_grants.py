"""Grants, and refunds that say what they pay, as the auditor reads the contract: worked examples, computed by
hand.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit.derived import DERIVED
from audit.findings import Finding, Findings, Report
from audit.index import Index
from audit.judge import DERIVED_EVENT, FACT, Item, Judge, Lane
from audit.reference import Anomaly, Decision, Fact, Order, Reading, Refusal, Room, parse_decision, uuid_bytes
from audit.refunds import allocate, misallocated
from audit.states import differences, read_state, state_of
from audit.topics import CREATED, DECISIONS, LANE
from tests.unit.test_audit_reference import (
    ANN,
    BOB,
    ORDER,
    A,
    B,
    at,
    back,
    binary,
    created,
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
from tests.unit.test_audit_tax import exact_orders, two

P, Q, R = sorted((uid("p"), uid("q"), uid("r")))
G, H = sorted((uid("g"), uid("h")))
GRANT = {"order_id": ORDER, "grant_id": G, "amount": "5.00", "currency": "EUR", "reason": "late"}


def granted(amount: str = "5.00", minute: int = 7, grant_id: str = G, **more: Any) -> Fact:
    data = {**GRANT, "grant_id": grant_id, "amount": amount, **more}
    return fact(
        "refund.granted", minute, **{name: value for name, value in data.items() if name != "order_id"}
    )


def decided(n: int, amount: int, cause: str = "closed", cause_id: str = ORDER, **more: Any) -> Decision:
    whole: dict[str, Any] = {"units": (), "shipping": (), "allocations": ((P, amount),), **more}
    return Decision(ORDER, n, amount, cause, cause_id, **whole)


# -- fields --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "path"),
    [
        ({"amount": "0.00"}, "field_malformed", "amount"),
        ({"amount": "5.001"}, "field_malformed", "amount"),
        ({"amount": 5}, "field_malformed", "amount"),
        ({"currency": "XXY"}, "currency_unknown", "currency"),
        ({"grant_id": "g"}, "field_malformed", "grant_id"),
        ({"reason": None}, "field_malformed", "reason"),
        ({"reason": "x" * 1001}, "field_malformed", "reason"),
        ({"reason": "\0"}, "field_malformed", "reason"),
        ({"seller_id": None}, "field_malformed", "seller_id"),
        ({"item_id": "a"}, "field_malformed", "item_id"),
    ],
)
def test_bad_grants(changes: dict[str, Any], code: str, path: str) -> None:
    assert binary("refund.granted", {**GRANT, **changes}) == Refusal(code, path)


@pytest.mark.parametrize("name", ["order_id", "grant_id", "amount", "currency", "reason"])
def test_a_field_of_a_grant_is_missing(name: str) -> None:
    data = {key: value for key, value in GRANT.items() if key != name}
    assert binary("refund.granted", data) == Refusal("field_missing", name)


def test_a_grant_is_told_by_its_id() -> None:
    held = Order(ORDER)
    first = granted()
    assert first.key == ("refund.granted", G)
    assert first.content["amount"] == 500
    again = granted(reason="other words", minute=6)
    other = granted("6.00", 5)
    for each in (first, again, other):
        held.add(each)
    candidates = held.candidates[first.key]
    assert [each.fact.content["amount"] for each in candidates] == [500, 600]
    assert (candidates[0].fact.time, candidates[0].fact.reason) == (again.time, "other words")
    held.add(order())
    assert held.reading().version == 2
    assert held.reading().rows()["orders_order"][0][-2:] == ("2026-01-02T03:06:00+00:00", 2)


@pytest.mark.parametrize(
    ("changes", "refusal"),
    [
        ({}, None),
        ({"seller_id": ANN}, None),
        ({"item_id": B}, None),
        ({"seller_id": BOB, "item_id": B}, None),
        ({"currency": "USD"}, Refusal("order_currency", "currency")),
        ({"seller_id": uid("eve")}, Refusal("order_seller", "seller_id")),
        ({"item_id": uid("none")}, Refusal("order_item", "item_id")),
        ({"seller_id": ANN, "item_id": B}, Refusal("order_seller", "item_id")),
    ],
)
def test_what_a_grant_names_is_the_orders(changes: dict[str, Any], refusal: Refusal | None) -> None:
    each = granted(**changes)
    reading = fold(each, order(item(A, ANN), item(B, BOB)), paid("40.00"))
    assert reading.refused.get(each.key) == refusal
    assert [owed.cause_id for owed in reading.owed()] == ([] if refusal else [G])
    assert len(fold(each).waiting()) == 1


# -- allocations ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amount", "taken", "untied", "expected"),
    [
        # P captured 100, Q 50, R 30.
        (60, {}, 0, [(P, 60)]),
        (100, {}, 0, [(P, 100)]),
        (101, {}, 0, [(P, 100), (Q, 1)]),
        (180, {}, 0, [(P, 100), (Q, 50), (R, 30)]),
        (60, {P: 70}, 0, [(P, 30), (Q, 30)]),
        (60, {P: 100, Q: 20}, 0, [(Q, 30), (R, 30)]),
        # What doesn't say where it went took the first ones' rest: 120 are P's 100 and 20 of Q's.
        (40, {}, 120, [(Q, 30), (R, 10)]),
        # Of P 70 are gone by name, so 40 are P's other 30 and 10 of Q's 50.
        (60, {P: 70}, 40, [(Q, 40), (R, 20)]),
        (20, {Q: 50}, 90, [(P, 10), (R, 10)]),
        (1, {R: 30}, 150, []),
        (200, {}, 0, [(P, 100), (Q, 50), (R, 30)]),
    ],
)
def test_which_payments_a_refund_goes_back_to(
    amount: int, taken: dict[str, int], untied: int, expected: list[tuple[str, int]]
) -> None:
    assert list(allocate(amount, [(P, 100), (Q, 50), (R, 30)], taken, untied)) == expected


def test_payments_are_used_by_time_then_by_id() -> None:
    def each(payment_id: str, minute: int) -> Fact:
        return fact("order.paid", minute, payment_id=payment_id, amount="10.00", currency="EUR")

    reading = fold(order(), each(R, 2), each(Q, 3), each(P, 3))
    assert reading.allocate(2500) == ((R, 1000), (P, 1000), (Q, 500))
    # Of repetitions the earliest time stays.
    reading = fold(order(), each(R, 2), each(Q, 3), each(P, 3), each(Q, 1))
    assert reading.allocate(2500) == ((Q, 1000), (R, 1000), (P, 500))


def test_decisions_before_took_their_part_of_the_payments() -> None:
    facts = [
        order(item(quantity=10)),
        paid("60.00", "p"),
        fact("order.paid", 2, payment_id=uid("q"), amount="40.00", currency="EUR"),
    ]
    first, second = uid("p"), uid("q")
    named = [decided(0, 5000, allocations=((first, 5000),)), decided(1, 500, allocations=((first, 500),))]
    assert fold(*facts, decisions=named).allocate(1000) == ((first, 500), (second, 500))
    # 20.00 of an earlier version: the first payment's other 10.00 and 10.00 of the second.
    older = [
        decided(0, 2000, allocations=None),
        decided(1, 5000, allocations=((first, 4000), (second, 1000))),
    ]
    assert fold(*facts, decisions=older).allocate(1000) == ((second, 1000),)
    assert fold(*facts, decisions=older).misallocated(1) is None


@pytest.mark.parametrize(
    ("amount", "allocations", "taken", "untied", "expected"),
    [
        # P captured 100, Q 50.
        (120, [(P, 100), (Q, 20)], {}, 0, None),
        (50, [(Q, 50)], {}, 0, None),  # P may not have been known then
        (60, [(Q, 50), (P, 10)], {}, 0, None),  # its time may have been another one
        (120, [(P, 90), (Q, 30)], {}, 0, "payments used up before the next, but for 0"),
        (120, [(P, 90), (Q, 30)], {}, 9, "payments used up before the next, but for 9"),
        (120, [(P, 90), (Q, 30)], {}, 10, None),
        (70, [(P, 40), (Q, 30)], {P: 60}, 0, None),
        (70, [(P, 40), (Q, 30)], {P: 61}, 0, f"at most 39 of payment {P}"),
        (51, [(Q, 51)], {}, 0, f"at most 50 of payment {Q}"),
        (10, [(R, 10)], {}, 0, f"at most 0 of payment {R}"),
        (10, [(P, 9)], {}, 0, "allocations of 10"),
        (10, [], {}, 0, "allocations of 10"),
        (10, [(P, 5), (P, 5)], {}, 0, "each payment once"),
    ],
)
def test_what_is_wrong_with_allocations(
    amount: int, allocations: list[tuple[str, int]], taken: dict[str, int], untied: int, expected: str | None
) -> None:
    wrong = misallocated(amount, allocations, {P: 100, Q: 50}, taken, untied)
    assert (wrong and wrong[0]) == expected


# -- grants --------------------------------------------------------------------------------------------------

OWED = tuple[int, str, str, bool]


def owed(reading: Reading) -> list[OWED]:
    return [(each.amount, each.cause, each.cause_id, each.covered) for each in reading.owed()]


@pytest.mark.parametrize(
    ("facts", "decisions", "expected"),
    [
        # An order of 20.00.
        ([paid("20.00"), granted()], [], [(500, "grant", G, True)]),
        ([granted()], [], [(500, "grant", G, False)]),
        ([paid("4.99"), granted()], [], [(500, "grant", G, False)]),
        ([paid("5.00"), granted()], [], [(500, "grant", G, True)]),
        ([paid("20.00"), granted()], [decided(0, 500, "grant", G)], []),
        (
            [paid("20.00"), granted(), granted("15.01", 8, H)],
            [],
            [(500, "grant", G, True), (1501, "grant", H, True)],
        ),
        (
            [paid("20.00"), granted(), granted("15.01", 8, H)],
            [decided(0, 500, "grant", G)],
            [(1501, "grant", H, False)],
        ),
        # Earlier in time, first.
        ([granted(), granted("15.01", 6, H)], [], [(1501, "grant", H, False), (500, "grant", G, False)]),
        # After the others.
        (
            [paid("20.00"), granted(), back(quantity=1), stock("released", items=units(A, 1))],
            [],
            [(1000, "return", uid("r"), True), (1000, "stock", ANN, True), (500, "grant", G, True)],
        ),
        # No unit is live: all of it goes back by itself, and a grant waits for nothing.
        ([paid("20.00"), granted(), stock("rejected")], [], [(2000, "closed", ORDER, True)]),
        ([granted(), stock("rejected")], [], []),
        (
            [paid("20.00"), granted(), stock("rejected")],
            [decided(0, 500, "grant", G)],
            [(1500, "closed", ORDER, True)],
        ),
    ],
)
def test_when_a_grant_is_owed(facts: list[Fact], decisions: list[Decision], expected: list[OWED]) -> None:
    reading = fold(order(), *facts, decisions=decisions)
    assert [each for each in owed(reading) if each[1] != "stock" or len(expected) > 2] == expected
    uncovered = [each for each in reading.anomalies() if each.code == "refund_not_covered"]
    assert uncovered == [
        Anomaly("refund_not_covered", f"{cause} {cause_id}")
        for _, cause, cause_id, covered in expected
        if not covered
    ]


# -- refunds that are what is left ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("captured", "grants", "before", "expected"),
    [
        # Four units of 10.00, and all of them came back.
        ("40.00", [], [], (4000, True)),
        ("40.00", [500], [], (3500, True)),
        ("40.00", [500, 1500], [], (2000, True)),
        ("40.00", [4000], [], None),  # nothing is left: nothing is owed
        ("40.01", [4000], [], (1, True)),
        ("39.99", [], [], (4000, False)),
        ("39.99", [1], [], (4000, False)),  # not paid whole: it waits
        ("45.00", [500], [], (4000, True)),
        ("44.99", [500], [], (3999, True)),
        # Closed before, and then a parcel moved: that took the money, no grant did.
        ("40.00", [], [decided(0, 4000)], (4000, False)),
        ("40.00", [500], [decided(1, 3500)], (4000, False)),
        ("50.00", [500], [decided(1, 500)], (4000, True)),
        ("45.00", [500], [decided(1, 500)], (3500, True)),
        ("44.00", [500], [decided(1, 400)], (3500, True)),
    ],
)
def test_a_refund_is_what_grants_left(
    captured: str, grants: list[int], before: list[Decision], expected: tuple[int, bool] | None
) -> None:
    names = [uid(f"grant {number}") for number in range(len(grants))]
    facts = [granted(f"{each / 100:.2f}", 6, name) for each, name in zip(grants, names, strict=True)]
    decisions = [
        decided(n, each, "grant", name) for n, (each, name) in enumerate(zip(grants, names, strict=True))
    ]
    decisions += [replace(each, n=len(decisions)) for each in before]
    reading = fold(
        order(item(quantity=4)), paid(captured), *facts, scan("delivered"), back(), decisions=decisions
    )
    whole = tuple((A, number) for number in range(4))
    assert [((each.amount, each.covered), each.units) for each in reading.owed()] == (
        [] if expected is None else [(expected, whole)]
    )
    assert bool([each for each in reading.anomalies() if each.code == "refund_not_covered"]) == (
        expected is not None and not expected[1]
    )


@pytest.mark.parametrize(
    ("amount", "goodwill", "before", "total", "fits"),
    [
        # Of units that cost 40.00.
        (4000, 0, 0, 4000, True),
        (4001, 4000, 4000, 4000, False),
        (3999, 0, 0, 4000, False),
        (3500, 500, 500, 4000, True),
        (3500, 499, 500, 4000, False),  # only what grants took may be missing
        (3499, 501, 501, 4000, True),
        (100, 3900, 6000, 6000, True),
        (100, 3900, 5900, 6000, True),
        (100, 3900, 5899, 6000, False),  # 59.99 had been captured then, below the total
    ],
)
def test_what_a_decision_may_pay(amount: int, goodwill: int, before: int, total: int, fits: bool) -> None:
    line = item(A, quantity=total // 1000)
    decisions = [decided(0, goodwill, "grant", G)] if goodwill else []
    if before > goodwill:
        decisions.append(decided(len(decisions), before - goodwill))
    returned = decided(
        len(decisions), amount, "return", uid("r"), units=tuple((A, number) for number in range(4))
    )
    amounts = f"{goodwill / 100:.2f}"
    facts = [order(line), paid("200.00"), *([granted(amounts)] if goodwill else [])]
    assert fold(*facts, decisions=[*decisions, returned]).may_pay(returned) is fits


def decide_all(now: Sequence[Fact], decisions: list[Decision]) -> None:
    """Decide what is covered, one after the other."""
    while True:
        reading = fold(*now, decisions=decisions)
        covered = [each for each in (reading.owed() if reading.created else []) if each.covered]
        if not covered:
            return
        first = covered[0]
        proposed = decided(
            len(decisions),
            first.amount,
            first.cause,
            first.cause_id,
            units=first.units,
            shipping=first.shipping,
            allocations=reading.allocate(first.amount),
        )
        decisions.append(replace(proposed, tax_amount=reading.tax_of(proposed)))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_with_grants_refunds_add_up(data: st.DataObject) -> None:
    """When every unit came back, refunds of units add up to what the goods cost, or all refunds to what was
    captured; when every unit is gone, all of them to what was captured.
    """
    placed, payments, worth = data.draw(exact_orders())
    came_back = data.draw(st.booleans())
    ends = [
        back(name=line["item_id"], item_id=line["item_id"])
        if came_back
        else stock("rejected", line["seller_id"], items=units(line["item_id"], line["quantity"]))
        for line in placed.content["items"]
    ]
    grants = [
        granted(str(data.draw(st.integers(1, 20))), 6, uid(f"{n}"), currency="JPY")
        for n in range(data.draw(st.integers(0, 3)))
    ]
    decisions: list[Decision] = []
    now: list[Fact] = []
    for each in data.draw(st.permutations([placed, *payments, *ends, *grants])):
        now.append(each)
        decide_all(now, decisions)
    reading = fold(*now, decisions=decisions)
    of_units = sum(each.amount for each in decisions if each.cause != "grant")
    assert reading.refunded <= reading.captured
    if came_back:
        assert of_units == worth or reading.refunded == reading.captured
    else:
        assert reading.refunded == reading.captured
    assert [each.n for each in decisions if reading.misallocated(each.n)] == []
    assert [each for each in decisions if not reading.may_pay(each)] == []
    for payment_id, captured in reading.payments.items():
        parts = [part for each in decisions for name, part in each.allocations or () if name == payment_id]
        assert sum(parts) <= captured


# -- refund.request ------------------------------------------------------------------------------------------
#
# Of the order of two lines in test_audit_tax: units of A cost 11.43 11.42 11.41 with 1.68 1.67 1.66 tax on
# top, its shipping 2.38 with 0.38; units of B 5.81 5.82 with 0.95 each.


def request(reading: Reading, n: int) -> dict[str, Any]:
    return reading.derived()["refund.request", reading.made_id(f"refund:{n}")]


FIRST, SECOND = uid("p"), uid("q")


@pytest.mark.parametrize(
    ("decision", "expected"),
    [
        (
            decided(
                *(0, 3664, "stock", ANN),
                units=((A, 0), (A, 1), (A, 2)),
                shipping=(A,),
                tax_amount=539,
                allocations=((FIRST, 3000), (SECOND, 664)),
            ),
            {
                "amount": "36.64",
                "tax_amount": "5.39",
                "lines": [{"item_id": A, "quantity": 3, "amount": "34.26", "tax_amount": "5.01"}],
                "shipping_amount": "2.38",
                "allocations": [
                    {"payment_id": FIRST, "amount": "30.00"},
                    {"payment_id": SECOND, "amount": "6.64"},
                ],
            },
        ),
        (
            decided(0, 100, "grant", G, tax_amount=0, allocations=((SECOND, 100),)),
            {
                "amount": "1.00",
                "tax_amount": "0.00",
                "lines": [],
                "shipping_amount": "0.00",
                "allocations": [{"payment_id": SECOND, "amount": "1.00"}],
            },
        ),
        # What was left: its units are told whole.
        (
            decided(
                *(0, 981, "stock", BOB),
                units=((B, 0), (A, 1), (B, 1)),
                tax_amount=357,
                allocations=((SECOND, 981),),
            ),
            {
                "amount": "9.81",
                "tax_amount": "3.57",
                "shipping_amount": "0.00",
                "lines": [
                    {"item_id": B, "quantity": 2, "amount": "11.63", "tax_amount": "1.90"},
                    {"item_id": A, "quantity": 1, "amount": "11.42", "tax_amount": "1.67"},
                ],
                "allocations": [{"payment_id": SECOND, "amount": "9.81"}],
            },
        ),
        (
            decided(0, 582, tax_amount=95, allocations=((FIRST, 582),)),
            {
                "amount": "5.82",
                "tax_amount": "0.95",
                "lines": [],
                "shipping_amount": "0.00",
                "allocations": [{"payment_id": FIRST, "amount": "5.82"}],
            },
        ),
    ],
)
def test_a_request_says_what_it_pays(decision: Decision, expected: dict[str, Any]) -> None:
    reading = fold(two(False), paid("48.27"), granted("1.00"), decisions=[decision])
    assert request(reading, 0) == {
        "refund_id": reading.made_id("refund:0"),
        "order_id": ORDER,
        "currency": "EUR",
        "cause": decision.cause,
        "cause_id": decision.cause_id,
        "attempt": 1,
        **expected,
    }


def test_an_order_without_tax_tells_none_in_its_lines() -> None:
    returned = decided(0, 1000, "return", uid("r"), units=((A, 0),))
    said = request(fold(order(), paid(), back(quantity=1), decisions=[returned]), 0)
    assert said["lines"] == [{"item_id": A, "quantity": 1, "amount": "10.00"}]
    assert said["shipping_amount"] == "0.00"
    assert "tax_amount" not in said


def test_what_an_earlier_version_asked_for_stays_as_it_was() -> None:
    returned = decided(0, 1000, "return", uid("r"), units=((A, 0),), allocations=None)
    reading = fold(order(), paid(), back(quantity=1), decisions=[returned])
    assert request(reading, 0) == {
        "refund_id": reading.made_id("refund:0"),
        "order_id": ORDER,
        "amount": "10.00",
        "currency": "EUR",
        "cause": "return",
        "cause_id": uid("r"),
    }


# -- decisions -----------------------------------------------------------------------------------------------

DECIDED = {
    "order_id": ORDER,
    "n": 0,
    "amount": 500,
    "cause": "grant",
    "cause_id": G,
    "units": [],
    "shipping": [],
}


@pytest.mark.parametrize(
    ("allocations", "expected"),
    [
        ([], None),
        ([[P.upper(), 500]], ((P, 500),)),
        ([[P, 1], [Q, 499]], ((P, 1), (Q, 499))),
        ([[P, 1], [Q, 498]], None),
        ([[P, 1], [P, 499]], None),
        ([[P, 0]], None),
        ([[P, 1 << 64]], None),
        ([[P, "1"]], None),
        ([[P]], None),
        ([["p", 1]], None),
        ({P: 1}, None),
        (None, None),
    ],
)
def test_a_decision_record_with_allocations(allocations: Any, expected: Any) -> None:
    value = json.dumps({**DECIDED, "allocations": allocations}).encode()
    read = parse_decision(value, headers("refund.decided"))
    if expected is None:
        assert read == Refusal("field_malformed", "allocations")
    else:
        assert isinstance(read, Decision)
        assert (read.cause, read.cause_id, read.allocations) == ("grant", G, expected)


def test_a_decision_counts_24_bytes_for_each_payment() -> None:
    held = Order(ORDER, Room(batch=24 * 12))  # 12 * 11 = 132 for decisions
    assert not held.decide(decided(0, 3, allocations=((P, 1), (Q, 1), (R, 1))))  # 64 + 3 * 24 = 136
    assert held.decide(decided(0, 2, allocations=((P, 1), (Q, 1))))  # 112


# -- what is judged ------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index(tmp_path)
    yield opened
    opened.close()


def record(topic: str, offset: int, value: Any) -> Item:
    type_ = "refund.decided" if topic == DECISIONS else topic
    own = headers(type_, id=f"{type_} {offset}", time=at(offset))
    return (ORDER.encode(), FACT, LANE.index(topic), 0, offset, 0, json.dumps(value).encode(), own)


def judged(index: Index, facts: Sequence[Item], requests: Sequence[Any] = ()) -> list[Finding]:
    """What is broken about refunds and their requests (number of the decision, data)."""
    findings = Findings(Report("g"), index, 100)
    judge = Judge(Lane(0, None, set(), [], False), index, findings, lambda key: 0)
    namespace = fold(order())
    events = []
    for n, data in requests:
        event_id = namespace.event_id("refund.request", namespace.made_id(f"refund:{n}"))
        where = (DERIVED.index("refund.request"), 0, n)
        cause = f"refund.decided {n}"
        events.append(
            (ORDER.encode(), DERIVED_EVENT, *where, event_id, cause, None, json.dumps(data).encode())
        )
    judge.order(ORDER.encode(), [*facts, *events])
    findings.judge()
    return [each for each in findings.report.findings if each.check in ("refunds", "derived")]


def story(*decisions: dict[str, Any]) -> list[Item]:
    """Four units of 10.00, paid by P (30.00) and Q (10.00), a grant of 5.00, and all units came back."""
    payments = [
        {"order_id": ORDER, "payment_id": payment_id, "amount": amount, "currency": "EUR"}
        for payment_id, amount in ((P, "30.00"), (Q, "10.00"))
    ]
    returned = {"return_id": uid("r"), "item_id": A, "reason": "x", "status": "processed", "restock": False}
    return [
        record(CREATED, 0, created([item(quantity=4)])),
        *(record("order.paid", number, each) for number, each in enumerate(payments)),
        record("order.returned", 0, {"order_id": ORDER, **returned}),
        record("refund.granted", 0, GRANT),
        *(record(DECISIONS, n, {**DECIDED, "n": n, **each}) for n, each in enumerate(decisions)),
    ]


PAYS = {"allocations": [[P, 500]]}
FOUR = {"cause": "return", "cause_id": uid("r"), "units": [[A, 0], [A, 1], [A, 2], [A, 3]], "amount": 3500}
REST = {**FOUR, "allocations": [[P, 2500], [Q, 1000]]}


@pytest.mark.parametrize(
    ("decisions", "expected"),
    [
        ([PAYS, REST], []),
        ([{}, FOUR], []),
        ([PAYS], [(f"return {uid('r')}: 3500 decided", "undecided")]),
        ([REST | {"amount": 4000, "allocations": [[P, 3000], [Q, 1000]]}], []),
        (
            [
                {**PAYS, "amount": 400, "allocations": [[P, 400]]},
                {**REST, "amount": 3600, "allocations": [[P, 2600], [Q, 1000]]},
            ],
            [("amount 500, of the grant", "400")],
        ),
        ([{**PAYS, "cause_id": H}, REST], [(f"refund.granted {H}", "none")]),
        (
            [PAYS, PAYS],
            [(f"grant {G} paid once", "again"), (f"return {uid('r')}: 3000 decided", "undecided")],
        ),
        ([{**PAYS, "units": [[A, 0]]}, REST], ["units of each unit", "no units, no tax: a grant"]),
        (
            [PAYS, {**REST, "amount": 3499, "allocations": [[P, 2499], [Q, 1000]]}],
            [("amount 4000, for what it names", "3499"), "payments used up"],
        ),
        ([PAYS, {**REST, "allocations": [[Q, 1000], [P, 2500]]}], []),
        ([PAYS, {**REST, "allocations": [[P, 2600], [Q, 900]]}], [(f"at most 2500 of payment {P}", "2600")]),
        ([PAYS, {**REST, "allocations": [[P, 2500], [R, 1000]]}], [(f"at most 0 of payment {R}", "1000")]),
        # An earlier version says nothing of payments.
        ([FOUR | {"amount": 4000}], []),
        # 20.00 of an earlier version are P's; what comes after takes its other 10.00.
        (
            [
                {**FOUR, "amount": 2000, "units": [[A, 0], [A, 1]]},
                {**PAYS, "allocations": [[P, 500]]},
            ],
            [],
        ),
    ],
)
def test_decisions_that_are_broken(
    index: Index, decisions: list[dict[str, Any]], expected: list[str | tuple[str, str]]
) -> None:
    broken = judged(index, story(*decisions))
    told_broken = [(each.expected, each.actual) for each in broken if each.check == "refunds"]
    assert len(told_broken) == len(expected), told_broken
    for (wanted, actual), each in zip(told_broken, expected, strict=True):
        if isinstance(each, str):
            assert each in f"{wanted} {actual}"
        else:
            assert (wanted, actual) == each


def told(**changes: Any) -> dict[str, Any]:
    """refund.request of the second decision of the story, with changes, None: without the field."""
    data = {
        "refund_id": fold(order()).made_id("refund:1"),
        "order_id": ORDER,
        "amount": "35.00",
        "currency": "EUR",
        "cause": "return",
        "cause_id": uid("r"),
        "lines": [{"item_id": A, "quantity": 4, "amount": "40.00", "tax_amount": "0.00"}],
        "shipping_amount": "0.00",
        "tax_amount": "0.00",
        "allocations": [{"payment_id": P, "amount": "25.00"}, {"payment_id": Q, "amount": "10.00"}],
        "attempt": 1,
    }
    return {name: value for name, value in {**data, **changes}.items() if value is not None}


LINE = told()["lines"][0]
PARTS = told()["allocations"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"amount": "35.0"}, []),
        ({"tax_amount": None, "lines": [{**LINE, "tax_amount": None}]}, ["no tax_amount"]),
        ({"lines": [{**LINE, "tax_amount": "0.01"}]}, ["no tax_amount"]),
        ({"lines": None}, ["lines"]),
        ({"lines": []}, ["lines"]),
        ({"lines": [LINE, LINE]}, ["lines"]),
        ({"lines": [{**LINE, "quantity": 3}]}, ["lines"]),
        ({"lines": [{**LINE, "amount": "35.00"}]}, ["lines"]),
        ({"lines": ["A"]}, ["lines"]),
        ({"shipping_amount": None}, ["shipping_amount 0.00"]),
        ({"shipping_amount": "1.00"}, ["shipping_amount 0.00"]),
        ({"allocations": None}, ["allocations"]),
        ({"allocations": PARTS[::-1]}, ["allocations"]),
        ({"allocations": PARTS[:1]}, ["allocations"]),
        ({"allocations": [{**PARTS[0], "amount": "35.00"}]}, ["allocations"]),
        ({"allocations": {"payment_id": P}}, ["allocations"]),
        ({"attempt": None}, ["attempt 1"]),
    ],
)
def test_a_request_that_tells_something_else_is_broken(
    index: Index, changes: dict[str, Any], expected: list[str]
) -> None:
    broken = [
        each for each in judged(index, story(PAYS, REST), [(1, told(**changes))]) if each.check == "derived"
    ]
    assert [each.expected[: len(start)] for each, start in zip(broken, expected, strict=True)] == expected


@pytest.mark.parametrize("name", ["lines", "shipping_amount", "allocations", "attempt"])
def test_a_request_of_an_earlier_version_that_tells_more_is_broken(index: Index, name: str) -> None:
    asked = told(lines=None, shipping_amount=None, allocations=None, attempt=None)
    assert judged(index, story({}, FOUR), [(1, asked)]) == []
    (broken,) = judged(index, story({}, FOUR), [(1, {**asked, name: told()[name]})])
    assert broken.expected == f"no {name}"


def test_a_request_that_a_worker_of_the_version_before_sent_is_not_broken(index: Index) -> None:
    asked = told(lines=None, shipping_amount=None, allocations=None, attempt=None)
    assert judged(index, story(PAYS, REST), [(1, asked)]) == []


def test_a_state_whose_decision_a_worker_of_the_version_before_folded_is_not_broken() -> None:
    reading = fold(order(), granted(), decisions=[decided(0, 500, "grant", G, allocations=((P, 500),))])
    state = state_of(reading) | {"waiting": (), "proposed": 1, "labelled": True}
    (decision,) = state["decisions"]
    dropped = state | {"decisions": ((*decision[:-1], None),)}
    other = state | {"decisions": ((*decision[:-1], ((uuid_bytes(Q), 500),)),)}
    results = [differences(reading, each, lambda fact: None, []) for each in (state, dropped, other)]
    assert [[each.field for each in result] for result in results] == [[], [], ["decisions"]]


def test_a_refund_that_names_what_the_order_has_not_does_not_stop_the_audit(index: Index) -> None:
    strange = {**REST, "units": [[B, 0]]}
    broken = judged(index, story(PAYS, strange), [(1, told())])
    assert [each.expected for each in broken] == ["units and lines of the order"]


# -- states --------------------------------------------------------------------------------------------------


def test_a_state_holds_grants_and_allocations() -> None:
    decisions = [
        decided(0, 500, "grant", G, allocations=((P, 300), (Q, 200))),
        decided(1, 100, allocations=None),
    ]
    reading = fold(
        order(), granted(seller_id=ANN), granted("1.00", 8, H, currency="USD"), decisions=decisions
    )
    state = state_of(reading)
    seven = 1_767_323_220_000_000  # 2026-01-02T03:07:00Z
    five = (uuid_bytes(G), 500, "EUR", "late")
    one = (uuid_bytes(H), 100, "USD", "late")
    assert state["grants"] == {
        (seven, *five, uuid_bytes(ANN), None, False),
        (seven + 60_000_000, *one, None, None, True),
    }
    assert [each[3] for each in state["decisions"]] == [3, 2]
    assert [each[8] for each in state["decisions"]] == [((uuid_bytes(P), 300), (uuid_bytes(Q), 200)), None]


def test_a_state_is_read_with_grants_and_without() -> None:
    head: list[Any] = [0, None, [], [], [], [], [], [], [], []]
    before = [*head, [], 0, [], False, 0, [], 0, 0, 0, 2]
    grant = [7, b"g", 500, "EUR", "late", None, b"a", False]
    assert read_state(msgspec.msgpack.encode(before))["grants"] == set()
    now = read_state(msgspec.msgpack.encode([*before, [[*grant, 1234, "later"]], [], [], [], "later"]))
    assert now["grants"] == {tuple(grant)}
    decision = [5, 0, 500, 3, b"c", [], [], 7, 0]
    read = [
        read_state(msgspec.msgpack.encode([*head[:9], [each], *before[10:]]))["decisions"]
        for each in (decision, [*decision, [[b"p", 500]], "later"])
    ]
    assert read == [((*decision[:5], (), (), 0, None),), ((*decision[:5], (), (), 0, ((b"p", 500),)),)]
