"""What an explanation says, and the rules that it names: of each the facts and the numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from contracts import times
from domain import why
from domain.enums import ClosedBecause, OrderStatus, RefundCause
from domain.explain import explain
from tests.unit.builders import (
    ANNA,
    BORIS,
    ORDER,
    STRANGER,
    OrderBuilder,
    at,
    item_id,
    line,
    made_id,
    moment,
    parcel,
    payment,
    raw,
    returned,
)

Made = Callable[[OrderBuilder], Any]
RULES = (Path(__file__).parents[2] / "docs" / "rules.md").read_text()


def told(*steps: Made, time: int | None = None, sellers: frozenset[bytes] | None = None) -> Any:
    builder = OrderBuilder()
    for step in steps:
        step(builder)
    return explain(raw(ORDER), builder.settle().order, time, sellers)


def reasons(document: Any, of: str) -> list[tuple[str, list[str], dict[str, Any]]]:
    """(rule, types of its facts, numbers) of each reason about such a thing."""
    types = {fact["n"]: fact["type"] for fact in document["facts"]}
    return [
        (each["rule"], [types[n] for n in each["facts"]], each["numbers"])
        for each in document["why"]
        if each["of"] == of
    ]


def late(what: str, attempt: int = 1, final: bool = True, hour: int = 3, **subject: str) -> Made:
    return lambda b: b.send("deadline.passed", hour, deadline=what, attempt=attempt, final=final, **subject)


def new(*lines: Any, **more: Any) -> Made:
    return lambda b: b.create(*lines, **more)


def paid(amount: str, n: int = 1) -> Made:
    return lambda b: b.pay(amount, n)


def scan(status: str, n: int = 1, **more: Any) -> Made:
    return lambda b: b.scan(status, n, **more)


def stock(verb: str, seller: str = ANNA, **more: Any) -> Made:
    return lambda b: b.stock(verb, seller, **more)


def back(status: str, n: int = 1, **more: Any) -> Made:
    return lambda b: b.give_back(status, n, **more)


def units(live: int, in_transit: int = 0, delivered: int = 0, returned: int = 0) -> dict[str, int]:
    return {"live": live, "in_transit": in_transit, "delivered": delivered, "returned": returned}


TWO = new(line(1, quantity=2))
PAID = {"captured": "20.00", "needed": "20.00"}


@pytest.mark.parametrize(
    ("status", "steps", "facts", "numbers"),
    [
        ("pending", [TWO, paid("5.00")], ["order.created", "order.paid"],
         units(2) | {"captured": "5.00", "needed": "20.00"}),
        ("confirmed", [TWO, paid("5.00"), paid("15.00", 2)], ["order.created", "order.paid", "order.paid"],
         units(2) | PAID),
        ("shipped", [TWO, paid("20.00"), scan("pending"), scan("in_transit", 2, items={1: 1})],
         ["shipment.updated"], units(2, 1) | PAID),
        ("delivered", [TWO, paid("20.00"), scan("in_transit"), scan("delivered", hour=3),
                       back("processed", quantity=1)],
         ["shipment.updated", "order.returned"], units(2, 2, 2, 1) | PAID),
        ("returned", [TWO, paid("20.00"), scan("delivered"), back("requested"), back("processed", hour=6)],
         ["shipment.updated", "order.returned"], units(2, 2, 2, 2) | PAID),
    ],
)  # fmt: skip
def test_why_an_order_has_its_status(status: str, steps: list[Made], facts: list[str], numbers: Any) -> None:
    document = told(*steps)
    assert document["status"] == status
    assert reasons(document, "order")[0] == (f"status_{status}", facts, numbers)


def test_of_a_shipped_order_its_money_and_what_is_gone_are_said_too() -> None:
    document = told(TWO, paid("20.00"), scan("in_transit", items={1: 1}), stock("rejected", items={1: 1}))
    assert reasons(document, "order")[1:] == [
        ("live_units", ["stock.rejected"], {"ordered": 2, "live": 1}),
        ("captured_money", ["order.paid"], {"captured": "20.00", "needed": "10.00"}),
    ]


def test_facts_that_wait() -> None:
    document = told(paid("20.00"), scan("in_transit"))
    assert (document["known"], "status" in document) == (False, False)
    assert reasons(document, "order") == [("facts_wait", ["order.paid", "shipment.updated"], {})]
    assert [fact["note"] for fact in document["facts"]] == ["waits for its order"] * 2


CANCEL: Made = lambda b: b.cancel()  # noqa: E731


@pytest.mark.parametrize(
    ("because", "steps", "facts"),
    [
        ("cancelled", [TWO, CANCEL, stock("released", hour=2)], ["order.cancel_requested", "stock.released"]),
        ("payment_overdue", [TWO, late("payment"), stock("released")], ["stock.released", "deadline.passed"]),
        ("stock_released", [TWO, stock("reserved"), stock("released", hour=2)], ["stock.released"]),
        ("stock_rejected", [TWO, stock("rejected")], ["stock.rejected"]),
        ("stock_unanswered", [TWO, late("stock", final=False, seller_id=ANNA),
                              late("stock", 2, hour=4, seller_id=ANNA)], ["deadline.passed"]),
    ],
)  # fmt: skip
def test_why_a_suborder_is_closed(because: str, steps: list[Made], facts: list[str]) -> None:
    document = told(*steps)
    assert reasons(document, "suborder") == [(f"closed_{because}", facts, {"ordered": 2} | units(0))]


@pytest.mark.parametrize(
    ("cause", "steps", "facts", "numbers"),
    [
        ("return", [TWO, paid("20.00"), scan("delivered"), back("processed", quantity=1)],
         ["order.returned", "refund.decided"], {"amount": "10.00", "units": 1}),
        ("stock", [new(line(1), line(2, BORIS)), paid("20.00"), stock("rejected", BORIS)],
         ["stock.rejected", "refund.decided"], {"amount": "10.00", "units": 1}),
        ("closed", [TWO, paid("20.00"), stock("rejected")],
         ["order.paid", "stock.rejected", "refund.decided"], {"amount": "20.00", "units": 0}),
    ],
)  # fmt: skip
def test_why_a_refund_was_decided(cause: str, steps: list[Made], facts: list[str], numbers: Any) -> None:
    assert reasons(told(*steps), "refund") == [(f"refund_{cause}", facts, numbers)]


def reply(failed: bool, refund_id: str) -> Made:
    return lambda b: b.settle().send(f"refund.{'failed' if failed else 'completed'}", 8, refund_id=refund_id)


OURS = made_id("refund:0")
REJECTED = [new(line(1), line(2, BORIS)), paid("20.00"), stock("rejected", BORIS)]


@pytest.mark.parametrize(
    ("kind", "steps", "facts", "numbers"),
    [
        ("overpaid", [TWO, paid("20.01")], ["order.paid"], {"captured": "20.01", "total": "20.00"}),
        ("over_returned", [TWO, back("processed", quantity=3)], ["order.returned"],
         {"returned": 3, "quantity": 2}),
        ("moved_though_gone", [TWO, scan("in_transit"), stock("rejected", items={1: 1})],
         ["stock.rejected", "shipment.updated"], {"in_transit": 2, "quantity": 2, "gone": 1}),
        ("reservation_unknown", [TWO, stock("reserved", reservation_id=STRANGER)], ["stock.reserved"], {}),
        ("refund_failed", [*REJECTED, reply(True, OURS)], ["refund.failed"], {}),
        ("refund_unknown", [TWO, reply(False, STRANGER)], ["refund.completed"], {}),
        ("refund_uncovered", [TWO, paid("9.99"), stock("rejected", items={1: 1})],
         ["order.paid", "stock.rejected"], {"amount": "10.00", "captured": "9.99", "decided": "0.00"}),
        ("refund_above_captured", [*REJECTED, lambda b: b.settle(), lambda b: b.order.payments.clear()],
         ["refund.decided"], {"decided": "10.00", "captured": "0.00"}),
        ("refund_contradicted", [*REJECTED, lambda b: b.settle(), scan("in_transit", 2, seller=BORIS)],
         ["refund.decided", "shipment.updated"], {}),
        ("release_unanswered", [TWO, CANCEL, late("release", seller_id=ANNA)], ["deadline.passed"], {}),
        ("label_unscanned", [TWO, paid("20.00"), late("label", seller_id=ANNA)], ["deadline.passed"], {}),
        ("refund_unconfirmed", [*REJECTED, lambda b: b.settle(), late("refund", refund_id=OURS)],
         ["deadline.passed"], {}),
    ],
)  # fmt: skip
def test_why_there_is_an_anomaly(kind: str, steps: list[Made], facts: list[str], numbers: Any) -> None:
    document = told(*steps)
    assert (kind, facts, numbers) in reasons(document, "anomaly")
    assert kind in [text.partition(":")[0] for text in document["anomalies"]]
    assert f"`{kind}`" in RULES


def test_every_rule_is_named_where_the_rules_are() -> None:
    names = {f"status_{each.text}" for each in OrderStatus} | {f"refund_{each.text}" for each in RefundCause}
    names |= {f"closed_{each.text}" for each in ClosedBecause if each is not ClosedBecause.NOT_CLOSED}
    assert names <= set(why.SAYS)
    assert [name for name in why.SAYS if f"`{name}`" not in RULES] == []


# -- facts ---------------------------------------------------------------------------------------------------


def test_each_kind_of_fact_is_a_sentence() -> None:
    document = told(
        new(line(1, quantity=2, price="5.00"), line(2, BORIS)),
        lambda b: b.send("payment.failed", 1, payment_id=payment(9), reason="a secret"),
        paid("20.00"),
        stock("reserved", hour=2),
        stock("rejected", BORIS, items={2: 1}, hour=3),
        lambda b: b.cancel(BORIS, hour=4, reason="a secret"),
        scan("in_transit", hour=5, location="a secret"),
        lambda b: b.settle(),
        back("processed", hour=6, quantity=1, reason="a secret"),
        lambda b: b.settle().send("refund.completed", 7, refund_id=OURS, reason="a secret"),
        late("label", hour=8, seller_id=ANNA),
    )
    assert [(fact["time"], fact["what"]) for fact in document["facts"]] == [
        (moment(0), "the customer ordered 3 units in 2 lines of 2 sellers for 20.00 EUR"),
        (moment(1), f"payment {payment(1)} captured 20.00 EUR"),
        (moment(1), f"payment {payment(9)} failed"),
        (moment(2), f"all units of seller {ANNA} reserved"),
        (moment(3), f"1 unit of seller {BORIS} can't be had"),
        (moment(3), f"refund 0 of 10.00 EUR was decided, for units of seller {BORIS} that are gone"),
        (moment(4), f"the customer asked to cancel seller {BORIS}'s part"),
        (moment(5), f"parcel {parcel(1)} of seller {ANNA} with all units was scanned"
                    " in_transit"),
        (moment(6), f"return {returned(1)} of 1 unit, item {item_id(1)}, was processed"),
        (moment(6), f"refund 1 of 5.00 EUR was decided, for return {returned(1)}"),
        (moment(7), f"refund {OURS} was paid out"),
        (moment(8), f"the first scan of {ANNA} didn't come in time, number 1, and is no longer waited for"),
    ]  # fmt: skip
    assert "secret" not in str(document)


def test_of_a_fact_it_is_said_who_sent_it_and_why_as_far_as_that_is_known() -> None:
    facts = {fact["type"]: fact for fact in told(*REJECTED, late("payment"))["facts"]}
    assert (facts["order.paid"]["source"], facts["order.paid"]["cause"], facts["order.paid"]["appended"]) == (
        None,
        None,
        None,
    )
    assert facts["refund.decided"]["source"] == facts["deadline.passed"]["source"] == "/orders"
    assert facts["refund.decided"]["cause"] == {"type": "stock", "id": BORIS}
    assert facts["deadline.passed"]["cause"] == {"type": "payment", "id": None}


def test_a_seller_sees_its_part_without_money() -> None:
    steps = [*REJECTED, scan("in_transit", hour=4), CANCEL]
    whole, part = told(*steps), told(*steps, sellers=frozenset({raw(BORIS)}))
    assert set(whole) - set(part) == {
        "user_id",
        "region",
        "money",
        "refunds",
        "anomalies",
        "attention",
        "cart_id",
        "checkout_id",
    }
    assert [fact["what"] for fact in part["facts"]] == [
        "the customer ordered 1 unit in 1 line",
        "the customer asked to cancel the order",
        f"all units of seller {BORIS} can't be had",
    ]
    assert reasons(part, "suborder") == [
        ("closed_stock_rejected", ["stock.rejected"], {"ordered": 1} | units(0))
    ]
    assert {each["of"] for each in part["why"]} == {"suborder"}
    assert {each["seller_id"] for each in part["lines"] + part["suborders"]} == {BORIS}
    anna = told(TWO, paid("20.00"), sellers=frozenset({raw(ANNA)}))
    assert reasons(anna, "suborder") == [("status_confirmed", ["order.created"], {"ordered": 2} | units(2))]


# -- as of a time --------------------------------------------------------------------------------------------


def micros(text: str) -> int:
    return times.parse(text, "test")


def test_as_of_a_time() -> None:
    steps = [paid("20.00"), TWO, scan("in_transit", hour=5)]
    document = told(*steps, time=micros(at(4)))
    assert (document["as_of"], document["status"], document["version"]) == (moment(4), "confirmed", 2)
    assert [fact["type"] for fact in document["facts"]] == ["order.created", "order.paid"]


def test_as_of_a_time_before_its_order_facts_wait() -> None:
    steps = [new(line(1), hour=3), paid("20.00")]
    assert reasons(told(*steps, time=micros(at(2))), "order") == [("facts_wait", ["order.paid"], {})]
    nothing = told(*steps, time=micros(at(0)))
    assert (nothing["known"], nothing["version"], nothing["facts"]) == (False, 0, [])


def test_a_fact_is_refused_from_when_its_order_is_there() -> None:
    steps = [new(line(1), hour=3), lambda b: b.pay("5.00", currency="USD")]
    notes = [[fact["note"] for fact in told(*steps, time=micros(at(hour)))["facts"]] for hour in (2, 3)]
    assert notes == [["waits for its order"], ["refused", ""]]


def test_a_decision_is_there_once_those_before_it_are() -> None:
    steps = [
        new(line(1), line(2, BORIS, price="5.00"), line(3, STRANGER)),
        paid("25.00"),
        stock("rejected", ANNA, hour=6),
        lambda b: b.settle(),
        stock("rejected", BORIS, hour=4),
    ]
    numbers = {
        hour: [each["amount"] for each in told(*steps, time=micros(at(hour)))["refunds"]] for hour in (4, 6)
    }
    assert numbers == {4: [], 6: ["10.00", "5.00"]}
