"""Rows of an order's suborders, payments and refunds. Pure; fields as in domain.rows, which has the others.

The version and times of a suborder's row are the order's, so it is written with each of the order's facts.
Those of a payment's row are of its own keys, those of a refund's row of its decision and its replies.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Final, NamedTuple

from contracts import ids, money, times
from contracts.statuses import ClosedBecauseText, RefundStatusText
from domain.enums import ClosedBecause, Rank
from domain.lapses import is_retry, latest_attempt
from domain.order import Order, Payment, PaymentFailure, PublishedSuborder, RefundReply
from domain.promises import has_promises
from domain.rows import suborder_summaries
from domain.shapes import OrderRow, PaymentRow, RefundRow, SuborderRow, SuborderSummary
from domain.status import view_of
from domain.totals import RunningTotals

_IN_TRANSIT, _DELIVERED, _RETURNED = Rank.IN_TRANSIT, Rank.DELIVERED, Rank.RETURNED
_NOT_CLOSED: Final = ClosedBecause.NOT_CLOSED


class _Counted:
    """What a seller has in an order."""

    __slots__ = ("delivered", "in_transit", "items", "parcels", "returned", "returns", "units")

    def __init__(self) -> None:
        self.items = self.units = 0
        """Lines, and their units."""
        self.parcels = self.in_transit = self.delivered = self.returned = 0
        """Parcels: all, and those that are there now."""
        self.returns = 0


def _count(order: Order, totals: RunningTotals) -> dict[bytes, _Counted]:
    created = order.created
    assert created is not None
    counted: dict[bytes, _Counted] = {}
    for item in created.items:
        own = counted.get(item.seller_id)
        if own is None:
            own = counted[item.seller_id] = _Counted()
        own.items += 1
        own.units += item.quantity
    for scan in totals.parcels.values():
        own = counted.get(scan.seller_id)
        if own is None:  # no state of ours says so, but a foreign record may
            continue
        own.parcels += 1
        rank = scan.rank
        if rank is _IN_TRANSIT:
            own.in_transit += 1
        elif rank is _DELIVERED:
            own.delivered += 1
        elif rank is _RETURNED:
            own.returned += 1
    if totals.returns:
        sellers = {item.item_id: item.seller_id for item in created.items}
        for stage in totals.returns.values():
            counted[sellers[stage.item_id]].returns += 1
    return counted


class _Promised(NamedTuple):
    """A seller's earliest promises that are in force, and since when it is late, as text."""

    ship_by: str | None
    deliver_by: str | None
    late_since: str | None


_NOTHING: Final = _Promised(None, None, None)


def _promised(order: Order, totals: RunningTotals | None) -> dict[bytes, _Promised]:
    """Seller -> what was promised. Empty where nothing was, and nothing has passed."""
    if not order.lapses and not has_promises(order):
        return {}
    return {
        suborder.seller_id: _Promised(
            _text(suborder.ship_by), _text(suborder.deliver_by), _text(suborder.late_since)
        )
        for suborder in view_of(order, totals).suborders
    }


def _closed_because(part: PublishedSuborder) -> ClosedBecauseText | None:
    because = ClosedBecause.NOT_SHIPPED if part.not_shipped else part.because
    return None if because is _NOT_CLOSED else because.text


def _text(micros: int | None) -> str | None:
    return None if micros is None else times.text(micros)


def suborder_rows(
    raw_id: bytes,
    order: Order,
    row: OrderRow,
    totals: RunningTotals | None = None,
    summaries: Sequence[SuborderSummary] | None = None,
) -> list[SuborderRow]:
    """Rows of orders_suborder, one a seller. `row`: that of the order. `totals`: those of the order, and
    `summaries`: of the suborders, if they are at hand.
    """
    created = order.created
    assert created is not None
    counted = _count(order, RunningTotals(order) if totals is None else totals)
    digits = money.DIGITS[created.currency]
    rows: list[SuborderRow] = []
    promises = _promised(order, totals)
    if summaries is None:
        summaries = suborder_summaries(raw_id, order)
    sellers = sorted(counted) if len(counted) > 1 else list(counted)
    for seller_id, part, summary in zip(sellers, order.suborders, summaries, strict=True):
        own = counted[seller_id]
        promised = promises.get(seller_id, _NOTHING) if promises else _NOTHING
        rows.append(
            # By place: of so many fields msgspec takes three times as long to find each by its name.
            SuborderRow(
                summary.suborder_id,
                row.id,
                row.user_id,
                row.region,
                summary.seller_id,
                summary.status,
                _closed_because(part),
                row.currency,
                money.text(part.items_amount, digits),
                money.text(part.shipping, digits),
                money.text(part.discount, digits),
                money.text(part.tax, digits),
                summary.total_amount,
                own.units,
                part.live,
                part.in_transit,
                part.delivered,
                part.returned,
                promised.ship_by,
                promised.deliver_by,
                promised.late_since,
                row.status,
                own.items,
                own.units,
                own.parcels,
                own.in_transit,
                own.delivered,
                own.returned,
                own.returns,
                row.created_at,
                row.updated_at,
                row.version,
            )
        )
    return rows


