"""The transport against a real broker, in worker processes that are stopped, killed and lied to."""

from __future__ import annotations

import asyncio
import signal
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import NewPartitions, RecordsToDelete
from aiokafka.errors import MessageSizeTooLargeError

from streams.transport.errors import LeaseLost, Stale
from streams.transport.producer import BATCH_BYTES, REQUEST_BYTES, AiokafkaConnection, LaneProducer
from streams.transport.records import OutRecord
from tests.integration.counting import Counting, counting
from tests.servers import kafka, kafka_settings
from tests.stackfixture import Servers
from tests.waiting import eventually

BOTH = pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"], indirect=True)


@pytest.fixture
def delivery(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "at_least_once"))


@pytest.fixture
async def group(stack: Servers, tmp_path: Path, delivery: str) -> AsyncIterator[Counting]:
    async with counting(stack.env["ORDERS_KAFKA"], tmp_path, delivery=delivery) as group:
        yield group


@BOTH
async def test_everything_is_counted_from_offset_zero_and_committed_at_the_end(group: Counting) -> None:
    await group.produce(3000)  # before the group has committed anything: it must begin at 0
    worker = group.start(ORDERS_COMMIT_INTERVAL="60")  # so that the last commit is the only one
    await worker.ready()
    await group.produce(500)

    async def counted() -> bool:
        return sum((await group.ends(group.out)).values()) >= 3500

    await eventually(counted, "all effects")
    assert await worker.stop() == 0
    assert await group.committed() == {
        tp: end for tp, end in (await group.ends(*group.topics)).items() if end
    }
    await group.verify()
    assert worker.counter("rewinds") == 0


@BOTH
async def test_lists_thrown_away_are_read_again(group: Counting) -> None:
    await group.produce(4000)
    first = group.start(COUNTER_LOSE="0.3", COUNTER_MAX="100", ORDERS_BATCH_RECORDS="100")
    await group.drained()
    assert await first.stop() == 0
    assert first.counter("rewinds") > 0
    second = group.start(
        "2", COUNTER_LOSE="0.3", ORDERS_BATCH_RECORDS="20"
    )  # an empty data folder: recovers, losing lists
    await group.produce(500)
    await group.drained()
    assert await second.stop() == 0
    assert second.counter("recovered") > 0
    await group.verify()


async def test_a_worker_that_was_paused_past_its_session_writes_nothing(group: Counting) -> None:
    paused, other = group.start("1", COUNTER_SLOW="0.05"), group.start("2", COUNTER_SLOW="0.05")
    await group.shared(paused, other)
    async with group.fed():
        await group.written(200)
        before = len(other.text())
        paused.send(signal.SIGSTOP)
        await other.logged("lanes 0, 1, 2, 3 open", after=before)
        await group.written(200)
        resumed = len(paused.text())
        paused.send(signal.SIGCONT)
        await paused.logged("lanes closed (partitions revoked)", after=resumed)
    await group.drained()
    await group.verify()


async def test_a_killed_worker_leaves_nothing_out(group: Counting) -> None:
    killed, other = group.start("1", COUNTER_SLOW="0.05"), group.start("2", COUNTER_SLOW="0.05")
    await group.shared(killed, other)
    async with group.fed():
        await group.written(200)
        killed.process.kill()
        await group.written(200)
    await group.drained()
    assert await other.stop() == 0
    await group.verify()


@BOTH
async def test_a_temporary_failure_is_waited_for(group: Counting) -> None:
    await group.produce(1000)
    worker = group.start(COUNTER_FAIL="3")
    await group.drained()
    assert await worker.stop() == 0
    assert worker.counter("retries") == 3
    assert "ConnectionError: injected" in worker.text()
    assert "goes on after" in worker.text()
    await group.verify()


@BOTH
async def test_a_bug_ends_the_worker_and_acknowledges_nothing(group: Counting) -> None:
    await group.produce(200)
    worker = group.start(COUNTER_BUG="k7", COUNTER_MAX="10")
    assert await worker.ended() == 1
    assert "the worker crashed, nothing unfinished is acknowledged" in worker.text()
    assert "KeyError: b'k7'" in worker.text()
    committed = await group.committed()
    for record in await group.read(*group.topics):
        if record.key == b"k7":
            assert committed.get(TopicPartition(record.topic, record.partition), 0) <= record.offset
    mended = group.start()
    await group.drained()
    assert await mended.stop() == 0
    await group.verify()


async def test_an_outage_past_the_limit_ends_the_worker(group: Counting) -> None:
    await group.produce(100)
    worker = group.start(COUNTER_DOWN="1", ORDERS_RETRY_LIMIT="0.5")
    assert await worker.ended() == 1
    assert "(the limit is 0.5 s), at last: ConnectionError: injected" in worker.text()
    assert await group.committed() == {} or set((await group.committed()).values()) == {0}


