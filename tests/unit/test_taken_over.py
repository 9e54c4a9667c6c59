"""Orders that another system handled until their live_from (docs/rules.md, History of another system)."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from contracts import errors, outgoing, times
from contracts.errors import Refused
from domain import effects, events
from domain.deadlines import pending
from domain.enums import ClosedBecause
from domain.explain import explain
from domain.shapes import DeadlinePolicy
from domain.totals import RunningTotals
from tables import codec
from tests.unit.builders import (
    ANNA,
    BORIS,
    CHECKOUT,
    ORDER,
    STRANGER,
    Data,
    OrderBuilder,
    at,
    created,
    day,
    event,
    line,
    made_id,
    moment,
    payment,
    raw,
    record,
)
from tests.unit.test_promises import DAY, HOUR, POLICY, H, Timed, comes_back

CUT = 6
"""The hour of live_from: what happens before it is history."""
FROM: Data = {"live_from": at(CUT)}
A = line(1, quantity=3)
B = (line(1, shipping_amount="2.00"), line(2, BORIS, price="30.00", shipping_amount="3.00"))
"""The two examples of docs/rules.md."""
COMMANDS = tuple(
    spec.type for spec in outgoing.DERIVED if spec.type not in (*outgoing.NOTICES, "suborder.late")
)
THEIRS = "dddddddd-0000-4000-8000-00000000000d"
"""An id that the other system made."""


def taken(*lines: Data, **more: Any) -> OrderBuilder:
    """An order that another system took in at hour 0, live from hour 6."""
    builder = OrderBuilder()
    builder.create(*(lines or (A,)), **FROM, **more)
    return builder


def commands(builder: OrderBuilder) -> list[str]:
    return [each.type for each in builder.derived if each.type in COMMANDS]


def refunds(builder: OrderBuilder) -> list[tuple[str, str]]:
    return [(each["amount"], each["cause"]) for each in builder.settle().published("refund.request")]


# -- intake --------------------------------------------------------------------------------------------------


def decoded(type_: str, data: Data, appended: int = 0) -> Any:
    headers, value = record(type_, data)
    return events.decode(type_, headers, value, appended).fact


def refusal(data: Data, appended: int = 0, type_: str = "order.created") -> tuple[str, str]:
    with pytest.raises(Refused) as refused:
        decoded(type_, data, appended)
    return refused.value.code, refused.value.detail


T6 = times.parse(at(CUT), "") // 1000
"""Milliseconds of hour 6."""


def test_an_order_says_what_another_system_did() -> None:
    fact = decoded("order.created", created(A, live_from="2026-01-01T07:00:00+01:00", refunded_amount="5"))
    assert (fact.live_from, fact.refunded_amount) == (T6 * 1000, 500)
    plain = decoded("order.created", created(A))
    assert (plain.live_from, plain.refunded_amount) == (None, None)


@pytest.mark.parametrize(
    ("more", "where"),
    [
        ({"live_from": "yesterday"}, "$.live_from"),
        ({"live_from": "2026-01-01"}, "$.live_from"),
        ({"live_from": 6}, "$.live_from"),
        ({"refunded_amount": "1.00"}, "$.refunded_amount: there, though live_from is missing"),
        (FROM | {"refunded_amount": "1.001"}, "$.refunded_amount"),
        (FROM | {"refunded_amount": "-1"}, "$.refunded_amount"),
    ],
)
@pytest.mark.parametrize("type_", ["order.created", "checkout.completed"])
def test_malformed(type_: str, more: Data, where: str) -> None:
    data = {**created(A), "checkout_id": CHECKOUT, **more}
    code, detail = refusal(data, type_=type_)
    assert code == errors.FIELD_MALFORMED
    assert where in detail


def test_live_from_is_not_later_than_kafka_took_the_record() -> None:
    data = created(A, **FROM)
    assert decoded("order.created", data, T6).live_from == T6 * 1000
    within = created(A, live_from=at(CUT).replace("Z", ".000999Z"))
    assert decoded("order.created", within, T6).live_from == T6 * 1000 + 999, "Kafka counts milliseconds"
    assert decoded("order.created", data).live_from == T6 * 1000, "when it was taken isn't known"
    assert refusal(data | {"total_amount": "1.00"}, T6 - 1) == (
        errors.FIELD_MALFORMED,
        "$.live_from: later than Kafka took the record",
    )


def test_a_checkout_carries_them_on() -> None:
    data = {**created(A, **FROM, refunded_amount="0.00"), "checkout_id": CHECKOUT}
    placed = json.loads(effects.encode_data(effects.order_placed(event("checkout.completed", data))))
    assert (placed["live_from"], placed["refunded_amount"]) == (moment(CUT), "0.00")
    plain = {**created(A), "checkout_id": CHECKOUT}
    placed = json.loads(effects.encode_data(effects.order_placed(event("checkout.completed", plain))))
    assert "live_from" not in placed
    assert "refunded_amount" not in placed


@pytest.mark.parametrize(
    "other", [{}, {"live_from": at(7)}, FROM | {"refunded_amount": "0"}], ids=["none", "later", "an amount"]
)
def test_both_are_content(other: Data) -> None:
    builder = taken()
    assert builder.take(event("order.created", created(A, **other))).refused is not None
    assert builder.refused[0][0] == errors.KEY_CONFLICT
    assert not builder.take(event("order.created", created(A, live_from=at(CUT)))).changed


# -- no command ----------------------------------------------------------------------------------------------


def whole_history(builder: OrderBuilder) -> OrderBuilder:
    """Everything that makes commands of a live order."""
    builder.pay("20.00", 1)
    builder.pay("10.00", 2)
    builder.cancel(hour=1)
    builder.stock("reserved", reservation_id=THEIRS)
    builder.scan("in_transit", 1, items={1: 1})
    builder.stock("released", items={1: 1}, reservation_id=THEIRS)
    builder.give_back("processed", 1, quantity=1)
    return builder.settle()


def test_history_causes_no_command() -> None:
    assert commands(whole_history(OrderBuilder())) == []
    builder = whole_history(taken())
    assert commands(builder) == []
    assert builder.status == "shipped"
    live = whole_history(OrderBuilder())
    live.create(A)
    assert set(commands(live.settle())) == {*COMMANDS} - {"shipping.label.create"}, "without live_from"


def test_history_that_waited_causes_no_command() -> None:
    builder = OrderBuilder()
    whole_history(builder)
    builder.create(A, **FROM)
    assert commands(builder.settle()) == []
    assert builder.order.version == taken_version()


def taken_version() -> int:
    return whole_history(taken()).order.version


def test_facts_from_live_from_on_do_what_they_always_do() -> None:
    builder = taken()
    builder.pay("30.00", hour=5)
    builder.scan("in_transit", 1, hour=CUT, items={1: 1})
    builder.cancel(hour=7)
    builder.stock("released", hour=8, items={1: 1})
    builder.give_back("processed", 1, hour=9, quantity=1)
    builder.settle()
    assert commands(builder) == [
        "stock.commit",
        "stock.release",
        "stock.restock",
        "refund.request",
        "refund.request",
    ]
    assert refunds(builder) == [("10.00", "stock"), ("10.00", "return")]


@pytest.mark.parametrize("first", [True, False], ids=["order first", "order last"])
def test_an_order_placed_from_live_from_on_is_live(first: bool) -> None:
    """Only a payment was before."""
    builder = OrderBuilder()
    if first:
        builder.create(A, hour=CUT, **FROM)
    builder.pay("30.00", hour=5)
    if not first:
        builder.create(A, hour=CUT, **FROM)
    builder.stock("reserved", hour=7)
    assert commands(builder) == ["stock.reserve", "payment.initiate", "shipping.label.create"]


def test_the_first_move_of_a_parcel_is_historys() -> None:
    builder = taken()
    builder.scan("in_transit", 1, hour=5)
    builder.scan("delivered", 1, hour=7)
    assert commands(builder) == []
    waiting = OrderBuilder()
    waiting.scan("delivered", 1, hour=7)
    waiting.scan("in_transit", 1, hour=5)
    waiting.create(A, **FROM)
    assert commands(waiting) == []


def test_a_refused_scan_of_history_moved_nothing() -> None:
    for waits in (False, True):
        builder = OrderBuilder() if waits else taken()
        builder.scan("in_transit", 1, seller=STRANGER, hour=5)
        builder.scan("in_transit", 1, hour=7)
        if waits:
            builder.create(A, **FROM)
        assert commands(builder) == ["stock.commit"]


def test_labels_never_leave_with_a_fact_of_history() -> None:
    """A live payment waits in vain for the rest, which comes late; they leave with what comes next."""
    builder = taken()
    builder.pay("10.00", 1, hour=7)
    builder.pay("20.00", 2, hour=5)
    assert (builder.status, commands(builder)) == ("confirmed", [])
    builder.stock("reserved", hour=8)
    assert commands(builder) == ["shipping.label.create"]
    other = OrderBuilder()
    other.pay("30.00", hour=7)
    other.create(A, **FROM)
    assert commands(other) == ["shipping.label.create"], "they were paid for before history was known"


def test_of_repetitions_the_earliest_time_tells_and_what_has_left_stays() -> None:
    builder = taken()
    builder.pay("30.00", hour=5)
    builder.give_back("processed", 1, hour=7, quantity=1)
    assert refunds(builder) == [("10.00", "return")]
    builder.give_back("processed", 1, hour=4, quantity=1)
    assert refunds(builder) == [("10.00", "return")]
    other = taken()
    other.pay("30.00", hour=5)
    other.give_back("processed", 1, hour=4, quantity=1)
    other.give_back("processed", 1, hour=7, quantity=1)
    assert commands(other.settle()) == []


def test_a_repetition_that_makes_a_fact_history_counts_as_if_it_had_come_first() -> None:
    """Totals kept over a batch, too."""
    builder = taken()
    totals = RunningTotals(builder.order)
    for hour in (7, 4):
        paid = {"order_id": ORDER, "payment_id": payment(1), "amount": "30.00", "currency": "EUR"}
        effects_of(builder, event("order.paid", paid, hour), totals)
    history = totals.history
    assert history is not None
    assert (history.captured, history.is_all) == (3000, True)


def effects_of(builder: OrderBuilder, each: Any, totals: RunningTotals) -> None:
    from domain.fold import fold

    fold(builder.order, each, None, totals)


# -- labels --------------------------------------------------------------------------------------------------


def test_labels_when_history_paid_were_the_other_systems() -> None:
    builder = taken()
    builder.pay("30.00", hour=5)
    assert builder.status == "confirmed"
    builder.pay("5.00", 2, hour=7)
    assert builder.published("shipping.label.create") == []


def test_labels_when_a_live_payment_brings_the_rest() -> None:
    builder = taken()
    builder.pay("29.99", hour=5)
    builder.scan("in_transit", 1, hour=7, items={1: 1})
    assert builder.status == "shipped"
    assert builder.published("shipping.label.create") == []
    assert not builder.order.labelled
    other = taken(*B)
    other.pay("44.99", hour=5)
    other.scan("in_transit", 1, hour=7)
    other.pay("0.01", 2, hour=8)
    assert [each["seller_id"] for each in other.published("shipping.label.create")] == [BORIS]


def test_labels_count_what_is_live() -> None:
    builder = taken(*B)
    builder.pay("12.00", hour=4)
    builder.stock("rejected", BORIS, hour=5)
    assert builder.status == "confirmed"
    builder.pay("1.00", 2, hour=7)
    assert builder.published("shipping.label.create") == []


# -- deadlines -----------------------------------------------------------------------------------------------

PATIENCE = DeadlinePolicy(
    payment=1_000,
    stock=100,
    stock_asks=3,
    release=200,
    release_asks=2,
    label=300,
    label_asks=2,
    refund=400,
    refund_asks=2,
    history=60_000,
)


def waits(builder: OrderBuilder) -> set[tuple[str, int]]:
    """(what, ms after the record was appended)"""
    return {
        (each.what.text, each.at - builder.order.appended)
        for each in pending(builder.order, raw(ORDER), PATIENCE)
    }


def appended(type_: str, data: Data, hour: int, after_ms: int) -> Any:
    """An event of an hour that is appended long after hour 6."""
    return msgspec.structs.replace(event(type_, data, hour), appended=T6 + 10**9 + after_ms)


def test_history_waits_for_money_alone_however_old_it_is() -> None:
    builder = OrderBuilder()
    builder.take(appended("order.created", created(A, **FROM), 0, 0))
    assert waits(builder) == {("payment", 1_000)}
    plain = OrderBuilder()
    plain.take(appended("order.created", created(A), 0, 0))
    assert waits(plain) == set(), "without live_from ORDERS_HISTORY_AGE holds"
    live = OrderBuilder()
    live.take(appended("order.created", created(A, **FROM), CUT, 0))
    assert waits(live) == {("payment", 1_000), ("stock", 100)}


def test_a_label_is_waited_for_once_we_asked_for_it() -> None:
    builder = OrderBuilder()
    builder.take(appended("order.created", created(A, **FROM), 0, 0))
    paid = {"order_id": ORDER, "payment_id": payment(1), "amount": "30.00", "currency": "EUR"}
    builder.take(appended("order.paid", paid, 7, 50))
    assert waits(builder) == {("label", 350)}
    theirs = OrderBuilder()
    theirs.take(appended("order.created", created(A, **FROM), 0, 0))
    theirs.take(appended("order.paid", paid, 5, 50))
    assert waits(theirs) == set()


def test_a_cancellation_of_history_is_waited_for_so_that_the_order_ends() -> None:
    builder = OrderBuilder()
    builder.take(appended("order.created", created(A, **FROM), 0, 0))
    builder.take(appended("order.cancel_requested", {"order_id": ORDER, "reason": "no"}, 5, 20))
    assert waits(builder) == {("release", 220)}
    assert commands(builder) == []


def watched(**settings: int) -> Timed:
    """An order of history that was paid there, appended ten days later."""
    builder = Timed(msgspec.structs.replace(POLICY, **settings))
    builder.clock = 10 * DAY
    builder.create(line(1, quantity=2), **FROM)
    builder.clock += HOUR
    builder.pay("20.00", hour=2)
    return builder


def test_whether_an_order_of_history_ships_is_watched() -> None:
    builder = watched(label=DAY)
    builder.stock("reserved", hour=3)
    assert builder.waits() == {(17 + H, "ship", "anna")}, "no label, which the other system has had"
    assert commands(builder) == []
    builder.let_pass("ship")
    (late,) = builder.published("suborder.late")
    assert (late["what"], late["units"]) == ("ship", 2)
    last = [("order.status_changed", True), ("order.attention", False)]
    assert marks(builder)[-2:] == last, "suborder.late is none of history, nor what follows from it"
    assert builder.anomalies == ["late_to_ship"]
    builder.scan("in_transit", hour=5)
    assert builder.anomalies == []


def test_what_is_never_shipped_of_history_is_asked_back() -> None:
    builder = watched()
    builder.let_pass("ship")
    builder.let_pass("unshipped")
    assert commands(builder) == ["stock.release"]
    builder.stock("released", hour=7)
    assert builder.now.suborders[0].because is ClosedBecause.NOT_SHIPPED
    assert refunds(builder) == [("20.00", "closed")]


def test_promises_of_history_count() -> None:
    builder = watched()
    builder.promise(hour=3, ship_by=8, deliver_by=9)
    assert builder.waits() == {(10 + H, "ship", "anna")}
    assert builder.now.suborders[0].ship_by == times.parse(at(8), "")
    builder.send("promise.updated", 7, seller_id=ANNA, ship_by=day(21))
    assert builder.waits() == {(20, "ship", "anna")}
    assert commands(builder) == []


def test_what_left_in_history_is_waited_for_until_it_is_delivered() -> None:
    builder = watched()
    builder.scan("in_transit", hour=3)
    assert builder.waits() == {(40 + H, "deliver", "anna")}
    builder.let_pass("deliver")
    assert len(builder.published("suborder.late")) == 1
    assert commands(builder) == []
    assert builder.anomalies == ["late_to_deliver"]


def test_a_return_of_history_that_nobody_judges_is_overdue() -> None:
    builder = watched()
    builder.scan("delivered", hour=3)
    builder.give_back("requested", hour=4)
    assert builder.waits() == {(24 + H, "return", "return")}
    builder.let_pass("return")
    assert builder.anomalies == ["return_overdue"]
    assert commands(builder) == []


def test_a_refund_that_failed_in_history_is_not_asked_for_again() -> None:
    """By a clock that is behind it happened before live_from: it is no answer to what we asked for."""
    builder = watched(refund=DAY, refund_asks=2)
    builder.scan("delivered", hour=3)
    builder.give_back("processed", hour=7, quantity=1)
    builder.settle()
    builder.send("refund.failed", 5, refund_id=made_id("refund:0"))
    assert {what for _, what, _ in builder.waits()} == {"refund"}
    assert builder.anomalies == []
    builder.let_pass("refund")
    builder.let_pass("refund")
    assert builder.anomalies == ["refund_unconfirmed"]
    builder.send("refund.failed", 7, refund_id=made_id("refund:0"), attempt=2)
    assert builder.anomalies == ["refund_failed"]
    builder.send("refund.completed", 5, refund_id=made_id("refund:0"))
    assert builder.anomalies == []
    assert builder.waits() == set()


def test_a_deadline_that_waited_for_an_order_of_history_counts() -> None:
    """It is none of history, nor does it make a notice of what history did one of what is so now."""
    later = watched()
    due = later.let_pass("ship")
    builder = Timed()
    builder.take(comes_back(due))
    builder.pay("20.00", hour=2)
    builder.create(line(1, quantity=2), **FROM)
    assert len(builder.published("suborder.late")) == 1
    assert commands(builder) == []
    assert {history for _, history in marks(builder)} == {True}


# -- what the other system paid back -------------------------------------------------------------------------


def before(builder: OrderBuilder) -> str:
    paid: str = explain(raw(ORDER), builder.order)["money"]["refunded_before"]
    return paid


@pytest.mark.parametrize(
    ("captured", "paid_back"),
    [("30.00", "10.00"), ("20.00", "0.00"), ("24.00", "4.00"), ("31.00", "10.00"), ("5.00", "0.00")],
)
def test_what_was_paid_back_is_computed(captured: str, paid_back: str) -> None:
    """One unit of order A came back: what was captured above 20.00 went back, at most its 10.00."""
    builder = taken()
    builder.pay(captured, hour=2)
    builder.give_back("processed", 1, hour=4, quantity=1)
    assert before(builder) == paid_back
    assert commands(builder.settle()) == []


def test_what_was_paid_back_is_told() -> None:
    builder = taken(refunded_amount="7.50")
    builder.pay("30.00", hour=2)
    builder.give_back("processed", 1, hour=4, quantity=1)
    assert before(builder) == "7.50"
    assert commands(builder.settle()) == []
    assert before(plain_order()) == "0.00"


def plain_order() -> OrderBuilder:
    builder = OrderBuilder()
    builder.create(A)
    return builder


def test_a_line_that_is_gone_as_a_whole_had_its_shipping_paid_back() -> None:
    builder = taken(*B)
    builder.pay("45.00", hour=2)
    builder.stock("rejected", BORIS, hour=3)
    assert before(builder) == "33.00"
    builder.give_back("processed", 1, hour=7)
    assert refunds(builder) == [("10.00", "return")]


def test_units_of_history_are_paid_for() -> None:
    """A discount of 5.00: units cost 8.33, 8.33 and 8.34. History has given back unit 0; ours is unit 1."""
    builder = taken(A, discount="5.00")
    builder.pay("25.00", hour=2)
    builder.give_back("processed", 1, hour=4, quantity=1)
    builder.give_back("processed", 2, hour=7, quantity=1)
    assert refunds(builder) == [("8.33", "return")]
    assert [each.units for each in builder.order.decisions] == [[(raw(line(1)["item_id"]), 1, 1)]]
    assert builder.anomalies == []
    builder.give_back("processed", 3, hour=8, quantity=2)
    assert refunds(builder)[1:] == [("8.34", "return")]


def test_gone_units_of_history_are_the_lowest_not_live() -> None:
    builder = taken(A, discount="5.00")
    builder.pay("25.00", hour=2)
    builder.stock("released", hour=4, items={1: 1})
    assert before(builder) == "8.34"
    builder.stock("rejected", hour=7, items={1: 1})
    assert refunds(builder) == [("8.34", "stock")]
    assert [each.units for each in builder.order.decisions] == [[(raw(line(1)["item_id"]), 2, 1)]]
    assert before(builder) == "8.33"


def test_gone_units_of_history_that_left_after_all_are_the_highest_live() -> None:
    """Two were released, and all three were delivered: units 2 and 1 count as paid for."""
    builder = taken(A, discount="5.00")
    builder.pay("25.00", hour=2)
    builder.stock("released", hour=3, items={1: 2})
    builder.scan("delivered", 1, hour=7)
    assert before(builder) == "16.67"
    builder.give_back("processed", 1, hour=8)
    assert refunds(builder) == [("8.33", "return")]
    assert [each.units for each in builder.order.decisions] == [[(raw(line(1)["item_id"]), 0, 1)]]


def test_every_refund_stays_within_what_is_left() -> None:
    builder = taken(refunded_amount="15.00")
    builder.pay("24.00", hour=2)
    builder.give_back("processed", 1, hour=7, quantity=1)
    assert refunds(builder) == []
    assert builder.anomalies == ["refund_uncovered"]
    builder.pay("1.00", 2, hour=8)
    assert refunds(builder) == [("10.00", "return")]
    assert builder.anomalies == []


def test_a_refund_is_what_is_left_where_nothing_else_keeps_it_from_being_covered() -> None:
    """It pays for its units all the same; and goes back to the payment that the other system left."""
    builder = taken(refunded_amount="25.00")
    builder.pay("20.00", hour=2)
    builder.pay("10.00", 2, hour=3)
    builder.give_back("processed", 1, hour=7, quantity=1)
    (asked,) = builder.settle().published("refund.request")
    assert (asked["amount"], asked["lines"][0]["amount"]) == ("5.00", "10.00")
    assert asked["allocations"] == [{"payment_id": payment(2), "amount": "5.00"}]
    builder.give_back("processed", 2, hour=8, quantity=1)
    assert refunds(builder) == [("5.00", "return")]
    assert builder.anomalies == []


def test_what_was_paid_back_before_takes_of_the_first_payments() -> None:
    """The other system's refunds, and a decision of ours that says no payments."""
    builder = taken(refunded_amount="8.00")
    builder.pay("10.00", hour=2)
    builder.pay("20.00", 2, hour=3)
    builder.take(
        event(
            "refund.decided",
            {"n": 0, "amount": 700, "cause": "return", "cause_id": THEIRS, "units": [], "shipping": []}
            | {"order_id": ORDER},
        )
    )
    builder.give_back("processed", 1, hour=7, quantity=1)
    asked = builder.settle().published("refund.request")[-1]
    assert asked["allocations"] == [{"payment_id": payment(2), "amount": "10.00"}]
    builder.give_back("processed", 2, hour=8, quantity=1)
    asked = builder.settle().published("refund.request")[-1]
    assert (asked["amount"], asked["allocations"]) == ("5.00", [{"payment_id": payment(2), "amount": "5.00"}])


