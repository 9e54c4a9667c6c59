"""Which refunds are owed (docs/rules.md, Refunds).

Units are kept and counted in spans: a line may have 100,000 of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from domain.allocations import allocate
from domain.enums import RefundCause, ReturnStatus
from domain.order import Order, RefundDecision
from domain.paid_back import paid_back
from domain.status import Line, OrderView, Suborder
from domain.tax import is_taxed
from domain.totals import RefundedUnits, RunningTotals

MOST_UNITS = 10_000
"""Units that one decision about units gone pays for at most: its record names each of them.
What is left is owed again at once.
"""

Units = list[tuple[Line, int, int]]
"""Units first ... end - 1 of a line, for each of some lines."""


class Owed(NamedTuple):
    """A refund that is owed, the whole of it: more units, perhaps, than one decision names.
    `amount`: minor units, above 0.
    """

    amount: int
    cause: RefundCause
    cause_id: bytes
    units: Units
    shipping: list[bytes]


def next_refund(
    order: Order, now: OrderView, order_id: bytes, time: int, totals: RunningTotals | None = None
) -> RefundDecision | None:
    """The next decision: the first refund that captured money covers, or a piece of it; None if there is
    none.

    `time` is that of the fact that made it due. `totals`: those of the order, if they are at hand.
    """
    if now.free <= 0:
        return None
    if now.live and not _may_owe(order):
        return None  # the usual case, so it is tested before anything is added up
    if totals is None:
        totals = RunningTotals(order)
    refunded = paid_back(now, totals).refunded
    if not now.live:
        if totals.history is not None and totals.history.is_all:
            return None  # the other system paid back what it owed
        decision = _of_closed(order, now, order_id, time, refunded)
    else:
        for refund in _refunds_owed(order, now, totals, refunded):
            if _is_covered(refund, now, refunded):
                decision = _of_owed(order, now, refund, time)
                break
        else:
            return None
    # What has left without saying from which payment: the other system's refunds, and decisions of earlier
    # versions.
    rest = now.captured - now.free - sum(refunded.allocated.values())
    decision.allocations = allocate(order.payments, refunded.allocated, rest, decision.amount)
    return decision


def _of_closed(
    order: Order, now: OrderView, order_id: bytes, time: int, refunded: RefundedUnits
) -> RefundDecision:
    """All that is left, of an order without a live unit."""
    assert order.created is not None
    tax = _tax_of_closed(now, now.free, refunded) if is_taxed(order.created) else None
    return RefundDecision(time, len(order.decisions), now.free, RefundCause.CLOSED, order_id, [], [], tax=tax)


def _of_owed(order: Order, now: OrderView, refund: Owed, time: int) -> RefundDecision:
    """The decision about a refund, or about a piece of it: at most what is left."""
    assert order.created is not None
    units = _piece(refund.units) if refund.cause is RefundCause.STOCK else refund.units
    amount = refund.amount if units is refund.units else refund.amount - _net(refund.units) + _net(units)
    spans = [(line.item_id, start, end - start) for line, start, end in units]
    tax = _tax_of(now, units, refund.shipping) if is_taxed(order.created) else None
    return RefundDecision(
        time,
        len(order.decisions),
        min(amount, now.free),
        refund.cause,
        refund.cause_id,
        spans,
        refund.shipping,
        tax=tax,
    )


def _is_covered(refund: Owed, now: OrderView, refunded: RefundedUnits) -> bool:
    """Whether free money covers a refund whole.

    A refund of units of a fully paid order also counts as covered if goodwill or another system's refunds
    alone are why it isn't; it is then cut to what is left, possibly 0.
    """
    if refund.amount <= now.free:
        return True
    without_either = now.captured - now.decided + refunded.granted
    return (
        refund.cause is not RefundCause.GRANT
        and now.captured >= now.total
        and refund.amount <= without_either
    )


def _tax_of(now: OrderView, units: Units, shipping: list[bytes]) -> int:
    """The tax of units, and of the shipping of lines."""
    named = set(shipping)
    return sum(line.tax_of(start, end) for line, start, end in units) + sum(
        line.postage_tax for line in now.lines if line.item_id in named
    )


def _tax_of_closed(now: OrderView, amount: int, refunded: RefundedUnits) -> int:
    """The tax in `amount`, the next refund of an order without a live unit.

    What nobody has paid for has a cost and a tax. As much of this tax as the refunds of this cause, with this
    one, are of this cost is told, all of it at most; what those before told is taken off.
    """
    cost = tax = 0
    for line in now.lines:
        for start, end in refunded.not_refunded(line.item_id, 0, line.quantity):
            cost += line.cost_of(start, end)
            tax += line.tax_of(start, end)
        if line.item_id not in refunded.shipping:
            cost += line.postage
            tax += line.postage_tax
    paid = refunded.closed + amount
    reached = tax if paid >= cost else tax * paid // cost
    # A unit may have been live between two of these refunds, and another refund may then have told part of
    # the tax already.
    return max(0, reached - refunded.closed_tax)


def uncovered(order: Order, now: OrderView, totals: RunningTotals) -> list[Owed]:
    """Refunds that are owed and that the captured money, less what was decided, does not cover: each looked
    at by itself. `totals`: those of the order.
    """
    if not now.live:
        return []
    refunded = paid_back(now, totals).refunded
    return [
        refund
        for refund in _refunds_owed(order, now, totals, refunded)
        if not _is_covered(refund, now, refunded)
    ]


def _may_owe(order: Order) -> bool:
    """Whether an order with a live unit has any fact that a refund is owed for."""
    return bool(order.returns or order.stock or order.deadlines or order.grants)


def _refunds_owed(
    order: Order, now: OrderView, totals: RunningTotals, refunded: RefundedUnits
) -> Iterator[Owed]:
    """Every refund owed while some unit is live, covered or not; goodwill comes last.
    One of which a piece was decided last comes first, so that it ends.
    """
    if not _may_owe(order):
        return
    begun = _begun(order)
    gone = [suborder for suborder in now.suborders if suborder.live < suborder.ordered]
    for suborder in gone:
        if suborder.seller_id == begun:
            yield from _of_gone(refunded, suborder)
    if totals.returned:
        yield from _of_returns(refunded, now, totals)
    for suborder in gone:
        if suborder.seller_id != begun:
            yield from _of_gone(refunded, suborder)
    if order.grants:
        yield from _of_grants(order, refunded)


def _of_grants(order: Order, refunded: RefundedUnits) -> Iterator[Owed]:
    """What was granted and isn't decided yet, by time and then by grant_id."""
    owed = [
        (grant.time, grant.grant_id, grant.amount)
        for grant in order.grants
        if not grant.refused and grant.grant_id not in refunded.grants
    ]
    for _, grant_id, amount in sorted(owed):
        yield Owed(amount, RefundCause.GRANT, grant_id, [], [])


