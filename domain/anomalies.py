"""Anomalies of an order: oddities that are reported instead of refused.

Which fact to refuse would depend on which one came first. So the facts are kept and count as far as they can
(docs/rules.md, Anomalies).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple, get_args

from contracts import ids, times
from contracts.statuses import AttentionText
from domain.enums import DeadlineKind, Rank, RefundCause, ReturnStatus
from domain.order import Created, Order
from domain.promises import Promises
from domain.refunds import uncovered
from domain.status import OrderView, view_of
from domain.taken_over import is_answer, is_history
from domain.totals import RunningTotals

KINDS: Final[tuple[AttentionText, ...]] = get_args(AttentionText)
"""Every kind."""
_NO_NUMBERS: Final[Mapping[str, int]] = {}


class Anomaly(NamedTuple):
    """One oddity. `kind`: its stable code. `subject`: raw id of the item, seller or refund that it is about,
    or the number of a decision, None for the order. `numbers`: by name, what makes it one; money in minor
    units.
    """

    kind: str
    detail: str
    subject: bytes | int | None = None
    numbers: Mapping[str, int] = _NO_NUMBERS


def anomalies(order: Order, order_id: bytes) -> list[str]:
    """An order's anomalies, as stable texts "code: detail", sorted.
    None while its order.created hasn't come.
    """
    return sorted({f"{each.kind}: {each.detail}" for each in found(order, order_id)})


def found(
    order: Order, order_id: bytes, now: OrderView | None = None, totals: RunningTotals | None = None
) -> list[Anomaly]:
    """An order's anomalies, in no order; a refund that failed twice is there twice. Pure.

    `now` and `totals`: those of the order, if they are at hand. Of an order without any it looks at little:
    this is asked with every event.
    """
    created = order.created
    if created is None:
        return []
    if totals is None:
        totals = RunningTotals(order)
    if now is None:
        now = view_of(order, totals)
    some: list[Anomaly] = []
    if now.captured > now.total:
        numbers = {"captured": now.captured, "total": now.total}
        some.append(Anomaly("overpaid", "captured above the order's total", None, numbers))
    history, before = totals.history, created.refunded_amount
    if history is not None and before is not None and before > history.captured:
        numbers = {"refunded": before, "captured": history.captured}
        detail = "another system paid back more than it captured"
        some.append(Anomaly("refunded_above_history", detail, None, numbers))
    if totals.claimed or totals.returned:
        _about_units(some, now, totals)
    if order.stock:
        _reservations(some, order, created, order_id)
    if order.refunds:
        _replies(some, order, created, order_id)
    if order.deadlines:
        some += _silences(order, created, now)
    if order.lapses:
        some += _lateness(order, now, totals)
    if order.decisions or order.grants or totals.gone or totals.returned:
        some += _about_refunds(order, now, totals)
    return some


def _about_units(some: list[Anomaly], now: OrderView, totals: RunningTotals) -> None:
    """What parcels and processed returns say of units."""
    for line in now.lines:
        back = totals.returned.get(line.item_id, 0) if totals.returned else 0
        if back > line.quantity:
            numbers = {"returned": back, "quantity": line.quantity}
            detail = f"item {ids.text(line.item_id)}: more units returned than there are"
            some.append(Anomaly("over_returned", detail, line.item_id, numbers))
        if line.claimed > line.quantity - line.gone:
            numbers = {"in_transit": line.claimed, "quantity": line.quantity, "gone": line.gone}
            detail = f"item {ids.text(line.item_id)}: more units in transit than are not gone"
            some.append(Anomaly("moved_though_gone", detail, line.item_id, numbers))
        if line.brought_back > back:
            numbers = {"brought_back": line.brought_back, "returned": back}
            detail = (
                f"item {ids.text(line.item_id)}: {line.brought_back - back} of it came back, and no processed"
                " return names them"
            )
            some.append(Anomaly("came_back", detail, line.item_id, numbers))


def _reservations(some: list[Anomaly], order: Order, created: Created, order_id: bytes) -> None:
    """Replies of the inventory that name a reservation that the pipeline didn't make."""
    for reply in order.stock:
        if (
            not reply.refused
            and not is_history(created, reply)
            and reply.reservation_id != ids.uuid5(order_id, f"reservation:{ids.text(reply.seller_id)}")
        ):
            seller, named = ids.text(reply.seller_id), ids.text(reply.reservation_id)
            detail = f"seller {seller}: reservation {named} is not ours"
            some.append(Anomaly("reservation_unknown", detail, reply.reservation_id))


