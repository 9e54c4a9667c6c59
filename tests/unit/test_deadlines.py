"""Deadlines: what is waited for and until when, and what follows when an answer doesn't come."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from domain import effects, events
from domain.deadlines import DeadlinePolicy, Due, next_due, pending
from domain.enums import DeadlineKind
from domain.events import Event
from tests.unit.wire import ANNA, BORIS, ORDER, Story, created, event, line, made, raw

T0 = 1_767_225_600_000
"""When the order's events happened and were appended, ms: hour 0 of tests.unit.wire."""
PATIENCE = DeadlinePolicy(
    payment=1_000, stock=100, stock_asks=3, release=200, release_asks=2, label=300, label_asks=2, refund=400, refund_asks=2, history=60_000
)


class Timed(Story):
    """A story whose records are appended at T0 + `clock` ms."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0

    def take(self, event: Event, offset: int | None = None) -> Any:
        return super().take(msgspec.structs.replace(event, appended=T0 + self.clock), offset)

    def waits(self) -> set[tuple[int, str, str | None, int, bool]]:
        """(ms after T0, what, whose, attempt, final)"""
        names = {None: None, raw(ANNA): "anna", raw(BORIS): "boris", raw(made("refund:0")): "refund:0"}
        return {(d.at - T0, d.what.text, names[d.subject], d.attempt, d.final) for d in pending(self.order, raw(ORDER), PATIENCE)}

    def let_pass(self, what: DeadlineKind) -> None:
        """The clock reaches the next deadline of this kind: its record is written, and comes back."""
        due = min(d for d in pending(self.order, raw(ORDER), PATIENCE) if d.what is what)
        self.clock = due.at - T0
        self.take(comes_back(due))


def comes_back(due: Due) -> Event:
    value, headers = effects.deadline_passed(due, raw(ORDER))
    return events.decode("orders.decisions", headers, value)


def ordered(**more: Any) -> Timed:
    told = Timed()
    told.create(line(1), line(2, BORIS, quantity=2, price="5.00"), **more)
    return told


def test_a_new_order_waits_for_its_money_and_each_sellers_stock() -> None:
    told = ordered()
    assert told.waits() == {(1_000, "payment", None, 1, True), (100, "stock", "anna", 1, False), (100, "stock", "boris", 1, False)}
    assert next_due(told.order, raw(ORDER), PATIENCE) == T0 + 100


@pytest.mark.parametrize("reply", ["reserved", "rejected", "released"])
def test_any_answer_about_the_stock_ends_the_wait_for_it(reply: str) -> None:
    told = ordered()
    told.stock(reply)
    assert not [each for each in told.waits() if each[1] == "stock" and each[2] == "anna"]


def test_captured_money_ends_the_wait_for_it_and_begins_that_for_scans() -> None:
    told = ordered()
    told.pay("19.99")
    assert (1_000, "payment", None, 1, True) in told.waits()
    told.clock = 50
    told.pay("0.01", n=2)
    assert told.waits() == {
        (100, "stock", "anna", 1, False),
        (100, "stock", "boris", 1, False),
        (350, "label", "anna", 1, False),
        (350, "label", "boris", 1, False),
    }
    told.scan("pending", seller=ANNA)
    assert {each[2] for each in told.waits()} == {"boris"}


def test_history_waits_for_nothing() -> None:
    told = Timed()
    told.clock = 60_001
    told.create()
    assert told.waits() == set()
    assert next_due(told.order, raw(ORDER), PATIENCE) == 0


def test_a_record_without_a_brokers_time_waits_for_nothing() -> None:
    told = Story()
    told.create()
    assert pending(told.order, raw(ORDER), PATIENCE) == []


def test_a_wait_of_0_is_none() -> None:
    told = ordered()
    assert pending(told.order, raw(ORDER), DeadlinePolicy(0, 0, 3, 0, 3, 0, 3, 0, 3, 60_000)) == []


def test_stock_is_asked_for_again_under_the_same_id_and_at_last_counts_as_rejected() -> None:
    told = ordered()
    first = told.published("stock.reserve")
    told.let_pass(DeadlineKind.STOCK)
    assert told.waits() == {(1_000, "payment", None, 1, True), (200, "stock", "anna", 2, False), (100, "stock", "boris", 1, False)}
    told.stock("reserved", BORIS)
    told.let_pass(DeadlineKind.STOCK)
    assert told.published("stock.reserve") == [*first, first[0], first[0]]
    told.let_pass(DeadlineKind.STOCK)
    assert told.published("stock.reserve") == [*first, first[0], first[0]]
    assert told.waits() == {(1_000, "payment", None, 1, True)}
    closed = told.published("suborder.updated")[-1]
    assert (closed["seller_id"], closed["status"], closed["closed_because"]) == (ANNA, "closed", "stock_unanswered")
    assert told.order.version == 5  # created, stock.reserved, three deadlines


def test_money_for_stock_that_nobody_answered_goes_back() -> None:
    told = ordered()
    told.pay("20.00")
    told.take(comes_back(Due(T0, DeadlineKind.STOCK, raw(ANNA), 3, True)))
    told.decide()
    (asked,) = told.published("refund.request")
    assert (asked["cause"], asked["cause_id"], asked["amount"]) == ("stock", ANNA, "10.00")


def test_a_late_reservation_is_released() -> None:
    told = ordered()
    for attempt in (1, 2, 3):
        told.take(comes_back(Due(T0, DeadlineKind.STOCK, raw(ANNA), attempt, attempt == 3)))
    told.stock("reserved", ANNA)
    (asked,) = told.published("stock.release")
    assert (asked["reservation_id"], [each["quantity"] for each in asked["items"]]) == (made(f"reservation:{ANNA}"), [1])


def test_a_reservation_read_before_its_last_deadline_is_released_too() -> None:
    told = ordered()
    told.stock("reserved", ANNA)
    told.take(comes_back(Due(T0, DeadlineKind.STOCK, raw(ANNA), 3, True)))
    assert [each["seller_id"] for each in told.published("stock.release")] == [ANNA]


def test_an_unpaid_order_asks_its_stock_back_and_closes() -> None:
    told = ordered()
    told.stock("reserved", ANNA)
    told.stock("reserved", BORIS)
    told.let_pass(DeadlineKind.PAYMENT)
    assert [each["seller_id"] for each in told.published("stock.release")] == [ANNA, BORIS]
    assert told.waits() == {(1_200, "release", "anna", 1, False), (1_200, "release", "boris", 1, False)}
    told.stock("released", ANNA)
    told.let_pass(DeadlineKind.RELEASE)
    assert [each["seller_id"] for each in told.published("stock.release")] == [ANNA, BORIS, BORIS]
    told.stock("released", BORIS)
    assert {each["closed_because"] for each in told.published("suborder.updated") if each["status"] == "closed"} == {"payment_overdue"}
    assert told.waits() == set()
    assert told.anomalies == []


def test_money_that_comes_after_the_deadline_goes_back() -> None:
    told = ordered()
    told.let_pass(DeadlineKind.PAYMENT)
    told.stock("released", ANNA)
    told.stock("released", BORIS)
    told.pay("20.00")
    told.settle()
    assert [(each["amount"], each["cause"]) for each in told.published("refund.request")] == [("20.00", "closed")]
    told.clock = 2_000
    assert told.waits() == {(1_400, "refund", "refund:0", 1, False)}


def test_a_stock_never_given_back_is_an_anomaly() -> None:
    told = ordered()
    told.stock("reserved", ANNA)
    told.stock("reserved", BORIS)
    told.pay("20.00")
    told.cancel(ANNA)
    told.let_pass(DeadlineKind.RELEASE)
    told.let_pass(DeadlineKind.RELEASE)
    assert told.anomalies == ["release_unanswered"]
    assert len(told.published("stock.release")) == 2
    told.stock("released", ANNA)
    assert told.anomalies == []


def test_a_label_is_asked_for_again_for_this_seller_alone() -> None:
    told = ordered()
    told.stock("reserved", ANNA)
    told.stock("reserved", BORIS)
    told.pay("20.00")
    asked = told.published("shipping.label.create")
    told.scan("in_transit", seller=BORIS)
    told.let_pass(DeadlineKind.LABEL)
    assert told.published("shipping.label.create") == [*asked, asked[0]]
    told.let_pass(DeadlineKind.LABEL)
    assert len(told.published("shipping.label.create")) == 3
    assert told.anomalies == ["label_unscanned"]
    assert told.waits() == set()
    told.scan("in_transit", n=2, seller=ANNA)
    assert told.anomalies == []


def test_a_refund_is_asked_for_again_and_then_reported() -> None:
    told = Timed()
    told.create()
    told.pay("10.00")
    told.stock("rejected")
    told.settle()
    told.let_pass(DeadlineKind.REFUND)
    assert told.published("refund.request")[0] == told.published("refund.request")[1]
    told.let_pass(DeadlineKind.REFUND)
    assert len(told.published("refund.request")) == 2
    assert told.anomalies == ["refund_unconfirmed"]
    told.tell("refund.completed", refund_id=made("refund:0"))
    assert told.anomalies == []


@pytest.mark.parametrize("verb", ["completed", "failed"])
def test_an_answered_refund_is_not_waited_for(verb: str) -> None:
    told = Timed()
    told.create()
    told.pay("10.00")
    told.stock("rejected")
    told.settle()
    assert [each[1] for each in told.waits()] == ["refund"]
    told.tell(f"refund.{verb}", refund_id=made("refund:0"))
    assert told.waits() == set()


def test_a_deadline_counts_once() -> None:
    told = ordered()
    told.let_pass(DeadlineKind.STOCK)
    before = told.order.version
    told.take(comes_back(Due(T0 + 100, DeadlineKind.STOCK, raw(ANNA), 1, False)))
    assert told.order.version == before
    assert len(told.published("stock.reserve")) == 3


def test_a_deadline_read_before_its_order_waits_for_it() -> None:
    told = Timed()
    told.take(comes_back(Due(T0, DeadlineKind.STOCK, raw(ANNA), 1, True)))
    told.take(event("order.created", created(line(1), line(2, BORIS))))
    assert [suborder.live for suborder in told.now.suborders] == [0, 1]


def test_a_delivered_order_waits_for_nothing() -> None:
    told = Timed()
    told.create()
    told.stock("reserved")
    told.pay("10.00")
    told.scan("in_transit")
    told.scan("delivered", hour=3)
    assert told.waits() == set()
