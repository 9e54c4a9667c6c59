"""Read one order's state from the changelog, because a worker has the table itself open."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import aclosing
from datetime import datetime
from functools import partial
from typing import Final, NamedTuple
from uuid import UUID

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError

from domain.order import Order
from errors import OrdersError
from queries.errors import Unavailable
from queries.flight import SingleFlight
from settings import Settings
from streams.partitioner import partition_of
from tables import codec
from wire.log import LogReader

_PLACES: Final = 2
"""Reads of the changelog at the same time, of a process: each takes a core and half a network for a while."""
_PATIENCE: Final = 10.0
"""Seconds for one, with the wait for its turn."""
_KEPT: Final = 100
"""Orders of which it is kept what was found."""
_KEPT_BYTES: Final = 128 << 10
"""Of a state that is kept."""
_KEPT_SECONDS: Final = 60.0


class StatesMissing(OrdersError):
    """The changelog isn't there, or another number of lanes has written it."""


class Known(NamedTuple):
    """What a read of the changelog has found of an order: its newest state, None if there is none, and the
    offset up to which was read.
    """

    state: bytes | None
    position: int


async def read_state(settings: Settings, order_id: UUID) -> Order | None:
    """The order's newest state, or None if no fact of it is known.

    Blocks while one partition of the changelog is read: about a second for a quarter of a million states.
    Raises StatesMissing if the topic is missing and what aiokafka raises when no broker answers.
    """
    state = (await read_known(settings, order_id)).state
    return None if state is None else codec.decode(state)


async def read_known(
    settings: Settings, order_id: UUID, known: Known | None = None, since: datetime | None = None
) -> Known:
    """The order's newest state. Blocks and raises as read_state.

    `known`: what an earlier read has found; only what was written since then is read. `since`: a time at
    which the state probably wasn't written yet. What lies before that is read only if the rest has nothing of
    the order: the last state of it is its newest one, so a wrong time costs time, and no more.
    """
    topic = settings.changelog_topic
    async with LogReader(settings, "orders-state", max_poll_records=10_000) as reader:
        partitions = await reader.partitions(topic)
        if not partitions:
            raise StatesMissing(
                f"topic {topic} doesn't exist on Kafka at {settings.kafka}", "run orders init"
            )
        partition = TopicPartition(topic, partition_of(str(order_id).encode(), settings.partitions))
        if partition.partition not in partitions:
            raise StatesMissing(
                f"topic {topic} has {len(partitions)} partitions, ORDERS_PARTITIONS is {settings.partitions}",
                f"set it to {len(partitions)}",
            )
        end = (await reader.ends([partition]))[partition]
        if known is not None and known.position <= end:
            state = await _newest(reader, partition, known.position, end, order_id, known.state)
            return Known(state, end)
        start = 0
        if since is not None:
            start = (await reader.since([partition], int(since.timestamp() * 1000)))[partition]
        state = await _newest(reader, partition, start, end, order_id, None)
        if state is None and start > 0:
            state = await _newest(reader, partition, 0, start, order_id, None)
    return Known(state, end)


async def _newest(
    reader: LogReader, partition: TopicPartition, start: int, end: int, order_id: UUID, newest: bytes | None
) -> bytes | None:
    key = order_id.bytes
    async with aclosing(reader.read(partition, start, end)) as stretches:
        async for records, _ in stretches:
            for record in records:
                if (
                    record.key == key
                    and record.value is not None
                    and codec.is_state(key, record.value)
                    and (newest is None or codec.version_of(record.value) >= codec.version_of(newest))
                ):
                    newest = record.value
    return newest


class States:
    """Reads of single states, for a service: two at a time, and one for all who ask for the same order.

    Who looks at an order looks at it again, so what was found of the last ones is kept for a minute.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._flight = SingleFlight()
        self._places = asyncio.Semaphore(_PLACES)
        self._kept: OrderedDict[UUID, tuple[float, Known]] = OrderedDict()

    async def of(self, order_id: UUID, since: datetime | None = None) -> Order | None:
        """As read_state, within ten seconds; `since`: see read_known. Raises Unavailable where that one
        raises, and beyond them.
        """
        return await self._flight.do(order_id, partial(self._of, order_id, since))

    async def _of(self, order_id: UUID, since: datetime | None) -> Order | None:
        now = asyncio.get_running_loop().time()
        at, known = self._kept.pop(order_id, (0.0, None))
        try:
            async with asyncio.timeout(_PATIENCE), self._places:
                # A changelog that was made anew would have other states below that offset.
                fresh = known if now < at + _KEPT_SECONDS else None
                newest = await read_known(self._settings, order_id, fresh, since)
        except TimeoutError:
            raise Unavailable(f"the changelog wasn't read within {_PATIENCE:g} s") from None
        except (KafkaError, OSError) as error:
            raise Unavailable("Kafka, which has the facts, doesn't answer") from error
        except OrdersError as error:
            raise Unavailable("the changelog can't be read") from error
        if len(newest.state or b"") <= _KEPT_BYTES:
            self._kept[order_id] = now, newest
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return None if newest.state is None else codec.decode(newest.state)
