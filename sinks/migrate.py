"""Makes the schema and checks it: Alembic over asyncpg."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import asyncpg
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import NullPool

from errors import OrdersError
from settings import Settings
from sinks.connection import connect as connection_to
from sinks.connection import watched
from sinks.schema import (
    DIALECT,
    ENUMS,
    PARTITION_COLUMNS,
    TABLES,
    PartitionBy,
    build_metadata,
    build_views,
)

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"

LOCK = 0x6F7264657273
"""Two changes of the schema at a time: the second waits for the first.
The number is arbitrary, only unlikely.
"""


class SchemaMismatch(OrdersError):
    """The database's schema is not the one that is wanted."""


_NOT_AS_LEFT = frozenset({"42701", "42703", "42704", "42710", "42P01", "42P07"})
"""SQLSTATEs of a migration that finds something already there, or no longer."""
_ELSE = "point ORDERS_POSTGRES at an empty database and replay the topics into it"


def no_tables() -> SchemaMismatch:
    """The error for a database in which orders init has never run."""
    return SchemaMismatch("the database has no tables yet", "run orders init")


def _torn(what: str) -> SchemaMismatch:
    """The error for a schema of which somebody dropped a part. A migration can't tell what to put back."""
    return SchemaMismatch(
        f"a part of the schema was dropped: {what}",
        "put a backup in its place, or drop the rest too (drop schema public cascade; create schema public)"
        " and run orders init and orders repair --rows",
    )


@dataclass(frozen=True, slots=True)
class Layout:
    """The partitioning of the tables."""

    partition_by: PartitionBy
    partitions: int
    """Of each table; for region, how many there are now."""


class Alembic:
    """What Alembic needs to know about our database."""

    @staticmethod
    def config(**attributes: object) -> Config:
        """Alembic's configuration without alembic.ini.
        The attributes reach migrations/env.py and the revisions.
        """
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
        config.set_main_option("path_separator", "os")
        config.attributes.update(attributes)
        return config

    @staticmethod
    def for_connection(connection: sa.Connection) -> dict[str, Any]:
        """Options of MigrationContext for a comparison that sees the tables as they are declared,
        without their partitions.
        """
        parts = set(
            connection.scalars(
                sa.text(
                    "SELECT relname FROM pg_class WHERE relispartition AND relnamespace ="
                    " 'public'::regnamespace"
                )
            ).all()
        )

        def include_name(name: str | None, type_: str, _parents: object) -> bool:
            return type_ != "table" or name not in parts

        def include_object(
            thing: sa.schema.SchemaItem, _name: str | None, _type: str, _reflected: bool, _other: object
        ) -> bool:
            # Postgres keeps a copy of a foreign key for every partition that it may lead to.
            return not (
                isinstance(thing, sa.ForeignKeyConstraint)
                and thing.elements[0].target_fullname.split(".")[-2] in parts
            )

        return {
            "compare_type": True,
            "compare_server_default": True,
            "include_name": include_name,
            "include_object": include_object,
        }

    @staticmethod
    def head() -> str:
        """The newest revision."""
        return cast(str, ScriptDirectory.from_config(Alembic.config()).get_current_head())

    @staticmethod
    def knows(revision: str) -> bool:
        """Whether this version has that migration; else a later one made it."""
        script = ScriptDirectory.from_config(Alembic.config())
        return any(each.revision == revision for each in script.walk_revisions())


@asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[AsyncConnection]:
    """A connection to the primary in one transaction, committed at the end. Raises what asyncpg raises.
    Blocks until connected.
    """

    async with AsyncExitStack() as stack:

        async def dial() -> asyncpg.Connection[asyncpg.Record]:
            connection = await connection_to(
                settings.postgres,
                "orders-init",
                timeout=settings.postgres_connect_timeout,
                pooled=settings.pooled,
            )
            await stack.enter_async_context(watched(connection))
            return connection

        engine = create_async_engine("postgresql+asyncpg://", async_creator=dial, poolclass=NullPool)
        stack.push_async_callback(engine.dispose)
        yield await stack.enter_async_context(engine.begin())


def _layout(connection: sa.Connection) -> Layout | None:
    row = connection.execute(
        sa.text("""
            SELECT a.attname, (SELECT count(*) FROM pg_inherits i WHERE i.inhparent = p.partrelid)
            FROM pg_partitioned_table p
            JOIN pg_class c ON c.oid = p.partrelid
            JOIN pg_attribute a ON a.attrelid = p.partrelid AND a.attnum = p.partattrs[0]
            WHERE c.relname = 'orders_order' AND c.relnamespace = 'public'::regnamespace""")
    ).one_or_none()
    if row is not None:
        return Layout(row[0], row[1])
    taken = connection.scalars(
        sa.text(
            "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relname ="
            " ANY(:names) ORDER BY relname"
        ),
        {"names": list(TABLES)},
    ).all()
    if taken and "orders_order" not in taken and _revision_of(connection) is not None:
        raise _torn("orders_order isn't there")
    if taken:
        raise SchemaMismatch(
            f"{', '.join(taken)} exists in schema public but wasn't made by orders init",
            "rename or drop it, or point ORDERS_POSTGRES at another database",
        )
    return None


