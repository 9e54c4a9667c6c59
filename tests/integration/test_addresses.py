"""Postgres addresses of every kind, in everything that connects: a worker, readers, commands, the auditor."""

from __future__ import annotations

import asyncio
import os
import re
import ssl
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import asyncpg
import pytest

from audit.stores import Rows
from cli import main
from credentials import PostgresUrl
from operations.postgres import ddl
from queries import statements
from queries.databases import Database
from settings import Settings
from sinks import connection, migrate
from sinks.bulk import BulkJobs
from sinks.postgres import PostgresSink
from stack import ports
from tests.stackfixture import Servers
from tests.workers import orders

CERTIFICATE = Path(__file__).parent / "tls" / "certificate.pem"
NAME = "SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()"


class Server(NamedTuple):
    """Where the server of the stack is, in parts."""

    user: str
    password: str
    port: int
    database: str
    tls: int
    """A port that speaks TLS, and only TLS."""
    socket: str
    """A folder with a Unix socket named for port 5432."""
    dead: int
    """A port where nobody is."""
    silent: int
    """A port that takes connections and never says anything."""


def forwarding(port: int, context: ssl.SSLContext | None = None) -> Callable[..., Any]:
    """A handler of connections that passes everything on to a Postgres; with `context` it ends TLS,
    as the server itself would.
    """

    async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
        target.close()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(
            OSError, EOFError
        ):  # of a client that doesn't like the certificate, or that goes without a word
            if context is not None:
                assert await reader.readexactly(8) == b"\0\0\0\x08\x04\xd2\x16\x2f"
                writer.write(b"S")
                await writer.start_tls(context)
            up, down = await asyncio.open_connection("127.0.0.1", port)
            await asyncio.gather(pump(reader, down), pump(up, writer))
        writer.close()

    return handle


async def hush(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


@pytest.fixture
async def server(stack: Servers, settings: Settings) -> AsyncIterator[Server]:
    await migrate.upgrade(settings)
    parts = urlsplit(settings.postgres.get_secret_value())
    own = [each.port for each in getattr(stack, "status", []) if each.name == "postgres"]
    plain = own[0] if own else parts.port  # of a secure stack the one behind what ends TLS
    assert plain is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE, CERTIFICATE.with_name("key.pem"))
    tls, dead, silent = (ports.choose(set()) for _ in range(3))
    with tempfile.TemporaryDirectory() as folder:
        async with (
            await asyncio.start_server(forwarding(plain, context), "127.0.0.1", tls),
            await asyncio.start_unix_server(forwarding(plain), f"{folder}/.s.PGSQL.5432"),
            await asyncio.start_server(hush, "127.0.0.1", silent),
        ):
            yield Server(
                parts.username or "",
                unquote(parts.password or ""),
                plain,
                parts.path[1:],
                tls,
                folder,
                dead,
                silent,
            )


