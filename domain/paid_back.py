"""What another system paid back of an order that it handled before (docs/rules.md, History of another
system).

Nobody tells which units and which shipping that was. So they are found anew each time, among those that no
decision of ours pays for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from domain.enums import ReturnStatus
from domain.order import Created
from domain.taken_over import History, is_history
from domain.totals import RefundedUnits, RunningTotals, Span


class Line(Protocol):
    """What counts here of a line of domain.status, which imports this module."""

    @property
    def item_id(self) -> bytes: ...
    @property
    def quantity(self) -> int: ...
    @property
    def live(self) -> int: ...
    @property
    def postage(self) -> int: ...
    def cost_of(self, first: int, end: int) -> int: ...


class OrderView(Protocol):
    """The same of an order."""

    @property
    def lines(self) -> Sequence[Line]: ...
    @property
    def total(self) -> int: ...


class PaidBack(NamedTuple):
    """`amount`: what the other system paid back, minor units. `refunded`: units, shipping, returns and grants
    that it or a decision of ours paid for.
    """

    amount: int
    refunded: RefundedUnits


def paid_back(now: OrderView, totals: RunningTotals) -> PaidBack:
    """What another system paid back; without one 0, and what our decisions pay for. Pure."""
    history, refunded = totals.history, totals.refunded_units()
    if history is None:
        return PaidBack(0, refunded)
    created = history.created
    returned = _returned(created, totals, refunded.returns)
    grants = [each.grant_id for each in totals.order.grants if not each.refused and is_history(created, each)]
    cost = 0
    if returned or history.gone or grants:
        refunded = refunded.copy()
        for return_id, _, _ in returned:
            refunded.returns.add(return_id)
        refunded.grants.update(grants)
        cost = _cost(now, refunded, returned, history)
    if created.refunded_amount is not None:
        return PaidBack(created.refunded_amount, refunded)
    # What it captured and the rest of the order doesn't cost went back, of what these units cost.
    return PaidBack(min(max(history.captured - (now.total - cost), 0), cost), refunded)


def _returned(
    created: Created, totals: RunningTotals, decided: set[bytes]
) -> list[tuple[bytes, bytes, int | None]]:
    """The returns that history processed: (return, item, units; None: the whole line). Not those for which a
    decision of ours has paid, before they turned out to be history.
    """
    return [
        (return_id, stage.item_id, stage.quantity)
        for return_id, stage in totals.returns.items()
        if stage.status is ReturnStatus.PROCESSED and is_history(created, stage) and return_id not in decided
    ]


def _cost(
    now: OrderView,
    refunded: RefundedUnits,
    returned: list[tuple[bytes, bytes, int | None]],
    history: History,
) -> int:
    """What the units and the shipping cost that history names. `refunded` gets them."""
    back: dict[bytes, list[int | None]] = {}
    for _, item_id, quantity in returned:
        back.setdefault(item_id, []).append(quantity)
    cost = 0
    for line in now.lines:
        units = sum(quantity or line.quantity for quantity in back.get(line.item_id, ()))
        if units:
            cost += _take(refunded, line, refunded.not_refunded(line.item_id, 0, line.quantity), units)[1]
        gone = history.gone.get(line.item_id, 0)
        if gone:
            cost += _cost_of_gone(refunded, line, gone)
    return cost


def _cost_of_gone(refunded: RefundedUnits, line: Line, gone: int) -> int:
    """Of a line, for so many units that were rejected or released: the lowest not live, then the highest
    live ones; and its shipping, if they are the whole line.
    """
    item_id, live, quantity = line.item_id, line.live, line.quantity
    taken, cost = _take(refunded, line, refunded.not_refunded(item_id, live, quantity), gone)
    if taken < gone:
        highest = [*refunded.not_refunded(item_id, 0, live)]
        left = gone - taken
        for start, end in reversed(highest):
            count = min(left, end - start)
            cost += _take(refunded, line, [(end - count, end)], count)[1]
            left -= count
    if gone >= quantity and item_id not in refunded.shipping:
        refunded.shipping.add(item_id)
        cost += line.postage
    return cost


def _take(refunded: RefundedUnits, line: Line, spans: Iterable[Span], most: int) -> tuple[int, int]:
    """Count the first `most` units of these spans of a line as paid for. -> (how many, what they cost)."""
    taken = cost = 0
    for start, end in [*spans]:
        end = min(end, start + most - taken)
        if start < end:
            refunded.take(line.item_id, start, end)
            cost += line.cost_of(start, end)
            taken += end - start
    return taken, cost
