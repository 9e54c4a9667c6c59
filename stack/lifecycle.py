"""A stack as a whole: started, recognised, asked and stopped. `Stack` is all that others need."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

from stack import folders, kafka, logins, processes
from stack.errors import StackError, tail
from stack.kafka import Broker
from stack.logins import Front
from stack.postgres import Primary, Replica
from stack.servers import Server
from stack.state import State
from stack.valkey import Valkey

BROKERS = (1, 3)

Progress = Callable[[str], None]


def _silent(message: str) -> None:
    """Progress for those who did not ask for any."""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One server as `orders stack status` tells it. `pid` is None when it does not run."""

    name: str
    kind: str
    port: int
    pid: int | None
    log: Path

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self.pid is not None


class Stack:
    """The servers of one folder.

    Every method blocks, from milliseconds (env, status) to seconds (start, stop), and raises StackError with
    one sentence that says what to do, followed by the log's last lines when a server is at fault. Several
    stacks in several folders do not know of each other.
    """

    def __init__(self, folder: Path, state: State, progress: Progress = _silent) -> None:
        self.folder = folder
        self._state = state
        self._progress = progress

    # -- starting and stopping -------------------------------------------------------------------------------

    @classmethod
    def start(
        cls,
        dir: Path,
        brokers: int | None = None,
        replica: bool = False,
        *,
        users: Sequence[str] = (),
        advertise: Sequence[str] = (),
        progress: Progress = _silent,
    ) -> Stack:
        """Start what does not run yet of the folder's servers and return when all of them serve; 4
        s, 10 s with three brokers.

        `brokers` is 1 or 3, None: as many as the folder's stack has, 1 for a new one. What an unclean end
        left behind is mended. When one server fails, those that this call started are stopped again.

        `users`: names of those who may come in, to a new stack. With any, everything speaks TLS, and nobody
        else comes in but an administrator (`admin`), who has to give them their rights. Later starts may
        leave them away.

        `advertise`: a host:port for each broker. Each then has a second listener whose clients are told that
        address instead of the broker's own: for clients that come through a proxy, a tunnel or a container's
        network. `detours` names the listeners' ports.
        """
        folder = dir.absolute()
        _make(folder)
        with _locked(folder):
            state = State.load(folder / "stack.json")
            if state is not None and state.path.stat().st_uid != os.geteuid():
                raise folders.refused(folder)  # root's files in it would shut its owner out
            if state is None:
                state = State(path=folder / "stack.json", brokers=_checked(brokers or 1))
            elif brokers is not None and _checked(brokers) != state.brokers:
                raise StackError(
                    f"the stack in {dir} has {state.brokers} broker(s), which cannot be changed",
                    f"use another --dir, or delete this one with: orders stack down --purge --dir {dir}",
                )
            _give(users, state, dir)
            state.replica = state.replica or replica
            if advertise:
                if len(advertise) != state.brokers:
                    raise StackError(
                        f"{len(advertise)} addresses are to be advertised by {state.brokers} broker(s)",
                        "name one for each",
                    )
                state.advertise = list(advertise)
            stack = cls(folder, state, progress)
            stack._start(stack._servers())
            return stack

    @classmethod
    def open(cls, dir: Path) -> Stack:
        """The stack that was started in the folder, running or not.
        Raises StackError when there never was one.
        """
        folder = dir.absolute()
        state = State.load(folder / "stack.json")
        if state is None:
            raise StackError(f"there is no stack in {dir}", f"start one with: orders stack up --dir {dir}")
        return cls(folder, state)

    def revive(self, name: str) -> None:
        """Start one server of the stack that is down, and leave the others as they are.
        Returns when it serves.
        """
        with _locked(self.folder):
            self._state = State.load(self._state.path) or self._state
            server = next((each for each in self._servers() if each.name == name), None)
            if server is None:
                raise StackError(
                    f"the stack in {self.folder} has no server {name}", "orders stack status names them"
                )
            self._start([server])

    def stop(self) -> None:
        """Stop every server; the data stays. Harmless when nothing runs."""
        with _locked(self.folder):
            self._state = State.load(self._state.path) or self._state
            self._stop(self._servers())

    def purge(self) -> None:
        """Stop every server and delete the data."""
        self.stop()
        home = Path(self._state.postgres_home or self.folder / "postgres")
        for path in (home, self.folder):
            if path.exists():
                shutil.rmtree(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- asking ----------------------------------------------------------------------------------------------

    @property
    def env(self) -> dict[str, str]:
        """The ORDERS_* values that lead a process to these servers; to secure ones as the first user."""
        return self.env_of(next(iter(self._state.users), logins.ADMIN))

    @property
    def admin(self) -> dict[str, str]:
        """The same for who may do everything. In a stack that isn't secure everybody may."""
        return self.env_of(logins.ADMIN)

    def env_of(self, user: str) -> dict[str, str]:
        """The same for one user. Raises StackError if there is none of this name."""
        if user not in (*self._state.users, logins.ADMIN):
            known = ", ".join((*self._state.users, logins.ADMIN))
            raise StackError(
                f"the stack in {self.folder} has no user {user}",
                f"it has {known}" if self._state.users else "it has none, as it isn't secure",
            )
        nodes = range(1, self._state.brokers + 1)
        values = {
            "ORDERS_KAFKA": ",".join(
                f"127.0.0.1:{self._state.port(kafka.node_name(node), 'port')}" for node in nodes
            ),
            "ORDERS_DATA": str(self.folder / "workers"),
        }
        if self._state.users:
            return values | logins.environment(self._state, user)
        values |= {"ORDERS_POSTGRES": self._primary.url, "ORDERS_REDIS": self._cache.url}
        if self._state.replica:
            values["ORDERS_POSTGRES_REPLICA"] = Replica(self.folder, self._state, self._primary).url
        return values

    @property
    def users(self) -> dict[str, str]:
        """Name -> password, of those who may come in to a secure stack, the administrator left out."""
        return dict(self._state.users)

    @property
    def detours(self) -> dict[str, int]:
        """Advertised host:port -> the port on 127.0.0.1 of the listener that is told by it.
        Empty without `advertise`.
        """
        names = [kafka.node_name(node) for node in range(1, self._state.brokers + 1)]
        return {
            address: self._state.port(name, "detour")
            for address, name in zip(self._state.advertise, names, strict=False)
        }

    @property
    def status(self) -> list[ServerStatus]:
        """Every server and whether it runs."""
        return [
            ServerStatus(server.name, server.kind, record.ports.get("port", 0), self._pid(server), server.log)
            for server in self._servers()
            if (record := self._state.servers.get(server.name)) is not None
        ]

    @property
    def running(self) -> bool:
        """Whether all servers run."""
        states = self.status
        return bool(states) and all(status.running for status in states)

    @property
    def pids(self) -> dict[str, list[int]]:
        """kafka, postgres, redis -> pids of the main processes that run.
        A Postgres has children besides: see cpu_seconds.
        """
        pids: dict[str, list[int]] = {}
        for status in self.status:
            members = pids.setdefault(status.kind, [])
            if status.pid is not None:
                members.append(status.pid)
        return pids

    def cpu_seconds(self) -> dict[str, float]:
        """kafka, postgres, redis -> seconds of CPU that they used since their start, children included."""
        return {kind: sum(map(processes.cpu_seconds, members)) for kind, members in self.pids.items()}

    # -- inside ----------------------------------------------------------------------------------------------

    @property
    def _primary(self) -> Primary:
        return Primary(self.folder, self._state)

    @property
    def _cache(self) -> Valkey:
        return Valkey("redis", self.folder, self._state)

    def _brokers(self) -> list[Server]:
        return [
            Broker(node, self.folder, self._state, self._progress)
            for node in range(1, self._state.brokers + 1)
        ]

    def _databases(self) -> list[Server]:
        primary = self._primary
        return [primary, Replica(self.folder, self._state, primary)] if self._state.replica else [primary]

    def _fronts(self) -> list[Front]:
        return [Front(server) for server in (*self._databases(), self._cache)] if self._state.users else []

    def _servers(self) -> list[Server]:
        return [*self._brokers(), *self._databases(), self._cache, *self._fronts()]

    def _pid(self, server: Server) -> int | None:
        record = self._state.servers.get(server.name)
        return processes.find(
            server.identity, record.pid if record else None, record.born if record else None
        )

    def _runs(self, server: Server) -> bool:
        return self._pid(server) is not None

    def _start(self, servers: list[Server]) -> None:
        down = [server for server in servers if not self._adopted(server)]
        for server in down:
            self._state.assign(server.name, server.purposes)
        self._state.save()
        if self._state.users:
            logins.prepare(self._state)
            logins.hand_out(self._state, {each.server.name: each.address for each in self._fronts()})
        if not down:
            return
        started: list[Server] = []
        given_up = Event()
        # Kafka takes longest, so its nodes begin at once; the replica is made from its primary, so
        # those two follow each other.
        groups = [[server] for server in down if server.kind != "postgres"]
        groups.append([server for server in down if server.kind == "postgres"])
        with ThreadPoolExecutor(max_workers=len(groups)) as pool:
            futures = [pool.submit(self._start_each, group, started, given_up) for group in groups]
            failures = [error for future in futures if (error := future.exception()) is not None]
        if failures:
            self._stop(started)
            raise failures[0]

    def _start_each(self, group: list[Server], started: list[Server], given_up: Event) -> None:
        try:
            for server in group:
                self._progress(f"starting {server.name}")
                processes.wait_dying(
                    self._state.servers[server.name].pid, self._state.servers[server.name].born
                )
                server.prepare()
                child = server.launch()
                started.append(server)
                self._write_pid(server, child.pid)
                if not processes.wait_ready(
                    server.name, partial(processes.lives, child), server.ready, server.log, given_up=given_up
                ):
                    return
                self._progress(f"{server.name} serves on port {server.port}")
        except BaseException:
            given_up.set()  # without this one the others are of no use: nobody waits for them
            raise

    def _adopted(self, server: Server) -> bool:
        """Tell whether a server runs already, and wait for one that is starting or stopping."""
        pid = self._pid(server)
        if pid is None:
            return False
        if (
            server.name not in self._state.servers
            or not server.purposes <= self._state.servers[server.name].ports.keys()
        ):
            processes.stop(pid, server.identity, server.polite)  # nobody knows its ports any more
            return False
        if not processes.wait_ready(
            server.name, partial(self._runs, server), server.ready, server.log, must_live=False
        ):
            return False
        self._write_pid(server, pid)
        return True

    def _write_pid(self, server: Server, pid: int | None) -> None:
        def change(state: State) -> None:
            record = state.servers[server.name]
            record.pid, record.born = pid, processes.birth(pid) if pid is not None else None

        self._state.change(change)

    def _stop(self, servers: list[Server]) -> None:
        running = [(server, pid) for server in servers if (pid := self._pid(server)) is not None]
        if running:
            with ThreadPoolExecutor(max_workers=len(running)) as pool:
                stops = [
                    pool.submit(partial(processes.stop, pid, server.identity, server.polite))
                    for server, pid in running
                ]
            for stop in stops:
                stop.result()
        for server in servers:
            if server.name in self._state.servers:
                self._write_pid(server, None)


def _checked(brokers: int) -> int:
    if brokers not in BROKERS:
        raise StackError(f"a stack has 1 or 3 brokers, not {brokers}", "give --brokers 1 or 3")
    return brokers


def _give(users: Sequence[str], state: State, dir: Path) -> None:
    """Write down the users of a new stack. Raises StackError if there are others, or none, already."""
    if state.servers or not users:
        if set(users) - set(state.users):
            raise StackError(
                f"the stack in {dir} {'has other users' if state.users else 'is not secure'}, which cannot be"
                " changed",
                f"use another --dir, or delete this one with: orders stack down --purge --dir {dir}",
            )
        return
    state.users = {user: secrets.token_hex(16) for user in users}


def _make(folder: Path) -> None:
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(folder).decode(errors="replace")
        raise StackError(
            f"the name of {shown} is not UTF-8, as Kafka needs it", "choose another folder with --dir"
        ) from error
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except FileExistsError as error:
        raise StackError(f"{folder} is a file", "name a folder with --dir") from error
    except OSError as error:
        raise folders.refused(folder, error) from error


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder: one start or stop at a time. The system lets go of it when its holder dies."""
    try:
        file = (folder / "lock").open("w")
    except OSError as error:
        raise folders.refused(folder, error) from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


__all__ = ["BROKERS", "ServerStatus", "Stack", "tail"]
