"""One scene on real servers, workers and an audit, in which each alert has its cause and fires.

Each step makes a cause, waits until Prometheus says that its alerts fire, takes the cause away, and waits
until they are silent again. Before the first one, under healthy load, no alert fires.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Final
from urllib.parse import urlsplit, urlunsplit

import asyncpg
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from contracts.topics import CONTROL
from settings import Settings
from streams.control import Note, encode, key_of
from streams.lag import LagReader
from tests.alerts.monitoring import Monitoring, address, monitoring
from tests.chaos.load import Feeder, Load
from tests.chaos.proxy import Proxy
from tests.forked import Forked
from tests.servers import as_admin, kafka
from tests.waiting import eventually
from tests.workers import ORDERS, orders
from wire import clients
from workload import generator
from workload.poison import POISONS
from workload.producer import send

WORKERS: Final = ("w1", "w2")
RATE: Final = 10.0
"""Events a second."""
SESSION_SECONDS: Final = "15"
"""Longer than a lane may lack a worker."""
HEALTHY_SECONDS: Final = 10.0
DEADLINE_SECONDS: Final = 300.0
"""Deadline of what takes seconds on a machine that nobody else uses."""
FLOOD: Final = 150
UNREAD: Final = 4
"""Records that come to a partition while nobody reads it, before they are deleted."""
HOUR: Final = 3600.0
HANGS: Final = "TESTS_HANG"
"""Variable that names a file: while it is there, no batch of a worker gets on."""
DEFECT: Final = f"""
import asyncio, os
from pathlib import Path
from streams.pipeline import Pipeline
handle = Pipeline.handle
async def hanging(self, batch):
    while Path(os.environ["{HANGS}"]).exists():
        await asyncio.sleep(0.2)
    return await handle(self, batch)
Pipeline.handle = hanging
from cli.main import main
main()
"""

Step = Callable[["Scene"], Awaitable[None]]
STEPS: Final[dict[str, tuple[Step, frozenset[str]]]] = {}
"""Name -> the step and the alerts that fire in it, in their order."""
NOT_TRIED: Final[dict[str, str]] = {
    "OrdersRestarts": "nobody starts the scene's workers again",
    "OrdersNotReady": "neither orders api nor orders console runs in the scene",
    "OrdersRequestsFail": "neither orders api nor orders console runs in the scene",
}
"""Alerts that no step provokes, with the reason. docs/testing.md names them."""


def step(*alerts: str) -> Callable[[Step], Step]:
    """Decorator: the function is a step in which these alerts fire."""

    def register(act: Step) -> Step:
        STEPS[act.__name__] = act, frozenset(alerts)
        return act

    return register


@dataclass
class Scene:
    """What a step works with. `divisor`: see tests/alerts/monitoring.py."""

    settings: Settings
    folder: Path
    workers: Mapping[str, Forked]
    monitoring: Monitoring
    postgres: Proxy
    """The workers' way to Postgres."""
    audits_postgres: Proxy
    divisor: float
    audit: bool = False
    """Whether one follows."""
    fired: set[str] = field(default_factory=set)

    @property
    def hang(self) -> Path:
        """While this file is there, no batch gets on."""
        return self.folder / "hang"

    def seconds(self, threshold: float) -> float:
        """How long a threshold of the rules is here."""
        return threshold / self.divisor

    async def fire(self, *alerts: str, seconds: float = 0.0) -> None:
        """Wait until all of them fire. `seconds`: what their thresholds take."""

        async def all_of_them() -> bool:
            return set(alerts) <= await self.monitoring.firing()

        await self.until(all_of_them, f"{', '.join(alerts)} fire", seconds + DEADLINE_SECONDS)
        self.fired |= set(alerts)

    async def silent(self, *alerts: str, seconds: float = DEADLINE_SECONDS) -> None:
        """Wait until none of them fires."""

        async def none_of_them() -> bool:
            return not set(alerts) & await self.monitoring.firing()

        await self.until(none_of_them, f"{', '.join(alerts)} are silent", seconds)

    async def muted(self, alert: str, by: str) -> None:
        """Wait until Alertmanager mutes an alert, for another one that it doesn't mute."""

        async def is_muted() -> bool:
            muted = await self.monitoring.muted()
            return muted.get(alert) is True and muted.get(by) is False

        await self.until(is_muted, f"Alertmanager mutes {alert} for {by}", 30)

    async def refused(self, count: int) -> None:
        """Send so many records that have to be refused."""
        random = Random(count)
        kind = POISONS["truncated_json"]
        await send(self.settings, [kind.make(random) for _ in range(count)])

    async def paused(self, topic: str, seconds: float) -> None:
        """Note a pause that began so long ago; 0: its end."""
        began = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
        value = encode(Note(began, "anna@host", "a test")) if seconds else None
        producer = clients.producer(self.settings, "tests")
        await producer.start()
        try:
            await producer.send_and_wait(CONTROL, value, key_of("topic", topic), partition=0)
        finally:
            await producer.stop()

    async def until(self, condition: Callable[[], Awaitable[object]], what: str, seconds: float) -> None:
        """Wait until it holds. Raises AssertionError that says what fires instead."""
        try:
            await eventually(condition, what, seconds)
        except AssertionError as error:
            raise AssertionError(
                f"{error}; firing: {sorted(await self.monitoring.firing())},"
                f" rules that fail: {await self.monitoring.broken()}"
            ) from None


