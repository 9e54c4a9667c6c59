"""Exactly once: what readers of committed records see, and what becomes of a worker whose lane
another one has taken over.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import psutil
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import EndTxnRequest
from faust.types import TP

from contracts.topics import DLQ
from domain.order import Order
from operations import dead_letters
from operations.wait import wait
from queries.state import read_state
from settings import Settings
from stack import Stack
from streams.partitioner import partition_of
from streams.transport.errors import Fenced, TransactionsRefused
from streams.transport.offsets import stable_offsets
from streams.transport.producer import BATCH_BYTES
from streams.transport.records import OutRecord
from streams.transport.transaction import TransactionalAiokafkaConnection, TransactionalLaneProducer
from tables import codec
from tests.integration.counting import Counting, counting
from tests.servers import kafka, kafka_settings
from tests.stackfixture import Servers, place
from tests.waiting import eventually


@pytest.fixture
async def group(stack: Servers, tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Counting]:
    """Of four partitions, or as many as the test asks for."""
    partitions = getattr(request, "param", 4)
    async with counting(
        stack.env["ORDERS_KAFKA"], tmp_path, partitions=partitions, delivery="exactly_once"
    ) as group:
        yield group


@pytest.mark.parametrize("ending", ["commit", "abort"])
async def test_committed_offsets_are_read_when_their_transaction_has_ended(
    group: Counting, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    written, untouched = (TopicPartition(group.topics[0], part) for part in (0, 1))
    await group.commit({written: 0})
    producer = AIOKafkaProducer(**kafka(group.brokers), transactional_id=group.group)
    await producer.start()
    await producer.begin_transaction()
    await producer.send_offsets_to_transaction({written: 7}, group.group)
    async with group.consumer(group_id=group.group) as consumer:
        asking = asyncio.create_task(stable_offsets(consumer._coordinator, [TP(*written), TP(*untouched)]))

        async def waits() -> bool:
            return (
                f"waiting for the end of a transaction that commits offsets of {written.topic}/0"
                in caplog.text
            )

        await eventually(waits, "the question waits")
        assert not asking.done()
        if ending == "commit":
            await producer.commit_transaction()
        else:
            await producer.abort_transaction()
        async with asyncio.timeout(20):
            offsets = await asking
    await producer.stop()
    assert offsets == {TP(*written): 7 if ending == "commit" else 0, TP(*untouched): None}


@pytest.mark.parametrize("group", [6], indirect=True)
async def test_whoever_sleeps_or_dies_inside_a_transaction_writes_nothing_twice(group: Counting) -> None:
    """A lane for each of six workers. Three stop in a transaction, two are killed in one or right after
    it; the sixth takes over; then the three wake up, and the killed ones come back with the local state
    that they left. The brokers themselves would end none of these transactions in time: who takes over
    has to, before it recovers.
    """
    env = {"ORDERS_TRANSACTION_TIMEOUT": "900", "COUNTER_SLOW": "0.02"}
    faults = [f"stop before {request}" for request in ("AddPartitionsToTxn", "Produce", "EndTxn")]
    faults += ["kill before EndTxn", "kill after EndTxn"]
    async with group.fed():
        faulty = [group.start(str(number), COUNTER_BREAK=fault, **env) for number, fault in enumerate(faults)]
        sound = group.start("sound", **env)
        await group.shared(*faulty, sound)
        before = len(sound.text())
        for worker in faulty:
            worker.send(signal.SIGUSR1)
        for worker, fault in zip(faulty, faults, strict=True):
            await worker.broke(fault)
        await sound.logged("lanes 0, 1, 2, 3, 4, 5 open", 60, after=before)
        await group.written(100)
        for zombie, fault in zip(faulty[:3], faults, strict=False):
            asleep = len(zombie.text())
            zombie.send(signal.SIGCONT)
            await zombie.logged(f"the answer to {fault.split()[-1]}", 60)
            await zombie.logged("lanes closed (partitions revoked)", 60, after=asleep)
        refused = [
            zombie.text() for zombie in faulty[:3] if "error_code=47" in zombie.text()
        ]  # an answer may be lost with its connection
        assert refused
        assert all("another worker has taken it over" in text for text in refused)
        again = [group.start(str(number), **env) for number in (3, 4)]
        await group.shared(*faulty[:3], *again, sound)
        await group.written(100)
    await group.drained()
    await group.verify()
    assert len(await group.read(group.out, isolation="read_uncommitted")) > len(await group.read(group.out))


async def test_workers_come_and_go_without_doubling_anything(group: Counting) -> None:
    async with group.fed():
        first = group.start("1", COUNTER_SLOW="0.05")
        await group.written(100)
        second = group.start("2", COUNTER_SLOW="0.05")
        await group.shared(first, second)
        await group.written(100)
        assert await first.stop() == 0
        await group.written(100)
    await group.drained()
    assert await second.stop() == 0
    await group.verify()
    everything = await group.read(group.out, isolation="read_uncommitted")
    assert len(everything) == len(await group.read(group.out))  # nobody died: no transaction was taken back


async def test_a_worker_that_is_shut_out_without_a_successor_begins_anew(group: Counting) -> None:
    """As after a transaction that took too long: the broker has a newer producer, but the group says that
    the lane is this worker's.
    """
    worker = group.start()
    async with group.fed():
        await group.written(100)
        before = len(worker.text())
        intruder = AIOKafkaProducer(**kafka(group.brokers), transactional_id=f"{group.group}-0")
        await intruder.start()
        await intruder.stop()
        await worker.logged("lane 0: another worker has taken it over", after=before)
        await worker.logged("lanes 0, 1, 2, 3 open", after=before)
    await group.drained()
    assert await worker.stop() == 0
    await group.verify()


@pytest.mark.parametrize("lost", ["request", "answer"])
async def test_a_transaction_in_doubt_is_settled_by_the_committed_offsets(group: Counting, lost: str) -> None:
    places = [TP(topic, 0) for topic in group.topics]
    stored: list[tuple[int, dict[bytes, bytes], int | None, tuple[bytes, ...]]] = []
    table: Any = SimpleNamespace(
        changelog_topic_name=group.changelog, store=SimpleNamespace(write=lambda *what: stored.append(what))
    )
    async with group.consumer(group_id=group.group) as consumer:
        producer = lane(group, lambda tps: stable_offsets(consumer._coordinator, tps))
        await producer.start()
        before = dict.fromkeys(places)
        losing(producer, lost)
        await producer.publish({group.out: [OutRecord(b"k", b"1", [])]}, 0)
        await producer.write_states(table, {b"k": b"state"}, 0)
        with pytest.raises(KafkaError):
            await producer.acknowledge({places[0]: 5}, before, {})
        assert stored == []
        await producer.acknowledge({places[0]: 5}, before, {})
        # Of a transaction that was in already nobody has told where the changelog's records lie.
        [changed] = await group.read(group.changelog)
        assert stored == [(0, {b"k": b"state"}, None if lost == "answer" else changed.offset, ())]
        assert [record.value for record in await group.read(group.out)] == [b"1"]
        await producer.publish({group.out: [OutRecord(b"k", b"2", [])]}, 0)
        await producer.acknowledge({places[1]: 6}, before | {places[0]: 5}, {})
        assert [record.value for record in await group.read(group.out)] == [b"1", b"2"]
        assert await stable_offsets(consumer._coordinator, places) == dict(zip(places, (5, 6), strict=True))
        await producer.close()


async def test_in_doubt_whether_somebody_else_has_written_meanwhile_the_lane_is_given_up(
    group: Counting,
) -> None:
    place = TP(group.topics[0], 0)
    async with group.consumer(group_id=group.group) as consumer:
        one, other = (lane(group, lambda tps: stable_offsets(consumer._coordinator, tps)) for _ in range(2))
        await one.start()
        losing(one, "request")
        await one.publish({group.out: [OutRecord(b"k", b"one", [])]}, 0)
        with pytest.raises(KafkaError):
            await one.acknowledge({place: 5}, {place: None}, {})
        await other.start()
        await other.publish({group.out: [OutRecord(b"k", b"other", [])]}, 0)
        await other.acknowledge({place: 3}, {place: None}, {})
        with pytest.raises(Fenced):
            await one.acknowledge({place: 5}, {place: None}, {})
        assert one.fenced
        assert [record.value for record in await group.read(group.out)] == [b"other"]
        await one.close()
        await other.close()


async def test_closing_takes_back_what_is_open_so_that_readers_go_on(group: Counting) -> None:
    async with group.consumer(group_id=group.group) as consumer:
        producer = lane(group, lambda tps: stable_offsets(consumer._coordinator, tps))
        await producer.start()
        losing(producer, "stall")
        await producer.publish(
            {group.out: [OutRecord(b"k", bytes(BATCH_BYTES), []), OutRecord(b"k", b"2", [])]}, 0
        )
        acknowledging = asyncio.create_task(
            producer.acknowledge({TP(group.topics[0], 0): 5}, {TP(group.topics[0], 0): None}, {})
        )

        async def written() -> bool:
            return len(await group.read(group.out, isolation="read_uncommitted")) == 1

        await eventually(written, "the first record is there, its transaction open")
        acknowledging.cancel()
        await producer.close()
        async with group.consumer(isolation_level="read_committed") as reader:
            [stable] = (await reader.end_offsets([TopicPartition(group.out, 0)])).values()
        assert stable == 2  # the first record and the marker that takes it back
        assert await group.read(group.out) == []


async def test_a_timeout_that_the_brokers_do_not_allow_is_said_in_one_line(group: Counting) -> None:
    async def committed(tps: Sequence[TP]) -> dict[TP, int | None]:
        return dict.fromkeys(tps)

    with pytest.raises(
        TransactionsRefused, match=r"transaction_timeout .* \(transaction\.max\.timeout\.ms\)"
    ):
        await lane(group, committed, seconds=100_000).start()


def lane(
    group: Counting,
    committed: Callable[[Sequence[TP]], Awaitable[Mapping[TP, int | None]]],
    *,
    seconds: int = 60,
) -> TransactionalLaneProducer:
    """Lane 0's producer, apart from any worker."""
    options = {
        "settings": kafka_settings(group.brokers),
        "client_id": f"{group.group}-0",
        "transactional_id": f"{group.group}-0",
        "transaction_timeout_ms": seconds * 1000,
    }
    return TransactionalLaneProducer(
        lambda: options, lambda: None, lambda why: None, 1.0, group=group.group, committed=committed
    )


