"""Bulk jobs in PostgreSQL. Submitting and unpacking write orders_bulk_job, and anybody may read it.

A part counts once however often it is unpacked: the row holds the finished parts, as ranges.
"""

from __future__ import annotations

import asyncio
from datetime import datetime
from types import TracebackType
from typing import Any, Final, NamedTuple

import asyncpg

from contracts.bulk import Kind
from errors import OrdersError
from settings import Settings
from sinks.availability import Availability
from sinks.connection import Connection, connect, tables_there, watched

_BEGIN: Final = """
    INSERT INTO orders_bulk_job AS j (job_id, kind, parts, lines, refused, digest)
    VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (job_id) DO UPDATE SET
        parts = excluded.parts, lines = excluded.lines, refused = excluded.refused, digest = excluded.digest,
        parts_sent = CASE
            WHEN j.parts = excluded.parts AND j.digest IS NOT NULL AND NOT $7 THEN j.parts_sent ELSE 0 END,
        submitted_at = CASE WHEN j.parts = excluded.parts AND NOT $7 THEN j.submitted_at END,
        updated_at = now(), version = j.version + 1
    WHERE j.kind = excluded.kind AND (j.digest IS NULL OR j.digest = excluded.digest)
    RETURNING parts_sent"""

_SENT: Final = """
    UPDATE orders_bulk_job SET
        parts_sent = greatest(parts_sent, $2), updated_at = now(), version = version + 1,
        submitted_at = CASE WHEN $2 >= parts THEN coalesce(submitted_at, now()) END
    WHERE job_id = $1"""

# A job that was cut into other parts than before starts counting anew.
_DONE: Final = """
    INSERT INTO orders_bulk_job AS j (job_id, kind, parts, parts_done, events, done, completed_at)
    VALUES ($1, $2, $3::int, 1, $5::bigint, int4multirange(int4range($4::int, $4::int, '[]')),
        CASE WHEN $3::int = 1 THEN now() END)
    ON CONFLICT (job_id) DO UPDATE SET
        (parts, parts_done, events, done, completed_at, updated_at, version) = (
        SELECT $3, (SELECT sum(upper(r) - lower(r)) FROM unnest(was + excluded.done) r),
            counted + CASE WHEN was @> $4 THEN 0 ELSE $5 END, was + excluded.done,
            CASE WHEN (was + excluded.done) @> int4range(1, $3, '[]')
                THEN coalesce(j.completed_at, now()) END,
            now(), j.version + 1
        FROM (
            SELECT CASE WHEN j.parts = $3 THEN j.done ELSE '{}' END AS was,
                CASE WHEN j.parts = $3 THEN j.events ELSE 0 END AS counted) o)
    RETURNING parts, events, completed_at, announced"""

_ANNOUNCED: Final = "UPDATE orders_bulk_job SET announced = true WHERE job_id = $1"

TABLE: Final = "orders_bulk_job"
STATEMENTS: Final = (_BEGIN, _SENT, _DONE, _ANNOUNCED)
"""All that write the table."""

_COLUMNS: Final = (
    "job_id, kind, parts, parts_sent, parts_done, events, lines, refused, digest, "
    "created_at, updated_at, submitted_at, completed_at, version"
)


class OtherJob(OrdersError):
    """The job id belongs to another file or another kind."""


class Progress(NamedTuple):
    """The progress of a job.

    `events` so far; `announced`: its bulk.completed is known to have been published.
    """

    parts: int
    events: int
    completed_at: datetime | None
    announced: bool


class BulkJobs:
    """The table, over one connection.
    An async context manager; each method is one statement, and raises what asyncpg raises, and
    TablesTakenAway.
    """

    def __init__(self, settings: Settings, name: str) -> None:
        """`name` tells the server's operator who it is."""
        self._settings = settings
        self._name = name
        self._connection: Connection | None = None
        self._turn = asyncio.Lock()
        """Held while a statement is under way."""
        self.availability = Availability(
            answers=(asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
        )

    async def __aenter__(self) -> BulkJobs:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.drop()

    def drop(self) -> None:
        """Let the connection go, whatever is on it; the next call makes a new one. Never blocks."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def begin(
        self, job: str, kind: Kind, parts: int, lines: int, refused: int, digest: str, *, again: bool
    ) -> int:
        """A file is about to be sent; returns how many of its parts were sent before. Raises OtherJob."""
        sent = await self._ask("fetchval", _BEGIN, job, kind, parts, lines, refused, digest, again)
        if sent is None:
            raise OtherJob(f"job {job} is that of another file or kind", "choose another --job, or none")
        return int(sent)

    async def sent(self, job: str, part: int) -> None:
        """All parts up to this one are acknowledged."""
        await self._ask("execute", _SENT, job, part)

    async def done(self, job: str, kind: Kind, part: int, parts: int, events: int) -> Progress:
        """The part's events are acknowledged. Again it changes nothing."""
        row = await self._ask("fetchrow", _DONE, job, kind, parts, part, events)
        assert row is not None, "an upsert returns its row"
        return Progress(*row.values())

    async def announced(self, job: str) -> None:
        """The job's bulk.completed is acknowledged."""
        await self._ask("execute", _ANNOUNCED, job)

    async def jobs(self, job: str | None = None, most: int = 50) -> list[dict[str, Any]]:
        """Rows of the table, the newest job first; of one job, if it is named."""
        query = (
            f"SELECT {_COLUMNS} FROM orders_bulk_job WHERE $1::uuid IS NULL OR job_id = $1 ORDER BY"
            " created_at DESC, job_id LIMIT $2"
        )
        return [dict(row) for row in await self._ask("fetch", query, job, most)]

    async def ping(self) -> None:
        """Find out whether the server is there, unless a statement is under way, which tells as much."""
        if not self._turn.locked():
            await self._ask("fetchval", "SELECT 1")

    async def _ask(self, how: str, statement: str, *arguments: object) -> Any:
        async with self._turn:
            with tables_there(), self.availability.asked():
                return await self._ask_once(how, statement, *arguments)

    async def _ask_once(self, how: str, statement: str, *arguments: object) -> Any:
        settings = self._settings
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(
                settings.postgres,
                self._name,
                timeout=settings.postgres_connect_timeout,
                pooled=settings.pooled,
                command_timeout=settings.postgres_statement_timeout,
            )
        async with watched(self._connection):
            return await getattr(self._connection, how)(statement, *arguments)
