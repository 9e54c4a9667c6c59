"""What has to follow of a deadline that has passed, whatever arrived in which order: a promise that wasn't
kept is told, what wasn't shipped is asked back, a refund that failed is asked for again.

A deadline passes once everything is taken in that was appended before it, so what it rests on must lie in the
log before it; and nothing that may have arrived before its record was folded may have ended it. Where the log
doesn't tell when a fact was appended, nothing has to follow of it. Nothing here blocks or does I/O.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final

from audit.promises import BY, DELIVER, SHIP, UNSHIPPED
from audit.reference import DELIVERED, IN_TRANSIT, RANKS, Fact, Line, Reading

Appended = Callable[[Fact], int | None]
"""Milliseconds since 1970 by the brokers' time; None: not known."""
LATE: Final = "suborder.late"


def late_id(what: str, seller_id: str, due: datetime) -> str:
    """What tells one lateness of an order from another: the natural key of its deadline."""
    return f"{what}:{seller_id}:{due.isoformat()}"


def surely_followed(reading: Reading, appended: Appended) -> set[tuple[str, str]]:
    """(type, id) of the derived events that have to be there because a promise or a refund's new attempt was
    due.
    """
    if reading.created is None:
        return set()
    events = set(_of_refunds(reading, appended))
    if reading.promises.any_passed:
        events.update(_OfPromises(reading, appended).events())
    return events


class _OfPromises:
    """Of an order with such deadlines."""

    def __init__(self, reading: Reading, appended: Appended) -> None:
        self._reading = reading
        self._appended = appended
        self._then: tuple[int, Reading] | None = None
        """A time, and the order by what was appended up to it."""
        self._moved = {what: self._items_at(rank) for what, rank in _ENDS.items()}

    def events(self) -> Iterator[tuple[str, str]]:
        reading = self._reading
        own: dict[str, list[Line]] = {}
        for line in reading.lines:
            own.setdefault(line.seller_id, []).append(line)
        passed = _facts(reading, "deadline.passed")
        for deadline in sorted(passed, key=lambda each: self._appended(each) or 0):
            what, seller = deadline.content["deadline"], deadline.content.get("seller_id", "")
            if what not in BY or (what == SHIP and seller in reading.asked_back):
                continue
            due = deadline.content["due"]
            if not any(self._stays(what, line, due) for line in own.get(seller, ())):
                continue
            if not self._held(what, seller, deadline):
                continue
            if what == UNSHIPPED:
                yield "stock.release", reading.made_id(f"reservation:{seller}")
            else:
                yield LATE, late_id(what, seller, due)

    def _items_at(self, rank: int) -> set[str]:
        """Lines of which a unit ever was at this rank or above, or was given back."""
        lines = {stage.content["item_id"] for stage in _facts(self._reading, "order.returned")}
        for scan in _facts(self._reading, "shipment.updated"):
            if RANKS[scan.content["status"]] >= rank:
                lines |= _named(self._reading, scan)
        return lines

    def _stays(self, what: str, line: Line, due: datetime) -> bool:
        """Whether units of a line that a deadline is about are as late, whatever has arrived of what is
        known.
        """
        if line.item_id in self._moved[what] or not self._reading.promises.is_surely_past(
            what, line.item, due
        ):
            return False
        return line.awaited(DELIVER) > 0 if what == DELIVER else line.gone < line.quantity

    def _held(self, what: str, seller: str, deadline: Fact) -> bool:
        """Whether there was something to wait for when a deadline passed."""
        at = self._appended(deadline)
        if at is None:
            return False
        if self._then is None or self._then[0] != at:
            times = [(fact, self._appended(fact)) for fact in self._reading.facts]
            facts = [fact for fact, time in times if time is not None and time <= at]
            self._then = at, Reading(self._reading.order_id, facts, {})
        then = self._then[1]
        if then.created is None or (what != DELIVER and then.status() == "pending"):
            return False
        waits = DELIVER if what == DELIVER else SHIP
        return any(line.awaited(waits) for line in then.lines if line.seller_id == seller)


_ENDS: Final = {SHIP: IN_TRANSIT, UNSHIPPED: IN_TRANSIT, DELIVER: DELIVERED}
"""The rank at which a unit is no longer waited for."""


def _facts(reading: Reading, type_: str) -> list[Fact]:
    return [fact for fact in reading.accepted if fact.type == type_]


def _named(reading: Reading, scan: Fact) -> set[str]:
    """Lines that a scan is about."""
    items = scan.content.get("items")
    if items is None:
        seller = scan.content["seller_id"]
        return {item_id for item_id, item in reading.items.items() if item["seller_id"] == seller}
    return {item["item_id"] for item in items}


def _of_refunds(reading: Reading, appended: Appended) -> Iterator[tuple[str, str]]:
    if not reading.retries:
        return
    completed = {fact.content["refund_id"] for fact in _facts(reading, "refund.completed")}
    ours = {reading.made_id(f"refund:{decision.n}") for decision in reading.decisions}
    for refund_id in reading.retries.keys() & ours - completed:
        failed = [
            appended(fact)
            for fact in _facts(reading, "refund.failed")
            if fact.content["refund_id"] == refund_id
        ]
        for attempt, deadline in reading.retries[refund_id].items():
            at = appended(deadline)
            if at is not None and any(time is not None and time <= at for time in failed):
                yield "refund.request", f"{refund_id}:{attempt}"
