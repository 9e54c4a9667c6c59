"""How the whole system does now: lanes, workers, servers, dead letters, bulk jobs, the last audit.

It asks the brokers, Postgres and Redis, and reads what workers say of themselves (streams.reports). So it
tells what can be told while no worker lives.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack, aclosing
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import asyncpg
from aiokafka import TopicPartition
from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from audit.checkpoint import last_audit
from contracts.topics import DLQ, WORKERS
from errors import OrdersError
from operations.answers import failed
from operations.auditing import CHECKPOINTS
from queries.attention import attention_counts
from queries.databases import Databases
from queries.errors import Unavailable
from settings import Settings
from sinks.bulk import BulkJobs
from sinks.clients import ONCE, open_client
from sinks.refusals import told
from streams.control import ControlReader, Pause, held_by, span
from streams.lag import Lag, LagReader
from streams.levels import Level
from streams.reports import SECONDS_GOOD, LaneReport, WorkerReport, decode
from wire.log import LogReader

LATELY_SECONDS: Final = 3600.0
"""How far back dead letters are counted."""
MOST_LETTERS: Final = 10_000
"""Dead letters that are looked at by reason; more of them are only counted."""
FLOOD_SECONDS: Final = 600.0
FLOOD: Final = 100
"""More dead letters for one reason within FLOOD_SECONDS are a flood: OrdersDeadLettersFlood says the same."""
SERVER_SECONDS: Final = 3.0
"""Seconds that Postgres and Redis have for an answer."""
STILL_SECONDS: Final = 20.0
"""Seconds without progress after which a lane is told to stand still."""
UNREAD_SECONDS: Final = 30.0
"""Seconds for which a record may have waited before its lane is told to be behind."""


class LaneStatus(NamedTuple):
    """One lane. `worker` None: nobody has it, or whoever has it says nothing."""

    lane: int
    worker: str | None
    lag: int
    """Records that aren't committed, by the brokers."""
    oldest: float | None
    """Seconds since the brokers took the oldest unfinished record that its worker has; of a lane that nobody
    reads, or that is paused, the oldest one that isn't committed.
    """
    waiting: float | None
    """Seconds for which it has waited for a server."""
    still: float | None
    """Seconds for which its batch hasn't got on."""
    why: str | None
    """What it waits for."""
    held: int = 0
    """Those of its records that lie in topics that are paused."""
    paused: str | None = None
    """For how long it has been paused, by whom and why; None: it isn't."""
    rows_behind: int = 0
    """Its orders of which the rows in Postgres are older than they should be, or gone."""

    @property
    def problem(self) -> str | None:
        """What is wrong with it, for a person; None: nothing."""
        if self.rows_behind:
            return f"has {self.rows_behind:,} orders with old rows in Postgres, or none: orders repair --rows"
        if self.paused is not None:
            late = (
                ""
                if self.oldest is None
                else f"; {self.lag:,} records wait, the oldest for {self.oldest:.0f} s"
            )
            return f"is {self.paused}{late}"
        if self.waiting is not None:
            return f"waits for {self.waiting:.0f} s: {self.why}"
        if self.still is not None and self.still > STILL_SECONDS:
            return f"stands still for {self.still:.0f} s"
        if self.worker is None and self.lag:
            return "no worker has it"
        if self.oldest is not None and self.oldest > UNREAD_SECONDS:
            return f"is behind by {self.oldest:.0f} s"
        return None


class DeadLetters(NamedTuple):
    """Dead letters of the last LATELY_SECONDS. `reasons` counts the first MOST_LETTERS of them."""

    total: int
    reasons: dict[str, int]
    flood: dict[str, int]
    """The reasons of which more than FLOOD are no older than FLOOD_SECONDS, with how many are."""


