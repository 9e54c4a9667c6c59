"""aiokafka and asyncpg, in batches: read what is there, merge it, write it by one statement, commit offsets.

With PEER_EVENT=1 each event also publishes one: it is awaited, beside the statement, before offsets are
committed. Its id follows from that of its cause, so that a reader can tell a repetition.

Settings that were chosen: uvloop; batches of up to 4,000 records from fetches of up to 4 MiB a partition that
wait for 10 ms at most (aiokafka has one fetch under way at a time, and a partition that just missed it waits
for its end); the range assignor, so that all topics' records of an order come to the same process;
group.instance.id, so that a process that is started again has its partitions back without waiting for the
session of its last life to end; a prepared statement on one connection; derived events in record batches made
by hand, one a partition, since a future for each record costs more than all the rest.
"""

from __future__ import annotations

import asyncio
import os
import time
from itertools import chain
from typing import Any, Final

import asyncpg
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from benchmarks.peers.clients import merge

MOST_RECORDS: Final = 4000
FETCH_BYTES: Final = 4 << 20
FETCH_WAIT_MS: Final = 10
SESSION_MS: Final = 45_000
"""Kafka's own default. With group.instance.id nobody waits for its end but who never comes back."""
BATCH_BYTES: Final = 512 << 10
SAID: Final = {
    "order.created": b"pending",
    "order.paid": b"confirmed",
    "shipment.updated": b"shipped",
    "order.returned": b"returned",
}


async def run() -> None:
    """Run until the process is ended. Raises whatever a server's absence raises."""
    prefix, name = os.environ["PEER_PREFIX"], f"peer-{os.environ['PEER_NUMBER']}"
    brokers = os.environ["PEER_KAFKA"]
    topics = {prefix + topic: topic for topic in merge.TOPICS}
    connection = await asyncpg.connect(
        os.environ["PEER_POSTGRES"], server_settings={"jit": "off", "timezone": "UTC"}
    )
    statement = await connection.prepare(merge.statement(os.environ["PEER_SCHEMA"]))
    publisher = None
    if os.environ.get("PEER_EVENT"):
        publisher = _Publisher(brokers, f"{prefix}order.changed")
        await publisher.producer.start()
    consumer = AIOKafkaConsumer(
        *topics,
        bootstrap_servers=brokers,
        group_id=f"{prefix}peer",
        group_instance_id=name,
        client_id=name,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        partition_assignment_strategy=(RangePartitionAssignor,),
        max_partition_fetch_bytes=FETCH_BYTES,
        fetch_max_wait_ms=FETCH_WAIT_MS,
        session_timeout_ms=SESSION_MS,
    )
    await consumer.start()
    while True:
        fetched = await consumer.getmany(timeout_ms=1000, max_records=MOST_RECORDS)
        count = await _handle(fetched, topics, statement, publisher)
        if count:
            await consumer.commit()
            print(count, time.time(), flush=True)


async def _handle(
    fetched: dict[TopicPartition, list[Any]],
    topics: dict[str, str],
    statement: asyncpg.prepared_stmt.PreparedStatement[Any],
    publisher: _Publisher | None,
) -> int:
    """Write what was fetched, and return how many records that was."""
    batch, count = merge.Batch(), 0
    for (name, partition), records in fetched.items():
        topic = topics[name]
        count += len(records)
        for record in records:
            headers = dict(record.headers)
            order_id = batch.add(topic, record.value, headers["ce_time"].decode())
            if publisher is not None:
                publisher.add(partition, order_id.encode(), SAID[topic], headers)
    if count:
        # Both are safe to repeat, so neither has to wait for the other.
        writing = statement.fetchval(*chain.from_iterable(batch.columns()))
        await asyncio.gather(writing, *(publisher.flush() if publisher else ()))
    return count


class _Publisher:
    """Publishes one event for each: `add` them, then await all that `flush` returns."""

    def __init__(self, brokers: str, topic: str) -> None:
        self.topic = topic
        self.producer = AIOKafkaProducer(
            bootstrap_servers=brokers,
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=BATCH_BYTES,
            max_request_size=2 * BATCH_BYTES,
        )
        self._building: dict[int, Any] = {}
        self._full: list[tuple[int, Any]] = []

    def add(self, partition: int, order_id: bytes, said: bytes, cause: dict[str, bytes]) -> None:
        """Have an event published to that partition: the topics have as many, so an order keeps its own."""
        value = b'{"order_id":"%b","status":"%b"}' % (order_id, said)
        headers = [
            ("ce_specversion", b"1.0"),
            ("ce_id", cause["ce_id"] + b"/changed"),
            ("ce_source", b"/peer"),
            ("ce_type", b"order.changed"),
            ("ce_time", cause["ce_time"]),
            ("content-type", b"application/json"),
        ]
        batch = self._building.get(partition)
        if batch is None:
            batch = self._building[partition] = self.producer.create_batch()
        if batch.append(key=order_id, value=value, timestamp=None, headers=headers) is None:
            self._full.append((partition, batch))
            batch = self._building[partition] = self.producer.create_batch()
            batch.append(key=order_id, value=value, timestamp=None, headers=headers)

    def flush(self) -> list[Any]:
        """What to await until all is acknowledged."""
        batches = [*self._full, *self._building.items()]
        self._full, self._building = [], {}
        return [self._send(partition, batch) for partition, batch in batches]

    async def _send(self, partition: int, batch: Any) -> None:
        batch.close()
        await (await self.producer.send_batch(batch, self.topic, partition=partition))


if __name__ == "__main__":
    uvloop.run(run())