def _begun(order: Order) -> bytes | None:
    """The seller of whose units gone the last decision named as many as it could:
    more of them may be owed.
    """
    last = order.decisions[-1] if order.decisions else None
    if (
        last is None
        or last.cause is not RefundCause.STOCK
        or sum(count for _, _, count in last.units) < MOST_UNITS
    ):
        return None
    return last.cause_id


def _of_returns(refunded: RefundedUnits, now: OrderView, totals: RunningTotals) -> Iterator[Owed]:
    """For each processed return not refunded yet: the lowest units; where these are worth nothing, the lowest
    that are worth something. (Those before the ones that are worth nothing are refunded then.)
    """
    by_id = {line.item_id: line for line in now.lines}
    owed = [
        return_id
        for return_id, stage in totals.returns.items()
        if stage.status is ReturnStatus.PROCESSED and return_id not in refunded.returns
    ]
    for return_id in sorted(owed):
        stage = totals.returns[return_id]
        line = by_id[stage.item_id]
        most = stage.quantity or line.quantity
        units = _lowest(refunded, line, 0, most)
        amount = _net(units)
        if not amount:
            units = _lowest(refunded, line, line.worthless[1], most)
            amount = _net(units)
        if amount:
            yield Owed(amount, RefundCause.RETURN, return_id, units, [])


def _of_gone(refunded: RefundedUnits, suborder: Suborder) -> Iterator[Owed]:
    """Of a seller's units that are neither live nor refunded, all, with the shipping of
    lines that have no live unit.
    """
    units: Units = []
    postage = 0
    shipping: list[bytes] = []
    for line in suborder.lines:
        if line.live < line.quantity:
            units += [
                (line, start, end)
                for start, end in refunded.not_refunded(line.item_id, line.live, line.quantity)
            ]
            if not line.live and line.postage and line.item_id not in refunded.shipping:
                shipping.append(line.item_id)
                postage += line.postage
    amount = _net(units) + postage
    if units and amount:
        yield Owed(amount, RefundCause.STOCK, suborder.seller_id, units, shipping)


def _piece(units: Units) -> Units:
    """As many of them as one decision names.
    Those worth something first: a piece that is worth nothing would never be decided.
    """
    if sum(end - start for _, start, end in units) <= MOST_UNITS:
        return units
    worth: Units = []
    nothing: Units = []
    for line, start, end in units:
        first, after = line.worthless
        worth += [(line, start, min(end, first)), (line, max(start, after), end)]
        nothing.append((line, max(start, first), min(end, after)))
    return _first(MOST_UNITS, worth + nothing)


def _lowest(refunded: RefundedUnits, line: Line, first: int, most: int) -> Units:
    """The lowest `most` units from `first` on that are not refunded."""
    # Each span has a unit at least, so more than `most` spans are never needed.
    return _first(
        most,
        [
            (line, start, end)
            for start, end in islice(refunded.not_refunded(line.item_id, first, line.quantity), most)
        ],
    )


def _first(most: int, units: Units) -> Units:
    """The first `most` of them; spans that end before they begin have none."""
    spans: Units = []
    for line, start, end in units:
        end = min(end, start + most)
        if start < end:
            spans.append((line, start, end))
            most -= end - start
    return spans


def _net(units: Units) -> int:
    """What the units cost (Line.cost_of)."""
    return sum(line.cost_of(start, end) for line, start, end in units)
