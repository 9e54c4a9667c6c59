"""What the brokers say of topics, in one request for many of them."""

from __future__ import annotations

from collections.abc import Iterable

from aiokafka import AIOKafkaConsumer


async def learn_topics(consumer: AIOKafkaConsumer, topics: Iterable[str]) -> None:
    """Have a consumer know these topics before it is asked for their offsets: otherwise it learns of one
    after the other, and rests for a tenth of a second each time.

    Blocks for a round trip, and not at all if it knows them.
    Raises nothing: what it couldn't learn it asks for again.
    """
    client = consumer._client
    await client.set_topics({*client._topics, *topics})


async def partitions_of(consumer: AIOKafkaConsumer, topics: Iterable[str]) -> dict[str, set[int]]:
    """Topic -> the numbers of its partitions; a topic that the brokers don't have is left out.

    Blocks for a round trip. Raises KafkaError.
    """
    cluster = await consumer._client.fetch_all_metadata()
    return {topic: set(found) for topic in topics if (found := cluster.partitions_for_topic(topic))}
