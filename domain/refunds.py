"""Which refund is owed next (contracts: section 2). Units are kept and counted in spans: a line may have 100,000 of them."""

from __future__ import annotations

from typing import Final

from domain.order import PROCESSED, Order, RefundDecision
from domain.sums import CAUSE_CLOSED, CAUSE_RETURN, CAUSE_STOCK, Paid, Span, Sums
from domain.survey import Line, Suborder, Survey

MOST_UNITS: Final = 10_000
"""Units that one decision about units gone pays for at most: its record names each of them. What is left is owed again at once."""


def owed(order: Order, now: Survey, order_id: bytes, time: int, sums: Sums | None = None) -> RefundDecision | None:
    """The next refund that is due and covered by captured money, or None. `time` is that of the fact that made it due.

    `sums`: those of the order, if they are at hand.
    """
    free = now.captured - now.decided
    if free <= 0:
        return None
    n = len(order.decisions)
    if not now.live:
        return RefundDecision(time, n, free, CAUSE_CLOSED, order_id, [], [])
    if not order.returns and not order.stock and not order.deadlines:
        return None
    if sums is None:
        sums = Sums(order)
    paid = sums.payments_made()
    by_id = {line.item_id: line for line in now.lines}
    unpaid = [return_id for return_id, stage in sums.returns.items() if stage.status == PROCESSED and return_id not in paid.returns]
    for return_id in sorted(unpaid):
        stage = sums.returns[return_id]
        line = by_id[stage.item_id]
        units = _lowest(paid, line, 0, stage.quantity or line.quantity)
        amount = _net(line, units)
        if 0 < amount <= free:
            return RefundDecision(time, n, amount, CAUSE_RETURN, return_id, _named(line, units), [])
    for suborder in now.suborders:
        if suborder.live < suborder.ordered:
            amount, named, shipping = _gone(paid, suborder)
            if named and 0 < amount <= free:
                return RefundDecision(time, n, amount, CAUSE_STOCK, suborder.seller_id, named, shipping)
    return None


def _gone(paid: Paid, suborder: Suborder) -> tuple[int, list[tuple[bytes, int, int]], list[bytes]]:
    """Amount, units and shipping owed for a seller's units that are not live."""
    amount, left = 0, MOST_UNITS
    named: list[tuple[bytes, int, int]] = []
    shipping: list[bytes] = []
    for line in suborder.lines:
        if line.live < line.quantity:
            units = _lowest(paid, line, line.live, left)
            left -= sum(end - start for start, end in units)
            amount += _net(line, units)
            named += _named(line, units)
            if line.live == 0 and line.shipping and line.item_id not in paid.shipping:
                shipping.append(line.item_id)
                amount += line.shipping
    return amount, named, shipping


def _lowest(paid: Paid, line: Line, first: int, most: int) -> list[Span]:
    """The lowest `most` units from `first` on that are not paid for."""
    spans: list[Span] = []
    for start, end in paid.unpaid(line.item_id, first, line.quantity):
        if most <= 0:
            break
        end = min(end, start + most)
        spans.append((start, end))
        most -= end - start
    return spans


def _net(line: Line, units: list[Span]) -> int:
    """Price of the units less their share of the discount."""
    return sum(line.price * (end - start) - line.discount_of_first(end) + line.discount_of_first(start) for start, end in units)


def _named(line: Line, units: list[Span]) -> list[tuple[bytes, int, int]]:
    return [(line.item_id, start, end - start) for start, end in units]
