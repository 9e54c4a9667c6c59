"""fold: one event taken into one order. The only place that adds facts to an order. Two other records are
made in streams/folder.py: order.created of a checkout, and deadline.passed.

    fold(order, event, record) -> Folded(changed, refused, effects)

The order is changed in place: it was decoded from bytes for this batch, and nobody else holds it. Pure
otherwise: no clock, no randomness, no I/O. Whatever the order of arrival, the repetitions and the split into
batches, the facts end up the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, cast

from msgspec import structs

from contracts import errors
from contracts.incoming import EVENTS, LAPSES
from contracts.record_id import RecordId
from domain.attention import attend
from domain.effects import Writer, fresh_suborders
from domain.enums import DeadlineKind, OrderStatus, Rank, ReturnStatus, StockAnswer
from domain.lapses import latest_attempt
from domain.limits import is_too_large, size_of
from domain.order import (
    Cancellation,
    Created,
    Deadline,
    Grant,
    Item,
    Lapse,
    Order,
    Payment,
    Promise,
    RefundDecision,
    RefundReply,
    ReturnStage,
    Scan,
    SimpleFact,
    StockReply,
    Waiting,
    type_of,
)
from domain.promises import Promises
from domain.refunds import next_refund
from domain.shapes import Event, Folded
from domain.status import OrderView, view_of
from domain.taken_over import is_history, is_known_live
from domain.totals import RunningTotals

_CONFIRMED: Final = OrderStatus.CONFIRMED
_IN_TRANSIT: Final = Rank.IN_TRANSIT
_DUPLICATE: Final = Folded(False, None, [])
_TOO_LARGE: Final = Folded(
    False, (errors.ORDER_TOO_LARGE, "the order has as many facts of this type as one order takes in"), []
)
TOO_LARGE_TO_BEGIN: Final = (
    errors.ORDER_TOO_LARGE,
    "more lines, units and text than an order may begin with where ORDERS_MESSAGE_BYTES is so small",
)
_TOO_LARGE_TO_BEGIN: Final = Folded(False, TOO_LARGE_TO_BEGIN, [])
_FIELD: Final = {name: spec.facts for name, spec in EVENTS.items() if spec.facts is not None}
"""Event type -> field of Order that holds its facts."""
_OF_THE_EARLIEST: Final = ("time", "reason")
"""Fields in which repetitions of a fact may differ: those of the earliest one stay."""
_NO_CONTENT: Final = (*_OF_THE_EARLIEST, "refused", "appended", "checkout_id")
"""Fields that don't count when two contents are compared (docs/rules.md, Repetitions and conflicts): those
above, and what the pipeline itself has added.
"""


def fold(order: Order, event: Event, record: RecordId | None, totals: RunningTotals | None = None) -> Folded:
    """Take `event` into `order`. Never blocks.

    `record`: coordinates of its record, kept while the fact waits for its order; may be None once
    order.created is known. `totals`: those of the order, kept up to date here; who folds several events into
    one order passes the same ones each time.
    """
    fact = event.fact
    if totals is None:
        totals = RunningTotals(order)
    if type(fact) is Created:
        return _fold_created(order, event, fact, totals)
    if type(fact) is RefundDecision:
        return _fold_decision(order, event, fact, totals)
    fact = cast(SimpleFact, fact)  # type() has ruled out the others
    field = LAPSES if type(fact) is Lapse else _FIELD[event.type]
    facts: list[SimpleFact] = getattr(order, field)
    if facts:
        known = totals.known(field, facts, fact)
        if known is not None:
            return _repeated(order, event, known, fact, totals)
        if (
            len(facts) >= totals.limits.uncounted
            and event.type in totals.limits.types
            and totals.size(event.type, facts) + size_of(fact) > totals.limits.types[event.type]
        ):
            return _TOO_LARGE
    order.version += 1
    _note_arrival(fact, event.appended)
    created = order.created
    refusal = None
    if created is None:
        assert record is not None
        order.waiting.append(Waiting(field, len(facts), record))
    else:
        refusal = _refusal(created, fact)
        fact.refused = refusal is not None
    first_move = type(fact) is Scan and _first_move(totals, fact)
    totals.add(field, facts, fact)
    if created is None or refusal is not None:
        return Folded(True, refusal, [])
    if first_move and isinstance(fact, Scan):
        _note_departure(order, created, fact.seller_id, event.appended)
    now = view_of(order, totals)
    history = is_history(created, fact)
    writer = Writer(event.order_id, created.currency, history)
    if not history:
        _commands_for(order, created, now, writer, fact, first_move)
    _publish_changes(order, created, now, writer, event, totals)
    return Folded(True, None, writer.effects)


def _note_arrival(fact: SimpleFact, appended: int) -> None:
    """Note when the broker took a fact that starts a deadline."""
    # type() is compared, because isinstance() is slow on msgspec's classes.
    if type(fact) is Cancellation or type(fact) is Deadline or type(fact) is Lapse:
        fact.appended = appended
    elif type(fact) is RefundReply:
        if fact.failed:
            fact.appended = appended
    elif type(fact) is ReturnStage and fact.status is ReturnStatus.REQUESTED:
        fact.appended = appended


def _note_departure(order: Order, created: Created, seller_id: bytes, appended: int) -> None:
    """Keep when a seller's last parcel was first in transit."""
    if not appended:
        return
    sellers = sorted({item.seller_id for item in created.items})
    if not order.left:
        order.left = [0] * len(sellers)
    at = sellers.index(seller_id)
    order.left[at] = max(order.left[at], appended)


