"""What a person should look at: the open rows of orders_attention, the oldest first.

One work list for `orders attention`, the console and whoever shows it next. Everything here is about all
orders, so it is for callers that see all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final, NamedTuple
from uuid import UUID

import sqlalchemy as sa

from contracts import times
from queries.databases import Away, Databases
from queries.errors import Unavailable
from queries.keyset import Position, bound_to, micros
from queries.statements import Query
from sinks.schema import build_metadata

_attention: Final = build_metadata().tables["orders_attention"]
_FORGED: Final = "not a cursor of this list"


@dataclass(slots=True)
class OpenAttention:
    """One kind of what a person should look at, of one order. Times are RFC 3339 in UTC."""

    order_id: UUID
    user_id: UUID
    kind: str
    detail: str
    """All that hold of this kind."""
    since: str
    """The event time from which on it holds."""


class AttentionPage(NamedTuple):
    """A page of the list."""

    rows: list[OpenAttention]
    next: str | None
    """Give it as `cursor` for the page after this one; None: this was the last one."""


async def open_attention(
    databases: Databases,
    limit: int,
    *,
    kind: str | None = None,
    since: datetime | None = None,
    before: datetime | None = None,
    cursor: str | None = None,
) -> AttentionPage:
    """Return a page of what is open, the oldest first: of one kind, of what has held since `since` or later,
    and since before `before`, which may be another one on each page.

    Asks the replica, else the primary. Blocks as Database.rows. Raises Unavailable, and ValueError for a
    cursor that isn't one of a list with these filters.
    """
    bound = bound_to({"list": "attention", "kind": kind, "since": since})
    values: dict[str, Any] = {"kind": kind, "since": since, "before": before}
    if cursor is not None:
        values |= _after(cursor, bound)
    given = {name: value for name, value in values.items() if value is not None}
    rows: Sequence[Any] = await _rows(databases, Query(_open(frozenset(given), limit + 1), given))
    shown = [
        OpenAttention(order_id, user_id, of, detail, times.text(micros(began)))
        for order_id, user_id, of, detail, began in rows[:limit]
    ]
    if len(rows) <= limit:
        return AttentionPage(shown, None)
    last = rows[limit - 1]
    return AttentionPage(shown, f"{Position(last.since, last.order_id).cursor(bound)}.{last.kind}")


async def attention_counts(databases: Databases) -> dict[str, int]:
    """Return how many orders have each kind open, the most frequent first. Blocks and raises as
    open_attention().
    """
    rows: Sequence[Any] = await _rows(databases, Query(_counts(), {}))
    return {row[0]: row[1] for row in rows}


def _after(cursor: str, bound: bytes) -> dict[str, Any]:
    place, dot, kind = cursor.rpartition(".")
    if not dot or not kind:
        raise ValueError(_FORGED)
    position = Position.parse(place, bound)
    return {"after_since": position.time, "after_id": position.id, "after_kind": kind}


async def _rows(databases: Databases, query: Query) -> Sequence[sa.Row[Any]]:
    away: Away | None = None
    async for database, _ in databases.each():
        try:
            return await database.rows(query)
        except Away as error:
            away = error
    raise Unavailable("no database answers") from away


def _value(name: str, like: sa.ColumnElement[Any]) -> sa.BindParameter[Any]:
    return sa.bindparam(name, type_=like.type)


@lru_cache(maxsize=64)
def _open(given: frozenset[str], limit: int) -> sa.Select[Any]:
    c = _attention.c
    query = sa.select(c.order_id, c.user_id, c.kind, c.detail, c.since).where(c.cleared_at.is_(None))
    if "kind" in given:
        query = query.where(c.kind == _value("kind", c.kind))
    if "since" in given:
        query = query.where(c.since >= _value("since", c.since))
    if "before" in given:
        query = query.where(c.since < _value("before", c.since))
    if "after_since" in given:
        after = _value("after_since", c.since), _value("after_id", c.order_id), _value("after_kind", c.kind)
        query = query.where(c.since >= after[0], sa.tuple_(c.since, c.order_id, c.kind) > sa.tuple_(*after))
    # Said to the planner, as in queries.statements.
    return query.order_by(c.since, c.order_id, c.kind).limit(sa.literal_column(str(limit)))


@lru_cache(maxsize=1)
def _counts() -> sa.Select[Any]:
    c = _attention.c
    query = sa.select(c.kind, sa.func.count()).where(c.cleared_at.is_(None)).group_by(c.kind)
    return query.order_by(sa.func.count().desc(), c.kind)
