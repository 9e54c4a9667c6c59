"""An upstream service in a few lines: send one CloudEvent in the binary Kafka binding.

    python -m examples.upstream TYPE KEY '{"checkout_id": ...}'

TYPE is the topic as well; KEY the order's id (of checkout.completed the checkout's). Brokers: ORDERS_KAFKA.
"""

from __future__ import annotations

import asyncio
import sys
import uuid
from datetime import UTC, datetime

from settings import get_settings
from wire import clients


async def publish(type_: str, key: str, data: str) -> None:
    """Send one event and wait until all in-sync replicas have it.
    The same event sent again changes nothing. Raises KafkaError.
    """
    attributes = {
        "specversion": "1.0",
        "id": str(uuid.uuid4()),
        "source": "/example",
        "type": type_,
        "time": datetime.now(UTC).isoformat(),
    }
    headers = [(f"ce_{name}", value.encode()) for name, value in attributes.items()] + [
        ("content-type", b"application/json")
    ]
    async with clients.producer(get_settings(), "example-upstream") as producer:
        await producer.send_and_wait(type_, data.encode(), key=key.encode(), headers=headers)


if __name__ == "__main__":
    asyncio.run(publish(*sys.argv[1:4]))