def _repeated(
    order: Order, event: Event, known: SimpleFact | Created, fact: SimpleFact | Created, totals: RunningTotals
) -> Folded:
    """A natural key that is known already: the first content stays. Of repetitions with this content the
    earliest time stays, with its reason.
    """
    if not _same_content(known, fact):
        return Folded(
            False,
            (errors.KEY_CONFLICT, "this natural key is known with other content; the first in the log stays"),
            [],
        )
    reason, known_reason = getattr(fact, "reason", None) or "", getattr(known, "reason", None) or ""
    if (fact.time, reason) >= (known.time, known_reason):
        return _DUPLICATE
    if reason != known_reason:
        assert not isinstance(known, Created)  # it has no reason: for the type checker
        assert not isinstance(fact, Created)
        if not _reason_fits(order, event.type, known, fact, totals):
            return _TOO_LARGE
    created = order.created
    becomes_history = created is not None and is_history(created, fact) and not is_history(created, known)
    for name in _OF_THE_EARLIEST:
        if hasattr(known, name):
            setattr(known, name, getattr(fact, name))
    if created is None or getattr(known, "refused", False):
        return Folded(True, None, [])
    if becomes_history:
        totals.rebuild()
    elif not isinstance(known, Created):
        totals.earlier(known)
    writer = Writer(event.order_id, created.currency, is_history(created, fact))
    _publish_changes(order, created, view_of(order, totals), writer, event, totals)
    return Folded(True, None, writer.effects)


def _name_checkout(known: Created, again: Created, folded: Folded) -> Folded:
    """Keep the checkout that a repetition names, if it is the first one that does."""
    if folded.refused is not None or known.checkout_id is not None or again.checkout_id is None:
        return folded
    known.checkout_id = again.checkout_id
    return Folded(True, None, folded.effects)


def _reason_fits(
    order: Order, type_: str, known: SimpleFact, fact: SimpleFact, totals: RunningTotals
) -> bool:
    """Whether the order has room for a repetition's reason in place of its own. If so, counts its size."""
    more = size_of(fact) - size_of(known)
    facts: list[SimpleFact] = getattr(order, _FIELD[type_])
    if (
        more > 0
        and len(facts) >= totals.limits.uncounted
        and type_ in totals.limits.types
        and totals.size(type_, facts) + more > totals.limits.types[type_]
    ):
        return False
    totals.grow(known, more)
    return True


def _same_content(known: SimpleFact | Created, fact: SimpleFact | Created) -> bool:
    for name, mine, theirs in zip(
        known.__struct_fields__, structs.astuple(known), structs.astuple(fact), strict=True
    ):
        if mine != theirs and name not in _NO_CONTENT:
            return False
    return True


def _refusal(created: Created, fact: SimpleFact) -> tuple[str, str] | None:
    """Why a well-formed fact can't belong to this order: another currency, or an item or
    seller that it doesn't have.
    """
    if type(fact) is Payment or type(fact) is Grant:
        if fact.currency != created.currency:
            return errors.ORDER_CURRENCY, "$.currency: not the order's"
        return _refusal_of_grant(created, fact) if type(fact) is Grant else None
    if type(fact) is ReturnStage:
        for item in created.items:
            if item.item_id == fact.item_id:
                return None
        return errors.ORDER_ITEM, "$.item_id: not an item of the order"
    if isinstance(fact, (Scan, StockReply, Cancellation, Promise)):
        seller_id = fact.seller_id
        if seller_id is None:
            return None
        for item in created.items:
            if item.seller_id == seller_id:
                break
        else:
            return errors.ORDER_SELLER, "$.seller_id: not a seller of the order"
        if isinstance(fact, (Scan, StockReply)) and fact.items:
            seller_of = {item.item_id: item.seller_id for item in created.items}
            for i, (item_id, _) in enumerate(fact.items):
                owner = seller_of.get(item_id)
                if owner is None:
                    return errors.ORDER_ITEM, f"$.items[{i}].item_id: not an item of the order"
                if owner != seller_id:
                    return errors.ORDER_SELLER, f"$.items[{i}].item_id: an item of another seller"
    return None


