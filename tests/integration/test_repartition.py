"""More partitions for topics with a history: nothing of it is lost, whatever is cut short, and
every tool still finds it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Container, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from redis.asyncio import Redis

from contracts.cloudevents import SourceEvent
from contracts.topics import DECISIONS, REKEYED
from settings import Settings, get_settings
from sinks.redis import checkpoint_key
from streams import topics
from streams.partitioner import partition_of
from tests.forked import run
from tests.integration.test_repair import report_of
from tests.servers import as_admin, kafka
from tests.waiting import eventually, until
from tests.workers import ORDERS, audit, orders, processed, rows, worker
from workload import generator
from workload.producer import send

CUT = """
import os, signal, sys
from aiokafka.errors import KafkaError
from streams import topics
from operations import repartition, grouplock
from streams.transport.producer import LaneProducer
grouplock.SESSION_SECONDS = 6.0
place, how = sys.argv.pop(1), sys.argv.pop(1)
counts = {}
def counted(name, original):
    async def call(*args, **kwargs):
        here = f"{name} {counts.setdefault(name, 0)}"
        counts[name] += 1
        if here == place and how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if here == place:
            raise KafkaError("cut")
        return await original(*args, **kwargs)
    return call
LaneProducer.send = counted("send", LaneProducer.send)
topics.grow = counted("grow", topics.grow)
from cli.main import main
main()
"""
"""orders partitions, cut short before its n-th write."""


def cut(place: str, how: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return run((sys.executable, "-c", CUT, place, how, *arguments), timeout=120)


def refused_to_start(name: str) -> str:
    started = run((*ORDERS, "worker", "--name", name), timeout=60)
    assert started.returncode != 0
    return started.stdout + started.stderr


async def send_as_before(settings: Settings, events: Iterable[SourceEvent], partitions: int) -> None:
    """As a producer does that hasn't heard of the new partitions yet."""
    async with AIOKafkaProducer(**kafka(settings.brokers), acks="all") as producer:
        for event in events:
            where = 0 if event.key is None else partition_of(event.key, partitions)
            await producer.send_and_wait(
                event.topic, event.value, event.key, where, headers=list(event.headers)
            )


