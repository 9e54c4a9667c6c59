"""The way to Kafka: one idempotent producer per lane, with the lease checked before every request.

Why one per lane:

- A lane that closes closes its producer, and whatever was still queued in it is never sent.
- A failed batch leaves a hole in the producer's sequence numbers, and the broker refuses everything after it. Then the
  lane, and no other, goes on with a new producer.
- aiokafka sends one request at a time to a broker; lanes don't wait for each other.

While the broker is away aiokafka keeps a batch and sends it again under the same sequence number: nothing is doubled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import struct
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from aiokafka import AIOKafkaProducer
from aiokafka.conn import CloseReason
from aiokafka.errors import ProducerClosed
from aiokafka.protocol.produce import ProduceRequest
from faust.transport.drivers import aiokafka as driver

from streams.transport.batch import OutRecord
from streams.transport.errors import LaneClosed, LeaseLost, Stale

log = logging.getLogger(__name__)

BATCH_BYTES = 1 << 20
"""A record batch ends before it is larger than this; a single larger record makes a batch of its own."""
REQUEST_BYTES = 16 << 20
"""Largest request that aiokafka lets through; the broker's message.max.bytes decides."""
GATE_INTERVAL = 0.05
"""Seconds between two looks at a lost lease, while a request is held back."""
WATCH_INTERVAL = 0.25
"""Seconds between two looks at the lease while a request is under way: a fraction of what a session has left when the lease ends."""
START_TIMEOUT = 10.0
"""Seconds until a start counts as failed. aiokafka itself asks for a producer id for ever, silently."""
CLOSE_TIMEOUT = 2.0


class Delivered(NamedTuple):
    """One record batch that all in-sync replicas have. `last` is the last record's offset; None: the broker no longer knew."""

    topic: str
    partition: int
    last: int | None


class _Sending(NamedTuple):
    topic: str
    partition: int
    records: int
    future: asyncio.Future[Any]


