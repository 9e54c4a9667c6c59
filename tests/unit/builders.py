"""Builders of events and orders for the unit tests.

`record` writes a valid event in either CloudEvents binding.
`OrderBuilder` takes events in one by one, and encodes and decodes its state after each.
"""

from __future__ import annotations

import json
from collections import deque
from decimal import Decimal
from typing import Any, Final
from uuid import UUID, uuid5
from zlib import crc32

import msgspec

from contracts.record_id import RecordId
from domain import effects, events
from domain.anomalies import anomalies
from domain.fold import fold
from domain.limits import LIMITS, Limits
from domain.order import Order
from domain.shapes import Derived, Event, Folded, LateRefusal
from domain.status import OrderView, view_of
from domain.totals import RunningTotals
from reference.examples import examples
from tables import codec

ORDER: Final = "0a0a0a0a-0000-4000-8000-000000000001"
CHECKOUT: Final = "0c0c0c0c-0000-4000-8000-000000000001"
PLACED: Final = str(uuid5(UUID(CHECKOUT), "order"))
"""The order that this checkout becomes."""
CART: Final = "0e0e0e0e-0000-4000-8000-000000000001"
USER: Final = "0d0d0d0d-0000-4000-8000-000000000001"
ANNA: Final = "aaaaaaaa-0000-4000-8000-000000000001"
BORIS: Final = "bbbbbbbb-0000-4000-8000-000000000002"
STRANGER: Final = "cccccccc-0000-4000-8000-000000000003"
"""Sellers: two of the order, and one of another."""

Data = dict[str, Any]
Headers = list[tuple[str, bytes]]


def raw(text: str) -> bytes:
    """An id as its 16 bytes."""
    return bytes.fromhex(text.replace("-", ""))


def item_id(n: int) -> str:
    return f"10000000-0000-4000-8000-{n:012d}"


def parcel(n: int) -> str:
    return f"20000000-0000-4000-8000-{n:012d}"


def returned(n: int) -> str:
    return f"30000000-0000-4000-8000-{n:012d}"


def payment(n: int) -> str:
    return f"40000000-0000-4000-8000-{n:012d}"


def granted(n: int) -> str:
    return f"60000000-0000-4000-8000-{n:012d}"


def at(hour: int) -> str:
    """A time on the day of the order; below 0, on the day before."""
    return f"2026-01-01T{hour:02d}:00:00Z" if hour >= 0 else f"2025-12-31T{24 + hour:02d}:00:00Z"


def day(n: int) -> str:
    """A day of the month of the order, as we write it."""
    return f"2026-01-{n:02d}T00:00:00+00:00"


def moment(hour: int) -> str:
    """The same as we write it."""
    return f"2026-01-01T{hour:02d}:00:00+00:00"


def line(n: int, seller: str = ANNA, quantity: int = 1, price: str = "10.00", **more: Any) -> Data:
    """One line of an order. `more`: shipping_amount, warehouse_id, or anything else."""
    known = {
        "item_id": item_id(n),
        "product_id": f"50000000-0000-4000-8000-{n:012d}",
        "seller_id": seller,
        "sku": f"sku-{n}",
    }
    return {**known, "quantity": quantity, "price": price, **more}


def taxes(**amounts: str) -> list[Data]:
    """Taxes of a line by their codes."""
    return [{"code": code, "amount": amount} for code, amount in amounts.items()]


def created(*lines: Data, discount: str | None = None, currency: str = "EUR", **more: Any) -> Data:
    """Data of an order.created whose total adds up."""
    items = list(lines or [line(1)])
    total = sum(
        (Decimal(i["price"]) * i["quantity"] + Decimal(i.get("shipping_amount", "0")) for i in items),
        Decimal(0),
    )
    if not more.get("prices_include_tax"):
        taxes = (tax for i in items for name in ("taxes", "shipping_taxes") for tax in i.get(name, ()))
        total += sum((Decimal(tax["amount"]) for tax in taxes), Decimal(0))
    data = {
        "order_id": ORDER,
        "user_id": USER,
        "currency": currency,
        "total_amount": str(total - Decimal(discount or 0)),
        "items": items,
    }
    return data | ({} if discount is None else {"discount_amount": discount}) | more


def _full_line() -> Data:
    promised = {"ship_by": day(2), "deliver_by": day(4)}
    return line(1, quantity=2, shipping_amount="3.00", warehouse_id=STRANGER, **promised)