async def records_of(settings: Settings, topic: str, partitions: int) -> list[Any]:
    everything: list[Any] = []
    async with AIOKafkaConsumer(**kafka(settings.brokers), auto_offset_reset="earliest") as consumer:
        places = [TopicPartition(topic, number) for number in range(partitions)]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        while any([await consumer.position(place) < end for place, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                everything += records
    return everything


async def forget_in_cache(settings: Settings, quiet: Container[bytes | None], old: int, new: int) -> str:
    """As if Redis had been away: an order that will move has an old summary, and the checkpoints say so.

    Returns its key.
    """
    redis: Any
    async with Redis.from_url(as_admin(settings.redis)) as redis:
        keys = sorted([key async for key in redis.scan_iter(match="order:*")])
        key: str = next(
            key.decode()
            for key in keys
            if (name := key.removeprefix(b"order:")) in quiet and partition_of(name, new) >= old
        )
        summary = json.loads(await redis.get(key))
        await redis.set(key, json.dumps({**summary, "version": 0}), keepttl=True)
        for lane in range(old):
            generation, number, _ = (await redis.get(checkpoint_key(settings, lane))).split()
            await redis.set(checkpoint_key(settings, lane), b"%b %b 0" % (generation, number))
    return key


async def refreshed(settings: Settings, key: str) -> bool:
    redis: Any
    async with Redis.from_url(as_admin(settings.redis)) as redis:
        return bool(json.loads(await redis.get(key))["version"] > 0)


async def folds_again(settings: Settings, truth: dict[str, dict[Any, Any]], old: int) -> None:
    """Folded again, an order's facts come out of both partitions."""
    order_ids = [str(order_id) for order_id, _ in truth["orders_order"]]
    moved = sorted(each for each in order_ids if partition_of(each.encode(), settings.partitions) >= old)[:5]
    database = await asyncpg.connect(settings.postgres.get_secret_value())
    await database.execute("DELETE FROM orders_order WHERE id = ANY($1::text[]::uuid[])", moved)
    await database.close()
    assert {each["order_id"] for each in report_of("repair", code=0)["repaired"]} == set(moved)
    assert await rows(settings) == truth
    report_of("rebuild", "start", code=0)
    report_of("rebuild", "diff", code=0)
    whole = orders("whatif", "--json")
    assert (whole.returncode, json.loads(whole.stdout)["nothing"]) == (0, True), whole.stdout


async def wait_in_old_lanes(settings: Settings, events: list[SourceEvent], old: int, new: int) -> None:
    """What waits in the old lanes while there is no worker: events, and what the
    pipeline had sent to itself.
    """
    await send(settings, events)
    async with AIOKafkaProducer(**kafka(settings.brokers), acks="all") as producer:
        for topic in (DECISIONS, REKEYED):
            own = await records_of(settings, topic, old)
            assert any(partition_of(each.key, new) != each.partition for each in own)
            for each in own:
                await producer.send_and_wait(
                    topic, each.value, each.key, each.partition, headers=list(each.headers)
                )


async def test_the_history_goes_on_in_more_lanes(
    fresh: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = fresh.partitions, 2 * fresh.partitions
    history = list(generator.events(150, 61))
    third = len(history) // 3
    # Orders that nothing more is said of: any event would refresh their summaries.
    alone = [
        event
        for event in generator.events(40, 62, generator.Shares(0, 0, 0))
        if event.topic == "order.created"
    ]
    with worker(tmp_path) as first:
        # Under keys that aren't their orders': they go through orders.rekeyed.
        await send_as_before(fresh, [event._replace(key=b"no order's") for event in history[:40]], old)
        await send(fresh, [*alone, *history[:third]])
        processed()
        busy = orders("partitions", "--to", str(new))
        assert (busy.returncode, busy.stdout) == (2, "")
        assert "has members; stop all workers" in busy.stderr
        impossible = orders("partitions", "--to", str(new + 1))
        assert "multiple" in impossible.stderr, "that is said first"
        assert first.terminate() == 0
    stale = await forget_in_cache(fresh, {event.key for event in alone}, old, new)
    await wait_in_old_lanes(fresh, history[third : 2 * third], old, new)

    await grow_through_faults(fresh, old, new)

    monkeypatch.setenv("ORDERS_PARTITIONS", str(new))
    get_settings.cache_clear()
    grown = get_settings()
    with worker(tmp_path) as second:  # with the local tables of before
        await send_as_before(grown, history[2 * third : -third // 2], old)
        await send(grown, history[-third // 2 :])
        processed()
        await eventually(
            partial(refreshed, grown, stale), "the new lanes have refreshed what the cache lacked"
        )
        audit()
        assert second.terminate() == 0
    truth = await rows(grown)
    assert len(truth["orders_order"]) == 150 + len(alone)
    lanes = Counter(partition_of(str(order_id).encode(), new) >= old for order_id, _ in truth["orders_order"])
    assert lanes[True]
    assert lanes[False]

    await folds_again(grown, truth, old)

    with worker(tmp_path, "other") as another:  # with none
        await send(grown, history)
        processed()
        audit()
        assert another.terminate() == 0
    assert await rows(grown) == truth


async def grow_through_faults(settings: Settings, old: int, new: int) -> None:
    """`orders partitions --to NEW`, failed and killed at every step; until the last one is done, no worker
    starts, and then only with the new number.
    """
    assert "is no multiple of" in orders("partitions", "--to", str(old + 1)).stderr
    for place in ("send 0", "grow 0", "send 1", "send 2", "grow 1"):
        done = cut(place, "fail", "partitions", "--to", str(new))
        assert (done.returncode, "it goes on" in done.stderr) == (2, True), (place, done.stdout, done.stderr)
    assert "all topics of a lane need the same number of partitions" in refused_to_start("early")
    assert cut("grow 2", "kill", "partitions", "--to", str(new)).returncode == -signal.SIGKILL
    until(
        lambda: orders("partitions", "--to", str(new), "--json").returncode == 0,
        "the lock of the killed one has ended",
        60,
    )
    assert report_of("partitions", "--to", str(new), code=0) == {"partitions": new, "moved": 0}
    assert report_of("partitions", code=0) == {"partitions": [new], "lanes": new, "former": [old]}
    assert {state.partitions for state in (await topics.describe(settings)).values()} == {new}

    assert f"set it to {new}" in refused_to_start("wrong")
    assert f"set it to {new}\n" in orders("repair").stderr
    assert (
        orders("audit").stderr
        == f"orders: the orders are spread over {new} lanes, ORDERS_PARTITIONS is {old}; set it to {new}\n"
    )
