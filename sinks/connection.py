"""Connections to PostgreSQL, made alike for workers, readers and commands: how an address is read, and how a
dead connection is noticed.

An address is read by sinks.address, as libpq does.

A connection whose other end has gone without a word would be waited for until the statement's limit.
Three things notice it sooner (docs/decisions/0026-half-open-connections.md):

- TCP's keepalives, when there is nothing to send, and its user timeout, when what
  was sent isn't acknowledged;
- `watched`, where something in between (a proxy, a load balancer) goes on acknowledging: it asks the server
  whether it knows the session.

A statement that only takes long is left alone by all of them.

Behind a pooler that gives each transaction another session (`pooled`) nothing may be said to the session
that isn't said to one transaction, and nothing is known about it (docs/decisions/0035-a-pooler.md).
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, cast
from weakref import WeakSet

import asyncpg

from credentials import PostgresUrl
from errors import TakenAway
from sinks.address import read, unreadable

log = logging.getLogger(__name__)

LOOK: Final = 3.0
"""Seconds that a statement takes before its server is asked whether it knows the session,
and between two questions.
"""

_OPTIONS: Final = {
    # macOS has its own name for the first.
    "keepalives_idle": ("TCP_KEEPIDLE", "TCPKEEPALIVE"),
    "keepalives_interval": ("TCP_KEEPINTVL",),
    "keepalives_count": ("TCP_KEEPCNT",),
    "tcp_user_timeout": ("TCP_USER_TIMEOUT",),
}
_KEPT: Final = ("TimeZone", "application_name")
"""Settings that a pooler keeps for each of its clients, whatever session serves it."""


class HalfOpen(ConnectionResetError):
    """The server doesn't know the session any more, and nothing on the way has said so.
    A commit under way may have succeeded.
    """


class NoSuchHost(ConnectionError):
    """Raised when no host of an address is what its target_session_attrs asks for, as during a failover."""


class TablesTakenAway(TakenAway):
    """A table of ours, its schema or the database isn't there any more."""

    remedy = "put back what was there (a backup, or orders init and orders repair --rows)"


@contextmanager
def tables_there() -> Iterator[None]:
    """Raises TablesTakenAway where a statement finds a table, its schema or the database gone."""
    try:
        yield
    except (
        asyncpg.UndefinedTableError,
        asyncpg.InvalidSchemaNameError,
        asyncpg.InvalidCatalogNameError,
    ) as error:
        raise TablesTakenAway(f"Postgres says: {error.args[0]}") from error


class Connection(asyncpg.Connection):
    """A connection that knows how it was made. `address`: of the one host that it leads to.
    `statements`: those that are watched now.
    """

    address = ""
    pooled = False
    statements = 0

    def begin(self) -> Connection:
        """Somebody waits for a statement.
        Returns the connection itself, where a pool has put a proxy before it.
        """
        self.statements += 1
        return self

    def end(self) -> None:
        """Nobody does any more."""
        self.statements -= 1

    async def forgotten(self) -> bool:
        """Tell whether the server has no such session. Blocks for up to LOOK seconds; never raises.

        False also where that can't be known: the server isn't reached, or a pool of sessions (PgBouncer) is
        in between.
        """
        if self.pooled:
            return False
        pid = self.get_server_pid()
        host: dict[str, Any] = {}
        where = self._addr  # type: ignore[attr-defined]
        if isinstance(where, tuple):
            host = {"host": where[0], "port": where[1]}
        try:
            async with asyncio.timeout(LOOK):
                other = await asyncpg.connect(
                    self.address, **host, server_settings={"application_name": "orders-look"}
                )
                try:
                    own, still_there = await other.fetchrow(
                        "SELECT pg_backend_pid(), EXISTS (SELECT FROM pg_stat_activity WHERE pid = $1)", pid
                    )
                    # A pool's session ids are its own, not the server's.
                    return bool(own == other.get_server_pid() and not still_there)
                finally:
                    other.terminate()
        except (
            OSError,
            TimeoutError,
            asyncpg.PostgresError,
            asyncpg.InterfaceError,
            asyncpg.InternalClientError,
        ) as error:
            log.debug("postgres.look_failed: %r", error)
            return False


async def connect(
    url: str | PostgresUrl,
    name: str,
    *,
    timeout: float,
    pooled: bool,
    command_timeout: float | None = None,
    server_settings: Mapping[str, str] | None = None,
    **options: Any,
) -> Connection:
    """Connect to the first usable host of `url`; each host gets an equal share of `timeout` (seconds).
    A URL that lies in a file is read anew.

    connect_timeout in the URL is for each host and comes first. `name` tells the server's operator who
    connects, unless the URL does. `server_settings` come before the URL's. The session's search path is the
    schema public. Other options are those of asyncpg.connect.

    `pooled`: the URL leads to a pooler (settings.postgres_pooler). Then the role's own settings count in
    place of `server_settings`, and its search path is looked at.

    Blocks until connected. Raises asyncpg.ClientConfigurationError for an address that can't be used;
    OSError, TimeoutError or asyncpg.PostgresError if no host is there or one refuses. None of them repeats
    what is secret in the address.
    """
    address = read(url if isinstance(url, str) else url.get_secret_value())
    address.refuse_pipes()
    # What the URL says is the server's; what this program relies on comes before it.
    settings = {"search_path": "public", **(server_settings or {})}
    if not address.named:
        settings["application_name"] = name
    if pooled:
        settings = {name: settings[name] for name in _KEPT if name in settings}
    share = address.connect_timeout or timeout / len(address.hosts)
    last: OSError | asyncpg.CannotConnectNowError | None = None
    for host, session in address.attempts():
        try:
            opened = await asyncpg.connect(
                host,
                timeout=share,
                command_timeout=command_timeout,
                server_settings=settings,
                **options | {"connection_class": Connection, "target_session_attrs": session},
            )
        except asyncpg.TargetServerAttributeNotMatched:
            last = NoSuchHost(address.nowhere())
        except (OSError, asyncpg.CannotConnectNowError) as error:
            last = error
        except asyncpg.PostgresError as error:
            raise address.refusal(error) from None
        except asyncpg.ClientConfigurationError as error:
            address.require_files()
            raise unreadable(error) from None
        except asyncpg.InterfaceError:
            raise
        except ValueError as error:
            raise unreadable(error) from None
        else:
            connection = cast(Connection, opened)
            connection.address, connection.pooled = host, pooled
            _keep_alive(connection._transport, address.keepalive)  # type: ignore[attr-defined]
            if pooled:
                await _require_public(connection)
            return connection
    assert last is not None, "an address has a host"
    address.require_files()
    raise last


