"""orders repair on what a real worker wrote and somebody damaged: the audit names it, repair mends it,
the audit is clean again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from redis.asyncio import Redis

from domain.order import Order
from settings import Settings
from streams.partitioner import partition_of
from tables.codec import version_of
from tests.servers import as_admin, kafka
from tests.unit.builders import sealed
from tests.workers import audit, orders, processed, rows, worker
from workload import generator
from workload.producer import send

States = dict[str, list[bytes]]
"""Order id -> its states in the changelog, the oldest first."""


async def states_of(settings: Settings) -> States:
    async with AIOKafkaConsumer(**kafka(settings.brokers), auto_offset_reset="earliest") as consumer:
        partitions = [TopicPartition(settings.changelog_topic, lane) for lane in range(settings.partitions)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        states: States = {}
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    states.setdefault(str(UUID(bytes=record.key)), []).append(record.value)
    return states


def grown_in(states: States) -> list[str]:
    """Orders whose first state has a lower version than their last."""
    return [
        order_id
        for order_id, written in sorted(states.items())
        if version_of(written[0]) < version_of(written[-1])
    ]


async def append(settings: Settings, written: Mapping[str, list[bytes | None]]) -> None:
    """States into the changelog, as a worker that should not would."""
    async with AIOKafkaProducer(**kafka(settings.brokers), acks="all") as producer:
        for order_id, values in written.items():
            lane = partition_of(order_id.encode(), settings.partitions)
            for value in values:
                await producer.send_and_wait(
                    settings.changelog_topic, value, UUID(order_id).bytes, partition=lane
                )


def report_of(*arguments: str, code: int) -> dict[str, Any]:
    done = orders(*arguments, "--json")
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-2000:]
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def named(report: Mapping[str, Any]) -> dict[str, set[str]]:
    """Order id -> the checks that it breaks."""
    by_order: dict[str, set[str]] = {}
    for finding in report["findings"]:
        if finding["severity"] == "broken":
            by_order.setdefault(finding["order_id"], set()).add(finding["check"])
    return by_order


@pytest.fixture
async def redis(fresh: Settings) -> AsyncIterator[Any]:
    async with Redis.from_url(as_admin(fresh.redis)) as client:
        yield client


@pytest.fixture
async def database(fresh: Settings) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(fresh.postgres.get_secret_value())
    yield connection
    await connection.close()


async def run_twice(settings: Settings, folder: Path, history: list[Any]) -> None:
    """Two workers handle a half each.
    Between them a copy is made of the local table: what a worker that was away since would have.
    """
    half = len(history) // 2
    with worker(folder, "w") as first:
        await send(settings, history[:half])
        processed()
        assert first.terminate() == 0
    shutil.copytree(settings.data / "w", settings.data / "old")
    with worker(folder, "w") as second:
        await send(settings, history[half:])
        processed()
        assert second.terminate() == 0


async def damage_changelog(settings: Settings, states: States, *orders: str, later: str, ghost: str) -> None:
    """An older state last; an older state alone, as compaction would leave it; none; one that never was; one
    of a later format, which ends each worker that is to fold it; one of nobody.
    """
    behind, compacted, deleted, ahead = orders
    values = msgspec.msgpack.decode(states[later][-1])
    values[Order.__struct_fields__.index("format")] = 3
    future = msgspec.msgpack.encode([99, *msgspec.msgpack.decode(states[ahead][-1])[1:]])
    await append(
        settings,
        {
            behind: [states[behind][0]],
            compacted: [None, states[compacted][0]],
            deleted: [None],
            ahead: [future],
            later: [sealed(values)],
            ghost: [states[behind][-1]],
        },
    )


async def damage_rows(database: Any, gone: str, altered: str, twice: str, guest: str) -> None:
    """One gone, one altered (and made to look newer), a second one of an order, one of nobody."""
    await database.execute("DELETE FROM orders_order_item WHERE order_id = $1", gone)
    await database.execute(
        "UPDATE orders_order SET status = 'pending', version = version + 5 WHERE id = $1", altered
    )
    for order_id, was in ((twice, twice), (guest, twice)):
        await database.execute(
            "INSERT INTO orders_order SELECT $1::uuid, $2::uuid, region, status, currency, total_amount,"
            " discount_amount, created_at, updated_at, version FROM orders_order WHERE id = $3::uuid LIMIT 1",
            *(order_id, str(uuid4()), was),
        )


async def damage_cache(redis: Any, summary: str, shade: str, parcel: str) -> tuple[str, Any]:
    """A summary of another version, one of nobody, a parcel under numbers that aren't its own.
    Returns one such key, and what was there.
    """
    await redis.set(f"order:{summary}", json.dumps({"order_id": summary, "version": 99}), ex=600)
    await redis.set(f"order:{shade}", "{}", ex=600)
    entry = {"order_id": parcel, "shipment_id": str(uuid4()), "carrier": None, "status": "delivered"}
    await redis.set("tracking:nobody's", json.dumps([entry]), ex=600)
    beside = (await redis.keys("tracking:[^n]*"))[0].decode()
    there = json.loads(await redis.get(beside))
    await redis.set(beside, json.dumps([*there, entry]), ex=600)
    return beside, there


async def misplace(redis: Any, database: Any, order_id: str) -> None:
    """Another place in its user's list; a list that is none."""
    user = str(await database.fetchval("SELECT user_id FROM orders_order WHERE id = $1", order_id))
    await redis.zadd(f"user:{user}:orders", {order_id: 5})
    await redis.expire(f"user:{user}:orders", 600)
    await redis.set("user:x:orders", "no list", ex=600)


