"""What an order's facts add up to, kept while the order is in hand: taking in a fact costs the
same however many there are.

    totals = RunningTotals(order)      looks at every fact once
    totals.add(field, facts, fact)     appends a fact to that list of the order, and counts it

Everything here follows from the order alone, whichever way it came about.
Parcels, returns, units and captured money are there once order.created is known.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Final

from contracts.incoming import FACT_FIELDS
from domain.enums import DeadlineKind, Rank, RefundCause, ReturnStatus, StockAnswer
from domain.limits import LIMITS, Limits, size_of
from domain.order import (
    Created,
    Deadline,
    Order,
    Payment,
    RefundDecision,
    ReturnStage,
    Scan,
    SimpleFact,
    StockReply,
    type_of,
)
from domain.taken_over import History

INDEX_FROM: Final = 24
"""Facts of one kind from which on a dictionary finds a natural key faster than looking at each."""

_IN_TRANSIT, _DELIVERED, _RETURNED = Rank.IN_TRANSIT, Rank.DELIVERED, Rank.RETURNED
_REQUESTED, _PROCESSED = ReturnStatus.REQUESTED, ReturnStatus.PROCESSED
_RESERVED: Final = StockAnswer.RESERVED

Span = tuple[int, int]
"""Units first ... end - 1 of a line."""


def winning_scans(order: Order) -> dict[bytes, Scan]:
    """Parcel -> the scan that counts: highest rank, then latest time. Refused scans don't count."""
    best: dict[bytes, Scan] = {}
    for scan in order.scans:
        if scan.refused:
            continue
        known = best.get(scan.shipment_id)
        if known is None or _beats(scan, known):
            best[scan.shipment_id] = scan
    return best


def winning_stages(order: Order) -> dict[bytes, ReturnStage]:
    """Return -> the stage that counts: processed or rejected, the earlier; at equal times processed.
    Refused stages don't count.
    """
    best: dict[bytes, ReturnStage] = {}
    for stage in order.returns:
        if stage.refused:
            continue
        known = best.get(stage.return_id)
        if known is None or _precedence(stage) < _precedence(known):
            best[stage.return_id] = stage
    return best


def _beats(scan: Scan, known: Scan) -> bool:
    return (scan.rank, scan.time) > (known.rank, known.time)


def _precedence(stage: ReturnStage) -> tuple[bool, int, ReturnStatus]:
    return (stage.status is _REQUESTED, stage.time, stage.status)


class ParcelUnits:
    """Units of an item that parcels hold at this rank or above, as sent: perhaps more than there are."""

    __slots__ = ("delivered", "in_transit", "returned")

    def __init__(self) -> None:
        self.in_transit = self.delivered = self.returned = 0


class RefundedUnits:
    """What the refund decisions so far refund."""

    __slots__ = ("allocated", "closed", "closed_tax", "granted", "grants", "returns", "shipping", "units")

    def __init__(self) -> None:
        self.closed = self.closed_tax = 0
        """What those of cause closed come to, and the tax that they tell, minor units."""
        self.granted = 0
        """What those of cause grant come to."""
        self.grants: set[bytes] = set()
        self.allocated: dict[bytes, int] = {}
        """Payment -> what of it goes back by the decisions that have allocations."""
        self.units: dict[bytes, list[Span]] = {}
        """Item -> its refunded units: spans in ascending order that don't touch each other."""
        self.shipping: set[bytes] = set()
        self.returns: set[bytes] = set()

    def add(self, decision: RefundDecision) -> None:
        """Take in the next decision."""
        if decision.cause is RefundCause.RETURN:
            self.returns.add(decision.cause_id)
        elif decision.cause is RefundCause.CLOSED:
            self.closed += decision.amount
            self.closed_tax += decision.tax or 0
        elif decision.cause is RefundCause.GRANT:
            self.granted += decision.amount
            self.grants.add(decision.cause_id)
        for payment_id, amount in decision.allocations or ():
            self.allocated[payment_id] = self.allocated.get(payment_id, 0) + amount
        self.shipping.update(decision.shipping)
        for item_id, first, count in decision.units:
            self.take(item_id, first, first + count)

    def take(self, item_id: bytes, start: int, end: int) -> None:
        """Add units `start` to `end` - 1 of a line."""
        spans = self.units.setdefault(item_id, [])
        low = bisect_left(spans, start, key=_end)
        high = low
        while high < len(spans) and spans[high][0] <= end:
            start, end = min(start, spans[high][0]), max(end, spans[high][1])
            high += 1
        spans[low:high] = [(start, end)]

    def copy(self) -> RefundedUnits:
        """The same, to which more can be added."""
        other = RefundedUnits()
        other.closed, other.closed_tax, other.granted = self.closed, self.closed_tax, self.granted
        other.grants, other.allocated = set(self.grants), dict(self.allocated)
        other.units = {item_id: spans[:] for item_id, spans in self.units.items()}
        other.shipping, other.returns = set(self.shipping), set(self.returns)
        return other

    def not_refunded(self, item_id: bytes, first: int, quantity: int) -> Iterator[Span]:
        """Spans of a line's units from `first` on that no decision refunds, in ascending order."""
        for start, end in self.units.get(item_id, ()):
            if start > first:
                yield first, start
            first = max(first, end)
        if first < quantity:
            yield first, quantity


