"""The bulk worker: it takes parts of jobs from the bulk topics and publishes their events on the ordinary
topics, paced.

    part ─► decode ─► publish, paced ─► orders_bulk_job ─► bulk.completed after the last ─► commit

Every step is acknowledged before the next one, so a crash anywhere repeats the part, and nothing of it is
lost. Repeated events have the same ids and natural keys, and change nothing. It is no lane: it has a consumer
group of its own, so that a part never delays an interactive event. Its pace is what interactive events leave
(streams.pace). Its failures follow the same policy as the lanes' (streams.transport.delivery).
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable
from datetime import UTC
from itertools import groupby
from operator import itemgetter
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError, RebalanceInProgressError
from mode import Service

from contracts import bulk
from contracts.errors import RECORD_TOO_LARGE, UNREADABLE, Refused
from contracts.record_id import RecordId
from contracts.topics import BULK, BULK_COMPLETED, DLQ
from domain import events
from settings import Settings
from streams import metrics
from streams.bulk_health import LANE, BulkHealth
from streams.bulk_spans import PartSpans
from streams.control import Control, held_by
from streams.dead_letters import letter_of, raw_value
from streams.lag import LagReader, total
from streams.pace import LOOK, Pace, Seen
from streams.partitioner import partition_of
from wire import clients, unreadable

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

log = logging.getLogger(__name__)

T = TypeVar("T")

TICK: Final = 0.05
"""Seconds of events that leave at once.
What leaves together is in front of what comes next; what leaves apart is a batch each.
"""
FETCH_MS: Final = 500
"""Milliseconds after which it is looked at anew what is paused."""
MAKE_UP: Final = 0.25
"""Seconds that are made up for, of those in which events were due and none left: about what a part takes
beside its events. No more, for it would be a burst.
"""
IDLE: Final = 5.0
"""Seconds without an event after which nobody looks at the group any more: a look isn't free for the broker.
"""
PATIENCE: Final = 5.0
"""Seconds that a look may take before the group counts as out of sight."""
BLIND: Final = 30.0
"""Seconds out of sight after which all connections are made anew."""
BATCH_BYTES: Final = 512 << 10
"""Bytes of a record batch; a larger record has one of its own."""
DAY_MS: Final = 24 * 3600 * 1000


class Unpacker:
    """Unpacks until it is cancelled. An async context manager: opened, it is in the group.
    Used once; see unpack().
    """

    def __init__(self, settings: Settings, health: BulkHealth, tracer: Tracer | None = None) -> None:
        self._settings = settings
        self._health = health
        self._control = health.control
        self._delivery = health.delivery
        self._jobs = health.jobs
        self._spans = PartSpans(tracer, settings.bulk_group)
        self._limits = settings.limits
        self._lag = LagReader(settings)
        self._pace = Pace(
            settings.bulk_rate, settings.bulk_rate_max, settings.bulk_backlog, settings.commit_interval
        )
        self._due = self._sent_at = 0.0
        """By time.monotonic(): when more may leave, and when something left last."""
        self._sending = asyncio.Event()
        """Set while somebody sends, so that the group is looked at."""
        self._watching: asyncio.Task[None] | None = None
        self._never = asyncio.Event()
        self._consumer = clients.consumer(
            settings,
            "orders-bulk",
            *BULK,
            group_id=settings.bulk_group,
            auto_offset_reset="earliest",
            session_timeout_ms=int(settings.session_timeout * 1000),
            heartbeat_interval_ms=int(min(settings.heartbeat_interval, settings.session_timeout / 3) * 1000),
            rebalance_timeout_ms=int((settings.drain_timeout + 20) * 1000),
            # A part waits for as long as the pipeline is behind; that is not idleness to leave the group for.
            max_poll_interval_ms=DAY_MS,
        )
        self._producer = clients.producer(
            settings, "orders-bulk", linger_ms=0, max_batch_size=BATCH_BYTES, max_request_size=16 << 20
        )

    async def __aenter__(self) -> Unpacker:
        """Connect. Raises what aiokafka raises when no broker answers."""
        try:
            await self._lag.__aenter__()
            await self._producer.start()
            await self._control.start()
            await self._consumer.start()
            self._watching = asyncio.ensure_future(self._watch())
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Leave the group and close all connections."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)
        metrics.BULK_RATE.set(0)
        await self._consumer.stop()
        await self._producer.stop()
        await self._lag.close()

    async def run(self) -> None:
        """Unpack part after part.

        Raises what aiokafka raises when Kafka fails, TopicsMissing, and GaveUp if Postgres fails for longer
        than retry_limit.
        """
        while True:
            self._health.unpacking = False
            record = await self._next()
            self._health.unpacking = True
            with self._spans.part(record):
                await self._unpack_part(record)
            try:
                await self._consumer.commit(
                    {TopicPartition(record.topic, record.partition): record.offset + 1}
                )
            except (CommitFailedError, IllegalStateError, RebalanceInProgressError) as error:
                # Another has the partition by now and unpacks the part again, under the same ids; or we have
                # it still, and a later commit counts for this one too.
                log.info("the offset of a bulk part stays uncommitted: %s", error)
            self._delivery.recovered(LANE)

    async def _next(self) -> Any:
        """The next part of a topic that isn't paused. Blocks until there is one. Raises KafkaError."""
        while True:
            _, held = held_by(self._control.paused)
            free = [place for place in self._consumer.assignment() if place.topic not in held]
            if not free:
                await asyncio.sleep(TICK)
                continue
            try:
                fetched = await self._consumer.getmany(*free, timeout_ms=FETCH_MS, max_records=1)
            except IllegalStateError:
                continue  # the group has shared the partitions out anew
            for records in fetched.values():
                return records[0]

    async def _unpack_part(self, record: Any) -> None:
        """Unpack one record, until everything that it contains is acknowledged."""
        try:
            if (why := unreadable(record)) is not None:
                raise Refused(UNREADABLE, why)
            event = events.decode(record.topic, record.headers, record.value)
        except Refused as refusal:
            await self._refuse(record, record.key, raw_value(record), list(record.headers), refusal)
            return
        part: Any = event.fact
        job, kind = str(part.job_id), bulk.KIND_OF[record.topic]
        unpacked = list(bulk.unpack(record.topic, part, event.traceparent))
        for n, each in enumerate(unpacked):
            if len(each.value) > self._limits.event:
                detail = f"$.events[{n}]: above {self._limits.event:,} bytes"
                await self._refuse(
                    record, each.key, each.value, each.headers, Refused(RECORD_TOO_LARGE, detail)
                )
        with self._spans.step("publish"):
            await self._publish(
                bulk.EVENT[kind], [each for each in unpacked if len(each.value) <= self._limits.event]
            )
        progress = await self._write_job(
            lambda: self._jobs.done(job, kind, part.part, part.parts, len(part.events))
        )
        if progress.completed_at is not None and not progress.announced:
            when = progress.completed_at.astimezone(UTC).isoformat()
            value, headers = bulk.completed(job, kind, progress.parts, progress.events, when)
            await self._producer.send_and_wait(BULK_COMPLETED, value, key=job.encode(), headers=headers)
            await self._write_job(lambda: self._jobs.announced(job))
            log.info(
                "bulk job %(job)s is unpacked: %(events)d %(kind)s",
                {"job": job, "events": progress.events, "kind": kind},
            )
        metrics.BULK_EVENTS.labels(kind).inc(len(part.events))

    async def _write_job(self, write: Callable[[], Awaitable[T]]) -> T:
        """Write to Postgres until it works: what was published isn't published again
        for its sake. Raises GaveUp.
        """
        results: list[T] = []

        async def attempt() -> None:
            try:
                results.append(await write())
            except BaseException:
                self._jobs.drop()  # its connection may have an answer under way
                raise

        with self._spans.step("postgres"):
            await self._delivery.run(LANE, attempt, self._never)
        return results[0]

    async def _publish(self, topic: str, unpacked: list[bulk.Unpacked]) -> None:
        """Publish events, as many as are due in each tick and only while the pipeline keeps up.

        Returns once all are acknowledged. Events are sent lane by lane, each order's in their order, so that
        a small chunk is an additional batch for one lane and not for each.
        """
        partitions = len(await self._producer.partitions_for(topic))
        # Without a key any partition will do: it is refused there.
        placed = [(0 if each.key is None else partition_of(each.key, partitions), each) for each in unpacked]
        placed.sort(key=itemgetter(0))
        sending: list[asyncio.Future[Any]] = []
        start = 0
        try:
            while start < len(placed):
                count = await self._pace_of(len(placed) - start)
                leaving = placed[start : start + count]
                for partition, events in groupby(leaving, key=itemgetter(0)):
                    await self._send(topic, partition, [each for _, each in events], sending)
                start += count
        finally:
            results = await asyncio.gather(*sending, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _send(
        self, topic: str, partition: int, leaving: list[bulk.Unpacked], sending: list[asyncio.Future[Any]]
    ) -> None:
        """Send events to one partition; `sending` gets what tells of their acknowledgement. As batches:
        aiokafka's send() costs 40 us a record.
        """
        now_ms = int(time.time() * 1000)
        batch = self._producer.create_batch()
        for key, value, headers in leaving:
            if batch.append(timestamp=now_ms, key=key, value=value, headers=headers) is None:
                sending.append(await self._producer.send_batch(batch, topic, partition=partition))
                batch = self._producer.create_batch()
                batch.append(timestamp=now_ms, key=key, value=value, headers=headers)
        sending.append(await self._producer.send_batch(batch, topic, partition=partition))

    async def _pace_of(self, most: int) -> int:
        """Wait until events may be sent, and return how many, at most so many.
        Raises what a look raises that can't be waited for.
        """
        pace = self._pace
        self._sent_at = time.monotonic()
        self._sending.set()
        await asyncio.sleep(max(0.0, self._due - time.monotonic()))
        waiting = False
        while self._failed() or pace.full:
            if not waiting:
                log.debug("bulk waits for the pipeline")
                waiting = True
            self._sent_at = self._due = time.monotonic()
            await asyncio.sleep(TICK)
        count = min(most, max(1, int(pace.rate * TICK)))
        self._sent_at = time.monotonic()
        self._due = max(self._due, self._sent_at - MAKE_UP) + count / pace.rate
        pace.sent += count
        return count

    def _failed(self) -> bool:
        """Raises what has ended the looks at the group; False: nothing has."""
        if self._watching is not None and self._watching.done():
            self._watching.result()
        return False

    async def _watch(self) -> None:
        """Look at the group while events are sent, and set the pace by it.
        Raises what isn't an outage, or a long one.
        """
        pace, guarding, blind_since = self._pace, False, math.inf
        while True:
            await self._sending.wait()
            try:
                async with asyncio.timeout(PATIENCE):
                    await self._look()
                blind_since = math.inf
            except (KafkaError, TimeoutError, OSError) as error:
                if time.monotonic() - blind_since > BLIND:
                    raise
                if blind_since == math.inf:
                    blind_since = time.monotonic()
                    log.warning("the lanes' lag can't be read, so bulk goes at its floor: %r", error)
                pace.blind()
            if pace.guarding is not guarding:
                guarding = pace.guarding
                log.info("bulk goes %s", "beside interactive events" if guarding else "alone")
            metrics.BULK_RATE.set(pace.rate)
            await asyncio.sleep(LOOK)
            if time.monotonic() - self._sent_at > IDLE:
                self._sending.clear()
                pace.idle()
                metrics.BULK_RATE.set(0)

    async def _look(self) -> None:
        sent = self._pace.sent
        look = await self._lag.look()
        committed = sum(position.committed for position in look.lag.values())
        self._pace.look(Seen(time.monotonic(), committed, total(look.lag), look.waits, sent))
        pace = self._pace
        log.debug(
            "bulk goes at %(rate).0f events/s: events wait %(seconds).3f s, the lag is %(lag)d",
            {"rate": pace.rate, "seconds": pace.wait, "lag": total(look.lag)},
        )

    async def _refuse(
        self,
        record: Any,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
        refusal: Refused,
    ) -> None:
        record_id = RecordId(record.topic, record.partition, record.offset)
        most = self._limits.record
        letter = letter_of(record_id, key, value, headers, refusal.code, refusal.detail, most)
        # As a batch: sent alone, aiokafka takes no record that has neither key nor value.
        batch = self._producer.create_batch()
        batch.append(
            timestamp=int(time.time() * 1000), key=letter.key, value=letter.value, headers=letter.headers
        )
        await (await self._producer.send_batch(batch, DLQ, partition=record.partition))
        metrics.DEAD_LETTERS.labels(refusal.code).inc()


class BulkService(Service):
    """The unpacker beside the pipeline, in the worker's own loop: if it ends, the worker ends."""

    abstract = False

    def __init__(self, settings: Settings, control: Control, tracer: Tracer | None, **options: Any) -> None:
        super().__init__(**options)
        self._settings = settings
        self._health = BulkHealth(settings, control)
        self._tracer = tracer

    @Service.task
    async def _unpack(self) -> None:
        await unpack(self._settings, self._health, self._tracer)


async def unpack(
    settings: Settings, health: BulkHealth, tracer: Tracer | None, ready: Callable[[], None] = lambda: None
) -> None:
    """Unpack until cancelled. `health`: what is paused, which somebody follows, and how it does. `ready` is
    called whenever it has joined the group. Raises GaveUp past retry_limit, and what a bug raises.

    When Kafka fails it connects again from the committed offset on, because a producer that has lost a batch
    isn't used any more.
    """

    async def attempt() -> None:
        try:
            async with Unpacker(settings, health, tracer) as unpacker:
                health.joined = True
                ready()
                await unpacker.run()
        finally:
            health.joined = False

    try:
        await health.delivery.run(LANE, attempt, asyncio.Event())
    finally:
        health.jobs.drop()


async def serve(
    settings: Settings,
    stop: asyncio.Event,
    health: BulkHealth,
    tracer: Tracer | None,
    ready: Callable[[], None],
) -> None:
    """Unpack parts until `stop` is set, and keep `health` and what is paused up to date.
    A part that isn't finished then is unpacked again by the next worker.
    """
    running = asyncio.ensure_future(unpack(settings, health, tracer, ready))
    asked = asyncio.ensure_future(stop.wait())
    beside = [
        asyncio.ensure_future(each)
        for each in (health.control.follow(), health.watch(), metrics.watch_loop())
    ]
    try:
        await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for each in (asked, *beside, running):
            each.cancel()
        results = await asyncio.gather(running, *beside, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]