def _replies(some: list[Anomaly], order: Order, created: Created, order_id: bytes) -> None:
    """Refunds that failed, that were paid twice, and that the pipeline didn't decide."""
    ours = {ids.uuid5(order_id, f"refund:{n}") for n in range(len(order.decisions))}
    paid: dict[bytes, int] = {}
    completed = {refund.refund_id for refund in order.refunds if not refund.failed}
    replies = [refund for refund in order.refunds if not is_history(created, refund)]
    for refund in replies:
        if not refund.failed:
            paid[refund.refund_id] = paid.get(refund.refund_id, 0) + 1
    for refund in replies:
        name, times_paid = f"refund {ids.text(refund.refund_id)}", paid.get(refund.refund_id, 0)
        if refund.failed and refund.refund_id not in completed:
            some.append(Anomaly("refund_failed", name, refund.refund_id))
        if times_paid > 1 and not refund.failed:
            numbers = {"attempts": times_paid}
            detail = f"{name}: {times_paid} attempts were paid out"
            some.append(Anomaly("refund_paid_twice", detail, refund.refund_id, numbers))
        if refund.refund_id not in ours:
            some.append(Anomaly("refund_unknown", f"{name} is not ours", refund.refund_id))


def _silences(order: Order, created: Created, now: OrderView) -> list[Anomaly]:
    """What was asked for until nobody asked any longer, and never answered."""
    given_up = {(deadline.what, deadline.subject) for deadline in order.deadlines if deadline.final}
    if not given_up:
        return []
    some: list[Anomaly] = []
    moved = {scan.seller_id for scan in order.scans if scan.rank >= Rank.IN_TRANSIT and not scan.refused}
    for suborder in now.suborders:
        seller, seller_id = f"seller {ids.text(suborder.seller_id)}", suborder.seller_id
        if (DeadlineKind.RELEASE, seller_id) in given_up and suborder.live > suborder.in_transit:
            detail = f"{seller}: the stock was asked back in vain"
            some.append(Anomaly("release_unanswered", detail, seller_id))
        if (DeadlineKind.LABEL, seller_id) in given_up and suborder.live and seller_id not in moved:
            detail = f"{seller}: no parcel in transit since its label was asked for"
            some.append(Anomaly("label_unscanned", detail, seller_id))
    replied = {refund.refund_id for refund in order.refunds if is_answer(created, refund)}
    for what, subject in given_up:
        if what is DeadlineKind.REFUND and subject is not None and subject not in replied:
            some.append(Anomaly("refund_unconfirmed", f"refund {ids.text(subject)}", subject))
    return some


def _lateness(order: Order, now: OrderView, totals: RunningTotals) -> list[Anomaly]:
    """What was promised and didn't happen, and returns that nobody judged."""
    some: list[Anomaly] = []
    promises = Promises(order)
    for suborder in now.suborders:
        seller, lines = f"seller {ids.text(suborder.seller_id)}", suborder.open_lines()
        for what, kind, done in (
            (DeadlineKind.SHIP, "late_to_ship", "in transit"),
            (DeadlineKind.DELIVER, "late_to_deliver", "delivered"),
        ):
            lapses = promises.passed(what, suborder.seller_id)
            late = [(lapse, units) for lapse in lapses if (units := promises.late(lapse, lines))]
            if late:
                # Lines with a promise and lines without one may be late by different deadlines.
                units = {item_id: each for _, made_late in late for item_id, each in made_late.items()}
                first = min(lapse.due or 0 for lapse, _ in late)
                count = sum(units.values())
                detail = f"{seller}: {count} not {done}, due {times.text(first)}"
                some.append(Anomaly(kind, detail, suborder.seller_id, {"units": count}))
    overdue = {lapse.subject for lapse in order.lapses if lapse.what is DeadlineKind.RETURN}
    for return_id, stage in totals.returns.items() if overdue else ():
        if return_id in overdue and stage.status is ReturnStatus.REQUESTED:
            detail = f"return {ids.text(return_id)}: neither processed nor rejected"
            some.append(Anomaly("return_overdue", detail, return_id))
    return some


def _about_refunds(order: Order, now: OrderView, totals: RunningTotals) -> list[Anomaly]:
    some: list[Anomaly] = []
    if now.decided > now.captured:
        numbers = {"decided": now.decided, "captured": now.captured}
        some.append(Anomaly("refund_above_captured", "decided above what was captured", None, numbers))
    for refund in uncovered(order, now, totals) if now.live else ():
        detail = f"{refund.cause.text} {ids.text(refund.cause_id)}: captured money does not cover this refund"
        numbers = {"amount": refund.amount, "captured": now.captured, "decided": now.decided}
        some.append(Anomaly("refund_uncovered", detail, refund.cause_id, numbers))
    live = {line.item_id: line.live for line in now.lines} if order.decisions else {}
    stages = totals.returns
    for decision in order.decisions:
        stage = stages.get(decision.cause_id)
        processed = stage is not None and stage.status is ReturnStatus.PROCESSED
        why: list[str] = []
        if decision.cause is RefundCause.RETURN and not processed:
            why.append("its return is not processed after all")
        if decision.cause is RefundCause.STOCK and any(
            first < live[item_id] for item_id, first, _ in decision.units
        ):
            why.append("a unit that it paid for is live after all")
        if decision.cause is RefundCause.CLOSED and now.live:
            why.append("the order was closed, but a unit is live after all")
        some += [Anomaly("refund_contradicted", f"decision {decision.n}: {each}", decision.n) for each in why]
    return some
