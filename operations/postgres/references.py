"""References to other services' tables: foreign keys from our columns, added where those tables exist.

A reference that isn't enforced (PostgreSQL 18) costs nothing and promises nothing: it shows people and tools
what belongs together. For an enforced one Postgres looks up each new row's target, and a lane waits with an
order whose user, product or warehouse isn't there yet.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, cast, get_args

import asyncpg

from errors import OrdersError
from operations.postgres import ddl
from settings import Settings
from sinks.migrate import LOCK, check
from sinks.schema import TABLES

Kind = Literal["users", "products", "warehouses", "sellers"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


class Reference(NamedTuple):
    """One column that refers to a row of another service."""

    kind: Kind
    table: str
    column: str

    @property
    def name(self) -> str:
        """Name of the constraint."""
        return f"{self.table}_{self.column}_fkey"


REFERENCES: Final = (
    Reference("users", "orders_order", "user_id"),
    Reference("products", "orders_order_item", "product_id"),
    Reference("warehouses", "orders_order_item", "warehouse_id"),
    Reference("warehouses", "orders_shipment", "warehouse_id"),
    Reference("sellers", "orders_order_item", "seller_id"),
    Reference("sellers", "orders_shipment", "seller_id"),
)


@dataclass(frozen=True, slots=True)
class Link:
    """A reference as it is in the database."""

    table: str
    column: str
    to: str
    """The table referred to, as Postgres writes it."""
    enforced: bool
    valid: bool
    """All rows are known to keep it. Only an interrupted change leaves an enforced one that isn't."""
    changed: bool = False
    """By this call."""


@dataclass(frozen=True, slots=True)
class Broken:
    """Rows of one partition that refer to what isn't there."""

    table: str
    column: str
    to: str
    partition: str
    rows: int
    missing: list[str]
    """The lowest and the highest of the ids that are missing there."""


class LinkError(OrdersError):
    """It can't be linked as asked. Nothing was changed."""


class BrokenReferences(OrdersError):
    """Rows break what was to be enforced, so it isn't enforced."""

    remedy = "add what is missing, or link without --enforced"

    def __init__(self, broken: list[Broken]) -> None:
        super().__init__(f"{sum(each.rows for each in broken):,} rows refer to what isn't there")
        self.broken = broken


_FIT: Final = "name a table whose column id is uuid and its primary key, or unique"

# PostgreSQL 18 has conenforced.
_FOUND = """
    SELECT conrelid::regclass::text, conname, confrelid::regclass::text, conenforced, convalidated
    FROM pg_constraint
    WHERE contype = 'f' AND conparentid = 0
        AND conrelid IN (SELECT to_regclass('public.' || name) FROM unnest($1::text[]) name)"""


async def _links(connection: ddl.Connection) -> dict[Reference, Link]:
    constraints = {(row[0], row[1]): row for row in await connection.fetch(_FOUND, list(TABLES))}
    rows = {reference: constraints.get((reference.table, reference.name)) for reference in REFERENCES}
    return {
        reference: Link(reference.table, reference.column, row[2], row[3], row[4])
        for reference, row in rows.items()
        if row is not None
    }


async def listed(settings: Settings) -> list[Link]:
    """The references that there are. Raises what asyncpg raises; blocks for some milliseconds."""
    async with ddl.connect(settings) as connection:
        if connection.get_server_version() < (18,):
            return []
        return list((await _links(connection)).values())


async def link(
    settings: Settings,
    targets: Mapping[Kind, str],
    enforced: bool = False,
    timeout: float = 60.0,
    say: ddl.Say = lambda _: None,
) -> list[Link]:
    """Make the columns of these kinds refer to column id of these tables, enforced or not. What is so already
    stays.

    To enforce a reference, all rows are checked without locks first. Then it holds for new rows, after a
    short lock, and the old rows are checked again beside the writers.

    Blocks. Raises BrokenReferences if rows break a reference, which then isn't enforced; LinkError if a table
    is missing or doesn't fit; SchemaMismatch without our tables; ddl.Busy if a reference doesn't get its
    locks (those before it are done); and what asyncpg raises.
    """
    await check(settings)
    async with ddl.connect(settings) as connection:
        if connection.get_server_version() < (18,):
            raise LinkError(
                f"references take PostgreSQL 18; this is {connection.get_server_version().major}",
                "upgrade it, or do without references",
            )
        missing = {
            reference: await _target(connection, reference, targets[reference.kind])
            for reference in REFERENCES
            if reference.kind in targets
        }
        there = await _links(connection)
        for reference, to in missing.items():
            if reference in there and there[reference].to != to:
                raise LinkError(
                    f"{reference.table}.{reference.column} refers to {there[reference].to}",
                    f"run orders db unlink {reference.kind} first",
                )
        if enforced:
            await _require_kept(connection, missing)
        return [
            there[reference]
            if reference in there
            and (there[reference].enforced, there[reference].valid) == (enforced, enforced)
            else await _change(connection, reference, to, enforced, timeout, say)
            for reference, to in missing.items()
        ]


