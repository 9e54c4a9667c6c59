"""What the facts of an order amount to: units and their ranks, live units, statuses, money (docs/rules.md).

Pure functions of an Order whose order.created is known.
A line's units are numbered from the highest rank down; the first `live` are live.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from contracts import money
from domain.enums import ClosedBecause, DeadlineKind, OrderStatus, StockAnswer, SuborderStatus
from domain.order import Created, Order, PublishedSuborder
from domain.paid_back import paid_back
from domain.promises import OpenLine, Promises, has_promises
from domain.tax import LineTax
from domain.totals import RunningTotals

_item_id: Final = attrgetter("item_id")
_seller_id: Final = attrgetter("seller_id")
_PENDING, _CONFIRMED, _SHIPPED, _DELIVERED, _RETURNED = OrderStatus
_CLOSED: Final = SuborderStatus.CLOSED
_NOT_CLOSED: Final = ClosedBecause.NOT_CLOSED
_NOT_SHIPPED: Final = ClosedBecause.NOT_SHIPPED
_STOCK_RELEASED: Final = ClosedBecause.STOCK_RELEASED
_SUBORDER_STATUS: Final = tuple(SuborderStatus)
"""The status of a seller's part by that which an order of these units would have."""


class Line:
    """One line: how many of its units reached which rank, by parcels and processed returns."""

    __slots__ = (
        "brought_back",
        "claimed",
        "delivered",
        "discount",
        "gone",
        "in_transit",
        "item_id",
        "live",
        "moving",
        "price",
        "quantity",
        "returned",
        "seller_id",
        "shipping",
        "tax",
    )

    def __init__(
        self, item_id: bytes, seller_id: bytes, quantity: int, price: int, shipping: int, discount: int
    ) -> None:
        self.item_id = item_id
        self.seller_id = seller_id
        self.quantity = quantity
        self.price = price
        self.shipping = shipping
        self.discount = discount
        """The whole line's share of the order's discount."""
        self.tax: LineTax | None = None
        self.gone = 0
        self.claimed = 0
        """Units in transit or further by what the parcels say, which may be more than there are."""
        self.brought_back = 0
        """Units that parcels brought back."""
        self.moving = 0
        """`claimed`, but at most the line's quantity."""
        self.in_transit = self.delivered = self.returned = 0
        """Units at this rank or above, processed returns included."""
        self.live = quantity

    def discount_of_first(self, units: int) -> int:
        return money.share_of_first(self.discount, self.quantity, units) if self.discount else 0

    def cost_of(self, first: int, end: int) -> int:
        """What units `first` to `end` - 1 cost: their price less their share of the discount, with their tax
        where it is on top.
        """
        cost = self.price * (end - first) - self.discount_of_first(end) + self.discount_of_first(first)
        return cost + self.tax_of(first, end) if self.tax is not None and self.tax.on_top else cost

    def tax_of(self, first: int, end: int) -> int:
        """The tax of units `first` to `end` - 1."""
        return 0 if self.tax is None else self.tax.of_first(end) - self.tax.of_first(first)

    @property
    def postage(self) -> int:
        """What its shipping costs, with its tax where it is on top."""
        tax = self.tax
        return self.shipping + tax.shipping if tax is not None and tax.on_top else self.shipping

    @property
    def postage_tax(self) -> int:
        """The tax of its shipping."""
        return 0 if self.tax is None else self.tax.shipping

    @property
    def worthless(self) -> tuple[int, int]:
        """Its units that are worth nothing: from this number on, and before that one. No unit has a smaller
        share of the discount than a later one, nor of a tax on top.
        """
        share, more = divmod(self.discount, self.quantity)
        free = self.quantity if share == self.price else more if share + 1 == self.price else 0
        tax = self.tax
        return min(tax.taxed(), free) if tax is not None and tax.on_top else 0, free


