"""What a lane refreshes in the cache, moment by moment.
The sink is the real one on the simulation's Redis; the lane is staged.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import Any, cast

import pytest
import pytest_asyncio

from domain.order import Order, PaymentFailure
from settings import Settings
from sinks.redis import CacheCheckpoint, RedisSink, behind, checkpoint_key
from sinks.rows import CacheEntry
from streams import cache
from streams.cache import CacheKeeper
from streams.transport.batch import Changes
from streams.transport.errors import LeaseLost
from tables import codec
from tests.simulation.network import calm
from tests.simulation.stores import REDIS, FakeRedis, Keys
from tests.waiting import eventually

A, B = b"a" * 16, b"b" * 16
KEY = b"cache:orders:0"


def state(version: int, note: int = 0) -> bytes:
    """A state; `note` tells it from others of its version."""
    order = Order()
    order.version, order.due = version, note
    order.failures = [PaymentFailure(1, n.to_bytes(16, "big"), "r") for n in range(version)]
    return codec.encode(order)


def entry(key: bytes, raw: bytes) -> CacheEntry:
    order = codec.decode(raw)
    summary = json.dumps({"version": order.version, "note": order.due}, separators=(",", ":")).encode()
    return CacheEntry(key.decode(), "u", 1, order.version, 600, summary, [], [])


class Lane:
    """An OpenLane and its batches, on a changelog in memory.
    `reading` is cleared to hold a pass up before it reads.
    """

    partition = 0
    generation = 1

    def __init__(self, keys: Keys) -> None:
        self.keys = keys
        self.network = calm()
        self.sink = RedisSink(Settings(), client=FakeRedis(self.network, keys))
        self.keeper = CacheKeeper(Settings(), None, self.sink, entry)
        self.log: list[tuple[bytes, bytes | None]] = []
        self.busy = False
        self.reading = asyncio.Event()
        self.reading.set()
        self.passes = 0
        self.markers = 0
        self.sure = True
        self.task: asyncio.Task[None] | None = None

    def open(self) -> None:
        self.task = asyncio.ensure_future(self.keeper.opened(cast(Any, self)))

    def position(self, table: object) -> int:
        return len(self.log)

    def check(self) -> None:
        if not self.sure:
            raise LeaseLost

    def get_states(self, table: object, keys: Sequence[bytes]) -> list[bytes | None]:
        stored = dict(self.log)
        return [stored.get(key) for key in keys]

    async def end(self, table: object) -> int:
        if self.keeper._lanes[0].behind:
            self.passes += 1
        return len(self.log) + self.markers

    async def changes(self, table: object, since: int, end: int) -> AsyncGenerator[Changes, None]:
        for at in range(since, end):
            await self.reading.wait()
            key, raw = self.log[at]
            yield Changes(
                {} if raw is None else {key: raw}, at + 1 + self.markers * (at + 1 == len(self.log))
            )

    async def batch(self, key: bytes, raw: bytes) -> None:
        """One, with at_least_once."""
        self.log.append((key, raw))
        await self.keeper.write(cast(Any, self), [entry(key, raw)])

    async def away(self, key: bytes, raw: bytes) -> None:
        """A batch that Redis doesn't take, and Redis is back."""
        self.network.down.add(REDIS)
        await self.batch(key, raw)
        self.network.down.clear()

    async def complete(self) -> None:
        async def so() -> bool:
            return not self.keeper.behind and bool(self.keeper._lanes)

        await eventually(so, "the cache is complete")

    async def passing(self, number: int) -> None:
        async def so() -> bool:
            return self.passes >= number

        await eventually(so, f"pass {number} has begun")

    def checkpoint(self) -> int:
        return int(cast(bytes, self.keys.values[KEY]).split()[2])

    def shown(self, key: bytes) -> dict[str, int]:
        summary: dict[str, int] = json.loads(cast(bytes, self.keys.values[b"order:" + key]))
        return summary


@pytest_asyncio.fixture
async def lane(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lane]:
    monkeypatch.setattr(cache, "PAUSE", 0.01)
    new_lane = Lane(Keys())
    new_lane.open()
    await new_lane.complete()
    yield new_lane
    assert new_lane.task is not None
    new_lane.task.cancel()
    await asyncio.wait([new_lane.task])


