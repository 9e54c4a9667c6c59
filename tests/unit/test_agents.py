"""Agents of whole batches: when a batch is done, who hears what went wrong, and what an
ordinary agent can't do to lanes.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from settings import Settings
from streams.transport.agents import BatchChannel, Batches, BatchStream, PatientSupervisor, actor
from streams.transport.app import BatchApp
from streams.transport.batch import LaneBatch
from streams.transport.records import Slice
from tests.unit.test_offset_tracker import Rec
from tests.waiting import eventually


def batch(partition: int = 0) -> LaneBatch:
    return LaneBatch(cast(Any, SimpleNamespace(partition=partition)), (Slice("t", [Rec(0, b"v", b"k")], 1),))


@pytest.fixture
async def app(tmp_path: Path) -> BatchApp:
    return BatchApp(Settings(data=tmp_path, partitions=3))


class Actors:
    """Actors of one agent on a channel, without Faust's services around them."""

    def __init__(self, app: BatchApp, function: Callable[[Any], Any], count: int = 1) -> None:
        self.channel = app.batches(("t",), max_records=10)
        self.tasks = [
            asyncio.ensure_future(actor(function)(BatchStream(self.channel, app=app))) for _ in range(count)
        ]

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.wait(self.tasks)


async def test_a_batch_is_done_when_the_next_one_is_asked_for(app: BatchApp) -> None:
    release = asyncio.Event()
    taken: list[LaneBatch] = []

    async def agent(batches: Batches) -> None:
        async for one in batches:
            taken.append(one)
            await release.wait()

    actors = Actors(app, agent)
    first, second = batch(), batch()
    handled = asyncio.ensure_future(actors.channel.handle(first))
    waiting = asyncio.ensure_future(actors.channel.handle(second))
    await eventually(lambda: _so(bool(taken)), "the first batch")
    assert not handled.done()
    release.set()
    await asyncio.gather(handled, waiting)
    assert taken == [first, second]
    await actors.stop()


async def test_what_an_agent_raises_reaches_the_lane_and_the_same_batch_may_come_again(app: BatchApp) -> None:
    calls: list[LaneBatch] = []

    async def agent(batches: Batches) -> None:
        async for one in batches:
            calls.append(one)
            if len(calls) == 1:
                raise ConnectionError("away")

    actors = Actors(app, agent)
    one = batch()
    with pytest.raises(ConnectionError, match="away"):
        await actors.channel.handle(one)
    await actors.channel.handle(one)
    assert calls == [one, one]
    await actors.stop()


async def test_an_agent_that_yields_works_as_one_that_does_not(app: BatchApp) -> None:
    seen: list[LaneBatch] = []

    async def agent(batches: Batches) -> AsyncIterator[int]:
        async for one in batches:
            seen.append(one)
            yield len(one)
            if len(seen) == 2:
                raise ValueError("second")

    actors = Actors(app, agent)
    await actors.channel.handle(batch())
    with pytest.raises(ValueError, match="second"):
        await actors.channel.handle(batch())
    await actors.stop()


async def test_an_agent_that_returns_has_not_done_its_batch(app: BatchApp) -> None:
    async def agent(batches: Batches) -> None:
        async for _ in batches:
            return

    actors = Actors(app, agent)
    with pytest.raises(RuntimeError, match="agent agent returned: it has to go on asking for batches"):
        await actors.channel.handle(batch())
    await actors.stop()


async def test_what_fails_before_the_first_batch_is_told_to_the_next_one(app: BatchApp) -> None:
    async def agent(batches: Batches) -> None:
        raise LookupError("set-up")

    actors = Actors(app, agent)
    for _ in range(3):
        with pytest.raises(LookupError, match="set-up"):
            await actors.channel.handle(batch())
    await actors.stop()


async def test_actors_hold_a_batch_each_side_by_side(app: BatchApp) -> None:
    inside: set[int] = set()
    release = asyncio.Event()

    async def agent(batches: Batches) -> None:
        async for one in batches:
            inside.add(one.partition)
            await release.wait()

    actors = Actors(app, agent, 3)
    handled = [asyncio.ensure_future(actors.channel.handle(batch(number))) for number in range(3)]
    await eventually(lambda: _so(inside == {0, 1, 2}), "three batches at once")
    release.set()
    await asyncio.gather(*handled)
    await actors.stop()


