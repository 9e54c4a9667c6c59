"""Where a sweep's workers live and die: servers of one broker, proxies before
Postgres and Redis, a zygote.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.group import LeaveGroupRequest
from redis.asyncio import Redis

from contracts.topics import DECISIONS
from settings import Settings
from sinks.redis import checkpoint_key
from streams import topics
from streams.lag import LagReader, total
from tests.chaos.proxy import Proxy
from tests.chaos.sweep.zygote import Child, Zygote
from tests.chaos.world import settings_of
from tests.servers import admin, as_admin, kafka
from workload import generator
from workload.producer import send

Life = Child
"""One life of the worker that may die."""

NAME = "swept"
PATIENCE = 30.0
SHARES = generator.Shares(duplicates=0.1, shuffle=0.3, poison=0.05)
SETTINGS = {
    "ORDERS_PARTITIONS": "2",
    "ORDERS_BATCH_RECORDS": "10",
    "ORDERS_COMMIT_INTERVAL": "0.1",
    "ORDERS_RETRY_LONGEST": "0.2",
    "ORDERS_REDIS_TIMEOUT": "0.2",
}
"""Many small batches, many commits."""


FAR = 1_000_000_000
"""An offset that no log here has."""


class Dead(Exception):
    """The worker has died, as it was told to, or ended otherwise: the scene is over."""


class Arena:
    """See the module. Made by `arena()`. Its methods raise TimeoutError when something doesn't come about."""

    def __init__(
        self,
        settings: Settings,
        env: Mapping[str, str],
        folder: Path,
        zygote: Zygote,
        postgres: Proxy,
        redis: Proxy,
    ) -> None:
        self.settings = settings
        self.env = dict(env)
        self.data = Path(env["ORDERS_DATA"])
        self.postgres = postgres
        self.redis = redis
        self.lag = LagReader(settings)
        self.admin = AIOKafkaAdminClient(**kafka(settings.brokers))
        self._through = self.env | {
            "ORDERS_POSTGRES": _detoured(env["ORDERS_POSTGRES"], postgres),
            "ORDERS_REDIS": _detoured(env["ORDERS_REDIS"], redis),
        }
        self._folder = folder
        self._zygote = zygote
        self._events = generator.events(1_000_000, 5, SHARES)
        self._children: list[Child] = []

    # -- what scenes use -------------------------------------------------------------------------------------

    async def send(self, count: int) -> None:
        """So many events into the topics."""
        await send(self.settings, [next(self._events) for _ in range(count)])

    async def until(self, life: Life, condition: Callable[[], object], seconds: float = PATIENCE) -> None:
        """Wait for something. Raises Dead when the worker ends before."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + seconds
        while not condition():
            if life.ended.is_set():
                raise Dead
            if loop.time() > deadline:
                raise TimeoutError(f"not within {seconds:.0f} s; the worker's log: {life.log}")
            await asyncio.sleep(0.01)

    async def ready(self, life: Life) -> None:
        """Until it takes in records."""
        await self.until(life, lambda: "open, generation" in life.text())

    async def handled(self, life: Life) -> None:
        """Until the lag is 0."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while total(await self.lag.lag()):
            if life.ended.is_set():
                raise Dead
            if loop.time() > deadline:
                raise TimeoutError(f"the lag isn't 0 after {PATIENCE:.0f} s; the worker's log: {life.log}")
            await asyncio.sleep(0.01)

    async def decided(self) -> int:
        """How many decisions there are in the log."""
        return sum(
            position.end for (topic, _), position in (await self.lag.lag()).items() if topic == DECISIONS
        )

    async def passed(self, life: Life, decided: int) -> None:
        """Until so many decisions are in the log."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + PATIENCE
        while await self.decided() < decided:
            if life.ended.is_set():
                raise Dead
            if loop.time() > deadline:
                raise TimeoutError(
                    f"no {decided} decisions after {PATIENCE:.0f} s; the worker's log: {life.log}"
                )
            await asyncio.sleep(0.01)

    async def over(self, life: Life) -> None:
        """Until it has ended."""
        await asyncio.wait_for(life.ended.wait(), PATIENCE)

    async def companion(self) -> Child:
        """Another worker of the group."""
        child = await self._zygote.fork(["worker", "--name", "companion"], self.env, name="companion")
        self._children.append(child)
        return child

    async def cut(self) -> None:
        """Postgres and Redis are away."""
        await self.postgres.cut()
        await self.redis.cut()

    async def heal(self) -> None:
        """And back."""
        await self.postgres.heal()
        await self.redis.heal()

    @asynccontextmanager
    async def small_messages(self) -> AsyncIterator[None]:
        """Topics that workers write to take next to nothing."""
        names = ("suborder.updated", "order.status_changed", "orders.dlq")
        answers = await self.admin.describe_configs(
            [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        )
        own = {
            each[3]: {entry[0]: entry[1] for entry in each[4] if entry[3] == 1}
            for answer in answers
            for each in answer.resources
        }

        async def alter(change: dict[str, str]) -> None:
            await self.admin.alter_configs(
                [ConfigResource(ConfigResourceType.TOPIC, name, configs=own[name] | change) for name in names]
            )

        await alter({"max.message.bytes": "60"})
        try:
            yield
        finally:
            await alter({})

    # -- what the sweep uses ---------------------------------------------------------------------------------

    async def live(
        self,
        *,
        armed: tuple[str, str, int] | None = None,
        tweaks: tuple[str, ...] = (),
        env: dict[str, str] | None = None,
        fresh: bool = False,
        ahead: bool = False,
    ) -> Life:
        """Start the worker that may die.
        Redis has forgotten the script: whoever comes first has to bring it.
        """
        async with Redis.from_url(as_admin(self.settings.redis)) as redis:
            await redis.script_flush()
            for lane in range(self.settings.partitions) if ahead else ():
                await redis.set(checkpoint_key(self.settings, lane), b"0 0 %d" % FAR)
        if fresh:
            shutil.rmtree(self.data / NAME, ignore_errors=True)
        child = await self._zygote.fork(
            ["worker", "--name", NAME], self._through | (env or {}), armed=armed, tweaks=tweaks, name=NAME
        )
        self._children.append(child)
        return child

    async def drained(self) -> None:
        """Heal everything, and let a healthy worker handle the rest.
        Raises TimeoutError if it doesn't come to that.
        """
        await self.heal()
        for child in self._children:
            child.send(signal.SIGKILL)
            await child.ended.wait()
        self._children.clear()
        await self._bury()
        # It waits long for Redis: what the cache misses by that would be looked at too early.
        healthy = await self.live(env={"ORDERS_REDIS_TIMEOUT": "10"})
        try:
            await self.until(
                healthy, lambda: healthy.text().count("its cache is complete") >= self.settings.partitions
            )
            await self.handled(healthy)
        except Dead:
            raise TimeoutError(
                f"the healthy worker ended with {healthy.code}; its log: {healthy.log}"
            ) from None
        healthy.send(signal.SIGTERM)
        await self.over(healthy)
        if healthy.code != 0:
            raise TimeoutError(
                f"the healthy worker ended with {healthy.code} after SIGTERM; its log: {healthy.log}"
            )
        self._children.clear()

    async def mended(self) -> dict[str, Any]:
        """The same, and the auditor's report."""
        await self.drained()
        text = await self._told(["audit", "--full", "--json"])
        try:
            report: dict[str, Any] = json.loads(text[text.index("{") :])
        except ValueError:
            raise TimeoutError(f"the audit says: {text[-500:]}") from None
        return report

    async def reset(self) -> None:
        """Empty topics, tables, cache and local state."""
        await topics.delete_all(admin(self.settings))
        connection = await asyncpg.connect(self.settings.postgres.get_secret_value())
        try:
            await connection.execute("DROP SCHEMA IF EXISTS public CASCADE; CREATE SCHEMA public")
        finally:
            await connection.close()
        async with Redis.from_url(as_admin(self.settings.redis)) as redis:
            await redis.flushdb()
        shutil.rmtree(self.data, ignore_errors=True)
        # In a process of its own: Alembic keeps its state in a module, and several arenas share this process.
        await self._told(["init"])

    async def _told(self, arguments: list[str], seconds: float = 120.0) -> str:
        """What a command says. Raises TimeoutError if it says nothing."""
        child = await self._zygote.fork(arguments, self.env, name=arguments[0])
        await asyncio.wait_for(child.ended.wait(), seconds)
        text = child.text()
        if not text:
            raise TimeoutError(f"orders {' '.join(arguments)} ended with {child.code} and said nothing")
        return text

    async def _bury(self) -> None:
        """Tell the group that dead members have left: it would wait for their session's end."""
        [response] = await self.admin.describe_consumer_groups([self.settings.group])
        coordinator = await self.admin.find_coordinator(self.settings.group)
        for group in response.groups:
            for member in group[5]:
                await self.admin._send_request(LeaveGroupRequest(self.settings.group, member[0]), coordinator)


@asynccontextmanager
async def arena(env: Mapping[str, str], folder: Path) -> AsyncIterator[Arena]:
    """On servers that run (ORDERS_*: addresses, ORDERS_DATA, ORDERS_GROUP). Topics and schema are emptied."""
    env = {**env, **SETTINGS}
    settings = settings_of(env)
    async with AsyncExitStack() as opened:
        postgres, redis = Proxy("postgres"), Proxy("redis")
        for proxy, url in ((postgres, env["ORDERS_POSTGRES"]), (redis, env["ORDERS_REDIS"])):
            opened.push_async_callback(proxy.close)
            port = urlsplit(url).port
            assert port is not None
            await proxy.start(port)
        zygote = await opened.enter_async_context(Zygote(folder / "lives"))
        here = Arena(settings, env, folder, zygote, postgres, redis)
        await here.admin.start()
        opened.push_async_callback(here.admin.close)
        await opened.enter_async_context(here.lag)
        await here.reset()
        yield here


def _detoured(url: str, proxy: Proxy) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{proxy.address}"))
