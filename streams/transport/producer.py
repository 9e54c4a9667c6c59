"""The way to Kafka: one idempotent producer per lane, with the lease checked before every request.

Why one per lane:

- A lane that closes closes its producer, and whatever was still queued in it is never sent.
- A failed batch leaves a hole in the producer's sequence numbers, and the broker refuses everything after it.
  Then the lane, and no other, goes on with a new producer.
- aiokafka sends one request at a time to a broker; lanes don't wait for each other.

While the broker is away aiokafka keeps a batch and sends it again under the same sequence
number: nothing is doubled.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol, cast

from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaError, ProducerClosed
from aiokafka.protocol.produce import ProduceRequest
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams.transport.config import TransportSettings
from streams.transport.errors import LaneClosed, LeaseLost, Stale, WritersTimes, is_fencing
from streams.transport.records import Moved, OutRecord
from streams.transport.request_writer import RequestWriter
from streams.transport.table import StateTable
from wire import clients

log = logging.getLogger(__name__)

BATCH_BYTES = 1 << 20
"""A record batch ends before it is larger than this; a single larger record makes a batch of its own."""
WINDOW_BYTES = 16 << 20
"""Of values that are sent at once, about, whatever there is to send; what is made
when it is sent is made then.
"""
PACKED_AT_ONCE = 500
"""Records of a topic after which the loop serves others: a millisecond."""
REQUEST_BYTES = 16 << 20
"""Largest request that aiokafka lets through; the broker's message.max.bytes decides."""
GATE_INTERVAL = 0.05
"""Seconds between two looks at a lost lease, while a request is held back."""
WATCH_INTERVAL = 0.25
"""Seconds between two looks at the lease while a request is under way: a fraction of what a session has
left when the lease ends.
"""
START_TIMEOUT = 10.0
"""Seconds until a start counts as failed. aiokafka itself asks for a producer id for ever, silently."""
CLOSE_TIMEOUT = 2.0


NOTHING = OutRecord(None, b"", [])


class Delivered(NamedTuple):
    """One record batch that all in-sync replicas have.
    `last` is the last record's offset; None: the broker no longer knew.
    """

    topic: str
    partition: int
    last: int | None
    time: int = -1
    """When the broker took it, ms since 1970, by its own clock; -1 where the topic
    keeps its writers' times.
    """


class _Sending(NamedTuple):
    topic: str
    partition: int
    records: int
    future: asyncio.Future[Any]


Outgoing = tuple[bytes | None, bytes | None, list[tuple[str, Any]]]
"""Key, value and headers of a record that is sent now."""


class Batch(Protocol):
    """Records of one partition that are written together (aiokafka's BatchBuilder)."""

    def extend(self, records: list[Outgoing], first: int, timestamp: int) -> int:
        """Add records from the index `first` on, as many as fit; one at least to an empty batch. Returns the
        index after the last one.
        """

    def record_count(self) -> int:
        """Records in it."""


class Connection(Protocol):
    """An idempotent producer: the one way in which LaneProducer reaches Kafka. A batch that fails leaves a
    hole in the sequence numbers of its partition, so after any failure the connection is abandoned.
    """

    async def start(self) -> None:
        """Get a producer id. Blocks until there is one. Raises KafkaError."""

    def create_batch(self) -> Batch:
        """An empty batch."""

    async def send_batch(self, batch: Batch, topic: str, *, partition: int) -> asyncio.Future[Any]:
        """Queue `batch`. The future's result has the `offset` of its first record, -1 if the broker
        doesn't know it any more.
        """

    def take_back(self) -> None:
        """What is under way and not answered must not be written any more.
        It is kept, with its sequence number, and sent again.
        """

    async def abandon(self) -> None:
        """Close without sending what is queued: that fails with ProducerClosed.
        Blocks for seconds at most.
        """


class Gate(Protocol):
    """Awaited right before each produce request goes out. Raises what forbids it."""

    async def __call__(self, ready: Callable[[], Awaitable[object]] | None = None) -> None:
        """`ready` connects to the broker: before the last check, so that nothing between it and
        the socket takes its time.
        """