_WITH_EVERY_FIELD: Final[dict[str, Data]] = {
    "order.created": created(
        _full_line(),
        discount="1.00",
        region="SP",
        cart_id=CART,
        cart_created_at=at(-2),
    ),
    "checkout.completed": {
        name: value
        for name, value in (
            created(
                _full_line(),
                discount="1.00",
                region="SP",
                cart_id=CART,
                cart_created_at=at(-2),
            )
            | {"checkout_id": CHECKOUT}
        ).items()
        if name != "order_id"
    },
    "order.paid": {
        "order_id": ORDER,
        "payment_id": payment(1),
        "amount": "22.00",
        "currency": "EUR",
        "method": "card",
    },
    "payment.failed": {"order_id": ORDER, "payment_id": payment(1), "reason": "declined"},
    "stock.reserved": {"order_id": ORDER, "seller_id": ANNA, "reservation_id": STRANGER},
    "stock.rejected": {
        "order_id": ORDER,
        "seller_id": ANNA,
        "reservation_id": STRANGER,
        "reason": "none left",
        "items": [{"item_id": item_id(1), "quantity": 1}],
    },
    "stock.released": {
        "order_id": ORDER,
        "seller_id": ANNA,
        "reservation_id": STRANGER,
        "reason": "cancelled",
        "items": [{"item_id": item_id(1), "quantity": 1}],
    },
    "order.cancel_requested": {"order_id": ORDER, "reason": "changed my mind", "seller_id": ANNA},
    "promise.updated": {"order_id": ORDER, "seller_id": ANNA, "ship_by": day(3), "deliver_by": day(5)},
    "shipment.updated": {
        "order_id": ORDER,
        "shipment_id": parcel(1),
        "seller_id": ANNA,
        "status": "in_transit",
        "warehouse_id": STRANGER,
        "carrier": "Corvo",
        "tracking_number": "T1",
        "estimated_delivery": "2026-01-05",
        "location": "hub",
        "items": [{"item_id": item_id(1), "quantity": 1}],
    },
    "order.returned": {
        "order_id": ORDER,
        "return_id": returned(1),
        "item_id": item_id(1),
        "quantity": 1,
        "reason": "too small",
        "status": "processed",
        "processed_at": at(9),
        "restock": True,
    },
    "refund.completed": {"order_id": ORDER, "refund_id": STRANGER, "reason": "paid", "attempt": 2},
    "refund.failed": {"order_id": ORDER, "refund_id": STRANGER, "reason": "account closed", "attempt": 2},
}
VALID: Final[dict[str, Data]] = {
    **{type_: {**example, "order_id": ORDER} for type_, example in examples()[0].items()},
    **_WITH_EVERY_FIELD,
}
"""A valid event of every type: with every field that it may have, or, of a type that isn't written out
above, the reference's example.
"""


def attributes(type_: str, **changes: str | None) -> dict[str, str]:
    """CloudEvents attributes; None leaves one out."""
    known = {
        "specversion": "1.0",
        "id": "event-1",
        "source": "/tests",
        "type": type_,
        "time": at(0),
    } | changes
    return {name: value for name, value in known.items() if value is not None}


def binary(attributes: dict[str, str]) -> Headers:
    return [(f"ce_{name}", value.encode()) for name, value in attributes.items()] + [
        ("content-type", b"application/json")
    ]


STRUCTURED: Final[Headers] = [("content-type", b"application/cloudevents+json; charset=utf-8")]


def record(type_: str, data: Data, structured: bool = False, **changes: str | None) -> tuple[Headers, bytes]:
    """(headers, value) of one event."""
    known = attributes(type_, **changes)
    if structured:
        return STRUCTURED, json.dumps({**known, "data": data}).encode()
    return binary(known), json.dumps(data).encode()


def event(type_: str, data: Data, hour: int = 0, **changes: str | None) -> Event:
    headers, value = record(type_, data, False, **{"time": at(hour), **changes})
    return events.decode(type_, headers, value)


def sealed(values: list[Any]) -> bytes:
    """The elements of a state with the checksum that a later format ends with (domain.order.FORMAT)."""
    state = msgspec.msgpack.encode(values)
    assert state[:1] == b"\xdc", "an array of 16 elements or more"
    state = b"\xdc" + (len(values) + 1).to_bytes(2, "big") + state[3:]
    return state + b"\xce" + crc32(state).to_bytes(4, "big")