@asynccontextmanager
async def scene(settings: Settings, folder: Path, divisor: float, *, audit: bool) -> AsyncIterator[Scene]:
    """Two workers, load without refused records, who watches them, and perhaps an audit that follows.

    The servers are those of the fixture `fresh`, whose values are in the environment.
    """
    ways = Proxy("postgres"), Proxy("audit")
    at = urlsplit(settings.postgres.get_secret_value())
    environments = []
    for way in ways:
        await way.start(at.port or 0)
        there = urlunsplit(at._replace(netloc=f"{at.netloc.rpartition('@')[0]}@{way.address}"))
        environments.append({**os.environ, "ORDERS_POSTGRES": there, HANGS: str(folder / "hang")})
    targets = {name: address() for name in (*WORKERS, "audit")}
    feeder = Feeder(settings, Load(7, generator.Shares()), RATE)
    with ExitStack() as opened:

        def start(name: str, env: Mapping[str, str], *command: str) -> Forked:
            port = {"ORDERS_METRICS_PORT": targets[name].rpartition(":")[2]}
            process = Forked(command, folder / f"{name}.log", env={**env, **port})
            opened.callback(process.kill)
            return process

        env = environments[0] | {"ORDERS_SESSION_TIMEOUT": SESSION_SECONDS}
        workers = {name: start(name, env, *ORDERS[:2], DEFECT, "worker", "--name", name) for name in WORKERS}
        jobs = {"orders": [targets[name] for name in WORKERS]}
        if audit:
            start("audit", environments[1], *ORDERS, "audit", "--follow", "--interval", "1", "--sweep", "500")
            jobs["audit"] = [targets["audit"]]
        feeder.start()
        async with monitoring(folder / "monitoring", jobs, divisor) as watched:
            yield Scene(settings, folder, workers, watched, *ways, divisor, audit)
        await feeder.stop()
    for way in ways:
        await way.close()


# -- steps, in the order in which they are played ------------------------------------------------------------


async def lanes_open(on: Scene) -> None:
    """Wait until all lanes, and the audit, if there is one, have been collected from."""

    async def collected() -> bool:
        return await on.monitoring.value("count(orders_lane_lag_records)") == on.settings.partitions

    async def audited() -> bool:
        return bool(await on.monitoring.value("count(orders_audit_broken)"))

    await on.until(collected, "all lanes have a worker", DEADLINE_SECONDS)
    if on.audit:  # one that hasn't been through everything yet ends with its servers
        await on.until(audited, "the audit has been through everything", DEADLINE_SECONDS)


@step()
async def healthy_load(on: Scene) -> None:
    """Nothing fires, from when all lanes and the audit have been collected from."""
    await lanes_open(on)
    since = time.monotonic()

    async def silent_for_long() -> bool:
        nonlocal since
        if await on.monitoring.firing():  # on a machine that others use, a lane is late now and then
            since = time.monotonic()
        return time.monotonic() > since + HEALTHY_SECONDS

    await on.until(silent_for_long, f"no alert fires for {HEALTHY_SECONDS:.0f} s on end", DEADLINE_SECONDS)
    broken = await on.monitoring.broken()
    assert not broken, f"rules that fail: {broken}"


@step("OrdersDeadLetters")
async def a_dead_letter(on: Scene) -> None:
    await on.refused(1)
    await on.fire("OrdersDeadLetters")


@step("OrdersPausedLong")
async def a_topic_paused_for_an_hour(on: Scene) -> None:
    await on.paused("order.returned", HOUR)
    await on.fire("OrdersPausedLong")
    await on.paused("order.returned", 0)
    await on.silent("OrdersPausedLong", "OrdersDeadLetters")


@step("OrdersRowsBehind", "OrdersAuditBroken")
async def rows_deleted_by_hand(on: Scene) -> None:
    """And written again as the runbook says."""
    session = await asyncpg.connect(as_admin(on.settings.postgres))

    async def enough() -> bool:
        return bool(await session.fetchval("SELECT count(*) >= 20 FROM orders_order"))

    try:
        await on.until(enough, "there are twenty orders", DEADLINE_SECONDS)
        deleted = await session.execute(
            "DELETE FROM orders_order WHERE id IN (SELECT id FROM orders_order ORDER BY updated_at LIMIT 20)"
        )
    finally:
        await session.close()
    assert deleted == "DELETE 20"
    await on.fire("OrdersRowsBehind", "OrdersAuditBroken")
    done = await asyncio.to_thread(orders, "repair", "--rows")
    assert done.returncode == 0, done.stdout + done.stderr
    await on.silent("OrdersRowsBehind", "OrdersAuditBroken")


