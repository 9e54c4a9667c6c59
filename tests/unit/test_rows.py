"""Rows of the first four tables, and what the cache gets (docs/rules.md, Rows and summaries)."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from domain import rows, shapes
from tests.unit.builders import (
    ANNA,
    BORIS,
    ORDER,
    STRANGER,
    USER,
    OrderBuilder,
    item_id,
    line,
    made_id,
    moment,
    parcel,
    payment,
    raw,
    returned,
)

LINES = [line(1, ANNA, 2, "10.00", shipping_amount="2.00", warehouse_id=STRANGER), line(2, BORIS, 1, "30.00")]


def built_order(**more: Any) -> OrderBuilder:
    begun = OrderBuilder()
    begun.create(*LINES, hour=3, region="SP", discount="1.00", **more)
    return begun


def summary(builder: OrderBuilder) -> shapes.Summary:
    return rows.order_row_and_summary(ORDER, raw(ORDER), builder.order)[1]


# -- orders_order --------------------------------------------------------------------------------------------


def test_an_orders_row() -> None:
    assert rows.order_row(ORDER, built_order().order) == shapes.OrderRow(
        ORDER, USER, "SP", "pending", "EUR", "51.00", "1.00", "0.00", None, None, moment(3), moment(3), 1
    )


def test_what_was_not_sent_is_its_default() -> None:
    builder = OrderBuilder()
    builder.create(line(1), hour=3)
    row = rows.order_row(ORDER, builder.order)
    assert (row.region, row.discount_amount) == ("", "0.00")
    assert rows.item_rows(ORDER, builder.order)[0].shipping_amount == "0.00"


@pytest.mark.parametrize(
    ("currency", "price", "total"),
    [("JPY", "10", "10"), ("EUR", "10", "10.00"), ("BHD", "1.5", "1.500"), ("CLF", "1.5", "1.5000")],
)
def test_money_has_the_currencys_digits(currency: str, price: str, total: str) -> None:
    builder = OrderBuilder()
    builder.create(line(1, price=price), currency=currency)
    assert rows.order_row(ORDER, builder.order).total_amount == total
    assert rows.item_rows(ORDER, builder.order)[0].price == total


@pytest.mark.parametrize(
    ("events", "span"),
    [
        pytest.param([], (3, 3), id="created alone"),
        pytest.param([("pay", "1.00", 1, 5)], (3, 5), id="a later payment"),
        pytest.param([("pay", "1.00", 1, 1)], (1, 3), id="an earlier payment"),
        pytest.param([("scan", "in_transit", 1, 7), ("pay", "1.00", 1, 5)], (3, 7), id="the latest of all"),
        pytest.param([("give_back", "requested", 1, 8)], (3, 8), id="a return"),
        pytest.param([("stock", "reserved", ANNA, None, 9)], (3, 9), id="a reservation"),
        pytest.param([("cancel", None, 9)], (3, 9), id="a cancellation"),
        pytest.param(
            [("send", "payment.failed", 9, {"payment_id": payment(1), "reason": "r"})],
            (3, 9),
            id="a failed payment",
        ),
        pytest.param([("send", "refund.completed", 9, {"refund_id": STRANGER})], (3, 9), id="a refund"),
        pytest.param([("pay", "1.00", 1, 9, "USD")], (3, 3), id="a refused fact is no fact of the row"),
        pytest.param(
            [("pay", "1.00", 1, 9), ("pay", "1.00", 1, 6)], (3, 6), id="of repetitions the earliest"
        ),
        pytest.param(
            [("create", *LINES, {"hour": 1, "region": "SP", "discount": "1.00"})],
            (1, 1),
            id="created again, earlier",
        ),
    ],
)
def test_created_at_and_updated_at(events: list[tuple[Any, ...]], span: tuple[int, int]) -> None:
    builder = built_order()
    for name, *arguments in events:
        keywords = arguments.pop() if isinstance(arguments[-1], dict) else {}
        if name == "create":
            keywords, arguments = {"hour": 1, "region": "SP", "discount": "1.00"}, LINES
        getattr(builder, name)(*arguments, **keywords)
    row = rows.order_row(ORDER, builder.order)
    assert (row.created_at, row.updated_at) == (moment(span[0]), moment(span[1]))


def test_a_decision_moves_neither_version_nor_time() -> None:
    builder = built_order()
    builder.pay("51.00", hour=4)
    builder.stock("rejected", BORIS, hour=5)
    before = rows.order_row(ORDER, builder.order)
    builder.settle()
    assert builder.order.decisions
    assert rows.order_row(ORDER, builder.order) == before


def test_version_counts_refused_keys_too() -> None:
    builder = built_order()
    builder.pay("1.00", currency="USD")
    builder.pay("1.00", currency="USD")
    assert rows.order_row(ORDER, builder.order).version == 2


# -- orders_order_item ---------------------------------------------------------------------------------------


def test_items_rows() -> None:
    builder = built_order()
    builder.pay("51.00", hour=9)
    builder.stock("rejected")
    time = moment(3)
    head = (ORDER, USER, "SP")
    assert rows.item_rows(ORDER, builder.order) == [
        shapes.ItemRow(
            item_id(1),
            *head,
            LINES[0]["product_id"],
            ANNA,
            STRANGER,
            "sku-1",
            2,
            "10.00",
            "2.00",
            "0.00",
            "0.00",
            time,
            time,
            1,
        ),
        shapes.ItemRow(
            item_id(2),
            *head,
            LINES[1]["product_id"],
            BORIS,
            None,
            "sku-2",
            1,
            "30.00",
            "0.00",
            "0.00",
            "0.00",
            time,
            time,
            1,
        ),
    ]


# -- orders_shipment -----------------------------------------------------------------------------------------


def test_a_shipments_row() -> None:
    builder = built_order()
    builder.scan("pending", hour=4, carrier="Corvo")
    builder.scan(
        "delivered",
        hour=8,
        carrier="Alba",
        tracking_number="T1",
        warehouse_id=STRANGER,
        estimated_delivery="2026-01-05",
    )
    builder.scan("in_transit", hour=9, tracking_number="T2")
    assert rows.shipment_rows(ORDER, builder.order) == [
        shapes.ShipmentRow(
            parcel(1),
            ORDER,
            USER,
            "SP",
            ANNA,
            STRANGER,
            "Alba",
            "T1",
            "delivered",
            "2026-01-05T00:00:00+00:00",
            moment(4),
            moment(9),
            3,
        )
    ]


def test_what_the_winning_scan_does_not_say_is_null() -> None:
    builder = built_order()
    builder.scan(
        "pending",
        hour=4,
        carrier="Corvo",
        tracking_number="T1",
        estimated_delivery="2026-01-05",
        warehouse_id=STRANGER,
    )
    builder.scan("in_transit", hour=5)
    (row,) = rows.shipment_rows(ORDER, builder.order)
    unsaid = (row.warehouse_id, row.carrier, row.tracking_number, row.estimated_delivery)
    assert (row.status, unsaid) == ("in_transit", (None, None, None, None))


def test_a_refused_scan_counts_in_the_version_of_its_parcel_alone() -> None:
    builder = built_order()
    builder.scan("in_transit", hour=4)
    builder.scan("delivered", hour=9, seller=STRANGER)
    builder.scan("delivered", 2, hour=9, seller=STRANGER)
    (row,) = rows.shipment_rows(ORDER, builder.order)
    assert (row.id, row.status, row.created_at, row.updated_at, row.version) == (
        parcel(1),
        "in_transit",
        moment(4),
        moment(4),
        2,
    )


def test_only_the_wanted_parcels() -> None:
    builder = built_order()
    for n in (1, 2, 3):
        builder.scan("pending", n)
    assert [row.id for row in rows.shipment_rows(ORDER, builder.order, [raw(parcel(2)), raw(parcel(9))])] == [
        parcel(2)
    ]


# -- orders_return -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stages", "row"),
    [
        pytest.param(
            [("requested", 5, {})],
            (2, "too small", "requested", None, moment(5), moment(5), 1),
            id="requested: the whole line",
        ),
        pytest.param(
            [("requested", 5, {"processed_at": moment(4)})],
            (2, "too small", "requested", None, moment(5), moment(5), 1),
            id="not processed yet",
        ),
        pytest.param(
            [("requested", 5, {"quantity": 1}), ("processed", 7, {"quantity": 1})],
            (1, "too small", "processed", moment(7), moment(5), moment(7), 2),
            id="processed at the event's time",
        ),
        pytest.param(
            [("processed", 7, {"processed_at": moment(6)})],
            (2, "too small", "processed", moment(6), moment(7), moment(7), 1),
            id="processed when it says",
        ),
        pytest.param(
            [("requested", 5, {}), ("rejected", 7, {"reason": "worn"})],
            (2, "worn", "rejected", None, moment(5), moment(7), 2),
            id="rejected, with that stage's reason",
        ),
        pytest.param(
            [("processed", 7, {}), ("rejected", 6, {})],
            (2, "too small", "rejected", None, moment(6), moment(7), 2),
            id="the earlier of the two",
        ),
        pytest.param(
            [("processed", 7, {}), ("processed", 6, {})],
            (2, "too small", "processed", moment(6), moment(6), moment(6), 1),
            id="repeated earlier",
        ),
        pytest.param(
            [("requested", 5, {}), ("processed", 7, {"item": 9})],
            (2, "too small", "requested", None, moment(5), moment(5), 2),
            id="a refused stage counts in the version alone",
        ),
    ],
)
def test_a_returns_row(stages: list[tuple[str, int, dict[str, Any]]], row: tuple[Any, ...]) -> None:
    builder = built_order()
    for status, hour, more in stages:
        builder.give_back(status, 1, hour, **more)
    assert rows.return_rows(ORDER, builder.order) == [
        shapes.ReturnRow(returned(1), ORDER, USER, "SP", item_id(1), *row)
    ]


def test_only_the_wanted_returns() -> None:
    builder = built_order()
    builder.give_back("requested", 1)
    builder.give_back("requested", 2)
    assert [row.id for row in rows.return_rows(ORDER, builder.order, [raw(returned(2))])] == [returned(2)]


# -- the cache -----------------------------------------------------------------------------------------------


def test_an_orders_summary() -> None:
    builder = built_order()
    builder.pay("51.00", hour=4)
    builder.scan(
        "in_transit",
        hour=6,
        tracking_number="T1",
        carrier="Corvo",
        location="hub",
        estimated_delivery="2026-01-05",
    )
    builder.stock("rejected", BORIS, hour=7)
    cached = summary(builder)
    due = "2026-01-05T00:00:00+00:00"
    assert (cached.user_id, cached.created_ms, cached.settled) == (
        USER,
        1_767_225_600_000 + 3 * 3_600_000,
        False,
    )
    assert msgspec.json.decode(cached.value) == {
        "order_id": ORDER,
        "user_id": USER,
        "status": "shipped",
        "currency": "EUR",
        "total_amount": "51.00",
        "created_at": moment(3),
        "updated_at": moment(7),
        "version": 4,
        "suborders": [
            {
                "suborder_id": made_id(f"suborder:{ANNA}"),
                "seller_id": ANNA,
                "status": "shipped",
                "total_amount": "21.60",
            },
            {
                "suborder_id": made_id(f"suborder:{BORIS}"),
                "seller_id": BORIS,
                "status": "closed",
                "total_amount": "0.00",
            },
        ],
        "shipments": [
            {
                "shipment_id": parcel(1),
                "seller_id": ANNA,
                "status": "in_transit",
                "carrier": "Corvo",
                "tracking_number": "T1",
                "estimated_delivery": due,
            }
        ],
    }
    ((number, shipment, entry),) = cached.tracking
    assert (number, shipment) == ("T1", parcel(1))
    assert msgspec.json.decode(entry) == {
        "order_id": ORDER,
        "shipment_id": parcel(1),
        "carrier": "Corvo",
        "status": "in_transit",
        "location": "hub",
        "estimated_delivery": due,
    }


def test_a_parcel_that_got_another_number() -> None:
    builder = built_order()
    builder.scan("pending", hour=4, tracking_number="OLD")
    builder.scan("in_transit", hour=5, tracking_number="NEW")
    cached = summary(builder)
    assert [number for number, _, _ in cached.tracking] == ["NEW"]
    assert cached.untracked == [("OLD", parcel(1))]


def test_a_parcel_that_lost_its_number() -> None:
    builder = built_order()
    builder.scan("pending", hour=4, tracking_number="OLD")
    builder.scan("in_transit", hour=5)
    cached = summary(builder)
    assert (cached.tracking, cached.untracked) == ([], [("OLD", parcel(1))])


@pytest.mark.parametrize(
    ("events", "settled"),
    [
        pytest.param([], False, id="new"),
        pytest.param([("pay", "51.00")], False, id="paid"),
        pytest.param(
            [("scan", "delivered"), ("scan", "in_transit", 2, 3, BORIS)], False, id="a parcel moves"
        ),
        pytest.param([("scan", "delivered"), ("scan", "delivered", 2, 3, BORIS)], True, id="delivered"),
        pytest.param([("scan", "returned"), ("scan", "returned", 2, 3, BORIS)], True, id="returned"),
        pytest.param([("stock", "rejected"), ("stock", "rejected", BORIS)], True, id="closed"),
        pytest.param(
            [("stock", "rejected"), ("scan", "delivered", 2, 3, BORIS)], True, id="what is live is delivered"
        ),
    ],
)
def test_whether_anything_is_still_expected(events: list[tuple[Any, ...]], settled: bool) -> None:
    builder = built_order()
    for name, *arguments in events:
        getattr(builder, name)(*arguments)
    assert summary(builder).settled is settled


def test_an_order_of_many_parcels_refreshes_those_that_changed() -> None:
    builder = built_order()
    for n in range(rows.MANY_PARCELS):
        builder.scan("in_transit", n, tracking_number=f"T{n}")
    builder.scan("delivered", 7, tracking_number="new")
    assert len(summary(builder).tracking) == rows.MANY_PARCELS
    assert rows.order_row_and_summary(ORDER, raw(ORDER), builder.order, {raw(parcel(7))})[1] == summary(
        builder
    )
    builder.scan("in_transit", 5_000, tracking_number="T")
    builder.scan("delivered", 8, tracking_number="newer")
    changed = {raw(parcel(n)) for n in (7, 5_000)}
    cached = rows.order_row_and_summary(ORDER, raw(ORDER), builder.order, changed)[1]
    assert {number for number, _, _ in cached.tracking} == {"new", "T"}
    assert cached.untracked == [("T7", parcel(7))]
    assert len(msgspec.json.decode(cached.value)["shipments"]) == rows.MANY_PARCELS + 1


def test_a_number_shows_so_many_parcels_of_an_order() -> None:
    builder = built_order()
    for n in range(rows.MANY_PARCELS + 5):
        builder.scan("in_transit", n, tracking_number="n/a")
    assert len(summary(builder).tracking) == rows.MANY_PARCELS
