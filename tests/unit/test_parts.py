"""Rows of an order's suborders, payments and refunds (docs/rules.md, Rows and summaries)."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from domain import parts, rows
from domain.shapes import PaymentRow, RefundRow, SuborderRow
from tests.unit.builders import (
    ANNA,
    BORIS,
    ORDER,
    USER,
    OrderBuilder,
    line,
    made_id,
    moment,
    payment,
    raw,
)

LINES = [
    line(1, ANNA, 2, "10.00", shipping_amount="2.00"),
    line(2, BORIS, 1, "30.00"),
    line(3, ANNA, 1, "5.00"),
]


def built(*lines: dict[str, Any], **more: Any) -> OrderBuilder:
    begun = OrderBuilder()
    begun.create(*(lines or LINES), hour=3, region="SP", **more)
    return begun


def suborders(builder: OrderBuilder) -> list[SuborderRow]:
    return parts.suborder_rows(raw(ORDER), builder.order, rows.order_row(ORDER, builder.order))


def payments(builder: OrderBuilder) -> list[PaymentRow]:
    return parts.payment_rows(ORDER, builder.order)


def refunds(builder: OrderBuilder) -> list[RefundRow]:
    return parts.refund_rows(ORDER, raw(ORDER), builder.order)


# -- orders_suborder -----------------------------------------------------------------------------------------


def test_a_suborders_row_as_ordered() -> None:
    anna, boris = suborders(built(discount="1.00"))
    assert anna == SuborderRow(
        id=made_id(f"suborder:{ANNA}"),
        order_id=ORDER,
        user_id=USER,
        region="SP",
        seller_id=ANNA,
        status="pending",
        closed_because=None,
        order_status="pending",
        currency="EUR",
        items=2,
        units=3,
        items_amount="25.00",
        shipping_amount="2.00",
        discount_amount="0.45",
        tax_amount="0.00",
        total_amount="26.55",
        units_ordered=3,
        units_live=3,
        units_in_transit=0,
        units_delivered=0,
        units_returned=0,
        parcels=0,
        parcels_in_transit=0,
        parcels_delivered=0,
        parcels_returned=0,
        returns=0,
        ship_by=None,
        deliver_by=None,
        late_since=None,
        created_at=moment(3),
        updated_at=moment(3),
        version=1,
    )
    assert (boris.seller_id, boris.discount_amount, boris.total_amount) == (BORIS, "0.55", "29.45")


def test_its_amounts_and_units_are_those_that_are_live() -> None:
    builder = built()
    builder.pay("57.00")
    builder.stock("rejected", ANNA, {1: 1, 3: 1}, hour=4)
    anna, boris = suborders(builder)
    assert (anna.status, anna.closed_because, anna.units_ordered, anna.units_live) == (
        "confirmed",
        None,
        3,
        1,
    )
    assert (anna.items_amount, anna.shipping_amount, anna.total_amount) == ("10.00", "2.00", "12.00")
    assert (anna.items, anna.units) == (2, 3)
    builder.stock("rejected", BORIS, hour=4)
    anna, boris = suborders(builder)
    assert (boris.status, boris.closed_because) == ("closed", "stock_rejected")
    assert (boris.units_live, boris.items_amount, boris.total_amount) == (0, "0.00", "0.00")
    assert (boris.units_ordered, boris.currency) == (1, "EUR")


def test_its_version_times_and_the_orders_status_are_the_orders() -> None:
    builder = built()
    builder.pay("57.00", hour=1)
    builder.scan("in_transit", seller=BORIS, hour=8)
    order = rows.order_row(ORDER, builder.order)
    for part in suborders(builder):
        assert (part.version, part.created_at, part.updated_at) == (3, moment(1), moment(8))
        assert (part.version, part.order_status) == (order.version, "shipped")
    assert [part.status for part in suborders(builder)] == ["confirmed", "shipped"]


def test_its_parcels_and_returns_are_the_sellers() -> None:
    builder = built()
    builder.scan("in_transit", 1, seller=ANNA, items={1: 1})
    builder.scan("delivered", 2, seller=ANNA, items={1: 1})
    builder.scan("pending", 3, seller=ANNA, items={3: 1})
    builder.scan("delivered", 4, seller=BORIS)
    builder.scan("returned", 4, seller=BORIS, hour=6)
    builder.give_back("requested", 1, item=1, quantity=1)
    builder.give_back("processed", 2, item=2, hour=7)
    anna, boris = suborders(builder)
    assert (anna.parcels, anna.parcels_in_transit, anna.parcels_delivered, anna.parcels_returned) == (
        3,
        1,
        1,
        0,
    )
    assert (boris.parcels, boris.parcels_in_transit, boris.parcels_delivered, boris.parcels_returned) == (
        1,
        0,
        0,
        1,
    )
    assert (anna.returns, boris.returns) == (1, 1)
    assert (anna.units_in_transit, anna.units_delivered, anna.units_returned) == (2, 1, 0)
    assert (boris.units_in_transit, boris.units_delivered, boris.units_returned) == (1, 1, 1)


def test_suborders_add_up_to_the_live_total_with_tax_on_top() -> None:
    taxed = line(1, ANNA, 2, "10.00", taxes=[{"code": "vat", "amount": "2.00"}])
    builder = built(taxed, line(2, BORIS, 1, "30.00"), prices_include_tax=False)
    builder.stock("rejected", ANNA, {1: 1})
    anna, boris = suborders(builder)
    assert (anna.tax_amount, anna.total_amount, boris.tax_amount) == ("1.00", "11.00", "0.00")


# -- orders_payment ------------------------------------------------------------------------------------------


def test_a_payments_row() -> None:
    builder = built()
    builder.send("order.paid", 5, payment_id=payment(1), amount="57.00", currency="EUR", method="card")
    assert payments(builder) == [
        PaymentRow(
            payment(1), ORDER, USER, "SP", "captured", "57.00", "EUR", "card", None, moment(5), moment(5), 1
        )
    ]


def test_a_failed_payment_has_no_amount() -> None:
    builder = built()
    builder.send("payment.failed", 5, payment_id=payment(1), reason="declined")
    (row,) = payments(builder)
    assert (row.status, row.amount, row.currency, row.method) == ("failed", None, None, None)
    assert (row.reason, row.created_at, row.updated_at, row.version) == ("declined", moment(5), moment(5), 1)


def test_of_both_captured_whichever_came_first() -> None:
    facts = [
        ("order.paid", 4, {"amount": "1.00", "currency": "EUR"}),
        ("payment.failed", 6, {"reason": "declined"}),
    ]
    seen = []
    for some in permutations(facts):
        builder = built()
        for type_, hour, data in some:
            builder.send(type_, hour, payment_id=payment(1), **data)
        seen.append(payments(builder))
    (row,) = seen[0]
    assert seen[0] == seen[1]
    assert (row.status, row.amount, row.reason) == ("captured", "1.00", "declined")
    assert (row.created_at, row.updated_at, row.version) == (moment(4), moment(6), 2)


def test_a_refused_payment_has_no_row_but_its_key_counts() -> None:
    builder = built()
    builder.pay("1.00", 1, currency="USD")
    assert [code for code, _ in builder.refused] == ["order_currency"]
    assert payments(builder) == []
    builder.send("payment.failed", 6, payment_id=payment(1), reason="declined")
    (row,) = payments(builder)
    assert (row.status, row.version, row.created_at) == ("failed", 2, moment(6))


def test_only_the_payments_that_are_wanted() -> None:
    builder = built()
    builder.pay("1.00", 1)
    builder.pay("2.00", 2)
    assert [row.id for row in parts.payment_rows(ORDER, builder.order, {raw(payment(2))})] == [payment(2)]


# -- orders_refund -------------------------------------------------------------------------------------------


def refunded() -> OrderBuilder:
    """Anna's first unit and Boris' one can't be had: two refunds."""
    builder = built()
    builder.pay("57.00", hour=4)
    builder.stock("rejected", ANNA, {1: 1}, hour=5)
    builder.settle()
    builder.stock("rejected", BORIS, hour=6)
    return builder.settle()


