"""Facts: natural keys, repetitions, conflicts, refusals for the order's sake,
versions (docs/rules.md, Facts).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from contracts import errors, times
from contracts.record_id import RecordId
from domain import effects, events
from domain.shapes import Event, Folded
from tests.unit.builders import (
    ANNA,
    BORIS,
    ORDER,
    STRANGER,
    OrderBuilder,
    created,
    event,
    item_id,
    line,
    parcel,
    payment,
    raw,
    returned,
)

LINES = [line(1, ANNA, 2), line(2, BORIS, 1)]
HOUR = 3_600_000_000
T0 = 1_767_225_600_000_000


def built_order() -> OrderBuilder:
    begun = OrderBuilder()
    begun.create(*LINES, hour=3)
    return begun


def items(*pairs: tuple[int, int]) -> list[dict[str, Any]]:
    return [{"item_id": item_id(n), "quantity": quantity} for n, quantity in pairs]


# -- natural keys --------------------------------------------------------------------------------------------

PAYMENT = {"payment_id": payment(1), "amount": "5.00", "currency": "EUR"}
STOCK = {"seller_id": ANNA, "reservation_id": STRANGER}
SCAN = {"shipment_id": parcel(1), "seller_id": ANNA, "status": "in_transit"}
STAGE = {"return_id": returned(1), "item_id": item_id(1), "reason": "r", "status": "requested"}


@pytest.mark.parametrize(
    ("first", "second", "keys"),
    [
        pytest.param(("order.paid", PAYMENT), ("order.paid", PAYMENT), 1, id="payment_id"),
        pytest.param(
            ("order.paid", PAYMENT),
            ("order.paid", PAYMENT | {"payment_id": payment(2)}),
            2,
            id="another payment_id",
        ),
        pytest.param(
            ("order.paid", PAYMENT),
            ("payment.failed", {"payment_id": payment(1), "reason": "r"}),
            2,
            id="payment_id failed",
        ),
        pytest.param(("stock.reserved", STOCK), ("stock.reserved", STOCK), 1, id="stock: type + seller"),
        pytest.param(
            ("stock.reserved", STOCK),
            ("stock.reserved", STOCK | {"seller_id": BORIS}),
            2,
            id="stock: another seller",
        ),
        pytest.param(("stock.rejected", STOCK), ("stock.released", STOCK), 2, id="stock: another type"),
        pytest.param(
            ("stock.released", STOCK),
            ("stock.released", STOCK | {"items": items((1, 2))}),
            2,
            id="stock: items and none",
        ),
        pytest.param(
            ("stock.released", STOCK | {"items": items((1, 1))}),
            ("stock.released", STOCK | {"items": items((1, 2))}),
            2,
            id="stock: items",
        ),
        pytest.param(
            ("stock.released", STOCK | {"items": items((1, 1))}),
            ("stock.released", STOCK | {"items": items((1, 1))}),
            1,
            id="stock: same items",
        ),
        pytest.param(
            ("stock.released", STOCK | {"items": []}),
            ("stock.released", STOCK),
            2,
            id="stock: no items and all",
        ),
        pytest.param(
            ("order.cancel_requested", {"reason": "r"}),
            ("order.cancel_requested", {"reason": "r"}),
            1,
            id="whole order cancelled",
        ),
        pytest.param(
            ("order.cancel_requested", {"reason": "r"}),
            ("order.cancel_requested", {"reason": "r", "seller_id": ANNA}),
            2,
            id="seller cancelled",
        ),
        pytest.param(
            ("shipment.updated", SCAN), ("shipment.updated", SCAN), 1, id="shipment_id + status + time"
        ),
        pytest.param(
            ("shipment.updated", SCAN),
            ("shipment.updated", SCAN | {"status": "delivered"}),
            2,
            id="another status",
        ),
        pytest.param(
            ("shipment.updated", SCAN),
            ("shipment.updated", SCAN | {"shipment_id": parcel(2)}),
            2,
            id="another shipment_id",
        ),
        pytest.param(("order.returned", STAGE), ("order.returned", STAGE), 1, id="return_id + status"),
        pytest.param(
            ("order.returned", STAGE),
            ("order.returned", STAGE | {"status": "processed"}),
            2,
            id="another stage",
        ),
        pytest.param(
            ("order.returned", STAGE),
            ("order.returned", STAGE | {"return_id": returned(2)}),
            2,
            id="another return_id",
        ),
        pytest.param(
            ("refund.failed", {"refund_id": STRANGER}),
            ("refund.failed", {"refund_id": STRANGER}),
            1,
            id="refund_id + type",
        ),
        pytest.param(
            ("refund.failed", {"refund_id": STRANGER}),
            ("refund.completed", {"refund_id": STRANGER}),
            2,
            id="refund: another type",
        ),
    ],
)
@pytest.mark.parametrize("waiting", [False, True], ids=["direct", "waiting"])
def test_natural_keys(first: tuple[str, Any], second: tuple[str, Any], keys: int, waiting: bool) -> None:
    builder = OrderBuilder() if waiting else built_order()
    before = builder.order.version
    for type_, data in (first, second):
        builder.send(type_, **data)
    assert builder.order.version - before == keys
    assert builder.refused == []


def test_a_scan_at_another_time_is_another() -> None:
    builder = built_order()
    assert builder.scan("in_transit", hour=4).changed
    assert builder.scan("in_transit", hour=5).changed
    assert not builder.scan("in_transit", hour=4).changed
    assert builder.order.version == 3


def test_a_repetition_changes_and_publishes_nothing() -> None:
    builder = built_order()
    builder.pay("30.00")
    for again in (builder.pay("30.00"), builder.create(*LINES, hour=3)):
        assert again == Folded(False, None, [])


# -- content -------------------------------------------------------------------------------------------------

CREATED = created(*LINES)


@pytest.mark.parametrize(
    ("type_", "first", "second"),
    [
        pytest.param("order.paid", PAYMENT, PAYMENT | {"amount": "5.01"}, id="payment: amount"),
        pytest.param("order.paid", PAYMENT, PAYMENT | {"currency": "USD"}, id="payment: currency"),
        pytest.param("order.paid", PAYMENT, PAYMENT | {"method": "card"}, id="payment: absent and present"),
        pytest.param("stock.reserved", STOCK, STOCK | {"reservation_id": BORIS}, id="stock: reservation_id"),
        pytest.param("shipment.updated", SCAN, SCAN | {"seller_id": BORIS}, id="scan: seller"),
        pytest.param("shipment.updated", SCAN, SCAN | {"carrier": "Corvo"}, id="scan: carrier"),
        pytest.param("shipment.updated", SCAN, SCAN | {"location": "hub"}, id="scan: location"),
        pytest.param("shipment.updated", SCAN, SCAN | {"items": []}, id="scan: no items and all"),
        pytest.param(
            "shipment.updated",
            SCAN | {"items": items((1, 1))},
            SCAN | {"items": items((1, 2))},
            id="scan: items",
        ),
        pytest.param(
            "order.returned", STAGE, STAGE | {"quantity": 2}, id="return: absent and the whole line"
        ),
        pytest.param("order.returned", STAGE, STAGE | {"restock": True}, id="return: absent and its default"),
        pytest.param("order.returned", STAGE, STAGE | {"item_id": item_id(2)}, id="return: item"),
        pytest.param("order.created", CREATED, CREATED | {"user_id": STRANGER}, id="created: user"),
        pytest.param(
            "order.created", CREATED, CREATED | {"region": ""}, id="created: absent and its default"
        ),
        pytest.param(
            "order.created", CREATED, CREATED | {"discount_amount": "0"}, id="created: discount absent and 0"
        ),
        pytest.param("order.created", CREATED, created(*reversed(LINES)), id="created: order of the lines"),
        pytest.param(
            "order.created",
            CREATED,
            created(LINES[0] | {"shipping_amount": "0"}, LINES[1]),
            id="created: shipping absent and 0",
        ),
    ],
)
@pytest.mark.parametrize("waiting", [False, True], ids=["direct", "waiting"])
def test_a_known_key_with_other_content(type_: str, first: Any, second: Any, waiting: bool) -> None:
    builder = OrderBuilder() if waiting or type_ == "order.created" else built_order()
    builder.send(type_, **first)
    version, state = builder.order.version, msgspec.json.encode(builder.order)
    folded = builder.send(type_, **second)
    assert folded.refused is not None
    assert folded.refused[0] == errors.KEY_CONFLICT
    assert not folded.changed
    assert folded.effects == []
    assert builder.order.version == version
    assert msgspec.json.encode(builder.order) == state, "the first in the log stays"
    assert not builder.send(type_, **first).changed


@pytest.mark.parametrize(
    ("type_", "first", "second"),
    [
        pytest.param("order.paid", PAYMENT, PAYMENT | {"amount": "5"}, id="one amount in two forms"),
        pytest.param(
            "order.paid", PAYMENT, PAYMENT | {"payment_id": payment(1).upper()}, id="one id in two forms"
        ),
        pytest.param("order.paid", PAYMENT, PAYMENT | {"extra": 1}, id="an unknown field"),
        pytest.param("order.returned", STAGE, STAGE | {"reason": "other"}, id="a reason"),
        pytest.param("stock.rejected", STOCK, STOCK | {"reason": "none left"}, id="a reason and none"),
        pytest.param(
            "order.cancel_requested", {"reason": "r"}, {"reason": "s"}, id="a cancellation's reason"
        ),
        pytest.param(
            "payment.failed",
            {"payment_id": payment(1), "reason": "r"},
            {"payment_id": payment(1), "reason": "s"},
            id="a failure's reason",
        ),
        pytest.param(
            "shipment.updated",
            SCAN | {"estimated_delivery": "2026-01-05"},
            SCAN | {"estimated_delivery": "2026-01-05T01:00:00+01:00"},
            id="one day in two forms",
        ),
    ],
)
def test_what_is_the_same_content(type_: str, first: Any, second: Any) -> None:
    builder = built_order()
    builder.send(type_, **first)
    builder.send(type_, **second)
    assert builder.refused == []
    assert builder.order.version == 2


# -- the earliest time stays ---------------------------------------------------------------------------------


@pytest.mark.parametrize("hours", [(5, 7), (7, 5), (5, 5), (7, 5, 6), (6, 7, 5)])
@pytest.mark.parametrize("waiting", [False, True], ids=["direct", "waiting"])
def test_of_repetitions_the_earliest_time_stays(hours: tuple[int, ...], waiting: bool) -> None:
    builder = OrderBuilder() if waiting else built_order()
    for hour in hours:
        builder.pay("5.00", hour=hour)
    assert [fact.time for fact in builder.order.payments] == [T0 + 5 * HOUR]
    assert builder.order.version == (1 if waiting else 2)


def test_an_earlier_order_created_moves_its_time() -> None:
    builder = built_order()
    assert builder.create(*LINES, hour=1).changed
    assert builder.order.created is not None
    assert builder.order.created.time == T0 + HOUR
    assert builder.order.version == 1
    assert len(builder.published("stock.reserve")) == 2


@pytest.mark.parametrize("order", [0, 1])
def test_a_reason_goes_with_its_time(order: int) -> None:
    builder = built_order()
    for hour, reason in ((6, "late"), (5, "early"))[:: 1 if order == 0 else -1]:
        builder.give_back("requested", hour=hour, reason=reason)
    assert [(stage.time, stage.reason) for stage in builder.order.returns] == [(T0 + 5 * HOUR, "early")]


def test_a_conflicting_repetition_does_not_move_the_time() -> None:
    builder = built_order()
    builder.pay("5.00", hour=5)
    builder.pay("6.00", hour=1)
    assert builder.order.payments[0].time == T0 + 5 * HOUR


def test_an_earlier_repetition_can_change_the_stage_that_wins() -> None:
    builder = built_order()
    builder.scan("delivered", hour=4)
    builder.scan("delivered", 2, hour=4, seller=BORIS)
    builder.give_back("processed", hour=6, quantity=2)
    builder.give_back("rejected", hour=7, quantity=2)
    assert [each["status"] for each in builder.published("suborder.updated")] == [
        "delivered",
        "delivered",
        "returned",
    ]
    builder.give_back("rejected", hour=5, quantity=2)
    assert builder.published("suborder.updated")[-1]["status"] == "delivered"


# -- refused for the order's sake ----------------------------------------------------------------------------

FOREIGN = [
    ("order.paid", PAYMENT | {"currency": "USD"}, errors.ORDER_CURRENCY, "$.currency", "currency"),
    ("order.returned", STAGE | {"item_id": item_id(9)}, errors.ORDER_ITEM, "$.item_id", "item of a return"),
    (
        "stock.reserved",
        STOCK | {"seller_id": STRANGER},
        errors.ORDER_SELLER,
        "$.seller_id",
        "seller of a reservation",
    ),
    (
        "stock.rejected",
        STOCK | {"seller_id": STRANGER},
        errors.ORDER_SELLER,
        "$.seller_id",
        "seller of a rejection",
    ),
    (
        "stock.rejected",
        STOCK | {"items": items((9, 1))},
        errors.ORDER_ITEM,
        "$.items[0].item_id",
        "item of a rejection",
    ),
    (
        "stock.released",
        STOCK | {"items": items((1, 1), (2, 1))},
        errors.ORDER_SELLER,
        "$.items[1].item_id",
        "another seller's item released",
    ),
    (
        "order.cancel_requested",
        {"reason": "r", "seller_id": STRANGER},
        errors.ORDER_SELLER,
        "$.seller_id",
        "seller of a cancellation",
    ),
    (
        "shipment.updated",
        SCAN | {"seller_id": STRANGER},
        errors.ORDER_SELLER,
        "$.seller_id",
        "seller of a parcel",
    ),
    (
        "shipment.updated",
        SCAN | {"items": items((1, 1), (9, 1))},
        errors.ORDER_ITEM,
        "$.items[1].item_id",
        "item of a parcel",
    ),
    (
        "shipment.updated",
        SCAN | {"items": items((2, 1))},
        errors.ORDER_SELLER,
        "$.items[0].item_id",
        "another seller's item in a parcel",
    ),
]
EACH_FOREIGN = pytest.mark.parametrize(
    ("type_", "data", "code", "path"), [case[:4] for case in FOREIGN], ids=[case[4] for case in FOREIGN]
)


@EACH_FOREIGN
def test_refused_when_the_order_is_known(type_: str, data: Any, code: str, path: str) -> None:
    builder = built_order()
    folded = builder.send(type_, **data)
    assert folded.refused is not None
    assert (folded.refused[0], folded.refused[1].partition(":")[0]) == (code, path)
    assert folded.changed, "its key is kept"
    assert folded.effects == []
    assert builder.order.version == 2


@EACH_FOREIGN
def test_refused_once_the_order_is_known(type_: str, data: Any, code: str, path: str) -> None:
    builder = OrderBuilder()
    builder.pay("1.00", 7)
    folded = builder.take(event(type_, {"order_id": ORDER, **data}), offset=41)
    assert folded == Folded(True, None, [])
    builder.pay("1.00", 8)
    builder.create(*LINES)
    (late,) = builder.late
    assert (late.type, late.code, late.detail.partition(":")[0]) == (type_, code, path)
    assert late.record == RecordId(type_, 3, 41)
    assert builder.order.version == 4
    assert builder.order.waiting == []
    assert builder.order.status == 0


@EACH_FOREIGN
@pytest.mark.parametrize("waiting", [False, True], ids=["direct", "waiting"])
def test_a_refused_fact_keeps_its_key(type_: str, data: Any, code: str, path: str, waiting: bool) -> None:
    builder = OrderBuilder()
    if not waiting:
        builder.create(*LINES)
    builder.send(type_, **data)
    if waiting:
        builder.create(*LINES)
    assert not builder.send(type_, **data).changed
    assert builder.order.version == 2
    assert not any(
        each.type in ("suborder.updated", "order.status_changed", "stock.commit", "stock.restock")
        for each in builder.derived
    )


def test_a_corrected_repetition_of_a_refused_key_is_a_conflict() -> None:
    builder = built_order()
    builder.pay("30.00", currency="USD")
    assert (builder.pay("30.00").refused or ("",))[0] == errors.KEY_CONFLICT
    assert builder.status == "pending"


def test_a_refused_fact_counts_nowhere_but_in_the_version() -> None:
    builder = built_order()
    builder.scan("in_transit", seller=STRANGER)
    builder.stock("rejected", STRANGER)
    builder.give_back("processed", item=9)
    builder.pay("40.00", currency="USD")
    assert builder.order.version == 5
    assert builder.status == "pending"
    assert builder.now.captured == 0
    assert builder.anomalies == []
    assert not builder.decisions


def test_facts_that_name_nothing_are_never_refused() -> None:
    builder = OrderBuilder()
    builder.cancel()
    builder.send("refund.completed", refund_id=STRANGER)
    builder.send("payment.failed", payment_id=payment(1), reason="r")
    builder.create(*LINES)
    assert builder.late == []
    assert builder.refused == []


# -- a late dead letter --------------------------------------------------------------------------------------


def test_a_waiting_facts_dead_letter_holds_the_normalised_fact() -> None:
    builder = OrderBuilder()
    builder.take(
        event(
            "shipment.updated",
            {"order_id": ORDER, **SCAN, "seller_id": STRANGER.upper(), "items": items((1, 2))},
            hour=2,
        ),
        offset=7,
    )
    builder.create(*LINES)
    (late,) = builder.late
    letter = msgspec.json.decode(effects.normalised(late, raw(ORDER)))
    assert letter == {
        "type": "shipment.updated",
        "time": times.text(T0 + 2 * HOUR),
        "data": {
            "order_id": ORDER,
            "shipment_id": parcel(1),
            "status": "in_transit",
            "seller_id": STRANGER,
            "items": [{"item_id": item_id(1), "quantity": 2}],
        },
    }


def test_the_first_record_of_a_waiting_fact_is_the_one_named() -> None:
    builder = OrderBuilder()
    foreign = event("order.paid", {"order_id": ORDER, **PAYMENT, "currency": "USD"}, hour=5)
    builder.take(foreign, offset=10)
    builder.take(event("order.paid", {"order_id": ORDER, **PAYMENT, "currency": "USD"}, hour=4), offset=11)
    builder.create(*LINES)
    assert [late.record.offset for late in builder.late] == [10]


# -- version, waiting ----------------------------------------------------------------------------------------


def test_version_counts_distinct_natural_keys() -> None:
    builder = OrderBuilder()
    versions = []
    steps: tuple[Callable[[], object], ...] = (
        lambda: builder.pay("1.00", 1),
        lambda: builder.pay("1.00", 1),
        lambda: builder.pay("1.00", 1, hour=0),
        lambda: builder.pay("2.00", 1),
        lambda: builder.create(*LINES),
        lambda: builder.create(*LINES),
        lambda: builder.pay("1.00", 2, currency="USD"),
        lambda: builder.stock("released", items={1: 1}),
        lambda: builder.stock("released", items={1: 2}),
    )
    for step in steps:
        step()
        versions.append(builder.order.version)
    assert versions == [1, 1, 1, 1, 2, 2, 3, 4, 5]


def test_a_decision_does_not_count_in_the_version() -> None:
    builder = built_order()
    builder.pay("30.00")
    builder.stock("rejected", items={1: 1})
    before = builder.order.version
    assert builder.decide().changed
    assert len(builder.order.decisions) == 1
    assert builder.order.version == before


def test_facts_wait_for_their_order_and_publish_nothing() -> None:
    builder = OrderBuilder()
    for folded in (
        builder.pay("30.00"),
        builder.scan("delivered"),
        builder.stock("rejected", BORIS),
        builder.give_back("processed"),
        builder.cancel(),
    ):
        assert folded == Folded(True, None, [])
    assert len(builder.order.waiting) == 5
    builder.create(*LINES)
    assert builder.order.waiting == []
    assert builder.status == "returned"


# -- decisions -----------------------------------------------------------------------------------------------


def decision(n: int, amount: int) -> Event:
    data = {
        "order_id": ORDER,
        "n": n,
        "amount": amount,
        "cause": "closed",
        "cause_id": ORDER,
        "units": [],
        "shipping": [],
    }
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"d"),
        ("ce_source", b"/orders"),
        ("ce_type", b"refund.decided"),
        ("ce_time", b"2026-01-01T00:00:00Z"),
    ]
    return events.decode("orders.decisions", headers, msgspec.json.encode(data))


def test_the_first_record_with_each_n_counts() -> None:
    builder = built_order()
    builder.pay("30.00")
    builder.stock("rejected")
    builder.stock("rejected", BORIS)
    builder.take(decision(0, 1000))
    assert not builder.take(decision(0, 999)).changed
    assert not builder.take(decision(2, 5)).changed
    builder.take(decision(1, 2000))
    assert [each.amount for each in builder.order.decisions] == [1000, 2000]
    assert [each["amount"] for each in builder.published("refund.request")] == ["10.00", "20.00"]


def test_one_decision_is_on_its_way_at_a_time() -> None:
    builder = built_order()
    builder.pay("30.00")
    builder.give_back("processed", 1, quantity=1)
    builder.give_back("processed", 2, quantity=1)
    assert len(builder.decisions) == 1
    builder.decide()
    assert len(builder.decisions) == 1, "what is still owed is looked at again"
    builder.decide()
    assert not builder.decisions
    assert [each["cause_id"] for each in builder.published("refund.request")] == [returned(1), returned(2)]


def test_folding_a_decision_sends_its_request_and_nothing_before_does() -> None:
    builder = built_order()
    builder.pay("30.00")
    builder.stock("rejected", items={1: 1})
    assert builder.published("refund.request") == []
    builder.decide()
    assert len(builder.published("refund.request")) == 1


def test_a_decision_read_before_its_order_waits() -> None:
    builder = OrderBuilder()
    assert builder.take(decision(0, 700)).effects == []
    builder.create(*LINES)
    assert [each["amount"] for each in builder.published("refund.request")] == ["7.00"]


def test_a_decision_is_never_withdrawn() -> None:
    builder = built_order()
    builder.pay("30.00")
    builder.give_back("processed", hour=6, quantity=1)
    builder.decide()
    builder.give_back("rejected", hour=5, quantity=1)
    assert [each.amount for each in builder.order.decisions] == [1000]
    assert not builder.decisions
