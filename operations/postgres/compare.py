"""Rows that should be there against those that are, order by order. Only reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

from operations.postgres import ddl
from sinks.postgres import columns_of, given_rows
from sinks.rows import RowBatch
from sinks.schema import TABLES, build_metadata

_METADATA: Final = build_metadata()
COLUMNS: Final = {table: tuple(column.name for column in _METADATA.tables[table].columns) for table in TABLES}

Values = tuple[str | None, ...]
"""A row's columns as Postgres writes them."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of which the live one and the one that should be there differ; None: there is none."""

    table: str
    id: str
    order_id: str
    live: Values | None
    anew: Values | None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.table, self.id, self.order_id

    def columns(self) -> list[tuple[str, str | None, str | None]]:
        """(column, live, anew) where both are there and differ."""
        if self.live is None or self.anew is None:
            return []
        return [(name, a, b) for name, a, b in zip(COLUMNS[self.table], self.live, self.anew, strict=True) if a != b]


def order_column(table: str) -> str:
    """The column that holds the order's id."""
    return "id" if table == "orders_order" else "order_id"


def _query(table: str, anew: str) -> str:
    columns, order = COLUMNS[table], order_column(table)
    both = f"l.id = n.id AND l.{order} = n.{order}"

    def values(side: str) -> str:
        return f"CASE WHEN {side}.id IS NOT NULL THEN ARRAY[{', '.join(f'{side}.{name}::text' for name in columns)}] END"

    def row(side: str) -> str:
        return f"({', '.join(f'{side}.{name}' for name in columns)})"

    return (
        f"SELECT coalesce(l.id, n.id)::text, coalesce(l.{order}, n.{order})::text, {values('l')}, {values('n')}"
        f" FROM (SELECT * FROM public.{table} WHERE {order} = ANY($1::uuid[])) l FULL JOIN ({anew}) n ON {both}"
        f" WHERE {row('l')} IS DISTINCT FROM {row('n')}"
    )


async def with_schema(connection: ddl.Connection, schema: str, order_ids: Sequence[str]) -> list[Difference]:
    """Where the live rows of these orders differ from those in `schema`. Blocks."""
    found: list[Difference] = []
    for table in TABLES:
        anew = f"SELECT * FROM {schema}.{table} WHERE {order_column(table)} = ANY($1::uuid[])"
        found += _told(table, await connection.fetch(_query(table, anew), order_ids))
    return found


async def with_rows(connection: ddl.Connection, rows: RowBatch, order_ids: Sequence[str]) -> list[Difference]:
    """Where the live rows of these orders differ from `rows`, which are all that they should have. Blocks."""
    given = rows.by_table()
    found: list[Difference] = []
    for table in TABLES:
        if table in given:
            anew, arguments = given_rows(_METADATA.tables[table], 2), columns_of(given[table])
        else:
            anew, arguments = f"SELECT * FROM public.{table} WHERE false", []
        found += _told(table, await connection.fetch(_query(table, anew), order_ids, *arguments))
    return found


def _told(table: str, rows: Sequence[Any]) -> list[Difference]:
    def values(found: object) -> Values | None:
        return None if found is None else tuple(cast("Sequence[str | None]", found))

    return [Difference(table, str(row[0]), str(row[1]), values(row[2]), values(row[3])) for row in rows]