def test_grants_of_history_were_the_other_systems() -> None:
    builder = taken(refunded_amount="2.00")
    builder.pay("30.00", hour=2)
    granted = {"amount": "2.00", "currency": "EUR", "reason": "late"}
    builder.send("refund.granted", 5, grant_id=THEIRS, **granted)
    assert refunds(builder) == []
    builder.send("refund.granted", 7, grant_id=STRANGER, **granted)
    assert refunds(builder) == [("2.00", "grant")]
    builder.stock("rejected", hour=8)
    assert refunds(builder)[1:] == [("26.00", "closed")]


def test_a_decision_of_ours_paid_for_it_before_history_came() -> None:
    builder = taken()
    builder.pay("30.00", hour=7)
    builder.give_back("processed", 1, hour=8, quantity=3)
    assert refunds(builder) == [("30.00", "return")]
    builder.give_back("processed", 2, hour=4, quantity=1)
    assert before(builder) == "0.00"
    assert refunds(builder) == [("30.00", "return")]


# -- an order without a live unit ----------------------------------------------------------------------------


def test_an_order_that_history_closed_is_owed_nothing() -> None:
    builder = taken()
    builder.pay("30.00", hour=2)
    builder.stock("released", hour=4)
    assert refunds(builder) == []
    partly = taken(refunded_amount="10.00")
    partly.pay("30.00", hour=2)
    partly.stock("released", hour=4)
    assert refunds(partly) == []