async def workers_take_over(settings: Settings, folder: Path, history: list[Any]) -> None:
    """Workers go on with the repaired states: one with its own table, one with an
    old table, one with none.
    """
    for name in ("w", "old", "new"):
        with worker(folder, name) as again:
            await send(settings, history[:50])
            processed()
            audit()
            assert again.terminate() == 0


async def test_what_was_damaged_is_named_mended_and_clean_again(
    fresh: Settings, redis: Any, database: Any, tmp_path: Path
) -> None:
    history = list(generator.events(150, 31, generator.Shares(duplicates=0.05, shuffle=0.2, poison=0.01)))
    await run_twice(fresh, tmp_path, history)
    audit()
    truth = await rows(fresh)
    states = await states_of(fresh)
    known = {str(order_id) for order_id, _ in truth["orders_order"]}
    grown = [order_id for order_id in grown_in(states) if order_id in known]
    behind, compacted, deleted, ahead, row_gone, row_altered, row_twice, summary, parcel, place = grown[:10]
    later = grown[10]
    ghost, guest, shade = str(uuid4()), str(uuid4()), str(uuid4())

    await damage_changelog(fresh, states, behind, compacted, deleted, ahead, later=later, ghost=ghost)
    await damage_rows(database, row_gone, row_altered, row_twice, guest)
    beside, there = await damage_cache(redis, summary, shade, parcel)
    await misplace(redis, database, place)

    wrong = {
        behind: {"versions"},
        compacted: {"changelog", "tables"},
        deleted: {"changelog"},
        ahead: {"changelog"},
        later: {"changelog"},
        ghost: {"changelog"},
        row_gone: {"rows"},
        row_altered: {"rows"},
        row_twice: {"rows"},
        guest: {"rows"},
        summary: {"cache"},
        shade: {"cache"},
        parcel: {"cache"},
        place: {"cache"},
        "": {"cache"},
    }
    broken = named(report_of("audit", "--max-findings", "1000", code=1))
    assert {order_id: checks - {"tables"} for order_id, checks in broken.items()} == {
        order_id: checks - {"tables"} for order_id, checks in wrong.items()
    }

    # What it would do, and that it does nothing.
    before = await states_of(fresh)
    plan = report_of("repair", "--dry-run", code=1)
    assert {each["order_id"] for each in plan["repaired"]} == set(wrong) - {""}
    assert plan["deleted_keys"] == ["user:x:orders"]
    assert await states_of(fresh) == before
    assert named(report_of("audit", "--max-findings", "1000", code=1)) == broken

    # Some orders only.
    some = report_of("repair", "--ids", f"{row_gone.upper()},{row_altered}", code=0)
    assert [(each["order_id"], each["stores"]) for each in some["repaired"]] == [
        (each, ["rows"]) for each in sorted((row_gone, row_altered))
    ]

    done = report_of("repair", code=0)
    assert {each["order_id"] for each in done["repaired"]} == set(wrong) - {"", row_gone, row_altered}
    assert {each["order_id"]: each["version"] for each in done["repaired"]}[ghost] == 0
    assert (done["clean"], done["remaining"]) == (True, {})
    assert json.loads(await redis.get(beside)) == there, "other orders' parcels stay under the number"
    audit()
    assert await rows(fresh) == truth
    assert report_of("repair", code=0)["repaired"] == []

    await workers_take_over(fresh, tmp_path, history)
    assert await rows(fresh) == truth
    with worker(tmp_path, "new"):
        await send(fresh, generator.events(30, 32))
        processed()
        audit()


