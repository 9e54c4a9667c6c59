"""Promises and lateness: until when a seller ships and delivers, and which units are late
(docs/rules.md, Promises and lateness; docs/decisions/0059).

Pure. A promise is a time, microseconds since 1970, of order.created or promise.updated. That one has passed,
or the time that counts without one, is a fact (order.Lapse) with that time, its `due`. So which units are
late follows from the facts alone: those for which such a fact is there and no later promise is in force.
"""

from __future__ import annotations

from operator import attrgetter
from typing import Final

from domain.enums import DeadlineKind
from domain.order import Lapse, Order

_SHIP, _UNSHIPPED, _DELIVER = DeadlineKind.SHIP, DeadlineKind.UNSHIPPED, DeadlineKind.DELIVER
_time: Final = attrgetter("time")
_NOTHING: Final[tuple[int | None, int | None]] = (None, None)

OpenLine = tuple[bytes, int, int]
"""A line that isn't done: item_id, live units not in transit, live units in transit and not delivered."""


def has_promises(order: Order) -> bool:
    """Whether anything was promised: then lines may differ in when they are due."""
    created = order.created
    if order.promises:
        return True
    if created is not None:
        for item in created.items:
            if item.ship_by is not None or item.deliver_by is not None:
                return True
    return False


class Promises:
    """What the sellers of an order promised, and what of it has passed."""

    __slots__ = ("_lapses", "_lines", "_ordered")

    def __init__(self, order: Order) -> None:
        """`order`: its order.created is known."""
        assert order.created is not None
        # Of each field the latest by time: that of an earlier one that isn't said again stays.
        latest: dict[bytes, tuple[int | None, int | None]] = {}
        for promise in sorted(order.promises, key=_time) if order.promises else ():
            if not promise.refused:
                ship_by, deliver_by = latest.get(promise.seller_id, _NOTHING)
                latest[promise.seller_id] = (
                    ship_by if promise.ship_by is None else promise.ship_by,
                    deliver_by if promise.deliver_by is None else promise.deliver_by,
                )
        self._ordered: dict[bytes, tuple[set[int], set[int]]] = {}
        """Seller -> what order.created says of its lines."""
        self._lines: dict[bytes, tuple[int | None, int | None]] = {}
        for item in order.created.items:
            for by, known in zip((item.ship_by, item.deliver_by), self.ordered(item.seller_id), strict=True):
                if by is not None:
                    known.add(by)
            ship_by, deliver_by = latest.get(item.seller_id, _NOTHING)
            self._lines[item.item_id] = (
                item.ship_by if ship_by is None else ship_by,
                item.deliver_by if deliver_by is None else deliver_by,
            )
        self._lapses = order.lapses

    def ordered(self, seller_id: bytes) -> tuple[set[int], set[int]]:
        """The times of ship_by, and of deliver_by, that order.created says of a seller's lines."""
        known = self._ordered.get(seller_id)
        if known is None:
            known = self._ordered[seller_id] = (set(), set())
        return known

    def of(self, what: DeadlineKind, item_id: bytes) -> int | None:
        """Until when a line was promised to be in transit (SHIP, UNSHIPPED) or delivered; None: nothing
        was.
        """
        ship_by, deliver_by = self._lines[item_id]
        return deliver_by if what is _DELIVER else ship_by

    def earliest(self, what: DeadlineKind, lines: list[bytes]) -> int | None:
        """The earliest of these lines' promises."""
        first: int | None = None
        for item_id in lines:
            promised = self.of(what, item_id)
            if promised is not None and (first is None or promised < first):
                first = promised
        return first

    def passed(self, what: DeadlineKind, seller_id: bytes) -> list[Lapse]:
        """A seller's lapses of this kind, in the order in which they are there."""
        return [lapse for lapse in self._lapses if lapse.what is what and lapse.subject == seller_id]

    def late(self, lapse: Lapse, lines: list[OpenLine]) -> dict[bytes, int]:
        """Item -> its units that this lapse of their seller makes late: of the seller's open lines those
        without a later promise.
        """
        units: dict[bytes, int] = {}
        for item_id, to_ship, to_deliver in lines:
            count = to_deliver if lapse.what is _DELIVER else to_ship
            if count and self.covers(lapse, item_id):
                units[item_id] = count
        return units

    def covers(self, lapse: Lapse, item_id: bytes) -> bool:
        """Whether a lapse of the line's seller is about it, as what was promised is now. One whose due
        order.created says of a line isn't about those of which it says nothing.
        """
        assert lapse.due is not None
        promised = self.of(lapse.what, item_id)
        if promised is None:
            return lapse.due not in self.ordered(lapse.subject)[lapse.what is _DELIVER]
        return promised <= lapse.due

    def late_since(self, seller_id: bytes, lines: list[OpenLine]) -> int | None:
        """Since when a seller has been late with what is late now, by what was due; None: nothing is.
        `lines`: all of the seller's that are open.
        """
        times = [
            lapse.due
            for what in (_SHIP, _DELIVER)
            for lapse in self.passed(what, seller_id)
            if lapse.due is not None and self.late(lapse, lines)
        ]
        return min(times) if times else None

    def asked_back(self, seller_id: bytes, item_id: bytes) -> bool:
        """Whether a line's stock was asked back since nobody shipped it."""
        return any(self.covers(lapse, item_id) for lapse in self.passed(_UNSHIPPED, seller_id))
