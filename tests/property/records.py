"""Histories as the records that upstream services send: from the facts of
tests.property.histories, and dense ones.
"""

from __future__ import annotations

import json
from random import Random
from typing import Any, NamedTuple

from msgspec import structs

from contracts import ids, money, times
from contracts.topics import DECISIONS
from domain import events
from domain.enums import DeadlineKind, Rank, ReturnStatus, StockAnswer
from domain.order import (
    Cancellation,
    Created,
    Deadline,
    Grant,
    Item,
    Lapse,
    Payment,
    PaymentFailure,
    Promise,
    RefundReply,
    ReturnStage,
    Scan,
    StockReply,
    Taxes,
)
from domain.shapes import Event
from domain.status import fresh_lines
from domain.tax import whole_tax

HOUR = 3_600_000_000


def raw_id(kind: int, number: int) -> bytes:
    return bytes([kind] * 15 + [number])


class Record(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]


def record(event: Event) -> Record:
    """The record that an upstream service sends for this event."""
    order_id = ids.text(event.order_id)
    attributes = {
        "specversion": "1.0",
        "id": event.id,
        "source": "/tests",
        "type": event.type,
        "time": times.text(event.time),
    }
    headers = [(f"ce_{name}", text.encode()) for name, text in attributes.items()]
    data = {name: value for name, value in event_data(event.fact).items() if value is not None}
    topic = DECISIONS if isinstance(event.fact, (Deadline, Lapse)) else event.type
    return Record(topic, order_id.encode(), json.dumps({"order_id": order_id, **data}).encode(), headers)


def event_data(fact: Any) -> dict[str, Any]:
    match fact:
        case Created():
            return created(fact)
        case Payment():
            return {
                "payment_id": ids.text(fact.payment_id),
                "amount": money.text(fact.amount, money.DIGITS[fact.currency]),
                "currency": fact.currency,
            }
        case PaymentFailure():
            return {"payment_id": ids.text(fact.payment_id), "reason": fact.reason}
        case StockReply():
            return {
                "seller_id": ids.text(fact.seller_id),
                "reservation_id": ids.text(fact.reservation_id),
                "items": quantities(fact.items),
            }
        case Cancellation():
            return {
                "seller_id": None if fact.seller_id is None else ids.text(fact.seller_id),
                "reason": fact.reason,
            }
        case Scan():
            return {
                "shipment_id": ids.text(fact.shipment_id),
                "seller_id": ids.text(fact.seller_id),
                "status": fact.rank.text,
                "tracking_number": fact.tracking_number,
                "items": quantities(fact.items),
            }
        case ReturnStage():
            return {
                "return_id": ids.text(fact.return_id),
                "status": fact.status.text,
                "item_id": ids.text(fact.item_id),
                "quantity": fact.quantity,
                "reason": fact.reason,
                "restock": fact.restock,
            }
        case Deadline():
            whose = "refund_id" if fact.what is DeadlineKind.REFUND else "seller_id"
            known = {"deadline": fact.what.text, "attempt": fact.attempt, "final": fact.final}
            return known | ({} if fact.subject is None else {whose: ids.text(fact.subject)})
        case Lapse():
            named = {DeadlineKind.RETURN: "return_id", DeadlineKind.REFUND_RETRY: "refund_id"}
            return {
                "deadline": fact.what.text,
                "attempt": fact.attempt,
                "final": fact.final,
                named.get(fact.what, "seller_id"): ids.text(fact.subject),
                "due": None if fact.due is None else times.text(fact.due),
            }
        case RefundReply():
            # A reply that doesn't say is one to the first request.
            attempt = None if fact.attempt == 1 else fact.attempt
            return {"refund_id": ids.text(fact.refund_id), "attempt": attempt}
    data = events.to_event_data(fact, bytes(16))
    return {name: value for name, value in data.items() if name != "order_id"}


def created(fact: Created) -> dict[str, Any]:
    digits = money.DIGITS[fact.currency]
    return {
        "user_id": ids.text(fact.user_id),
        "region": fact.region,
        "currency": fact.currency,
        "total_amount": money.text(fact.total, digits),
        "discount_amount": None if fact.discount is None else money.text(fact.discount, digits),
        "prices_include_tax": fact.prices_include_tax,
        "cart_id": None if fact.cart_id is None else ids.text(fact.cart_id),
        "cart_created_at": None if fact.cart_created_at is None else times.text(fact.cart_created_at),
        "live_from": None if fact.live_from is None else times.text(fact.live_from),
        "refunded_amount": (
            None if fact.refunded_amount is None else money.text(fact.refunded_amount, digits)
        ),
        "items": [
            {
                "item_id": ids.text(item.item_id),
                "product_id": ids.text(item.product_id),
                "seller_id": ids.text(item.seller_id),
                "sku": item.sku,
                "quantity": item.quantity,
                "price": money.text(item.price, digits),
                **({} if item.shipping is None else {"shipping_amount": money.text(item.shipping, digits)}),
                **_taxes("taxes", item.taxes, digits),
                **_taxes("shipping_taxes", item.shipping_taxes, digits),
                **{
                    name: times.text(by)
                    for name, by in (("ship_by", item.ship_by), ("deliver_by", item.deliver_by))
                    if by is not None
                },
            }
            for item in fact.items
        ],
    }


def _taxes(name: str, taxes: Taxes | None, digits: int) -> dict[str, Any]:
    if taxes is None:
        return {}
    return {name: [{"code": code, "amount": money.text(amount, digits)} for code, amount in taxes]}


