"""The bulk worker: it takes parts of jobs from the bulk topics and publishes their events on the ordinary
topics, paced.

    part ─► decode ─► publish, paced ─► orders_bulk_job ─► bulk.completed after the last ─► commit

Every step is acknowledged before the next one, so a crash anywhere repeats the part, and nothing of it is
lost. Repeated events have the same ids and natural keys, and change nothing. It is no lane: it has a consumer
group of its own, so that a part never delays an interactive event. Its failures follow the same policy
(streams.transport.delivery).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import UTC
from types import TracebackType
from typing import Any, Final, TypeVar

from aiokafka import TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, RebalanceInProgressError
from mode import Service

from contracts import bulk
from contracts.errors import RECORD_TOO_LARGE, UNREADABLE, Refused
from contracts.record_id import RecordId
from contracts.topics import BULK, BULK_COMPLETED, DLQ
from domain import events
from settings import Settings
from sinks.bulk import BulkJobs
from streams import metrics
from streams.dead_letters import letter_of, raw_value
from streams.lag import LagReader, total
from streams.partitioner import partition_of
from streams.transport.delivery import Delivery
from wire import clients, unreadable

log = logging.getLogger(__name__)

T = TypeVar("T")

LANE: Final = "bulk"
"""What its failures are logged and counted under."""
TICK: Final = 0.05
"""Seconds of events that leave at once.
What leaves together is in front of what comes next; what leaves apart is a batch each.
"""
LOOK: Final = 1.0
"""Seconds between two looks at the pipeline's lag, which moves with its commits; a look isn't free for the
broker. Sooner, if more left meanwhile than it may have before it.
"""
DAY_MS: Final = 24 * 3600 * 1000


class Unpacker:
    """Unpacks until it is cancelled. An async context manager: opened, it is in the group.
    Used once; see unpack().
    """

    def __init__(self, settings: Settings, delivery: Delivery) -> None:
        self._settings = settings
        self._delivery = delivery
        self._jobs = BulkJobs(settings, "orders-bulk")
        self._lag = LagReader(settings)
        self._due = 0.0
        self._looked = 0.0
        self._since = 0
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
            settings, "orders-bulk", linger_ms=5, max_batch_size=512 << 10, max_request_size=16 << 20
        )

    async def __aenter__(self) -> Unpacker:
        """Connect. Raises what aiokafka raises when no broker answers."""
        try:
            await self._lag.__aenter__()
            await self._producer.start()
            await self._consumer.start()
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
        await self._consumer.stop()
        await self._producer.stop()
        await self._lag.close()
        self._jobs.drop()

    async def run(self) -> None:
        """Unpack part after part.

        Raises what aiokafka raises when Kafka fails, and GaveUp if Postgres fails for longer than
        retry_limit.
        """
        while True:
            record = await self._consumer.getone()
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
            if len(each.value) > bulk.EVENT_BYTES:
                detail = f"$.events[{n}]: above {bulk.EVENT_BYTES:,} bytes"
                await self._refuse(
                    record, each.key, each.value, each.headers, Refused(RECORD_TOO_LARGE, detail)
                )
        await self._publish(
            bulk.EVENT[kind], [each for each in unpacked if len(each.value) <= bulk.EVENT_BYTES]
        )
        progress = await self._write_job(
            lambda: self._jobs.done(job, kind, part.part, part.parts, len(part.events))
        )
        if progress.completed_at is not None and not progress.announced:
            when = progress.completed_at.astimezone(UTC).isoformat()
            value, headers = bulk.completed(job, kind, progress.parts, progress.events, when)
            await self._producer.send_and_wait(BULK_COMPLETED, value, key=job.encode(), headers=headers)
            await self._write_job(lambda: self._jobs.announced(job))
            log.info("bulk job %s is unpacked: %d %s", job, progress.events, kind)
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

        await self._delivery.run(LANE, attempt, self._never)
        return results[0]

    async def _publish(self, topic: str, unpacked: list[bulk.Unpacked]) -> None:
        """Publish events, as many as are due in each tick and only while the pipeline keeps up.

        Returns once all are acknowledged. Events are sent lane by lane, each order's in their order, so that
        one chunk is an additional batch for one lane and not for each.
        """
        at_once = max(1, int(self._settings.bulk_rate * TICK))
        unpacked = sorted(
            unpacked,
            key=lambda each: 0 if each.key is None else partition_of(each.key, self._settings.partitions),
        )
        sending: list[asyncio.Future[Any]] = []
        try:
            for start in range(0, len(unpacked), at_once):
                leaving = unpacked[start : start + at_once]
                await self._pace(len(leaving))
                for key, value, headers in leaving:
                    # Without a key any partition will do: it is refused there.
                    place = None if key is not None else 0
                    sending.append(
                        await self._producer.send(topic, value, key=key, headers=headers, partition=place)
                    )
        finally:
            results = await asyncio.gather(*sending, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _pace(self, count: int) -> None:
        """Wait until `count` events may be sent, by the rate and by the lag of the pipeline."""
        await asyncio.sleep(max(0.0, self._due - time.monotonic()))
        # From now, not from when it was due: time lost to waiting isn't made up for by a burst.
        self._due = time.monotonic() + count / self._settings.bulk_rate
        self._since += count
        while time.monotonic() - self._looked >= LOOK or self._since > self._settings.bulk_backlog:
            behind = total(await self._lag.lag())
            if behind <= self._settings.bulk_backlog:
                self._looked, self._since = time.monotonic(), count
                return
            log.debug("the pipeline is %d records behind: bulk waits", behind)
            await asyncio.sleep(LOOK)

    async def _refuse(
        self,
        record: Any,
        key: bytes | None,
        value: bytes | None,
        headers: list[tuple[str, bytes]],
        refusal: Refused,
    ) -> None:
        record_id = RecordId(record.topic, record.partition, record.offset)
        letter = letter_of(record_id, key, value, headers, refusal.code, refusal.detail)
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

    def __init__(self, settings: Settings, **options: Any) -> None:
        super().__init__(**options)
        self._settings = settings

    @Service.task
    async def _unpack(self) -> None:
        await unpack(self._settings)


async def unpack(settings: Settings, ready: Callable[[], None] = lambda: None) -> None:
    """Unpack until cancelled. `ready` is called whenever it has joined the group. Raises GaveUp past
    retry_limit, and what a bug raises.

    When Kafka fails it connects again from the committed offset on, because a producer that has lost a batch
    isn't used any more.
    """
    delivery = Delivery(settings)

    async def attempt() -> None:
        async with Unpacker(settings, delivery) as unpacker:
            ready()
            await unpacker.run()

    await delivery.run(LANE, attempt, asyncio.Event())


async def serve(settings: Settings, stop: asyncio.Event, ready: Callable[[], None]) -> None:
    """Unpack parts until `stop` is set.
    A part that isn't finished then is unpacked again by the next worker.
    """
    running, asked = asyncio.ensure_future(unpack(settings, ready)), asyncio.ensure_future(stop.wait())
    try:
        await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        asked.cancel()
        running.cancel()
        results = await asyncio.gather(running, return_exceptions=True)
    if isinstance(results[0], Exception):
        raise results[0]
