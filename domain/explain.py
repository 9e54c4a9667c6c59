"""An order explained: its facts in time order, what they amount to, and which of them make its status true.
For people and for --json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from contracts import ids, money, times
from contracts.incoming import FACT_FIELDS
from domain.anomalies import anomalies
from domain.enums import OrderStatus, Rank, ReturnStatus, StockAnswer
from domain.order import (
    Cancellation,
    Deadline,
    Order,
    Payment,
    PaymentFailure,
    Quantities,
    RefundDecision,
    RefundReply,
    ReturnStage,
    Scan,
    SimpleFact,
    StockReply,
    type_of,
)
from domain.status import Line, OrderView, Suborder, view_of
from domain.tax import whole_tax
from domain.totals import winning_scans, winning_stages

Json = dict[str, Any]
Amount = Callable[[int], str]
"""Minor units of the order's currency -> text."""


def explain(order_id: bytes, order: Order) -> Json:
    """-> a JSON object: order, why, facts, lines, suborders, shipments, returns, money,
    refunds, anomalies. Never blocks.
    """
    created = order.created
    explanation: Json = {
        "order_id": ids.text(order_id),
        "known": created is not None,
        "version": order.version,
        "facts": _facts(order),
    }
    if created is None:
        explanation["why"] = ["its order.created has not come: the facts below wait for it"]
        return explanation
    view = view_of(order)
    digits = money.DIGITS[created.currency]

    def amount(minor: int) -> str:
        return money.text(minor, digits)

    live_total = sum(suborder.total for suborder in view.suborders)
    return explanation | {
        "status": view.status.text,
        "why": _why(order, view, amount),
        "user_id": ids.text(created.user_id),
        "region": created.region or "",
        "currency": created.currency,
        "prices_include_tax": created.prices_include_tax,
        "lines": [_line(line, amount) for line in view.lines],
        "suborders": [_suborder(order_id, order, suborder, amount) for suborder in view.suborders],
        "shipments": _shipments(order),
        "returns": _returns(order),
        "money": {
            "total": amount(view.total),
            "tax": amount(whole_tax(created)),
            "live_total": amount(live_total),
            "captured": amount(view.captured),
            "refunds_decided": amount(view.decided),
        },
        "refunds": [_refund(order_id, decision, amount) for decision in order.decisions],
        "anomalies": anomalies(order, order_id),
    }


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


def _shipments(order: Order) -> list[Json]:
    return [
        {
            "shipment_id": ids.text(shipment_id),
            "seller_id": ids.text(scan.seller_id),
            "status": scan.rank.text,
            "carrier": scan.carrier,
            "tracking_number": scan.tracking_number,
            "items": _items(scan.items),
        }
        for shipment_id, scan in winning_scans(order).items()
    ]


def _returns(order: Order) -> list[Json]:
    return [
        {
            "return_id": ids.text(return_id),
            "item_id": ids.text(stage.item_id),
            "quantity": stage.quantity,
            "status": stage.status.text,
        }
        for return_id, stage in winning_stages(order).items()
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
    }


def _items(items: Quantities | None) -> Any:
    return (
        "all the seller's"
        if items is None
        else [[ids.text(item_id), quantity] for item_id, quantity in items]
    )


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