@step("OrdersDeadLettersFlood")
async def a_flood_of_dead_letters(on: Scene) -> None:
    await on.refused(FLOOD)
    await on.fire("OrdersDeadLettersFlood", "OrdersDeadLetters")
    await on.muted("OrdersDeadLetters", by="OrdersDeadLettersFlood")


@step("OrdersLaneStuck", "OrdersEventLoopLate")
async def a_defect_and_a_starved_worker(on: Scene) -> None:
    """Batches hang; and a worker gets no processor for almost half a second, again and again."""
    on.hang.touch()
    starving = asyncio.create_task(_starve(on.workers["w1"]))
    await on.fire("OrdersLaneStuck", "OrdersEventLoopLate", seconds=on.seconds(30))
    on.hang.unlink()
    starving.cancel()
    await asyncio.wait({starving})
    await on.silent("OrdersLaneStuck", "OrdersEventLoopLate", "OrdersDeadLettersFlood", "OrdersLaneLate")


async def _starve(worker: Forked) -> None:
    try:
        while True:
            worker.send_signal(signal.SIGSTOP)
            await asyncio.sleep(0.45)
            worker.send_signal(signal.SIGCONT)
            await asyncio.sleep(0.45)
    finally:
        worker.send_signal(signal.SIGCONT)


@step("OrdersServerAway", "OrdersLaneWaiting", "OrdersLaneLate", "OrdersRetries")
async def an_outage_of_postgres(on: Scene) -> None:
    await on.postgres.cut()
    alerts = ("OrdersServerAway", "OrdersLaneWaiting", "OrdersLaneLate", "OrdersRetries")
    await on.fire(*alerts, seconds=on.seconds(60) + 15)
    await on.muted("OrdersLaneWaiting", by="OrdersServerAway")
    await on.postgres.heal()
    await on.silent(*alerts)


@step("OrdersRewinds")
async def records_deleted_before_they_were_read(on: Scene) -> None:
    """In several partitions, while nobody reads them."""
    topics = ("order.created", "order.paid", "shipment.updated", "stock.reserved")
    for topic in topics:
        await on.paused(topic, 1)
    paused = len(topics) * len(on.workers)

    async def held() -> bool:
        return await on.monitoring.value("count(orders_paused)") == paused

    await on.until(held, "both workers hold them back", DEADLINE_SECONDS)
    async with LagReader(on.settings) as reader:
        ends = {place: at.end for place, at in (await reader.lag()).items() if place[0] in topics}
        left: dict[tuple[str, int], int] = {}

        async def enough() -> bool:
            # What a fetch under way at the pause has brought isn't read again.
            for place, at in (await reader.lag()).items():
                if at.end - ends.get(place, at.end) >= UNREAD:
                    left[place] = at.end
            return len(left) > 6

        await on.until(enough, "records wait in seven partitions", DEADLINE_SECONDS)
    admin = AIOKafkaAdminClient(**kafka(on.settings.brokers))
    await admin.start()
    try:
        await admin.delete_records(
            {TopicPartition(*place): RecordsToDelete(end - 1) for place, end in left.items()}
        )
    finally:
        await admin.close()
    for topic in topics:
        await on.paused(topic, 0)
    await on.fire("OrdersRewinds")


@step("OrdersAuditOld")
async def an_audit_without_postgres(on: Scene) -> None:
    await on.audits_postgres.cut()
    await on.fire("OrdersAuditOld", seconds=on.seconds(300) + 15)


@step("OrdersTargetDown", "OrdersLanesLost")
async def a_killed_worker(on: Scene) -> None:
    on.workers["w1"].kill()
    await on.fire("OrdersTargetDown", "OrdersLanesLost")


@step("OrdersNoWorker")
async def all_workers_killed(on: Scene) -> None:
    for each in on.workers.values():
        each.kill()
    await on.fire("OrdersNoWorker")


SHORT: Final = (
    healthy_load,
    a_dead_letter,
    a_topic_paused_for_an_hour,
    an_outage_of_postgres,
    a_killed_worker,
)
"""What `make test` plays."""


def chosen(names: str) -> dict[str, tuple[Step, frozenset[str]]]:
    """The steps in which the alerts `names` fire, separated by commas, in their order; all for no name. Pure.
    Raises ValueError for a name that no step provokes.
    """
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    unknown = wanted - alerts_of(STEPS)
    if unknown:
        raise ValueError(
            f"no step provokes {', '.join(sorted(unknown))}; known: {', '.join(sorted(alerts_of(STEPS)))}"
        )
    return {name: each for name, each in STEPS.items() if not wanted or each[1] & wanted}


def alerts_of(steps: Mapping[str, tuple[Step, frozenset[str]]]) -> set[str]:
    """The alerts that fire in these. Pure."""
    return {alert for _, alerts in steps.values() for alert in alerts}
