"""Worker processes for tests, and what the whole pipeline is asked for afterwards."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import asyncpg

from operations import auditing
from operations.wait import wait
from settings import Settings
from sinks.schema import TABLES as TABLES
from tests.forked import Forked, run
from tests.waiting import until

T = TypeVar("T")
ORDERS = (sys.executable, "-c", "from cli.main import main; main()")


class Worker:
    """One worker process. Its log is in `log`."""

    def __init__(self, log: Path, command: Sequence[str]) -> None:
        self.log = log
        self._before = log.stat().st_size if log.exists() else 0
        """Bytes of the log that others of this name have written."""
        self.process: Forked | subprocess.Popen[bytes]
        if command[:2] == ORDERS[:2]:
            self.process = Forked(command, log)
        else:
            with log.open("ab") as out:
                self.process = subprocess.Popen(command, stdout=out, stderr=out, env=dict(os.environ))

    def ready(self) -> bool:
        """Whether it takes in records. Fails the test if it has ended."""
        assert self.process.poll() is None, (
            f"the worker ended with {self.process.returncode}:\n{self.text()[-3000:]}"
        )
        logged = self.log.read_bytes()[self._before :]
        return b"worker ready" in logged or b"Worker ready" in logged

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; returns the exit code. Fails the test if something else ends it."""
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(45)
        assert code >= 0, f"the worker was ended by signal {-code}:\n{self.text()[-6000:]}"
        return code


@contextmanager
def worker(folder: Path, name: str = "w", command: Sequence[str] | None = None) -> Iterator[Worker]:
    """A worker that is ready; ended, if it still runs, at the end."""
    started = Worker(folder / f"{name}.log", command or (*ORDERS, "worker", "--name", name))
    try:
        until(started.ready, f"worker {name} takes in records", 60)
        yield started
    finally:
        if started.process.poll() is None:
            started.kill()


def orders(*arguments: str, timeout: float = 180) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return run((*ORDERS, *arguments), timeout=timeout)


def finished(work: Coroutine[Any, Any, T]) -> T:
    """Block until this is done, in a loop of its own: the caller may run in one. Raises what it raises."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


def processed(*, cache: bool = True) -> None:
    """Wait until the lag is 0 and, with `cache`, the cache complete: `orders wait` without its process."""
    outcome = finished(wait(Settings(), 120, cache=cache))
    assert outcome.done, outcome


def audit() -> dict[str, Any]:
    """The report of `orders audit --json`; fails the test unless every invariant holds."""
    target = auditing.target_of(Settings(), cache=True, tables=True)
    outcome = finished(auditing.audit(target, max_findings=50))
    report: dict[str, Any] = json.loads(json.dumps(outcome.document()))
    broken = [each for each in report["findings"] if each["severity"] != "report"]
    assert outcome.clean, json.dumps(report | {"findings": broken}, indent=2)[-6000:]
    return report


async def rows(settings: Settings, *, physical: bool = False) -> dict[str, dict[Any, Any]]:
    """Every row of the tables by (id, order), of orders_attention by (kind, order); with `physical` including
    where it lies, so that a rewritten row shows.
    """
    connection = await asyncpg.connect(settings.postgres.get_secret_value())
    try:
        where = "tableoid, xmin, ctid, " if physical else ""
        by_table: dict[str, dict[Any, Any]] = {}
        for table in TABLES:
            order = "id" if table == "orders_order" else "order_id"
            name = "kind" if table == "orders_attention" else "id"
            # What was cleared is what was seen: it depends on the order of arrival, and no rebuild makes it.
            open_ones = " WHERE cleared_at IS NULL" if table == "orders_attention" else ""
            fetched = await connection.fetch(f"SELECT {where}t.* FROM {table} t{open_ones}")
            by_table[table] = {(row[name], row[order]): tuple(map(str, row.values())) for row in fetched}
        return by_table
    finally:
        await connection.close()