def _revision_of(connection: sa.Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _misfits(connection: sa.Connection) -> list[str]:
    """What keeps this version from writing the tables that there are: tables, columns and statuses that it
    writes and they lack, columns that they ask for and it doesn't know.
    """
    present = _columns(connection)
    tables = build_metadata().tables
    strange = [
        f"{name}.{column}"
        for name, columns in present.items()
        for column, asked_for in columns.items()
        if asked_for and column not in tables[name].columns
    ]
    lacking = _lacking(connection, present)
    return [f"lacks {each}" for each in lacking] + [f"asks for {each}" for each in strange]


def _columns(connection: sa.Connection) -> dict[str, dict[str, bool]]:
    """Table -> column -> whether a row can't do without it, of the tables of ours that there are."""
    present: dict[str, dict[str, bool]] = {}
    for name, column, asked_for in connection.execute(
        sa.text(
            "SELECT c.relname, a.attname, a.attnotnull AND NOT a.atthasdef AND a.attidentity = ''"
            " FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid WHERE c.relnamespace ="
            " 'public'::regnamespace AND c.relname = ANY(:names) AND a.attnum > 0 AND NOT a.attisdropped"
        ),
        {"names": list(build_metadata().tables)},
    ):
        present.setdefault(name, {})[column] = asked_for
    return present


def _lacking(connection: sa.Connection, present: Mapping[str, Collection[str]]) -> list[str]:
    """Tables, columns and statuses that this version writes and that aren't there."""
    tables = build_metadata().tables
    labels = {
        (type_, label)
        for type_, label in connection.execute(
            sa.text("SELECT t.typname, e.enumlabel FROM pg_enum e JOIN pg_type t ON t.oid = e.enumtypid")
        )
    }
    lacking = []
    for name, table in tables.items():
        if name in present:
            lacking += [f"{name}.{each.name}" for each in table.columns if each.name not in present[name]]
        else:
            lacking.append(name)
    lacking += [
        f"{label} in {name}"
        for name, values in ENUMS.items()
        for label in values
        if (name, label) not in labels
    ]
    return lacking


def _require_whole(connection: sa.Connection) -> None:
    """Raise SchemaMismatch if something isn't there that the newest revision has."""
    lacking = _lacking(connection, _columns(connection))
    if lacking:
        raise _torn(f"it lacks {_some(lacking)}")


class Dropped(NamedTuple):
    """A view or an index that isn't there."""

    kind: Literal["view", "index"]
    name: str
    statement: str
    """What makes it again, in one line."""


async def dropped(settings: Settings, partition_by: PartitionBy) -> list[Dropped]:
    """The views and indexes of ours that aren't there in a schema of the newest revision; none of another.

    Workers write without them, and somebody may have dropped them on purpose. Raises what asyncpg raises.
    Blocks.
    """

    def run(connection: sa.Connection) -> list[Dropped]:
        if _revision_of(connection) != Alembic.head():
            return []
        there = set(
            connection.scalars(
                sa.text("SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace")
            ).all()
        )
        metadata = build_metadata(partition_by)
        ours: list[Dropped] = []
        for index in (each for table in metadata.tables.values() for each in table.indexes):
            statement = sa.schema.CreateIndex(index).compile(dialect=DIALECT)
            ours.append(Dropped("index", str(index.name), str(statement)))
        for name, select in build_views(metadata).items():
            query = select.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True})
            ours.append(Dropped("view", name, f"CREATE VIEW {name} AS {query}"))
        return [
            each._replace(statement=" ".join(each.statement.split()))
            for each in sorted(ours)
            if each.name not in there
        ]

    async with connect(settings) as connection:
        return await connection.run_sync(run)


def _require(actual: Layout, expected: Layout) -> None:
    if actual.partition_by != expected.partition_by:
        raise SchemaMismatch(
            f"the tables are partitioned by {actual.partition_by}, not by {expected.partition_by}",
            f"run orders init --partition-by {actual.partition_by}, or {_ELSE}",
        )
    if actual.partition_by == "user_id" and actual.partitions != expected.partitions:
        raise SchemaMismatch(
            f"the tables have {actual.partitions} hash partitions, not {expected.partitions}",
            f"set ORDERS_POSTGRES_PARTITIONS={actual.partitions}, or {_ELSE}",
        )


