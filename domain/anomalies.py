"""Anomalies of an order: oddities that are reported instead of refused.

Which fact to refuse would depend on which one came first. So the facts are kept and count as far as they can
(docs/rules.md, Anomalies).
"""

from __future__ import annotations

from contracts import ids
from domain.enums import DeadlineKind, RefundCause, ReturnStatus
from domain.order import Order
from domain.refunds import uncovered
from domain.status import OrderView, view_of
from domain.totals import winning_stages


def anomalies(order: Order, order_id: bytes) -> list[str]:
    """An order's anomalies, as stable texts "code: detail", sorted.
    None while its order.created hasn't come.
    """
    created = order.created
    if created is None:
        return []
    now = view_of(order)
    texts: list[str] = []
    if now.captured > now.total:
        texts.append("overpaid: captured above the order's total")
    returned: dict[bytes, int] = {}
    quantity = {line.item_id: line.quantity for line in now.lines}
    for stage in winning_stages(order).values():
        if stage.status is ReturnStatus.PROCESSED:
            returned[stage.item_id] = returned.get(stage.item_id, 0) + (
                stage.quantity or quantity[stage.item_id]
            )
    for line in now.lines:
        name = ids.text(line.item_id)
        if returned.get(line.item_id, 0) > line.quantity:
            texts.append(f"over_returned: item {name}: more units returned than there are")
        if line.claimed > line.quantity - line.gone:
            texts.append(f"moved_though_gone: item {name}: more units in transit than are not gone")
    for reply in order.stock:
        if not reply.refused and reply.reservation_id != ids.uuid5(
            order_id, f"reservation:{ids.text(reply.seller_id)}"
        ):
            texts.append(
                f"reservation_unknown: seller {ids.text(reply.seller_id)}: reservation"
                f" {ids.text(reply.reservation_id)} is not ours"
            )
    ours = {ids.uuid5(order_id, f"refund:{n}") for n in range(len(order.decisions))}
    for refund in order.refunds:
        if refund.failed:
            texts.append(f"refund_failed: refund {ids.text(refund.refund_id)}")
        if refund.refund_id not in ours:
            texts.append(f"refund_unknown: refund {ids.text(refund.refund_id)} is not ours")
    texts += _silences(order, now)
    texts += _refund_anomalies(order, now)
    return sorted(set(texts))


def _silences(order: Order, now: OrderView) -> list[str]:
    """What was asked for until nobody asked any longer, and never answered."""
    given_up = {(deadline.what, deadline.subject) for deadline in order.deadlines if deadline.final}
    if not given_up:
        return []
    texts: list[str] = []
    scanned = {scan.seller_id for scan in order.scans if not scan.refused}
    for suborder in now.suborders:
        seller = ids.text(suborder.seller_id)
        if (DeadlineKind.RELEASE, suborder.seller_id) in given_up and suborder.live > suborder.in_transit:
            texts.append(f"release_unanswered: seller {seller}: the stock was asked back in vain")
        if (
            (DeadlineKind.LABEL, suborder.seller_id) in given_up
            and suborder.live
            and suborder.seller_id not in scanned
        ):
            texts.append(f"label_unscanned: seller {seller}: no scan since its label was asked for")
    replied = {refund.refund_id for refund in order.refunds}
    for what, subject in given_up:
        if what is DeadlineKind.REFUND and subject is not None and subject not in replied:
            texts.append(f"refund_unconfirmed: refund {ids.text(subject)}")
    return texts


def _refund_anomalies(order: Order, now: OrderView) -> list[str]:
    texts: list[str] = []
    if now.decided > now.captured:
        texts.append("refund_above_captured: decided above what was captured")
    if not now.live:
        return texts
    for refund in uncovered(order, now):
        texts.append(
            f"refund_uncovered: {refund.cause.text} {ids.text(refund.cause_id)}: captured money does not"
            " cover this refund"
        )
    live = {line.item_id: line.live for line in now.lines}
    stages = winning_stages(order)
    for decision in order.decisions:
        stage = stages.get(decision.cause_id)
        processed = stage is not None and stage.status is ReturnStatus.PROCESSED
        if decision.cause is RefundCause.RETURN and not processed:
            texts.append(f"refund_contradicted: decision {decision.n}: its return is not processed after all")
        if decision.cause is RefundCause.STOCK and any(
            first < live[item_id] for item_id, first, _ in decision.units
        ):
            texts.append(
                f"refund_contradicted: decision {decision.n}: a unit that it paid for is live after all"
            )
        if decision.cause is RefundCause.CLOSED:
            texts.append(
                f"refund_contradicted: decision {decision.n}: the order was closed, but a unit is live"
                " after all"
            )
    return texts
