"""What sellers promised, and which of it has passed: read a second time from the contract, as audit.reference
is, which this is a part of.

Until when is a fact (a promise, or what order.created says), and so is that it passed (deadline.passed). How
long a line without a promise may take is a setting, which nobody looks at here: that such a line is late is
known by a deadline that none of its seller's lines explains. Nothing here blocks or does I/O.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

Fact: TypeAlias = Any
"""That of audit.reference, which imports this module."""

SHIP, UNSHIPPED, DELIVER = "ship", "unshipped", "deliver"
BY: Final = {SHIP: "ship_by", UNSHIPPED: "ship_by", DELIVER: "deliver_by"}
"""Deadlines that carry when they were due -> the field of a line or a promise that they are about."""
FIELDS: Final = ("ship_by", "deliver_by")


class Late(NamedTuple):
    """A seller's units that aren't shipped, or delivered (`what`), though they should be. `due`: by the
    earliest deadline that is about one of them.
    """

    what: str
    seller_id: str
    due: datetime
    units: int


class Promises:
    """Of one order. `items`: by id, none while order.created is unknown. `facts`: the accepted ones."""

    def __init__(self, items: Mapping[str, Mapping[str, Any]], facts: Iterable[Fact]) -> None:
        self._promised: dict[tuple[str, str], list[tuple[datetime, datetime]]] = {}
        """(seller, field) -> (time of the promise, until when) of each that has this field, by its time."""
        self._ordered: dict[tuple[str, str], set[datetime]] = {}
        """The same of what order.created says of the seller's lines: until when."""
        self._passed: dict[tuple[str, str], list[Fact]] = {}
        """(deadline, seller) -> those that have passed, the earliest due first."""
        for fact in facts:
            content = fact.content
            if fact.type == "promise.updated":
                for name in content.keys() & FIELDS:
                    whose = (content["seller_id"], name)
                    self._promised.setdefault(whose, []).append((fact.time, content[name]))
            elif fact.type == "deadline.passed" and content["deadline"] in BY:
                self._passed.setdefault((content["deadline"], content["seller_id"]), []).append(fact)
        for item in items.values():
            for name in item.keys() & FIELDS:
                self._ordered.setdefault((item["seller_id"], name), set()).add(item[name])
        for promises in self._promised.values():
            promises.sort()
        for passed in self._passed.values():
            passed.sort(key=_due)
        untils = {whose: [until for _, until in promises] for whose, promises in self._promised.items()}
        self._span = {whose: (min(each), max(each)) for whose, each in untils.items()}
        """The earliest and the latest of what promises say."""

    def passed(self, what: str, seller_id: str) -> list[datetime]:
        """When the deadlines of a seller that have passed were due, the earliest first."""
        return [_due(fact) for fact in self._passed.get((what, seller_id), ())]

    @property
    def any_passed(self) -> bool:
        """Whether a deadline of a promise has passed."""
        return bool(self._passed)

    @property
    def unshipped(self) -> set[str]:
        """Sellers whose units were waited for until nobody waited any longer."""
        return {seller_id for what, seller_id in self._passed if what == UNSHIPPED}

    def in_force(self, what: str, item: Mapping[str, Any]) -> datetime | None:
        """Until when, of a line: by the latest promise that says so, else by order.created; None: by none."""
        promises = self._promised.get((item["seller_id"], BY[what]))
        return promises[-1][1] if promises else item.get(BY[what])

    def first_past(self, what: str, item: Mapping[str, Any]) -> datetime | None:
        """When the first deadline was due that has passed and is about this line: no later promise is in
        force. None: there is none.
        """
        by, passed = self.in_force(what, item), self._passed.get((what, item["seller_id"]), [])
        if by is not None:
            at = bisect_left(passed, by, key=_due)
            return _due(passed[at]) if at < len(passed) else None
        others = self._ordered.get((item["seller_id"], BY[what]), set())
        return next((due for due in map(_due, passed) if due not in others), None)

    def may_be_past(self, what: str, item: Mapping[str, Any], until: datetime) -> bool:
        """Whether in some order of arrival a deadline up to then could be about this line."""
        by, span = item.get(BY[what]), self._span.get((item["seller_id"], BY[what]))
        return by is None or by <= until or (span is not None and span[0] <= until)

    def is_surely_past(self, what: str, item: Mapping[str, Any], due: datetime) -> bool:
        """Whether a deadline that has passed is about this line in any order of arrival."""
        by, whose = item.get(BY[what]), (item["seller_id"], BY[what])
        if whose in self._span and self._span[whose][1] > due:
            return False
        return whose not in self._ordered if by is None else by <= due

    def asked_until(self, seller_id: str) -> datetime:
        """Nothing of a seller that has to be shipped later was asked back because it wasn't shipped."""
        passed = self._passed.get((UNSHIPPED, seller_id), ())
        return max(time for fact in passed for time in (fact.time, _due(fact)))


def _due(deadline: Fact) -> datetime:
    due: datetime = deadline.content["due"]
    return due


def subject_of(deadline: Mapping[str, Any]) -> str | None:
    """Whose deadline it is, by its content: a seller's, a refund's or a return's; None: the order's."""
    return deadline.get("seller_id") or deadline.get("refund_id") or deadline.get("return_id")