async def test_a_lane_that_has_missed_nothing_moves_its_checkpoint_with_its_batches(lane: Lane) -> None:
    for version in (1, 2):
        await lane.batch(A, state(version))
        assert lane.checkpoint() == version
    assert lane.passes == 1


async def test_what_was_missed_is_refreshed_and_the_checkpoint_waits_for_it(lane: Lane) -> None:
    await lane.batch(A, state(1))
    lane.reading.clear()
    await lane.away(A, state(2))
    await lane.passing(2)
    await lane.batch(B, state(1))
    assert lane.shown(B) == {"version": 1, "note": 0}, "live events don't wait for the others"
    assert lane.checkpoint() == 1
    lane.reading.set()
    await lane.complete()
    assert lane.shown(A) == {"version": 2, "note": 0}
    await lane.batch(B, state(2))
    assert lane.checkpoint() == 4


async def test_a_successor_goes_on_from_the_checkpoint(lane: Lane) -> None:
    await lane.batch(A, state(1))
    lane.network.down.add(REDIS)
    for version in range(2, 300):
        await lane.batch(A, state(version))
    successor = Lane(lane.keys)
    successor.generation, successor.log = 2, lane.log
    successor.open()
    await successor.complete()
    assert successor.shown(A) == {"version": 299, "note": 0}
    assert successor.checkpoint() == 299
    assert successor.task is not None
    successor.task.cancel()


async def test_what_is_missed_while_a_pass_reads_takes_another(lane: Lane) -> None:
    lane.reading.clear()
    await lane.away(A, state(1))
    await lane.passing(2)
    # The pass holds Redis for back: only this batch is lost.
    lane.network.down.add(REDIS)
    await lane.batch(B, state(1))
    lane.network.down.clear()
    lane.sink._away_since = None
    lane.reading.set()
    await lane.complete()
    assert (lane.shown(A)["version"], lane.shown(B)["version"]) == (1, 1)


async def test_a_pass_leaves_what_a_batch_has_written_meanwhile(lane: Lane) -> None:
    lane.reading.clear()
    await lane.away(A, state(5, 1))
    await lane.passing(2)
    await lane.batch(A, state(5, 2))
    await lane.batch(B, state(1))
    lane.reading.set()
    await lane.complete()
    assert lane.shown(A) == {"version": 5, "note": 2}


async def test_a_pass_leaves_out_what_was_deleted_since(lane: Lane) -> None:
    await lane.away(A, state(1))
    lane.log.append((A, None))
    await lane.complete()
    assert b"order:" + A not in lane.keys.values


async def test_a_pass_leaves_what_a_batch_has_written_whose_transaction_is_open(lane: Lane) -> None:
    lane.reading.clear()
    await lane.away(A, state(5, 1))
    await lane.passing(2)
    await lane.keeper.write(cast(Any, lane), [entry(A, state(5, 2))])
    lane.reading.set()
    await lane.complete()
    assert lane.shown(A) == {"version": 5, "note": 2}


async def test_a_batch_that_is_not_committed_yet_keeps_the_lane_behind(lane: Lane) -> None:
    """With exactly_once its states are in the changelog only after its entries were refused."""
    lane.busy = True
    lane.network.down.add(REDIS)
    await lane.keeper.write(cast(Any, lane), [entry(A, state(1))])
    lane.network.down.clear()
    await lane.passing(4)
    assert lane.keeper.behind
    lane.log.append((A, state(1)))
    lane.busy = False
    await lane.complete()
    assert lane.shown(A) == {"version": 1, "note": 0}