_Window = dict[tuple[str, int], list[Outgoing]]
"""Records by topic and partition."""
_Queue = tuple[str, int, list[Batch]]
"""Topic, partition, batches for it in their order."""
Connect = Callable[[Mapping[str, Any], Gate], Connection]
"""(keyword arguments of wire.clients.producer, gate) -> connection, not started."""


class LaneProducer:
    """Sends one lane's records, each when it is told to: at least once. Bound to the main event loop.

    streams.transport.transaction is the other way.
    """

    commits: ClassVar[bool] = False
    """Whether `acknowledge` commits the batch's offsets.
    False: the consumer commits what is finished, now and then.
    """

    def __init__(
        self,
        options: Callable[[], Mapping[str, Any]],
        check: Callable[[], None],
        waiting: Callable[[str], object],
        report_interval: float,
        connect: Connect | None = None,
    ) -> None:
        """`options`: keyword arguments of wire.clients.producer. `check` raises Stale or LeaseLost. `waiting`
        is told every `report_interval` seconds that deliveries are outstanding, and may raise to give up.
        `connect`: AiokafkaConnection.
        """
        self._options = options
        self._check = check
        self._waiting = waiting
        self._report_interval = report_interval
        self._connect: Connect = connect or AiokafkaConnection
        self._producer: Connection | None = None
        self._starting = asyncio.Lock()
        self._closed = False
        self.window_bytes = WINDOW_BYTES
        self.delivered_at = 0.0
        """By time.monotonic(): when the brokers acknowledged the last of what was sent at once."""
        self.fenced = False
        """The broker has refused this producer for good: another one has the lane, or had it."""
        self.ends: dict[str, int] = {}
        """Topic -> the position behind the last record that was published there, to the lane's partition."""

    async def start(self) -> None:
        """Called before the lane's state is recovered. Nothing to do: the first write connects."""

    async def publish(self, records: Mapping[str, Sequence[OutRecord]], partition: int) -> None:
        """See LaneBatch.publish."""
        for each in await self.send(records, partition):
            if each.partition == partition and each.last is not None:
                self.ends[each.topic] = each.last + 1

    async def write_states(
        self,
        table: StateTable,
        puts: Mapping[bytes, bytes | None],
        partition: int,
        moved: Sequence[Moved] = (),
    ) -> None:
        """See LaneBatch.write_table."""
        delivered = await self.send({table.changelog_topic_name: changes(puts)}, partition)
        self._check()
        table.store.write(partition, puts, last_offset(delivered), moved)

    async def acknowledge(
        self, offsets: Mapping[TP, int], before: Mapping[TP, int | None], notes: Mapping[TP, str]
    ) -> None:
        """The handler has returned. `offsets`: what the group shall have committed, with the lane's `notes`
        beside it; `before`: what it has committed until now, of all the lane's partitions. Nothing to do:
        everything is written.

        Blocks and raises like publish; after a temporary error to be called again, without the handler.
        """

    async def send(self, records: Mapping[str, Sequence[OutRecord]], partition: int) -> list[Delivered]:
        """Write `records` (topic -> records; to `partition` where a record names no other)
        and wait for every delivery.

        Blocks while Kafka is away. Raises KafkaError, Stale, LeaseLost, and what `waiting` raises.
        After an error the records may have been written or not.
        """
        self._check()
        producer = await self._ready()
        self._check()
        try:
            return await self._deliver(producer, records, partition)
        except Exception:
            await self._discard(producer)
            self._check()
            raise

    async def _deliver(
        self, producer: Connection, records: Mapping[str, Sequence[OutRecord]], partition: int
    ) -> list[Delivered]:
        delivered: list[Delivered] = []
        for window in self._windows(records, partition):
            queues = await _queues(producer, window)
            self._check()
            delivered += await self._deliver_window(producer, queues)
            self.delivered_at = time.monotonic()
        return delivered

    async def _deliver_window(self, producer: Connection, queues: Sequence[_Queue]) -> list[Delivered]:
        sending: list[_Sending] = []
        errors: list[BaseException] = []
        try:
            for turn in range(max(len(batches) for _, _, batches in queues)):
                for topic, number, batches in queues:
                    if turn < len(batches):
                        batch = batches[turn]
                        # Returns when the batch is queued; waits only behind an earlier one of
                        # the same partition.
                        future = await producer.send_batch(batch, topic, partition=number)
                        future.add_done_callback(retrieve)
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
            raise min(errors, key=lambda error: not is_fencing(error))
        return [_delivered(item) for item in sending]

    async def tell_time(self, topic: str, partition: int) -> int:
        """The broker's time, ms since 1970: what it gives to an empty record of `topic`.
        Blocks and raises like send.

        Raises WritersTimes when the topic keeps its writers' times instead.
        """
        (delivered,) = await self.send({topic: [NOTHING]}, partition)
        return time_of(delivered)

    async def close(self) -> None:
        """Send nothing more. What is still queued fails with ProducerClosed.
        Blocks for a few seconds at most.
        """
        self._closed = True
        if self._producer is not None:
            await self._discard(self._producer)

    async def _ready(self) -> Connection:
        async with self._starting:
            if self._closed:
                raise Stale("the lane is closed")
            if self._producer is None:
                producer = self._connect(self._options(), self._gate)
                try:
                    await asyncio.wait_for(producer.start(), START_TIMEOUT)
                    if self._closed:
                        raise Stale("the lane was closed")
                except BaseException:
                    await producer.abandon()
                    raise
                self._producer = producer
            return self._producer

    async def _gate(self, ready: Callable[[], Awaitable[object]] | None = None) -> None:
        """The last check before the socket.
        A request waits here for the lease, keeping its sequence number.
        """
        while True:
            if ready is not None:
                await ready()
            try:
                self._check()
                return
            except Stale as exc:
                raise LaneClosed(str(exc)) from exc
            except LeaseLost:
                await asyncio.sleep(GATE_INTERVAL)

    def _windows(self, records: Mapping[str, Sequence[OutRecord]], partition: int) -> Iterable[_Window]:
        """The records of all topics, so many of them at a time as hold `window_bytes`."""
        window: _Window = {}
        size = 0
        for topic, items in records.items():
            mine = window.setdefault((topic, partition), [])
            for item in items:
                value = item.value
                if callable(value):
                    value = value()
                record = (item.key, value, item.headers)
                if item.partition is None:
                    mine.append(record)
                else:
                    window.setdefault((topic, item.partition), []).append(record)
                size += len(value or b"")
                if size > self.window_bytes:
                    yield window
                    window, size = {}, 0
                    mine = window.setdefault((topic, partition), [])
        if any(window.values()):
            yield window

    async def _outcome(self, producer: Connection, sending: Sequence[_Sending]) -> None:
        pending = {item.future for item in sending}
        progress = time.monotonic()
        while pending:
            done, pending = await asyncio.wait(pending, timeout=min(WATCH_INTERVAL, self._report_interval))
            now = time.monotonic()
            if done:
                progress = now
            elif now - progress >= self._report_interval:
                progress = now
                topics = sorted({item.topic for item in sending if item.future in pending})
                self._waiting(f"Kafka has not acknowledged records for {', '.join(topics)}")
            try:
                self._check()
            except (Stale, LeaseLost):
                producer.take_back()

    async def _discard(self, producer: Connection) -> None:
        if self._producer is producer:
            self._producer = None
        await producer.abandon()