def payment_rows(order_id: str, order: Order, wanted: Container[bytes] | None = None) -> list[PaymentRow]:
    """Rows of orders_payment for the `wanted` payments (all without it)."""
    created = order.created
    assert created is not None
    keys: dict[bytes, int] = {}
    captured: dict[bytes, Payment] = {}
    failed: dict[bytes, PaymentFailure] = {}
    for payment in order.payments:
        if wanted is None or payment.payment_id in wanted:
            keys[payment.payment_id] = 1
            if not payment.refused:
                captured[payment.payment_id] = payment
    for failure in order.failures:
        if wanted is None or failure.payment_id in wanted:
            keys[failure.payment_id] = keys.get(failure.payment_id, 0) + 1
            if not failure.refused:
                failed[failure.payment_id] = failure
    digits = money.DIGITS[created.currency]
    user_id, region = ids.text(created.user_id), created.region or ""
    rows: list[PaymentRow] = []
    for payment_id, count in keys.items():
        money_in, refusal = captured.get(payment_id), failed.get(payment_id)
        seen: list[int] = []
        if money_in is not None:
            seen.append(money_in.time)
        if refusal is not None:
            seen.append(refusal.time)
        if not seen:
            continue
        rows.append(
            PaymentRow(
                id=ids.text(payment_id),
                order_id=order_id,
                user_id=user_id,
                region=region,
                status="failed" if money_in is None else "captured",
                amount=None if money_in is None else money.text(money_in.amount, digits),
                currency=None if money_in is None else money_in.currency,
                method=None if money_in is None else money_in.method,
                reason=None if refusal is None else refusal.reason,
                created_at=times.text(min(seen)),
                updated_at=times.text(max(seen)),
                version=count,
            )
        )
    return rows


def refund_rows(
    order_id: str, raw_id: bytes, order: Order, wanted: Container[bytes] | None = None
) -> list[RefundRow]:
    """Rows of orders_refund for the `wanted` refunds, by raw id (all without it)."""
    created = order.created
    assert created is not None
    if not order.decisions:
        return []
    replies: dict[bytes, list[RefundReply]] = {}
    for reply in order.refunds:
        if wanted is None or reply.refund_id in wanted:
            replies.setdefault(reply.refund_id, []).append(reply)
    digits = money.DIGITS[created.currency]
    user_id, region = ids.text(created.user_id), created.region or ""
    rows: list[RefundRow] = []
    for decision in order.decisions:
        refund_id = ids.uuid5(raw_id, f"refund:{decision.n}")
        if wanted is not None and refund_id not in wanted:
            continue
        answers = replies.get(refund_id, [])
        seen = [reply.time for reply in answers if not reply.refused]
        seen.append(decision.time)
        attempt = latest_attempt(order, refund_id)
        asked_again = [lapse.time for lapse in order.lapses if is_retry(lapse, refund_id)]
        seen += asked_again
        status, last = _outcome(answers, attempt)
        rows.append(
            RefundRow(
                id=ids.text(refund_id),
                order_id=order_id,
                user_id=user_id,
                region=region,
                number=decision.n,
                status=status,
                amount=money.text(decision.amount, digits),
                tax_amount=money.text(decision.tax or 0, digits),
                currency=created.currency,
                cause=decision.cause.text,
                cause_id=ids.text(decision.cause_id),
                attempt=attempt,
                reason=None if last is None else last.reason,
                requested_at=times.text(decision.time),
                settled_at=times.text(last.time) if last is not None and status == "completed" else None,
                created_at=times.text(min(seen)),
                updated_at=times.text(max(seen)),
                version=1 + len(answers) + len(asked_again),
            )
        )
    return rows


def _outcome(replies: list[RefundReply], attempt: int) -> tuple[RefundStatusText, RefundReply | None]:
    """A refund's status, and the reply that makes it so: None if there is none. What completed any attempt
    counts, the earliest of them; of failures that of `attempt`, the latest that was asked for.
    """
    failed: RefundReply | None = None
    completed: RefundReply | None = None
    for reply in replies:
        if reply.refused:
            continue
        if not reply.failed:
            if completed is None or (reply.time, reply.attempt) < (completed.time, completed.attempt):
                completed = reply
        elif reply.attempt == attempt:
            failed = reply
    if completed is not None:
        return "completed", completed
    return ("requested", None) if failed is None else ("failed", failed)
