"""Each role runs with exactly what `orders grants` prints for it, on real servers, and lacks what another
has.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import asyncpg
import httpx
import pytest
import redis.asyncio
from redis.exceptions import NoPermissionError

from api.app import create_app
from audit import stores
from audit.follow import Follower, Told
from operations.auditing import cache_of, target_of
from operations.grants import acl_user, cache_rights, grant_lines, grants
from operations.postgres import ddl
from operations.roles import ROLES, Role
from queries import cache
from settings import Settings, get_settings
from sinks import migrate
from sinks import redis as sink
from sinks.connection import connect
from tests.integration.test_bulk import an_order, order_id
from tests.servers import as_admin
from tests.unit.builders import ANNA, USER
from tests.waiting import until
from tests.workers import ORDERS, audit, orders, processed, worker

PREFIX = "shared.1:eu:"


class Roles:
    """A database role and a user of Redis for each role, named anew in each run, and gone afterwards."""

    def __init__(self, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run = secrets.token_hex(4)
        self.password = secrets.token_hex(8)
        self.postgres = as_admin(settings.postgres)
        self.redis = as_admin(settings.redis)
        self.settings = settings
        self._monkeypatch = monkeypatch

    def name(self, role: Role) -> str:
        return f'{role} "{self.run}"'

    def user(self, role: Role) -> str:
        return f"{role}-{self.run}"

    async def execute(self, *statements: str, role: Role | None = None) -> None:
        connection = await connect(
            self.postgres if role is None else self.url(role), "test", timeout=10, pooled=False
        )
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def grant(self, role: Role, by: Role | None = None) -> None:
        """Give a role what is printed for it; in Postgres `by` another one."""
        database = urlsplit(self.postgres).path[1:]
        lines = grant_lines(grants(role), self.name(role))
        of_tables = [line for line in lines if " ON TABLE " in line]
        await self.execute(
            *(line.replace(':"DBNAME"', f'"{database}"') for line in lines if line not in of_tables)
        )
        await self.execute(*of_tables, role=by)
        rights = cache_rights(self.settings, role)
        if rights is not None:
            async with redis.asyncio.Redis.from_url(self.redis) as client:
                command = acl_user(rights, self.user(role)).split()
                assert await send(client, *command, f">{self.password}")

    @contextmanager
    def acting(self, role: Role) -> Iterator[Settings]:
        """The environment's servers are reached as this role."""
        with self._monkeypatch.context() as patch:
            patch.setenv("ORDERS_POSTGRES", self.url(role))
            uses = cache_rights(self.settings, role) is not None
            here = _as(self.redis, self.user(role), self.password)
            patch.setenv("ORDERS_REDIS", here if uses else "redis://127.0.0.1:1/0")
            get_settings.cache_clear()
            yield Settings()
        get_settings.cache_clear()

    def url(self, role: Role) -> str:
        return _as(self.postgres, quote(self.name(role)), self.password)


