"""What the simulation relies on of Kafka, by the same tests over its fake and over the real broker."""

from __future__ import annotations

import asyncio
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import (
    IllegalGenerationError,
    OutOfOrderSequenceNumber,
    ProducerClosed,
    RebalanceInProgressError,
    RequestTimedOutError,
    UnknownMemberIdError,
)
from aiokafka.protocol.group import HeartbeatRequest
from aiokafka.structs import OffsetAndMetadata, TopicPartition

from streams.transport.errors import LaneClosed
from streams.transport.producer import AiokafkaConnection, Connection, Gate, Outgoing
from tests import servers
from tests.simulation import clients
from tests.simulation.clients import FakeConnection, FakeConsumer
from tests.simulation.kafka import Broker, Group, Sent
from tests.simulation.network import calm
from tests.stackfixture import Servers
from tests.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")

REFUSED = (UnknownMemberIdError, IllegalGenerationError)


Ready = Callable[[], Awaitable[object]] | None


class Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    async def on_partitions_revoked(self, revoked: Any) -> None:
        """Nothing to give up."""

    async def on_partitions_assigned(self, assigned: Any) -> None:
        """Nothing to begin."""


class Kafka(ABC):
    """One topic with two partitions, a compacted one with one, and a group."""

    topic: str
    compacted: str

    @abstractmethod
    async def connect(self, gate: Gate) -> Connection:
        """A started connection of LaneProducer's."""

    @abstractmethod
    def lose_acknowledgement(self, connection: Connection) -> None:
        """The next produce request arrives, its answer doesn't."""

    @abstractmethod
    async def read(self, topic: str, partition: int) -> list[tuple[int, bytes | None, bytes | None]]:
        """(offset, key, value) of all records."""

    @abstractmethod
    async def end(self, topic: str, partition: int) -> int:
        """The offset that the next record gets."""

    @abstractmethod
    async def join(self) -> Any:
        """A member of the group, assigned: an object with aiokafka's `_coordinator`."""

    @abstractmethod
    async def silence(self, member: Any) -> None:
        """The member beats no more."""

    @abstractmethod
    async def heartbeat(self, member: Any, generation: int) -> int:
        """The error code of a heartbeat that names this generation."""

    @abstractmethod
    async def compact(self) -> None:
        """Returns when the compacted topic's first five records have been compacted."""

    async def commit(self, member: Any, generation: int, offset: int) -> None:
        """Commit partition 0 as if the member were in `generation`. Raises KafkaError."""
        coordinator = member._coordinator
        now, coordinator.generation = coordinator.generation, generation
        request = coordinator._do_commit_offsets(
            None, {TopicPartition(self.topic, 0): OffsetAndMetadata(offset, "")}
        )
        sending = asyncio.ensure_future(request)
        await asyncio.sleep(0)  # the request is made
        coordinator.generation = now
        await sending

    async def committed(self, member: Any) -> int | None:
        """What the group has committed of partition 0."""
        tp = TopicPartition(self.topic, 0)
        commit = (await member._coordinator.fetch_committed_offsets([tp])).get(tp)
        return None if commit is None or commit.offset < 0 else int(commit.offset)


class Fake(Kafka):
    def __init__(self) -> None:
        self.topic, self.compacted = "in", "changelog"
        self.network = calm()
        self.broker = Broker()
        self.broker.create([self.topic], 2)
        self.broker.create([self.compacted], 1)
        loop = asyncio.get_running_loop()
        self.group = Group(self._assign, 0.5, 5.0, loop.call_later, loop.time)
        self.running: list[asyncio.Task[None]] = []

    def _assign(self, members: Sequence[str]) -> Mapping[str, Iterable[TopicPartition]]:
        tps = [TopicPartition(self.topic, number) for number in range(2)]
        return {member: tps[place :: len(members)] for place, member in enumerate(members)}

    async def connect(self, gate: Gate) -> FakeConnection:
        connection = FakeConnection(self.network, self.broker, gate, timeout=5.0)
        await connection.start()
        return connection

    def lose_acknowledgement(self, connection: Connection) -> None:
        produce = self.broker.produce

        def once(*arguments: Any) -> int:
            self.broker.produce = produce  # type: ignore[method-assign]
            produce(*arguments)
            raise RequestTimedOutError

        self.broker.produce = once  # type: ignore[method-assign, assignment]

    async def read(self, topic: str, partition: int) -> list[tuple[int, bytes | None, bytes | None]]:
        return [
            (record.offset, record.key, record.value)
            for record in self.broker.logs[TopicPartition(topic, partition)].records
        ]

    async def end(self, topic: str, partition: int) -> int:
        return self.broker.logs[TopicPartition(topic, partition)].end

    async def join(self) -> FakeConsumer:
        consumer = FakeConsumer(self.network, self.broker, self.group, 0.05, 100)
        consumer._subscription.subscribe({self.topic}, Listener())
        self.running.append(asyncio.ensure_future(consumer._coordinator.run()))
        await eventually(lambda: _assigned(consumer), "an assignment")
        return consumer

    async def silence(self, member: FakeConsumer) -> None:
        await member._coordinator._stop_beating()

    async def heartbeat(self, member: FakeConsumer, generation: int) -> int:
        request = clients.HeartbeatRequest(member._coordinator.member_id, generation)
        return (await member._coordinator._send_req(request)).error_code

    async def compact(self) -> None:
        self.broker.logs[TopicPartition(self.compacted, 0)].compact()

    async def close(self) -> None:
        for task in self.running:
            task.cancel()
        await asyncio.gather(*self.running, return_exceptions=True)