ADDRESSES: dict[str, str] = {
    "plain": "postgresql://{user}:{password}@127.0.0.1:{port}/{database}",
    "short scheme": "postgres://{user}:{password}@127.0.0.1:{port}/{database}",
    "percent-encoded": "postgresql://{encoded}@127.0.0.1:{port}/{database}",
    "password in the query": "postgresql://{user}@127.0.0.1:{port}/{database}?password={password}",
    "all in the query": "postgresql:///?host=127.0.0.1&port={port}&user={user}&password={password}&dbname={database}",
    "password file": "postgresql://{user}@127.0.0.1:{port}/{database}?passfile={passfile}",
    "service": "postgresql:///?service=orders&password={password}",
    "service and more": "postgresql://{user}@/?service=many&connect_timeout=5&password={password}",
    "port in the query": "postgresql://{user}:{password}@127.0.0.1/{database}?port={port}",
    "ports in the query": "postgresql://{user}:{password}@127.0.0.1,127.0.0.1/{database}?port={dead},{port}",
    "no TLS": "postgresql://{user}:{password}@127.0.0.1:{port}/{database}?sslmode=disable",
    "TLS allowed": "postgresql://{user}:{password}@127.0.0.1:{port}/{database}?sslmode=allow",
    "TLS preferred": "postgresql://{user}:{password}@127.0.0.1:{tls}/{database}?sslmode=prefer",
    "TLS": "postgresql://{user}:{password}@127.0.0.1:{tls}/{database}?sslmode=require",
    "its certificate": "postgresql://{user}:{password}@127.0.0.1:{tls}/{database}?sslmode=verify-ca&sslrootcert={ca}",
    "its name": "postgresql://{user}:{password}@127.0.0.1:{tls}/{database}?sslmode=verify-full&sslrootcert={ca}&ssl_min_protocol_version=TLSv1.3",
    "a name": "postgresql://{user}:{password}@127.0.0.1:{port}/{database}?application_name=mine",
    "a name if there is none": "postgresql://{user}:{password}@127.0.0.1:{port}/{database}?fallback_application_name=mine",
    "one of two": "postgresql://{user}:{password}@127.0.0.1:{dead},127.0.0.1:{port}/{database}",
    "one of two, silent": "postgresql://{user}:{password}@127.0.0.1:{silent},127.0.0.1:{port}/{database}?connect_timeout=1",
    "one of two in the query": "postgresql:///{database}?host=127.0.0.1,127.0.0.1&port={dead},{port}&user={user}&password={password}",
    "the one to write to": "postgresql://{user}:{password}@127.0.0.1:{dead},127.0.0.1:{port}/{database}?target_session_attrs=read-write",
    "the primary": "postgresql://{user}:{password}@127.0.0.1:{port}/{database}?target_session_attrs=primary",
    "a standby, if there is one": "postgresql://{user}:{password}@127.0.0.1:{dead},127.0.0.1:{port}/{database}?target_session_attrs=prefer-standby",
    "Unix socket": "postgresql://{user}:{password}@/{database}?host={socket}",
    "Unix socket, encoded": "postgresql://{user}:{password}@{socketencoded}/{database}",
    "options": "postgresql://{user}:{password}@127.0.0.1:{port}/{database}?options=-c%20work_mem%3D5MB%20-c%20search_path%3Dnowhere",
    "the server's settings": "postgresql://{user}:{password}@127.0.0.1:{port}/{database}?work_mem=5MB&search_path=nowhere&jit=on",
    "libpq's own": "postgresql://{user}:{password}@127.0.0.1:{port}/{database}?connect_timeout=5&keepalives=1&keepalives_idle=9"
    "&keepalives_interval=3&keepalives_count=2&tcp_user_timeout=9000&channel_binding=prefer&gssencmode=disable&load_balance_hosts=disable",
    "without keepalives": "postgresql://{user}:{password}@127.0.0.1:{port}/{database}?keepalives=0",
}