async def layout(settings: Settings) -> Layout | None:
    """Return how the tables are partitioned; None without tables.

    Blocks. Raises SchemaMismatch for tables that aren't ours.
    """
    async with connect(settings) as connection:
        return await connection.run_sync(_layout)


async def current(settings: Settings) -> str | None:
    """The revision of the database, None for one that was never migrated.
    Raises what asyncpg raises. Blocks.
    """
    async with connect(settings) as connection:
        return await connection.run_sync(_revision_of)


async def upgrade(settings: Settings, partition_by: str = "user_id") -> None:
    """Brings the schema to the newest revision in one transaction; again is harmless.
    Touches schema public only. A schema of a later version stays as it is.

    partition_by: user_id (settings.postgres_partitions hash partitions) or region (a list, all regions in one
    default partition at first). Raises SchemaMismatch, and changes nothing, when the tables are there and
    partitioned otherwise, a part of the schema was dropped, or something that isn't ours uses what a
    migration replaces; ValueError for another partition_by; OSError, TimeoutError or asyncpg.PostgresError
    when the server isn't there or refuses. Blocks until it is done.
    """
    if partition_by not in PARTITION_COLUMNS:
        raise ValueError(
            f"cannot partition by {partition_by!r}: choose one of {', '.join(PARTITION_COLUMNS)}"
        )
    expected = Layout(partition_by, settings.postgres_partitions)

    def run(connection: sa.Connection) -> None:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})
        actual = _layout(connection)
        if actual is not None:
            _require(actual, expected)
        revision = _revision_of(connection)
        if actual is None and revision is not None:
            raise _torn("orders_order isn't there")
        if actual is not None and revision is None:
            raise _torn("alembic_version, which tells the schema's revision, isn't there")
        if revision is not None and not Alembic.knows(revision):
            # A later version's, to which nothing is to be added: who goes back runs this, too.
            _refuse(revision, _misfits(connection))
            return
        with _dependents_named():
            _migrate(connection, expected)
        _require_whole(connection)

    async with connect(settings) as connection:
        await connection.run_sync(run)


@contextmanager
def _dependents_named() -> Iterator[None]:
    """Explain why what a migration replaces can't go: something that isn't ours is made of it."""
    try:
        yield
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != "2BP01":
            raise
        depending = str(getattr(getattr(error.orig, "__cause__", None), "detail", "") or error.orig).replace(
            "\n", "; "
        )
        raise SchemaMismatch(
            f"what the new version replaces is used by something of yours: {depending}; nothing was changed",
            "drop it, run orders init, and make it again",
        ) from error


def _migrate(connection: sa.Connection, expected: Layout) -> None:
    config = Alembic.config(
        connection=connection, partition_by=expected.partition_by, partitions=expected.partitions
    )
    try:
        command.upgrade(config, "head")
    except sa.exc.ProgrammingError as error:
        cause = error.orig and error.orig.__cause__
        if isinstance(cause, asyncpg.PostgresError) and cause.sqlstate in _NOT_AS_LEFT:
            raise _torn(str(cause)) from error
        raise


async def check(settings: Settings) -> None:
    """Returns when the schema is at the newest revision.
    Raises SchemaMismatch, saying what to do, when it isn't; otherwise as upgrade(). Blocks.
    """
    head, version = await asyncio.to_thread(Alembic.head), await _revision(settings)
    if version != head:
        raise SchemaMismatch(
            f"the schema is at revision {version}, this version of the program needs {head}",
            "run orders init",
        )


async def fits(settings: Settings) -> None:
    """Returns when this version can write the tables, also those of the version before or after it: while
    workers are upgraded, both run on one schema.

    Raises SchemaMismatch, naming what lacks, when it can't; otherwise as upgrade(). Blocks.
    """
    head, version = await asyncio.to_thread(Alembic.head), await _revision(settings)
    async with connect(settings) as connection:
        if version == head:
            await connection.run_sync(_require_whole)
        else:
            _refuse(version, await connection.run_sync(_misfits))


async def _revision(settings: Settings) -> str:
    """The revision of a database that has its tables. Raises SchemaMismatch for any other."""
    version = await current(settings)
    if version is None:
        raise no_tables()
    if await layout(settings) is None:
        raise _torn("orders_order isn't there")
    return version


def _refuse(version: str, misfits: list[str]) -> None:
    if not misfits:
        return
    raise SchemaMismatch(
        f"the schema is at revision {version}, on which this version of the program can't write: it"
        f" {_some(misfits)}",
        "run orders init of the newest version, and workers of that version or the one before",
    )


def _some(what: Sequence[str]) -> str:
    return ", ".join(what[:3]) + (f" and {len(what) - 3} more" if len(what) > 3 else "")
