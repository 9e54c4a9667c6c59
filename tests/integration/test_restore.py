"""What docs/how-to/back-up-and-restore.md says: PostgreSQL from an older point or from nothing, workers
without their local state, a cache that is empty, each with Kafka as it was.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from redis.asyncio import Redis

from settings import Settings
from sinks import migrate
from stack.postgres import INSTALLED, site_packages
from tests.servers import as_admin
from tests.stackfixture import Servers, without_tls
from tests.waiting import until
from tests.workers import audit, orders, processed, rows, worker
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
