"""The workers and their supervisor: starts again whoever ended, as systemd or Kubernetes would, and
writes down how each one ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.forked import Forked

COMMAND = (sys.executable, "-c", "from cli.main import main; main()", "worker", "--name")
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 5.0
SETTLED = 15.0
"""Seconds that a worker has to live for the next pause to be the first one again."""


@dataclass(frozen=True, slots=True)
class Exit:
    """How a worker ended. Times are seconds since the run began; `code` is negative for a signal; `asked`
    for: by us, with that signal.
    """

    worker: str
    pid: int
    at: float
    lived: float
    code: int
    asked: str | None
    seconds: float | None = None
    """From SIGTERM to the end."""


class Supervised:
    """One worker, started again and again. `log` holds all its lives, one after the other."""

    def __init__(
        self, name: str, env: Mapping[str, str], folder: Path, clock: Clock, command: Sequence[str] = COMMAND
    ) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self.exits: list[Exit] = []
        self.env = dict(env)
        self._command = (*command, name)
        self._clock = clock
        self._process: Forked | None = None
        self._task: asyncio.Task[None] | None = None
        self._wanted = False
        self._asked: tuple[str, float] | None = None
        self._began = 0.0
        self._ended = asyncio.Event()

    @property
    def pid(self) -> int | None:
        """None while it is between two lives."""
        return self._process.pid if self._process is not None and self._process.returncode is None else None

    @property
    def data(self) -> Path:
        """Its local state."""
        return Path(self.env["ORDERS_DATA"]) / self.name

    @property
    def rss(self) -> int | None:
        """Bytes of resident memory."""
        if self.pid is None:
            return None
        try:
            return int(psutil.Process(self.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return None

    def text(self, start: int = 0) -> str:
        """Its log from a byte position on."""
        try:
            with self.log.open("rb") as file:
                file.seek(start)
                return file.read().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def size(self) -> int:
        """Bytes of log so far."""
        return self.log.stat().st_size if self.log.exists() else 0

    def start(self) -> None:
        """Begin, or go on, keeping it alive."""
        self._wanted = True
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._keep(), name=f"supervisor of {self.name}")

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it lives. SIGKILL and SIGTERM are noted as asked for."""
        if self.pid is None:
            return
        if number in (signal.SIGKILL, signal.SIGTERM):
            self._asked = (number.name, time.monotonic())
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    async def ended(self, seconds: float) -> Exit | None:
        """Wait for the end of this life. None if it goes on longer than `seconds`."""
        if self.pid is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), seconds)
            if not self._ended.is_set():
                return None
        return self.exits[-1] if self.exits else None

    async def down(self, number: signal.Signals = signal.SIGKILL, seconds: float = 60.0) -> Exit | None:
        """End it, and don't start it again until `start`. None if it had to be killed after `seconds`."""
        self._wanted = False
        self.send(signal.SIGCONT)
        self.send(number)
        outcome = await self.ended(seconds)
        if self.pid is not None:
            self.send(signal.SIGKILL)
            await self.ended(10)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        return outcome

    def _request(self) -> tuple[str, float] | None:
        """By which signal this life was asked to end, and when."""
        return self._asked

    async def _keep(self) -> None:
        pause = FIRST_PAUSE
        while self._wanted:
            self._began = time.monotonic()
            self._ended.clear()
            self._asked = None
            process = self._process = await asyncio.to_thread(Forked, self._command, self.log, env=self.env)
            with self.log.open("ab") as out:
                out.write(f"--- {time.strftime('%H:%M:%S')} pid {process.pid} starts\n".encode())
            try:
                code = await process.ended()
            except asyncio.CancelledError:
                process.kill()
                raise
            lived = time.monotonic() - self._began
            asked = self._request()
            self.exits.append(
                Exit(
                    self.name,
                    self._process.pid,
                    self._clock.now(),
                    lived,
                    code,
                    asked[0] if asked else None,
                    time.monotonic() - asked[1] if asked and asked[0] == "SIGTERM" else None,
                )
            )
            with self.log.open("ab") as out:
                out.write(
                    f"--- {time.strftime('%H:%M:%S')} pid {self._process.pid} ended with {code}\n".encode()
                )
            self._ended.set()
            if lived > SETTLED:
                pause = FIRST_PAUSE
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)


class Clock:
    """Seconds since the run began."""

    def __init__(self) -> None:
        self._began = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self._began