class AiokafkaConnection:
    """A Connection by AIOKafkaProducer."""

    def __init__(self, options: Mapping[str, Any], gate: Gate) -> None:
        self._producer = producer = clients.producer(**options)
        self._gate = gate
        send = producer.client.send

        async def gated(node_id: int, request: Any, **options: Any) -> Any:
            if isinstance(request, ProduceRequest):
                await gate(partial(self._ready, node_id))
            return await send(node_id, request, **options)

        producer.client.send = gated
        self.start = producer.start
        self.create_batch = producer.create_batch
        self.send_batch = producer.send_batch

    async def _ready(self, node_id: int) -> None:
        client = self._producer.client
        if await client.ready(node_id):
            for connection in client._conns.values():
                if connection.connected() and not isinstance(connection._writer, RequestWriter):
                    with contextlib.suppress(OSError, ValueError, RuntimeError):  # closed meanwhile
                        connection._writer = RequestWriter(connection._writer, connection.lower, self._gate)

    def take_back(self) -> None:
        """See Connection."""
        for connection in list(self._producer.client._conns.values()):
            if connection.connected() and connection._requests:
                connection.close(reason=CloseReason.CONNECTION_BROKEN)

    async def abandon(self) -> None:
        """See Connection. AIOKafkaProducer.stop would wait until everything is sent."""
        producer = self._producer
        producer._closed = True
        producer._message_accumulator.fail_all(ProducerClosed())
        for batches in producer._message_accumulator._batches.values():
            for batch in batches:
                retrieve(batch._drain_waiter)  # failed as well, and nobody waits for it
        sender = producer._sender.sender_task
        if sender is not None:
            sender.cancel()
        try:
            await asyncio.wait_for(producer.client.close(), CLOSE_TIMEOUT)
        except TimeoutError:
            pass
        except Exception as exc:  # of a task of aiokafka's that had ended long before
            log.warning("a client was in disorder when it was closed: %r", exc)
        if sender is not None and not sender.done():
            # Cancelled once, it waits for its requests; cancelled again, it leaves them.
            await asyncio.wait([sender], timeout=CLOSE_TIMEOUT)
            sender.cancel()