@BOTH
async def test_offsets_without_a_record_are_no_gap(group: Counting) -> None:
    """The markers of a transaction take offsets that are never delivered, at the
    very end of the log as well.
    """
    producer = AIOKafkaProducer(**kafka(group.brokers), transactional_id=group.group)
    await producer.start()
    for number in range(5):
        async with producer.transaction():
            for topic in group.topics:
                for part in range(group.partitions):
                    await producer.send(topic, b"x", key=b"t%d" % part, partition=part)
                    group.sent[b"t%d" % part] += 1
        if number == 2:
            await group.produce(100)
    await producer.stop()
    worker = group.start()
    await group.drained()
    assert await worker.stop() == 0
    assert worker.counter("rewinds") == 0
    await group.verify()


async def test_what_an_upstream_service_took_back_is_not_counted(group: Counting) -> None:
    producer = AIOKafkaProducer(**kafka(group.brokers), transactional_id=group.group)
    await producer.start()
    await producer.begin_transaction()
    for topic in group.topics:
        for part in range(group.partitions):
            await producer.send_and_wait(topic, b"x", key=b"aborted", partition=part)
    await group.produce(100)  # behind the open transaction
    worker = group.start()
    await worker.ready()
    await producer.abort_transaction()
    await producer.stop()
    await group.drained()
    assert await worker.stop() == 0
    assert worker.counter("records") == 100
    await group.verify()


@BOTH
@pytest.mark.parametrize("folder", ["1", "2"], ids=["over what the store has", "into an empty store"])
async def test_recovery_keeps_the_highest_version_of_a_key(group: Counting, folder: str) -> None:
    await group.produce(100, keys=10)
    worker = group.start()
    await group.drained()
    assert await worker.stop() == 0
    for record in {record.key: record for record in await group.read(group.changelog)}.values():
        old = struct.pack(
            "<3q", 1, -1, -1
        )  # what a worker that had lost the partition might have written last
        await group.producer.send_and_wait(group.changelog, old, key=record.key, partition=record.partition)
    recovered = group.start(folder)
    await recovered.ready()
    await group.produce(10, keys=10)
    await group.drained()
    assert await recovered.stop() == 0
    last = {
        record.key: struct.unpack_from("<q", record.value)[0] for record in await group.read(group.changelog)
    }
    assert last == dict(group.sent)


async def test_recovery_reads_what_lies_behind_an_open_transaction(group: Counting) -> None:
    """A worker that wrote in transactions has died inside one; its successor, which doesn't, has written
    behind it and died as well.
    """
    await group.produce(100, keys=10)
    worker = group.start()
    await group.drained()
    assert await worker.stop() == 0
    producer = AIOKafkaProducer(**kafka(group.brokers), transactional_id=group.group)
    await producer.start()
    await producer.begin_transaction()
    for record in {record.key: record for record in await group.read(group.changelog)}.values():
        unfinished, newest = (struct.pack("<3q", counted, 1000, 1000) for counted in (5000, 1000))
        await producer.send_and_wait(group.changelog, unfinished, key=record.key, partition=record.partition)
        await group.producer.send_and_wait(
            group.changelog, newest, key=record.key, partition=record.partition
        )
    recovered = group.start("2")
    await recovered.logged("offsets at start of reading")
    await producer.abort_transaction()
    await producer.stop()
    await group.produce(10, keys=10)
    await group.drained()
    assert await recovered.stop() == 0
    last = {
        record.key: struct.unpack_from("<q", record.value)[0] for record in await group.read(group.changelog)
    }
    assert set(last.values()) == {1000}  # all offsets are below those that the newest state has seen


@pytest.mark.parametrize("folder", ["1", "2"], ids=["over what the store has", "into an empty store"])
async def test_after_a_deletion_a_lower_version_counts(group: Counting, folder: str) -> None:
    await group.produce(100, keys=10)
    worker = group.start()
    await group.drained()
    assert await worker.stop() == 0
    for record in {record.key: record for record in await group.read(group.changelog)}.values():
        for value in (None, struct.pack("<3q", 1, -1, -1)):  # both in one list that recovery takes over
            await group.producer.send_and_wait(
                group.changelog, value, key=record.key, partition=record.partition
            )
    recovered = group.start(folder)
    await recovered.ready()
    await group.produce(10, keys=10)
    await group.drained()
    assert await recovered.stop() == 0
    last = {
        record.key: struct.unpack_from("<q", record.value)[0]
        for record in await group.read(group.changelog)
        if record.value
    }
    assert set(last.values()) == {2}