async def _assigned(consumer: Any) -> bool:
    subscription = consumer._subscription.subscription
    return (
        subscription is not None
        and subscription.assignment is not None
        and not subscription._reassignment_in_progress
    )


class Real(Kafka):
    def __init__(self, brokers: str) -> None:
        self.brokers = brokers
        name = f"contract-{uuid.uuid4().hex[:8]}"
        self.topic, self.compacted, self.name = f"{name}.in", f"{name}.changelog", name
        self.connections: list[AiokafkaConnection] = []
        self.members: list[AIOKafkaConsumer] = []

    async def open(self) -> None:
        self.admin = AIOKafkaAdminClient(**servers.kafka(self.brokers))
        await self.admin.start()
        quickly = {
            "cleanup.policy": "compact",
            "min.cleanable.dirty.ratio": "0.001",
            "segment.ms": "100",
            "min.compaction.lag.ms": "0",
        }
        await self.admin.create_topics(
            [NewTopic(self.topic, 2, 1), NewTopic(self.compacted, 1, 1, topic_configs=quickly)]
        )
        self.reader = AIOKafkaConsumer(
            **servers.kafka(self.brokers), enable_auto_commit=False, auto_offset_reset="earliest"
        )
        await self.reader.start()

        async def led() -> bool:
            described = await self.admin.describe_topics([self.topic, self.compacted])
            return all(
                topic["error_code"] == 0 and all(p["error_code"] == 0 for p in topic["partitions"])
                for topic in described
            )

        await eventually(led, "leaders")

    async def close(self) -> None:
        for connection in self.connections:
            await connection.abandon()
        for member in self.members:
            await member.stop()
        await self.reader.stop()
        await self.admin.delete_topics([self.topic, self.compacted])
        await self.admin.close()

    async def connect(self, gate: Gate) -> AiokafkaConnection:
        connection = AiokafkaConnection(
            {"settings": servers.kafka_settings(self.brokers), "client_id": "contract"}, gate
        )
        await connection.start()
        self.connections.append(connection)
        return connection

    def lose_acknowledgement(self, connection: Connection) -> None:
        assert isinstance(connection, AiokafkaConnection)
        client = connection._producer.client
        send = client.send

        async def once(node_id: int, request: Any, **options: Any) -> Any:
            answer = await send(node_id, request, **options)
            if type(request).__name__.startswith("ProduceRequest"):
                client.send = send
                raise RequestTimedOutError
            return answer

        client.send = once

    async def read(self, topic: str, partition: int) -> list[tuple[int, bytes | None, bytes | None]]:
        tp = TopicPartition(topic, partition)
        self.reader.assign([tp])
        await self.reader.seek_to_beginning(tp)
        end = (await self.reader.end_offsets([tp]))[tp]
        content = []
        while await self.reader.position(tp) < end:
            for records in (await self.reader.getmany(timeout_ms=200)).values():
                content += [(record.offset, record.key, record.value) for record in records]
        return content

    async def end(self, topic: str, partition: int) -> int:
        tp = TopicPartition(topic, partition)
        self.reader.assign([tp])
        return int((await self.reader.end_offsets([tp]))[tp])

    async def join(self) -> AIOKafkaConsumer:
        consumer = AIOKafkaConsumer(
            **servers.kafka(self.brokers),
            group_id=self.name,
            enable_auto_commit=False,
            session_timeout_ms=6000,
            heartbeat_interval_ms=200,
        )
        consumer.subscribe([self.topic])
        await consumer.start()
        self.members.append(consumer)
        await eventually(lambda: _assigned(consumer), "an assignment")
        return consumer

    async def silence(self, member: AIOKafkaConsumer) -> None:
        async def nothing() -> bool:
            return True

        member._coordinator._do_heartbeat = nothing

    async def heartbeat(self, member: AIOKafkaConsumer, generation: int) -> int:
        coordinator = member._coordinator
        response = await coordinator._send_req(
            HeartbeatRequest(coordinator.group_id, generation, coordinator.member_id)
        )
        return int(response.error_code)

    async def compact(self) -> None:
        """The cleaner leaves the active segment alone: a later record, after
        segment.ms, begins another one.
        """
        producer = AIOKafkaProducer(**servers.kafka(self.brokers))
        await producer.start()

        async def compacted() -> bool:
            await producer.send_and_wait(self.compacted, b"later", key=b"later")
            return all(offset not in (0, 1, 2) for offset, _, _ in await self.read(self.compacted, 0))

        await eventually(compacted, "compaction", 60.0)
        await producer.stop()


