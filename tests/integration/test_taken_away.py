"""What a worker needs is taken away while it runs: its tables, the room on its disk."""

from __future__ import annotations

from pathlib import Path

from settings import Settings
from sinks import migrate
from tests.servers import as_admin
from tests.stackfixture import execute
from tests.waiting import until
from tests.workers import ORDERS, audit, orders, processed, worker
from workload import generator
from workload.producer import send

NEW_SCHEMA = "CREATE SCHEMA public; GRANT ALL ON SCHEMA public TO public"
HISTORY = list(generator.events(300, 63))
SHARE = len(HISTORY) // 3


async def test_tables_that_are_taken_away_are_waited_for(fresh: Settings, tmp_path: Path) -> None:
    postgres = as_admin(fresh.postgres)
    with worker(tmp_path) as running:
        await send(fresh, HISTORY[:SHARE])
        processed()
        await execute(postgres, f"ALTER SCHEMA public RENAME TO away; {NEW_SCHEMA}")
        await send(fresh, HISTORY[SHARE : 2 * SHARE])
        until(lambda: "TablesTakenAway: Postgres says: relation " in running.text(), "it waits and says why")
        assert "put back what was there (a backup, or orders init" in running.text()
        await execute(postgres, "DROP SCHEMA public; ALTER SCHEMA away RENAME TO public")
        processed()
        audit()
        waited = running.text().count("waits since")
        await execute(postgres, f"DROP SCHEMA public CASCADE; {NEW_SCHEMA}")
        await send(fresh, HISTORY[2 * SHARE :])
        until(lambda: running.text().count("waits since") > waited, "it waits again")
        await migrate.upgrade(fresh)
        processed()
        until(
            lambda: "orders repair --rows, beside the workers" in running.text(),
            "it tells what is missing",
            90,
        )
        ended = orders("repair", "--rows")
        assert ended.returncode == 0, ended.stderr
        audit()
        assert running.terminate() == 0
    assert "Traceback" not in running.text()


async def test_tables_that_are_emptied_under_a_worker_that_has_work_are_told(
    fresh: Settings, tmp_path: Path
) -> None:
    with worker(tmp_path) as running:
        await send(fresh, HISTORY)
        processed()
        await execute(as_admin(fresh.postgres), "TRUNCATE orders_order CASCADE")
        await send(fresh, generator.events(100, 64))  # whose rows are there, and are the last that it wrote
        processed()
        until(lambda: "orders repair --rows, beside the workers" in running.text(), "it tells of it", 90)
        ended = orders("repair", "--rows")
        assert ended.returncode == 0, ended.stderr
        audit()
        assert running.terminate() == 0


async def test_a_full_disk_ends_the_worker_with_one_line_and_loses_nothing(
    fresh: Settings, tmp_path: Path
) -> None:
    # Whose files may not grow meets the same error as who has no room, in other words.
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17,) * 2); from streams.transport"
        " import table; table.FULL = ('File too large',); from cli.main import main; main()"
    )
    with worker(tmp_path, command=(*ORDERS[:2], code, "worker", "--name", "w")) as running:
        await send(fresh, HISTORY)
        assert running.process.wait(60) == 1
    text = running.text()
    assert "Traceback" not in text, text[-6000:]
    assert text.count("Crashed reason") == 1, text[-6000:]
    (line,) = [each for each in text.splitlines() if "the worker ends, nothing unfinished" in each]
    assert "is full, RocksDB can't write (IO error: " in line
    assert "make room, or set ORDERS_DATA to where there is some" in line
    with worker(tmp_path):
        processed()
        assert audit()["counts"]["orders"] == 300
