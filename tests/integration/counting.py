"""Topics, workers and the truth for the transport's tests: transport_app.py counts records per key."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError, GroupLoadInProgressError
from aiokafka.structs import OffsetAndMetadata

from tests.forked import Forked
from tests.integration.transport_app import version_of
from tests.servers import kafka, kafka_env
from tests.waiting import eventually

APP = (sys.executable, "-c", "from tests.integration.transport_app import main; raise SystemExit(main())")
BIG = {"max.message.bytes": str(10 << 20)}


class Worker:
    """One process of transport_app.py."""

    def __init__(self, process: Forked, log: Path) -> None:
        self.process = process
        self.log = log

    def text(self) -> str:
        return self.log.read_text(errors="replace")

    async def logged(self, text: str, seconds: float = 20.0, after: int = 0) -> None:
        """Wait until `text` is in the log, beyond its first `after` characters."""

        async def there() -> bool:
            logged = text in self.text()[after:]
            assert logged or self.process.poll() is None, self.text()[-3000:]
            return logged

        await eventually(there, f"{text!r} in the worker's log", seconds)

    async def broke(self, fault: str) -> None:
        """Wait until COUNTER_BREAK has happened, whatever became of the process."""

        async def so() -> bool:
            return fault in self.text()

        await eventually(so, fault)

    async def ready(self) -> None:
        await self.logged("worker ready")

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    async def ended(self, seconds: float = 20.0) -> int:
        async def over() -> bool:
            return self.process.poll() is not None

        await eventually(over, f"the end of the worker:\n{self.text()[-2000:]}", seconds)
        return self.process.wait()

    async def stop(self) -> int:
        self.send(signal.SIGTERM)
        return await self.ended()

    def counter(self, name: str) -> int:
        """One of the numbers that the app prints at its end."""
        return int(self.text().rsplit(f"{name}=", 1)[1].split()[0])


class Counting:
    """A group with topics of its own."""

    def __init__(self, brokers: str, folder: Path, topics: int, partitions: int, delivery: str) -> None:
        self.brokers = brokers
        self.delivery = delivery
        self.folder = folder
        self.partitions = partitions
        self.group = f"count-{uuid.uuid4().hex[:8]}"
        self.topics = tuple(f"{self.group}.in{number}" for number in range(topics))
        self.out = f"{self.group}.out"
        self.changelog = f"{self.group}-state-changelog"
        self.sent: Counter[bytes] = Counter()
        self.workers: list[Worker] = []
        self.others: list[str] = []
        self.admin: Any = None
        self.producer: Any = None
        self._asking = contextlib.AsyncExitStack()
        self.asking: Any = None
        """A consumer that reads nothing: waits ask it for ends again and again."""

    # -- feeding ---------------------------------------------------------------------------------------------

    async def produce(self, count: int, *, keys: int = 50, value: bytes = b"x" * 100) -> None:
        """`count` records over all topics and partitions."""
        futures = []
        for number in range(count):
            key = b"k%d" % (number % keys)
            futures.append(await self.producer.send(self.topics[number % len(self.topics)], value, key=key))
            self.sent[key] += 1
        await asyncio.gather(*futures)

    def start(self, name: str = "1", **env: str) -> Worker:
        """A worker with a data folder of its own."""
        log = self.folder / f"worker-{len(self.workers)}.log"
        values = {
            **kafka_env(self.brokers),
            "ORDERS_GROUP": self.group,
            "ORDERS_DATA": str(self.folder / f"data-{name}"),
            "ORDERS_PARTITIONS": str(self.partitions),
            "ORDERS_COMMIT_INTERVAL": "0.2",
            "ORDERS_DELIVERY": self.delivery,
            "COUNTER_TOPICS": ",".join(self.topics),
            "COUNTER_OUT": self.out,
            **env,
        }
        worker = Worker(Forked(APP, log, env={**os.environ, **values}), log)
        self.workers.append(worker)
        return worker

    async def shared(self, *workers: Worker) -> None:
        """Wait until all of `workers` have the same number of lanes, and together all of them."""
        lanes = ", ".join([r"\d"] * (self.partitions // len(workers)))

        async def so() -> bool:
            return all(re.search(rf"lanes {lanes} open", worker.text()) for worker in workers)

        await eventually(so, f"{len(workers)} workers share the lanes", 90)

    async def written(self, more: int) -> None:
        """Wait until `more` effects have been written from now on."""
        already = sum((await self.ends(self.out)).values())

        async def so() -> bool:
            return sum((await self.ends(self.out)).values()) >= already + more

        await eventually(so, "effects are written")

    @asynccontextmanager
    async def fed(self) -> AsyncIterator[None]:
        """Records go on arriving meanwhile."""
        enough = asyncio.Event()

        async def feed() -> None:
            while not enough.is_set():
                await self.produce(40)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(enough.wait(), 0.1)

        feeding = asyncio.create_task(feed())
        try:
            yield
        finally:
            enough.set()
            await feeding

    # -- the truth -------------------------------------------------------------------------------------------

    def parts(self, *topics: str) -> list[Any]:
        return [TopicPartition(topic, number) for topic in topics for number in range(self.partitions)]

    async def ends(self, *topics: str) -> dict[Any, int]:
        return dict(await self.asking.end_offsets(self.parts(*topics)))

    async def committed(self) -> dict[Any, int]:
        try:
            offsets = await self.admin.list_consumer_group_offsets(self.group)
        except (GroupCoordinatorNotAvailableError, GroupLoadInProgressError):
            return {}  # a new cluster makes its offsets topic when it is first asked
        return {tp: meta.offset for tp, meta in offsets.items()}

    async def commit(self, offsets: Mapping[Any, int]) -> None:
        """Set the group's offsets; no member may be alive."""
        async with self.consumer(group_id=self.group) as consumer:
            consumer.assign(list(offsets))
            await consumer.commit({tp: OffsetAndMetadata(offset, "") for tp, offset in offsets.items()})

    async def drained(self, seconds: float = 30.0) -> None:
        """Wait until everything that was produced is committed, to the last offset."""
        ends = {tp: end for tp, end in (await self.ends(*self.topics)).items() if end}

        async def done() -> bool:
            try:
                committed = await self.committed()
            except GroupCoordinatorNotAvailableError:  # the cluster's first group: its topic is being made
                return False
            return all(committed.get(tp) == end for tp, end in ends.items())

        await eventually(done, "everything committed", seconds)

    async def read(self, *topics: str, isolation: str = "read_committed") -> list[Any]:
        """All records of topics, in offset order within a partition."""
        async with self.consumer(isolation_level=isolation) as consumer:
            parts = self.parts(*topics)
            consumer.assign(parts)
            ends = await consumer.end_offsets(parts)
            records: list[Any] = []
            while any([await consumer.position(tp) < end for tp, end in ends.items()]):
                for batch in (await consumer.getmany(timeout_ms=200)).values():
                    records += batch
            return records

    async def verify(self) -> None:
        """Every record has its effect (exactly_once: one), the changelog the true counts, and no state was
        written after a newer one.
        """
        order = {topic: number for number, topic in enumerate(self.topics)}
        expected = {
            f"{order[record.topic]} {record.partition} {record.offset}"
            for record in await self.read(*self.topics)
        }
        effects = Counter(record.value.decode() for record in await self.read(self.out))
        assert expected - effects.keys() == set()
        assert effects.keys() - expected == set()
        if self.delivery == "exactly_once":
            assert {effect: count for effect, count in effects.items() if count > 1} == {}
        versions: dict[bytes, list[int]] = defaultdict(list)
        for record in await self.read(self.changelog):
            versions[record.key].append(version_of(record.value))
        assert {key: written[-1] for key, written in versions.items()} == dict(self.sent)
        assert [key for key, written in versions.items() if written != sorted(written)] == []

    @asynccontextmanager
    async def consumer(self, **options: Any) -> AsyncIterator[Any]:
        consumer = AIOKafkaConsumer(
            **kafka(self.brokers),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=10 << 20,
            **options,
        )
        await consumer.start()
        try:
            yield consumer
        finally:
            await consumer.stop()

    # -- the frame -------------------------------------------------------------------------------------------

    async def open(self) -> None:
        self.admin = AIOKafkaAdminClient(**kafka(self.brokers))
        await self.admin.start()
        new = [self._new(topic, {}) for topic in self.topics]
        new += [self._new(self.out, BIG), self._new(self.changelog, {"cleanup.policy": "compact"})]
        await self.admin.create_topics(new)
        self.producer = AIOKafkaProducer(
            **kafka(self.brokers), acks="all", linger_ms=2, max_batch_size=1 << 18
        )
        await self.producer.start()
        self.asking = await self._asking.enter_async_context(self.consumer())
        await self._led(*self.topics, self.out, self.changelog)

    async def _led(self, *topics: str, partitions: int | None = None) -> None:
        """Wait until the new partitions have leaders."""

        async def led() -> bool:
            described: Sequence[Any] = await self.admin.describe_topics(list(topics))
            return all(
                topic["error_code"] == 0
                and len(topic["partitions"]) == (partitions or self.partitions)
                and all(p["error_code"] == 0 for p in topic["partitions"])
                for topic in described
            )

        await eventually(led, "leaders of all partitions")

    def _new(self, topic: str, config: Mapping[str, str]) -> Any:
        return NewTopic(topic, self.partitions, 1, topic_configs=dict(config))

    async def add_topic(self, topic: str, partitions: int) -> None:
        """One more topic, which no lane reads; it goes with the others."""
        self.others.append(topic)
        await self.admin.create_topics([NewTopic(topic, partitions, 1)])
        await self._led(topic, partitions=partitions)

    async def close(self) -> None:
        for worker in self.workers:
            if worker.process.poll() is None:
                worker.process.kill()
            worker.process.wait()
        await self.producer.stop()
        await self._asking.aclose()
        await self.admin.delete_topics([*self.topics, self.out, self.changelog, *self.others])
        await self.admin.close()


@asynccontextmanager
async def counting(
    brokers: str, folder: Path, *, topics: int = 2, partitions: int = 4, delivery: str = "at_least_once"
) -> AsyncIterator[Counting]:
    """A fresh group and its topics; its workers are killed at the end."""
    group = Counting(brokers, folder, topics, partitions, delivery)
    await group.open()
    try:
        yield group
    finally:
        await group.close()
