"""Reading Kafka's log from its start to a fixed end, one partition at a time, outside any consumer group."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Protocol, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import CoordinatorNotAvailableError, KafkaError, NotCoordinatorError

Progress = Callable[[int], None]

_STALLED: Final = 60.0
_FETCH_BYTES: Final = 4 << 20


class Record(Protocol):
    """What the audit reads of a Kafka record. `timestamp` is in milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]


class LogUnavailable(Exception):
    """Kafka can't be reached, or stopped answering. The message says which server and what happened."""


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

    Use as `async with Log(brokers) as log`. Every method may block on the network and raises LogUnavailable.
    """

    def __init__(self, brokers: Sequence[str], *, patience: float = 10.0) -> None:
        self._brokers = list(brokers)
        self._patience = patience
        self._consumer: Any | None = None
        self._admin: AIOKafkaAdminClient | None = None

    async def __aenter__(self) -> Self:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._brokers,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            # A fetch waits at the end of a partition, and questions for offsets wait behind it on the same connection.
            fetch_max_wait_ms=10,
            max_partition_fetch_bytes=_FETCH_BYTES,
        )
        self._admin = AIOKafkaAdminClient(bootstrap_servers=self._brokers)
        self._consumer = consumer
        try:
            await asyncio.wait_for(consumer.start(), self._patience)
            await asyncio.wait_for(self._admin.start(), self._patience)
        except (KafkaError, TimeoutError, OSError) as error:
            await self._close()
            raise LogUnavailable(f"no Kafka at {','.join(self._brokers)}: {told(error)}") from error
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._close()

    async def _close(self) -> None:
        consumer, admin, self._consumer, self._admin = self._consumer, self._admin, None, None
        if admin is not None:
            await admin.close()
        if consumer is not None:
            await consumer.stop()

    @property
    def _reader(self) -> Any:
        if self._consumer is None:
            raise LogUnavailable("the log is not open; use it as `async with Log(...)`")
        return self._consumer

    @property
    def _cluster(self) -> AIOKafkaAdminClient:
        if self._admin is None:
            raise LogUnavailable("the log is not open; use it as `async with Log(...)`")
        return self._admin

    async def partitions(self, topics: Iterable[str]) -> dict[str, int]:
        """Topic -> number of partitions; a topic that doesn't exist is left out."""
        try:
            known = set(await asyncio.wait_for(self._cluster.list_topics(), self._patience))
            described = await asyncio.wait_for(self._cluster.describe_topics([topic for topic in topics if topic in known]), self._patience)
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(f"Kafka lists no topics: {told(error)}") from error
        return {each["topic"]: len(each["partitions"]) for each in described if each["partitions"]}

    async def spans(self, partitions: Iterable[TopicPartition]) -> dict[TopicPartition, Span]:
        """What can be read of each partition now."""
        wanted = list(partitions)
        if not wanted:
            return {}
        try:
            starts = await asyncio.wait_for(self._reader.beginning_offsets(wanted), self._patience)
            ends = await asyncio.wait_for(self._reader.end_offsets(wanted), self._patience)
        except (KafkaError, TimeoutError) as error:
            raise LogUnavailable(f"Kafka tells no offsets: {told(error)}") from error
        return {partition: Span(starts[partition], ends[partition]) for partition in wanted}

    async def committed(self, group: str) -> dict[TopicPartition, int]:
        """What a consumer group has committed; a partition without a commit is left out."""
        give_up = asyncio.get_running_loop().time() + self._patience
        while True:
            try:
                offsets = await asyncio.wait_for(self._cluster.list_consumer_group_offsets(group), self._patience)
                break
            except (CoordinatorNotAvailableError, NotCoordinatorError) as error:
                # A cluster that never had a group makes its offsets topic at the first question.
                if asyncio.get_running_loop().time() > give_up:
                    raise LogUnavailable(f"Kafka has no coordinator of group {group}") from error
                await asyncio.sleep(0.2)
            except (KafkaError, TimeoutError) as error:
                raise LogUnavailable(f"Kafka tells no offsets of group {group}: {told(error)}") from error
        return {partition: commit.offset for partition, commit in offsets.items() if commit.offset >= 0}

    async def read(self, partition: TopicPartition, span: Span, progress: Progress | None = None) -> AsyncIterator[Record]:
        """The records of [span.start, span.end) in order. `progress` is called with the number of records of each fetch."""
        if span.start >= span.end:
            return
        reader = self._reader
        reader.assign([partition])
        reader.seek(partition, span.start)
        loop = asyncio.get_running_loop()
        position, moved = span.start, loop.time()
        while position < span.end:
            try:
                fetched = await reader.getmany(partition, timeout_ms=500)
                records = fetched.get(partition, [])
                # Behind the last record lie offsets without records: compacted ones, markers of transactions.
                after = await asyncio.wait_for(reader.position(partition), self._patience)
            except (KafkaError, TimeoutError) as error:
                raise LogUnavailable(f"reading {partition.topic}/{partition.partition} at {position}: {told(error)}") from error
            for record in records:
                if record.offset < span.end:
                    yield record
            if progress is not None and records:
                progress(len(records))
            if after > position:
                position, moved = after, loop.time()
            elif loop.time() - moved > _STALLED:
                raise LogUnavailable(f"{partition.topic}/{partition.partition} stands still at {position}, its end is {span.end}")
        reader.pause(partition)
