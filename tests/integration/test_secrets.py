"""Passwords in server URLs, in what programs that run print and log: workers, the API, and
commands that meet a server.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import uuid
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest
from redis.asyncio import Redis
from redis.exceptions import AuthenticationError, NoPermissionError

from cli import main
from credentials import PostgresUrl, RedisUrl
from settings import Settings
from sinks.clients import open_client
from sinks.connection import Connector, connect
from streams.transport.delivery import Verdict, judge
from tests.servers import as_admin
from tests.unit.test_secrets import MARK, NOWHERE
from tests.waiting import until
from tests.workers import ORDERS, orders, worker

POSTGRES = f"postgresql://u:{MARK}@{NOWHERE}/d?application_name={MARK}"
REDIS = f"redis://u:{MARK}@{NOWHERE}/0"


def test_commands_that_find_no_server(fresh: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_REDIS", REDIS)
    for command in (("partitions", "--to", "8"), ("audit",)):
        done = orders(*command)
        assert (done.returncode, done.stdout) == (2, ""), command
        assert NOWHERE in done.stderr
        assert MARK not in done.stderr
    monkeypatch.setenv("ORDERS_POSTGRES", POSTGRES)
    for command in (("init",), ("worker",), ("audit",)):
        done = orders(*command)
        assert done.returncode == 2, command
        assert f"postgresql://***@{NOWHERE}/d" in done.stderr
        assert MARK not in done.stdout + done.stderr


def test_a_server_that_refuses_the_password(fresh: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    url = fresh.postgres.get_secret_value()
    scheme, _, rest = url.partition("://")
    monkeypatch.setenv("ORDERS_POSTGRES", f"{scheme}://postgres:{MARK}@{rest.rpartition('@')[2]}")
    done = orders("db")
    assert done.returncode == 2
    assert done.stderr.startswith("orders: Postgres at postgresql://***@")
    assert MARK not in done.stderr


async def test_a_postgres_password_that_is_changed(fresh: Settings, tmp_path: Path) -> None:
    file, role = tmp_path / "url", f"rotated_{uuid.uuid4().hex[:8]}"
    place = fresh.postgres.get_secret_value().rpartition("@")[2]
    file.write_text(f"postgresql://{role}:{MARK}-1@{place}\n")
    owner = await connect(as_admin(fresh.postgres), "test", timeout=10, pooled=False)
    connector = Connector(
        PostgresUrl.from_file("ORDERS_POSTGRES_FILE", file), "test", timeout=10, pooled=False
    )
    try:
        await owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD '{MARK}-1'")
        await (await connector()).close()
        await owner.execute(f"ALTER ROLE {role} PASSWORD '{MARK}-2'")
        with pytest.raises(asyncpg.InvalidPasswordError) as refused:
            await connector()
        assert judge(refused.value) is Verdict.TEMPORARY
        assert "refuses the login" in (main.explain(refused.value) or "")
        file.write_text(f"postgresql://{role}:{MARK}-2@{place}\n")
        opened = await connector()
        with pytest.raises(asyncpg.InsufficientPrivilegeError) as denied:
            await opened.execute("SELECT FROM orders_order")
        assert judge(denied.value) is Verdict.TEMPORARY
        assert "doesn't allow it (permission denied for table orders_order)" in (
            main.explain(denied.value) or ""
        )
        await opened.close()
    finally:
        await owner.execute(f"DROP ROLE {role}")
        await owner.close()


async def test_a_redis_password_that_is_changed(settings: Settings, tmp_path: Path) -> None:
    file, user = tmp_path / "url", f"rotated-{uuid.uuid4().hex[:8]}"
    url = settings.redis.get_secret_value()
    scheme, place = url.partition("://")[0], url.rpartition("@")[2].removeprefix("redis://")
    file.write_text(f"{scheme}://{user}:{MARK}-1@{place}")
    client = open_client(settings.model_copy(update={"redis": RedisUrl.from_file("ORDERS_REDIS_FILE", file)}))
    async with Redis.from_url(as_admin(settings.redis)) as redis:
        owner: Any = redis  # of whose commands by name only some are typed
        try:
            await owner.execute_command(
                "ACL", "SETUSER", user, "on", f">{MARK}-1", "+ping", "+select", "+client"
            )
            await client.ping()
            with pytest.raises(NoPermissionError) as denied:
                await client.get("x")
            assert "'get' command); give its user that" in (main.explain(denied.value) or "")
            await owner.execute_command("ACL", "SETUSER", user, "resetpass", f">{MARK}-2")
            await client.connection_pool.disconnect()
            with pytest.raises(AuthenticationError) as refused:
                await client.ping()
            assert "refuses the login" in (main.explain(refused.value) or "")
            file.write_text(f"{scheme}://{user}:{MARK}-2@{place}")
            await client.ping()
        finally:
            await client.aclose()
            await owner.execute_command("ACL", "DELUSER", user)


def test_a_worker_without_its_cache(fresh: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_REDIS", REDIS)
    monkeypatch.setenv("ORDERS_LOG_LEVEL", "debug")
    with worker(tmp_path) as running:
        assert orders("generate", "--orders", "5").returncode == 0
        until(lambda: "redis.away" in running.text(), "the worker says that Redis is away")
        assert running.terminate() == 0
    assert MARK not in running.text()


def test_the_api_without_its_databases(settings: Settings, tmp_path: Path) -> None:
    log = tmp_path / "api.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "ORDERS_POSTGRES": POSTGRES,
        "ORDERS_POSTGRES_REPLICA": POSTGRES,
        "ORDERS_REDIS": REDIS,
    }
    with (
        log.open("wb") as out,
        subprocess.Popen(
            (*ORDERS, "api", "--port", str(port)), stdout=out, stderr=out, env=environment
        ) as api,
    ):
        try:
            until(lambda: "Application startup complete" in log.read_text(), "it serves")
            for path in ("health", "orders/3fa85f64-5717-4562-b3fc-2c963f66afa6"):
                answer = httpx.get(f"http://127.0.0.1:{port}/{path}", timeout=30)
                assert answer.status_code >= 500
                assert MARK not in answer.text
        finally:
            api.send_signal(signal.SIGTERM)
            api.wait(30)
    assert MARK not in log.read_text()
