"""The records of one order as they lie on the topics that its lane reads."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any, Final, NamedTuple
from uuid import UUID

from aiokafka import TopicPartition

from contracts.topics import LANE
from settings import Settings
from streams.lanes import lanes, sources
from streams.partitioner import partition_of
from wire.log import LogReader

MOST: Final = 500
"""Records that are returned."""


class Raw(NamedTuple):
    """A record. `time`: the brokers', ms since 1970."""

    topic: str
    partition: int
    offset: int
    time: int
    headers: tuple[tuple[str, bytes | None], ...]
    value: bytes | None


class RawRecords(NamedTuple):
    """What was found, in the order of the brokers' times. `looked_at`: records; `whole`: all that were to be
    looked at were.
    """

    records: list[Raw]
    looked_at: int
    whole: bool


async def of_order(
    settings: Settings, order_id: UUID, since: int, until: int | None, seconds: float
) -> RawRecords:
    """The records keyed by this order that the brokers took from `since` on and before `until` (ms since
    1970; None: now).

    There is no index by order: all records of that time in its lane's partitions are read, for `seconds` at
    most. Blocks for as long. Raises KafkaError, PartitionMismatch.
    """
    key = str(order_id).encode()
    known = await lanes(settings)
    numbers = sources(partition_of(key, known.number), known.former)
    of_it: list[Raw] = []
    looked_at = 0
    deadline = asyncio.get_running_loop().time() + seconds
    async with LogReader(settings, "orders-records", max_poll_records=10_000) as log:
        # A topic that isn't there yet would be waited for.
        places = [
            TopicPartition(topic, number)
            for topic in LANE
            for number in sorted((await log.partitions(topic)).intersection(numbers))
        ]
        starts = await log.since(places, since)
        ends = await log.ends(places) if until is None else await log.since(places, until)
        for place in places:
            async with aclosing(log.read(place, starts[place], ends[place])) as stretches:
                async for records, _ in stretches:
                    looked_at += len(records)
                    of_it += [_raw(record) for record in records if (record.key or b"").lower() == key]
                    if len(of_it) > MOST or asyncio.get_running_loop().time() > deadline:
                        return RawRecords(_by_time(of_it)[:MOST], looked_at, whole=False)
    return RawRecords(_by_time(of_it), looked_at, whole=True)


def _raw(record: Any) -> Raw:
    return Raw(
        record.topic,
        record.partition,
        record.offset,
        record.timestamp,
        tuple(record.headers),
        record.value,
    )


def _by_time(records: list[Raw]) -> list[Raw]:
    return sorted(records, key=lambda each: (each.time, each.topic, each.partition, each.offset))
