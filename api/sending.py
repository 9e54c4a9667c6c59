"""Records on their way to Kafka, until all brokers that must have them do."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple

from aiokafka.errors import KafkaError, KafkaTimeoutError, MessageSizeTooLargeError

from api.binding import Record
from queries.circuit import Circuit
from queries.errors import Unavailable
from settings import Settings
from streams.partitioner import partition_of
from wire import AIOKafkaProducer, clients
from wire.builder import SizeEstimate

log = logging.getLogger(__name__)

WAIT_SECONDS: Final = 10.0
"""How long a request waits for the brokers. They need milliseconds, and a second or two for a new leader."""
STOP_SECONDS: Final = 3.0
"""How long what is under way may take when a producer is stopped."""

_AWAY: Final = "Kafka doesn't answer; send all of the request's events again"


class TooLarge(Exception):
    """A record is larger than its topic takes. `index`: which one; None: the brokers say so, not which."""

    def __init__(self, index: int | None) -> None:
        super().__init__(index)
        self.index = index


class Place(NamedTuple):
    """Where a record lies. `offset`: None where it was written by a repetition of ours, and the brokers don't
    know any more where.
    """

    partition: int
    offset: int | None


class Sender:
    """One producer for all requests: it connects at the first one, and is replaced when it can't go on.

    Reads the files of certificates and passwords once, and raises OrdersError if they can't be used.
    """

    def __init__(self, settings: Settings) -> None:
        clients.connection(settings)
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._starting = asyncio.Lock()
        self._circuit = Circuit("Kafka, for events")

    async def send(self, records: Sequence[Record]) -> list[Place]:
        """Write records, those of one topic and key in their order -> where they are, once all in-sync
        replicas have them.

        Raises Unavailable if they aren't known to be there in time: some may be, or come to be. Raises
        TooLarge, before anything is written if an index is told. Blocks up to WAIT_SECONDS.
        """
        most = self._settings.limits.input
        for index, each in enumerate(records):
            if SizeEstimate.estimate_size_in_bytes(each.key, each.value, each.headers) > most:
                raise TooLarge(index)
        if not records:
            return []
        if not self._circuit.admits():
            raise Unavailable(_AWAY)
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                producer = await self._started()
                places = await _write(producer, records)
        except MessageSizeTooLargeError:
            raise TooLarge(None) from None
        except (KafkaTimeoutError, OSError, TimeoutError) as error:
            raise self._failed(error) from None
        except KafkaError as error:
            if not error.retriable:
                await self.close()
            raise self._failed(error) from None
        self._circuit.worked()
        return places

    def _failed(self, error: BaseException) -> Unavailable:
        self._circuit.failed(error)
        return Unavailable(_AWAY)

    async def close(self) -> None:
        """Stop the producer, if there is one. Blocks for seconds at most."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _stop(producer)

    async def _started(self) -> AIOKafkaProducer:
        async with self._starting:
            if self._producer is None:
                producer = clients.producer(
                    self._settings,
                    "orders-api",
                    linger_ms=0,
                    max_batch_size=self._settings.limits.input,
                    max_request_size=8 << 20,
                    request_timeout_ms=int(WAIT_SECONDS * 1000),
                )
                try:
                    await producer.start()
                except BaseException:
                    await _stop(producer)
                    raise
                self._producer = producer
            return self._producer


async def _write(producer: AIOKafkaProducer, records: Sequence[Record]) -> list[Place]:
    """See Sender.send. As batches: aiokafka's send() costs 40 us a record."""
    counts: dict[str, int] = {}
    for topic in {each.topic for each in records}:
        counts[topic] = len(await producer.partitions_for(topic))
    placed: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for index, each in enumerate(records):
        placed[each.topic, partition_of(each.key, counts[each.topic])].append(index)
    now_ms = int(time.time() * 1000)
    sent: list[tuple[asyncio.Future[Any], list[int]]] = []
    for (topic, partition), indexes in placed.items():
        batch = producer.create_batch()
        inside: list[int] = []
        for index in indexes:
            _, key, value, headers = records[index][1:]
            given = {"timestamp": now_ms, "key": key, "value": value, "headers": headers}
            if batch.append(**given) is None:
                sent.append((await producer.send_batch(batch, topic, partition=partition), inside))
                batch, inside = producer.create_batch(), []
                batch.append(**given)
            inside.append(index)
        sent.append((await producer.send_batch(batch, topic, partition=partition), inside))
    all_written = await asyncio.gather(*(future for future, _ in sent))
    places: list[Place] = [Place(0, None)] * len(records)
    for written, (_, inside) in zip(all_written, sent, strict=True):
        for behind, index in enumerate(inside):
            # Below 0: a repetition of a batch that was written longer ago than the brokers remember.
            offset = None if written.offset < 0 else written.offset + behind
            places[index] = Place(written.partition, offset)
    return places


async def _stop(producer: AIOKafkaProducer) -> None:
    """Stop it, whatever is under way: while Kafka is away, that would wait for it."""
    try:
        async with asyncio.timeout(STOP_SECONDS):
            await producer.stop()
    except (KafkaError, OSError, TimeoutError):
        with suppress(KafkaError, OSError):
            await producer.client.close()
