"""A downstream service in a few lines: read a derived topic, each event once.

    python -m examples.downstream TOPIC [COUNT]

Delivery is at least once: a repetition has the same ce_id, so whoever keeps the ids that it has handled (with
its own effects, in one transaction) handles each event once. With ORDERS_DELIVERY=exactly_once on the workers
read_committed alone does it. Brokers: ORDERS_KAFKA.
"""

from __future__ import annotations

import asyncio
import sys

from settings import get_settings
from wire import clients


async def read(topic: str, count: int) -> list[str]:
    """Print the first `count` different events of a topic as `ce_id data`, and return their ids.
    Blocks until there are so many.
    """
    handled: list[str] = []
    async with clients.consumer(
        get_settings(), "example-downstream", topic, group_id=f"example-{topic}", auto_offset_reset="earliest"
    ) as consumer:
        async for record in consumer:
            event_id = (dict(record.headers).get("ce_id") or b"").decode("utf-8", "replace")
            # Without an id it is none of the pipeline's: anybody may write to a topic.
            if event_id and event_id not in handled:
                handled.append(event_id)
                text = f"{event_id} {(record.value or b'').decode('utf-8', 'replace')}"
                print(
                    text.encode("unicode_escape").decode(), flush=True
                )  # whatever it holds steers no terminal
            await consumer.commit()
            if len(handled) == count:
                break
    return handled


if __name__ == "__main__":
    asyncio.run(read(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 1))
