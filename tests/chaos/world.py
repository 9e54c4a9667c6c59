"""The topology of a run: servers, proxies, workers, load. And what faults need of it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psutil
from aiokafka.admin import AIOKafkaAdminClient
from redis.asyncio import Redis

from operations import secured
from settings import Settings
from sinks import migrate
from stack import Stack
from streams import topics
from tests import servers, stackfixture
from tests.chaos.load import Feeder, Load
from tests.chaos.pgwire import LostReplies
from tests.chaos.proxy import Proxy
from tests.chaos.watch import Watch
from tests.chaos.workers import Clock, Exit, Supervised
from tests.servers import SECURE, as_admin, kafka

SERVERS = frozenset(
    {
        "ORDERS_KAFKA",
        "ORDERS_POSTGRES",
        "ORDERS_POSTGRES_REPLICA",
        "ORDERS_REDIS",
        "ORDERS_DATA",
        "ORDERS_OLIST",
    }
)
"""What the harness sets itself. Every other ORDERS_* of its environment reaches the workers as it is."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How large a run is. `rate` is events a second; `settings` are further
    ORDERS_* values for the workers.
    """

    brokers: int = 3
    replica: bool = True
    workers: int = 3
    rate: float = 200.0
    settings: Mapping[str, str] | None = None


class World:
    """Everything that runs. Made by `world()`."""

    def __init__(
        self,
        folder: Path,
        stack: Stack,
        shape: Shape,
        seed: int,
        proxies: Mapping[str, Proxy],
        replies: LostReplies,
    ) -> None:
        self.folder = folder
        self.stack = stack
        self.shape = shape
        self.seed = seed
        self.clock = Clock()
        self.proxies = dict(proxies)
        self.replies = replies
        given = {
            name: value
            for name, value in os.environ.items()
            if name.startswith("ORDERS_") and name not in SERVERS
        }
        given |= shape.settings or {}
        self.direct = _without_orders() | given | stack.env
        """Environment of a process that goes straight to the servers."""
        self.through = self.direct | self._detoured()
        """Environment of the workers."""
        self.settings = settings_of(self.direct)
        self.load = Load(seed)
        self.feeder = Feeder(self.settings, self.load, shape.rate)
        (folder / "logs").mkdir(parents=True, exist_ok=True)
        self.workers = {
            name: self.worker(name) for name in (f"w{number}" for number in range(1, shape.workers + 1))
        }
        self.problems: list[str] = []
        """What should not have been. Empty at the end of a good run."""
        self.notes: list[str] = []
        """What a reader of the report wants to know."""
        self.visitors: list[Exit] = []
        """Ends of workers that were there for a fault only."""
        self.watch = Watch(self.settings, self.workers, self.clock, lambda: self.feeder.sent)

    @property
    def brokers(self) -> list[Proxy]:
        """The brokers' proxies, that of node 1 first."""
        return [self.proxies[f"kafka-{node}"] for node in range(1, self.shape.brokers + 1)]

    def worker(self, name: str, **env: str) -> Supervised:
        """A worker that isn't started yet."""
        return Supervised(name, self.through | env, self.folder / "logs", self.clock)

    def pid(self, server: str) -> int | None:
        """Of a server of the stack, by its name there. Looks through all processes when it is down."""
        return next(status.pid for status in self.stack.status if status.name == server)

    def port(self, server: str) -> int:
        """Where clients of a server go: on a secure stack to what ends TLS before it."""
        return _port(self.stack, server)

    async def kill(self, server: str, number: signal.Signals = signal.SIGKILL) -> None:
        """End a server by a signal and wait until it is gone."""
        pid = await asyncio.to_thread(self.pid, server)
        if pid is not None:
            os.kill(pid, number)
            await until(lambda: _ended(pid), f"{server} has ended")

    async def revive(self, server: str) -> None:
        """Start a server that is down and wait until it serves."""
        await asyncio.to_thread(self.stack.revive, server)

    async def heal(self) -> None:
        """Let every proxy forward and every server run, whatever was left undone."""
        for proxy in self.proxies.values():
            await proxy.heal()
        await asyncio.to_thread(Stack.start, self.stack.folder)

    @asynccontextmanager
    async def sql(self, url: str | None = None) -> AsyncIterator[asyncpg.Connection[asyncpg.Record]]:
        """A session straight to the primary."""
        connection = await asyncpg.connect(as_admin(url or self.settings.postgres), timeout=10)
        try:
            yield connection
        finally:
            with contextlib.suppress(Exception):
                await connection.close(timeout=5)

    @asynccontextmanager
    async def redis(self) -> AsyncIterator[Redis]:
        """Straight to Redis."""
        async with Redis.from_url(as_admin(self.settings.redis)) as client:
            yield client

    @asynccontextmanager
    async def kafka(self) -> AsyncIterator[AIOKafkaAdminClient]:
        """An admin client straight to the brokers."""
        admin = AIOKafkaAdminClient(**kafka(self.settings.brokers), request_timeout_ms=30_000)
        try:
            await admin.start()
            yield admin
        finally:
            await admin.close()

    async def leader(self, topic: str, partition: int) -> int:
        """Node that leads a partition."""
        async with self.kafka() as admin:
            [described] = await admin.describe_topics([topic])
        return int(next(each["leader"] for each in described["partitions"] if each["partition"] == partition))

    def controller(self) -> int:
        """Node that is the active controller, as the quorum's members have last noted."""
        newest = {"leaderEpoch": -1, "leaderId": 1}
        for node in range(1, self.shape.brokers + 1):
            with contextlib.suppress(OSError, ValueError):
                noted = json.loads(
                    (
                        self.stack.folder / "kafka" / str(node) / "data/__cluster_metadata-0/quorum-state"
                    ).read_text()
                )
                if noted["leaderEpoch"] > newest["leaderEpoch"] and noted["leaderId"] >= 0:
                    newest = noted
        return int(newest["leaderId"])

    async def orders(self, *arguments: str, timeout: float = 300.0) -> tuple[int, str, str]:
        """Run `orders ...` straight at the servers: exit code, stdout, stderr."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            "from cli.main import main; main()",
            *arguments,
            env=self.direct,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            out, err = await asyncio.wait_for(process.communicate(), timeout)
        except TimeoutError:
            process.kill()
            await process.wait()
            return 1, "", f"orders {' '.join(arguments)} took longer than {timeout:.0f} s"
        return process.returncode or 0, out.decode(), err.decode()

    async def audit(self) -> dict[str, Any]:
        """The auditor's report, with the exit code as `exit_code`; `clean` is False
        when it couldn't be made.
        """
        code, out, err = await self.orders("audit", "--full", "--json", timeout=900)
        try:
            report: dict[str, Any] = json.loads(out)
        except ValueError:
            report = {"clean": False, "error": err.strip()[-2000:]}
        return {**report, "exit_code": code, "clean": bool(report.get("clean")) and code == 0}

    async def begin(self) -> None:
        """Start the workers, wait until they share the work, start the load and the watch."""
        for worker in self.workers.values():
            worker.start()
        await until(
            lambda: all("worker ready" in worker.text() for worker in self.workers.values()),
            "the workers are ready",
            90,
        )
        self.watch.start()
        self.feeder.start()
        await until(lambda: self.feeder.sent > 200, "the load flows", 60)

    async def end(self) -> None:
        """End the workers and the watch."""
        await self.watch.close()
        await asyncio.gather(*(worker.down() for worker in self.workers.values()))

    def _detoured(self) -> dict[str, str]:
        def through(name: str, proxy: str) -> str:
            parts = urlsplit(servers.url(self.stack.env, name))
            return urlunsplit(
                parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{self.proxies[proxy].address}")
            )

        return {
            "ORDERS_KAFKA": ",".join(proxy.address for proxy in self.brokers),
            "ORDERS_POSTGRES": through("POSTGRES", "postgres"),
            "ORDERS_POSTGRES_FILE": "",
            "ORDERS_REDIS": through("REDIS", "redis"),
            "ORDERS_REDIS_FILE": "",
            "ORDERS_DATA": str(self.folder / "data"),
        }


@asynccontextmanager
async def world(
    folder: Path, seed: int, shape: Shape, say: Callable[[str], None] = lambda _: None
) -> AsyncIterator[World]:
    """Servers from packages in `folder`, proxies before them, topics and schema.
    Everything is stopped and the data deleted at the end; the logs stay, the servers' as `logs/servers`.
    """
    replies = LostReplies()
    async with AsyncExitStack() as opened:
        proxies = {
            name: Proxy(name)
            for name in ("redis", *(f"kafka-{node}" for node in range(1, shape.brokers + 1)))
        }
        proxies["postgres"] = Proxy("postgres", None if SECURE else replies.wire)
        for proxy in proxies.values():
            opened.push_async_callback(proxy.close)
        advertise = [proxies[f"kafka-{node}"].address for node in range(1, shape.brokers + 1)]
        stack = await asyncio.to_thread(
            Stack.start,
            folder / "stack",
            shape.brokers,
            shape.replica,
            users=secured.USERS if SECURE else (),
            advertise=advertise,
            progress=lambda message: say(message),
        )
        opened.callback(_leave, stack, folder / "logs" / "servers")
        opened.enter_context(stackfixture.administered(stack))
        if SECURE:
            await secured.allow(secured.settings_of(stack.admin), stack.users)
        for address, port in stack.detours.items():
            await proxies[f"kafka-{advertise.index(address) + 1}"].start(port)
        for name in ("postgres", "redis"):
            await proxies[name].start(_port(stack, name))
        here = World(folder, stack, shape, seed, proxies, replies)
        await topics.ensure(here.settings)
        await migrate.upgrade(here.settings)
        opened.push_async_callback(here.end)
        yield here


async def until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Wait for something that is asked without blocking. Raises TimeoutError that names it."""
    await until_awaited(_answered(condition), what, seconds)