class OrderBuilder:
    """An order that takes in events.
    Refund decisions wait in `decisions` until `decide` lets them come back, as records do.
    """

    def __init__(self, limits: Limits = LIMITS) -> None:
        self.order = Order()
        self.limits = limits
        self.derived: list[Derived] = []
        self.late: list[LateRefusal] = []
        self.refused: list[tuple[str, str]] = []
        self.decisions: deque[Event] = deque()
        self.count = 0

    def take(self, event: Event, offset: int | None = None) -> Folded:
        origin = RecordId(event.type, 3, self.count if offset is None else offset)
        folded = fold(self.order, event, origin, RunningTotals(self.order, self.limits))
        self.count += 1
        if folded.refused is not None:
            self.refused.append(folded.refused)
        for effect in folded.effects:
            if isinstance(effect, LateRefusal):
                self.late.append(effect)
            elif effect.type == "refund.decided":
                value, headers = effects.encode(effect, event.order_id, effects.headers_of(event))
                self.decisions.append(events.decode(effect.topic, headers, value))
            else:
                self.derived.append(effect)
        self.order = codec.decode(codec.encode(self.order))
        return folded

    def send(self, type_: str, hour: int = 0, **data: Any) -> Folded:
        """Take in an event of this order; `data` without order_id, in full."""
        return self.take(event(type_, {"order_id": ORDER, **data}, hour, id=f"event-{self.count}"))

    def create(self, *lines: Data, hour: int = 0, **more: Any) -> Folded:
        return self.take(event("order.created", created(*lines, **more), hour, id="created"))

    def pay(self, amount: str, n: int = 1, hour: int = 1, currency: str = "EUR") -> Folded:
        return self.send("order.paid", hour, payment_id=payment(n), amount=amount, currency=currency)

    def scan(
        self,
        status: str,
        n: int = 1,
        hour: int = 2,
        seller: str = ANNA,
        items: dict[int, int] | None = None,
        **more: Any,
    ) -> Folded:
        return self.send(
            "shipment.updated",
            hour,
            shipment_id=parcel(n),
            seller_id=seller,
            status=status,
            **quantities(items),
            **more,
        )

    def promise(self, seller: str = ANNA, hour: int = 1, **until: int) -> Folded:
        """`until`: ship_by, deliver_by, as hours."""
        named = {name: at(there) for name, there in until.items()}
        return self.send("promise.updated", hour, seller_id=seller, **named)

    def stock(
        self, verb: str, seller: str = ANNA, items: dict[int, int] | None = None, hour: int = 1, **more: Any
    ) -> Folded:
        known = {"reservation_id": made_id(f"reservation:{seller}")} | more
        return self.send(f"stock.{verb}", hour, seller_id=seller, **known, **quantities(items))

    def give_back(
        self, status: str, n: int = 1, hour: int = 5, item: int = 1, quantity: int | None = None, **more: Any
    ) -> Folded:
        known = {} if quantity is None else {"quantity": quantity}
        known |= {"reason": "too small"} | more
        return self.send(
            "order.returned", hour, return_id=returned(n), item_id=item_id(item), status=status, **known
        )

    def grant(
        self, amount: str, n: int = 1, hour: int = 6, currency: str = "EUR", reason: str = "late", **more: Any
    ) -> Folded:
        known = {"grant_id": granted(n), "amount": amount, "currency": currency, "reason": reason}
        return self.send("refund.granted", hour, **known, **more)

    def cancel(self, seller: str | None = None, hour: int = 1, reason: str = "changed my mind") -> Folded:
        return self.send(
            "order.cancel_requested", hour, reason=reason, **({} if seller is None else {"seller_id": seller})
        )

    def decide(self) -> Folded:
        """Let the oldest decision on its way come back."""
        return self.take(self.decisions.popleft())

    def settle(self) -> OrderBuilder:
        """Let all decisions come back, and those that follow from them."""
        while self.decisions:
            self.decide()
        return self

    @property
    def now(self) -> OrderView:
        return view_of(self.order)

    @property
    def status(self) -> str:
        return codec.status_of(codec.encode(self.order))

    @property
    def anomalies(self) -> list[str]:
        """Their codes."""
        return [text.partition(":")[0] for text in anomalies(self.order, raw(ORDER))]

    def published(self, type_: str) -> list[Data]:
        """Data of everything of this type that left, in its order."""
        return [msgspec.to_builtins(derived.data) for derived in self.derived if derived.type == type_]


def quantities(items: dict[int, int] | None) -> Data:
    if items is None:
        return {}
    return {"items": [{"item_id": item_id(n), "quantity": quantity} for n, quantity in items.items()]}


def made_id(name: str) -> str:
    """An id that the pipeline makes, by the standard library."""
    return str(uuid5(UUID(ORDER), name))