class Status(NamedTuple):
    """Everything at one moment."""

    at: float
    """Seconds since 1970."""
    members: int
    """Members of the group, by its coordinator."""
    workers: list[WorkerReport]
    """Of those that said something lately, by name."""
    lanes: list[LaneStatus]
    servers: dict[str, str | None]
    """Server -> how it failed this command ("doesn't answer: ..."); None: it answered."""
    dead_letters: DeadLetters
    jobs: list[dict[str, Any]] | None
    """Bulk jobs that aren't done, the newest first; None: Postgres didn't tell."""
    audit: str | None
    """When the last audit on this machine that left a checkpoint began, RFC 3339."""
    paused: tuple[Pause, ...] = ()
    """The oldest first."""
    attention: dict[str, int] | None = None
    """Kind of what a person should look at -> how many orders it holds of; None: Postgres didn't tell."""
    log_levels: tuple[Level, ...] = ()
    """What orders log-level has set, the oldest first."""
    audit_broken: int = 0
    """Differences that this audit found."""

    @property
    def problems(self) -> list[str]:
        """What a person should look at, the worst first. Empty: all is well."""
        said = [f"{name} {why}" for name, why in self.servers.items() if why is not None]
        if not self.members:
            said.append("no worker is running: start one with orders worker")
        for each in self.workers:
            away = [told(server, since, each.refused.get(server)) for server, since in each.away.items()]
            said += [f"worker {each.worker}: {what}" for what in (each.stuck, *away, each.waits) if what]
        said += [f"{each} is {_lasting(each, self.at)}" for each in self.paused if each.kind != "lane"]
        said += [
            f"{count:,} records were refused within {span(FLOOD_SECONDS)}: {reason};"
            f" orders dlq list --reason {reason} --since 1h --by source --limit 5 says whose"
            for reason, count in self.dead_letters.flood.items()
        ]
        if self.audit_broken:
            said.append(f"the last audit found {self.audit_broken:,} differences: orders audit tells which")
        return said + [f"lane {lane.lane} {lane.problem}" for lane in self.lanes if lane.problem]


