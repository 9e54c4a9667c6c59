"""Reads a stretch of a changelog once more, beside the lane that owns it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from aiokafka import TopicPartition
from faust.types import TP

from streams.transport.records import Record
from wire import AIOKafkaConsumer

AT_ONCE: Final = 50
"""Records at once: the event loop does nothing else while their states are looked at."""
FETCH_BYTES: Final = 1 << 18
WAIT: Final = 2.0
"""Seconds without anything to read after which it is given up for now."""


class Stretch(NamedTuple):
    """Some records, and the position behind them."""

    records: Sequence[Record]
    position: int


async def stretches(options: Mapping[str, Any], tp: TP, since: int, end: int) -> AsyncGenerator[Stretch, None]:
    """Committed records from position `since` (or where the log begins) up to `end` at least, AT_ONCE at a time.

    `options`: how to connect, as for any aiokafka client. Ends early while the brokers are away or a transaction is open. Raises
    KafkaError.
    """
    consumer = AIOKafkaConsumer(
        **options,
        group_id=None,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level="read_committed",
        max_partition_fetch_bytes=FETCH_BYTES,
    )
    try:
        await consumer.start()
        source = TopicPartition(*tp)
        consumer.assign([source])
        position = max(since, (await consumer.beginning_offsets([source]))[source])
        consumer.seek(source, position)
        while position < end:
            records = (await consumer.getmany(source, timeout_ms=int(WAIT * 1000), max_records=AT_ONCE)).get(source, [])
            before, position = position, await consumer.position(source)
            if position == before:
                return
            yield Stretch(records, position)
    finally:
        await consumer.stop()
