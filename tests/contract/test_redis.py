"""What only the cache promises: keys and lifetimes as readers expect them, and that its
absence is nobody's trouble.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio
import redis.asyncio

from queries.cache import CacheReader
from settings import Settings
from sinks.redis import CacheCheckpoint, RedisSink, Written
from tests.contract.places import Order, RedisPlace, ident, parcel_json
from tests.servers import as_admin

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHECKPOINT = CacheCheckpoint("cache:test:1", 3, 1, 10, 15)
ORDER = Order("a", 4, "shipped", parcels=(("pa", "in_transit"),))


@pytest_asyncio.fixture(loop_scope="module")
async def client(cache: RedisPlace) -> AsyncIterator[Any]:
    async with redis.asyncio.Redis.from_url(as_admin(cache.settings.redis), decode_responses=True) as client:
        yield client


async def tracked(client: Any, number: str) -> dict[str, str]:
    """shipment id -> status of what a tracking number shows."""
    return {
        entry["shipment_id"]: entry["status"]
        for entry in json.loads(await client.get(f"tracking:{number}") or "[]")
    }


async def test_keys_and_lifetimes(cache: RedisPlace, client: Any) -> None:
    entry = ORDER.entry()._replace(ttl=1234)
    assert await cache.sink.write([entry]) == 1
    assert await client.get(f"order:{ident('a')}") == entry.summary.decode()
    assert await client.zrange(f"user:{ident('user of a')}:orders", 0, -1, withscores=True) == [
        (ident("a"), 1_700_000_000_010.0)
    ]
    assert await client.get("tracking:T-pa") == "[" + entry.tracking[0][2].decode() + "]"
    lifetimes = [
        await client.ttl(key)
        for key in (f"order:{ident('a')}", "tracking:T-pa", f"user:{ident('user of a')}:orders")
    ]
    assert lifetimes == [pytest.approx(1234, abs=5), pytest.approx(1234, abs=5), pytest.approx(1800, abs=5)]


async def test_the_newest_fifty_orders_of_a_user(cache: RedisPlace, client: Any) -> None:
    entries = [Order(f"o{n}", 1, created=n).entry()._replace(user_id="someone") for n in range(60)]
    await cache.sink.write(entries[30:])
    await cache.sink.write(entries[:30])
    assert await client.zrange("user:someone:orders", 0, -1) == [ident(f"o{n}") for n in range(10, 60)]


async def test_the_same_version_again_prolongs(cache: RedisPlace, client: Any) -> None:
    await cache.sink.write([ORDER.entry()])
    await cache.sink.write([ORDER.entry()._replace(ttl=1800)])
    assert await client.ttl(f"order:{ident('a')}") > 1700


async def test_a_number_shared_by_parcels_shows_each(cache: RedisPlace, client: Any) -> None:
    for name, parcel, version in (("a", "p1", 1), ("b", "p2", 1), ("c", "p3", 1), ("b", "p2", 2)):
        json_ = parcel_json(ident(name), parcel, f"v{version}", 'says "shipment_id":"' + ident("p9") + '"')
        await cache.sink.write(
            [Order(name, version).entry()._replace(tracking=[("T", ident(parcel), json_)])]
        )
    assert await tracked(client, "T") == {ident("p1"): "v1", ident("p2"): "v2", ident("p3"): "v1"}
    assert {entry["location"] for entry in json.loads(await client.get("tracking:T"))} == {
        'says "shipment_id":"' + ident("p9") + '"'
    }


async def test_a_number_that_everybody_has_shows_some(cache: RedisPlace, client: Any) -> None:
    parcels = [f"p{n}" for n in range(250)]
    for at in range(0, len(parcels), 50):
        number = [
            ("n/a", ident(parcel), parcel_json(ident(parcel), parcel, "pending"))
            for parcel in parcels[at : at + 50]
        ]
        await cache.sink.write([Order(f"o{at}", 1).entry()._replace(tracking=number)])
        listed = await tracked(client, "n/a")
        assert len(listed) == min(at + 50, 100)
        assert ident(parcels[at + 49]) in listed, "the one written last is there"


async def test_a_parcel_under_another_number_leaves_the_first(cache: RedisPlace, client: Any) -> None:
    first = [("T1", ident("p1"), parcel_json(ident("a"), "p1", "pending"))]
    second = [("T1", ident("p2"), parcel_json(ident("b"), "p2", "pending"))]
    await cache.sink.write(
        [Order("a", 1).entry()._replace(tracking=first), Order("b", 1).entry()._replace(tracking=second)]
    )
    moved = [("T2", ident("p1"), parcel_json(ident("a"), "p1", "in_transit"))]
    await cache.sink.write([Order("a", 2).entry()._replace(tracking=moved, untracked=[("T1", ident("p1"))])])
    assert await tracked(client, "T1") == {ident("p2"): "pending"}
    assert await tracked(client, "T2") == {ident("p1"): "in_transit"}
    assert await client.ttl("tracking:T1") > 0
    await cache.sink.write(
        [Order("b", 2).entry()._replace(untracked=[("T1", ident("p2")), ("T9", ident("p2"))])]
    )
    assert not await client.exists("tracking:T1")


async def test_what_is_not_ours_takes_no_other_orders_parcels_with_it(cache: RedisPlace, client: Any) -> None:
    shared = [
        Order(name, 1)
        .entry()
        ._replace(tracking=[("T", ident("p"), parcel_json(ident(name), "p", "pending"))])
        for name in "ab"
    ]
    await cache.sink.write(shared)
    await client.delete(f"order:{ident('a')}")
    await client.lpush(f"order:{ident('a')}", "what")
    assert await cache.sink.write(shared[:1]) == 1
    assert [
        (each["order_id"], each["shipment_id"]) for each in json.loads(await client.get("tracking:T"))
    ] == sorted((ident(name), ident("p")) for name in "ab")
    assert await client.get(f"order:{ident('a')}") == shared[0].summary.decode()


async def test_a_number_lives_as_long_as_the_summary_of_any_order_in_it(
    cache: RedisPlace, client: Any
) -> None:
    tracking = [[("T", ident("p"), parcel_json(ident(name), "p", "pending"))] for name in "ab"]
    await cache.sink.write([Order("a", 1).entry()._replace(ttl=1700, tracking=tracking[0])])
    await cache.sink.write([Order("b", 1).entry()._replace(ttl=600, tracking=tracking[1])])
    assert await client.ttl("tracking:T") == pytest.approx(1700, abs=5)
    await client.persist("tracking:T")
    await cache.sink.write([Order("b", 2).entry()._replace(ttl=600, tracking=tracking[1])])
    assert await client.ttl("tracking:T") == pytest.approx(600, abs=5)


async def test_an_older_order_leaves_its_tracking_alone(cache: RedisPlace, client: Any) -> None:
    await cache.write(ORDER)
    await cache.write(replace(ORDER, version=3, parcels=(("pa", "pending"),)))
    assert await tracked(client, "T-pa") == {ident("pa"): "in_transit"}


async def test_what_is_not_ours_under_our_keys_is_replaced(cache: RedisPlace, client: Any) -> None:
    await client.lpush(f"order:{ident('a')}", "what")
    await client.set(f"user:{ident('user of a')}:orders", "is")
    await client.set("tracking:T-pa", "this")
    assert await cache.write(ORDER, Order("b", 1)) == 2
    assert await tracked(client, "T-pa") == {ident("pa"): "in_transit"}
    assert await client.get(f"order:{ident('a')}") == ORDER.entry().summary.decode()


async def test_a_full_server_keeps_what_it_has(cache: RedisPlace, client: Any) -> None:
    first, second = (Order(name, 1).entry()._replace(user_id="someone") for name in ("a", "b"))
    await cache.sink.write([first, second])
    before = await client.config_get("maxmemory*")
    try:
        await client.config_set("maxmemory-policy", "noeviction")
        await client.config_set("maxmemory", "1")
        assert await cache.sink.put([first._replace(version=2)], CHECKPOINT) is None
        assert cache.sink.away
        assert (cache.sink.refusal or "").startswith("it is full: OutOfMemoryError: ")
        assert not await client.exists(CHECKPOINT.key)
        assert set(await client.zrange("user:someone:orders", 0, -1)) == {ident("a"), ident("b")}
    finally:
        for name in ("maxmemory", "maxmemory-policy"):
            await client.config_set(name, before[name])
    assert await cache.sink.put([], CHECKPOINT, probe=True) == Written(0, CHECKPOINT.to)
    assert cache.sink.refusal is None


async def test_a_flush_of_everything_is_survived(cache: RedisPlace, client: Any) -> None:
    await cache.write(ORDER)
    await client.script_flush()
    await client.flushdb()
    assert await cache.write(ORDER) == 1
    assert await client.exists(f"order:{ident('a')}") == 1


async def test_away_it_logs_once_and_takes_nothing_until_a_probe(
    cache: RedisPlace, client: Any, caplog: pytest.LogCaptureFixture
) -> None:
    sink = cache.sink
    await cache.write(replace(ORDER, version=1))
    await cache.end_server()
    with caplog.at_level("INFO", "sinks.redis"):
        assert await sink.put([ORDER.entry()], CHECKPOINT) is None
        assert (sink.away, sink.failures) == (True, 1)
        assert await sink.put([ORDER.entry()], CHECKPOINT, probe=True) is None
        await cache.start_server()
        assert await sink.put([ORDER.entry()], CHECKPOINT) is None, (
            "not asked again: a batch would wait for the answer"
        )
        assert sink.failures == 2
        assert await sink.put([], CHECKPOINT, probe=True) == Written(0, CHECKPOINT.to)
        assert not sink.away
        assert await sink.put([ORDER.entry()], CHECKPOINT) == Written(1, CHECKPOINT.to)
    assert [message.partition(":")[0] for message in caplog.messages] == ["redis.away", "redis.back"]


async def test_a_checkpoint_comes_with_the_last_entries(cache: RedisPlace, client: Any) -> None:
    many = [Order(f"o{n}", 1).entry() for n in range(450)]
    assert await cache.sink.put(many, CHECKPOINT) == Written(450, 15)
    assert await client.get(CHECKPOINT.key) == "3 1 15"
    assert 3500 < await client.ttl(CHECKPOINT.key) <= 3600, "it outlives every entry that it vouches for"
    many[300] = many[300]._replace(tracking=[("T", "p")])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="unpack"):
        await cache.sink.put(many, CHECKPOINT._replace(position=15, to=20))
    assert await client.get(CHECKPOINT.key) == "3 1 15"


async def test_a_checkpoint_advances_from_where_its_owner_believes_it_to_be(
    cache: RedisPlace, client: Any
) -> None:
    sink = cache.sink
    assert await sink.put([], CHECKPOINT) == Written(0, 15), "there was none: nothing old is there"
    assert await sink.put([], CHECKPOINT._replace(position=15, to=20)) == Written(0, 20)
    assert await sink.put([], CHECKPOINT) == Written(0, 20), "never backwards"
    await client.set(CHECKPOINT.key, "3 1 12")  # an older replica has taken over
    assert await sink.put([], CHECKPOINT._replace(position=20, to=30)) == Written(0, 12)
    assert await client.get(CHECKPOINT.key) == "3 1 12"
    assert await sink.put([], CHECKPOINT._replace(position=12, to=30)) == Written(0, 30)


async def test_only_the_latest_generation_advances_a_checkpoint(cache: RedisPlace, client: Any) -> None:
    sink = cache.sink
    await sink.put([], CHECKPOINT)
    assert await sink.put([], CHECKPOINT._replace(generation=4, position=99, to=99)) == Written(0, 15), (
        "a successor learns where it is"
    )
    assert await client.get(CHECKPOINT.key) == "4 1 15"
    assert await sink.put([ORDER.entry()], CHECKPOINT._replace(position=15, to=50)) == Written(0, 15), (
        "a zombie writes nothing"
    )
    assert await client.get(CHECKPOINT.key) == "4 1 15"
    assert await sink.put([ORDER.entry()], CHECKPOINT._replace(claim="claim", position=99, to=99)) == Written(
        1, 15
    ), "of a group that was created again"
    assert await client.get(CHECKPOINT.key) == "3 1 15"
    assert await sink.put([], CHECKPOINT._replace(claim="reset", position=0, to=0)) == Written(0, 0), (
        "of another changelog"
    )
    assert await client.get(CHECKPOINT.key) == "3 1 0"


async def test_a_server_that_forgot_the_latest_write_is_noticed(cache: RedisPlace, client: Any) -> None:
    """Also where the checkpoint is where it was: while a lane is behind, its writes leave it there."""
    sink, here = cache.sink, CHECKPOINT._replace(to=CHECKPOINT.position)
    for number in (7, 8):
        assert await sink.put(
            [ORDER.entry()], here._replace(sequence=number, acknowledged=number - 1)
        ) == Written(1, here.to)
    await client.set(CHECKPOINT.key, f"3 7 {here.to}")
    assert await sink.put([], here._replace(sequence=9, acknowledged=8)) == Written(0, here.to, lost=True)
    assert await sink.put([], here._replace(sequence=10, acknowledged=9)) == Written(0, here.to)
    await client.set(CHECKPOINT.key, f"2 99 {here.to}")  # of a former owner
    assert await sink.put([], here._replace(sequence=11, acknowledged=10)) == Written(0, here.to, lost=True)
    await client.delete(CHECKPOINT.key)
    assert await sink.put([], CHECKPOINT._replace(sequence=12, acknowledged=11)) == Written(
        0, CHECKPOINT.to
    ), "flushed: nothing old is there"


async def test_a_write_that_comes_too_late_is_refused(cache: RedisPlace) -> None:
    assert await cache.sink.put([ORDER.entry()], CHECKPOINT._replace(sequence=8)) == Written(1, 15)
    assert await cache.sink.put([ORDER.entry()], CHECKPOINT._replace(sequence=7, to=90)) == Written(0, 15)
    assert await cache.sink.put(
        [ORDER.entry()], CHECKPOINT._replace(sequence=9, position=15, to=20)
    ) == Written(1, 20)


@pytest_asyncio.fixture(loop_scope="module")
async def silent() -> AsyncIterator[str]:
    """The URL of a server that takes everything and says nothing."""

    async def hold(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)

    held: list[asyncio.StreamWriter] = []
    server = await asyncio.start_server(hold, "127.0.0.1", 0)
    yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    for writer in held:
        writer.close()
    server.close()
    await server.wait_closed()


async def test_a_server_that_never_answers_is_given_up(silent: str) -> None:
    sink = RedisSink(Settings(redis=silent, redis_timeout=0.05))
    async with asyncio.timeout(5):
        assert await sink.write([ORDER.entry()]) == 0
        assert await sink.write([Order("b", 1).entry()]) == 0
        assert sink.failures == 1
        await sink.close()


@contextmanager
def folding(seconds: float) -> Iterator[list[int]]:
    """An event loop that is busy for so long at a time, as a worker's that folds.
    Yields how often it was, as the only element.
    """
    loop, count, over = asyncio.get_running_loop(), [0], False

    def fold() -> None:
        if not over:
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                pass
            count[0] += 1
            loop.call_soon(fold)

    loop.call_soon(fold)
    try:
        yield count
    finally:
        over = True


async def test_a_loop_that_folds_does_not_take_its_own_time_for_that_of_redis(
    cache: RedisPlace, caplog: pytest.LogCaptureFixture
) -> None:
    """Each of its turns takes longer than Redis may, and a batch of many entries takes many turns."""
    settings = cache.settings.model_copy(update={"redis_timeout": 0.04})
    sink, reader = RedisSink(settings), CacheReader(settings)
    many = [Order(f"o{n}", 1).entry() for n in range(2_500)]
    try:
        with folding(0.05), caplog.at_level("INFO", "sinks.redis"):
            assert await sink.put(many, CHECKPOINT) == Written(2_500, 15)
            for _ in range(3):
                assert await reader.order(UUID(ident("o7"))) == (many[7].summary, None)
        assert (sink.failures, caplog.messages) == (0, [])
    finally:
        await sink.close()
        await reader.close()


async def test_a_server_that_never_answers_is_given_up_by_a_loop_that_folds(silent: str) -> None:
    settings = Settings(redis=silent, redis_timeout=0.04)
    sink, reader = RedisSink(settings), CacheReader(settings)
    with folding(0.02) as turns:
        assert await sink.put([ORDER.entry()]) is None
        assert await reader.order(UUID(ident("a"))) == (None, None)
    assert turns[0] < 60, "a tenth of the limit at a time, each of which takes one turn, and few turns more"
    await sink.close()
    await reader.close()


async def test_a_server_that_is_not_there_costs_one_attempt() -> None:
    sink = RedisSink(Settings(redis="redis://127.0.0.1:1/0"))
    await sink.start()
    for number in range(25):
        assert await sink.write([Order(f"o{number}", 1).entry()]) == 0
    assert (sink.away, sink.failures) == (True, 1)
    await sink.close()