class StatusReader:
    """Looks again and again over the same connections. An async context manager; entering raises
    KafkaConnectionError when no broker answers.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            self._lag = await stack.enter_async_context(LagReader(self._settings))
            self._log = await stack.enter_async_context(LogReader(self._settings, "orders-status"))
            self._control = await stack.enter_async_context(ControlReader(self._settings))
            self._redis = await stack.enter_async_context(
                open_client(self._settings, timeout=SERVER_SECONDS, retry=ONCE)
            )
            self._jobs = await stack.enter_async_context(BulkJobs(self._settings, "orders-status"))
            self._databases = Databases(self._settings)
            stack.push_async_callback(self._databases.close)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def look(self) -> Status:
        """How everything does now.

        Blocks for round trips, and SERVER_SECONDS for each of Postgres and Redis while it is away. Raises
        TopicsMissing, KafkaError.
        """
        now = time.time()
        lag: Counter[int] = Counter()
        held: Counter[int] = Counter()
        pauses = await self._control.paused()
        topics = held_by(pauses)[1]
        positions = await self._lag.lag()
        for (topic, partition), position in positions.items():
            lag[partition] += position.lag
            held[partition] += position.lag if topic in topics else 0
        lanes = {each.name: _lasting(each, now) for each in pauses if each.kind == "lane"}
        workers = latest([report async for report in self._reports(now)], now)
        jobs, postgres = await self._bulk_jobs()
        redis = await self._redis_answers()
        of_lanes = [
            lane_status(lane, count, workers, now)._replace(held=held[lane], paused=lanes.get(str(lane)))
            for lane, count in sorted(lag.items())
        ]
        unread = {each.lane for each in of_lanes if each.lag and (each.paused or each.worker is None)}
        oldest = await self._oldest_of(unread, positions, now)
        audited, broken = last_audit(self._settings.data / CHECKPOINTS / self._settings.group)
        return Status(
            now,
            await self._lag.members(),
            workers,
            [each._replace(oldest=oldest.get(each.lane, each.oldest)) for each in of_lanes],
            {"kafka": None, "postgres": postgres, "redis": redis},
            await self._dead_letters(now),
            jobs,
            audited,
            pauses,
            await self._attention(),
            self._control.levels,
            broken,
        )

    async def _oldest_of(self, lanes: Collection[int], positions: Lag, now: float) -> dict[int, float]:
        """Of lanes that no worker reads: for how many seconds the brokers have the oldest record that isn't
        committed. Those that SERVER_SECONDS don't suffice for are left out.
        """
        oldest: dict[int, float] = {}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SERVER_SECONDS):
                for (topic, lane), position in positions.items():
                    if lane not in lanes or not position.lag:
                        continue
                    place = TopicPartition(topic, lane)
                    async with aclosing(self._log.read(place, position.committed, position.end)) as stretches:
                        async for records, _ in stretches:
                            if records:
                                age = max(0.0, now - records[0].timestamp / 1000)
                                oldest[lane] = max(age, oldest.get(lane, 0.0))
                                break
        return oldest

    async def _since(self, topic: str, seconds: float, now: float) -> dict[TopicPartition, tuple[int, int]]:
        """Of each partition the offset of the first record of the last `seconds`, and its end."""
        places = [TopicPartition(topic, number) for number in await self._log.partitions(topic)]
        starts = await self._log.since(places, int((now - seconds) * 1000))
        ends = await self._log.ends(places)
        return {place: (starts[place], ends[place]) for place in places}

    async def _reports(self, now: float) -> Any:
        for place, (start, end) in (await self._since(WORKERS, SECONDS_GOOD, now)).items():
            async with aclosing(self._log.read(place, start, end)) as stretches:
                async for records, _ in stretches:
                    for record in records:
                        report = decode(record.value)
                        if report is not None:
                            yield report

    async def _dead_letters(self, now: float) -> DeadLetters:
        count, left = 0, MOST_LETTERS
        reasons: Counter[str] = Counter()
        lately: Counter[str] = Counter()
        for place, (start, end) in (await self._since(DLQ, LATELY_SECONDS, now)).items():
            count += end - start
            async with aclosing(self._log.read(place, start, min(end, start + left))) as stretches:
                async for records, _ in stretches:
                    left -= len(records)
                    named = [
                        (record.timestamp, value.decode(errors="replace"))
                        for record in records
                        for name, value in record.headers
                        if name == "dlq_reason"
                    ]
                    reasons.update(reason for _, reason in named)
                    lately.update(reason for at, reason in named if at > (now - FLOOD_SECONDS) * 1000)
        flood = {reason: many for reason, many in lately.most_common() if many > FLOOD}
        return DeadLetters(count, dict(reasons.most_common()), flood)

    async def _bulk_jobs(self) -> tuple[list[dict[str, Any]] | None, str | None]:
        """Bulk jobs that aren't done, and why Postgres didn't tell."""
        try:
            async with asyncio.timeout(SERVER_SECONDS):
                rows = await self._jobs.jobs()
        except OrdersError as error:
            return None, failed(error)
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError) as error:
            self._jobs.drop()
            return None, failed(error)
        return [row for row in rows if row["completed_at"] is None], None

    async def _attention(self) -> dict[str, int] | None:
        try:
            async with asyncio.timeout(SERVER_SECONDS):
                return await attention_counts(self._databases)
        except (OrdersError, Unavailable, SQLAlchemyError, OSError, TimeoutError):
            return None  # that Postgres doesn't answer is told beside its name

    async def _redis_answers(self) -> str | None:
        try:
            await self._redis.ping()
        except (RedisError, OSError, OrdersError):
            try:  # the connection may be of before a restart
                await self._redis.ping()
            except (RedisError, OSError, OrdersError) as error:
                return failed(error)
        return None


def _lasting(pause: Pause, now: float) -> str:
    return f"paused for {span(pause.seconds(now))} by {pause.by}: {pause.why}"


def latest(reports: Sequence[WorkerReport], now: float) -> list[WorkerReport]:
    """The last report of each worker that is younger than SECONDS_GOOD, by name. Pure."""
    by_worker: dict[str, WorkerReport] = {}
    for report in sorted(reports, key=lambda each: each.at):
        if report.at / 1000 > now - SECONDS_GOOD:
            by_worker[report.worker] = report
    return [by_worker[name] for name in sorted(by_worker)]


def lane_status(lane: int, lag: int, workers: Sequence[WorkerReport], now: float) -> LaneStatus:
    """One lane by what the brokers and the workers say. Of two workers that say they have it, as for a moment
    in a rebalance, the one counts that spoke last. Pure.
    """
    held: tuple[int, str, LaneReport] | None = None
    for worker in workers:
        for report in worker.lanes:
            if report.lane == str(lane) and (held is None or held[0] < worker.at):
                held = (worker.at, worker.worker, report)
    if held is None:
        return LaneStatus(lane, None, lag, None, None, None, None)
    _, name, report = held
    oldest = None if report.oldest is None else max(0.0, now - report.oldest / 1000)
    return LaneStatus(
        lane,
        name,
        lag,
        oldest,
        report.waiting,
        report.still,
        report.why,
        rows_behind=report.rows_behind,
    )
