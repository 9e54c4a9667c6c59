"""An order whose seller doesn't ship in time, as a marketplace always has some."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid5

from contracts.cloudevents import SourceEvent, binary, rfc3339

SECOND = 1_000_000


def order(seed: int, at: int) -> tuple[str, list[SourceEvent]]:
    """The id of an order made at `at` (microseconds since 1970) and its events: reserved, paid with tax on
    top, promised for a second later, and never shipped. Another seed, another order.
    """
    order_id, user, seller, product, item, payment = (
        str(uuid5(UUID(int=0), f"late:{seed}:{name}"))
        for name in ("order", "user", "seller", "product", "item", "payment")
    )
    line = {
        "item_id": item,
        "product_id": product,
        "seller_id": seller,
        "sku": "LATE-1",
        "quantity": 1,
        "price": "50.00",
        "taxes": [{"code": "VAT", "amount": "9.50"}],
        "ship_by": rfc3339(at + SECOND),
    }
    total = {"currency": "EUR", "total_amount": "59.50"}
    paid = {"payment_id": payment, "amount": "59.50", "currency": "EUR"}
    reservation = str(uuid5(UUID(order_id), f"reservation:{seller}"))
    contents: dict[str, dict[str, Any]] = {
        "order.created": {"user_id": user, **total, "prices_include_tax": False, "items": [line]},
        "stock.reserved": {"seller_id": seller, "reservation_id": reservation},
        "order.paid": paid,
    }
    return order_id, [_event(type_, order_id, data, at) for type_, data in contents.items()]


def _event(type_: str, order_id: str, data: dict[str, Any], at: int) -> SourceEvent:
    attributes = {
        "specversion": "1.0",
        "id": f"{type_}:{order_id}",
        "source": "/late",
        "type": type_,
        "time": rfc3339(at),
    }
    headers, value = binary(attributes, {"order_id": order_id, **data})
    return SourceEvent(type_, order_id.encode(), value, headers, at)