def taxed(created: Created, rng: Random) -> Created:
    """The same order with taxes, for two in three: on top of the prices or in them."""
    included = rng.choice((None, True, False))
    if included is None:
        return created
    room = {line.item_id: line.cost_of(0, line.quantity) for line in fresh_lines(created)}
    items = []
    for item in created.items:
        most = [room[item.item_id], item.shipping or 0] if included else [rng.choice((0, 3, 500)), 40]
        lists: list[Taxes | None] = []
        for left in most:
            codes: Taxes = []
            for code in ("A", "B", "C")[: rng.randint(0, 3)]:
                amount = rng.randint(0, left)
                left -= amount
                codes.append((code, amount))
            lists.append(None if rng.random() < 0.3 else codes)
        items.append(structs.replace(item, taxes=lists[0], shipping_taxes=lists[1]))
    placed = structs.replace(created, items=items, prices_include_tax=included)
    return structs.replace(placed, total=created.total + (0 if included else whole_tax(placed)))


def quantities(items: list[tuple[bytes, int]] | None) -> list[dict[str, Any]] | None:
    return (
        None
        if items is None
        else [{"item_id": ids.text(item_id), "quantity": quantity} for item_id, quantity in items]
    )


def dense(n: int, rng: Random, lapses: bool = False) -> list[Record]:
    """One order with few parcels, returns and payments and many events of each, so that facts meet:
    rivals, ties, corrections. `lapses`: promises pass, too.
    """
    order_id = bytes(14) + n.to_bytes(2, "big")
    sellers = [raw_id(0xA0, each) for each in range(rng.randint(1, 2))]
    items = [
        Item(
            raw_id(0xB0, k),
            raw_id(0xC0, k),
            rng.choice(sellers),
            None,
            "sku",
            rng.randint(1, 4),
            rng.choice((0, 100, 100, 333)),
            rng.choice((None, 50)),
            ship_by=rng.choice((None, None, hour(rng))),
            deliver_by=rng.choice((None, None, hour(rng))),
        )
        for k in range(rng.randint(1, 3))
    ]
    goods = sum(item.price * item.quantity for item in items)
    discount = rng.choice((None, min(goods, 1), rng.randint(0, goods)))
    total = goods + sum(item.shipping or 0 for item in items) - (discount or 0)
    created = taxed(Created(hour(rng), raw_id(0xD0, 0), None, "EUR", total, discount, items), rng)
    total = created.total
    if rng.random() < 0.4:
        refunded = rng.choice((None, None, 0, total // 2, total))
        created = structs.replace(created, live_from=hour(rng), refunded_amount=refunded)
    facts: list[tuple[str, Any]] = [("order.created", created)]
    for _ in range(rng.randint(0, 30)):
        item = rng.choice(items)
        many = rng.choice((None, [(item.item_id, rng.randint(1, 3))]))
        facts.append(random_fact(rng, order_id, item, many, total))
        if lapses and rng.random() < 0.2:
            what = rng.choice((DeadlineKind.SHIP, DeadlineKind.UNSHIPPED, DeadlineKind.DELIVER))
            lapse = Lapse(hour(rng), what, item.seller_id, 1, True, due=hour(rng))
            facts.append(("deadline.passed", lapse))
    return [
        record(Event(kind, order_id, fact, f"e{n}.{number}", fact.time, None))
        for number, (kind, fact) in enumerate(facts)
    ]


def random_fact(
    rng: Random, order_id: bytes, item: Item, many: list[tuple[bytes, int]] | None, total: int
) -> tuple[str, Any]:
    """Event type and fact: of a line, and so many of its units (None: it doesn't say)."""
    kind, seller = rng.randrange(24), item.seller_id
    if kind < 7:
        number = rng.choice((None, "T1", "T2"))
        parcel, rank = raw_id(2, rng.randrange(2)), Rank(rng.randrange(4))
        return "shipment.updated", Scan(hour(rng), parcel, rank, seller, tracking_number=number, items=many)
    if kind < 11:
        back, status, quantity = (
            raw_id(3, rng.randrange(2)),
            ReturnStatus(rng.randrange(3)),
            rng.choice((None, 1, 2, 5)),
        )
        restock = rng.choice((None, False))
        stage = ReturnStage(hour(rng), back, status, item.item_id, quantity, "r", None, restock)
        return "order.returned", stage
    if kind < 15:
        amount = rng.choice((1, max(1, total // 2), max(1, total)))
        return "order.paid", Payment(hour(rng), raw_id(1, rng.randrange(3)), amount, "EUR")
    if kind < 18:
        answer = StockAnswer(rng.randrange(1, 3))
        reservation = ids.uuid5(order_id, f"reservation:{ids.text(seller)}")
        reply = StockReply(hour(rng), answer, seller, reservation, many)
        return f"stock.{answer.text}", reply
    if kind < 19:
        return "order.cancel_requested", Cancellation(hour(rng), rng.choice((None, seller)), "r")
    if kind < 20:
        until = rng.choice((None, hour(rng))), rng.choice((None, hour(rng)))
        return "promise.updated", Promise(hour(rng), seller, *until)
    if kind < 21:
        refund = ids.uuid5(order_id, f"refund:{rng.randrange(2)}")
        failed = rng.random() < 0.7
        answered = RefundReply(hour(rng), refund, failed, attempt=rng.choice((1, 1, 2)))
        return "refund.failed" if failed else "refund.completed", answered
    if kind < 22:
        return "order.paid", Payment(hour(rng), raw_id(1, rng.randrange(3)), 5, "USD")
    amount, about = rng.choice((1, max(1, total // 4), max(1, total))), rng.choice((None, seller))
    return "refund.granted", Grant(hour(rng), raw_id(4, rng.randrange(3)), amount, "EUR", "r", about)


def hour(rng: Random) -> int:
    return rng.randrange(6) * HOUR