async def _require_public(connection: Connection) -> None:
    """Raise asyncpg.ClientConfigurationError unless names without a schema lead to the schema public."""
    schema = await connection.fetchval("SELECT current_schema()")
    if schema != "public":
        connection.terminate()
        raise asyncpg.ClientConfigurationError(
            f"the search path of this role leads to the schema {schema}, and a pooler can't change it: ALTER"
            " ROLE ... SET search_path = public"
        )


async def check(url: str) -> None:
    """Raise asyncpg.ClientConfigurationError for an address that can't be used. It doesn't connect."""
    address = read(url)
    address.require_files()
    for host in address.hosts:
        try:
            # asyncpg reads it, and then there is no time left.
            await asyncpg.connect(host, timeout=0)
        except OSError:
            pass
        except (asyncpg.InterfaceError, ValueError) as error:
            raise unreadable(error) from None


def plain(url: str) -> str:
    """Return the address as asyncpg itself reads it. Raises asyncpg.ClientConfigurationError."""
    address = read(url)
    address.require_files()
    return address.plain


class Connector:
    """Makes connections of a pool, and knows them as long as somebody else does."""

    def __init__(self, url: str | PostgresUrl, name: str, **options: Any) -> None:
        """All as for `connect`."""
        self._url = url
        self._name = name
        self._options = options
        self._made: WeakSet[Connection] = WeakSet()
        self.count = 0
        """Connections that were made."""

    async def __call__(self, *_: Any, **options: Any) -> Connection:
        """Connect as connect() does; `options` are those that the pool adds."""
        connection = await connect(self._url, self._name, **self._options, **options)
        self._made.add(connection)
        self.count += 1
        return connection

    def drop(self) -> None:
        """End the connections without a watched statement: one of them was dead, so each of them would cost
        an attempt. Never blocks.
        """
        for connection in list(self._made):
            if not connection.statements:
                connection.terminate()


@asynccontextmanager
async def watched(connection: Any) -> AsyncIterator[None]:
    """Watch statements on a connection of connect(), also one of a pool.

    After LOOK seconds, and again and again, the server is asked on another connection whether it knows the
    session. If it doesn't, the connection is ended and HalfOpen raised. A statement that the server works on
    isn't cut off.
    """
    lost = False
    looking: asyncio.Task[None] | None = None

    async def look() -> None:
        nonlocal lost
        pid = own.get_server_pid()
        while not own.is_closed():
            lost = await own.forgotten()
            if lost:
                log.warning("postgres.half_open: pid %s is not known to the server", pid)
                own.terminate()
                return
            await asyncio.sleep(LOOK)

    def begin() -> None:
        nonlocal looking
        looking = asyncio.ensure_future(look())

    # Nearly every statement is over by then, and costs no more than this.
    timer = asyncio.get_running_loop().call_later(LOOK, begin)
    own: Connection = connection.begin()
    try:
        yield
    except (asyncpg.PostgresConnectionError, asyncpg.InterfaceError) as error:
        if lost:
            raise HalfOpen(
                "Postgres doesn't know the session any more: the connection was half open"
            ) from error
        raise
    finally:
        own.end()
        timer.cancel()
        if looking is not None:
            looking.cancel()
            await asyncio.wait({looking})


@asynccontextmanager
async def borrowed(pool: asyncpg.Pool[asyncpg.Record]) -> AsyncIterator[Any]:
    """A connection of a pool, which gets it back afterwards. Blocks while all are in use; raises as
    connecting does.
    """
    connection = await pool.acquire()
    try:
        yield connection
    finally:
        # Whoever ends all connections (a server that was replaced, tables that were taken away) may be in
        # between: then the pool has it back already, and says so by this error.
        with suppress(asyncpg.InternalClientError):
            await pool.release(connection)


def _keep_alive(transport: asyncio.Transport, options: Mapping[str, int]) -> None:
    """Have TCP find out that the other end is gone. No more than the system can; nothing on a Unix socket."""
    line = transport.get_extra_info("socket")
    if line is None or line.family not in (socket.AF_INET, socket.AF_INET6) or not options:
        return
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in options.items():
        number = next((getattr(socket, each) for each in _OPTIONS[name] if hasattr(socket, each)), None)
        if number is not None and value > 0:
            line.setsockopt(socket.IPPROTO_TCP, number, value)
