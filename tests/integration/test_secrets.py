"""Passwords in server URLs, in what programs that run print and log: workers, the API, and
commands that meet a server.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from pathlib import Path

import httpx
import pytest

from settings import Settings
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