def _end(span: Span) -> int:
    return span[1]


_NEVER: Final = -(1 << 63)


class RunningTotals:
    """See the module. Made of an order and kept beside it: every fact that the
    order takes in is added here.
    """

    __slots__ = (
        "_index",
        "_lines",
        "_moments",
        "_sizes",
        "captured",
        "claimed",
        "decided",
        "gone",
        "history",
        "limits",
        "order",
        "parcels",
        "refunded",
        "returned",
        "returns",
    )

    def __init__(self, order: Order, limits: Limits = LIMITS) -> None:
        self.order = order
        self.limits = limits
        """How much the order takes in."""
        self._index: dict[str, dict[object, SimpleFact]] | None = None
        self._sizes: dict[str, int] | None = None
        self.rebuild()

    def rebuild(self) -> None:
        """Look at every fact again: order.created has come."""
        order = self.order
        self.captured = 0
        """Money, minor units, of the payments that count."""
        self.decided = 0
        """The same of the refund decisions."""
        self.claimed: dict[bytes, ParcelUnits] = {}
        """Item -> what parcels hold of it."""
        self.gone: dict[bytes, int] = {}
        """Item -> units rejected or released, as sent, or given up."""
        self.returned: dict[bytes, int] = {}
        """Item -> units of processed returns, as sent."""
        self.parcels: dict[bytes, Scan] = {}
        """Parcel -> its winning scan."""
        self.returns: dict[bytes, ReturnStage] = {}
        """Return -> its winning stage."""
        self.refunded: RefundedUnits | None = None
        self.history: History | None = None
        """Of an order that another system handled before."""
        self._lines: dict[bytes, list[tuple[bytes, int]]] = {}
        self._moments: tuple[int, int] | None = None
        created = order.created
        for decision in order.decisions:
            self.decided += decision.amount
        if created is None:
            return
        if created.live_from is not None:
            self.history = History(created)
        for payment in order.payments:
            if not payment.refused:
                self._count_payment(payment)
        if order.scans:
            self.parcels = winning_scans(order)
            for scan in self.parcels.values():
                self._count_parcel(created, scan, 1)
        if order.returns:
            self.returns = winning_stages(order)
            for stage in self.returns.values():
                self._count_returned(created, stage, 1)
        for reply in order.stock:
            self._count_unavailable(created, reply)
        for deadline in order.deadlines:
            self._count_unanswered(created, deadline)

    def add(self, field: str, facts: list[SimpleFact], fact: SimpleFact) -> None:
        """Append a fact to `facts`, that field of the order, and count it."""
        facts.append(fact)
        if self._moments is not None and not fact.refused:
            total, latest = self._moments
            self._moments = total + fact.time, max(latest, fact.time)
        if self._index is not None and field in self._index:
            self._index[field][fact.key()] = fact
        if self._sizes is not None:
            self.grow(fact, size_of(fact))
        created = self.order.created
        if created is None or fact.refused:
            return
        if type(fact) is Scan:
            known = self.parcels.get(fact.shipment_id)
            if known is None or _beats(fact, known):
                if known is not None:
                    self._count_parcel(created, known, -1)
                self._count_parcel(created, fact, 1)
                self.parcels[fact.shipment_id] = fact
        elif type(fact) is Payment:
            self._count_payment(fact)
        elif type(fact) is StockReply:
            self._count_unavailable(created, fact)
        elif type(fact) is ReturnStage:
            self._supersede(created, fact)
        elif type(fact) is Deadline:
            self._count_unanswered(created, fact)

    def decide(self, decision: RefundDecision) -> None:
        """Append a refund decision to the order's, and count it."""
        self.order.decisions.append(decision)
        self.decided += decision.amount
        if self._moments is not None:
            total, latest = self._moments
            self._moments = total + decision.time, max(latest, decision.time)
        if self._sizes is not None:
            self.grow(decision, size_of(decision))
        if self.refunded is not None:
            self.refunded.add(decision)

    def earlier(self, fact: SimpleFact) -> None:
        """A fact's time has become an earlier one: another stage of its return may win."""
        self._moments = None
        created = self.order.created
        if type(fact) is ReturnStage and created is not None and not fact.refused:
            self._supersede(created, fact)

    def moments(self) -> tuple[int, int]:
        """The times of all facts that count and of all decisions: their sum, and the latest; 0 and a time
        before all others without any. Of each of them but order.created.
        """
        if self._moments is None:
            total, latest = 0, _NEVER
            order = self.order
            for field in FACT_FIELDS:
                for fact in getattr(order, field):
                    if not fact.refused:
                        total += fact.time
                        latest = max(latest, fact.time)
            for decision in order.decisions:
                total += decision.time
                latest = max(latest, decision.time)
            self._moments = total, latest
        return self._moments

    def known(self, field: str, facts: list[SimpleFact], fact: SimpleFact) -> SimpleFact | None:
        """The fact of the same natural key among `facts`, that field of the order."""
        key = fact.key()
        if len(facts) < INDEX_FROM:
            for each in facts:
                if each.key() == key:
                    return each
            return None
        if self._index is None:
            self._index = {}
        if field not in self._index:
            self._index[field] = {each.key(): each for each in facts}
        return self._index[field].get(key)

    def size(self, type_: str, facts: Sequence[SimpleFact | RefundDecision]) -> int:
        """Size of the facts of one event type among `facts`, that type's field of
        the order (domain.limits).
        """
        if self._sizes is None:
            self._sizes = {}
        if type_ not in self._sizes:
            if type_ == "deadline.passed":
                facts = [*self.order.deadlines, *self.order.lapses]
            self._sizes[type_] = sum(size_of(each) for each in facts if type_of(each) == type_)
        return self._sizes[type_]

    def grow(self, fact: SimpleFact | RefundDecision, by: int) -> None:
        """A fact takes so many bytes more."""
        type_ = type_of(fact)
        if self._sizes is not None and type_ in self._sizes:
            self._sizes[type_] += by

    def refunded_units(self) -> RefundedUnits:
        """What the decisions so far refund: added up once, then kept up to date."""
        refunded = self.refunded
        if refunded is None:
            refunded = self.refunded = RefundedUnits()
            for decision in self.order.decisions:
                refunded.add(decision)
        return refunded

    # -- units -----------------------------------------------------------------------------------------------

    def _pairs(
        self, created: Created, seller_id: bytes, items: list[tuple[bytes, int]] | None
    ) -> list[tuple[bytes, int]]:
        """What a parcel or a stock reply names: its items, or all the seller's units."""
        if items is not None:
            return items
        if len(created.items) == 1:
            item = created.items[0]
            return [(item.item_id, item.quantity)]
        pairs = self._lines.get(seller_id)
        if pairs is None:
            pairs = self._lines[seller_id] = [
                (item.item_id, item.quantity) for item in created.items if item.seller_id == seller_id
            ]
        return pairs

    def _count_parcel(self, created: Created, scan: Scan, sign: int) -> None:
        rank = scan.rank
        if rank < _IN_TRANSIT:
            return
        claimed = self.claimed
        for item_id, quantity in self._pairs(created, scan.seller_id, scan.items):
            units = claimed.get(item_id)
            if units is None:
                units = claimed[item_id] = ParcelUnits()
            quantity *= sign
            units.in_transit += quantity
            if rank >= _DELIVERED:
                units.delivered += quantity
                if rank is _RETURNED:
                    units.returned += quantity

    def _count_payment(self, payment: Payment) -> None:
        self.captured += payment.amount
        if self.history is not None:
            self.history.pay(payment)

    def _count_unavailable(self, created: Created, reply: StockReply) -> None:
        if reply.type is _RESERVED or reply.refused:
            return
        gone = self.gone
        pairs = self._pairs(created, reply.seller_id, reply.items)
        for item_id, quantity in pairs:
            gone[item_id] = gone.get(item_id, 0) + quantity
        if self.history is not None:
            self.history.lose(reply, pairs)

    def _count_unanswered(self, created: Created, deadline: Deadline) -> None:
        """A seller's stock was never answered for: it counts as rejected."""
        if deadline.what is DeadlineKind.STOCK and deadline.final:
            if self.history is not None:
                self.history.give_up()
            for item in created.items:
                if item.seller_id == deadline.subject:
                    self.gone[item.item_id] = self.gone.get(item.item_id, 0) + item.quantity

    def _supersede(self, created: Created, stage: ReturnStage) -> None:
        known = self.returns.get(stage.return_id)
        if known is stage or (known is not None and _precedence(stage) >= _precedence(known)):
            return
        if known is not None:
            self._count_returned(created, known, -1)
        self._count_returned(created, stage, 1)
        self.returns[stage.return_id] = stage

    def _count_returned(self, created: Created, stage: ReturnStage, sign: int) -> None:
        if stage.status is _PROCESSED:
            quantity = stage.quantity or next(
                item.quantity for item in created.items if item.item_id == stage.item_id
            )
            self.returned[stage.item_id] = self.returned.get(stage.item_id, 0) + sign * quantity