@pytest.mark.parametrize("kind", ADDRESSES)
async def test_an_address_works_in_everything(
    server: Server, settings: Settings, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passwords, services = tmp_path / "pass", tmp_path / "services"
    passwords.write_text(f"127.0.0.1:*:*:*:{server.password}\n")
    passwords.chmod(0o600)
    services.write_text(
        f"[orders]\nhost=127.0.0.1\nport={server.port}\nuser={server.user}\ndbname={server.database}\n"
        "# a host that isn't there, and one that is\n"
        f"[many]\n host = 127.0.0.1,127.0.0.1 \nport={server.dead},{server.port}\ndbname={server.database}\n"
        "password=50%off%(x)s\napplication_name=mine\ntarget_session_attrs=read-write\nkeepalives=0\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(services))
    encoded = ":".join(
        "".join(f"%{each:02X}" for each in text.encode()) for text in (server.user, server.password)
    )
    url = ADDRESSES[kind].format(
        **server._asdict(),
        encoded=encoded,
        passfile=passwords,
        ca=CERTIFICATE,
        socketencoded=quote(server.socket, safe=""),
    )
    here = settings.model_copy(update={"postgres": PostgresUrl(url)})
    own = "mine" if "application_name" in url or "many" in url else None

    sink = PostgresSink(here)
    await sink.start()
    try:
        assert sink._pool is not None
        assert await sink._pool.fetchval(NAME) == (own or "orders-worker")
        assert await sink._pool.fetchval("SHOW search_path") == "public"
        assert await sink._pool.fetchval("SHOW jit") == "off"
        if "work_mem" in url:
            assert await sink._pool.fetchval("SHOW work_mem") == "5MB"
    finally:
        await sink.close()
    async with ddl.connect(here) as opened:
        assert await opened.fetchval(NAME) == (own or "orders-db")
        assert isinstance(opened, connection.Connection)
        assert not await opened.forgotten()
    assert (await migrate.layout(here)) is not None
    async with BulkJobs(here, "orders-bulk") as jobs:
        assert await jobs.jobs() == []
    database = Database(here, url, "primary")
    try:
        assert len(await database.rows(statements.ONE)) == 1
        another = await database._connect()
        try:
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await another.execute("CREATE TABLE public.t ()")
        finally:
            await another.close()
    finally:
        await database.close()
    if "silent" not in kind:  # asyncpg's own loop over hosts, which the auditor has, waits for the first one
        async with Rows.open(connection.plain(url)) as rows, rows.snapshot():
            assert await rows.estimate() == 0
    await connection.check(url)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("sslmode=maybe", "sslmode"),
        ("sslmode=verify-full&sslrootcert=/nowhere/ca.pem", "sslrootcert names no file that can be read (No"),
        ("target_session_attrs=best", "target_session_attrs"),
        ("connect_timeout=soon", "connect_timeout isn't a whole number"),
        ("keepalives_idle=x", "keepalives_idle isn't a whole number"),
        ("sslmode", "must look like"),
        ("channel_binding=require", "channel_binding is only supported as prefer or disable"),
        ("hostaddr=127.0.0.1", "hostaddr isn't supported"),
        ("ssl_min_protocol_version=TLSv9", "ssl_min_protocol_version must be one of TLSv1, "),
        ("service=MarkedSecret", "its service isn't there; define it in"),
        ("port=MarkedSecret", "port must be 1 to 65535"),
        ("port=99999", "port must be 1 to 65535"),
        ("options=x%00MarkedSecret", "a value holds the character U+0000"),
        ("MarkedSecret=1", "the server refuses a parameter behind the ? of the URL"),
        ("role=MarkedSecret", "the server refuses role behind the ?"),
        ("work_mem=MarkedSecret", "the server refuses work_mem behind the ?"),
        ("max_connections=77", "the server refuses max_connections behind the ?"),
        ("work_mem=5MB&options=-c%20work_mem%3DMarkedSecret", "the server refuses work_mem behind the ?"),
        ("options=-c%20MarkedSecret%3D1", "the server refuses a parameter behind the ?"),
        ("options=MarkedSecret", "the server refuses a parameter behind the ?"),
        ("user=MarkedSecret&dbname=MarkedSecret", "Postgres at "),
    ],
)
async def test_an_address_that_cannot_be_used_is_one_line(
    settings: Settings, query: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = settings.postgres.get_secret_value().partition("?")[0]
    if query.startswith("user="):
        parts = urlsplit(url)
        url = f"postgresql:///?host={parts.hostname}&port={parts.port}"
        query = f"&{query}"
    elif query.startswith("port="):
        url = re.sub(r":[0-9]+/", "/", url)
    monkeypatch.setenv("ORDERS_POSTGRES", f"{url}{'' if query[0] == '&' else '?'}{query}")
    commands: list[tuple[str, ...]] = [("db",), ("audit",)]
    if "refuses" not in says and query[0] != "&":  # only the server knows that it doesn't know them
        commands.append(("api", "--port", "0"))
    for command in commands:
        done = await asyncio.to_thread(orders, *command)
        assert done.returncode == 2, (command, done.stderr)
        assert "Traceback" not in done.stderr
        assert says in done.stderr, command
        assert (urlsplit(settings.postgres.get_secret_value()).password or "?") not in done.stderr
        assert "MarkedSecret" not in done.stderr


async def test_a_wrong_certificate_is_refused(server: Server, settings: Settings, tmp_path: Path) -> None:
    for query in ("sslmode=verify-full", f"sslmode=verify-ca&sslrootcert={os.devnull}"):
        url = f"postgresql://{server.user}:{server.password}@127.0.0.1:{server.tls}/{server.database}?{query}"
        with pytest.raises((OSError, asyncpg.ClientConfigurationError)):
            await connection.connect(url, "test", timeout=5, pooled=False)


async def test_no_host_is_what_is_asked_for(settings: Settings) -> None:
    """While a failover is under way: it passes, and isn't a bug of ours."""
    url = settings.postgres.get_secret_value()
    with pytest.raises(connection.NoSuchHost, match="no host of it is a standby") as raised:
        await connection.connect(
            f"{url}{'&' if '?' in url else '?'}target_session_attrs=standby",
            "test",
            timeout=5,
            pooled=False,
        )
    line = main.explain(raised.value) or ""
    assert "no host of it is a standby, which target_session_attrs=standby asks for; wait until" in line


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (
            "[orders]\nhost=127.0.0.1\nnonsense=MarkedSecret\n",
            "line 3 of the file of services sets no parameter",
        ),
        ("[orders]\nMarkedSecret\n", "line 2 of the file of services sets no parameter"),
        ("[orders]\nservice=MarkedSecret\n", "line 2 of the file of services sets no parameter"),
        ("[others]\nhost=127.0.0.1\n", "its service isn't there"),
        ("", "its service isn't there"),
    ],
)
@pytest.mark.parametrize("by", ["parameter", "environment"])
def test_a_service_that_cannot_be_used(
    text: str, says: str, by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "services").write_text(text)
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    if by == "environment":
        monkeypatch.setenv("PGSERVICE", "orders")
    with pytest.raises(asyncpg.ClientConfigurationError, match=says) as raised:
        connection.plain(f"postgresql:///d{'?service=orders' if by == 'parameter' else ''}")
    assert "MarkedSecret" not in str(raised.value)
