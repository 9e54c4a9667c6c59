"""An order as of a time: folded from those of its facts, decisions and deadlines that had happened by then.
Pure.

Time is the event's own, so the answer is about what was true then, whenever it came to be known; of
repetitions the earliest time counts, as everywhere. A refund decision is there once those with lower numbers
are, because the fold counts them one by one (docs/rules.md, An order as of a time).
"""

from __future__ import annotations

from typing import Final

from msgspec import structs

from contracts.incoming import FACT_FIELDS
from contracts.record_id import RecordId
from domain.fold import fold
from domain.order import Fact, Order, type_of
from domain.shapes import Event
from domain.totals import RunningTotals

_NO_RECORD: Final = RecordId("", 0, 0)
"""Only a dead letter would name a waiting fact's record, and none is written here."""


def as_of(order: Order, order_id: bytes, time: int) -> Order:
    """The order that its facts with an event time up to `time` (microseconds since 1970) make. Never blocks.

    `order` isn't changed. What the answer says was published follows from these facts; `due` is 0.
    """
    then = Order()
    totals = RunningTotals(then)
    # order.created last: until it comes facts wait, so that all of them are counted once.
    for field in FACT_FIELDS:
        for fact in getattr(order, field):
            if fact.time <= time:
                copy = structs.replace(fact, refused=False)
                _take(then, order_id, copy, type_of(copy), getattr(fact, "appended", 0), totals)
    for decision in order.decisions:
        if decision.time > time:
            break
        _take(then, order_id, structs.replace(decision), "refund.decided", decision.appended, totals)
    created = order.created
    if created is not None and created.time <= time:
        _take(then, order_id, structs.replace(created), "order.created", order.appended, totals)
    return then


def _take(
    order: Order,
    order_id: bytes,
    fact: Fact,
    type_: str,
    appended: int,
    totals: RunningTotals,
) -> None:
    fold(order, Event(type_, order_id, fact, "", fact.time, None, appended), _NO_RECORD, totals)