async def test_a_server_that_has_gone_back_is_noticed_by_a_batch_and_without_one(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    await lane.batch(A, state(1))
    lane.keys.keep()
    await lane.batch(A, state(2))
    lane.keys.lose()
    await lane.batch(B, state(1))
    assert lane.keeper.behind
    await lane.complete()
    assert lane.shown(A)["version"] == 2
    lane.keys.lose()
    monkeypatch.setattr(cache, "CHECK_INTERVAL", 0.0)

    async def refreshed() -> bool:
        return lane.shown(A)["version"] == 2

    await eventually(refreshed, "the lane has looked by itself")


async def test_what_a_former_owner_sends_is_refused(lane: Lane) -> None:
    await lane.batch(A, state(1))
    successor = RedisSink(Settings(), client=FakeRedis(lane.network, lane.keys))
    await successor.put([entry(A, state(2))], CacheCheckpoint(KEY.decode(), 2, 1, 1, 1, "claim"))
    await lane.batch(A, state(3))
    assert lane.shown(A)["version"] == 2
    assert lane.checkpoint() == 1


async def test_a_lane_at_rest_brings_its_checkpoint_to_the_changelogs_end(
    lane: Lane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is shown to nobody moves no checkpoint, nor do the ends of transactions; who waits for the cache
    would wait for ever."""

    async def at_end() -> bool:
        return lane.checkpoint() == len(lane.log) + lane.markers

    await lane.batch(A, state(1))
    lane.log.append((B, state(1)))  # facts that wait for their order
    await eventually(at_end, "the state that nobody is shown is behind the checkpoint")
    lane.markers = 1
    lane.log.append((B, state(2)))
    await eventually(at_end, "and a transaction's end")
    settled = lane.keeper._lanes[0].sequence
    await lane.batch(A, state(2))
    await eventually(at_end, "as before")
    assert lane.keeper._lanes[0].sequence == settled + 2, "a batch, and its transaction's end"
    monkeypatch.setattr(cache, "CHECK_INTERVAL", 0.0)
    lane.markers = 2
    await eventually(at_end, "the end of a transaction comes late")


@pytest.mark.parametrize("why", ["a batch is under way", "another worker may have the lane", "Redis is away"])
async def test_a_checkpoint_stays_where_a_lane_is_not_at_rest(lane: Lane, why: str) -> None:
    await lane.batch(A, state(1))
    lane.busy, lane.sure = why == "a batch is under way", why != "another worker may have the lane"
    if why == "Redis is away":
        lane.network.down.add(REDIS)
    lane.log.append((B, state(1)))
    keeper_lane = lane.keeper._lanes[0]
    for _ in range(3):
        await lane.keeper._settle(cast(Any, lane), keeper_lane) if lane.sure else await refused(lane)
    assert lane.checkpoint() == 1
    assert not lane.keeper.behind
    lane.busy, lane.sure = False, True
    lane.network.down.clear()

    async def at_end() -> bool:
        return lane.checkpoint() == 2

    await eventually(at_end, "the checkpoint is where the changelog ends")


async def refused(lane: Lane) -> None:
    with pytest.raises(LeaseLost):
        await lane.keeper._settle(cast(Any, lane), lane.keeper._lanes[0])


def checkpoint(position: int) -> bytes:
    return b"1 1 %d" % position


@pytest.mark.parametrize(
    ("checkpoints", "ends", "expected"),
    [
        ({}, {0: 5, 1: 0}, {}),
        ({0: checkpoint(5), 1: checkpoint(9)}, {0: 5, 1: 7}, {}),
        ({0: checkpoint(3), 2: checkpoint(0)}, {0: 5, 1: 7, 2: 7}, {0: 2, 2: 7}),
        ({0: b"what", 1: b""}, {0: 5, 1: 5}, {}),
        ({0: checkpoint(3)}, {0: 0}, {}),
        ({}, {}, {}),
    ],
)
async def test_which_lanes_are_behind(
    checkpoints: dict[int, bytes], ends: dict[int, int], expected: dict[int, int]
) -> None:
    class Client:
        async def mget(self, keys: list[str]) -> list[bytes | None]:
            known = {checkpoint_key(Settings(), lane): value for lane, value in checkpoints.items()}
            return [known.get(key) for key in keys]

    assert await behind(cast(Any, Client()), Settings(), ends) == expected


async def test_a_checkpoint_of_another_changelog_counts_for_nothing(lane: Lane) -> None:
    lane.keys.values[KEY] = b"1 1 900"
    lane.log[:] = [(A, state(1))]
    successor = Lane(lane.keys)
    successor.generation, successor.log = 2, lane.log
    successor.open()
    await successor.complete()
    assert successor.shown(A)["version"] == 1
    assert successor.checkpoint() == 1
    assert successor.task is not None
    successor.task.cancel()
