"""An order explained: its facts in time order, what they amount to, and the rules that make it so.
One document for `orders show --json` and the API's timeline.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from contracts import ids, money, times
from domain.anomalies import anomalies
from domain.asof import as_of
from domain.attention import holding, since_of
from domain.enums import StockAnswer
from domain.facts import Facts, Sellers
from domain.order import Order, Quantities, RefundDecision
from domain.status import Line, OrderView, Suborder, view_of
from domain.tax import whole_tax
from domain.totals import RunningTotals, winning_scans, winning_stages
from domain.why import why

Json = dict[str, Any]
Amount = Callable[[int], str]
"""Minor units of the order's currency -> text."""


def explain(order_id: bytes, order: Order, time: int | None = None, sellers: Sellers | None = None) -> Json:
    """-> a JSON object: order_id, as_of, known, version, facts, why, and once order.created is known: status,
    user_id, region, currency, lines, suborders, shipments, returns, money, refunds, anomalies, attention.
    Never blocks.

    `time`: the order as of then, microseconds since 1970 (domain.asof). `sellers`: only what these sellers
    may see of it; then user_id, region, money, refunds, anomalies and attention aren't there.
    """
    if time is not None:
        order = as_of(order, order_id, time)
    created = order.created
    totals = RunningTotals(order)
    now = None if created is None else view_of(order, totals)
    # Of an order that isn't known nobody can tell whose part a fact is about.
    facts = Facts(order, sellers)
    explanation: Json = {
        "order_id": ids.text(order_id),
        "as_of": None if time is None else times.text(time),
        "known": created is not None,
        "version": order.version,
        "facts": facts.told,
        "why": why(order, order_id, now, facts, sellers),
    }
    if created is None or now is None:
        return explanation
    digits = money.DIGITS[created.currency]

    def amount(minor: int) -> str:
        return money.text(minor, digits)

    parts = [each for each in now.suborders if sellers is None or each.seller_id in sellers]
    lines = [each for each in now.lines if sellers is None or each.seller_id in sellers]
    explanation |= {
        "status": now.status.text,
        "currency": created.currency,
        "prices_include_tax": created.prices_include_tax,
        "live_from": None if created.live_from is None else times.text(created.live_from),
        "lines": [_line(line, amount) for line in lines],
        "suborders": [_suborder(order_id, order, part, amount) for part in parts],
        "shipments": _shipments(order, sellers),
        "returns": _returns(order, {line.item_id for line in lines}),
    }
    if sellers is not None:
        return explanation
    live_total = sum(suborder.total for suborder in now.suborders)
    return explanation | {
        "user_id": ids.text(created.user_id),
        "region": created.region or "",
        "cart_id": None if created.cart_id is None else ids.text(created.cart_id),
        "checkout_id": None if created.checkout_id is None else ids.text(created.checkout_id),
        "money": {
            "total": amount(now.total),
            "tax": amount(whole_tax(created)),
            "live_total": amount(live_total),
            "captured": amount(now.captured),
            "refunds_decided": amount(now.decided),
            "refunded_before": amount(now.paid_back),
        },
        "refunds": [_refund(order_id, decision, amount) for decision in order.decisions],
        "anomalies": anomalies(order, order_id),
        "attention": _attention(order, order_id, now),
    }


def _attention(order: Order, order_id: bytes, now: OrderView) -> list[Json]:
    """What a person should look at, the oldest first."""
    details = holding(order, order_id, now, None)
    since = since_of(order, order_id) if details else {}
    return [
        {"kind": kind, "detail": details[kind], "since": times.text(since[kind])}
        for kind in sorted(details, key=lambda kind: (since[kind], kind))
    ]


def _line(line: Line, amount: Amount) -> Json:
    return {
        "item_id": ids.text(line.item_id),
        "seller_id": ids.text(line.seller_id),
        "price": amount(line.price),
        "discount": amount(line.discount),
        "shipping": amount(line.shipping),
        "tax": amount(line.tax_of(0, line.quantity)),
        "shipping_tax": amount(line.postage_tax),
        "quantity": line.quantity,
        "gone": line.gone,
        "live": line.live,
        "in_transit": line.in_transit,
        "delivered": line.delivered,
        "returned": line.returned,
    }


def _shipments(order: Order, sellers: Sellers | None) -> list[Json]:
    return [
        {
            "shipment_id": ids.text(shipment_id),
            "seller_id": ids.text(scan.seller_id),
            "status": scan.rank.text,
            "carrier": scan.carrier,
            "tracking_number": scan.tracking_number,
            "items": _items(scan.items),
        }
        for shipment_id, scan in sorted(winning_scans(order).items())
        if sellers is None or scan.seller_id in sellers
    ]


def _returns(order: Order, shown: Container[bytes]) -> list[Json]:
    return [
        {
            "return_id": ids.text(return_id),
            "item_id": ids.text(stage.item_id),
            "quantity": stage.quantity,
            "status": stage.status.text,
        }
        for return_id, stage in sorted(winning_stages(order).items())
        if stage.item_id in shown
    ]


def _refund(order_id: bytes, decision: RefundDecision, amount: Amount) -> Json:
    return {
        "refund_id": ids.uuid5_text(order_id, f"refund:{decision.n}"),
        "amount": amount(decision.amount),
        "tax_amount": None if decision.tax is None else amount(decision.tax),
        "cause": decision.cause.text,
        "cause_id": ids.text(decision.cause_id),
        "units": [[ids.text(item_id), first, count] for item_id, first, count in decision.units],
        "shipping": [ids.text(item_id) for item_id in decision.shipping],
        "allocations": None
        if decision.allocations is None
        else [[ids.text(payment_id), amount(part)] for payment_id, part in decision.allocations],
    }


def _items(items: Quantities | None) -> Any:
    return (
        "all the seller's"
        if items is None
        else [[ids.text(item_id), quantity] for item_id, quantity in items]
    )


def _time(micros: int | None) -> str | None:
    return None if micros is None else times.text(micros)


def _suborder(order_id: bytes, order: Order, suborder: Suborder, amount: Amount) -> Json:
    seller = ids.text(suborder.seller_id)
    explanation: Json = {
        "suborder_id": ids.uuid5_text(order_id, f"suborder:{seller}"),
        "seller_id": seller,
        "status": suborder.status.text,
        "units": {
            "ordered": suborder.ordered,
            "live": suborder.live,
            "in_transit": suborder.in_transit,
            "delivered": suborder.delivered,
            "returned": suborder.returned,
        },
        "total_amount": amount(suborder.total),
        "tax_amount": amount(suborder.tax),
        "ship_by": _time(suborder.ship_by),
        "deliver_by": _time(suborder.deliver_by),
        "late_since": _time(suborder.late_since),
    }
    if suborder.live < suborder.ordered:
        types = {
            reply.type for reply in order.stock if not reply.refused and reply.seller_id == suborder.seller_id
        }
        explanation["gone_because"] = [
            f"stock.{answer.text}"
            for answer in (StockAnswer.REJECTED, StockAnswer.RELEASED)
            if answer in types
        ]
    return explanation