async def until_awaited(condition: Callable[[], Awaitable[object]], what: str, seconds: float = 30.0) -> None:
    """The same for a condition that has to be awaited."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not await condition():
        if loop.time() > deadline:
            raise TimeoutError(f"after {seconds:.0f} s still not so: {what}")
        await asyncio.sleep(0.05)


def _answered(condition: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    async def asked() -> object:
        return condition()

    return asked


def settings_of(env: Mapping[str, str]) -> Settings:
    """The settings that a process with this environment has."""
    values = {
        name.removeprefix("ORDERS_").lower(): value
        for name, value in env.items()
        if name.startswith("ORDERS_")
    }
    return Settings.model_validate(
        {name: value for name, value in values.items() if name in Settings.model_fields}
    )


def _port(stack: Stack, server: str) -> int:
    name = f"{server}-tls" if SECURE else server
    return next(status.port for status in stack.status if status.name == name)


def _without_orders() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("ORDERS_")}


def _ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _leave(stack: Stack, logs: Path) -> None:
    """Keep the servers' logs, delete the rest."""
    logs.mkdir(parents=True, exist_ok=True)
    for status in stack.status:
        for log in (status.log, status.log.with_suffix(".log.1")):
            with contextlib.suppress(OSError):
                (logs / log.name).write_bytes(log.read_bytes()[-(4 << 20) :])
    stack.purge()
