"""Worker processes for tests, and what the whole pipeline is asked for afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import asyncpg

from settings import Settings
from tests.waiting import until

ORDERS = (sys.executable, "-c", "from cli.main import main; main()")
TABLES = ("orders_order", "orders_order_item", "orders_shipment", "orders_return")


class Worker:
    """One worker process. Its log is in `log`."""

    def __init__(self, log: Path, command: Sequence[str]) -> None:
        self.log = log
        with log.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=dict(os.environ))

    def ready(self) -> bool:
        """Whether it takes in records. Fails the test if it has ended."""
        assert self.process.poll() is None, f"the worker ended with {self.process.returncode}:\n{self.text()[-3000:]}"
        return "worker ready" in self.text() or "Worker ready" in self.text()

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; returns the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(45)


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
    return subprocess.run((*ORDERS, *arguments), capture_output=True, text=True, timeout=timeout, env=dict(os.environ))


def processed(*, cache: bool = True) -> None:
    """Wait until the lag is 0, and unless Redis is away until the cache is complete."""
    done = orders("wait", "--timeout", "120", "--json", *(() if cache else ("--no-cache",)))
    assert done.returncode == 0, done.stdout + done.stderr


def audit() -> dict[str, Any]:
    """The auditor's report; fails the test unless every invariant holds."""
    done = orders("audit", "--json")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    report: dict[str, Any] = json.loads(done.stdout)
    return report


async def rows(settings: Settings, *, physical: bool = False) -> dict[str, dict[Any, Any]]:
    """Every row of the four tables by (id, order); with `physical` including where it lies, so that a rewritten row shows."""
    connection = await asyncpg.connect(settings.postgres.get_secret_value())
    try:
        where = "tableoid, xmin, ctid, " if physical else ""
        found: dict[str, dict[Any, Any]] = {}
        for table in TABLES:
            key = "id" if table == "orders_order" else "order_id"
            fetched = await connection.fetch(f"SELECT {where}t.* FROM {table} t")
            found[table] = {(row["id"], row[key]): tuple(str(value) for value in row.values()) for row in fetched}
        return found
    finally:
        await connection.close()