def _refusal_of_grant(created: Created, grant: Grant) -> tuple[str, str] | None:
    """Why a grant names a seller or an item that isn't the order's."""
    sellers = {item.seller_id for item in created.items}
    if grant.seller_id is not None and grant.seller_id not in sellers:
        return errors.ORDER_SELLER, "$.seller_id: not a seller of the order"
    if grant.item_id is None:
        return None
    owners = {item.seller_id for item in created.items if item.item_id == grant.item_id}
    if not owners:
        return errors.ORDER_ITEM, "$.item_id: not an item of the order"
    if grant.seller_id is not None and grant.seller_id not in owners:
        return errors.ORDER_SELLER, "$.item_id: an item of another seller"
    return None


def _first_move(totals: RunningTotals, scan: Scan) -> bool:
    """Whether this scan is the first that says that its parcel is in transit or further."""
    if scan.rank < _IN_TRANSIT:
        return False
    winning = totals.parcels.get(scan.shipment_id)
    return winning is None or winning.rank < _IN_TRANSIT


def _fold_created(order: Order, event: Event, created: Created, totals: RunningTotals) -> Folded:
    if is_too_large(created, totals.limits):
        return _TOO_LARGE_TO_BEGIN
    if order.created is not None:
        return _name_checkout(order.created, created, _repeated(order, event, order.created, created, totals))
    order.version += 1
    order.created = created
    order.appended = event.appended
    history = is_history(created, created)
    writer = Writer(event.order_id, created.currency)
    for waiting in order.waiting:
        fact = getattr(order, waiting.field)[waiting.index]
        refusal = _refusal(created, fact)
        if refusal is not None:
            fact.refused = True
            writer.late_refusal(type_of(fact), fact, *refusal, waiting.record)
    order.waiting = []
    writer.history = history and not is_known_live(order, created)
    suborders = fresh_suborders(created)
    order.suborders = [suborder.state() for suborder in suborders]
    for suborder in suborders:
        writer.suborder_created(created, suborder)
        if not history:
            writer.stock_reserve(suborder.seller_id, _units_of(created, suborder.seller_id))
    if created.total and not history:
        writer.payment_initiate(created)
    totals.rebuild()
    now = view_of(order, totals)
    _commands_for_waiting(order, created, now, writer)
    for decision in order.decisions:
        writer.refund_request(decision, created)
    for lapse in order.lapses:
        _answer_lapse(order, created, now, writer, lapse)
    _publish_changes(order, created, now, writer, event, totals)
    return Folded(True, None, writer.effects)


def _commands_for_waiting(order: Order, created: Created, now: OrderView, writer: Writer) -> None:
    """The commands that the facts ask for which have waited for their order."""
    # If history has a scan of this parcel in transit, that was its first move, even if a live scan stands
    # before it in the list.
    moved = {
        scan.shipment_id
        for scan in order.scans
        if scan.rank >= _IN_TRANSIT and not scan.refused and is_history(created, scan)
    }
    by_kind: tuple[Sequence[SimpleFact], ...] = (
        order.cancellations,
        order.scans,
        order.returns,
        order.stock,
        order.deadlines,
    )
    for facts in by_kind:
        for fact in facts:
            if not fact.refused and not is_history(created, fact):
                first_move = (
                    isinstance(fact, Scan) and fact.rank >= _IN_TRANSIT and fact.shipment_id not in moved
                )
                if isinstance(fact, Scan) and first_move:
                    moved.add(fact.shipment_id)
                _commands_for(order, created, now, writer, fact, first_move)


def _fold_decision(order: Order, event: Event, decision: RefundDecision, totals: RunningTotals) -> Folded:
    """The first record with each n counts. A decision raises no version and moves no row's times.

    After a crash a decision can be read before the facts that made it due are read again: it then waits
    for its order like any fact.
    """
    if decision.n != len(order.decisions):
        return _DUPLICATE
    most = totals.limits.types["refund.decided"]
    if totals.size("refund.decided", order.decisions) + size_of(decision) > most:
        return _TOO_LARGE
    decision.appended = event.appended
    totals.decide(decision)
    order.proposed = max(order.proposed, len(order.decisions))
    created = order.created
    if created is None:
        return Folded(True, None, [])
    writer = Writer(event.order_id, created.currency)
    writer.refund_request(decision, created)
    for lapse in order.lapses:
        if lapse.what is DeadlineKind.REFUND_RETRY and lapse.subject == writer.refund_id(decision):
            writer.refund_request(decision, created, lapse.attempt + 1)
    now = view_of(order, totals)
    attend(order, created, now, writer, decision.time, totals)
    _propose_refund(order, now, writer, event, totals)
    return Folded(True, None, writer.effects)