def test_a_live_payment_for_an_order_that_history_closed_goes_back() -> None:
    builder = taken()
    builder.pay("30.00", hour=2)
    builder.stock("released", hour=4)
    builder.pay("12.00", 2, hour=7)
    assert refunds(builder) == [("12.00", "closed")]


def test_units_gone_since_close_the_order() -> None:
    builder = taken(refunded_amount="8.00")
    builder.pay("30.00", hour=2)
    builder.stock("released", hour=4, items={1: 1})
    builder.stock("released", hour=7, items={1: 2})
    assert refunds(builder) == [("22.00", "closed")]


def test_a_stock_deadline_closes_the_order() -> None:
    builder = taken(refunded_amount="8.00")
    builder.pay("30.00", hour=2)
    builder.send("deadline.passed", 1, deadline="stock", attempt=3, final=True, seller_id=ANNA)
    assert refunds(builder) == [("22.00", "closed")]


def test_the_tax_of_a_closed_refund_is_of_what_nobody_paid_for() -> None:
    taxed = line(1, quantity=2, taxes=[{"code": "VAT", "amount": "4.00"}])
    builder = taken(taxed, prices_include_tax=False)
    builder.pay("24.00", hour=2)
    builder.stock("released", hour=4, items={1: 1})
    builder.stock("rejected", hour=7, items={1: 1})
    (asked,) = builder.settle().published("refund.request")
    assert (asked["amount"], asked["tax_amount"]) == ("12.00", "2.00")


