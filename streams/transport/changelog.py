"""Reads a stretch of a changelog once more, beside the lane that owns it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing, suppress
from typing import Any, Final

from aiokafka import TopicPartition
from faust.types import TP

from wire.log import LogReader, Stalled, Stretch

AT_ONCE: Final = 50
"""Records at once: the event loop does nothing else while their states are looked at."""
FETCH_BYTES: Final = 1 << 18
WAIT: Final = 2.0
"""Seconds without anything to read after which it is given up for now."""


async def stretches(
    options: Mapping[str, Any], tp: TP, since: int, end: int
) -> AsyncGenerator[Stretch, None]:
    """Committed records from position `since` (or where the log begins) and below `end`, AT_ONCE at a time.

    `options`: keyword arguments of LogReader. Ends early while the brokers are away or a transaction is open.
    Raises KafkaError.
    """
    async with LogReader(
        **options, stall_timeout=WAIT, max_poll_records=AT_ONCE, max_partition_fetch_bytes=FETCH_BYTES
    ) as reader:
        with suppress(Stalled):
            async with aclosing(reader.read(TopicPartition(*tp), since, end)) as records:
                async for stretch in records:
                    yield stretch