def _commands_for(
    order: Order, created: Created, now: OrderView, writer: Writer, fact: SimpleFact, first_move: bool
) -> None:
    """The commands that one fact asks for by itself."""
    if type(fact) is Cancellation:
        _release_units(created, now, writer, fact.seller_id)
    elif type(fact) is Scan:
        if first_move:
            writer.stock_commit(fact.shipment_id, fact.seller_id, partial(_parcel, created, fact))
    elif type(fact) is ReturnStage and fact.status is ReturnStatus.PROCESSED and fact.restock is not False:
        # For every processed stage, though a rejection may win by its time: so the set of restocks is the
        # same in any arrival order.
        writer.stock_restock(next(item for item in created.items if item.item_id == fact.item_id), fact)
    elif type(fact) is StockReply and fact.type is StockAnswer.RESERVED:
        if _given_up(order, fact.seller_id):
            writer.stock_release(fact.seller_id, _units_of(created, fact.seller_id))
    elif type(fact) is Deadline:
        _answer_deadline(order, created, now, writer, fact)
    elif type(fact) is Lapse:
        _answer_lapse(order, created, now, writer, fact)


def _answer_deadline(
    order: Order, created: Created, now: OrderView, writer: Writer, deadline: Deadline
) -> None:
    """Ask again, under the same id, for what was waited for in vain; at the final deadline, give it up."""
    subject = deadline.subject
    # The other system asked for it, not we: don't ask again, even if a deadline.passed says that it was due.
    theirs = is_history(created, created)
    if deadline.what is DeadlineKind.PAYMENT:
        _release_units(created, now, writer, None)
    elif deadline.what is DeadlineKind.STOCK and subject is not None:
        units = _units_of(created, subject)
        if units and not deadline.final:
            if not theirs:
                writer.stock_reserve(subject, units)
        elif any(
            r.type is StockAnswer.RESERVED and r.seller_id == subject and not r.refused for r in order.stock
        ):
            writer.stock_release(subject, units)
    elif deadline.final:
        return
    elif deadline.what is DeadlineKind.RELEASE:
        _release_again(order, created, now, writer, subject)
    elif deadline.what is DeadlineKind.LABEL:
        if order.labelled or not theirs:
            _ask_labels(created, now, writer, order, subject)
    elif deadline.what is DeadlineKind.REFUND:
        for decision in order.decisions:
            if writer.refund_id(decision) == subject:
                # Under the attempt that nobody answered: it may have been paid.
                attempt = latest_attempt(order, writer.refund_id(decision))
                writer.refund_request(decision, created, attempt)


def _answer_lapse(order: Order, created: Created, now: OrderView, writer: Writer, lapse: Lapse) -> None:
    """Tell that a seller is late; ask its stock back; ask for a refund again."""
    if lapse.what is DeadlineKind.REFUND_RETRY:
        for decision in order.decisions:
            if writer.refund_id(decision) == lapse.subject:
                writer.refund_request(decision, created, lapse.attempt + 1)
    elif lapse.what is not DeadlineKind.RETURN:
        promises = Promises(order)
        for suborder in now.suborders:
            if suborder.seller_id == lapse.subject:
                late = promises.late(lapse, suborder.open_lines())
                if late and lapse.what is DeadlineKind.UNSHIPPED:
                    _release_late(created, writer, lapse.subject, late)
                elif late:
                    writer.suborder_late(lapse, sum(late.values()), order.version)


def _release_again(
    order: Order, created: Created, now: OrderView, writer: Writer, seller_id: bytes | None
) -> None:
    """Ask again for units that nobody has given back: all of the seller's, or only its late ones if lateness
    was the only reason.
    """
    if (
        not any(lapse.what is DeadlineKind.UNSHIPPED and lapse.subject == seller_id for lapse in order.lapses)
        or any(not each.refused and each.seller_id in (None, seller_id) for each in order.cancellations)
        or any(each.what is DeadlineKind.PAYMENT for each in order.deadlines)
    ):
        _release_units(created, now, writer, seller_id)
        return
    assert seller_id is not None
    promises = Promises(order)
    for suborder in now.suborders:
        if suborder.seller_id == seller_id:
            late = {
                item_id: to_ship
                for item_id, to_ship, _ in suborder.open_lines()
                if to_ship and promises.asked_back(seller_id, item_id)
            }
            if late:
                _release_late(created, writer, seller_id, late)


