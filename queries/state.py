"""Read one order's state from the changelog, because a worker has the table itself open."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from functools import partial
from typing import Final
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


class StatesMissing(OrdersError):
    """The changelog isn't there, or another number of lanes has written it."""


async def read_state(settings: Settings, order_id: UUID) -> Order | None:
    """The order's newest state, or None if no fact of it is known.

    Blocks while one partition of the changelog is read: about a second for a quarter of a million states.
    Raises StatesMissing if the topic is missing and what aiokafka raises when no broker answers.
    """
    topic = settings.changelog_topic
    key = order_id.bytes
    newest: bytes | None = None
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
        async with aclosing(reader.read(partition, 0, end)) as stretches:
            async for records, _ in stretches:
                for record in records:
                    if (
                        record.key == key
                        and record.value is not None
                        and codec.is_state(key, record.value)
                        and (newest is None or codec.version_of(record.value) >= codec.version_of(newest))
                    ):
                        newest = record.value
    return None if newest is None else codec.decode(newest)


class States:
    """Reads of single states, for a service: two at a time, and one for all who ask for the same order."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._flight = SingleFlight()
        self._places = asyncio.Semaphore(_PLACES)

    async def of(self, order_id: UUID) -> Order | None:
        """As read_state, within ten seconds. Raises Unavailable where that one raises, and beyond them."""
        return await self._flight.do(order_id, partial(self._of, order_id))

    async def _of(self, order_id: UUID) -> Order | None:
        try:
            async with asyncio.timeout(_PATIENCE), self._places:
                return await read_state(self._settings, order_id)
        except TimeoutError:
            raise Unavailable(f"the changelog wasn't read within {_PATIENCE:g} s") from None
        except (KafkaError, OSError) as error:
            raise Unavailable("Kafka, which has the facts, doesn't answer") from error
        except OrdersError as error:
            raise Unavailable("the changelog can't be read") from error
