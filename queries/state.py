"""Reads one order's state from the table's changelog: the table itself is open in a worker."""

from __future__ import annotations

from uuid import UUID

from aiokafka import TopicPartition

from domain.order import Order
from errors import OrdersError
from settings import Settings
from streams.partitioner import partition_of
from tables import codec
from wire import AIOKafkaConsumer


class StatesMissing(OrdersError):
    """The changelog isn't there, or another number of lanes has written it."""


async def read_state(settings: Settings, order_id: UUID) -> Order | None:
    """The order's newest state, or None if no fact of it is known.

    Blocks while one partition of the changelog is read: about a second for a quarter of a million states. Raises StatesMissing if the topic
    is missing and what aiokafka raises when no broker answers.
    """
    topic = settings.changelog_topic
    key = order_id.bytes
    newest: bytes | None = None
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.brokers,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        fetch_max_bytes=64 << 20,
    )
    try:
        await consumer.start()
        partitions = consumer.partitions_for_topic(topic) or await _partitions(consumer, topic)
        if not partitions:
            raise StatesMissing(f"topic {topic} doesn't exist on Kafka at {settings.kafka}", "run orders init")
        partition = TopicPartition(topic, partition_of(str(order_id).encode(), settings.partitions))
        if partition.partition not in partitions:
            raise StatesMissing(
                f"topic {topic} has {len(partitions)} partitions, ORDERS_PARTITIONS is {settings.partitions}",
                f"set it to {len(partitions)}",
            )
        consumer.assign([partition])
        end = (await consumer.end_offsets([partition]))[partition]
        await consumer.seek_to_beginning(partition)
        while await consumer.position(partition) < end:
            for records in (await consumer.getmany(timeout_ms=1000, max_records=10_000)).values():
                for record in records:
                    if (
                        record.key == key
                        and record.value is not None
                        and codec.is_state(key, record.value)
                        and (newest is None or codec.version_of(record.value) >= codec.version_of(newest))
                    ):
                        newest = record.value
    finally:
        await consumer.stop()
    return None if newest is None else codec.decode(newest)


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> set[int] | None:
    await consumer._client.force_metadata_update()
    found: set[int] | None = consumer.partitions_for_topic(topic)
    return found
