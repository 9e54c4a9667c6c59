"""Server processes: started detached, recognised beyond doubt, never mistaken for somebody else's.

A pid alone says nothing: after a crash or a reboot it may belong to anyone. A process is ours when its start
time is the one that was written down, or, where nothing was written down, when its name is the server's and
its command line names our folder.
"""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

import psutil

from stack.errors import SEE_BELOW, StackError, failed, last_of, tail

START_TIMEOUT = 90.0
"""Seconds until a server that is alive but not ready counts as failed: a laptop
under load, a log to recover.
"""

STOP_TIMEOUT = 20.0
"""Seconds between the polite signal and SIGKILL.
All three servers survive the latter; it costs a recovery at the next start.
"""

POLL = 0.03

_children_guard = Lock()
_children: list[subprocess.Popen[bytes]] = []
"""What this process started: kept so that an ended server is reaped instead of staying a zombie."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The identity of a server's process: its name, and a string that its command line holds."""

    comm: str
    marker: str

    def fits(self, process: psutil.Process) -> bool:
        """Tell whether this is the server's main process; False also if it is gone
        or we may not look at it.
        """
        try:
            if process.status() == psutil.STATUS_ZOMBIE or process.name() != self.comm:
                return False
            # Valkey writes its title over its arguments, as one string; so the arguments are
            # compared joined, at word ends.
            return f" {self.marker} " in f" {' '.join(process.cmdline())} "
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            return False


def birth(pid: int) -> str | None:
    """When a process started, in a form that no clock adjustment changes; None when
    there is no such process.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return f"ticks:{fields[19]}"
    except OSError:
        with suppress(psutil.NoSuchProcess):
            return f"time:{psutil.Process(pid).create_time():.2f}"
        return None


def find(identity: Identity, pid: int | None, born: str | None) -> int | None:
    """The pid of the server, or None when it does not run.
    The written pid is tried first, then all processes are looked through.
    """
    _reap()
    if pid is not None and born is not None and birth(pid) == born:
        with suppress(psutil.NoSuchProcess):
            if identity.fits(psutil.Process(pid)):
                return pid
    for process in psutil.process_iter():
        if identity.fits(process) and _could_be_ours(process):
            return int(process.pid)
    return None


def _could_be_ours(process: psutil.Process) -> bool:
    """Started by this user, or, as root, by anyone: Postgres then runs as another.
    Not one of the server's own forks.
    """
    try:
        if os.geteuid() != 0 and process.uids().effective != os.geteuid():
            return False
        parent = process.parent()
        return parent is None or parent.name() != process.name()
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    account: pwd.struct_passwd | None = None,
    umask: int = -1,
) -> subprocess.Popen[bytes]:
    """Start a server in a session of its own, its output in `log` (the last run's is kept as .1).
    Does not wait for it. `umask`: -1 is this process's.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    if log.exists():
        log.replace(log.with_suffix(".log.1"))
    with log.open("wb") as output:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **(env or {})},
            start_new_session=True,
            umask=umask,
            **_as(account),
        )
    with _children_guard:
        _children.append(child)
    return child


def run(
    argv: Sequence[str],
    *,
    what: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    account: pwd.struct_passwd | None = None,
    stdin: str = "",
) -> str:
    """Run a server's tool to its end and return what it wrote.
    Raises StackError with its last words when it fails.
    """
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            cwd=cwd,
            env={**os.environ, **(env or {})},
            timeout=START_TIMEOUT,
            check=False,
            **_as(account),
        )
    except subprocess.TimeoutExpired:
        raise StackError(
            f"{what} was not done after {START_TIMEOUT:.0f} s", "try again when the machine is less busy"
        ) from None
    if done.returncode:
        raise failed(f"{what} failed (exit code {done.returncode})", last_of(done.stdout), cwd, SEE_BELOW)
    return str(done.stdout)


def attempt(argv: Sequence[str], account: pwd.struct_passwd | None) -> str | None:
    """Run a short program in the root folder: None when it ends well, otherwise why
    it did not, in a few words.
    """
    try:
        done = subprocess.run(
            list(argv),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            check=False,
            **_as(account),
        )
    except OSError as error:
        return str(error.strerror)
    if done.returncode == 0:
        return None
    return str((done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1][:200])


def permitted(account: pwd.struct_passwd | None, folder: Path) -> bool:
    """Tell whether the account can enter a folder, and so each folder above it."""
    return attempt(["/bin/sh", "-c", 'test -x "$1"', "sh", str(folder)], account) is None


