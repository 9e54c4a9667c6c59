"""Examples of every event: one order from its creation to its refunds, and what the pipeline makes of it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from typing import Any, Final

from contracts import ids, times, topics
from contracts.bulk import EVENT, TOPIC, completed, event_id
from contracts.record_id import RecordId
from domain import effects, events
from domain.enums import DeadlineKind
from domain.fold import fold
from domain.order import Order
from domain.shapes import Derived, Due, Event

Json = dict[str, Any]

_ORDER: Final = "6f1d7a52-0d0e-4a2b-9c3e-1f4b8a70c901"
_CHECKOUT: Final = "b0c7d1f2-5a8e-4d3b-8f6a-2e9c41d07a55"
_JOB: Final = "5b8e2c17-9f3d-4e60-a1c4-7d2f60b9e835"
_ANNA: Final = "0b7f4a8e-5a51-4c39-8f0d-3f6c2d9e1a01"
_BORIS: Final = "d2c9e6b4-77a3-4f18-a1c5-92e0b84f6b02"
_LAMP: Final = "31f0c5d8-6e2b-4d47-b9a1-7c05e3f2aa01"
_BULBS: Final = "84ab1e07-92d6-4b5c-8e3f-20d9c67bb002"
_POSTER: Final = "c65e9f13-4a08-4e71-9d2c-5b81f07dcc03"
_PARCEL: Final = "9a4d3c21-8b7e-4f60-a512-6ed0b9c8f711"
_RETURN: Final = "e7b05f94-1c3d-4a86-b02e-84f9d1a6e521"
_PRODUCT: Final = "5d20b8c7-3e91-4a6f-8c14-0f7be2d9a63"
_CARD: Final = "2e8f60d1-b4a7-4c95-93d8-a61c7f0b5e31"

_SHIP_BY: Final = "2026-03-01T18:00:00Z"
_DELIVER_BY: Final = "2026-03-06T18:00:00Z"

_CREATED: Final[Json] = {
    "user_id": "7c1b9e44-0a6d-4d2f-85b3-c9e8f2a01d71",
    "region": "BE",
    "currency": "EUR",
    "total_amount": "85.00",
    "discount_amount": "5.00",
    "items": [
        {
            "item_id": _LAMP,
            "product_id": f"{_PRODUCT}1",
            "seller_id": _ANNA,
            "sku": "LAMP-BLACK",
            "quantity": 1,
            "price": "49.90",
            "shipping_amount": "4.90",
        },
        {
            "item_id": _BULBS,
            "product_id": f"{_PRODUCT}2",
            "seller_id": _ANNA,
            "sku": "BULB-E27",
            "quantity": 4,
            "price": "3.50",
        },
        {
            "item_id": _POSTER,
            "product_id": f"{_PRODUCT}3",
            "seller_id": _BORIS,
            "sku": "POSTER-A2",
            "quantity": 1,
            "price": "18.00",
            "shipping_amount": "3.20",
        },
    ],
}
"""Data of the order.created, without order_id."""

_GRANTED: Final[Json] = {
    "grant_id": "b81c07d5-3e62-4f9a-9d70-65c2e4a8f641",
    "amount": "3.00",
    "currency": "EUR",
    "reason": "delivered_late",
    "seller_id": _ANNA,
    "item_id": _BULBS,
}
"""Data of the refund.granted, without order_id."""


def _order_events() -> list[tuple[str, str, Json]]:
    """Return one order of two sellers as (time, type, data without order_id), with
    every type at least once.
    """
    order_id = bytes.fromhex(_ORDER.replace("-", ""))

    def made_id(name: str) -> str:
        return ids.uuid5_text(order_id, name)

    anna, boris = {"seller_id": _ANNA}, {"seller_id": _BORIS}
    held = [{"item_id": _LAMP, "quantity": 1}, {"item_id": _BULBS, "quantity": 3}]
    scan = {
        "shipment_id": _PARCEL,
        **anna,
        "carrier": "Corvo",
        "tracking_number": "C004182",
        "estimated_delivery": "2026-03-05",
        "items": held,
    }
    declined = {"payment_id": f"{_CARD[:-1]}0", "reason": "card_declined"}
    back = {"return_id": _RETURN, "item_id": _LAMP, "quantity": 1, "reason": "too_bright"}
    reservation = {
        name: made_id(f"reservation:{seller}") for name, seller in (("anna", _ANNA), ("boris", _BORIS))
    }
    return [
        ("2026-03-01T10:00:00Z", "order.created", _CREATED),
        ("2026-03-01T10:00:20Z", "stock.reserved", {**anna, "reservation_id": reservation["anna"]}),
        ("2026-03-01T10:01:00Z", "payment.failed", declined),
        (
            "2026-03-01T10:02:00Z",
            "order.paid",
            {"payment_id": _CARD, "amount": "85.00", "currency": "EUR", "method": "card"},
        ),
        (
            "2026-03-01T10:05:00Z",
            "stock.rejected",
            {
                **anna,
                "reservation_id": reservation["anna"],
                "reason": "out_of_stock",
                "items": [{"item_id": _BULBS, "quantity": 1}],
            },
        ),
        ("2026-03-01T11:00:00Z", "order.cancel_requested", {"reason": "changed_my_mind", **boris}),
        (
            "2026-03-01T11:00:05Z",
            "stock.released",
            {**boris, "reservation_id": reservation["boris"], "reason": "cancelled"},
        ),
        ("2026-03-01T12:00:00Z", "promise.updated", {**anna, "ship_by": _SHIP_BY, "deliver_by": _DELIVER_BY}),
        (
            "2026-03-02T08:00:00Z",
            "shipment.updated",
            {**scan, "status": "in_transit", "location": "hub north"},
        ),
        ("2026-03-04T15:30:00Z", "shipment.updated", {**scan, "status": "delivered"}),
        (
            "2026-03-09T09:00:00Z",
            "order.returned",
            {**back, "status": "processed", "processed_at": "2026-03-09T08:45:00Z"},
        ),
        ("2026-03-10T12:00:00Z", "refund.completed", {"refund_id": made_id("refund:0")}),
        (
            "2026-03-10T12:05:00Z",
            "refund.failed",
            {"refund_id": made_id("refund:1"), "reason": "account_closed"},
        ),
        ("2026-03-11T09:00:00Z", "refund.granted", _GRANTED),
    ]


def examples() -> tuple[dict[str, Json], dict[str, Json]]:
    """Type -> data of the first event of that type: of those sent, and of those
    that the fold makes of them.
    """
    sent: dict[str, Json] = {}
    published: dict[str, Json] = {}
    order = Order()
    due = Due(0, DeadlineKind.STOCK, bytes.fromhex(_ANNA.replace("-", "")), 1, False)
    published["deadline.passed"] = json.loads(
        effects.deadline_passed(due, bytes.fromhex(_ORDER.replace("-", "")))[0]
    )
    for n, (time, type_, fields) in enumerate(_order_events()):
        data = {"order_id": _ORDER, **fields}
        if type_ == topics.CREATED:
            sent[topics.CHECKOUT] = {"checkout_id": _CHECKOUT, **fields}
        sent.setdefault(type_, data)
        attributes = {
            "specversion": "1.0",
            "id": f"event-{n}",
            "source": "/example",
            "type": type_,
            "time": time,
        }
        headers = [(f"ce_{name}", text.encode()) for name, text in attributes.items()]
        waiting = deque([events.decode(type_, headers, json.dumps(data).encode())])
        if type_ == "promise.updated":
            waiting.append(_late())
        while waiting:
            waiting.extend(_publish(order, waiting.popleft(), published))
    return sent, published


def _late() -> Event:
    """Anna has not shipped by the time that she promised."""
    by = times.parse(_SHIP_BY, "")
    due = Due(by // 1000, DeadlineKind.SHIP, bytes.fromhex(_ANNA.replace("-", "")), 1, True, by)
    value, headers = effects.deadline_passed(due, bytes.fromhex(_ORDER.replace("-", "")))
    return events.decode(topics.DECISIONS, headers, value)


def bulk_examples(sent: dict[str, Json]) -> dict[str, Json]:
    """Topic -> data: of each kind a part with one event, and the end of the job."""
    job = {"job_id": _JOB, "part": 1, "parts": 1}
    parts = {
        topic: {
            **job,
            "events": [{**sent[EVENT[kind]], "id": event_id(_JOB, 1), "time": "2026-03-01T10:00:00Z"}],
        }
        for kind, topic in TOPIC.items()
    }
    value, _ = completed(_JOB, "orders", 1, 1, "2026-03-01T10:00:00Z")
    return {**parts, topics.BULK_COMPLETED: json.loads(value)}


def _publish(order: Order, event: Event, published: dict[str, Json]) -> Iterator[Event]:
    """Fold one event, note what leaves, and give the decisions that come back."""
    for effect in fold(order, event, RecordId(event.type, 0, 0)).effects:
        if isinstance(effect, Derived):
            value, headers = effects.encode(effect, event.order_id, effects.headers_of(event))
            published.setdefault(effect.type, json.loads(value))
            if effect.topic == topics.DECISIONS:
                yield events.decode(effect.topic, headers, value)