def _given_up(order: Order, seller_id: bytes) -> bool:
    """The seller's stock was never answered for, and counts as rejected."""
    return any(d.what is DeadlineKind.STOCK and d.final and d.subject == seller_id for d in order.deadlines)


def _units_of(created: Created, seller_id: bytes) -> list[tuple[Item, int]]:
    return [(item, item.quantity) for item in created.items if item.seller_id == seller_id]


def _release_units(created: Created, now: OrderView, writer: Writer, seller_id: bytes | None) -> None:
    """Ask back the units that have not left: one seller's, or all sellers' if `seller_id` is None."""
    by_id = {item.item_id: item for item in created.items}
    for suborder in now.suborders:
        if seller_id is None or seller_id == suborder.seller_id:
            here = [
                (by_id[line.item_id], line.live - min(line.live, line.in_transit)) for line in suborder.lines
            ]
            here = [(item, quantity) for item, quantity in here if quantity]
            if here:
                writer.stock_release(suborder.seller_id, here)


def _release_late(created: Created, writer: Writer, seller_id: bytes, late: Mapping[bytes, int]) -> None:
    """Ask back units of a seller that are late: item -> how many."""
    by_id = {item.item_id: item for item in created.items}
    writer.stock_release(seller_id, [(by_id[item_id], count) for item_id, count in late.items()])


def _parcel(created: Created, scan: Scan) -> list[tuple[Item, int]]:
    """What a parcel holds, of each line at most its quantity."""
    if scan.items is None:
        return _units_of(created, scan.seller_id)
    by_id = {item.item_id: item for item in created.items}
    return [
        (item, min(quantity, item.quantity))
        for item, quantity in ((by_id[item_id], quantity) for item_id, quantity in scan.items)
    ]


def _publish_changes(
    order: Order, created: Created, now: OrderView, writer: Writer, event: Event, totals: RunningTotals
) -> None:
    """Publish what changed: statuses, suborders, attention; ask for labels once; decide a due refund."""
    version = order.version
    if now.status >= _CONFIRMED and not order.labelled:
        order.labelled = _labels_are_ours(created, now, event, totals)
        if order.labelled or not order.labelled_at:
            order.labelled_at = event.appended
        if order.labelled:
            _ask_labels(created, now, writer, order)
    published = order.suborders
    for i, suborder in enumerate(now.suborders):
        state = suborder.state()
        if published[i] != state:
            published[i] = state
            writer.suborder_updated(created, suborder, version)
    if now.status != order.status:
        writer.status_changed(created, order.status, now.status, event, version)
        order.status = now.status
    attend(order, created, now, writer, event.fact.time, totals)
    if now.free > 0:
        _propose_refund(order, now, writer, event, totals)


def _labels_are_ours(created: Created, now: OrderView, event: Event, totals: RunningTotals) -> bool:
    """Whether this event makes us ask for labels.

    Not if the event is history, unless it is order.created and live facts had waited for it. If order.created
    is history, the other system asked for labels once its own payments covered what is due; we ask only when
    live payments are what covers it.
    """
    history = totals.history
    if history is None:
        return True
    if not is_history(created, created):
        return not is_history(created, event.fact)
    if type(event.fact) is not Created and is_history(created, event.fact):
        return False
    due = sum(suborder.total for suborder in now.suborders)
    return history.captured < due <= now.captured


def _ask_labels(
    created: Created, now: OrderView, writer: Writer, order: Order, seller_id: bytes | None = None
) -> None:
    moving = {scan.seller_id for scan in order.scans if scan.rank >= _IN_TRANSIT and not scan.refused}
    for suborder in now.suborders:
        if suborder.seller_id in moving or seller_id not in (None, suborder.seller_id):
            continue
        left = {line.item_id: line.quantity - line.gone for line in suborder.lines}
        items = [(item, left[item.item_id]) for item in created.items if left.get(item.item_id)]
        if items:
            writer.label_create(suborder.seller_id, items)


def _propose_refund(
    order: Order, now: OrderView, writer: Writer, event: Event, totals: RunningTotals
) -> None:
    """Write the next decision, unless one is on its way. `proposed` counts decisions whose records are in
    Kafka.
    """
    if order.proposed > len(order.decisions):
        return
    decision = next_refund(order, now, event.order_id, event.time, totals)
    if decision is not None:
        order.proposed += 1
        writer.refund_decided(decision)