# -- anomalies, notices, what is told ------------------------------------------------------------------------


def test_replies_of_history_are_no_anomalies() -> None:
    builder = taken()
    builder.pay("30.00", hour=5)
    builder.stock("reserved", reservation_id=THEIRS, hour=5)
    builder.send("refund.failed", 5, refund_id=STRANGER)
    builder.send("refund.completed", 5, refund_id=STRANGER)
    assert builder.anomalies == []
    builder.stock("released", reservation_id=THEIRS, hour=7, items={1: 1})
    builder.send("refund.completed", 7, refund_id=THEIRS)
    assert sorted(builder.anomalies) == ["refund_unknown", "reservation_unknown"]


def test_more_paid_back_than_history_captured() -> None:
    builder = taken(refunded_amount="10.00")
    builder.pay("30.00", hour=7)
    assert builder.anomalies == ["refunded_above_history"]
    builder.pay("10.00", 2, hour=5)
    assert "refunded_above_history" not in builder.anomalies


def marks(builder: OrderBuilder, start: int = 0) -> list[tuple[str, bool]]:
    """Of each notice, whether it says that it is history."""
    notices = []
    for each in builder.derived[start:]:
        headers = effects.attributes(each, raw(ORDER), [])
        assert each.type in outgoing.NOTICES or ("ce_history", b"true") not in headers
        if each.type in outgoing.NOTICES:
            notices.append((each.type, ("ce_history", b"true") in headers))
    return notices


