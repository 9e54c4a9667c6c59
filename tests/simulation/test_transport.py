"""Single moments of the transport, staged: what a random history meets rarely."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from aiokafka.structs import TopicPartition

from audit.reference import Fact
from streams.transport.consumer_thread import ConsumerThread
from streams.transport.errors import Fenced, Stalled, StateCorrupt
from streams.transport.lane import Lane, LaneState
from streams.transport.table import StateStore
from tests.simulation import run
from tests.simulation.kafka import NO_MEMBER, Sent
from tests.simulation.loop import VirtualLoop
from tests.simulation.worker import App
from tests.simulation.world import World


@pytest.fixture
def world() -> Iterator[World]:
    """A world whose workers are started by the test: servers as always, no fault, nothing planned."""
    with run.prepared():
        new_world = World(0)
        new_world.network.faults.left = 0
        run.enter(new_world)
        yield new_world
        new_world.close()


def until(loop: VirtualLoop, condition: object, seconds: float = 60.0) -> None:
    assert callable(condition)
    assert loop.run(lambda: bool(condition()), loop.now + seconds)


def test_lanes_stay_closed_between_revocation_and_assignment(world: World) -> None:
    """A recovery that ends while the group is between two generations must not open lanes: nobody would close
    them, and the partitions that the worker keeps would never be read again.
    """
    with world.loop.entered():
        world.start(0)
    until(world.loop, lambda: 0 in world.running and world.running[0].app is not None)
    app = world.running[0].app
    assert app is not None
    until(world.loop, lambda: app.consumer.lanes)
    # A second member joins: w0 gives its partitions up, and its next generation waits for the
    # other one, which is slow.
    world.group.join(NO_MEMBER, lambda joined: None)
    other = list(world.group.members)[-1]
    world.group.members[other].joining = None
    until(world.loop, lambda: not app.consumer.lanes)
    with world.loop.entered():
        late = world.loop.create_task(app.consumer.perform_seek())
    until(world.loop, late.done)
    assert app.consumer.lanes == {}
    assert app.consumer.trackers == {}


def test_a_worker_whose_lanes_fail_to_open_stops(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """There are lanes then of which no task has begun."""

    def broken(store: StateStore, partition: int) -> int:
        raise StateCorrupt(f"local state of partition {partition}")

    monkeypatch.setattr(StateStore, "first_due", broken)
    with world.loop.entered():
        world.start(0)
    until(world.loop, lambda: 0 in world.running and world.running[0].app is not None)
    worker = world.running[0]
    app = worker.app
    assert app is not None
    until(world.loop, lambda: worker.failure is not None)
    until(world.loop, lambda: not worker.process.alive)
    assert isinstance(worker.failure, StateCorrupt)
    assert app.consumer.lanes == {}
    assert world.violations == []


def refuse(world: World) -> tuple[App, Lane]:
    """A worker with open lanes, and one of them whose producer the broker refuses with its next batch."""
    with world.loop.entered():
        world.start(0)
    until(world.loop, lambda: 0 in world.running and world.running[0].app is not None)
    app = world.running[0].app
    assert app is not None
    until(world.loop, lambda: len(app.consumer.lanes) == 3)
    lane = next(lane for lane in app.consumer.lanes.values() if lane.partition == 1)

    async def acknowledge(offsets: object, before: object, notes: object) -> None:
        lane.producer.fenced = True
        raise Fenced("by another")

    lane.producer.acknowledge = acknowledge  # type: ignore[method-assign]
    with world.loop.entered():
        world.arrive(world.plan.arrivals[0]._replace(partition=1))
    until(world.loop, lambda: lane.state is LaneState.FENCED)
    return app, lane


def test_a_lane_that_is_fenced_asks_the_group_and_is_made_anew(world: World) -> None:
    app, lane = refuse(world)
    until(world.loop, lambda: world.group.generation == 2 and len(app.consumer.lanes) == 3)
    assert lane.state is LaneState.CLOSED
    assert lane not in app.consumer.lanes.values()
    until(world.loop, lambda: sum(tracker.done for _, tracker in app.consumer.trackers.values()))
    assert world.violations == []


def test_a_worker_does_not_wait_for_ever_for_the_group_to_say_who_has_a_lane(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unheard(thread: ConsumerThread, assignment: object, generation: int) -> None:
        """The group's coordinator isn't reached."""

    monkeypatch.setattr(ConsumerThread, "rejoin", unheard)
    app, lane = refuse(world)
    worker = app.worker
    until(world.loop, lambda: worker.failure is not None, app.settings.stall_timeout + 30)
    assert isinstance(worker.failure, Stalled)
    assert "lane 1 was taken over" in str(worker.failure)
    until(world.loop, lambda: lane.state is LaneState.CLOSED)
    assert world.violations == []


def test_a_commit_that_was_held_up_is_not_sent_in_a_later_generation(world: World) -> None:
    """It would be sent as the new generation's, and Kafka doesn't ask whose partitions they are."""
    with world.loop.entered():
        world.start(0)
    until(world.loop, lambda: 0 in world.running and world.running[0].app is not None)
    app = world.running[0].app
    assert app is not None
    until(world.loop, lambda: len(app.consumer.lanes) == 3)
    known = asyncio.Event()
    consumer = app.consumer
    with world.loop.entered():
        world.arrive(world.plan.arrivals[0]._replace(partition=1))
    until(
        world.loop,
        lambda: (
            any(tracker.uncommitted for _, tracker in consumer.trackers.values())
            and not consumer._committing.locked()  # by the commit of now and then
        ),
    )
    app.client._coordinator.ensure_coordinator_known = known.wait  # type: ignore[method-assign, assignment]
    with world.loop.entered():
        commit = world.loop.create_task(app.consumer.force_commit())
        world.start(1)
    until(world.loop, lambda: world.group.generation == 2 and len(app.consumer.lanes) == 2)
    with world.loop.entered():
        known.set()
    until(world.loop, commit.done)
    assert commit.result() is False
    assert world.violations == []


def test_recovery_keeps_the_highest_version_of_a_key(world: World) -> None:
    """What a worker that had lost the partition has written last must not win."""
    with world.loop.entered():
        world.start(0)
    until(world.loop, lambda: 0 in world.running and world.running[0].app is not None)
    log = world.broker.logs[TopicPartition(world.settings.changelog_topic, 1)]
    created = next(
        arrival
        for arrival in world.plan.arrivals
        if arrival.topic == "order.created" and isinstance(arrival.parsed, Fact)
    )
    paid = next(
        arrival
        for arrival in world.plan.arrivals
        if arrival.topic == "order.paid" and arrival.key == created.key
    )
    assert created.partition == paid.partition == 1
    for arrival in (created, paid):
        before = log.end
        with world.loop.entered():
            world.arrive(arrival)
        until(world.loop, lambda before=before: log.end > before)
    oldest, newest = log.records[0], log.records[-1]
    with world.loop.entered():
        log.append([Sent(oldest.key, oldest.value, ())], 0)
        world.kill(world.running[0].process, "its folder is lost with it")
        world.disks[0].delete()
    until(world.loop, lambda: 0 in world.running and world.running[0].app is not None)
    app = world.running[0].app
    assert app is not None
    until(world.loop, lambda: app.consumer.lanes)
    assert newest.key is not None
    assert world.disks[0].partitions[1][newest.key] == newest.value
