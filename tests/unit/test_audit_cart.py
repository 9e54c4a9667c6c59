"""The cart in which an order began, as the auditor reads the contract: content of checkout.completed, and of
the order.created that it becomes.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import msgspec
import pytest

from audit.reference import Fact, Order, Refusal, parse
from audit.states import read_state, state_of
from tests.unit.test_audit_reference import ORDER, binary, created, fold, headers, order, uid

CART = {"cart_id": uid("cart"), "cart_created_at": "2026-01-02T05:04:06.1234569+02:00"}


@pytest.mark.parametrize(
    ("sent", "content"),
    [
        ({}, {}),
        (
            CART,
            {"cart_id": uid("cart"), "cart_created_at": datetime(2026, 1, 2, 3, 4, 6, 123456, UTC)},
        ),
        ({"cart_id": uid("cart").upper().replace("-", "")}, {"cart_id": uid("cart")}),
        (
            {"cart_created_at": "2030-01-01T00:00:00Z"},  # after the order: not for us to judge
            {"cart_created_at": datetime(2030, 1, 1, tzinfo=UTC)},
        ),
    ],
)
def test_an_order_has_the_cart_of_its_checkout(sent: dict[str, Any], content: dict[str, Any]) -> None:
    whole = created(**sent)
    placed = binary("order.created", whole)
    checkout_id = uid("checkout")
    bought = {name: each for name, each in whole.items() if name != "order_id"}
    read = parse(
        "checkout.completed",
        checkout_id.encode(),
        json.dumps({"checkout_id": checkout_id, **bought}).encode(),
        headers("checkout.completed"),
    )
    for parsed in (placed, read):
        assert isinstance(parsed, Fact)
        assert {name: each for name, each in parsed.content.items() if name in CART} == content


@pytest.mark.parametrize(
    ("changes", "code", "path"),
    [
        ({"cart_id": None}, "field_malformed", "cart_id"),
        ({"cart_id": "cart"}, "field_malformed", "cart_id"),
        ({"cart_created_at": None}, "field_malformed", "cart_created_at"),
        ({"cart_created_at": 7}, "field_malformed", "cart_created_at"),
        ({"cart_created_at": "2026-01-02"}, "field_malformed", "cart_created_at"),
        ({"cart_created_at": "2026-01-02T03:04:05"}, "field_malformed", "cart_created_at"),
    ],
)
@pytest.mark.parametrize("type_", ["order.created", "checkout.completed"])
def test_a_bad_cart(type_: str, changes: dict[str, Any], code: str, path: str) -> None:
    data = {**created(), "checkout_id": uid("checkout"), **changes}
    assert binary(type_, data) == Refusal(code, path)


def test_the_cart_is_content() -> None:
    """So an order.created that says the same but for it is a conflict, and one of the same instant isn't."""
    held = Order(ORDER)
    for more in (
        CART,
        {},
        {"cart_id": uid("other")},
        {**CART, "cart_created_at": "2026-01-02T03:04:06.123456Z"},
    ):
        held.add(order(**more))
    assert [candidate.fact.content.get("cart_id") for candidate in held.candidates["created",]] == [
        uid("cart"),
        None,
        uid("other"),
    ]
    assert held.reading().rows()["orders_order"][0][-1] == 1


def test_a_state_holds_the_cart() -> None:
    with_cart, without = (state_of(fold(order(**more))) for more in (CART, {}))
    assert with_cart["created"][8:10] == (
        bytes.fromhex(uid("cart").replace("-", "")),
        1_767_323_046_123_456,  # 2026-01-02T03:04:06.123456Z
    )
    assert without["created"][8:10] == (None, None)
    head: list[Any] = [5, b"u", None, "EUR", 100, None, []]
    known: list[Any] = [1, None, [], [], [], [], [], [], [], [], [], 0, [], False, 1]

    def read(*later: Any) -> Any:
        known[1] = [*head, *later]
        return read_state(msgspec.msgpack.encode(known))["created"][7:10]

    assert [read(), read(True), read(True, b"c", 7, "later")] == [
        (None, None, None),
        (True, None, None),
        (True, b"c", 7),
    ]
