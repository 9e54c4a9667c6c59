"""Behind a pooler that gives each transaction another session, nothing is said to a session."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import asyncpg
import pytest

from audit.stores import Rows
from cli import main
from operations import rebuild
from operations.postgres import ddl
from queries.databases import Databases
from settings import Settings
from sinks import connection
from sinks.bulk import BulkJobs
from sinks.postgres import PostgresSink

POOLED = Settings(postgres_pooler="transaction")


class Line:
    """A connection that keeps what is said on it."""

    _transport = type("Transport", (), {"get_extra_info": staticmethod(lambda _: None)})()

    def __init__(self, schema: str) -> None:
        self.said: list[str] = []
        self.schema = schema
        self.address, self.pooled, self.statements = "", False, 0

    def begin(self) -> Line:
        return self

    def end(self) -> None: ...

    def terminate(self) -> None: ...

    def is_closed(self) -> bool:
        return False

    async def close(self) -> None: ...

    async def execute(self, statement: str, *_: object) -> None:
        self.said.append(statement)

    async def fetchval(self, statement: str, *_: object) -> str:
        self.said.append(statement)
        return self.schema

    fetch = fetchrow = fetchval

    @asynccontextmanager
    async def transaction(self, **_: object) -> AsyncIterator[None]:
        yield


class Server:
    """In place of asyncpg: keeps with what it is connected to."""

    def __init__(self, schema: str = "public") -> None:
        self.settings: list[dict[str, str]] = []
        self.lines: list[Line] = []
        self.schema = schema

    async def connect(self, *_: object, server_settings: dict[str, str], **__: object) -> Line:
        self.settings.append(server_settings)
        self.lines.append(Line(self.schema))
        return self.lines[-1]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    server = Server()
    monkeypatch.setattr(asyncpg, "connect", server.connect)
    return server


async def of_a_worker(settings: Settings) -> None:
    await PostgresSink(settings)._connector()


async def of_a_reader(settings: Settings) -> None:
    await Databases(settings).primary._connect()


async def of_a_bulk_worker(settings: Settings) -> None:
    await BulkJobs(settings, "test").announced("job")


async def of_a_command(settings: Settings) -> None:
    async with ddl.connect(settings):
        pass


async def of_an_audit(settings: Settings) -> None:
    async with Rows.open("postgresql://127.0.0.1:1/d") as rows, rows.snapshot():
        pass


@pytest.mark.parametrize(
    "work",
    [of_a_worker, of_a_reader, of_a_bulk_worker, of_a_command, of_an_audit],
    ids=lambda work: work.__name__,
)
async def test_a_session_is_told_nothing(server: Server, work: Callable[[Settings], Awaitable[None]]) -> None:
    await work(POOLED)
    (settings,), (line,) = server.settings, server.lines
    assert settings.keys() <= {"application_name", "TimeZone"}
    statements = [each.strip() for said in line.said for each in said.split(";")]
    assert [each for each in statements if each.startswith("SET") and not each.startswith("SET LOCAL")] == []
    assert work is of_an_audit or line.pooled


async def test_without_a_pooler_it_is_told_what_is_relied_on(server: Server) -> None:
    settings = Settings()
    await of_a_worker(settings)
    await of_a_reader(settings)
    assert [each["search_path"] for each in server.settings] == ["public", "public"]
    assert all("statement_timeout" in each for each in server.settings)
    assert server.lines[1].said == ["SET default_transaction_read_only = on"]


async def test_a_role_whose_names_lead_elsewhere(server: Server) -> None:
    server.schema = "other"
    with pytest.raises(asyncpg.ClientConfigurationError) as refused:
        await of_a_command(POOLED)
    assert "leads to the schema other" in (main.explain(refused.value) or "")


async def test_a_pooler_is_not_asked_for_a_session_of_its_own(server: Server) -> None:
    line = await connection.connect("postgresql://127.0.0.1:1/d", "test", timeout=1, pooled=True)
    assert not await connection.Connection.forgotten(line)
    assert len(server.lines) == 1


async def test_what_holds_a_session_is_refused(server: Server) -> None:
    def ignore(*_: Any) -> None: ...

    for step in (
        rebuild.start(POOLED, "orders_rebuild", ignore, ignore, ignore),
        rebuild.diff(POOLED, "orders_rebuild", 1, ignore, ignore),
        rebuild.switch(POOLED, "orders_rebuild", False, 1.0, ignore, ignore),
        rebuild.drop_all(POOLED, []),
    ):
        with pytest.raises(ddl.NeedsSession, match="ORDERS_POSTGRES leading to the server itself"):
            await step
    assert server.lines == []


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.ProtocolViolationError("unsupported startup parameter: search_path"),
        asyncpg.DuplicatePreparedStatementError('prepared statement "__asyncpg_stmt_2__" already exists'),
        asyncpg.InvalidSQLStatementNameError('prepared statement "__asyncpg_stmt_2__" does not exist'),
    ],
)
def test_a_pooler_that_nobody_was_told_of(error: BaseException) -> None:
    message = main.explain(error) or ""
    assert "set ORDERS_POSTGRES_POOLER=transaction, and have PgBouncer 1.21 or later" in message