class LaneProducer:
    """Sends one lane's records. Bound to the main event loop."""

    def __init__(
        self,
        options: Callable[[], Mapping[str, Any]],
        check: Callable[[], None],
        waiting: Callable[[str], object],
        patience: float,
    ) -> None:
        """`options`: keyword arguments of AIOKafkaProducer. `check` raises Stale or LeaseLost. `waiting` is told every
        `patience` seconds that deliveries are outstanding, and may raise to give up."""
        self._options = options
        self._check = check
        self._waiting = waiting
        self._patience = patience
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._closed = False

    async def send(self, records: Mapping[str, Sequence[OutRecord]], partition: int) -> list[Delivered]:
        """Write `records` (topic -> records; to `partition` where a record names no other) and wait for every delivery.

        Blocks while Kafka is away. Raises KafkaError, Stale, LeaseLost, and what `waiting` raises. After an error the
        records may have been written or not.
        """
        self._check()
        producer = await self._ready()
        queues = list(self._batches(producer, records, partition))
        sending: list[_Sending] = []
        errors: list[BaseException] = []
        self._check()
        try:
            for turn in range(max((len(batches) for _, _, batches in queues), default=0)):
                for topic, number, batches in queues:
                    if turn < len(batches):
                        batch = batches[turn]
                        # Returns when the batch is queued; waits only behind an earlier one of the same partition.
                        future = await producer.send_batch(batch, topic, partition=number)
                        future.add_done_callback(_retrieve)
                        sending.append(_Sending(topic, number, batch.record_count(), future))
        except Exception as exc:  # raised below, once what is under way has ended
            errors.append(exc)
        await self._outcome(producer, sending)
        for item in sending:
            failure = item.future.exception()
            if failure is not None:
                failure.add_note(f"writing {item.records} records to {item.topic}/{item.partition}")
                errors.append(failure)
        if errors:
            await self._discard(producer)
            self._check()
            raise errors[0]
        return [_delivered(item) for item in sending]

    async def close(self) -> None:
        """Send nothing more. What is still queued fails with ProducerClosed. Blocks for a few seconds at most."""
        self._closed = True
        if self._producer is not None:
            await self._discard(self._producer)

    async def _ready(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._closed:
                raise Stale("the lane is closed")
            if self._producer is None:
                producer = AIOKafkaProducer(**self._options())
                self._gate(producer)
                try:
                    await asyncio.wait_for(producer.start(), START_TIMEOUT)
                    if self._closed:
                        raise Stale("the lane was closed")
                except BaseException:
                    await _abandon(producer)
                    raise
                self._producer = producer
            return self._producer

    def _gate(self, producer: AIOKafkaProducer) -> None:
        """The last check before the socket. A request waits here for the lease, keeping its sequence number."""
        client = producer.client
        send = client.send

        async def gated(node_id: int, request: Any, **options: Any) -> Any:
            if isinstance(request, ProduceRequest):
                while True:
                    # Connected before the check: between it and the socket there must be nothing that takes its time.
                    if await client.ready(node_id):
                        _reset_when_closed(client)
                    try:
                        self._check()
                        break
                    except Stale as exc:
                        raise LaneClosed(str(exc)) from exc
                    except LeaseLost:
                        await asyncio.sleep(GATE_INTERVAL)
            return await send(node_id, request, **options)

        client.send = gated

    @staticmethod
    def _batches(
        producer: AIOKafkaProducer, records: Mapping[str, Sequence[OutRecord]], partition: int
    ) -> Iterable[tuple[str, int, list[Any]]]:
        now = int(time.time() * 1000)
        for topic, items in records.items():
            by_partition: dict[int, list[Any]] = {}
            for key, value, headers, wanted in items:
                batches = by_partition.setdefault(partition if wanted is None else wanted, [])
                if not batches or batches[-1].append(timestamp=now, key=key, value=value, headers=headers) is None:
                    batches.append(producer.create_batch())
                    # The first record of a batch is never refused, however large.
                    batches[-1].append(timestamp=now, key=key, value=value, headers=headers)
            for number, batches in by_partition.items():
                yield topic, number, batches

    async def _outcome(self, producer: AIOKafkaProducer, sending: Sequence[_Sending]) -> None:
        pending = {item.future for item in sending}
        progress = time.monotonic()
        while pending:
            done, pending = await asyncio.wait(pending, timeout=min(WATCH_INTERVAL, self._patience))
            now = time.monotonic()
            if done:
                progress = now
            elif now - progress >= self._patience:
                progress = now
                topics = sorted({item.topic for item in sending if item.future in pending})
                self._waiting(f"Kafka has not acknowledged records for {', '.join(topics)}")
            try:
                self._check()
            except (Stale, LeaseLost):
                _take_back(producer)

    async def _discard(self, producer: AIOKafkaProducer) -> None:
        if self._producer is producer:
            self._producer = None
        await _abandon(producer)


async def _abandon(producer: AIOKafkaProducer) -> None:
    """Close without sending what is queued (AIOKafkaProducer.stop would wait until it is sent)."""
    producer._closed = True
    producer._message_accumulator.fail_all(ProducerClosed())
    sender = producer._sender.sender_task
    if sender is not None:
        sender.cancel()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(producer.client.close(), CLOSE_TIMEOUT)
    if sender is not None and not sender.done():
        # Cancelled once, it waits for its requests; cancelled again, it leaves them.
        await asyncio.wait([sender], timeout=CLOSE_TIMEOUT)
        sender.cancel()


def _reset_when_closed(client: Any) -> None:
    """Let connections end with an RST, so that the kernel forgets what it has not delivered.

    Otherwise it goes on delivering for minutes after a close, and a request that the network held back would be written when a session
    has long ended.
    """
    for connection in client._conns.values():
        if connection.connected():
            lower = connection._writer.get_extra_info("socket")
            with contextlib.suppress(OSError, ValueError):  # closed already (ValueError: by uvloop)
                lower.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _take_back(producer: AIOKafkaProducer) -> None:
    """What is under way and not answered must not be written any more. The producer keeps it, and its sequence number."""
    for connection in list(producer.client._conns.values()):
        if connection.connected() and connection._requests:
            connection.close(reason=CloseReason.CONNECTION_BROKEN)


def _retrieve(future: asyncio.Future[Any]) -> None:
    """A delivery whose publisher was cancelled must not be reported as an exception nobody looked at."""
    if not future.cancelled():
        future.exception()


def _delivered(item: _Sending) -> Delivered:
    # A duplicate that the broker recognized but no longer remembers in detail comes back as offset -1.
    base = item.future.result().offset
    return Delivered(item.topic, item.partition, base + item.records - 1 if base >= 0 else None)


class FaustProducer(driver.Producer):
    """Faust's own producer. Started, because Faust wants one; never used: it reports a lost record as a log line."""

    async def send(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("records are written with LaneBatch.publish")

    def lane_options(self, client_id: str, linger_ms: int, compression: str | None) -> dict[str, Any]:
        """Keyword arguments for a lane's AIOKafkaProducer: Faust's connection settings, our guarantees."""
        return {
            **self._settings_default(),
            **self._settings_auth(),
            "client_id": client_id,
            "acks": "all",
            "enable_idempotence": True,
            "linger_ms": linger_ms,
            "max_batch_size": BATCH_BYTES,
            "max_request_size": REQUEST_BYTES,
            "compression_type": compression,
        }

    def connection_options(self) -> dict[str, Any]:
        """Keyword arguments that any aiokafka client needs to reach the brokers."""
        settings = self._settings_default()
        kept = {name: settings[name] for name in ("bootstrap_servers", "client_id", "request_timeout_ms")}
        return {**kept, **self._settings_auth()}