class Suborder:
    """One seller's part of an order, over its live units. Amounts in minor units."""

    __slots__ = (
        "because",
        "deliver_by",
        "delivered",
        "discount",
        "in_transit",
        "items_amount",
        "late_since",
        "lines",
        "live",
        "ordered",
        "returned",
        "seller_id",
        "ship_by",
        "shipping",
        "status",
        "tax",
        "tax_on_top",
    )

    def __init__(self, seller_id: bytes) -> None:
        self.seller_id = seller_id
        self.lines: list[Line] = []
        self.ordered = self.live = self.in_transit = self.delivered = self.returned = 0
        """Units: all, live, and live ones at this rank or above."""
        self.items_amount = self.shipping = self.discount = 0
        self.tax = self.tax_on_top = 0
        """All of it, the shipping's too; and what of it the prices don't include."""
        self.status = _SUBORDER_STATUS[_PENDING]
        self.because: ClosedBecause = _NOT_CLOSED
        self.ship_by: int | None = None
        self.deliver_by: int | None = None
        """The earliest that was promised for one of its lines, microseconds since 1970; None: nothing was."""
        self.late_since: int | None = None
        """Since when units have been late that are late now, by what was due; microseconds since 1970."""

    @property
    def total(self) -> int:
        return self.items_amount + self.shipping - self.discount + self.tax_on_top

    def add(self, line: Line) -> None:
        live = line.live
        self.lines.append(line)
        self.ordered += line.quantity
        self.live += live
        if live:
            if line.in_transit:
                self.in_transit += min(live, line.in_transit)
                self.delivered += min(live, line.delivered)
                self.returned += min(live, line.returned)
            self.items_amount += line.price * live
            self.shipping += line.shipping
            if line.discount:
                self.discount += line.discount_of_first(live)
            if line.tax is not None:
                tax = line.tax.of_first(live) + line.tax.shipping
                self.tax += tax
                if line.tax.on_top:
                    self.tax_on_top += tax

    def open_lines(self) -> list[OpenLine]:
        """Its lines with live units that aren't in transit, or not delivered."""
        lines: list[OpenLine] = []
        for line in self.lines:
            in_transit = min(line.live, line.in_transit)
            to_ship, to_deliver = line.live - in_transit, in_transit - min(line.live, line.delivered)
            if to_ship or to_deliver:
                lines.append((line.item_id, to_ship, to_deliver))
        return lines

    def state(self) -> PublishedSuborder:
        """What a suborder.updated tells: published again when it changes."""
        not_shipped = self.because is _NOT_SHIPPED
        return PublishedSuborder(
            self.status,
            self.items_amount,
            self.shipping,
            self.discount,
            self.live,
            self.in_transit,
            self.delivered,
            self.returned,
            _STOCK_RELEASED if not_shipped else self.because,
            self.tax,
            not_shipped,
        )


class OrderView:
    """An order, computed: lines (by item id), suborders (by seller id), captured
    and decided money, status.
    """

    __slots__ = ("captured", "decided", "lines", "live", "paid_back", "status", "suborders", "total")

    def __init__(
        self, lines: list[Line], suborders: list[Suborder], captured: int, decided: int, total: int
    ) -> None:
        self.lines = lines
        self.suborders = suborders
        self.captured = captured
        self.decided = decided
        self.total = total
        self.paid_back = 0
        """What another system that handled the order before paid back."""
        self.live = 0
        self.status = self._decide_statuses()

    @property
    def free(self) -> int:
        """Captured money that can still be refunded; below 0 if more was decided, and paid back by another
        system, than is captured.
        """
        return self.captured - self.decided - self.paid_back

    def _decide_statuses(self) -> OrderStatus:
        """The status of the order. Also sets that of each suborder, and the order's live units."""
        live = in_transit = delivered = returned = amount = 0
        for suborder in self.suborders:
            live += suborder.live
            in_transit += suborder.in_transit
            delivered += suborder.delivered
            returned += suborder.returned
            amount += suborder.total
        self.live = live
        paid = _CONFIRMED if self.captured >= (amount if live else self.total) else _PENDING
        for suborder in self.suborders:
            if suborder.live:
                status = _status_of(
                    suborder.live, suborder.in_transit, suborder.delivered, suborder.returned, paid
                )
                suborder.status = _SUBORDER_STATUS[status]
            else:
                suborder.status = _CLOSED
        return _status_of(live, in_transit, delivered, returned, paid)


def _status_of(live: int, in_transit: int, delivered: int, returned: int, paid: OrderStatus) -> OrderStatus:
    """The highest status that holds. `paid`: confirmed if the money covers it, else pending."""
    if live and in_transit:
        if returned == live:
            return _RETURNED
        if delivered == live:
            return _DELIVERED
        return _SHIPPED
    return paid