async def unlink(
    settings: Settings,
    kinds: Sequence[Kind] = KINDS,
    timeout: float = 60.0,
    say: ddl.Say = lambda _: None,
) -> list[Link]:
    """Remove the references of these kinds, and return those that were there.

    Blocks and raises as link() does.
    """
    await check(settings)
    async with ddl.connect(settings) as connection:
        there = {
            reference: row for reference, row in (await _links(connection)).items() if reference.kind in kinds
        }
        for reference, row in there.items():

            async def work(reference: Reference = reference) -> None:
                await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
                await connection.execute(
                    f"ALTER TABLE {reference.table} DROP CONSTRAINT IF EXISTS {reference.name}"
                )

            await ddl.in_short_waits(connection, work, timeout, say, (reference.table, row.to))
        return list(there.values())


async def _target(connection: ddl.Connection, reference: Reference, table: str) -> str:
    """The table as Postgres writes it. Raises LinkError when a column can't refer to its id."""
    try:
        row = await connection.fetchrow(
            """
            SELECT c.oid::regclass::text AS name, c.relkind, format_type(a.atttypid, a.atttypmod) AS type,
                EXISTS (
                    SELECT FROM pg_index i
                    WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indpred IS NULL
                        AND i.indnkeyatts = 1 AND i.indkey[0] = a.attnum) AS is_unique
            FROM pg_class c
            LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'id' AND NOT a.attisdropped
            WHERE c.oid = to_regclass($1)""",
            table,
        )
    except (
        asyncpg.InvalidNameError,
        asyncpg.PostgresSyntaxError,
        asyncpg.FeatureNotSupportedError,
    ):  # no name, or one of too many parts
        row = None
    if row is None:
        raise LinkError(
            f"there is no table {table!r} in this database",
            f"give --{reference.kind} its name, with its schema if need be",
        )
    if row["relkind"] not in (b"r", b"p"):
        raise LinkError(f"{table} is no table (a view or a foreign table can't be referred to)", _FIT)
    if row["type"] is None:
        raise LinkError(f"{table} has no column id to refer to", _FIT)
    if row["type"] != "uuid":
        raise LinkError(
            f"{table}.id is {row['type']}, but {reference.table}.{reference.column} is uuid", _FIT
        )
    if not row["is_unique"]:
        raise LinkError(f"{table}.id is neither its primary key nor unique by itself", _FIT)
    return cast(str, row["name"])


async def _require_kept(connection: ddl.Connection, targets: Mapping[Reference, str]) -> None:
    broken: list[Broken] = []
    for reference, to in targets.items():
        rows = await connection.fetch(
            f"""
            SELECT part.relname, count(*),
                ARRAY[min(ours.{reference.column}::text), max(ours.{reference.column}::text)]
            FROM {reference.table} ours JOIN pg_class part ON part.oid = ours.tableoid
            WHERE ours.{reference.column} IS NOT NULL
                AND NOT EXISTS (SELECT FROM {to} theirs WHERE theirs.id = ours.{reference.column})
            GROUP BY part.relname ORDER BY part.relname"""
        )
        broken += [
            Broken(reference.table, reference.column, to, row[0], row[1], sorted(set(row[2]))) for row in rows
        ]
    if broken:
        raise BrokenReferences(broken)


async def _change(
    connection: ddl.Connection,
    reference: Reference,
    to: str,
    enforced: bool,
    timeout: float,
    say: ddl.Say,
) -> Link:
    """Leaves a reference enforced and checked, or not enforced, whatever it was."""
    table, name = reference.table, reference.name

    async def add(how: str) -> None:
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        await connection.execute(
            f"ALTER TABLE {table} DROP CONSTRAINT IF EXISTS {name},"
            f" ADD CONSTRAINT {name} FOREIGN KEY ({reference.column}) REFERENCES {to} (id) {how}"
        )

    async def validate() -> None:
        await connection.execute(f"ALTER TABLE {table} VALIDATE CONSTRAINT {name}")

    # New rows first: that takes a lock that shuts writers out, for a moment.
    # Checking the old ones takes long, and a lock that doesn't.
    await ddl.in_short_waits(
        connection, lambda: add("NOT VALID" if enforced else "NOT ENFORCED"), timeout, say, (table, to)
    )
    if enforced:
        try:
            await ddl.in_short_waits(connection, validate, timeout, say, (table, to))
        except asyncpg.ForeignKeyViolationError:
            await ddl.in_short_waits(connection, lambda: add("NOT ENFORCED"), timeout, say, (table, to))
            await _require_kept(connection, {reference: to})
            raise
    return Link(table, reference.column, to, enforced, enforced, changed=True)
