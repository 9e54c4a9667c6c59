"""Deadlines: what is waited for, until when, and what follows when it doesn't come (docs/decisions/0009).

Pure: time is a number that the caller gives. All times are the broker's (append time, milliseconds since
1970), never an event's own. A deadline that passes becomes a record in orders.decisions, once, and counts
when it is folded; a replay reads it and looks at no clock.

    payment   captured below the order's total     -> the stock is asked back, as by a cancellation
    stock     no answer to stock.reserve           -> asked again under the same id; at last it is a rejection
    release   no answer to stock.release           -> asked again under the same id; at last an anomaly
    label     no parcel since shipping.label.create-> asked again under the same id; at last an anomaly
    refund    no answer to refund.request          -> asked again under the same id; at last an anomaly

domain.lapses has the others: what is shipped and delivered too late, returns, refunds that failed.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from contracts import ids
from domain.enums import DeadlineKind, OrderStatus, Rank, SuborderStatus
from domain.lapses import (
    pending_answers,
    pending_promises,
    pending_retries,
    pending_returns,
    unshipped_since,
)
from domain.order import Order
from domain.shapes import DeadlinePolicy, Due
from domain.taken_over import is_answer, is_history

_PAYMENT, _STOCK, _RELEASE = DeadlineKind.PAYMENT, DeadlineKind.STOCK, DeadlineKind.RELEASE
_LABEL, _REFUND = DeadlineKind.LABEL, DeadlineKind.REFUND
_IN_TRANSIT: Final = Rank.IN_TRANSIT
_CONFIRMED: Final = OrderStatus.CONFIRMED
_CLOSED: Final = SuborderStatus.CLOSED
_attempt: Final = attrgetter("attempt")


def pending(order: Order, order_id: bytes, policy: DeadlinePolicy) -> list[Due]:
    """All deadlines that an order waits for, in no order.
    It reads what was published last, so it looks at no units.
    """
    created, armed = order.created, order.appended
    if created is None or not armed:
        return []
    if created.live_from is None and armed * 1000 - created.time > policy.history * 1000:
        return []
    reserved = not is_history(created, created)
    deadlines: list[Due] = []
    last = {(each.what, each.subject): each for each in sorted(order.deadlines, key=_attempt)}

    def wait(what: DeadlineKind, subject: bytes | None, asked: int, limit: int, asks: int) -> None:
        known = last.get((what, subject))
        if limit and (known is None or not known.final):
            attempt = 1 if known is None else known.attempt + 1
            since = asked if known is None else max(asked, known.appended)
            deadlines.append(Due(since + limit, what, subject, attempt, attempt >= asks))

    cancelled = {
        each.seller_id: max(armed, each.appended) for each in order.cancellations if not each.refused
    }
    overdue = last.get((_PAYMENT, None))
    unpaid = order.status < _CONFIRMED
    if unpaid and None not in cancelled and any(part.status is not _CLOSED for part in order.suborders):
        wait(_PAYMENT, None, armed, policy.payment, 1)
    answered = {reply.seller_id for reply in order.stock if not reply.refused}
    scanned = {scan.seller_id for scan in order.scans if not scan.refused}
    moved = {scan.seller_id for scan in order.scans if scan.rank >= _IN_TRANSIT and not scan.refused}
    sellers = sorted({item.seller_id for item in created.items})
    for seller_id, part in zip(sellers, order.suborders, strict=True):
        if part.live <= part.in_transit:
            continue
        if reserved and seller_id not in answered and seller_id not in scanned:
            wait(_STOCK, seller_id, armed, policy.stock, policy.stock_asks)
        asked_back = [
            at
            for at in (
                cancelled.get(None),
                cancelled.get(seller_id),
                overdue and max(armed, overdue.appended),
                order.lapses and unshipped_since(order, seller_id),
            )
            if at
        ]
        if asked_back:
            wait(_RELEASE, seller_id, min(asked_back), policy.release, policy.release_asks)
        elif order.labelled and order.labelled_at and seller_id not in moved:
            wait(_LABEL, seller_id, order.labelled_at, policy.label, policy.label_asks)
    replied = {reply.refund_id for reply in order.refunds if is_answer(created, reply)}
    for decision in order.decisions:
        refund_id = ids.uuid5(order_id, f"refund:{decision.n}")
        if refund_id not in replied:
            wait(_REFUND, refund_id, max(armed, decision.appended), policy.refund, policy.refund_asks)
    deadlines += pending_promises(order, policy, sellers, {None} if overdue else cancelled)
    if order.returns:
        deadlines += pending_returns(order, policy)
    if order.refunds:
        deadlines += pending_retries(order, created, order_id, policy)
        deadlines += pending_answers(order, created, order_id, policy)
    return deadlines


def next_due(order: Order, order_id: bytes, policy: DeadlinePolicy) -> int:
    """When the next deadline passes, ms by the broker's time; 0: none."""
    waits = pending(order, order_id, policy)
    return min(due.at for due in waits) if waits else 0