@pytest_asyncio.fixture(params=["fake", "real"], loop_scope="module")
async def kafka(request: pytest.FixtureRequest, stack: Servers) -> AsyncIterator[Kafka]:
    if request.param == "fake":
        fake = Fake()
        yield fake
        await fake.close()
        return
    real = Real(stack.env["ORDERS_KAFKA"])
    await real.open()
    yield real
    await real.close()


async def freely(ready: Ready = None) -> None:
    """A gate that is open."""


def batch_of(connection: Connection, *values: bytes, key: bytes = b"k") -> Any:
    batch = connection.create_batch()
    records: list[Outgoing] = [(key, value, [("h", b"1")]) for value in values]
    assert batch.extend(records, 0, 1) == len(values)
    assert batch.record_count() == len(values)
    return batch


async def delivered(
    connection: Connection, topic: str, partition: int, *values: bytes, key: bytes = b"k"
) -> int:
    future = await connection.send_batch(batch_of(connection, *values, key=key), topic, partition=partition)
    return int((await asyncio.wait_for(future, 20)).offset)


# -- producer ------------------------------------------------------------------------------------------------


async def test_batches_lie_in_the_order_in_which_they_were_sent(kafka: Kafka) -> None:
    connection = await kafka.connect(freely)
    futures = []
    for number in range(4):
        batch = batch_of(connection, b"%da" % number, b"%db" % number)
        futures.append(await connection.send_batch(batch, kafka.topic, partition=0))
    assert [(await asyncio.wait_for(future, 20)).offset for future in futures] == [0, 2, 4, 6]
    assert [value for _, _, value in await kafka.read(kafka.topic, 0)] == [
        b"%d%c" % (n, c) for n in range(4) for c in b"ab"
    ]


async def test_a_lost_acknowledgement_doubles_nothing(kafka: Kafka) -> None:
    connection = await kafka.connect(freely)
    assert await delivered(connection, kafka.topic, 0, b"1") == 0
    kafka.lose_acknowledgement(connection)
    assert await delivered(connection, kafka.topic, 0, b"2", b"3") == 1
    assert await delivered(connection, kafka.topic, 0, b"4") == 3
    assert [value for _, _, value in await kafka.read(kafka.topic, 0)] == [b"1", b"2", b"3", b"4"]


async def test_a_batch_that_the_gate_holds_back_leaves_a_hole(kafka: Kafka) -> None:
    closed = False

    async def gate(ready: Ready = None) -> None:
        if closed:
            raise LaneClosed

    connection = await kafka.connect(gate)
    assert await delivered(connection, kafka.topic, 0, b"1") == 0
    closed = True
    with pytest.raises(LaneClosed):
        await delivered(connection, kafka.topic, 0, b"2")
    closed = False
    with pytest.raises(OutOfOrderSequenceNumber):
        await delivered(connection, kafka.topic, 0, b"3")
    assert await delivered(connection, kafka.topic, 1, b"4") == 0, "another partition has numbers of its own"
    assert await delivered(await kafka.connect(freely), kafka.topic, 0, b"5") == 1, (
        "and so has another connection"
    )
    assert [value for _, _, value in await kafka.read(kafka.topic, 0)] == [b"1", b"5"]