def losing(producer: TransactionalLaneProducer, what: str) -> None:
    """The connection that `producer` has now breaks when it commits, before the request is out or before the
    answer is in; or it stands still ("stall") where it writes the last records.
    """
    connection = producer._producer
    assert isinstance(connection, TransactionalAiokafkaConnection)
    client = connection._producer.client
    send = client.send

    async def lossy(node_id: int, request: Any, **options: Any) -> Any:
        if what == "stall":
            if isinstance(request, ProduceRequest):
                [(_, [(_, batch)])] = request._topics
                if len(batch) < BATCH_BYTES:  # the second one; the first may need several attempts
                    await asyncio.sleep(3600)
        elif isinstance(request, EndTxnRequest):
            if what == "answer":
                await send(node_id, request, **options)
            raise OSError("the connection broke")
        return await send(node_id, request, **options)

    client.send = lossy


async def test_the_setting_may_change_with_workers_at_work(group: Counting) -> None:
    """At least once, killed; exactly once, killed inside a transaction; at least once again: nothing is
    lost, the states are true.
    """
    group.delivery = "at_least_once"
    async with group.fed():
        first = group.start("1")
        await group.written(100)
        first.process.kill()
        second = group.start(
            "2",
            ORDERS_DELIVERY="exactly_once",
            ORDERS_TRANSACTION_TIMEOUT="1",
            COUNTER_BREAK="kill before EndTxn",
        )
        await second.logged("lanes 0, 1, 2, 3 open")
        await group.written(100)
        second.send(signal.SIGUSR1)
        await second.ended()
        third = group.start("3")
        await third.logged("lanes 0, 1, 2, 3 open")
        await group.written(100)
    await group.drained()
    assert await third.stop() == 0
    await group.verify()