def fresh_lines(created: Created) -> list[Line]:
    """Lines by item id, with their shares of the discount and their taxes, before anything happened to
    them.
    """
    items = created.items
    if len(items) > 1:
        items = sorted(items, key=_item_id)
    if created.discount:
        shares = money.allocate(created.discount, [item.price * item.quantity for item in items])
        lines = [
            Line(i.item_id, i.seller_id, i.quantity, i.price, i.shipping or 0, share)
            for i, share in zip(items, shares, strict=True)
        ]
    else:
        lines = [Line(i.item_id, i.seller_id, i.quantity, i.price, i.shipping or 0, 0) for i in items]
    if created.prices_include_tax is not None:
        for line, item in zip(lines, items, strict=True):
            line.tax = LineTax(item, not created.prices_include_tax)
    return lines


def view_of(order: Order, totals: RunningTotals | None = None) -> OrderView:
    """Everything that follows from the order's facts. `order.created` must be known.
    `totals`: those of the order, if they are at hand.
    """
    created = order.created
    assert created is not None
    if totals is None:
        totals = RunningTotals(order)
    lines = fresh_lines(created)
    claimed, returned, gone = totals.claimed, totals.returned, totals.gone
    by_seller: dict[bytes, Suborder] = {}
    for line in lines:
        if claimed:
            units = claimed.get(line.item_id)
            if units is not None and units.in_transit:
                quantity = line.quantity
                line.claimed = units.in_transit
                line.moving = line.in_transit = min(units.in_transit, quantity)
                line.delivered = min(units.delivered, quantity)
                line.returned = line.brought_back = min(units.returned, quantity)
        if returned and line.item_id in returned:
            line.returned = min(line.quantity, line.returned + returned[line.item_id])
            line.delivered = max(line.delivered, line.returned)
            line.in_transit = max(line.in_transit, line.returned)
        if gone and line.item_id in gone:
            line.gone = min(line.quantity, gone[line.item_id])
            line.live = max(line.quantity - line.gone, line.moving)
        suborder = by_seller.get(line.seller_id)
        if suborder is None:
            suborder = by_seller[line.seller_id] = Suborder(line.seller_id)
        suborder.add(line)
    suborders = list(by_seller.values())
    for suborder in suborders:
        if not suborder.live:
            suborder.because = _closed_because(order, suborder.seller_id)
    if order.lapses or has_promises(order):
        _tell_promises(Promises(order), suborders)
    if len(suborders) > 1:
        suborders.sort(key=_seller_id)
    view = OrderView(lines, suborders, totals.captured, totals.decided, created.total)
    if totals.history is not None:
        view.paid_back = paid_back(view, totals).amount
    return view


def _tell_promises(promises: Promises, suborders: list[Suborder]) -> None:
    for suborder in suborders:
        items = [line.item_id for line in suborder.lines]
        suborder.ship_by = promises.earliest(DeadlineKind.SHIP, items)
        suborder.deliver_by = promises.earliest(DeadlineKind.DELIVER, items)
        suborder.late_since = promises.late_since(suborder.seller_id, suborder.open_lines())


def _closed_because(order: Order, seller_id: bytes) -> ClosedBecause:
    """Why a seller's units are all gone: by what the inventory said, and what it was asked for."""
    said = {reply.type for reply in order.stock if not reply.refused and reply.seller_id == seller_id}
    if StockAnswer.RELEASED in said:
        if any(not each.refused and each.seller_id in (None, seller_id) for each in order.cancellations):
            return ClosedBecause.CANCELLED
        if any(deadline.what is DeadlineKind.PAYMENT for deadline in order.deadlines):
            return ClosedBecause.PAYMENT_OVERDUE
        unshipped = any(
            lapse.what is DeadlineKind.UNSHIPPED and lapse.subject == seller_id for lapse in order.lapses
        )
        return _NOT_SHIPPED if unshipped else _STOCK_RELEASED
    return ClosedBecause.STOCK_REJECTED if StockAnswer.REJECTED in said else ClosedBecause.STOCK_UNANSWERED