def lives(child: subprocess.Popen[bytes]) -> bool:
    """Tell whether a process that this one started still runs."""
    return child.poll() is None


def wait_ready(
    name: str,
    alive: Callable[[], bool],
    ready: Callable[[], bool],
    log: Path,
    *,
    must_live: bool = True,
    given_up: Event | None = None,
) -> bool:
    """Block until `ready()`. Raises StackError with the log's last lines when it takes too long,
    or when the process ends.

    False when `given_up` is set before, and, with must_live=False, when the process ends.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while not ready():
        if given_up is not None and given_up.is_set():
            return False
        if not alive():
            if not must_live:
                return False
            raise failed(f"{name} did not start", tail(log), log.parent, f"{SEE_BELOW} of {log}")
        if time.monotonic() > deadline:
            raise StackError(
                f"{name} was not ready after {START_TIMEOUT:.0f} s", f"{SEE_BELOW} of {log}", log=tail(log)
            )
        time.sleep(POLL)
    return True


def stop(pid: int, identity: Identity, polite: signal.Signals, *, timeout: float = STOP_TIMEOUT) -> None:
    """Ask the server to end, insist after `timeout` seconds, and return when it is gone.
    Nothing is signalled that does not fit.
    """
    try:
        process = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    for number, seconds in ((polite, timeout), (signal.SIGKILL, STOP_TIMEOUT)):
        if not identity.fits(process):
            return
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)  # psutil compares the start time once more before it sends
        if gone(process, seconds):
            return
    raise StackError(
        f"process {pid} ({identity.comm}) does not end, not even on SIGKILL", "see whether its disk hangs"
    )


def gone(process: psutil.Process, timeout: float) -> bool:
    """Block until a process has ended, `timeout` seconds at most; tell whether it has.

    One that has ended counts as gone though nobody asks for its exit code: in a container the first process
    often doesn't, and psutil's own wait would never return.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        _reap()
        if not process.is_running() or _fully_dead(process):
            return True
        time.sleep(POLL)
    return False


def _fully_dead(process: psutil.Process) -> bool:
    """Tell whether a process has ended, with all its threads: a JVM's first one is a zombie while others hold
    its files and ports."""
    try:
        return (
            process.status() == psutil.STATUS_ZOMBIE
            and process.num_threads() <= 1
            and process.ppid() != os.getpid()
        )
    except psutil.NoSuchProcess:
        return True


def wait_dying(pid: int | None, born: str | None) -> None:
    """Block until a process that is being torn down has let go of everything."""
    if pid is None or born is None or birth(pid) != born:
        return
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            gone(process, STOP_TIMEOUT)


def wait_left(folder: Path, comm: str, timeout: float = STOP_TIMEOUT) -> None:
    """Block until no process of that name works in `folder`; what stays is killed.

    A Postgres whose parent was killed leaves children that end by themselves, but not at once.
    Starting a second Postgres over them would be two writers on one folder.
    """
    deadline = time.monotonic() + timeout
    while remaining := _working_in(folder, comm):
        if time.monotonic() > deadline:
            for process in remaining:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
        if time.monotonic() > deadline + timeout:
            raise StackError(
                f"processes {[process.pid for process in remaining]} still work in {folder} and do not end",
                "end them, and run this again",
            )
        time.sleep(POLL)


def _working_in(folder: Path, comm: str) -> list[psutil.Process]:
    processes = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied, OSError):
            if (
                process.name() == comm
                and process.status() != psutil.STATUS_ZOMBIE
                and Path(process.cwd()) == folder
            ):
                processes.append(process)
    return processes


def cpu_seconds(pid: int) -> float:
    """CPU time of a process and all its children, ended ones included; 0 when it is gone."""
    try:
        process = psutil.Process(pid)
        total = 0.0
        for member in (process, *process.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                spent = member.cpu_times()
                total += spent.user + spent.system
        spent = process.cpu_times()
        return total + getattr(spent, "children_user", 0.0) + getattr(spent, "children_system", 0.0)
    except psutil.NoSuchProcess:
        return 0.0


def _reap() -> None:
    with _children_guard:
        _children[:] = [child for child in _children if child.poll() is None]


def _as(account: pwd.struct_passwd | None) -> dict[str, Any]:
    if account is None:
        return {}
    return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
