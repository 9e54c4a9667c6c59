"""Rows of orders_suborder, orders_payment and orders_refund, as the second part of the contract has them.

They follow from the same facts and decisions as those of the first four tables (audit.reference), and have
the same form: ids, money and times as text, None for NULL. Nothing here blocks.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, TypeAlias

from audit.promises import DELIVER, SHIP

Row = tuple[Any, ...]
# Those of audit.reference, which imports this module.
Decision: TypeAlias = Any
Fact: TypeAlias = Any
Reading: TypeAlias = Any
Suborder: TypeAlias = Any
_PAYMENTS: Final = ("order.paid", "payment.failed")
_REPLIES: Final = ("refund.completed", "refund.failed")


def span(times: Sequence[datetime]) -> tuple[str, str]:
    """The earliest and the latest time, as text."""
    return min(times).isoformat(), max(times).isoformat()


def more_rows(reading: Reading) -> dict[str, list[Row]]:
    """Table -> rows in column order (audit.stores.COLUMNS), of an order whose order.created is known."""
    payments = _by_id(reading.facts, "payment_id", _PAYMENTS)
    replies = _by_id(reading.facts, "refund_id", _REPLIES)
    refunds = ((reading.made_id(f"refund:{each.n}"), each) for each in reading.decisions)
    return {
        "orders_suborder": _suborders(reading),
        "orders_payment": [
            _payment(reading, payment_id, facts)
            for payment_id, facts in sorted(payments.items())
            if any(fact.key not in reading.refused for fact in facts)
        ],
        "orders_refund": [
            _refund(reading, refund_id, decision, replies.get(refund_id, ()))
            for refund_id, decision in refunds
        ],
    }


def payments_of(reading: Reading) -> dict[str, Fact]:
    """payment_id -> the fact that makes its status: order.paid where there is one."""
    facts = [fact for fact in reading.accepted if fact.type in _PAYMENTS]
    facts.sort(key=lambda fact: fact.type == "order.paid")
    return {fact.content["payment_id"]: fact for fact in facts}


def _by_id(facts: Iterable[Fact], name: str, types: Sequence[str]) -> dict[str, list[Fact]]:
    """Facts of these types, refused ones too, by one of their fields."""
    by_id: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        if fact.type in types:
            by_id[fact.content[name]].append(fact)
    return by_id


# -- suborders -----------------------------------------------------------------------------------------------


def _suborders(reading: Reading) -> list[Row]:
    """One of each seller. Versions and times are the order's."""
    order_status = reading.status()
    stamps = (*span([fact.time for fact in reading.accepted]), reading.version)
    parcels: dict[str, Counter[str]] = defaultdict(Counter)
    for scan in reading.parcels.values():
        parcels[scan.content["seller_id"]][scan.content["status"]] += 1
    returns = Counter(
        reading.items[stage.content["item_id"]]["seller_id"] for stage in reading.returns.values()
    )
    rows = []
    for suborder in reading.suborders:
        seller, live = suborder.seller_id, suborder.live
        ordered, own = sum(line.quantity for line in suborder.lines), parcels[suborder.seller_id]
        rows.append(
            (
                *(suborder.suborder_id, *reading.whose, seller),
                *(suborder.status, reading.why_closed(suborder) or None, reading.currency),
                *map(reading.in_text, (live.items, live.shipping, live.discount, live.tax, live.total)),
                *(ordered, *suborder.units),
                *_promises(reading, suborder),
                # What the view of this name had beside them.
                *(order_status, len(suborder.lines), ordered),
                *(own.total(), own["in_transit"], own["delivered"], own["returned"]),
                *(returns[seller], *stamps),
            )
        )
    return rows


def _promises(reading: Reading, suborder: Suborder) -> tuple[str | None, str | None, str | None]:
    """ship_by, deliver_by and late_since."""
    seller = suborder.seller_id
    each = (reading.promised(SHIP, seller), reading.promised(DELIVER, seller), reading.late_since(seller))
    ship_by, deliver_by, late_since = (None if time is None else time.isoformat() for time in each)
    return ship_by, deliver_by, late_since


# -- payments ------------------------------------------------------------------------------------------------


def _payment(reading: Reading, payment_id: str, facts: Sequence[Fact]) -> Row:
    """`facts`: its order.paid and its payment.failed; a refused one only counts in the version."""
    counted = {fact.type: fact for fact in facts if fact.key not in reading.refused}
    paid, failed = counted.get("order.paid"), counted.get("payment.failed")
    money: Row = (None, None, None)
    if paid is not None:
        content = paid.content
        money = (reading.in_text(content["amount"]), content["currency"], content.get("method"))
    return (
        *(payment_id, *reading.whose, "failed" if paid is None else "captured", *money),
        None if failed is None else failed.reason,
        *span([fact.time for fact in counted.values()]),
        len(facts),
    )


# -- refunds -------------------------------------------------------------------------------------------------


def _refund(reading: Reading, refund_id: str, decision: Decision, replies: Sequence[Fact]) -> Row:
    """`replies`: refund.completed and refund.failed about it."""
    assert decision.time is not None
    attempt = _latest_asked(reading, refund_id)
    completed = [fact for fact in replies if fact.type == "refund.completed"]
    failed = [
        fact for fact in replies if fact.type == "refund.failed" and fact.content.get("attempt", 1) == attempt
    ]
    status, said = "requested", None
    if completed:
        status, said = "completed", min(completed, key=lambda fact: (fact.time, fact.content["attempt"]))
    elif failed:
        status, said = "failed", failed[0]
    again = reading.retries.get(refund_id, {}).values()
    counted = [*replies, *again]
    return (
        *(refund_id, *reading.whose, decision.n, status),
        *(reading.in_text(decision.amount), reading.in_text(decision.tax_amount or 0), reading.currency),
        *(decision.cause, decision.cause_id, attempt, None if said is None else said.reason),
        decision.time.isoformat(),
        None if said is None or status != "completed" else said.time.isoformat(),
        *span([decision.time, *(fact.time for fact in counted)]),
        1 + len(counted),
    )


def _latest_asked(reading: Reading, refund_id: str) -> int:
    """Which attempt at a refund was asked for last."""
    attempts: dict[int, Fact] = reading.retries.get(refund_id, {})
    return max(attempts, default=1)