@BOTH
async def test_state_survives_a_restart_without_reading_it_all_again(group: Counting) -> None:
    await group.produce(1000)
    first = group.start()
    await group.drained()
    assert await first.stop() == 0
    second = group.start()
    await second.ready()
    await group.produce(100)
    await group.drained()
    assert await second.stop() == 0
    assert second.counter("recovered") == 0
    await group.verify()


@pytest.mark.parametrize("files", ["MANIFEST-*", "CURRENT", "*.sst"])
async def test_a_corrupt_local_state_is_rebuilt_from_the_changelog(group: Counting, files: str) -> None:
    await group.produce(1000)
    worker = group.start()
    await group.drained()
    assert await worker.stop() == 0
    again = group.start()  # what the first one wrote is in tables now, not in a log of its own
    await again.ready()
    assert await again.stop() == 0
    spoilt = [
        path
        for path in (group.folder / "data-1").rglob(files)
        if path.parent.suffix == ".db" and path.stat().st_size
    ]
    assert spoilt
    for path in spoilt:
        path.write_bytes(bytes(path.stat().st_size))
    mended = group.start()
    await mended.ready()
    assert "is corrupt and was deleted" in mended.text()
    await group.produce(100)
    await group.drained()
    assert await mended.stop() == 0
    assert mended.counter("recovered") > 0
    await group.verify()


async def test_topics_with_different_partitions_are_refused_at_the_start(group: Counting) -> None:
    await group.admin.create_partitions({group.topics[1]: NewPartitions(group.partitions + 1)})
    worker = group.start()
    assert await worker.ended() == 1
    assert f"{group.topics[1]} has 5, the others have 4" in worker.text()
    assert "Traceback" not in worker.text()


async def test_partitions_added_to_one_topic_end_the_worker(group: Counting) -> None:
    worker = group.start()
    await worker.ready()
    await group.admin.create_partitions({group.topics[0]: NewPartitions(group.partitions + 1)})
    assert await worker.ended() == 1
    assert f"{group.topics[0]} has 5, the others have 4" in worker.text()


async def test_a_worker_without_a_broker_says_so(group: Counting) -> None:
    worker = group.start(ORDERS_KAFKA="127.0.0.1:1")
    assert await worker.ended() == 1
    assert "no Kafka broker answers at 127.0.0.1:1: " in worker.text()
    assert "Traceback" not in worker.text()


async def test_missing_topics_are_named(group: Counting) -> None:
    worker = group.start(COUNTER_OUT="not.there")
    assert await worker.ended() == 1
    assert "topics don't exist: not.there" in worker.text()


async def test_a_committed_offset_that_the_log_does_not_have_ends_the_worker(group: Counting) -> None:
    await group.produce(100)
    await group.commit({TopicPartition(group.topics[0], 1): 5000})
    worker = group.start()
    assert await worker.ended() == 1
    assert (
        f"{group.topics[0]}/1: the group has finished up to offset 5000, but the log ends at" in worker.text()
    )
    assert (await group.committed())[TopicPartition(group.topics[0], 1)] == 5000


async def test_a_log_that_lost_records_is_read_from_its_start(group: Counting) -> None:
    await group.produce(800)
    tp = TopicPartition(group.topics[0], 1)
    await group.commit({tp: 2})
    await group.admin.delete_records({tp: RecordsToDelete(before_offset=7)})
    worker = group.start()
    await group.drained()
    assert await worker.stop() == 0
    assert (
        f"records of {tp.topic}/1 are lost: the group had finished up to offset 2, the log now begins at 7"
        in worker.text()
    )


