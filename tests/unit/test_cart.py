"""The cart and the checkout that an order began with (docs/api.md, Facts and why)."""

from __future__ import annotations

from typing import Any

import pytest

from contracts import ids
from domain import effects, events, explain, rows
from domain.facts import Facts
from domain.order import Created
from domain.shapes import Event
from tests.unit.builders import (
    ANNA,
    CART,
    CHECKOUT,
    ORDER,
    PLACED,
    STRANGER,
    VALID,
    OrderBuilder,
    at,
    created,
    event,
    line,
    moment,
    raw,
)

CARTED: dict[str, Any] = {"cart_id": CART, "cart_created_at": at(1)}


def placed(data: dict[str, Any] | None = None) -> Event:
    """The order.created that a checkout becomes, as it is read again."""
    checkout = event("checkout.completed", VALID["checkout.completed"] if data is None else data, 3)
    derived = effects.order_placed(checkout)
    value, headers = effects.encode(derived, checkout.order_id, effects.headers_of_placed(checkout))
    return events.decode(derived.topic, headers, value)


def told(builder: OrderBuilder, sellers: frozenset[bytes] | None = None) -> list[tuple[str, str]]:
    return [(fact["type"], fact["time"]) for fact in Facts(builder.order, sellers).told]


def test_a_checkout_hands_on_its_cart_and_names_itself() -> None:
    again = placed()
    assert isinstance(again.fact, Created)
    assert ids.text(again.order_id) == PLACED
    assert again.fact.cart_id == raw(CART)
    assert again.fact.checkout_id == raw(CHECKOUT)
    without = {name: value for name, value in VALID["checkout.completed"].items() if "cart" not in name}
    fact = placed(without).fact
    assert isinstance(fact, Created)
    assert (fact.cart_id, fact.cart_created_at, fact.checkout_id) == (None, None, raw(CHECKOUT))


@pytest.mark.parametrize("named", [STRANGER, CHECKOUT, "no uuid", "", "\xff"])
def test_nobody_claims_another_orders_checkout(named: str) -> None:
    fact = event("order.created", created(), checkoutid=named).fact
    assert isinstance(fact, Created)
    assert fact.checkout_id is None


def test_which_repetition_names_the_checkout_does_not_matter() -> None:
    of_checkout = placed()
    named = raw(CHECKOUT)
    for hours in ((3, 4), (4, 3), (3, 3)):
        for first in (True, False):
            data = {**VALID["checkout.completed"], "order_id": PLACED}
            del data["checkout_id"]
            by_hand = event("order.created", data, hours[0])
            own = placed()
            own.time = own.fact.time = of_checkout.fact.time + (hours[1] - 3) * 3_600_000_000
            builder = OrderBuilder()
            for each in (own, by_hand) if first else (by_hand, own):
                folded = builder.take(each)
                assert folded.refused is None
            assert builder.order.created is not None
            assert builder.order.created.checkout_id == named
            assert builder.order.version == 1


def test_a_cart_is_content() -> None:
    for changed in ({"cart_id": STRANGER}, {"cart_created_at": at(2)}, {"cart_id": None}):
        builder = OrderBuilder()
        builder.create(**CARTED)
        other: dict[str, Any] = {
            name: value for name, value in {**CARTED, **changed}.items() if value is not None
        }
        builder.create(**other)
        assert [code for code, _ in builder.refused] == ["key_conflict"]


def test_the_row_has_the_cart() -> None:
    builder = OrderBuilder()
    builder.create(hour=3, **CARTED)
    row = rows.order_row(ORDER, builder.order)
    assert (row.cart_id, row.cart_created_at, row.created_at) == (CART, moment(1), moment(3))


def test_the_timeline_begins_with_cart_and_checkout() -> None:
    builder = OrderBuilder()
    again = placed()
    builder.take(again)
    started = told(builder)
    assert [type_ for type_, _ in started] == ["cart", "checkout.completed", "order.created"]
    assert started[1][1] == started[2][1] == moment(3)
    assert started[0][1] == "2025-12-31T22:00:00+00:00"
    explained = explain.explain(again.order_id, builder.order)
    assert (explained["cart_id"], explained["checkout_id"]) == (CART, CHECKOUT)
    # The reasons name order.created under its own number.
    assert {n for reason in explained["why"] for n in reason["facts"]} == {3}
    assert CART in explained["facts"][0]["what"]
    assert CHECKOUT in explained["facts"][1]["what"]


def test_a_cart_without_a_time_has_the_orders() -> None:
    builder = OrderBuilder()
    builder.create(hour=3, cart_id=CART)
    assert told(builder) == [("cart", moment(3)), ("order.created", moment(3))]


def test_sellers_are_told_of_neither() -> None:
    builder = OrderBuilder()
    builder.create(line(1, ANNA), hour=3, **CARTED)
    assert told(builder, frozenset({raw(ANNA)})) == [("order.created", moment(3))]
    explained = explain.explain(raw(ORDER), builder.order, None, frozenset({raw(ANNA)}))
    assert "cart_id" not in explained