async def test_a_lane_that_is_cancelled_ends_what_the_agent_does_with_its_batch_and_nothing_else(
    app: BatchApp,
) -> None:
    ended: list[int] = []
    inside: set[int] = set()
    release = asyncio.Event()

    async def agent(batches: Batches) -> None:
        async for one in batches:
            inside.add(one.partition)
            try:
                await release.wait()
            except asyncio.CancelledError:
                ended.append(one.partition)
                raise

    actors = Actors(app, agent, 2)
    first, second = (asyncio.ensure_future(actors.channel.handle(batch(number))) for number in range(2))
    await eventually(lambda: _so(inside == {0, 1}), "both batches")
    first.cancel()
    await asyncio.wait([first])
    assert ended == [0]
    assert first.cancelled()
    release.set()
    await second
    await asyncio.gather(
        actors.channel.handle(batch(2)), actors.channel.handle(batch(3))
    )  # both actors are there again
    await actors.stop()


async def test_a_batch_that_nobody_waits_for_any_more_is_not_taken(app: BatchApp) -> None:
    taken: list[int] = []

    async def agent(batches: Batches) -> None:
        async for one in batches:
            taken.append(one.partition)

    channel = app.batches(("t",), max_records=1)
    gone = asyncio.ensure_future(channel.handle(batch(7)))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.wait([gone])
    task = asyncio.ensure_future(actor(agent)(BatchStream(channel, app=app)))
    await channel.handle(batch(8))
    assert taken == [8]
    task.cancel()
    await asyncio.wait([task])


async def test_an_actor_that_is_stopped_says_so_to_its_lane(app: BatchApp) -> None:
    entered = asyncio.Event()

    async def agent(batches: Batches) -> None:
        async for _ in batches:
            entered.set()
            await asyncio.Event().wait()

    actors = Actors(app, agent)
    handled = asyncio.ensure_future(actors.channel.handle(batch()))
    await entered.wait()
    await actors.stop()
    with pytest.raises(RuntimeError, match="agent agent was stopped with a batch in its hands"):
        await handled


async def test_the_event_of_a_batch_is_there_and_its_ack_does_nothing(app: BatchApp) -> None:
    async def agent(batches: Any) -> None:
        async for one in batches:
            event = batches.current_event
            assert event.value is one
            assert event.ack() is False
            raise ConnectionError("after the ack")

    actors = Actors(app, agent)
    with pytest.raises(ConnectionError, match="after the ack"):
        await actors.channel.handle(batch())
    await actors.stop()


async def test_a_channel_of_batches_has_one_agent_with_as_many_actors_as_lanes(app: BatchApp) -> None:
    channel = app.batches(("t",), max_records=10)

    async def first(batches: Batches) -> None: ...

    agent = app.agent(channel)(first)
    assert agent.concurrency == 3
    assert isinstance(agent.channel, BatchChannel)
    with pytest.raises(ValueError, match="a channel of batches has one agent"):
        app.agent(channel)(first)
    with pytest.raises(ValueError, match="read by two lanes: t"):
        app.batches(("t",), max_records=10)


async def test_a_channel_without_an_agent_ends_the_start(app: BatchApp) -> None:
    app.batches(("t", "u"), max_records=10)
    with pytest.raises(RuntimeError, match="no agent reads the batches of t, u"):
        await app.on_first_start()


async def test_batches_come_from_lanes_only_and_go_through_as_they_are(app: BatchApp) -> None:
    channel = app.batches(("t",), max_records=10)
    with pytest.raises(TypeError, match="from lanes only"):
        await channel.put(cast(Any, "x"))
    with pytest.raises(TypeError, match="no processors"):
        BatchStream(channel, app=app).add_processor(lambda value: value)


async def test_topics_of_lanes_and_changelogs_are_not_ordinary(app: BatchApp) -> None:
    app.batches(("t",), max_records=10)
    table = app.state_table("state", lambda raw: 0)
    assert [app.is_ordinary(topic) for topic in ("t", table.changelog_topic_name, "notes")] == [
        False,
        False,
        True,
    ]


async def test_an_ordinary_agent_that_keeps_failing_does_not_end_the_worker() -> None:
    supervisor = PatientSupervisor(max_restarts=2.0, over=1.0)
    assert supervisor._bucket.raises is None


async def _so(value: bool) -> bool:
    return value