async def send(client: Any, *command: str) -> Any:
    return await client.execute_command(*command)


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _as(url: str, user: str, password: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{user}:{password}@{parts.netloc.rpartition('@')[2]}"))


@pytest.fixture
async def roles(fresh: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Roles]:
    """Nobody has anything in the database but who is given it: its tables are the owner's. Redis is shared:
    whoever forgets the prefix of the keys isn't allowed to touch them.
    """
    monkeypatch.setenv("ORDERS_REDIS_PREFIX", PREFIX)
    roles = Roles(fresh.model_copy(update={"redis_prefix": PREFIX}), monkeypatch)
    database = urlsplit(roles.postgres).path[1:]
    names = ", ".join(quoted(roles.name(role)) for role in ROLES)
    await roles.execute(
        "DROP SCHEMA public CASCADE",
        "CREATE SCHEMA public",
        f'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC',
        *(f"CREATE ROLE {quoted(roles.name(role))} LOGIN PASSWORD '{roles.password}'" for role in ROLES),
    )
    yield roles
    await roles.execute(f"DROP OWNED BY {names} CASCADE", f"DROP ROLE {names}")
    async with redis.asyncio.Redis.from_url(roles.redis) as client:
        await send(client, "ACL", "DELUSER", *(roles.user(role) for role in ROLES))


async def test_each_role_does_its_work_with_what_is_printed_for_it(
    roles: Roles, tmp_path: Path, run_command: Callable[..., tuple[int, str]]
) -> None:
    await roles.grant("owner")
    with roles.acting("owner"):
        assert run_command("init") == (0, "")
    for role in ROLES[1:]:
        await roles.grant(role, by="owner")
    jobs = tmp_path / "orders.ndjson"
    jobs.write_text("".join(f"{json.dumps(an_order(number))}\n" for number in range(9)))
    async with redis.asyncio.Redis.from_url(roles.redis) as client:
        await client.config_resetstat()
        await client.script_flush()
        await send(client, "ACL", "LOG", "RESET")
        with (
            roles.acting("worker"),
            worker(tmp_path, "w", (*ORDERS, "worker", "--role", "realtime")) as working,
        ):
            assert orders("generate", "--orders", "60", "--seed", "0", "--poison", "0.02").returncode == 0
            with (
                roles.acting("bulk"),
                worker(tmp_path, "b", (*ORDERS, "worker", "--role", "bulk")) as unpacks,
            ):
                assert run_command("bulk", "submit", "orders", "--as-new", str(jobs)) == (0, "")
                until(lambda: "is unpacked" in unpacks.text(), "the job is unpacked")
            with roles.acting("reader"):
                processed()
                await send(client, "ACL", "SETUSER", roles.user("reader"), "-mget")
                code, said = run_command("wait", "--timeout", "60")
                assert (code, said.count("\n")) == (2, 1), said
                assert "doesn't allow it" in said
                assert "'mget' command" in said
                await send(client, "ACL", "SETUSER", roles.user("reader"), "+mget")
                await send(client, "ACL", "LOG", "RESET")
            assert working.terminate() == 0
        with roles.acting("audit") as settings:
            audit()
            await follow(settings)
            told_by = stores.Cache(cache_of(settings))
            assert not await told_by.evicts()
            await told_by.close()
        with roles.acting("owner"):
            await mend(client, run_command)
            await in_the_way(roles)
        with roles.acting("console"):
            assert run_command("status") == (1, ""), "no worker is there"
            assert [run_command("attention"), run_command("show", order_id(1))] == 2 * [(0, "")]
        with roles.acting("reader") as settings:
            await read(settings)
            await client.flushdb()
            await read(settings)
            assert await client.exists(f"{PREFIX}rows:{order_id(1)}"), "the reader has refilled what it read"
            assert run_command("bulk", "status", "--json") == (0, "")
            assert run_command("show", order_id(1)) == (0, "")
            assert run_command("dlq", "list") == (0, "")
        used = {
            name.removeprefix("cmdstat_").upper()
            for name, each in (await client.info("commandstats")).items()
            if each["calls"]
        }
        assert not [key async for key in client.scan_iter() if not key.startswith(PREFIX.encode())]
        refused = [each for each in await send(client, "ACL", "LOG") if roles.run in str(each)]
    assert refused == []
    listed = cache.COMMANDS | stores.COMMANDS | sink.COMMANDS - sink.called(sink._SCRIPT)
    assert {*listed, "CLIENT|SETINFO"} - used == set(), "nothing is granted that nobody uses"


async def mend(client: Any, run_command: Callable[..., tuple[int, str]]) -> None:
    """Run the owner's commands, with wrong keys in the cache before each."""
    summary, strange = f"{PREFIX}order:{order_id(1)}", f"{PREFIX}tracking:nobody's"
    right = await client.get(summary)
    assert right, "the worker has filled the cache"
    for command in OPERATOR:
        await client.mset({summary: "wrong", strange: "?"})
        code, said = run_command(*command)
        assert code == 0, f"{command}: {said}"
        if command in MENDING:
            assert await client.mget(summary, strange) == [right, None], command


async def follow(settings: Settings) -> None:
    """Audit, and follow for a round."""
    stop, news = asyncio.Event(), list[Told]()

    def after_round(follower: Follower) -> None:
        if follower.seconds_of_all:
            stop.set()

    target = target_of(settings, cache=True, tables=False, checkpoints=True)
    assert await Follower(
        target, interval=0.1, rate=1000, tell=news.append, say=print, after_round=after_round
    ).run(stop)
    assert news == []


OPERATOR = (
    ("db",),
    ("repair",),
    ("rebuild", "start"),
    ("rebuild", "diff"),
    ("rebuild", "switch"),
    ("rebuild", "drop"),
)


async def in_the_way(roles: Roles) -> None:
    """The owner isn't told what a worker's session does, and is told so, and by what it would be."""
    held = await connect(roles.url("worker"), "w1", timeout=10, pooled=False)
    try:
        async with held.transaction(), ddl.connect(Settings()) as owner:
            await held.execute("SELECT FROM orders_order LIMIT 1")
            said = await ddl.holders(owner, ["orders_order"])
            assert re.sub(r"\d+", "N", said.partition(";")[0]) == "wN (pid N, its state is hidden)"
            mine = quoted(roles.name("owner"))
            assert said.endswith(f"; GRANT pg_read_all_stats TO {mine} shows what is hidden")
    finally:
        await held.close()


MENDING = (("repair",), ("rebuild", "switch"))


async def read(settings: Settings) -> None:
    """What a reader asks for, over the API."""
    app = create_app(settings)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        for path in (
            f"/orders/{order_id(1)}",
            f"/orders/{order_id(1)}/explain",
            f"/users/{USER}/orders",
            f"/users/{USER}/orders?limit=2",
            f"/sellers/{ANNA}/suborders",
        ):
            answer = await client.get(path)
            assert answer.status_code == 200, f"{path}: {answer.text}"
        assert (await client.get("/tracking/none")).status_code in (200, 404)
        assert (await client.get("/health")).json()["status"] == "ok"


LACKS: dict[Role, list[str]] = {
    "owner": ["CREATE ROLE somebody"],
    "worker": [
        "DELETE FROM orders_order",
        "TRUNCATE orders_return",
        "SELECT job_id FROM orders_bulk_job",
        "CREATE TABLE mine (id int)",
    ],
    "reader": [
        "UPDATE orders_order SET region = 'x'",
        "INSERT INTO orders_bulk_job (job_id, kind, parts) VALUES (gen_random_uuid(), 'orders', 1)",
        "CREATE SCHEMA mine",
    ],
    "bulk": ["SELECT id FROM orders_order", "DELETE FROM orders_bulk_job"],
    "audit": ["SELECT job_id FROM orders_bulk_job", "UPDATE orders_shipment SET carrier = 'x'"],
    "console": [
        "UPDATE orders_attention SET detail = 'x'",
        "DELETE FROM orders_bulk_job",
        "CREATE TABLE t ()",
    ],
}
REFUSED: dict[Role, list[str]] = {
    "owner": ["FLUSHDB", "CONFIG GET *", "SET other 1"],
    "worker": ["SCAN 0", f"GET {PREFIX}rows:1", f"MGET {PREFIX}order:1", "FLUSHALL", "SET order:1 x"],
    "reader": [f"SET {PREFIX}order:1 x", f"DEL {PREFIX}rows:1", "EVAL return(1) 0", "KEYS *", "GET order:1"],
    "console": [f"SET {PREFIX}order:1 x", f"DEL {PREFIX}order:1", "KEYS *", "GET order:1", "CONFIG GET *"],
    "audit": [f"SET {PREFIX}order:1 x", f"SET {PREFIX}rows:1 x", "EVAL return(1) 0", "GET order:1"],
}


async def test_each_role_lacks_what_is_not_its_work(roles: Roles) -> None:
    await roles.grant("owner")
    with roles.acting("owner") as settings:
        await migrate.upgrade(settings)
    for role in ROLES[1:]:
        await roles.grant(role, by="owner")
    for role, statements in LACKS.items():
        for statement in statements:
            with pytest.raises(asyncpg.InsufficientPrivilegeError):
                await roles.execute(statement, role=role)
    for role, commands in REFUSED.items():
        url = _as(roles.redis, roles.user(role), roles.password)
        async with redis.asyncio.Redis.from_url(url) as client:
            for command in commands:
                with pytest.raises(NoPermissionError):
                    await send(client, *command.split())


async def test_what_lacks_is_one_line(
    roles: Roles, tmp_path: Path, run_command: Callable[..., tuple[int, str]]
) -> None:
    jobs = tmp_path / "orders.ndjson"
    jobs.write_text(f"{json.dumps(an_order(1))}\n")
    await roles.grant("owner")
    with roles.acting("owner"):
        assert run_command("init") == (0, "")
    for role in ("worker", "bulk", "audit"):
        await roles.grant(role, by="owner")
    taken: tuple[tuple[Role, str, str, tuple[str, ...]], ...] = (
        ("worker", "SELECT ON alembic_version", "table alembic_version", ("worker",)),
        (
            "bulk",
            "INSERT ON orders_bulk_job",
            "table orders_bulk_job",
            ("bulk", "submit", "orders", "--as-new", str(jobs)),
        ),
        ("audit", "SELECT ON orders_return", "table orders_return", ("audit",)),
    )
    for role, grant, lacks, command in taken:
        await roles.execute(f"REVOKE {grant} FROM {quoted(roles.name(role))}", role="owner")
        with roles.acting(role):
            code, line = run_command(*command)
        assert (code, line.count("\n")) == (2, 1), line
        assert f"permission denied for {lacks}" in line
        assert "orders grants postgres" in line
    with roles.acting("owner") as settings:
        async with redis.asyncio.Redis.from_url(roles.redis) as client:
            await send(client, "ACL", "SETUSER", roles.user("owner"), "-eval_ro")
        code, line = run_command("audit")
        assert (code, line.count("\n")) == (2, 1), line
        assert "no permissions to run the 'eval_ro' command" in line
        assert "orders grants redis" in line
        assert settings.redis.get_secret_value() not in line
