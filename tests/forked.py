"""Python programs as processes of their own, forked from one that has imported everything: a start costs
milliseconds instead of a second of a core.

What is forked is a process like any other: it has its own memory, files and signals, and can be killed.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from multiprocessing.context import ForkServerContext
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

from cli.main import SUBCOMMANDS

ROOT = Path(__file__).parent.parent

_PACKAGES = ("audit", "operations", "queries", "sinks", "streams")
"""What commands import when they run."""
IMPORTED = (
    *("app", "cli.logs", "uvloop", "pytest"),
    *(each.module for each in SUBCOMMANDS),
    *(each.name for package in _PACKAGES for each in walk_packages([str(ROOT / package)], f"{package}.")),
    "tests.frozen",
)
"""What the process that is forked has imported. None of it reads settings when it is imported."""


@cache
def server() -> ForkServerContext:
    """multiprocessing's, whose processes are forked from one without threads: of a process with some, a fork
    can wait for ever for a lock that one of them held.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(IMPORTED))
    return context


class Forked:
    """A process, as far as tests use subprocess.Popen."""

    def __init__(
        self,
        command: Sequence[str],
        out: Path,
        err: Path | None = None,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        stdin: Path | None = None,
    ) -> None:
        """`command` begins with (sys.executable, "-c", code). `out` and `err` are appended to; without `err`
        both go to `out`. `env`, `cwd`: without them those of this process.
        """
        assert command[:2] == (sys.executable, "-c"), command
        self.out, self.err = out, err or out
        files = (stdin or Path(os.devnull), self.out, self.err)
        for path in files[1:]:
            path.touch()
        environment = dict(os.environ if env is None else env)
        self.args = command
        self._process = server().Process(
            target=_run, args=(command[2], command[3:], files, environment, cwd or Path.cwd()), daemon=True
        )
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Below 0: the signal that ended it."""
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return self._process.exitcode

    async def ended(self) -> int:
        """Its exit code, when it has ended."""
        loop, over = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(self._process.sentinel, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(self._process.sentinel)
        return self.wait()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


def run(
    command: Sequence[str],
    *,
    timeout: float = 180,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: bytes | None = None,
) -> subprocess.CompletedProcess[str]:
    """subprocess.run with its output captured as text. Raises subprocess.TimeoutExpired, having killed it."""
    with tempfile.TemporaryDirectory() as folder:
        out, err, given = (Path(folder, name) for name in ("out", "err", "in"))
        if stdin is not None:
            given.write_bytes(stdin)
        process = Forked(command, out, err, env=env, cwd=cwd, stdin=given if stdin is not None else None)
        try:
            code = process.wait(timeout)
        finally:
            process.kill()
        return subprocess.CompletedProcess(command, code, out.read_text(), err.read_text())


def _run(
    code: str, arguments: Sequence[str], files: Sequence[Path], env: Mapping[str, str], folder: Path
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    appended = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, (path, flags) in enumerate(zip(files, (os.O_RDONLY, appended, appended), strict=True)):
        opened = os.open(path, flags, 0o666)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin, sys.stdout = os.fdopen(0, closefd=False), os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    sys.argv = ["-c", *arguments]
    random.seed()
    program: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(code, "<string>", "exec"), program)
