"""An ordinary Faust agent beside the lanes, on a real broker: its records reach it, and
it can't disturb the lanes.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiokafka import TopicPartition

from settings import Settings
from tests.integration.counting import Counting, counting
from tests.stackfixture import Servers, allow_topic
from tests.unit.recipes import apply
from tests.unit.test_howto import copy_of_the_source
from tests.waiting import eventually
from tests.workers import ORDERS, audit, processed, worker
from workload import generator
from workload.producer import send

PARTITIONS = 3
BOTH = pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"], indirect=True)


@pytest.fixture
def delivery(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "at_least_once"))


class Notes:
    """The topic of the ordinary agent, and what it has copied."""

    def __init__(self, group: Counting) -> None:
        self.group = group
        self.topic = f"{group.group}.notes"
        self.copies = f"{self.topic}.copies"
        self.env = {"COUNTER_NOTES": self.topic}

    async def send(self, *values: bytes) -> None:
        for number, value in enumerate(values):
            await self.group.producer.send(self.topic, value, partition=number % PARTITIONS)
        await self.group.producer.flush()

    async def copied(self) -> list[bytes]:
        async with self.group.consumer() as consumer:
            tp = TopicPartition(self.copies, 0)
            consumer.assign([tp])
            end = (await consumer.end_offsets([tp]))[tp]
            values: list[bytes] = []
            while await consumer.position(tp) < end:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    values += [record.value for record in records]
            return values

    async def all_copied(self, *values: bytes) -> None:
        async def so() -> bool:
            return set(values) <= set(await self.copied())

        await eventually(so, f"copies of {len(values)} notes", 60)

    async def all_committed(self) -> None:
        """Wait until the group has committed the topic to its end."""
        parts = [TopicPartition(self.topic, number) for number in range(PARTITIONS)]
        async with self.group.consumer() as consumer:
            ends = await consumer.end_offsets(parts)

        async def so() -> bool:
            committed = await self.group.committed()
            return all(committed.get(tp) == end for tp, end in ends.items() if end)

        await eventually(so, "notes committed", 60)


@pytest.fixture
async def group(stack: Servers, tmp_path: Path, delivery: str) -> AsyncIterator[Counting]:
    async with counting(stack.env["ORDERS_KAFKA"], tmp_path, delivery=delivery) as group:
        yield group


@pytest.fixture
async def notes(group: Counting) -> Notes:
    notes = Notes(group)
    await group.add_topic(notes.topic, PARTITIONS)
    await group.add_topic(notes.copies, 1)
    return notes


def texts(since: int, to: int) -> list[bytes]:
    return [b"note %d" % number for number in range(since, to)]


@BOTH
async def test_an_ordinary_agent_gets_its_records_and_goes_on_where_it_was(
    group: Counting, notes: Notes
) -> None:
    await notes.send(*texts(0, 50))  # before the group has committed anything: it must begin at 0
    await group.produce(500)
    worker = group.start(**notes.env)
    await notes.all_copied(*texts(0, 50))
    await group.drained()
    await notes.all_committed()
    assert await worker.stop() == 0
    await notes.send(*texts(50, 60))
    again = group.start(**notes.env)
    await notes.all_copied(*texts(50, 60))
    await notes.all_committed()
    assert await again.stop() == 0
    assert sorted(await notes.copied()) == sorted(texts(0, 60))  # each once: nothing died
    await group.verify()


async def test_an_agent_that_raises_at_hundreds_of_records_ends_no_worker(
    group: Counting, notes: Notes
) -> None:
    worker = group.start(**notes.env)
    await notes.send(*[b"bad"] * 400, *texts(0, 3))
    await group.produce(1000)
    await group.drained()
    await notes.all_copied(*texts(0, 3))
    assert await worker.stop() == 0
    assert "ValueError" in worker.text()
    await group.verify()


async def test_an_agent_that_never_returns_holds_up_nobody_but_itself(group: Counting, notes: Notes) -> None:
    worker = group.start(**notes.env)
    await notes.send(b"stuck")
    await notes.send(*[b"x" * 1000] * 9000)  # more than Faust's queue of an agent holds
    await group.produce(2000)
    await group.drained()
    second = group.start("2", **notes.env)
    await group.shared(worker, second)
    await group.produce(1000)
    await group.drained()
    assert await second.stop() == 0
    assert await worker.stop() == 0
    await group.verify()


@BOTH
async def test_a_kill_loses_no_record_of_an_ordinary_agent_and_none_of_the_lanes(
    group: Counting, notes: Notes
) -> None:
    first = group.start(**notes.env)
    second = group.start("2", **notes.env)
    await group.shared(first, second)
    async with group.fed():
        await notes.send(*texts(0, 200))
        await group.written(300)
        first.send(signal.SIGKILL)
        await notes.send(*texts(200, 300))
        await notes.all_copied(*texts(0, 300))
        await group.written(300)
    await group.drained()
    await notes.all_committed()
    assert await second.stop() == 0
    await group.verify()


async def test_workers_with_and_without_the_agent_share_a_group(group: Counting, notes: Notes) -> None:
    without = group.start("1")
    await without.ready()
    with_it = group.start("2", **notes.env)
    await notes.send(*texts(0, 30))
    await group.produce(1000)
    await group.shared(without, with_it)
    await group.drained()
    await notes.all_copied(*texts(0, 30))
    assert await without.stop() == 0
    assert await with_it.stop() == 0
    await group.verify()


async def test_an_agent_added_by_its_recipe_runs_beside_the_orders(
    stack: Servers, fresh: Settings, group: Counting, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    assert apply("add-an-agent.md", copy_of_the_source(source)) == {"app.py"}
    tickets = [
        b'{"ticket_id": "1", "order_id": "a"}',
        b'{"ticket_id": "2"}',
        b'{"ticket_id": "3", "order_id": "b"}',
    ]
    await group.add_topic("support.ticket", 2)
    await group.add_topic("support.ticket.of_order", 1)
    for topic in group.others:
        await allow_topic(stack, topic)
    for number, ticket in enumerate(tickets):
        await group.producer.send("support.ticket", ticket, partition=number % 2)
    await group.producer.flush()
    notes = Notes(group)
    notes.copies = "support.ticket.of_order"
    with worker(tmp_path, "w", ("env", f"--chdir={source}", *ORDERS, "worker")) as running:
        await send(fresh, generator.events(60, 5))
        processed()
        await notes.all_copied(tickets[0], tickets[2])
        audit()
        assert running.terminate() == 0
    assert sorted(await notes.copied()) == [tickets[0], tickets[2]]