async def test_only_while_no_worker_is_there(fresh: Settings, tmp_path: Path) -> None:
    with worker(tmp_path):
        await send(fresh, generator.events(5, 33))
        processed()
        refused = orders("repair")
        assert refused.returncode == 2
        said = (
            f"orders: group {fresh.group} has members; stop all workers (SIGTERM lets them finish), and run"
            " this again\n"
        )
        assert refused.stderr == said
        assert report_of("repair", "--dry-run", code=0)["repaired"] == []


async def test_what_it_does_not_mend_is_named_and_left(
    fresh: Settings, database: Any, tmp_path: Path
) -> None:
    with worker(tmp_path) as running:
        await send(fresh, generator.events(20, 34, generator.Shares(0, 0, 0)))
        processed()
        assert running.terminate() == 0
    order_id = str(await database.fetchval("SELECT id FROM orders_order LIMIT 1"))
    await database.execute("UPDATE orders_order SET status = 'returned' WHERE id = $1", order_id)
    async with AIOKafkaProducer(**kafka(fresh.brokers)) as producer:
        await producer.send_and_wait(
            "stock.restock",
            b"{}",
            order_id.encode(),
            partition=partition_of(order_id.encode(), fresh.partitions),
        )
    outcome = report_of("repair", code=1)
    assert outcome["remaining"] == outcome["left"] == {"derived": 1}
    assert [finding["check"] for finding in outcome["findings"]] == ["derived"]
    assert named(report_of("audit", code=1)) == {order_id: {"derived"}}
    text = orders("repair")
    assert "nothing to repair" in text.stdout
    assert "These remain" in text.stdout


async def test_without_the_log_there_is_no_repair(fresh: Settings, database: Any, tmp_path: Path) -> None:
    with worker(tmp_path) as running:
        await send(fresh, generator.events(20, 35))
        processed()
        assert running.terminate() == 0
    states = await states_of(fresh)
    order_id = grown_in(states)[0]
    await append(fresh, {order_id: [states[order_id][0]]})
    admin = AIOKafkaAdminClient(**kafka(fresh.brokers))
    await admin.start()
    lane = partition_of(order_id.encode(), fresh.partitions)
    await admin.delete_records({TopicPartition("order.created", lane): RecordsToDelete(1)})
    await admin.close()
    refused = orders("repair")
    assert refused.returncode == 2
    assert refused.stderr.startswith(
        f"orders: order.created/{lane} begins at 1: its orders can't be folded again; "
    )
    assert await states_of(fresh) != states
    report = report_of("audit", code=1)
    assert report["seen_from"] == {f"order.created/{lane}": 1}
    assert named(report) == {order_id: {"versions"}}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--ids", "nonsense"), "orders: --ids: badly formed hexadecimal UUID string"),
        (("--ids", ","), "orders: --ids names no order"),
        (("--ids", "@/nowhere"), "orders: --ids @/nowhere: No such file or directory"),
    ],
)
def test_ids_that_are_none(arguments: tuple[str, ...], said: str) -> None:
    refused = orders("repair", *arguments)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert refused.stderr.startswith(said)


def test_servers_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_KAFKA", "127.0.0.1:1")
    refused = orders("repair")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "cannot reach Kafka at 127.0.0.1:1" in refused.stderr
