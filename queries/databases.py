"""The databases to read from: the replica, if there is one, then the primary."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, Final
from uuid import UUID

import asyncpg
import sqlalchemy as sa
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from credentials import PostgresUrl
from queries import statements
from queries.circuit import Circuit
from queries.errors import Unavailable
from queries.flight import SingleFlight
from queries.statements import Query
from settings import Settings
from sinks.connection import Connection, Connector
from sinks.within import answered_within

LOOK_INTERVAL: Final = 0.5
"""Seconds for which a replica's lag counts as known."""

_MARGIN: Final = 0.5
"""Seconds beyond the server's own timeout after which it is taken for gone."""


class Away(Exception):
    """This database doesn't answer, or is left alone because it didn't a moment ago."""


class Database:
    """One server. Reads of any number of callers, settings.read_pool at a time."""

    def __init__(self, settings: Settings, url: str | PostgresUrl, name: str) -> None:
        self.name = name
        self.reads = 0
        """Statements sent so far, for those who count them."""
        self._timeout = settings.read_timeout
        self._circuit = Circuit(name)
        self._places = asyncio.Semaphore(settings.read_pool)
        self._connector = Connector(
            url,
            "orders-api",
            timeout=settings.read_timeout,
            pooled=settings.pooled,
            server_settings={
                "jit": "off",
                # Generic by default: planning takes several times as long as reading; partitions are
                # pruned when it is executed.
                "plan_cache_mode": settings.postgres_plan_cache_mode,
                "TimeZone": "UTC",
                "statement_timeout": str(int(settings.read_timeout * 1000)),
            },
        )
        self._engine: AsyncEngine = create_async_engine(
            "postgresql+asyncpg://",
            async_creator=self._connect,
            # Each read is one statement: no BEGIN before it, no ROLLBACK behind it.
            isolation_level="AUTOCOMMIT",
            pool_size=settings.read_pool,
            max_overflow=0,
            pool_reset_on_return=None,
        )
        sa.event.listen(self._engine.sync_engine, "checkout", _only_open)
        self._left: set[asyncio.Task[Any]] = set()

    @property
    def away(self) -> bool:
        """Whether the last attempt failed."""
        return self._circuit.open

    async def rows(self, query: Query) -> Sequence[sa.Row[Any]]:
        """All rows. Blocks up to twice settings.read_timeout.
        Raises Away; Unavailable when the server is there but too busy.
        """
        try:
            # Longer than the reads before it may take: if these find nobody there, this one has to hear
            # of it, and ask elsewhere.
            async with asyncio.timeout(self._timeout + 2 * _MARGIN):
                await self._places.acquire()
        except TimeoutError:
            raise Unavailable(f"{self.name} has too much to do") from None
        try:
            if not self._circuit.admits():
                raise Away(f"{self.name} was away a moment ago")
            self.reads += 1
            task = asyncio.ensure_future(self._run(query))
            # Never longer than this, whatever the driver still does to end a connection that is half open.
            try:
                async with answered_within(self._timeout + _MARGIN):
                    await asyncio.wait({task})
            except TimeoutError:
                task.cancel()
                self._left.add(task)
                task.add_done_callback(self._forget)
                self._connector.drop()
                raise TimeoutError(f"no answer for {self._timeout + _MARGIN:g} s") from None
            result = task.result()
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, DBAPIError) as error:
            state = getattr(getattr(error, "orig", error), "sqlstate", None) or ""
            if state == "57014":
                # It lives, and the statement is a slow one.
                # Another server would only be slowed down by it as well.
                raise Unavailable(f"{self.name} took longer than {self._timeout:g} s") from error
            if not state.startswith(
                "40"
                # That is one statement's trouble (a replica ends those that are in the
                # way of what it takes in).
            ):
                self._circuit.failed(error)
            raise Away(f"{self.name}: {error}") from error
        finally:
            self._places.release()
        self._circuit.worked()
        return result

    async def lag(self) -> float | None:
        """Seconds behind; 0 for a primary. Raises as `rows`."""
        return 0.0

    async def close(self) -> None:
        """Close the connections."""
        await self._engine.dispose()

    async def _connect(self) -> Connection:
        connection = await self._connector()
        if connection.pooled:
            return connection  # else others would find their session read-only
        # Not among the settings: to target_session_attrs it would make every server one
        # that can't be written to.
        await connection.execute("SET default_transaction_read_only = on")
        return connection

    async def _run(self, query: Query) -> Sequence[sa.Row[Any]]:
        async with self._engine.connect() as connection:
            return (await connection.execute(query.statement, query.values)).all()

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._left.discard(task)
        if not task.cancelled():
            task.exception()


def _only_open(connection: Any, _record: Any, _proxy: Any) -> None:
    """Has the pool make another connection in place of one that has ended meanwhile."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


async def orders_of_cart(settings: Settings, cart_id: UUID) -> Sequence[UUID]:
    """The orders that a cart became, by the primary's rows, the oldest first. Blocks as Database.rows. Raises
    Unavailable.
    """
    primary = Database(settings, settings.postgres, "primary")
    try:
        return [row[0] for row in await primary.rows(statements.of_cart(cart_id))]
    except Away as error:
        raise Unavailable(str(error)) from error
    finally:
        await primary.close()


class Replica(Database):
    """A database that follows another one."""

    def __init__(self, settings: Settings, url: str | PostgresUrl) -> None:
        super().__init__(settings, url, "replica")
        self._flight = SingleFlight()
        self._looked: float | None = None
        self._lag: float | None = None

    async def lag(self) -> float | None:
        """Return the lag in seconds, read within the last LOOK_INTERVAL; None if
        the server doesn't know it.
        """
        now = asyncio.get_running_loop().time()
        if self._looked is None or now >= self._looked + LOOK_INTERVAL:
            await self._flight.do("lag", self._read_lag)
        return self._lag

    async def _read_lag(self) -> None:
        self._lag = (await self.rows(statements.LAG))[0][0]
        self._looked = asyncio.get_running_loop().time()


class Databases:
    """The databases that rows are read from, the best one first."""

    def __init__(self, settings: Settings) -> None:
        self.primary = Database(settings, settings.postgres, "primary")
        replica = settings.postgres_replica
        self.replica = None if replica is None else Replica(settings, replica)
        self._most = settings.replica_max_lag

    def fresh(self, lag: float | None) -> bool:
        """Tell whether a replica with this lag may be asked."""
        return lag is not None and lag <= self._most

    async def each(self) -> AsyncIterator[tuple[Database, bool]]:
        """Yield the databases to ask, each with whether it is known to be fresh.

        First comes the replica, unless it is too far behind; then the primary; and if that doesn't answer
        either, the replica however far behind it is. A caller that has an answer stops. Ask each at once for
        its rows; on Away go on with the next.
        """
        late = False
        if self.replica is not None:
            try:
                late = not self.fresh(await self.replica.lag())
            except Away:
                pass
            else:
                if not late:
                    yield self.replica, True
        yield self.primary, True
        if self.replica is not None and late and self.primary.away:
            yield self.replica, False

    async def close(self) -> None:
        """Close the connections."""
        await self.primary.close()
        if self.replica is not None:
            await self.replica.close()
