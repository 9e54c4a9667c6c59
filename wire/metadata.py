"""Metadata of many topics in one request."""

from __future__ import annotations

from collections.abc import Iterable

from aiokafka import AIOKafkaConsumer


async def learn_topics(consumer: AIOKafkaConsumer, topics: Iterable[str]) -> None:
    """Have a consumer know these topics before it is asked for their offsets: otherwise it learns of one after the other, and rests for
    a tenth of a second each time.

    Blocks for a round trip, and not at all if it knows them. Raises nothing: what it couldn't learn it asks for again.
    """
    client = consumer._client
    await client.set_topics({*client._topics, *topics})
