"""Partitions read from an offset to an end: the one reader of whole logs, but for the auditor's."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections.abc import AsyncGenerator, Mapping, Sequence
from operator import attrgetter
from types import TracebackType
from typing import Any, Final, NamedTuple, Self, cast

from aiokafka import TopicPartition
from aiokafka.errors import KafkaTimeoutError

from wire import learn_topics, partitions_of
from wire.clients import KafkaSettings, consumer

FETCH_BYTES: Final = 1 << 20
"""Of each partition, as it is on the wire: what a reader holds in memory."""
_WAIT_MS: Final = 500
_offset: Final = attrgetter("offset")


class Stretch(NamedTuple):
    """Some records of a partition, in order, and the position behind them.

    Offsets that hold no record (compacted ones, markers of transactions) lie below the position as well.
    """

    records: Sequence[Any]
    position: int


class Stalled(KafkaTimeoutError):  # type: ignore[misc]
    """Nothing more of a log can be read for now: the brokers are away, or a transaction is open.

    The message names the partition.
    """


class LogReader:
    """Reads stretches of logs, one at a time.
    Joins no group and commits nothing; sees committed records only.

    Use as `async with LogReader(settings, client_id) as reader`. Entering raises KafkaConnectionError when no
    broker answers.
    """

    def __init__(
        self, settings: KafkaSettings, client_id: str, *, stall_timeout: float = 60.0, **options: Any
    ) -> None:
        """`stall_timeout`: seconds without progress after which a read is given up; math.inf:
        never. `options`: keyword arguments of aiokafka's consumer (max_poll_records: how many
        records a stretch has at most).
        """
        ours = {
            "auto_offset_reset": "none",
            "fetch_max_wait_ms": 50,
            "max_partition_fetch_bytes": FETCH_BYTES,
        }
        self._consumer = consumer(settings, client_id, **{**ours, **options})
        self._stall_timeout = stall_timeout

    async def __aenter__(self) -> Self:
        try:
            await self._consumer.start()
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # aiokafka's stop() is cancelled itself if a task of the consumer hasn't begun yet.
        await asyncio.sleep(0)
        await self._consumer.stop()

    async def partitions(self, topic: str) -> set[int]:
        """The numbers of a topic's partitions; none if the brokers don't have the topic.

        Blocks for a round trip. Raises KafkaError.
        """
        return (await partitions_of(self._consumer, [topic])).get(topic, set())

    async def beginnings(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the first offsets of these logs. Blocks for round trips. Raises KafkaError."""
        await learn_topics(self._consumer, {partition.topic for partition in partitions})
        return cast(dict[TopicPartition, int], await self._consumer.beginning_offsets(list(partitions)))

    async def ends(self, partitions: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        """Return the end offsets of these logs now, for a reader of committed records.

        Blocks for round trips. Raises KafkaError.
        """
        await learn_topics(self._consumer, {partition.topic for partition in partitions})
        return cast(dict[TopicPartition, int], await self._consumer.end_offsets(list(partitions)))

    async def since(self, partitions: Sequence[TopicPartition], time: int) -> dict[TopicPartition, int]:
        """Return for each log the offset of its first record of that time (ms since 1970) or later: its end
        where there is none.

        Blocks for round trips. Raises KafkaError.
        """
        ends = await self.ends(partitions)
        firsts = await self._consumer.offsets_for_times(dict.fromkeys(partitions, time))
        return {
            partition: end if firsts.get(partition) is None else firsts[partition].offset
            for partition, end in ends.items()
        }

    async def read(self, partition: TopicPartition, start: int, end: int) -> AsyncGenerator[Stretch, None]:
        """The records of one partition from `start` and below `end`, in order, some at a time.

        A log that begins later is read from where it begins. Blocks while the brokers are away, for
        `stall_timeout` at most. Raises Stalled, and what aiokafka raises.
        """
        if start >= end:
            return
        position = max(start, (await self.beginnings([partition]))[partition])
        self._seek({partition: position})
        clock = asyncio.get_running_loop().time
        moved = clock()
        while position < end:
            before = position
            records, position = (await self._fetch({partition: end}))[partition]
            if position > before:
                yield Stretch(records, position)
                moved = clock()
            elif clock() - moved >= self._stall_timeout:
                raise Stalled(
                    f"{partition.topic}/{partition.partition} stands still at {position}, its end is {end}"
                )

    def _seek(self, starts: Mapping[TopicPartition, int]) -> None:
        """Read these partitions next, each from its offset, and no others."""
        self._consumer.assign(list(starts))
        for partition, offset in starts.items():
            self._consumer.seek(partition, offset)

    async def _fetch(self, ends: Mapping[TopicPartition, int]) -> dict[TopicPartition, Stretch]:
        """The next stretch of each of these partitions below its end, empty where nothing has come.

        Each must be one of those that were given to _seek last. Blocks until one of them has something, for
        half a second at most. Once a partition is read to its end, the consumer fetches no more of it.
        """
        fetched = await self._consumer.getmany(*ends, timeout_ms=_WAIT_MS)
        stretches: dict[TopicPartition, Stretch] = {}
        for partition, end in ends.items():
            records = fetched.get(partition, [])
            position = await self._consumer.position(partition)
            if position >= end:
                self._consumer.pause(partition)
                records, position = records[: bisect_left(records, end, key=_offset)], end
            stretches[partition] = Stretch(records, position)
        return stretches
