"""What docs/how-to/back-up-and-restore.md says: PostgreSQL from an older point or from nothing, workers
without their local state, a cache that is empty, each with Kafka as it was.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from settings import Settings
from sinks import migrate
from stack import ports
from stack.postgres import INSTALLED, site_packages
from tests.servers import as_admin
from tests.stackfixture import Servers, without_tls
from tests.waiting import until
from tests.workers import ORDERS, Worker, audit, orders, processed, rows, worker
from workload import generator
from workload.producer import send

HISTORY = list(generator.events(150, 61, generator.Shares(duplicates=0.05, shuffle=0.2, poison=0.01)))
MIDDLE = len(HISTORY) // 2
EMPTIED = (
    "--quiet",
    "--command=drop schema public cascade; create schema public; grant all on schema public to public",
)
"""As who owns the database; the grant is for who only owns the tables."""


def postgres(tool: str, stack: Servers, settings: Settings, *arguments: str) -> None:
    program = str(site_packages() / INSTALLED / "bin" / tool)
    command = (program, "--dbname", without_tls(stack, settings.postgres), *arguments)
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def done(*arguments: str, code: int = 0) -> None:
    ended = orders(*arguments)
    assert ended.returncode == code, ended.stdout[-3000:] + ended.stderr[-3000:]


@pytest.mark.parametrize("way", ["rows", "rebuild"])
async def test_postgres_restored_to_an_older_point(
    stack: Servers, fresh: Settings, tmp_path: Path, way: str
) -> None:
    backup = str(tmp_path / "orders.dump")
    with worker(tmp_path) as first:
        await send(fresh, HISTORY[:MIDDLE])
        processed()
        postgres("pg_dump", stack, fresh, "--format=custom", f"--file={backup}")
        then = await rows(fresh)
        await send(fresh, HISTORY[MIDDLE:])
        processed()
        assert first.terminate() == 0
    now = await rows(fresh)
    postgres("psql", stack, fresh, *EMPTIED)  # pg_restore --clean can't drop partitions' constraints
    postgres("pg_restore", stack, fresh, "--single-transaction", backup)
    assert await rows(fresh) == then != now
    done("audit", "--no-cache", "--no-tables", code=1)

    if way == "rows":
        with worker(tmp_path) as running:
            until(lambda: running.text().count("run orders repair --rows") == 1, "the worker tells of it")
            done("repair", "--rows", "--dry-run", code=1)
            assert await rows(fresh) == then
            done("repair", "--rows")
            assert await rows(fresh) == now
            done("repair", "--rows", "--dry-run")
            assert running.terminate() == 0
    else:
        done("rebuild", "start")
        done("rebuild", "diff", code=1)
        done("rebuild", "switch")
    assert await rows(fresh) == now
    with worker(tmp_path):
        await send(fresh, generator.events(20, 62))
        processed()
        audit()


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_lanes_are_behind_until_their_rows_are_back_whoever_has_them(
    stack: Servers, fresh: Settings, tmp_path: Path, delivery: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_DELIVERY", delivery)
    port = ports.choose(set())
    monkeypatch.setenv("ORDERS_METRICS_PORT", str(port))
    code = "from streams import watermark; watermark.AGAIN = 0.2; from cli.main import main; main()"

    def another(name: str) -> AbstractContextManager[Worker]:
        return worker(tmp_path, name, (*ORDERS[:2], code, "worker", "--name", name))

    def behind() -> float:
        lines = httpx.get(f"http://127.0.0.1:{port}/metrics").text.splitlines()
        return sum(float(line.split()[1]) for line in lines if line.startswith("orders_rows_behind{"))

    with another("first"):
        await send(fresh, HISTORY)
        processed()
    postgres("psql", stack, fresh, *EMPTIED)
    await migrate.upgrade(fresh)
    with another("first") as first:
        until(lambda: "run orders repair --rows" in first.text(), "the worker tells of it")
        assert re.findall(r"of lanes ([\d, ]+), orders have older rows", first.text()) == ["0, 1"]
        # Of what it wrote last, everything has its rows, and it knows the others by then.
        await send(fresh, generator.events(300, 62))
        processed()
        until(lambda: behind() > 0, "it still knows those that are behind")
        assert first.terminate() == 0
    with another("other") as other:  # with nothing but what Kafka has
        until(lambda: "run orders repair --rows" in other.text(), "the next owner tells of it too")
        assert behind() > 0
        until(lambda: "orders with old rows in Postgres" in orders("status").stdout, "status tells of it")
        done("repair", "--rows")
        until(lambda: "all orders were looked at" in other.text(), "the rows are back")
        assert behind() == 0
        assert other.terminate() == 0
    with another("third") as third:
        audit()
        assert behind() == 0
        assert "run orders repair --rows" not in third.text()


async def test_postgres_lost_without_a_backup(stack: Servers, fresh: Settings, tmp_path: Path) -> None:
    with worker(tmp_path) as first:
        await send(fresh, HISTORY)
        processed()
        assert first.terminate() == 0
    now = await rows(fresh)
    postgres("psql", stack, fresh, *EMPTIED)
    await migrate.upgrade(fresh)
    assert await rows(fresh) != now
    done("repair")
    assert await rows(fresh) == now
    audit()


async def test_local_state_and_cache_lost(fresh: Settings, tmp_path: Path) -> None:
    with worker(tmp_path) as first:
        await send(fresh, HISTORY[:MIDDLE])
        processed()
        assert first.terminate() == 0
    shutil.rmtree(fresh.data)
    async with Redis.from_url(as_admin(fresh.redis)) as redis:
        await redis.flushdb()
    with worker(tmp_path):
        await send(fresh, HISTORY[MIDDLE:])
        processed()
        assert audit()["counts"]["orders"] == 150
