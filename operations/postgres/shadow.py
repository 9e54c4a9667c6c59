"""The shadow: the tables once more, in a schema of their own, and their exchange with the live ones.

Its partitions, indexes and constraints are those of the live tables, read from Postgres's catalog. Only
partitions are exchanged: the tables that views, grants and references name stay (docs/decisions/0019).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import asyncpg

from errors import OrdersError
from operations.postgres import SHADOW, ddl
from settings import Settings
from sinks.migrate import LOCK
from sinks.schema import TABLES

BEFORE: Final = "orders_before_"
"""What the tables that were live are kept under, with a number."""
_NOTE: Final = "rebuild"
"""Table of one row in each of our schemas: what it is."""
_IMPLIED: Final = "orders_rebuild_bound"
"""Constraint of the shadow's partitions that says what attaching would otherwise
look through all rows for.
"""


class SchemaTaken(OrdersError):
    """The schema isn't one of ours, or can't be."""


class LayoutChanged(OrdersError):
    """The live tables have changed since the shadow was made of them: a region was
    added, or a migration ran.
    """

    remedy = "run orders rebuild start, which begins again"


class InUse(OrdersError):
    """Another process works on the shadow."""

    remedy = "wait for it, or end it"


@dataclass(frozen=True, slots=True)
class Shadow:
    """A schema of ours. `before`: its rows were live until `switched_at`."""

    schema: str
    id: str
    group: str
    rules: str
    """Fingerprint of the rules by which it was folded."""
    layout: str
    started_at: datetime
    switched_at: datetime | None
    settled: bool
    """Cache entries were renewed after the switch."""

    @property
    def before(self) -> bool:
        return self.switched_at is not None


def require_name(schema: str) -> None:
    """Raise SchemaTaken unless a shadow may have this name."""
    if not re.fullmatch(r"[a-z_][a-z0-9_]{0,40}", schema):
        raise SchemaTaken(
            f"{schema!r} can't be the schema's name",
            "take small letters, digits and _, 41 at most, no digit first",
        )
    if schema in ("public", "information_schema") or schema.startswith(("pg_", BEFORE)):
        raise SchemaTaken(f"{schema!r} is a schema of others", f"choose another name, such as {SHADOW}")


async def listed(connection: ddl.Connection) -> list[Shadow]:
    """All schemas of ours, the one that is being filled first."""
    schemas = await ddl.fetch_values(
        connection,
        "SELECT n.nspname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relname = $1"
        " AND c.relkind = 'r' AND obj_description(c.oid) = 'orders rebuild' ORDER BY n.nspname",
        _NOTE,
    )
    notes = [(schema, await connection.fetchrow(f"SELECT * FROM {schema}.{_NOTE}")) for schema in schemas]
    shadows = [Shadow(schema, *note) for schema, note in notes if note is not None]
    return sorted(shadows, key=lambda shadow: (shadow.before, shadow.started_at))


async def find(connection: ddl.Connection, schema: str) -> Shadow | None:
    """The shadow of this name; None if there is no such schema.
    Raises SchemaTaken if there is one that isn't ours.
    """
    require_name(schema)
    for shadow in await listed(connection):
        if shadow.schema == schema:
            return shadow
    if await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", schema):
        raise SchemaTaken(
            f"schema {schema} is there and wasn't made by orders rebuild", "choose another name with --schema"
        )
    return None


async def hold(connection: ddl.Connection, schema: str) -> None:
    """Keep others away from a shadow as long as the connection is open. Raises InUse."""
    if not await connection.fetchval(
        "SELECT pg_try_advisory_lock($1, hashtext($2))", LOCK & 0x7FFFFFFF, schema
    ):
        raise InUse(f"another orders rebuild is at work in schema {schema}")


_LAYOUT = """
    SELECT md5(string_agg(line, E'\\n' ORDER BY line)) FROM (
        SELECT format('%s.%s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull)
            AS line
        FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY($1)
        UNION ALL
        SELECT format('%s %s', part.relname, pg_get_partition_constraintdef(part.oid))
        FROM pg_class c JOIN pg_inherits ON inhparent = c.oid JOIN pg_class part ON part.oid = inhrelid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY($1)
        UNION ALL
        SELECT pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
        WHERE c.relnamespace = 'public'::regnamespace AND c.relname = ANY($1)
    ) lines"""

_PARTS = """
    SELECT part.relname AS name, pg_get_expr(part.relpartbound, part.oid) AS bound,
           pg_get_partition_constraintdef(part.oid) AS implied,
           part.reloptions AS options, pg_get_userbyid(part.relowner) AS owner
    FROM pg_inherits JOIN pg_class part ON part.oid = inhrelid WHERE inhparent = to_regclass('public.' || $1)
    ORDER BY pg_get_expr(part.relpartbound, part.oid) = 'DEFAULT', part.relname"""


async def layout(connection: ddl.Connection) -> str:
    """Fingerprint of how the live tables are made: columns, partitions, indexes."""
    return str(await connection.fetchval(_LAYOUT, list(TABLES)))


async def require_layout(connection: ddl.Connection, shadow: Shadow) -> None:
    """Raise LayoutChanged if the live tables aren't what the shadow was made for."""
    if await layout(connection) != shadow.layout:
        raise LayoutChanged(
            "the live tables have other columns, partitions or indexes than when the rebuild was begun"
        )


async def create(connection: ddl.Connection, schema: str, id: str, group: str, rules: str) -> Shadow:
    """Make an empty shadow of the live tables, in one transaction.
    Raises SchemaTaken if the schema is there; blocks.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        try:
            await connection.execute(f"CREATE SCHEMA {schema}")
        except asyncpg.DuplicateSchemaError as error:
            raise SchemaTaken(
                f"schema {schema} is there", "drop it with orders rebuild drop, or choose another name"
            ) from error
        for table in TABLES:
            await _create_table(connection, schema, table)
        await connection.execute(f"""
            CREATE TABLE {schema}.{_NOTE} (
                id text NOT NULL, "group" text NOT NULL, rules text NOT NULL, layout text NOT NULL,
                started_at timestamptz NOT NULL DEFAULT now(), switched_at timestamptz,
                settled boolean NOT NULL DEFAULT false);
            COMMENT ON TABLE {schema}.{_NOTE} IS 'orders rebuild'""")
        await connection.execute(
            f'INSERT INTO {schema}.{_NOTE} (id, "group", rules, layout) VALUES ($1, $2, $3, $4)',
            id,
            group,
            rules,
            await layout(connection),
        )
    existing = await find(connection, schema)
    assert existing is not None
    return existing


async def _create_table(connection: ddl.Connection, schema: str, table: str) -> None:
    live = f"public.{table}"
    key = await connection.fetchval("SELECT pg_get_partkeydef(to_regclass($1))", live)
    # LIKE would give the indexes other names.
    await connection.execute(
        f"CREATE TABLE {schema}.{table} (LIKE {live} INCLUDING ALL EXCLUDING INDEXES) PARTITION BY {key}"
    )
    for name, definition in await connection.fetch(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = to_regclass($1) AND"
        " contype IN ('p', 'u')",
        live,
    ):
        await connection.execute(f"ALTER TABLE {schema}.{table} ADD CONSTRAINT {name} {definition}")
    for definition in await ddl.fetch_values(
        connection,
        "SELECT pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = to_regclass($1)"
        " AND NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = indexrelid)",
        live,
    ):
        await connection.execute(
            re.sub(rf" ON (ONLY )?public\.{table} ", f" ON {schema}.{table} ", definition)
        )
    for part in await connection.fetch(_PARTS, table):
        name = f'{schema}."{part["name"]}"'
        options = f" WITH ({', '.join(part['options'])})" if part["options"] else ""
        await connection.execute(
            f"CREATE TABLE {name} PARTITION OF {schema}.{table} {part['bound']}{options}"
        )
        if part["implied"] is not None:  # a default partition alone takes whatever comes
            await connection.execute(
                f"ALTER TABLE {name} ADD CONSTRAINT {_IMPLIED} CHECK ({part['implied']})"
            )


async def drop(connection: ddl.Connection, shadow: Shadow) -> None:
    """Take a schema of ours away, with what is in it, in one transaction. Again is harmless. Blocks."""
    await connection.execute(f"DROP SCHEMA IF EXISTS {shadow.schema} CASCADE")


async def count(connection: ddl.Connection, shadow: Shadow) -> dict[str, int]:
    """Table -> rows, by Postgres's statistics.
    Only of one that is being filled: what was live before is in single tables.
    """
    rows = await connection.fetch(
        "SELECT parent.relname, coalesce(sum(stat.n_live_tup), 0)::bigint FROM unnest($2::text[]) WITH"
        " ORDINALITY AS named(name, place) JOIN pg_class parent ON parent.oid = to_regclass($1 || '.' ||"
        " named.name) JOIN pg_inherits ON inhparent = parent.oid LEFT JOIN pg_stat_all_tables stat ON"
        " stat.relid = inhrelid GROUP BY parent.relname, named.place ORDER BY named.place",
        shadow.schema,
        list(TABLES),
    )
    return {row[0]: row[1] for row in rows}


# -- the switch ----------------------------------------------------------------------------------------------


async def prepare(connection: ddl.Connection, shadow: Shadow) -> None:
    """Prepare a switch beside readers: gather statistics, and check every enforced reference on the shadow's
    rows.

    Raises LayoutChanged, asyncpg.ForeignKeyViolationError. Again is harmless. Blocks while the rows are read.
    """
    await require_layout(connection, shadow)
    for table in TABLES:
        for name, definition in await connection.fetch(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid ="
            " to_regclass('public.' || $1) AND contype = 'f' AND conparentid = 0 AND convalidated",
            table,
        ):
            # Those that aren't enforced cost nothing when the partitions are attached.
            if "NOT ENFORCED" not in definition:
                await connection.execute(
                    f"ALTER TABLE {shadow.schema}.{table} DROP CONSTRAINT IF EXISTS {name}, ADD CONSTRAINT"
                    f" {name} {definition}"
                )
        await connection.execute(f"ANALYZE {shadow.schema}.{table}")


async def switch(
    connection: ddl.Connection,
    shadow: Shadow,
    check: Callable[[], None],
    timeout: float,
    say: ddl.Say = lambda _: None,
) -> Shadow:
    """Exchange the live partitions for the shadow's in one transaction, and return what was live, in its own
    schema.

    `check` is called right before the commit and may raise. Raises LayoutChanged, and ddl.Busy if it doesn't
    get its locks; then nothing is changed. Readers wait while the catalog is changed, not for rows.
    """

    async def work() -> Shadow:
        await connection.execute("SELECT pg_advisory_xact_lock($1)", LOCK)
        await connection.execute(
            f"LOCK TABLE {', '.join(f'public.{table}' for table in TABLES)} IN ACCESS EXCLUSIVE MODE"
        )
        await require_layout(connection, shadow)
        number = 1
        while await connection.fetchval("SELECT to_regnamespace($1) IS NOT NULL", f"{BEFORE}{number}"):
            number += 1
        before = f"{BEFORE}{number}"
        await connection.execute(f"CREATE SCHEMA {before}")
        # Postgres 18 lets no partition go that is referred to, though the reference isn't enforced: they
        # are made again at the end.
        referring = await connection.fetch(_REFERRING, list(TABLES))
        for table, name, _ in referring:
            await connection.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
        parts = {table: await connection.fetch(_PARTS, table) for table in TABLES}
        for table in TABLES:
            for part in parts[table]:
                name = f'"{part["name"]}"'
                grants = await ddl.fetch_values(connection, _GRANTS, f"public.{name}")
                await connection.execute(
                    f"ALTER TABLE public.{table} DETACH PARTITION public.{name}; ALTER TABLE public.{name}"
                    f" SET SCHEMA {before};ALTER TABLE {shadow.schema}.{table} DETACH PARTITION"
                    f" {shadow.schema}.{name};ALTER TABLE {shadow.schema}.{name} SET SCHEMA public;"
                    + "".join(f"{grant};" for grant in grants)
                )
        for table in TABLES:
            for part in parts[table]:
                name = f'"{part["name"]}"'
                await connection.execute(
                    f"ALTER TABLE public.{table} ATTACH PARTITION public.{name} {part['bound']};"
                    f"ALTER TABLE public.{name} DROP CONSTRAINT IF EXISTS {_IMPLIED}"
                )
            await _keep_for_reading(connection, before, table, [part["name"] for part in parts[table]])
        for table, name, definition in referring:
            await connection.execute(f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}")
        await connection.execute(
            f"ALTER TABLE {shadow.schema}.{_NOTE} SET SCHEMA {before}; UPDATE {before}.{_NOTE} SET"
            f" switched_at = now();DROP SCHEMA {shadow.schema} CASCADE"
        )
        check()
        switched = [each for each in await listed(connection) if each.schema == before]
        return switched[0]

    tables = [f"public.{table}" for table in TABLES]
    return await ddl.in_short_waits(connection, work, timeout, say, tables)


_REFERRING = """
    SELECT conrelid::regclass::text, quote_ident(conname), pg_get_constraintdef(oid) FROM pg_constraint
    WHERE contype = 'f' AND conparentid = 0
        AND confrelid IN (SELECT to_regclass('public.' || name) FROM unnest($1::text[]) name)"""

_GRANTS = """
    SELECT format('ALTER TABLE %s OWNER TO %I', $1::regclass, pg_get_userbyid(relowner)) FROM pg_class
    WHERE oid = $1::regclass AND relowner <> (SELECT oid FROM pg_roles WHERE rolname = current_user)
    UNION ALL
    SELECT format('GRANT %s ON %s TO %s%s', privilege_type, $1::regclass,
                  CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END,
                  CASE WHEN is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
    FROM pg_class, aclexplode(relacl) WHERE oid = $1::regclass AND grantee <> relowner"""


async def _keep_for_reading(connection: ddl.Connection, schema: str, table: str, parts: list[str]) -> None:
    """Keep what was live without references to or from other tables, with a view
    that shows it as one table.
    """
    for part in parts:
        for name in await ddl.fetch_values(
            connection,
            "SELECT quote_ident(conname) FROM pg_constraint WHERE conrelid = to_regclass($1) AND contype ="
            " 'f' AND conparentid = 0",
            f'{schema}."{part}"',
        ):
            await connection.execute(f'ALTER TABLE {schema}."{part}" DROP CONSTRAINT {name}')
    union = " UNION ALL ".join(f'SELECT * FROM {schema}."{part}"' for part in parts)
    await connection.execute(f"CREATE VIEW {schema}.{table} AS {union}")


async def settle(connection: ddl.Connection, before: Shadow) -> None:
    """Note that everything that follows a switch is done."""
    for table in TABLES:
        # The partitions were analyzed before; what the planner knows of a table as a
        # whole is about the old rows.
        await connection.execute(f"ANALYZE ONLY public.{table}")
    await connection.execute(f"UPDATE {before.schema}.{_NOTE} SET settled = true")


async def in_database(settings: Settings, work: Callable[[ddl.Connection], Awaitable[ddl.T]]) -> ddl.T:
    """Run `work` on a connection of its own."""
    async with ddl.connect(settings) as connection:
        return await work(connection)