def _facts(order: Order) -> list[Json]:
    waiting = {(each.field, each.index) for each in order.waiting}
    facts: list[tuple[int, int, Json]] = []

    def add(time: int, rank: int, type_: str, what: str, note: str) -> None:
        facts.append((time, rank, {"time": times.text(time), "type": type_, "what": what, "note": note}))

    created = order.created
    digits = money.DIGITS[created.currency] if created else 2
    if created is not None:
        sellers = len({item.seller_id for item in created.items})
        units = sum(item.quantity for item in created.items)
        what = (
            f"{units} units in {len(created.items)} lines of {sellers} sellers,"
            f" {money.text(created.total, digits)} {created.currency}"
        )
        add(created.time, 0, "order.created", what, "")
    for field in FACT_FIELDS:
        for index, fact in enumerate(getattr(order, field)):
            note = "refused" if fact.refused else "waits for its order" if (field, index) in waiting else ""
            add(fact.time, 1, type_of(fact), _describe(fact), note)
    for decision in order.decisions:
        currency = created.currency if created else "minor units"
        what = (
            f"number {decision.n}: {money.text(decision.amount, digits if created else 0)} {currency}, cause"
            f" {decision.cause.text}"
        )
        add(decision.time, 2, "refund.decided", what, "")
    return [fact for _, _, fact in sorted(facts, key=lambda each: each[:2])]


def _describe(fact: SimpleFact) -> str:
    """Content of a fact in words. Free text (reason, location) is left out: it may be personal."""
    match fact:
        case Payment():
            return (
                f"payment {ids.text(fact.payment_id)}: {money.text(fact.amount, money.DIGITS[fact.currency])}"
                f" {fact.currency}"
            )
        case PaymentFailure():
            return f"payment {ids.text(fact.payment_id)}"
        case StockReply():
            return f"seller {ids.text(fact.seller_id)}, {_count(fact.items)}"
        case Cancellation():
            return "the whole order" if fact.seller_id is None else f"seller {ids.text(fact.seller_id)}"
        case Scan():
            return f"parcel {ids.text(fact.shipment_id)} {fact.rank.text}, {_count(fact.items)}"
        case ReturnStage():
            units = "the whole line" if fact.quantity is None else f"{fact.quantity} units"
            return (
                f"return {ids.text(fact.return_id)} {fact.status.text}, {units} of item"
                f" {ids.text(fact.item_id)}"
            )
        case RefundReply():
            return f"refund {ids.text(fact.refund_id)}"
        case Deadline():
            whose = "" if fact.subject is None else f" of {ids.text(fact.subject)}"
            return (
                f"no {fact.what.text}{whose} in time, number"
                f" {fact.attempt}{', given up' if fact.final else ''}"
            )


def _count(items: Quantities | None) -> str:
    return "all the seller's units" if items is None else f"{sum(quantity for _, quantity in items)} units"


def _why(order: Order, view: OrderView, amount: Amount) -> list[str]:
    """Which facts make the status true, and what the next one lacks."""
    scans = winning_scans(order)
    live = sum(suborder.live for suborder in view.suborders)
    in_transit = sum(suborder.in_transit for suborder in view.suborders)
    delivered = sum(suborder.delivered for suborder in view.suborders)
    returned = sum(suborder.returned for suborder in view.suborders)
    needed = sum(suborder.total for suborder in view.suborders) if live else view.total
    whose = "the live units'" if live else "the order's"
    paid = f"captured {amount(view.captured)} of {whose} total {amount(needed)}"
    parcels = [
        f"parcel {ids.text(i)} is {scan.rank.text}"
        for i, scan in scans.items()
        if scan.rank >= Rank.IN_TRANSIT
    ]
    returns = [
        f"return {ids.text(i)} is processed"
        for i, stage in winning_stages(order).items()
        if stage.status is ReturnStatus.PROCESSED
    ]
    if not live:
        return ["no unit is live: all are rejected or released", paid]
    match view.status:
        case OrderStatus.PENDING:
            return [f"{paid}: not enough", "no live unit is in transit"]
        case OrderStatus.CONFIRMED:
            return [f"{paid}: enough", "no live unit is in transit"]
        case OrderStatus.SHIPPED:
            return [
                f"{in_transit} of {live} live units are in transit or further, {delivered} delivered",
                *parcels,
                paid,
            ]
        case OrderStatus.DELIVERED:
            return [f"all {live} live units are delivered, {returned} returned", *parcels, *returns, paid]
        case OrderStatus.RETURNED:
            return [f"all {live} live units are returned", *parcels, *returns, paid]
