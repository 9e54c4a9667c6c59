"""Compare the rows that should be there with those that are, order by order. It only reads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast
from uuid import UUID

from operations.postgres import ddl
from sinks.postgres import given_rows, texts_of
from sinks.rows import RowBatch
from sinks.schema import TABLES, build_metadata

_METADATA: Final = build_metadata()
COLUMNS: Final = {table: tuple(column.name for column in _METADATA.tables[table].columns) for table in TABLES}

HELD_ROWS: Final = 20_000
"""Rows of a table that differ and are held at once, if they aren't of one order."""

Values = tuple[str | None, ...]
"""The columns of a row, each as Postgres writes it as text; None: NULL."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that isn't as it should be.

    `actual` is None where a row is missing, `expected` where there should be none.
    """

    table: str
    id: str
    """Of orders_attention the kind."""
    order_id: str
    actual: Values | None
    expected: Values | None

    @property
    def key(self) -> tuple[str, str, str]:
        return self.table, self.id, self.order_id

    def columns(self) -> list[tuple[str, str | None, str | None]]:
        """(column, actual, expected) of each column that differs, if there are both rows."""
        if self.actual is None or self.expected is None:
            return []
        return [
            (name, actual, expected)
            for name, actual, expected in zip(COLUMNS[self.table], self.actual, self.expected, strict=True)
            if actual != expected
        ]


def order_column(table: str) -> str:
    """Return the column of `table` that holds the order's id."""
    return "id" if table == "orders_order" else "order_id"


def key_column(table: str) -> str:
    """Return the column of `table` that tells the rows of an order apart."""
    return "kind" if table == "orders_attention" else "id"


# What was cleared is what was seen: nobody asks for it.
_ASKED_FOR: Final = {
    "orders_attention": (
        " AND (l.order_id IS NOT NULL AND l.cleared_at IS NULL"
        " OR n.order_id IS NOT NULL AND n.cleared_at IS NULL)"
    )
}
_GIVEN: Final = "= ANY($1::uuid[])"
_BETWEEN: Final = "BETWEEN $1 AND $2"


def _query(table: str, expected: str, orders: str = _GIVEN) -> str:
    columns, order, key = COLUMNS[table], order_column(table), key_column(table)
    both = f"l.{key} = n.{key} AND l.{order} = n.{order}"

    def values(side: str) -> str:
        return (
            f"CASE WHEN {side}.{key} IS NOT NULL THEN"
            f" ARRAY[{', '.join(f'{side}.{name}::text' for name in columns)}] END"
        )

    def row(side: str) -> str:
        return f"({', '.join(f'{side}.{name}' for name in columns)})"

    return (
        f"SELECT coalesce(l.{key}, n.{key})::text, coalesce(l.{order}, n.{order})::text, {values('l')},"
        f" {values('n')} FROM (SELECT * FROM public.{table} WHERE {order} {orders}) l FULL JOIN"
        f" ({expected}) n ON {both} WHERE {row('l')} IS DISTINCT FROM {row('n')}{_ASKED_FOR.get(table, '')}"
    )


async def with_schema(connection: ddl.Connection, schema: str, order_ids: Sequence[str]) -> list[Difference]:
    """Compare the live rows of these orders with those in `schema`, and return the
    rows that differ. Blocks.
    """
    differences: list[Difference] = []
    for table in TABLES:
        expected = f"SELECT * FROM {schema}.{table} WHERE {order_column(table)} {_GIVEN}"
        differences += _differences(table, await connection.fetch(_query(table, expected), order_ids))
    return differences


async def between(
    connection: ddl.Connection, schema: str, first: UUID, last: UUID
) -> AsyncIterator[list[Difference]]:
    """Compare the live rows of all orders with ids from `first` to `last` with those in `schema`, and yield
    the rows that differ, those of an order together. Blocks.

    One look at a stretch of an index costs a fraction of a look for each order. It yields once, unless so
    many rows differ that they shouldn't be held at once.
    """
    differences: list[Difference] = []
    for table in TABLES:
        expected = f"SELECT * FROM {schema}.{table} WHERE {order_column(table)} {_BETWEEN}"
        query = f"{_query(table, expected, _BETWEEN)} LIMIT {HELD_ROWS + 1}"
        rows = await connection.fetch(query, first, last)
        if len(rows) > HELD_ROWS and first < last:
            middle = (first.int + last.int) // 2
            for part in ((first, UUID(int=middle)), (UUID(int=middle + 1), last)):
                async for some in between(connection, schema, *part):
                    yield some
            return
        differences += _differences(table, rows)
    yield differences


async def with_rows(connection: ddl.Connection, rows: RowBatch, order_ids: Sequence[str]) -> list[Difference]:
    """Compare the live rows of these orders with `rows`, which are all that they should have. Blocks."""
    by_table = rows.by_table()
    differences: list[Difference] = []
    for table in TABLES:
        if table in by_table:
            expected = given_rows(_METADATA.tables[table], 2, "::text")
            arguments = texts_of(table, by_table[table])
        else:
            expected, arguments = f"SELECT * FROM public.{table} WHERE false", []
        differences += _differences(
            table, await connection.fetch(_query(table, expected), order_ids, *arguments)
        )
    return differences


def _differences(table: str, rows: Sequence[Any]) -> list[Difference]:
    def values(columns: object) -> Values | None:
        return None if columns is None else tuple(cast("Sequence[str | None]", columns))

    return [Difference(table, str(row[0]), str(row[1]), values(row[2]), values(row[3])) for row in rows]
