"""Lists of what waits for a person, over all orders: late suborders, refunds and returns. Statements
(SQLAlchemy Core), their rows, and the place of a page in its list.

The oldest comes first. Each list has a partial index that holds what is on it, in its order.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final, Generic, NamedTuple, Self, TypeVar
from uuid import UUID

import sqlalchemy as sa

from queries.keyset import micros
from queries.statements import Query, as_amount
from sinks.schema import REFUND_WAITS, RETURN_WAITS, SUBORDER_IS_LATE, build_metadata

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_tables: Final = build_metadata().tables
_suborder: Final = _tables["orders_suborder"]
_refund: Final = _tables["orders_refund"]
_return: Final = _tables["orders_return"]

WAITING_REFUNDS: Final = ("failed", "requested")
"""Statuses of refunds that somebody may have to look at: the money isn't back."""

T = TypeVar("T")


class Place(NamedTuple):
    """Where a page ended: the time of its last row, the id of its order, and its own, unique only there."""

    time: datetime
    order_id: UUID
    id: UUID

    def cursor(self) -> str:
        """Return it as text for an address."""
        return f"{micros(self.time)}.{self.order_id.hex}.{self.id.hex}"

    @classmethod
    def parse(cls, cursor: str) -> Self:
        """Parse a cursor. Raises ValueError for anything that cursor() didn't return."""
        try:
            time, order_id, id_ = cursor.split(".")
            place = cls(_EPOCH + timedelta(microseconds=int(time)), UUID(hex=order_id), UUID(hex=id_))
        except (ValueError, OverflowError):
            raise ValueError("not a cursor of this list") from None
        if place.cursor() != cursor:
            raise ValueError("not a cursor of this list")
        return place


class LateSuborder(NamedTuple):
    """A seller's part of an order that isn't where it was promised to be, since `since`."""

    since: datetime
    order_id: UUID
    id: UUID
    seller_id: UUID
    region: str
    status: str
    units_live: int
    units_in_transit: int
    units_delivered: int
    ship_by: datetime | None
    deliver_by: datetime | None
    amount: str
    currency: str


class WaitingRefund(NamedTuple):
    """A refund that was decided at `since` and isn't paid. `reason`: the payment service's, free text."""

    since: datetime
    order_id: UUID
    id: UUID
    region: str
    status: str
    cause: str
    cause_id: UUID
    attempt: int
    amount: str
    currency: str
    reason: str | None


class WaitingReturn(NamedTuple):
    """A return that was asked for at `since`, and neither processed nor rejected. `reason`: free text."""

    since: datetime
    order_id: UUID
    id: UUID
    region: str
    item_id: UUID
    quantity: int
    reason: str


class Page(NamedTuple, Generic[T]):
    """Rows, and the cursor of the next page; None: there is none."""

    rows: list[T]
    next: str | None


def page(rows: Sequence[T], limit: int) -> Page[T]:
    """The first `limit` of rows that begin with time, order and id. Pure."""
    shown = list(rows[:limit])
    place = attrgetter("since", "order_id", "id")
    return Page(shown, Place(*place(shown[-1])).cursor() if len(rows) > limit else None)


Filters = Mapping[str, Any]
"""Column -> its value; `before`: only what waits since before that time. None: not filtered by it."""


def late_suborders(filters: Filters, after: Place | None, limit: int) -> Query:
    """Late suborders, those that are late for the longest first. Filters: seller_id, region, status."""
    return _query("late", filters, after, limit)


def waiting_refunds(filters: Filters, after: Place | None, limit: int) -> Query:
    """Refunds that failed or wait for their answer. Filters: region, status, cause."""
    return _query("refunds", filters, after, limit)


def waiting_returns(filters: Filters, after: Place | None, limit: int) -> Query:
    """Returns that wait to be processed. Filters: region."""
    return _query("returns", filters, after, limit)


def as_late(row: Sequence[Any]) -> LateSuborder:
    """Convert a row of `late_suborders`."""
    amount, currency = row[-2:]
    return LateSuborder._make((*row[:-2], as_amount(amount, currency), currency))


def as_refund(row: Sequence[Any]) -> WaitingRefund:
    """Convert a row of `waiting_refunds`."""
    amount, currency, reason = row[-3:]
    return WaitingRefund._make((*row[:-3], as_amount(amount, currency), currency, reason))


def as_return(row: Sequence[Any]) -> WaitingReturn:
    """Convert a row of `waiting_returns`."""
    return WaitingReturn(*row)


class _Of(NamedTuple):
    """What a list is made of: its columns, by the first three of which it is sorted; which rows are on it, as
    the list's index says it.
    """

    columns: tuple[sa.ColumnElement[Any], ...]
    on_it: str


def _text(column: sa.ColumnElement[Any]) -> sa.ColumnElement[str]:
    return sa.cast(column, sa.Text)


def _lists() -> dict[str, _Of]:
    s, r, b = _suborder.c, _refund.c, _return.c
    return {
        "late": _Of(
            (
                *(s.late_since, s.order_id, s.id, s.seller_id, s.region, s.status),
                *(s.units_live, s.units_in_transit, s.units_delivered, s.ship_by, s.deliver_by),
                *(_text(s.total_amount), s.currency),
            ),
            SUBORDER_IS_LATE,
        ),
        "refunds": _Of(
            (
                *(r.requested_at, r.order_id, r.id, r.region, r.status, r.cause, r.cause_id, r.attempt),
                *(_text(r.amount), r.currency, r.reason),
            ),
            REFUND_WAITS,
        ),
        "returns": _Of(
            (b.created_at, b.order_id, b.id, b.region, b.order_item_id, b.quantity, b.reason),
            RETURN_WAITS,
        ),
    }


def _query(name: str, filters: Filters, after: Place | None, limit: int) -> Query:
    values = {key: value for key, value in filters.items() if value is not None}
    if after is not None:
        values |= {"after_time": after.time, "after_order": after.order_id, "after_id": after.id}
    return Query(_statement(name, frozenset(values), limit), values)


@lru_cache(maxsize=256)
def _statement(name: str, given: frozenset[str], limit: int) -> sa.Select[Any]:
    of = _lists()[name]
    time, order_id, id_ = place = of.columns[:3]
    query = sa.select(*of.columns).where(sa.text(of.on_it))
    columns = {column.name: column for column in of.columns if isinstance(column, sa.Column)}
    for key in sorted(given):
        if key in columns:
            query = query.where(columns[key] == sa.bindparam(key, type_=columns[key].type))
    if "before" in given:
        query = query.where(time < sa.bindparam("before", type_=time.type))
    if "after_time" in given:
        last = zip(("after_time", "after_order", "after_id"), (time, order_id, id_), strict=True)
        query = query.where(
            sa.tuple_(*place) > sa.tuple_(*(sa.bindparam(key, type_=like.type) for key, like in last))
        )
    # A number, as in queries.statements: plans are made once for all values.
    return query.order_by(*place).limit(sa.literal_column(str(limit)))