async def test_an_abandoned_connection_sends_nothing_more(kafka: Kafka) -> None:
    passing = asyncio.Event()

    async def gate(ready: Ready = None) -> None:
        await passing.wait()

    connection = await kafka.connect(gate)
    future = await connection.send_batch(batch_of(connection, b"1"), kafka.topic, partition=0)
    await asyncio.sleep(0)
    await connection.abandon()
    passing.set()
    with pytest.raises(ProducerClosed):
        await asyncio.wait_for(future, 20)
    with pytest.raises(ProducerClosed):
        await connection.send_batch(batch_of(connection, b"2"), kafka.topic, partition=0)
    assert await kafka.read(kafka.topic, 0) == []


async def test_compaction_leaves_the_last_record_of_each_key_at_its_offset(kafka: Kafka) -> None:
    connection = await kafka.connect(freely)
    for key, value in ((b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"a", b"3"), (b"b", b"2")):
        await delivered(connection, kafka.compacted, 0, value, key=key)
    await kafka.compact()
    assert [each for each in await kafka.read(kafka.compacted, 0) if each[1] != b"later"] == [
        (3, b"a", b"3"),
        (4, b"b", b"2"),
    ]
    assert await kafka.end(kafka.compacted, 0) >= 5


# -- group ---------------------------------------------------------------------------------------------------


async def test_offsets_are_committed_by_member_and_generation(kafka: Kafka) -> None:
    first = await kafka.join()
    old = first._coordinator.generation
    assert await kafka.committed(first) is None
    await kafka.commit(first, old, 3)
    assert await kafka.committed(first) == 3
    second = await kafka.join()
    await eventually(lambda: _both(first, second), "one generation of both")
    now = second._coordinator.generation
    assert now > old
    assert await kafka.heartbeat(second, now) == 0
    assert await kafka.heartbeat(second, old) == IllegalGenerationError.errno
    with pytest.raises(IllegalGenerationError):
        await kafka.commit(second, old, 7)
    assert await kafka.committed(second) == 3
    await eventually(lambda: _both(first, second), "the next generation: who was refused joins again")
    # Nor does it ask whose partition it is: whoever is a member of this generation may.
    await kafka.commit(second, second._coordinator.generation, 2)
    assert await kafka.committed(second) == 2


async def _both(first: Any, second: Any) -> bool:
    return (
        first._coordinator.generation == second._coordinator.generation
        and await _assigned(first)
        and await _assigned(second)
        and len(first._subscription.assigned_partitions())
        == len(second._subscription.assigned_partitions())
        == 1
    )


async def test_who_is_silent_for_a_session_is_left_out(kafka: Kafka) -> None:
    silent, other = await kafka.join(), await kafka.join()
    await eventually(lambda: _both(silent, other), "one generation of both")
    await kafka.silence(silent)
    member, generation = silent._coordinator.member_id, silent._coordinator.generation
    assert await kafka.heartbeat(silent, generation) in (0, RebalanceInProgressError.errno)
    await kafka.commit(silent, generation, 1)

    async def alone() -> bool:
        return len(other._subscription.assigned_partitions()) == 2

    await eventually(alone, "the other one has both partitions")
    silent._coordinator.member_id = member
    assert await kafka.heartbeat(silent, generation) == UnknownMemberIdError.errno
    with pytest.raises(REFUSED):
        await kafka.commit(silent, generation, 9)
    assert await kafka.committed(other) == 1


async def test_the_fake_refuses_what_comes_after_a_hole_and_forgets_old_batches() -> None:
    """The rest of the sequence numbers' rules, which no client of ours can provoke at the real broker."""
    broker = Broker()
    broker.create(["t"], 1)
    tp = TopicPartition("t", 0)
    producer = broker.new_producer()
    for number in range(7):
        assert broker.produce(tp, producer, number, [Sent(None, b"", ())], 0) == number
    assert broker.produce(tp, producer, 4, [Sent(None, b"", ())], 0) == 4
    with pytest.raises(Exception, match="DuplicateSequence"):
        broker.produce(tp, producer, 0, [Sent(None, b"", ())], 0)
    assert broker.logs[tp].end == 7