class Gate:
    """The lease of a lane that a test holds in its hand."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.held: list[str] = []

    def check(self) -> None:
        if self.error is not None:
            raise self.error

    def waiting(self, why: str) -> None:
        self.held.append(why)


@pytest.fixture
async def gate() -> Gate:
    return Gate()


@pytest.fixture
async def lane(group: Counting, gate: Gate) -> AsyncIterator[LaneProducer]:
    options = {
        "settings": kafka_settings(group.brokers),
        "client_id": group.group,
        "max_batch_size": BATCH_BYTES,
        "max_request_size": REQUEST_BYTES,
    }
    producer = LaneProducer(lambda: options, gate.check, gate.waiting, 0.1)
    yield producer
    await producer.close()


async def test_publishing_to_several_topics_and_partitions(group: Counting, lane: LaneProducer) -> None:
    big = bytes(8 << 20)
    delivered = await lane.send(
        {
            group.out: [
                OutRecord(b"a", b"1", [("reason", b"x")]),
                OutRecord(b"b", big, []),
                OutRecord(b"c", None, [], partition=3),
            ],
            group.topics[0]: [OutRecord(None, b"%d" % number * 100, []) for number in range(30_000)],
        },
        2,
    )
    assert sum(batch.last + 1 for batch in delivered if batch.last is not None and batch.partition == 3) == 1
    assert max(batch.last for batch in delivered if batch.last is not None) == 29_999
    records = await group.read(group.out)
    assert [
        (r.partition, r.key, r.value, r.headers)
        for r in sorted(records, key=lambda r: (r.partition, r.offset))
    ] == [
        (2, b"a", b"1", (("reason", b"x"),)),
        (2, b"b", big, ()),
        (3, b"c", None, ()),
    ]
    assert [r.value for r in await group.read(group.topics[0])] == [
        b"%d" % number * 100 for number in range(30_000)
    ]


async def test_values_that_are_made_when_they_are_sent(group: Counting, lane: LaneProducer) -> None:
    acknowledged: list[float] = []

    def value() -> bytes:
        acknowledged.append(lane.delivered_at)
        return bytes([len(acknowledged)]) * (6 << 20)

    await lane.send({group.out: [OutRecord(b"a", value, []) for _ in range(7)]}, 0)
    # Three of them are more than is sent at once.
    assert [acknowledged.count(at) for at in dict.fromkeys(acknowledged)] == [3, 3, 1]
    assert [record.value[0] for record in await group.read(group.out)] == [1, 2, 3, 4, 5, 6, 7]


async def test_a_refused_batch_does_not_block_what_follows(group: Counting, lane: LaneProducer) -> None:
    topic = group.topics[0]  # its limit is the broker's
    await lane.send({topic: [OutRecord(b"a", b"1", [])]}, 0)
    await group.admin.alter_configs([size_limit(topic, 1000)])

    async def refused() -> bool:
        try:
            await lane.send({topic: [OutRecord(b"a", bytes(2000), [])]}, 0)
        except MessageSizeTooLargeError:
            return True
        return False

    await eventually(refused, "the broker refuses the record")
    before = (await group.ends(topic))[TopicPartition(topic, 0)]
    [batch] = await lane.send({topic: [OutRecord(b"a", b"2", []), OutRecord(b"a", b"3", [])]}, 0)
    assert batch.last == before + 1


def size_limit(topic: str, limit: int) -> object:
    from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

    return ConfigResource(ConfigResourceType.TOPIC, topic, configs={"max.message.bytes": str(limit)})


async def test_a_request_waits_for_the_lease_and_then_goes_out_once(
    group: Counting, lane: LaneProducer, gate: Gate
) -> None:
    await lane.send({group.out: [OutRecord(b"a", b"1", [])]}, 0)
    sending = asyncio.create_task(lane.send({group.out: [OutRecord(b"a", b"2", [])]}, 0))
    await asyncio.sleep(0)  # the check before queuing has passed, the request has not gone out
    gate.error = LeaseLost()

    async def held() -> bool:
        return bool(gate.held)

    await eventually(held, "the request is held back")
    assert sum((await group.ends(group.out)).values()) == 1
    gate.error = None
    await sending
    assert [record.value for record in await group.read(group.out)] == [b"1", b"2"]


async def test_a_request_that_the_kernel_has_in_part_is_not_made_whole_by_a_lane_that_lost_its_partition(
    group: Counting, lane: LaneProducer, gate: Gate
) -> None:
    await lane.send({group.out: [OutRecord(b"a", b"1", [])]}, 0)
    assert isinstance(lane._producer, AiokafkaConnection)
    connections = lane._producer._producer.client._conns.values()
    transports = [each._writer._lower for each in connections if each.connected()]
    sending = asyncio.create_task(lane.send({group.out: [OutRecord(b"a", bytes(8 << 20), [])]}, 0))
    while not any(transport.get_write_buffer_size() for transport in transports):
        assert not sending.done()
        await asyncio.sleep(0)
    gate.error = Stale("gone")  # as after a minute's stop: before what the loop does next
    with pytest.raises(Stale):
        await sending
    assert [record.value for record in await group.read(group.out)] == [b"1"]


async def test_a_held_request_of_a_lane_that_lost_its_partition_never_goes_out(
    group: Counting, lane: LaneProducer, gate: Gate
) -> None:
    await lane.send({group.out: [OutRecord(b"a", b"1", [])]}, 0)
    sending = asyncio.create_task(lane.send({group.out: [OutRecord(b"a", b"2", [])]}, 0))
    await asyncio.sleep(0)
    gate.error = LeaseLost()

    async def held() -> bool:
        return bool(gate.held)

    await eventually(held, "the request is held back")
    gate.error = Stale("gone")
    with pytest.raises(Stale):
        await sending
    assert [record.value for record in await group.read(group.out)] == [b"1"]