def test_notices_of_history_say_so() -> None:
    builder = taken()
    builder.pay("30.00", hour=5)
    assert marks(builder) == [
        ("suborder.created", True),
        ("suborder.updated", True),
        ("order.status_changed", True),
    ]
    count = len(builder.derived)
    builder.scan("in_transit", hour=7)
    assert marks(builder, count) == [("suborder.updated", False), ("order.status_changed", False)]


@pytest.mark.parametrize(
    ("hour", "refused", "history"),
    [(5, False, True), (7, False, False), (7, True, True)],
    ids=["history waited", "a live fact waited", "a refused one waited"],
)
def test_notices_of_an_order_for_which_live_facts_waited(hour: int, refused: bool, history: bool) -> None:
    builder = OrderBuilder()
    builder.pay("30.00", hour=hour, currency="USD" if refused else "EUR")
    builder.create(A, **FROM)
    assert {each for _, each in marks(builder)} == {history}


def test_a_plain_orders_notices_have_no_such_attribute() -> None:
    builder = OrderBuilder()
    builder.create(A)
    builder.pay("30.00")
    assert {each for _, each in marks(builder)} == {False}


def test_what_is_told_of_it() -> None:
    builder = taken(refunded_amount="10.00")
    builder.pay("30.00", hour=5)
    builder.give_back("processed", 1, hour=5, quantity=1)
    builder.scan("in_transit", hour=7)
    document = explain(raw(ORDER), builder.order)
    assert document["live_from"] == moment(CUT)
    assert [fact["note"] for fact in document["facts"]] == ["history of another system"] * 3 + [""]
    (rule,) = [each for each in document["why"] if each["rule"] == "taken_over"]
    assert (rule["facts"], rule["numbers"]) == ([1, 2, 3], {"captured": "30.00", "refunded": "10.00"})
    above = taken(refunded_amount="10.00")
    above.pay("5.00", hour=5)
    (rule,) = [each for each in explain(raw(ORDER), above.order)["why"] if each["of"] == "anomaly"]
    assert (rule["rule"], rule["facts"]) == ("refunded_above_history", [1, 2])
    assert rule["numbers"] == {"refunded": "10.00", "captured": "5.00"}


def test_a_state_keeps_it() -> None:
    builder = taken(refunded_amount="1.00")
    order = codec.decode(codec.encode(builder.order))
    assert order.created is not None
    assert (order.created.live_from, order.created.refunded_amount) == (T6 * 1000, 100)
