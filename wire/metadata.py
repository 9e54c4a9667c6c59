"""What the brokers say of topics, in one request for many of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import TopicAuthorizationFailedError
from aiokafka.protocol.metadata import MetadataRequest


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

    Blocks for a round trip or two.
    Raises TopicAuthorizationFailedError for a topic that may not be seen, KafkaError.
    """
    cluster = await consumer._client.fetch_all_metadata()
    topics = list(topics)
    partitions = {topic: set(numbers) for topic in topics if (numbers := cluster.partitions_for_topic(topic))}
    await require_visible(consumer._client, [topic for topic in topics if topic not in partitions])
    return partitions


async def require_visible(client: Any, topics: Iterable[str]) -> None:
    """Raise TopicAuthorizationFailedError if a broker doesn't let us know whether one of these topics exists:
    from a list of all topics it just leaves them out.

    Blocks for a round trip, and not at all without topics. Raises KafkaError.
    """
    topics = list(topics)
    if topics:
        request = MetadataRequest(topics, allow_auto_topic_creation=False)
        response = await client.send(client.get_random_node(), request)
        codes = {topic["topic"]: topic["error_code"] for topic in response.to_object()["topics"]}
        for topic in topics:
            if codes.get(topic) == TopicAuthorizationFailedError.errno:
                raise TopicAuthorizationFailedError(topic)
