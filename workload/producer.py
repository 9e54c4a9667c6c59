"""Sends events fast: record batches built by hand, one a partition at a time, every delivery awaited.

aiokafka's send() costs 40 us and more a record for its futures; a batch costs one future.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Final

from contracts.cloudevents import SourceEvent
from settings import Settings
from streams import partitioner
from wire import AIOKafkaProducer, clients

BATCH_BYTES: Final = 512 << 10
"""Size of a record batch, bytes before compression. A single larger record has a batch of its own."""

CHUNK: Final = 8192
"""Events spread over partitions at once: also how far their order in time can
differ between two partitions.
"""

TICK_SECONDS: Final = 0.01
"""With a rate: how often what is due is sent."""

MAX_REQUEST_BYTES: Final = 8 << 20
IN_FLIGHT: Final = 64


@dataclass(slots=True)
class Sent:
    """The result of send(): records by topic, bytes of keys and values, seconds from first to last
    acknowledgement."""

    by_topic: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    seconds: float = 0.0

    @property
    def records(self) -> int:
        return sum(self.by_topic.values())

    @property
    def events_per_second(self) -> float:
        return self.records / self.seconds if self.seconds else 0.0


async def send(
    settings: Settings,
    events: Iterable[SourceEvent],
    *,
    rate: float | None = None,
    progress: Callable[[int], None] | None = None,
) -> Sent:
    """Send every event and await every delivery (acks=all, idempotent); the records of a
    partition keep their order.

    `rate` is events a second, evenly; without it as fast as the brokers take them. `progress` is called with
    the records delivered so far. A broken broker raises aiokafka's error; what was acknowledged until then
    stays. A missing topic raises UnknownTopicOrPartitionError.
    """
    producer = clients.producer(
        settings, "orders-source", linger_ms=0, max_batch_size=BATCH_BYTES, max_request_size=MAX_REQUEST_BYTES
    )
    try:
        await producer.start()
        sender = _Sender(producer, progress)
        started = time.monotonic()
        for chunk in _chunks(events) if rate is None else ():
            await sender.send(chunk)
        if rate is not None:
            await _paced(sender, iter(events), rate)
        await sender.drain()
        sender.sent.seconds = time.monotonic() - started
        return sender.sent
    finally:
        await producer.stop()


def partition_of(key: bytes | None, partitions: int) -> int:
    """The partition that Kafka's default partitioner gives a key; partition 0 without one, so that a
    stream is the same every time.
    """
    if key is None:
        return 0
    return partitioner.partition_of(key, partitions)


def _chunks(events: Iterable[SourceEvent]) -> Iterator[list[SourceEvent]]:
    iterator = iter(events)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


async def _paced(sender: _Sender, events: Iterator[SourceEvent], rate: float) -> None:
    """Yield events at a rate by the clock: a late tick sends what became due meanwhile, so the rate holds
    over time."""
    started = time.monotonic()
    taken = 0
    while True:
        due = int((time.monotonic() - started) * rate) + 1 - taken
        if due > 0:
            chunk = list(islice(events, min(due, CHUNK)))
            taken += len(chunk)
            await sender.send(chunk)
            if len(chunk) < min(due, CHUNK):
                return
        pause = max(TICK_SECONDS, 1 / rate) if due <= CHUNK else 0
        await asyncio.sleep(pause)


class _Sender:
    def __init__(self, producer: AIOKafkaProducer, progress: Callable[[int], None] | None) -> None:
        self.sent = Sent()
        self._producer = producer
        self._progress = progress
        self._partitions: dict[str, int] = {}
        self._known: dict[bytes | None, int] = {}
        self._flying: deque[tuple[asyncio.Future[Any], str, int]] = deque()
        self._delivered = 0

    async def send(self, events: Iterable[SourceEvent]) -> None:
        """Hand the events to the brokers; returns when all are under way and at most IN_FLIGHT
        batches are unacknowledged.
        """
        building: dict[tuple[str, int], Any] = {}
        now_ms = int(time.time() * 1000)
        known = self._known
        if len(known) > 500_000:
            known.clear()
        for topic, key, value, headers, _ in events:
            hashed = known.get(key)
            if hashed is None:
                hashed = known[key] = 0 if key is None else partitioner.murmur2(key) & 0x7FFFFFFF
            partition = hashed % (self._partitions.get(topic) or await self._count(topic))
            place = (topic, partition)
            batch = building.get(place)
            if batch is None:
                batch = building[place] = self._producer.create_batch()
            if batch.append(key=key, value=value, timestamp=now_ms, headers=headers) is None:
                await self._dispatch(topic, partition, batch)
                batch = building[place] = self._producer.create_batch()
                batch.append(key=key, value=value, timestamp=now_ms, headers=headers)
            self.sent.bytes += len(key or b"") + len(value or b"")
        for (topic, partition), batch in building.items():
            await self._dispatch(topic, partition, batch)

    async def drain(self) -> None:
        """Await what is under way."""
        while self._flying:
            await self._land()

    async def _count(self, topic: str) -> int:
        count = len(await self._producer.partitions_for(topic))
        self._partitions[topic] = count
        return count

    async def _dispatch(self, topic: str, partition: int, batch: Any) -> None:
        batch.close()
        future = await self._producer.send_batch(batch, topic, partition=partition)
        # Once one has failed nobody looks at those after it, and asyncio would say so of each.
        future.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        self._flying.append((future, topic, batch.record_count()))
        while self._flying and (len(self._flying) > IN_FLIGHT or self._flying[0][0].done()):
            await self._land()

    async def _land(self) -> None:
        future, topic, records = self._flying.popleft()
        await future
        self.sent.by_topic[topic] += records
        self._delivered += records
        if self._progress is not None:
            self._progress(self._delivered)
