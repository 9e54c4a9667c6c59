"""The sink of record: the tables, written by one statement for each batch.

Each column is one array in Postgres's binary format (sinks.arrays). The other ways to pass the rows that were
measured cost more: docs/decisions/0065.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping, Sequence
from typing import Final, cast

import asyncpg
import sqlalchemy as sa

from domain.shapes import Row
from settings import Settings
from sinks import arrays
from sinks.availability import Availability
from sinks.connection import Connector, HalfOpen, TablesTakenAway, borrowed, tables_there, watched
from sinks.rows import ROWS, NotedAttention, RowBatch
from sinks.schema import DIALECT, TABLES, PartitionBy, build_metadata

log = logging.getLogger(__name__)

_METADATA = build_metadata()


def given_rows(table: sa.Table, first: int, form: str = "") -> str:
    """SELECT of the rows given by parameters $first, ..., one array for each field of a row (see
    columns_of). `form`: "::text" where each is the text of an array (see texts_of)."""
    columns = [table.columns[name] for name in ROWS[table.name].__struct_fields__]
    # In the list of what is selected, not in FROM: there each would be a table of its own.
    given = [
        f"unnest(${at}{form}::{arrays.type_of(arrays.kind_of(column))}[]) AS {column.name}"
        for at, column in enumerate(columns, first)
    ]
    values = [f"{column.name}::{column.type.compile(DIALECT)}" for column in columns]
    return f"SELECT {', '.join(values)} FROM (SELECT {', '.join(given)}) new"


@functools.cache
def _kinds_of(table: str) -> bytes:
    columns = _METADATA.tables[table].columns
    return bytes(arrays.kind_of(columns[name]) for name in ROWS[table].__struct_fields__)


def columns_of(table: str, rows: Sequence[Row]) -> Sequence[bytes | str]:
    """Rows of a table as given_rows takes them, on a connection that arrays.accept() has been told of: one
    array for each field. Raises asyncpg.DataError for a value that isn't of its column's type, unless the
    server finds it.
    """
    try:
        return arrays.pack(rows, _kinds_of(table))
    except (ValueError, TypeError) as error:
        raise asyncpg.DataError(f"{table}: {error}") from error


def texts_of(table: str, rows: Sequence[Row]) -> list[str]:
    """Rows of a table as given_rows takes them as text, on any connection: one array for each field."""
    return arrays.texts(rows, _kinds_of(table))


def _upsert(table: sa.Table, first: int, schema: str) -> str:
    """INSERT ... ON CONFLICT of the rows given by parameters $first, ...

    A row is replaced by one of a higher version; at the same version by another one whose times aren't later
    (the earlier time of a repeated fact lowers them, and can make another stage of a return win). Otherwise
    the row isn't touched: no new row version, no WAL.
    """
    names = ROWS[table.name].__struct_fields__
    key = [column.name for column in table.primary_key.columns]
    values = [name for name in names if name not in key]
    changes = ", ".join(f"{name} = excluded.{name}" for name in values)
    differs = (
        f"({', '.join(f'old.{name}' for name in values)}) IS DISTINCT FROM"
        f" ({', '.join(f'excluded.{name}' for name in values)})"
    )
    return (
        f"INSERT INTO {schema}.{table.name} AS old ({', '.join(names)}) {given_rows(table, first)}"
        f" ON CONFLICT ({', '.join(key)}) DO UPDATE SET {changes}"
        " WHERE excluded.version > old.version OR (excluded.version = old.version"
        f" AND excluded.created_at <= old.created_at AND excluded.updated_at <= old.updated_at AND {differs})"
        " RETURNING 1"
    )


_NOTED: Final = (
    ("order_id", arrays.UUID),
    ("user_id", arrays.UUID),
    ("region", arrays.TEXT),
    ("kinds", arrays.TEXT),
    ("updated_at", arrays.TIME),
    ("version", arrays.INTEGER),
)
"""Fields of sinks.rows.NotedAttention, and how each is written."""
_NOTED_KINDS: Final = bytes(kind for _, kind in _NOTED)


def _clear(first: int, schema: str) -> str:
    """UPDATE of what is open of orders' attention and isn't noted; what is noted is given by parameters
    $first, ... Naming user and region, so that one partition is looked into for each order.
    """
    given = [
        f"unnest(${at}::{arrays.type_of(kind)}[]) AS {name}" for at, (name, kind) in enumerate(_NOTED, first)
    ]
    return (
        f"UPDATE {schema}.orders_attention old SET cleared_at = greatest(old.since, new.updated_at),"
        f" updated_at = new.updated_at, version = new.version FROM (SELECT {', '.join(given)}) new"
        " WHERE old.order_id = new.order_id AND old.user_id = new.user_id AND old.region = new.region"
        " AND old.cleared_at IS NULL AND old.version <= new.version"
        " AND old.kind <> ALL (string_to_array(new.kinds, ',')) RETURNING 1"
    )


@functools.cache
def statement(
    tables: tuple[str, ...],
    partition_by: PartitionBy = "user_id",
    schema: str = "public",
    noted: bool = False,
) -> str:
    """The one statement that writes rows of these tables (in the order of schema.TABLES, at least one), and
    clears what is open of attention that isn't `noted`. It returns how many rows changed.
    """
    metadata, parts, first = build_metadata(partition_by), [], 1
    for name in tables:
        table = metadata.tables[name]
        parts.append(f"{name}_ AS ({_upsert(table, first, schema)})")
        first += len(ROWS[name].__struct_fields__)
    names = list(tables)
    if noted:
        parts.append(f"cleared_ AS ({_clear(first, schema)})")
        names.append("cleared")
    counts = " + ".join(f"(SELECT count(*) FROM {name}_)" for name in names)
    return f"WITH {', '.join(parts)} SELECT {counts}"


def check_columns() -> None:
    """Raise TypeError unless each row has a field for every column of its table, and no other."""
    for name, table in build_metadata().tables.items():
        if name in ROWS and set(ROWS[name].__struct_fields__) != set(table.columns.keys()):
            differ = sorted(set(ROWS[name].__struct_fields__) ^ set(table.columns.keys()))
            raise TypeError(f"{ROWS[name].__name__} and the columns of {name} differ: {', '.join(differ)}")


async def _prepare(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    arrays.accept(connection)


async def _keep(connection: object) -> None:
    """Leaves a connection that goes back to the pool as it is."""


class PostgresSink:
    """Writes batches to the primary.
    A sinks.base.Sink[RowBatch]; writes may run at the same time, settings.postgres_pool of them.
    """

    def __init__(self, settings: Settings, schema: str = "public") -> None:
        """`schema`: where the tables are; those of `orders rebuild` are elsewhere."""
        self._settings = settings
        self._schema = schema
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._partition_by: PartitionBy | None = None
        self.taken_away = 0
        """How often a write found tables gone."""
        self.availability = Availability(
            answers=(asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
        )
        timeout = settings.postgres_statement_timeout
        self._connector = Connector(
            settings.postgres,
            "orders-worker",
            timeout=settings.postgres_connect_timeout,
            pooled=settings.pooled,
            # Also when the server has gone without a word: a little later than the server's own limit, which
            # leaves the connection usable.
            command_timeout=timeout + 1,
            # The few statements (one for each set of tables) stay prepared as long as their connection.
            max_cached_statement_lifetime=0,
            max_cacheable_statement_size=0,
            server_settings={
                # No batch's plan is worth compiling.
                "jit": "off",
                # Generic by default: a batch's plan never depends on its values.
                "plan_cache_mode": settings.postgres_plan_cache_mode,
                "statement_timeout": str(int(timeout * 1000)),
            },
        )

    async def start(self) -> None:
        """Open the pool and one connection of it.

        Raises OSError, TimeoutError or asyncpg.PostgresError if the server isn't there or refuses, TypeError
        if rows and tables differ in their columns.
        """
        check_columns()
        settings = self._settings
        self._pool = await asyncpg.create_pool(
            connect=self._connector,
            min_size=1,
            max_size=settings.postgres_pool,
            max_inactive_connection_lifetime=0,
            # A connection never holds anything that would have to be reset, and asyncpg's
            # reset is a round trip a batch.
            reset=_keep,
            init=_prepare,
        )

    async def write(self, batch: RowBatch, /) -> int:
        """Write the batch in one transaction, and return how many rows were new or changed. An empty batch
        does nothing.

        Raises asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError or TablesTakenAway. Then
        nothing of the batch is written or, if the connection was lost in the commit, all of it: repeat it. An
        error of class 22 or 23 (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError) comes again
        with the same rows, every other may pass; so may asyncpg.ForeignKeyViolationError, once the row that
        is referred to is there. Blocks while all connections of the pool are in use.
        """
        if self._pool is None:
            raise RuntimeError("PostgresSink.write() before start()")
        filled = batch.by_table()
        if not filled:
            return 0
        # One statement is one transaction: no BEGIN, no COMMIT, one round trip.
        try:
            with tables_there(), self.availability.asked():
                return await self._write_once(self._pool, filled, batch.noted)
        except TablesTakenAway:
            self._connector.drop()  # what comes back may be older, and new connections have that looked at
            self.taken_away += 1
            raise

    async def _write_once(
        self,
        pool: asyncpg.Pool[asyncpg.Record],
        filled: Mapping[str, Sequence[Row]],
        noted: Sequence[NotedAttention],
    ) -> int:
        async with borrowed(pool) as connection:
            try:
                async with watched(connection):
                    open_one = cast("asyncpg.Connection[asyncpg.Record]", connection)
                    return await self._write(open_one, filled, noted)
            except (HalfOpen, asyncpg.PostgresConnectionError):
                self._connector.drop()
                raise
            except asyncpg.InternalClientError as error:
                # The server's farewell (a shutdown, an idle timeout) came just before the statement: asyncpg
                # is confused, the connection is dead.
                connection.terminate()
                raise ConnectionResetError(f"Postgres ended the connection: {error}") from error
            except TimeoutError as error:
                # The server ends a statement a second earlier, so nobody is there.
                # asyncpg would wait as long again for the statement to be canceled.
                connection.terminate()
                self._connector.drop()
                raise TimeoutError(
                    f"Postgres did not answer for {self._settings.postgres_statement_timeout + 1:g} s"
                ) from error

    @property
    def connections(self) -> int:
        """How many connections were made: while that stays, nobody has put an older server in place."""
        return self._connector.count

    async def versions(self, order_ids: Sequence[str]) -> dict[str, int]:
        """The versions of these orders' rows, without those that there are none of. An order is as old as the
        oldest of its suborders' rows, and 0 without any: a worker of a version that didn't write them has
        written it.

        Blocks and raises as write() does.
        """
        if self._pool is None:
            raise RuntimeError("PostgresSink.versions() before start()")
        # Naming user and region, so that one partition is looked into.
        parts = (
            f"SELECT min(p.version) FROM {self._schema}.orders_suborder p"
            " WHERE p.order_id = o.id AND p.user_id = o.user_id AND p.region = o.region"
        )
        query = (
            f"SELECT o.id::text, least(o.version, coalesce(({parts}), 0))"
            f" FROM {self._schema}.orders_order o WHERE o.id = ANY($1::uuid[])"
        )
        with tables_there():
            async with borrowed(self._pool) as connection, watched(connection):
                return {row[0]: row[1] for row in await connection.fetch(query, order_ids)}

    async def replace(self, order_ids: Sequence[str], batch: RowBatch) -> None:
        """Replace all rows of these orders by `batch` in one transaction, whatever their versions.

        For repair, while nobody else writes these orders. Blocks and raises as write() does.
        """
        if self._pool is None:
            raise RuntimeError("PostgresSink.replace() before start()")
        filled = batch.by_table()
        async with borrowed(self._pool) as connection, watched(connection), connection.transaction():
            for name in TABLES:
                column = "id" if name == "orders_order" else "order_id"
                await connection.execute(
                    f"DELETE FROM {self._schema}.{name} WHERE {column} = ANY($1::uuid[])", order_ids
                )
            if filled:
                await self._write(cast("asyncpg.Connection[asyncpg.Record]", connection), filled, ())

    async def _write(
        self,
        connection: asyncpg.Connection[asyncpg.Record],
        filled: Mapping[str, Sequence[Row]],
        noted: Sequence[NotedAttention],
    ) -> int:
        arguments: list[bytes | str] = []
        for table, rows in filled.items():
            arguments += columns_of(table, rows)
        if noted:
            try:
                arguments += arrays.pack(noted, _NOTED_KINDS)
            except (ValueError, TypeError) as error:
                raise asyncpg.DataError(f"what is noted of attention: {error}") from error
        by = self._partition_by or await self._read_partition_by(connection)
        sql = statement(tuple(filled), by, self._schema, bool(noted))
        return cast(int, await connection.fetchval(sql, *arguments))

    async def close(self) -> None:
        """Close the connections, waiting for writes as long as a statement may take.

        Doesn't raise when the server is away.
        """
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            await pool.close()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            log.warning("postgres.close_failed: %r", error)
            pool.terminate()

    async def _read_partition_by(self, connection: asyncpg.Connection[asyncpg.Record]) -> PartitionBy:
        # The partition column is part of every primary key, so ON CONFLICT has to name it.
        key = await connection.fetchval(
            "SELECT a.attname FROM pg_partitioned_table p JOIN pg_attribute a ON a.attrelid = p.partrelid AND"
            " a.attnum = p.partattrs[0] WHERE p.partrelid = 'public.orders_order'::regclass"
        )
        self._partition_by = cast(PartitionBy, key)
        return self._partition_by
