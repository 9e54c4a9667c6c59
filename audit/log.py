"""Reading Kafka's log from its start to a fixed end, one partition at a time, outside any consumer group."""

from __future__ import annotations

import asyncio
import functools
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

from aiokafka import TopicPartition
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.consumer.fetcher import READ_COMMITTED
from aiokafka.errors import (
    CoordinatorNotAvailableError,
    KafkaConnectionError,
    KafkaError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    NotCoordinatorError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    ReplicaNotAvailableError,
    RequestTimedOutError,
    for_code,
)
from aiokafka.protocol.fetch import FetchRequest

from errors import OrdersError
from wire import PartitionRecords, RecordBatches, clients, learn_topics
from wire.topic_ids import topic_ids

Progress = Callable[[int], None]

_STALLED: Final = 60.0
_FETCH_BYTES: Final = 4 << 20
_FETCH_WAIT_MS: Final = 100
_PASSING: Final = (
    KafkaConnectionError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    NotLeaderForPartitionError,
    ReplicaNotAvailableError,
    RequestTimedOutError,
)
"""A broker is being replaced: asked again, by fresh metadata."""


class Record(Protocol):
    """What the audit reads of a Kafka record. `timestamp` is in milliseconds."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


@functools.lru_cache(maxsize=1 << 16)  # an order has rows and cache entries in several places
def partition_of(key: bytes, partitions: int) -> int:
    """Where Kafka's default partitioner puts a key: murmur2 of it, as the JVM's clients have it (a test
    compares with aiokafka's).
    """
    length = len(key)
    words = length // 4
    hashed = 0x9747B28C ^ length
    for word in struct.unpack_from(f"<{words}I", key):
        word = word * 0x5BD1E995 & 0xFFFFFFFF
        hashed = (hashed * 0x5BD1E995 ^ (word ^ word >> 24) * 0x5BD1E995) & 0xFFFFFFFF
    if tail := key[4 * words :]:
        hashed = (hashed ^ int.from_bytes(tail, "little")) * 0x5BD1E995 & 0xFFFFFFFF
    hashed = (hashed ^ hashed >> 13) * 0x5BD1E995 & 0xFFFFFFFF
    return ((hashed ^ hashed >> 15) & 0x7FFFFFFF) % partitions


class _Batches(RecordBatches):
    """One partition is read at a time, so much of it at once."""

    most_bytes = 64 << 20


class _Records(PartitionRecords):
    """Records as aiokafka's parser (in C) makes them: a ConsumerRecord of each costs more than
    all the rest of reading it.
    """

    def _consumer_record(self, tp: TopicPartition, record: Any) -> Any:
        return record


class LogUnavailable(OrdersError):
    """Kafka can't be reached, or stopped answering. The message says which server and what happened."""

    remedy = "start it (orders stack up), or set where it is (ORDERS_KAFKA)"


@dataclass(frozen=True, slots=True)
class Span:
    """The offsets of a partition that can be read: [start, end)."""

    start: int
    end: int


def told(error: BaseException) -> str:
    """What an error says; its kind where it says nothing (a time-out does)."""
    return str(error) or type(error).__name__


class Log:
    """A reader of whole partitions. One read at a time.

    Use as `async with Log(settings) as log`. Every method may block on the network and raises LogUnavailable.
    """

    def __init__(self, settings: clients.KafkaSettings, *, timeout: float = 10.0) -> None:
        self._settings = settings
        self._timeout = timeout
        self._consumer: Any | None = None
        self._admin: Any | None = None
        self._fetching: asyncio.Task[Any] | None = None

    async def __aenter__(self) -> Self:
        consumer = clients.consumer(self._settings, "orders-audit", auto_offset_reset="none")
        self._admin = clients.admin(self._settings, "orders-audit")
        self._consumer = consumer
        try:
            await asyncio.wait_for(consumer.start(), self._timeout)
            await asyncio.wait_for(self._admin.start(), self._timeout)
        except (KafkaError, TimeoutError, OSError) as error:
            await self._close()
            raise LogUnavailable(f"no Kafka at {','.join(self._settings.brokers)}: {told(error)}") from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._close()

    async def _close(self) -> None:
        consumer, admin, self._consumer, self._admin = self._consumer, self._admin, None, None
        if self._fetching is not None:
            self._fetching.cancel()
            await asyncio.gather(self._fetching, return_exceptions=True)
        if admin is not None:
            await admin.close()
        if consumer is not None:
            await consumer.stop()

    @property
    def _reader(self) -> Any:
        if self._consumer is None:
            raise RuntimeError("the log is not open: use it as `async with Log(...)`")
        return self._consumer

    @property
    def _cluster(self) -> Any:
        if self._admin is None:
            raise RuntimeError("the log is not open: use it as `async with Log(...)`")
        return self._admin

    async def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        """Topic -> number of partitions; a topic that doesn't exist is left out."""
        try:
            known = set(await asyncio.wait_for(self._cluster.list_topics(), self._timeout))
            described = await asyncio.wait_for(
                self._cluster.describe_topics([topic for topic in topics if topic in known]), self._timeout
            )
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(f"Kafka lists no topics: {told(error)}") from error
        return {each["topic"]: len(each["partitions"]) for each in described if each["partitions"]}

    async def topic_ids(self, topics: Iterable[str]) -> dict[str, str]:
        """Topic -> its id, which another topic of this name hasn't; without those that have none."""
        try:
            return await asyncio.wait_for(topic_ids(self._cluster._client, topics), self._timeout)
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(f"Kafka tells no ids of topics: {told(error)}") from error

    async def largest_batch(self, topic: str) -> int | None:
        """A topic's max.message.bytes; None: it may not be seen."""
        resource = ConfigResource(ConfigResourceType.TOPIC, topic)
        try:
            answers = await asyncio.wait_for(self._cluster.describe_configs([resource]), self._timeout)
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(f"Kafka tells no configuration of {topic}: {told(error)}") from error
        entries = [entry for answer in answers for each in answer.resources for entry in each[4]]
        return next((int(entry[1]) for entry in entries if entry[0] == "max.message.bytes"), None)

    async def cluster(self) -> str:
        """The cluster's id."""
        try:
            described: dict[str, Any] = await asyncio.wait_for(
                self._cluster.describe_cluster(), self._timeout
            )
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(f"Kafka doesn't describe itself: {told(error)}") from error
        return str(described["cluster_id"])

    async def spans(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Span]:
        """What can be read of each partition now."""
        wanted = list(partitions)
        if not wanted:
            return {}
        try:
            await asyncio.wait_for(
                learn_topics(self._reader, {partition.topic for partition in wanted}), self._timeout
            )
            starts = await asyncio.wait_for(self._reader.beginning_offsets(wanted), self._timeout)
            ends = await asyncio.wait_for(self._reader.end_offsets(wanted), self._timeout)
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(f"Kafka tells no offsets: {told(error)}") from error
        return {partition: Span(starts[partition], ends[partition]) for partition in wanted}

    async def began(self, partitions: Iterable[TopicPartition]) -> int | None:
        """When the first record of these partitions was written, ms since 1970; None: they have none."""
        wanted = dict.fromkeys(partitions, 0)
        if not wanted:
            return None
        try:
            firsts = await asyncio.wait_for(self._reader.offsets_for_times(wanted), self._timeout)
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(f"Kafka tells no times: {told(error)}") from error
        return min((int(first.timestamp) for first in firsts.values() if first is not None), default=None)

    async def written(
        self, topics: Iterable[str], number: int, counts: Mapping[str, int]
    ) -> dict[TopicPartition, Span]:
        """What can be read now of a partition of each topic. `counts`: partitions of all that exist."""
        return await self.spans(
            [TopicPartition(topic, number) for topic in topics if number < counts.get(topic, 0)]
        )

    async def committed(self, group: str) -> dict[TopicPartition, int]:
        """What a consumer group has committed; a partition without a commit is left out."""
        give_up = asyncio.get_running_loop().time() + self._timeout
        while True:
            try:
                offsets = await asyncio.wait_for(
                    self._cluster.list_consumer_group_offsets(group), self._timeout
                )
                break
            except (CoordinatorNotAvailableError, NotCoordinatorError) as error:
                # A cluster that never had a group makes its offsets topic at the first question.
                if asyncio.get_running_loop().time() > give_up:
                    raise LogUnavailable(f"Kafka has no coordinator of group {group}") from error
                await asyncio.sleep(0.2)
            except (KafkaError, TimeoutError) as error:
                raise LogUnavailable(f"Kafka tells no offsets of group {group}: {told(error)}") from error
        return {partition: commit.offset for partition, commit in offsets.items() if commit.offset >= 0}

    async def members(self, group: str) -> int:
        """How many members a consumer group has."""
        try:
            responses = await asyncio.wait_for(self._cluster.describe_consumer_groups([group]), self._timeout)
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(f"Kafka doesn't describe group {group}: {told(error)}") from error
        return sum(len(described[5]) for response in responses for described in response.groups)

    async def read(
        self, partition: TopicPartition, span: Span, progress: Progress | None = None
    ) -> AsyncIterator[Sequence[Record]]:
        """The records of [span.start, span.end) in order, a list for each fetch.
        `progress` is called with the number in each.

        Raises LogUnavailable when nothing comes for a minute, and when records were deleted meanwhile.
        """
        if span.start >= span.end:
            return
        loop = asyncio.get_running_loop()
        position, moved = span.start, loop.time()
        fetching = self._fetch(partition, position)
        while position < span.end:
            records, after = await fetching
            if after > position:
                position, moved = after, loop.time()
            elif loop.time() - moved > _STALLED:
                raise LogUnavailable(
                    f"{partition.topic}/{partition.partition} stands still at {position}, its end is"
                    f" {span.end}"
                )
            if position < span.end:
                fetching = self._fetch(partition, position)
                await asyncio.sleep(0)  # the broker reads the next ones while these are looked at
            elif records and records[-1].offset >= span.end:
                records = [record for record in records if record.offset < span.end]
            if records:
                if progress is not None:
                    progress(len(records))
                yield records

    def _fetch(self, partition: TopicPartition, position: int) -> asyncio.Task[tuple[list[Record], int]]:
        task = asyncio.ensure_future(self._fetched(partition, position))
        self._fetching = task
        return task

    async def _fetched(self, partition: TopicPartition, position: int) -> tuple[list[Record], int]:
        """Records from `position` on, and the position after them. None yet: ([], position)."""
        client = self._reader._client
        where = f"{partition.topic}/{partition.partition} at {position}"
        request = FetchRequest(
            _FETCH_WAIT_MS,
            1,
            _FETCH_BYTES,
            READ_COMMITTED,
            [(partition.topic, [(partition.partition, position, _FETCH_BYTES)])],
        )
        try:
            leader = client.cluster.leader_for_partition(partition)
            if leader is None or leader == -1:
                raise LeaderNotAvailableError
            response = await client.send(leader, request)
            ((_, ((_, code, _, *part),)),) = response.topics
            if code:
                raise for_code(code)
        except _PASSING:
            client.add_topic(partition.topic)
            await client.force_metadata_update()
            await asyncio.sleep(0.2)
            return [], position
        except OffsetOutOfRangeError as error:
            raise LogUnavailable(
                f"records of {partition.topic}/{partition.partition} were deleted while they were read",
                "run it again",
            ) from error
        except KafkaError as error:
            raise LogUnavailable(f"reading {where}: {told(error)}") from error
        aborted = part[2] if response.API_VERSION >= 11 else part[-2]
        partition_records = _Records(
            partition, _Batches(part[-1]), aborted, position, None, None, True, READ_COMMITTED
        )
        try:
            records = list(partition_records)
        except KafkaError as error:
            raise LogUnavailable(f"reading {where}: {told(error)}") from error
        # Behind the last record lie offsets without records: compacted ones, markers of transactions.
        return records, partition_records.next_fetch_offset
