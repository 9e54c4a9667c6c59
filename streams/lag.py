"""The lag of a consumer group on the topics of the lanes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Final, NamedTuple, cast

from aiokafka import TopicPartition
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NotCoordinatorForGroupError,
)
from aiokafka.structs import OffsetAndMetadata

from contracts.topics import DERIVED, DLQ, LANE, REDRIVEN
from settings import Settings
from streams.topics import require
from streams.transport.waits import Totals, read_notes
from wire import clients, learn_topics
from wire.metadata import require_visible

COORDINATOR_SECONDS: Final = 30.0
"""How long a group's coordinator may be away: a new cluster makes its offsets topic when first asked, a
broker that failed is replaced.
"""


class Position(NamedTuple):
    """Position in one partition: the next offset that the group would read, and the one that the next record
    will get."""

    committed: int
    end: int

    @property
    def lag(self) -> int:
        """Records still to be handled."""
        return max(0, self.end - self.committed)


Lag = dict[tuple[str, int], Position]


class Look(NamedTuple):
    """A group at one moment: its lag, and how long records have waited in its workers, by worker."""

    lag: Lag
    waits: dict[str, Totals]


class LagReader:
    """Reads the group's lag, again and again over the same connections. An async context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._group = settings.group
        self._changelog = settings.changelog_topic
        self._written = (*DERIVED, DLQ, REDRIVEN, self._changelog)
        self._admin = clients.admin(settings, "orders-lag", request_timeout_ms=30_000)
        # In no group: they only ask for offsets and must never take part in a rebalance.
        self._offsets = clients.consumer(
            settings, "orders-lag", isolation_level="read_uncommitted", request_timeout_ms=30_000
        )
        self._stable = clients.consumer(settings, "orders-lag", request_timeout_ms=30_000)

    async def __aenter__(self) -> LagReader:
        """Connect. Raises aiokafka.errors.KafkaConnectionError when no broker answers."""
        try:
            await self._admin.start()
            await self._offsets.start()
            await self._stable.start()
        except BaseException:
            await self.close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections. May be called twice."""
        await self._offsets.stop()
        await self._stable.stop()
        await self._admin.close()

    async def lag(self) -> Lag:
        """Committed and end offset of every partition that the lanes read, internal topics too.
        Raises TopicsMissing, KafkaError.

        A partition without a commit counts from its log's start.

        When every partition's lag is 0, nothing that was sent before this call is unfinished, nor anything
        that it caused. Why: the ends are read after all the commits. Say some record is unfinished that was
        in its log when its end was read: its offset is at or above its commit, which was read before, so that
        lag is above 0. So an unfinished record was appended after its end was read, and so after every commit
        was read. If the pipeline appended it (orders.decisions, orders.rekeyed), then while it handled a
        record that was not yet committed at that moment, because a cause is committed only after what it
        appends is acknowledged. That cause was unfinished too when the commits were read: the same holds for
        it. Going back like this ends at a record that no pipeline appended: one that was sent after this call
        began. Read the other way round, ends first, a decision could slip in between.

        Transactions change nothing of that: an end counts records whose transaction is open, and a cause's
        offset is committed with what it appends or not at all. Their markers take offsets as well; a lane
        commits the position behind them.
        """
        return (await self.look()).lag

    async def look(self) -> Look:
        """The lag, and with it what the workers have noted beside their offsets. Raises as lag() does."""
        partitions = await self._partitions(LANE)
        committed = await self._committed()
        starts = await self._offsets.beginning_offsets(partitions)
        ends = await self._offsets.end_offsets(partitions)
        positions: Lag = {}
        for partition in partitions:
            commit = committed.get(partition)
            start = starts[partition]
            position = start if commit is None or commit.offset < 0 else max(commit.offset, start)
            positions[partition.topic, partition.partition] = Position(position, ends[partition])
        return Look(positions, read_notes(commit.metadata for commit in committed.values()))

    async def written(self) -> dict[TopicPartition, int]:
        """Where each partition that the pipeline writes ends now, what isn't committed included."""
        ends: dict[TopicPartition, int] = await self._offsets.end_offsets(
            await self._partitions(self._written)
        )
        return ends

    async def unseen(self, ends: Mapping[TopicPartition, int] | None = None) -> dict[str, int]:
        """Return, by topic, the offsets below `ends` (written(); None: the present ones) that readers of
        committed records don't reach yet.

        If it is empty, they see everything that was written before. A committed transaction is in the offsets
        first, and visible on each topic a moment later.
        """
        ends = await self.written() if ends is None else ends
        stable = await self._stable.end_offsets(list(ends))
        return by_topic({(tp.topic, tp.partition): Position(stable[tp], end) for tp, end in ends.items()})

    async def changelog_ends(self) -> dict[int, int]:
        """Lane -> where its changelog ends now."""
        partitions = await self._partitions([self._changelog])
        return {tp.partition: end for tp, end in (await self._offsets.end_offsets(partitions)).items()}

    async def members(self) -> int:
        """Return how many consumers are in the group; with 0 the lag doesn't shrink."""
        responses = await self._admin.describe_consumer_groups([self._group])
        return sum(len(group[5]) for response in responses for group in response.groups)

    async def _committed(self) -> dict[TopicPartition, OffsetAndMetadata]:
        deadline = time.monotonic() + COORDINATOR_SECONDS
        while True:
            try:
                return cast(
                    dict[TopicPartition, OffsetAndMetadata],
                    await self._admin.list_consumer_group_offsets(self._group),
                )
            except (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError):
                if time.monotonic() > deadline:
                    raise
                await asyncio.sleep(0.1)

    async def _partitions(self, topics: Sequence[str]) -> list[TopicPartition]:
        described = {
            topic["topic"]: topic["partitions"]
            for topic in await self._admin.describe_topics()
            if not topic["error_code"]
        }
        await require_visible(self._admin._client, [topic for topic in topics if topic not in described])
        require(self._settings, topics, described)
        for consumer in (self._offsets, self._stable):
            await learn_topics(consumer, topics)
        return [
            TopicPartition(name, number)
            for name in topics
            for number in sorted(part["partition"] for part in described[name])
        ]


def total(lag: Lag) -> int:
    """Records still to be handled, over all partitions."""
    return sum(position.lag for position in lag.values())


def by_topic(lag: Lag) -> dict[str, int]:
    """Records still to be handled by topic, without those at 0."""
    sums: dict[str, int] = {}
    for (topic, _), position in lag.items():
        if position.lag:
            sums[topic] = sums.get(topic, 0) + position.lag
    return sums