async def test_nobody_is_shown_what_was_taken_back(fresh: Settings) -> None:
    order_id = UUID(int=7)
    partition = partition_of(str(order_id).encode(), fresh.partitions)
    producer = AIOKafkaProducer(**kafka(fresh.brokers), transactional_id=fresh.group)
    await producer.start()
    await producer.begin_transaction()
    await producer.send_and_wait(DLQ, b"x", key=b"k", headers=[("dlq_reason", b"not_json")], partition=0)
    await producer.send_and_wait(
        fresh.changelog_topic, codec.encode(Order()), key=order_id.bytes, partition=partition
    )
    await producer.abort_transaction()
    await producer.stop()
    assert [letter async for letter in dead_letters.read(fresh)] == []
    assert await read_state(fresh, order_id) is None


async def test_waiting_ends_when_readers_of_committed_records_see_everything(fresh: Settings) -> None:
    producer = AIOKafkaProducer(**kafka(fresh.brokers), transactional_id=fresh.group)
    await producer.start()
    await producer.begin_transaction()
    await producer.send_and_wait("stock.reserve", b"x", partition=1)
    assert (await wait(fresh, 0.3)).left == {"stock.reserve": 1}
    await producer.commit_transaction()
    await producer.stop()
    assert (await wait(fresh, 20)).left == {}


async def test_a_broker_that_dies_while_a_transaction_is_open(tmp_path: Path) -> None:
    """One lane, so that no other's transaction is being ended at that moment: a broker of Kafka 4.3.0 that is
    alone may forget that one.
    """
    with place(tmp_path / "stack"):
        stack = Stack.start(tmp_path / "stack")
        async with counting(
            stack.env["ORDERS_KAFKA"], tmp_path, topics=1, partitions=1, delivery="exactly_once"
        ) as group:
            worker = group.start(COUNTER_BREAK="stop before EndTxn", ORDERS_TRANSACTION_TIMEOUT="60")
            await group.produce(100)
            await group.drained()
            worker.send(signal.SIGUSR1)
            await group.produce(100)
            await worker.logged("stop before EndTxn")
            for pid in stack.pids["kafka"]:
                broker = psutil.Process(pid)
                broker.kill()
                broker.wait(10)
            Stack.start(tmp_path / "stack")
            worker.send(signal.SIGCONT)
            await group.produce(100)
            await group.drained()
            assert await worker.stop() == 0
            await group.verify()
