"""Changing tables that workers write to: short waits for locks, again and again, so that nobody
queues behind a wait for long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeAlias, TypeVar, cast

import asyncpg

from errors import OrdersError
from settings import Settings
from sinks.connection import connect as connection_to
from sinks.connection import watched
from sinks.schema import TABLES

T = TypeVar("T")
Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

LOCK_TIMEOUT = 2.0
"""Seconds that one attempt waits for a lock, and so the longest that whoever comes later queues behind it.
Above Postgres's deadlock_timeout (1 s), after which an autovacuum that is in the way gives up; far below the
workers' statement timeout.
"""
PAUSE = 0.5
"""Seconds between two attempts, in which those who queued behind the last one get through."""

Say = Callable[[str], None]
"""Takes one line of progress for a person."""


class Busy(OrdersError):
    """The locks were not to be had in time. Nothing was changed.
    The message names who held them.
    """

    remedy = "run it again when they are done, or with a longer --timeout"


class NeedsSession(OrdersError):
    """A command keeps something in its session that a pooler would give to others."""

    remedy = "run it with ORDERS_POSTGRES leading to the server itself and ORDERS_POSTGRES_POOLER=none"


def require_session(settings: Settings, command: str) -> None:
    """Raise NeedsSession if Postgres is reached through a pooler. Pure."""
    if settings.pooled:
        raise NeedsSession(f"{command} holds a lock of its session, which a pooler gives to others")


@asynccontextmanager
async def connect(settings: Settings) -> AsyncIterator[Connection]:
    """A connection to the primary, outside any transaction. Raises what asyncpg raises.
    Blocks until connected.
    """
    connection = await connection_to(
        settings.postgres, "orders-db", timeout=settings.postgres_connect_timeout, pooled=settings.pooled
    )
    try:
        async with watched(connection):
            yield connection
    finally:
        await connection.close()


async def in_short_waits(
    connection: Connection,
    work: Callable[[], Awaitable[T]],
    timeout: float,
    say: Say,
    tables: Sequence[str] = TABLES,
) -> T:
    """Run `work` in a transaction that waits for locks only briefly, and start it again until it gets them.

    `tables` are those that it locks. Blocks. Raises Busy when the time is up, and what `work` raises; then
    nothing is changed.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT:g}s'")
                return await work()
        except (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError) as error:
            users = await holders(connection, tables)
            if time.monotonic() >= deadline:
                raise Busy(
                    f"no lock on the tables within {timeout:g} s, nothing was changed; they are used by"
                    f" {users}"
                ) from error
            say(f"the tables are in use ({users}); trying again")
            await asyncio.sleep(PAUSE)


async def holders(connection: Connection, tables: Sequence[str]) -> str:
    """Return who uses the tables or their partitions now, the oldest transactions first. Blocks."""
    rows = await connection.fetch(
        """
        SELECT a.pid, a.application_name, a.state, quote_ident(current_user) AS mine,
            a.query = '<insufficient privilege>' AS hidden,
            extract(epoch FROM clock_timestamp() - a.xact_start)::int AS seconds
        FROM pg_stat_activity a
        WHERE a.pid <> pg_backend_pid() AND a.pid IN (
            SELECT l.pid FROM pg_locks l
            JOIN pg_class c ON c.oid = l.relation LEFT JOIN pg_inherits i ON i.inhrelid = c.oid
            WHERE l.granted
                AND coalesce(i.inhparent, c.oid) IN (SELECT to_regclass(name) FROM unnest($1::text[]) name))
        ORDER BY a.xact_start LIMIT 5""",
        list(tables),
    )
    users = []
    for row in rows:
        known = "its state is hidden" if row["hidden"] else f"{row['state']}, {row['seconds']} s"
        users.append(f"{row['application_name'] or 'a session'} (pid {row['pid']}, {known})")
    if any(row["hidden"] for row in rows):
        users[-1] += f"; GRANT pg_read_all_stats TO {rows[0]['mine']} shows what is hidden"
    return ", ".join(users) or "nobody any more"


def literal(text: str) -> str:
    """A text constant for SQL that takes no parameters."""
    return "'" + text.replace("'", "''") + "'"


async def fetch_values(connection: Connection, query: str, *arguments: object) -> Sequence[str]:
    """The first column of every row."""
    return [cast(str, row[0]) for row in await connection.fetch(query, *arguments)]
