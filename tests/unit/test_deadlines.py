"""Deadlines: what is waited for and until when, and what follows when an answer doesn't come."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from domain import effects, events
from domain.deadlines import next_due, pending
from domain.enums import DeadlineKind
from domain.shapes import DeadlinePolicy, Due, Event
from tests.unit.builders import ANNA, BORIS, ORDER, OrderBuilder, created, event, line, made_id, raw

T0 = 1_767_225_600_000
"""When the order's events happened and were appended, ms: hour 0 of tests.unit.builders."""
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


class Timed(OrderBuilder):
    """An order whose records are appended at T0 + `clock` ms."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = 0

    def take(self, event: Event, offset: int | None = None) -> Any:
        return super().take(msgspec.structs.replace(event, appended=T0 + self.clock), offset)

    def waits(self) -> set[tuple[int, str, str | None, int, bool]]:
        """(ms after T0, what, whose, attempt, final)"""
        names = {None: None, raw(ANNA): "anna", raw(BORIS): "boris", raw(made_id("refund:0")): "refund:0"}
        return {
            (d.at - T0, d.what.text, names[d.subject], d.attempt, d.final)
            for d in pending(self.order, raw(ORDER), PATIENCE)
        }

    def let_pass(self, what: DeadlineKind) -> None:
        """The clock reaches the next deadline of this kind: its record is written, and comes back."""
        here = [d for d in pending(self.order, raw(ORDER), PATIENCE) if d.what is what]
        due = min(here, key=lambda d: (d.at, d.subject or b""))
        self.clock = due.at - T0
        self.take(comes_back(due))


def comes_back(due: Due) -> Event:
    value, headers = effects.deadline_passed(due, raw(ORDER))
    return events.decode("orders.decisions", headers, value)


def ordered(**more: Any) -> Timed:
    builder = Timed()
    builder.create(line(1), line(2, BORIS, quantity=2, price="5.00"), **more)
    return builder


def test_a_new_order_waits_for_its_money_and_each_sellers_stock() -> None:
    builder = ordered()
    assert builder.waits() == {
        (1_000, "payment", None, 1, True),
        (100, "stock", "anna", 1, False),
        (100, "stock", "boris", 1, False),
    }
    assert next_due(builder.order, raw(ORDER), PATIENCE) == T0 + 100


@pytest.mark.parametrize("reply", ["reserved", "rejected", "released"])
def test_any_answer_about_the_stock_ends_the_wait_for_it(reply: str) -> None:
    builder = ordered()
    builder.stock(reply)
    assert not [each for each in builder.waits() if each[1] == "stock" and each[2] == "anna"]


def test_captured_money_ends_the_wait_for_it_and_begins_that_for_scans() -> None:
    builder = ordered()
    builder.pay("19.99")
    assert (1_000, "payment", None, 1, True) in builder.waits()
    builder.clock = 50
    builder.pay("0.01", n=2)
    assert builder.waits() == {
        (100, "stock", "anna", 1, False),
        (100, "stock", "boris", 1, False),
        (350, "label", "anna", 1, False),
        (350, "label", "boris", 1, False),
    }
    builder.scan("pending", seller=ANNA)
    assert {each[1:3] for each in builder.waits()} == {
        ("label", "anna"),
        ("stock", "boris"),
        ("label", "boris"),
    }
    builder.scan("in_transit", seller=ANNA)
    assert {each[2] for each in builder.waits()} == {"boris"}


def test_history_waits_for_nothing() -> None:
    builder = Timed()
    builder.clock = 60_001
    builder.create()
    assert builder.waits() == set()
    assert next_due(builder.order, raw(ORDER), PATIENCE) == 0


def test_a_record_without_a_brokers_time_waits_for_nothing() -> None:
    builder = OrderBuilder()
    builder.create()
    assert pending(builder.order, raw(ORDER), PATIENCE) == []


def test_a_wait_of_0_is_none() -> None:
    builder = ordered()
    assert pending(builder.order, raw(ORDER), DeadlinePolicy(0, 0, 3, 0, 3, 0, 3, 0, 3, 60_000)) == []


def test_stock_is_asked_for_again_under_the_same_id_and_at_last_counts_as_rejected() -> None:
    builder = ordered()
    first = builder.published("stock.reserve")
    builder.let_pass(DeadlineKind.STOCK)
    assert builder.waits() == {
        (1_000, "payment", None, 1, True),
        (200, "stock", "anna", 2, False),
        (100, "stock", "boris", 1, False),
    }
    builder.stock("reserved", BORIS)
    builder.let_pass(DeadlineKind.STOCK)
    assert builder.published("stock.reserve") == [*first, first[0], first[0]]
    builder.let_pass(DeadlineKind.STOCK)
    assert builder.published("stock.reserve") == [*first, first[0], first[0]]
    assert builder.waits() == {(1_000, "payment", None, 1, True)}
    closed = builder.published("suborder.updated")[-1]
    assert (closed["seller_id"], closed["status"], closed["closed_because"]) == (
        ANNA,
        "closed",
        "stock_unanswered",
    )
    assert builder.order.version == 5  # created, stock.reserved, three deadlines


def test_money_for_stock_that_nobody_answered_goes_back() -> None:
    builder = ordered()
    builder.pay("20.00")
    builder.take(comes_back(Due(T0, DeadlineKind.STOCK, raw(ANNA), 3, True)))
    builder.decide()
    (asked,) = builder.published("refund.request")
    assert (asked["cause"], asked["cause_id"], asked["amount"]) == ("stock", ANNA, "10.00")


def test_a_late_reservation_is_released() -> None:
    builder = ordered()
    for attempt in (1, 2, 3):
        builder.take(comes_back(Due(T0, DeadlineKind.STOCK, raw(ANNA), attempt, attempt == 3)))
    builder.stock("reserved", ANNA)
    (asked,) = builder.published("stock.release")
    assert (asked["reservation_id"], [each["quantity"] for each in asked["items"]]) == (
        made_id(f"reservation:{ANNA}"),
        [1],
    )


def test_a_reservation_read_before_its_last_deadline_is_released_too() -> None:
    builder = ordered()
    builder.stock("reserved", ANNA)
    builder.take(comes_back(Due(T0, DeadlineKind.STOCK, raw(ANNA), 3, True)))
    assert [each["seller_id"] for each in builder.published("stock.release")] == [ANNA]


def test_an_unpaid_order_asks_its_stock_back_and_closes() -> None:
    builder = ordered()
    builder.stock("reserved", ANNA)
    builder.stock("reserved", BORIS)
    builder.let_pass(DeadlineKind.PAYMENT)
    assert [each["seller_id"] for each in builder.published("stock.release")] == [ANNA, BORIS]
    assert builder.waits() == {(1_200, "release", "anna", 1, False), (1_200, "release", "boris", 1, False)}
    builder.stock("released", ANNA)
    builder.let_pass(DeadlineKind.RELEASE)
    assert [each["seller_id"] for each in builder.published("stock.release")] == [ANNA, BORIS, BORIS]
    builder.stock("released", BORIS)
    assert {
        each["closed_because"] for each in builder.published("suborder.updated") if each["status"] == "closed"
    } == {"payment_overdue"}
    assert builder.waits() == set()
    assert builder.anomalies == []


def test_money_that_comes_after_the_deadline_goes_back() -> None:
    builder = ordered()
    builder.let_pass(DeadlineKind.PAYMENT)
    builder.stock("released", ANNA)
    builder.stock("released", BORIS)
    builder.pay("20.00")
    builder.settle()
    assert [(each["amount"], each["cause"]) for each in builder.published("refund.request")] == [
        ("20.00", "closed")
    ]
    builder.clock = 2_000
    assert builder.waits() == {(1_400, "refund", "refund:0", 1, False)}


def test_a_stock_never_given_back_is_an_anomaly() -> None:
    builder = ordered()
    builder.stock("reserved", ANNA)
    builder.stock("reserved", BORIS)
    builder.pay("20.00")
    builder.cancel(ANNA)
    builder.let_pass(DeadlineKind.RELEASE)
    builder.let_pass(DeadlineKind.RELEASE)
    assert builder.anomalies == ["release_unanswered"]
    assert len(builder.published("stock.release")) == 2
    builder.stock("released", ANNA)
    assert builder.anomalies == []


def test_a_label_is_asked_for_again_for_this_seller_alone() -> None:
    builder = ordered()
    builder.stock("reserved", ANNA)
    builder.stock("reserved", BORIS)
    builder.pay("20.00")
    asked = builder.published("shipping.label.create")
    builder.scan("in_transit", seller=BORIS)
    builder.let_pass(DeadlineKind.LABEL)
    assert builder.published("shipping.label.create") == [*asked, asked[0]]
    builder.let_pass(DeadlineKind.LABEL)
    assert len(builder.published("shipping.label.create")) == 3
    assert builder.anomalies == ["label_unscanned"]
    assert builder.waits() == set()
    builder.scan("in_transit", n=2, seller=ANNA)
    assert builder.anomalies == []


def test_a_refund_is_asked_for_again_and_then_reported() -> None:
    builder = Timed()
    builder.create()
    builder.pay("10.00")
    builder.stock("rejected")
    builder.settle()
    builder.let_pass(DeadlineKind.REFUND)
    assert builder.published("refund.request")[0] == builder.published("refund.request")[1]
    builder.let_pass(DeadlineKind.REFUND)
    assert len(builder.published("refund.request")) == 2
    assert builder.anomalies == ["refund_unconfirmed"]
    builder.send("refund.completed", refund_id=made_id("refund:0"))
    assert builder.anomalies == []


@pytest.mark.parametrize("verb", ["completed", "failed"])
def test_an_answered_refund_is_not_waited_for(verb: str) -> None:
    builder = Timed()
    builder.create()
    builder.pay("10.00")
    builder.stock("rejected")
    builder.settle()
    assert [each[1] for each in builder.waits()] == ["refund"]
    builder.send(f"refund.{verb}", refund_id=made_id("refund:0"))
    assert builder.waits() == set()


def test_a_deadline_counts_once() -> None:
    builder = ordered()
    builder.let_pass(DeadlineKind.STOCK)
    before = builder.order.version
    builder.take(comes_back(Due(T0 + 100, DeadlineKind.STOCK, raw(ANNA), 1, False)))
    assert builder.order.version == before
    assert len(builder.published("stock.reserve")) == 3


def test_a_deadline_read_before_its_order_waits_for_it() -> None:
    builder = Timed()
    builder.take(comes_back(Due(T0, DeadlineKind.STOCK, raw(ANNA), 1, True)))
    builder.take(event("order.created", created(line(1), line(2, BORIS))))
    assert [suborder.live for suborder in builder.now.suborders] == [0, 1]


def test_a_delivered_order_waits_for_nothing() -> None:
    builder = Timed()
    builder.create()
    builder.stock("reserved")
    builder.pay("10.00")
    builder.scan("in_transit")
    builder.scan("delivered", hour=3)
    assert builder.waits() == set()