def test_a_refunds_row() -> None:
    first, second = refunds(refunded())
    assert first == RefundRow(
        id=made_id("refund:0"),
        order_id=ORDER,
        user_id=USER,
        region="SP",
        number=0,
        status="requested",
        amount="10.00",
        tax_amount="0.00",
        currency="EUR",
        cause="stock",
        cause_id=ANNA,
        attempt=1,
        reason=None,
        requested_at=moment(5),
        settled_at=None,
        created_at=moment(5),
        updated_at=moment(5),
        version=1,
    )
    assert (second.number, second.amount, second.cause_id, second.version) == (1, "30.00", BORIS, 1)


@pytest.mark.parametrize(
    ("replies", "status", "reason", "settled", "updated", "version"),
    [
        ([("completed", 8, "done")], "completed", "done", moment(8), moment(8), 2),
        ([("failed", 8, "closed")], "failed", "closed", None, moment(8), 2),
        ([("failed", 9, "closed"), ("completed", 8, None)], "completed", None, moment(8), moment(9), 3),
    ],
)
def test_what_became_of_a_refund(
    replies: list[tuple[str, int, str | None]],
    status: str,
    reason: str | None,
    settled: str | None,
    updated: str,
    version: int,
) -> None:
    seen = []
    for some in permutations(replies):
        builder = refunded()
        for type_, hour, why in some:
            known = {} if why is None else {"reason": why}
            builder.send(f"refund.{type_}", hour, refund_id=made_id("refund:0"), **known)
        seen.append(refunds(builder))
    assert all(each == seen[0] for each in seen)
    row, other = seen[0]
    assert (row.status, row.reason, row.settled_at) == (status, reason, settled)
    assert (row.requested_at, row.created_at, row.updated_at) == (moment(5), moment(5), updated)
    assert row.version == version
    assert (other.status, other.version) == ("requested", 1)


def test_a_reply_about_a_refund_that_is_not_ours_is_no_row() -> None:
    builder = built()
    builder.send("refund.completed", 8, refund_id=made_id("refund:0"))
    assert refunds(builder) == []
    builder.pay("57.00", hour=9)
    builder.stock("rejected", ANNA, {1: 1}, hour=9)
    (row,) = refunds(builder.settle())
    # It came before its decision, and counts once that is known.
    assert (row.status, row.settled_at, row.created_at, row.version) == ("completed", moment(8), moment(8), 2)


def test_a_refund_tells_its_tax() -> None:
    taxed = line(1, ANNA, 2, "10.00", taxes=[{"code": "vat", "amount": "2.00"}])
    builder = built(taxed, prices_include_tax=False)
    builder.pay("22.00")
    builder.stock("rejected", ANNA, {1: 1})
    (row,) = refunds(builder.settle())
    assert (row.amount, row.tax_amount) == ("11.00", "1.00")


def test_only_the_refunds_that_are_wanted() -> None:
    builder = refunded()
    wanted = {raw(made_id("refund:1"))}
    assert [row.number for row in parts.refund_rows(ORDER, raw(ORDER), builder.order, wanted)] == [1]