async def _queues(producer: Connection, window: _Window) -> list[_Queue]:
    """Records by topic and partition, in batches. Between two large ones the loop serves others."""
    now = int(time.time() * 1000)
    queues: list[_Queue] = []
    for (topic, partition), records in window.items():
        batches: list[Batch] = []
        at = 0
        while at < len(records):
            batches.append(producer.create_batch())
            at = batches[-1].extend(records, at, now)
            if at >= PACKED_AT_ONCE:
                await asyncio.sleep(0)
        if batches:
            queues.append((topic, partition, batches))
    return queues


def changes(puts: Mapping[bytes, bytes | None]) -> list[OutRecord]:
    """States as the records of their changelog. Pure."""
    return [OutRecord(key, value, []) for key, value in puts.items()]


def last_offset(delivered: Sequence[Delivered]) -> int | None:
    """The last offset of batches that one partition has got; None if the broker no
    longer knew one of them. Pure.

    Without it the next recovery reads these records again; that is all.
    """
    offsets = [batch.last for batch in delivered if batch.last is not None]
    return max(offsets) if offsets and len(offsets) == len(delivered) else None


def time_of(delivered: Delivered) -> int:
    """When the broker took a record, ms.
    Raises KafkaError if it no longer knows, WritersTimes if its topic keeps its writers' times.
    """
    if delivered.last is None:
        raise KafkaError("the broker has the record, but no longer knows when it took it")
    if delivered.time < 0:
        raise WritersTimes(f"topic {delivered.topic} must have message.timestamp.type=LogAppendTime")
    return delivered.time


def retrieve(future: asyncio.Future[Any]) -> None:
    """A delivery whose publisher was cancelled must not be reported as an exception nobody looked at."""
    if not future.cancelled():
        future.exception()


def _delivered(item: _Sending) -> Delivered:
    # A duplicate that the broker recognized but no longer remembers in detail comes back as offset -1.
    result = item.future.result()
    last = result.offset + item.records - 1 if result.offset >= 0 else None
    return Delivered(item.topic, item.partition, last, result.timestamp if result.timestamp_type else -1)


class FaustProducer(driver.Producer):
    """Faust's own producer, for what ordinary agents send.
    No lane writes with it: it reports a lost record as a log line.
    """

    def _settings_auth(self) -> Mapping[str, Any]:
        return clients.connection(self._settings)

    def lane_options(self, client_id: str, linger_ms: int, compression: str | None) -> dict[str, Any]:
        """Keyword arguments of wire.clients.producer for a lane."""
        return {
            **self.connection_options(),
            "client_id": client_id,
            "linger_ms": linger_ms,
            "max_batch_size": min(BATCH_BYTES, self._settings.most_written_bytes),
            "max_request_size": REQUEST_BYTES,
            "compression_type": compression,
        }

    def connection_options(self) -> dict[str, Any]:
        """What wire.clients has to be told for any client of this app, as keyword arguments."""
        return {
            "settings": self._settings,
            "client_id": self.client_id,
            "request_timeout_ms": int(self.request_timeout * 1000),
        }

    @property
    def _settings(self) -> TransportSettings:
        """Those of our app: Faust's producer sees a faust.App."""
        return cast(TransportSettings, cast(Any, self.app).settings)
