"""A partition's records from an offset to its end."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from types import TracebackType
from typing import Any, Final, Self, cast

from aiokafka import TopicPartition

from wire import AIOKafkaConsumer

FETCH_BYTES: Final = 1 << 20
"""Of each partition, as it is on the wire: what a reader holds in memory."""


class LogReader:
    """Reads stretches of logs, one at a time. Joins no group and commits nothing; sees committed records only.

    Use as `async with LogReader(brokers, client_id) as reader`. Entering raises KafkaConnectionError when no broker answers.
    """

    def __init__(self, brokers: Sequence[str], client_id: str) -> None:
        """`brokers`: each host:port; `client_id` tells their operator who asks."""
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=list(brokers),
            client_id=client_id,
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=50,
            max_partition_fetch_bytes=FETCH_BYTES,
        )

    async def __aenter__(self) -> Self:
        try:
            await self._consumer.start()
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._consumer.stop()

    async def exists(self, topic: str) -> bool:
        """Tell whether the brokers have a topic."""
        return topic in await self._consumer.topics()

    async def beginnings(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the first offsets of these logs."""
        return cast(dict[TopicPartition, int], await self._consumer.beginning_offsets(list(partitions)))

    async def ends(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the end offsets of these logs now, for a reader of committed records."""
        return cast(dict[TopicPartition, int], await self._consumer.end_offsets(list(partitions)))

    async def stretch(self, partition: TopicPartition, start: int, end: int) -> AsyncGenerator[list[Any], None]:
        """The records of one partition from `start` and below `end`, in order, some at a time. A log that begins later is read from there.

        Blocks while the broker is away.
        """
        consumer = self._consumer
        consumer.assign([partition])
        start = max(start, (await self.beginnings([partition]))[partition])
        consumer.seek(partition, start)
        while await consumer.position(partition) < end:
            records = (await consumer.getmany(partition, timeout_ms=500)).get(partition, ())
            stretch = [record for record in records if record.offset < end]
            if stretch:
                yield stretch
