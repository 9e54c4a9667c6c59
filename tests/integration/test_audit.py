"""The auditor finds what is planted, and nothing else.

A world as the pipeline should leave it is written by hand from the reference: input, decisions, re-keyed copies, dead letters, derived
events, states, rows, cache, commits. Then it is damaged.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid5

import asyncpg
import msgspec
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.partitioner import murmur2
from redis.asyncio import Redis

import audit.auditor
from audit.auditor import Auditor, Target
from audit.findings import Report
from audit.reference import Decision, Fact, Order, Place, Reading, parse, parse_decision
from audit.stores import TABLES, columns, comparable, first_integer
from domain.topics import DECISIONS, DLQ, INPUT, REKEYED
from settings import Settings

NAMESPACE = UUID("11111111-0000-4000-8000-000000000000")
ORDERS = (sys.executable, "-c", "from cli.main import main; main()")
Headers = list[tuple[str, bytes]]


def uid(name: str) -> str:
    return str(uuid5(NAMESPACE, name))


def event(type_: str, minute: int = 0, id_: str = "e") -> Headers:
    pairs = {"specversion": "1.0", "id": id_, "source": "/tests", "type": type_, "time": f"2026-01-02T03:{minute:02d}:00Z"}
    return [(f"ce_{name}", value.encode()) for name, value in pairs.items()]


def created(order: str, *, quantity: int = 2, sellers: Sequence[str] = ("ann", "bob")) -> dict[str, Any]:
    items = [
        {
            "item_id": uid(f"{order} {seller}"),
            "product_id": uid("product"),
            "seller_id": uid(seller),
            "sku": "SKU",
            "quantity": quantity,
            "price": "10.00",
        }
        for seller in sellers
    ]
    total = f"{10 * quantity * len(sellers)}.00"
    return {"order_id": uid(order), "user_id": uid("user"), "currency": "EUR", "total_amount": total, "items": items}


def paid(order: str, amount: str, name: str = "p", currency: str = "EUR") -> dict[str, Any]:
    return {"order_id": uid(order), "payment_id": uid(name), "amount": amount, "currency": currency}


def scanned(order: str, status: str, seller: str = "ann") -> dict[str, Any]:
    return {
        "order_id": uid(order),
        "shipment_id": uid(f"parcel {order}"),
        "seller_id": uid(seller),
        "status": status,
        "carrier": "C",
        "tracking_number": f"T-{order}",
    }


def sent_back(order: str, status: str = "processed", seller: str = "ann") -> dict[str, Any]:
    whose = {"order_id": uid(order), "return_id": uid(f"return {order}"), "item_id": uid(f"{order} {seller}")}
    return {**whose, "quantity": 1, "reason": "broken", "status": status}


@dataclass
class World:
    """Servers, and what lies on them."""

    settings: Settings
    producer: AIOKafkaProducer
    database: Any
    redis: Any
    lanes: int
    orders: dict[str, Order] = field(default_factory=dict)
    places: dict[str, list[Place]] = field(default_factory=dict)

    def lane(self, key: str) -> int:
        return int((murmur2(key.encode()) & 0x7FFFFFFF) % self.lanes)

    async def put(self, topic: str, lane: int, key: bytes | None, value: bytes | None, headers: Headers) -> Place:
        sent = await self.producer.send_and_wait(topic, value, key, partition=lane, headers=headers)
        return Place(topic, sent.partition, sent.offset)

    async def send(self, type_: str, data: dict[str, Any], minute: int = 0, *, key: str | None = None) -> Place:
        """An input event as upstream sends it; under a foreign key it is passed on to its own lane, as the pipeline does."""
        value, headers, order_id = json.dumps(data).encode(), event(type_, minute), data["order_id"]
        place = await self.put(type_, self.lane(key or order_id), (key or order_id).encode(), value, headers)
        fact = parse(type_, None, value, headers)
        assert isinstance(fact, Fact), fact
        self.orders.setdefault(fact.order_id, Order(fact.order_id)).add(fact, place, rekeyed=key is not None)
        if key is not None:
            origin = {"rekeyed_topic": type_, "rekeyed_partition": str(place.partition), "rekeyed_offset": str(place.offset)}
            copy = [*headers, *((name, text.encode()) for name, text in origin.items())]
            await self.put(REKEYED, self.lane(order_id), order_id.encode(), value, copy)
        return place

    async def decide(self, order: str, n: int, amount: str, **more: Any) -> None:
        order_id = uid(order)
        value, headers = json.dumps({"order_id": order_id, "n": n, "amount": amount, **more}).encode(), event("refund.decided")
        await self.put(DECISIONS, self.lane(order_id), order_id.encode(), value, headers)
        decision = parse_decision(value, headers)
        assert isinstance(decision, Decision)
        self.orders[order_id].decide(decision)

    async def letter(self, place: Place, reason: str, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        own = {
            "dlq_topic": place.topic,
            "dlq_partition": str(place.partition),
            "dlq_offset": str(place.offset),
            "dlq_reason": reason,
            "dlq_detail": "somewhere",
            "dlq_time": "2026-01-02T03:00:00Z",
        }
        await self.put(DLQ, place.partition, key, value, [*headers, *((name, text.encode()) for name, text in own.items())])

    async def derive(self, type_: str, order_id: str, data: Mapping[str, Any], made_id: str) -> None:
        headers = event(type_, id_=str(uuid5(UUID(order_id), f"{type_}:{made_id}")))
        await self.put(type_, self.lane(order_id), order_id.encode(), json.dumps(data).encode(), headers)

    async def state(self, order_id: str, version: int, status: str) -> None:
        raw = msgspec.msgpack.encode([version, status])
        await self.put(self.settings.changelog_topic, self.lane(order_id), UUID(order_id).bytes, raw, [])

    async def insert(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        names = columns(table)
        marks = ", ".join(f"${number + 1}" for number in range(len(names)))
        await self.database.executemany(
            f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})", [comparable(table, row) for row in rows]
        )

    async def write(self, *, without: frozenset[tuple[str, str]] = frozenset()) -> None:
        """Everything that follows from the facts so far, but for events `without` (type, order_id)."""
        for order_id, order in self.orders.items():
            reading = order.reading()
            for (type_, made_id), data in reading.derived().items():
                if (type_, order_id) not in without:
                    await self.derive(type_, order_id, data, made_id)
            status = reading.status() if reading.created else "waiting"
            await self.state(order_id, 1, "pending")
            await self.state(order_id, reading.version, status)
            for table in TABLES:
                await self.insert(table, reading.rows()[table])
            await self.cache(reading)

    async def cache(self, reading: Reading) -> None:
        for row in reading.rows()["orders_order"]:
            names = ("order_id", *columns("orders_order")[1:])
            await self.redis.set(f"order:{row[0]}", json.dumps(dict(zip(names, row, strict=True))))
            first = min(fact.time for fact in reading.accepted).timestamp()
            await self.redis.zadd(f"user:{row[1]}:orders", {row[0]: first * 1000})
            for shipment_id, scan in reading.parcels.items():
                entry = {"order_id": row[0], "shipment_id": shipment_id, "status": scan.content["status"]}
                await self.redis.set(f"tracking:{scan.content['tracking_number']}", json.dumps([entry]))

    async def commit(self, *, short: int = 0) -> None:
        """Commit the ends of all topics that the pipeline reads, less `short` records of order.created."""
        async with AIOKafkaConsumer(
            bootstrap_servers=self.settings.brokers, group_id=self.settings.group, enable_auto_commit=False
        ) as consumer:
            partitions = [TopicPartition(topic, lane) for topic in (*INPUT, DECISIONS, REKEYED) for lane in range(self.lanes)]
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            await consumer.commit({each: end - short * (end > 0 and each.topic == "order.created") for each, end in ends.items()})

    async def audit(self, most: int = 100) -> Report:
        target = Target(
            self.settings.brokers, self.settings.group, self.settings.changelog_topic, self.settings.postgres, self.settings.redis
        )
        return await Auditor(target, most_findings=most).run()


@asynccontextmanager
async def world_on(settings: Settings) -> AsyncIterator[World]:
    database = await asyncpg.connect(settings.postgres)
    try:
        async with (
            AIOKafkaProducer(bootstrap_servers=settings.brokers, acks="all") as producer,
            Redis.from_url(settings.redis) as redis,
        ):
            yield World(settings, producer, database, redis, settings.partitions)
    finally:
        await database.close()


@pytest.fixture
async def world(fresh: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    def readers() -> Any:
        return first_integer, lambda raw: msgspec.msgpack.decode(raw)[1]

    monkeypatch.setattr(audit.auditor, "state_readers", readers)
    async with world_on(fresh) as made:
        yield made


async def fill(world: World) -> None:
    """Some orders with everything that can happen to them without being wrong."""
    for name in ("plain", "second", "third", "fourth", "fifth", "sixth"):
        await world.send("order.created", created(name))
        await world.send("order.paid", paid(name, "40.00", f"p {name}"), 1)
        await world.send("shipment.updated", scanned(name, "in_transit"), 2)
        await world.send("shipment.updated", scanned(name, "delivered"), 4)
    await world.send("order.paid", paid("plain", "40.00", "p plain"), 1)  # again
    await world.send("order.paid", paid("plain", "1.00", "extra"), 3, key=uid("payment"))  # under another key
    await world.send("order.returned", sent_back("second"), 6)
    await world.decide("second", 0, "10.00", cause="return", cause_id=uid("return second"), units=[[uid("second ann"), 0]], shipping=[])
    await world.send("order.paid", paid("nobody", "5.00", "waits"), 1)
    # Refused: no JSON, another content of a known key, the wrong currency.
    poison = await world.put("order.paid", 0, b"\xff\xfe", b"{not json", event("order.paid"))
    await world.letter(poison, "not_json", b"\xff\xfe", b"{not json", event("order.paid"))
    conflict = await world.send("order.paid", paid("third", "39.00", "p third"), 7)
    value = json.dumps(paid("third", "39.00", "p third")).encode()
    await world.letter(conflict, "key_conflict", uid("third").encode(), value, event("order.paid", 7))
    dollars = await world.send("order.paid", paid("third", "1.00", "dollars", "USD"), 8)
    await world.letter(dollars, "order_currency", uid("third").encode(), b'{"the": "normalised fact"}', event("order.paid", 8))


def broken(report: Report) -> set[tuple[str, str, str]]:
    names = {uid(name): name for name in ("plain", "second", "third", "fourth", "fifth", "sixth", "nobody", "ghost")}
    return {
        (finding.check, names.get(finding.order_id, finding.order_id), finding.where.split("/")[0].split(" ")[0])
        for finding in report.findings
        if finding.severity == "broken"
    }


async def test_a_world_in_order_is_clean(world: World) -> None:
    await fill(world)
    await world.write()
    await world.commit()
    report = await world.audit()
    assert broken(report) == set()
    assert report.clean
    assert report.settled
    assert report.lag == 0
    assert (report.counts["orders"], report.counts["waiting_facts"], report.counts["duplicates"]) == (6, 1, 1)
    assert dict(report.dead_letters) == {"not_json": 1, "key_conflict": 1, "order_currency": 1}
    assert dict(report.anomalies) == {"captured_above_total": 1}
    assert report.counts["cached_orders"] == 6
    assert {table: report.checked[table] for table in TABLES} == {
        "orders_order": 6,
        "orders_order_item": 12,
        "orders_shipment": 6,
        "orders_return": 1,
    }
    assert report.notices == []


async def test_what_is_planted_is_found_and_nothing_else(world: World) -> None:
    await fill(world)
    ghost = created("ghost")
    await world.write(without=frozenset({("payment.initiate", uid("fourth"))}))
    shipment = uid("parcel plain")
    await world.database.execute("UPDATE orders_shipment SET carrier = 'other' WHERE id = $1", shipment)
    await world.database.execute("UPDATE orders_order SET created_at = created_at + interval '1 us' WHERE id = $1", uid("second"))
    await world.database.execute("DELETE FROM orders_order_item WHERE id = $1", uid("third ann"))
    order = Order(uid("ghost"))
    fact = parse("order.created", None, json.dumps(ghost).encode(), list(event("order.created")))
    assert isinstance(fact, Fact)
    order.add(fact)
    await world.insert("orders_order", order.reading().rows()["orders_order"])  # a phantom
    rows = world.orders[uid("fourth")].reading().rows()
    await world.insert(
        "orders_return",
        [(uid("r"), *rows["orders_order_item"][0][1:4], uid("fourth ann"), 1, "x", "requested", None, *rows["orders_order"][0][7:])],
    )
    await world.state(uid("fifth"), 3, "pending")  # older than the one before
    await world.state(uid("sixth"), 9, "delivered")  # newer than the facts
    again = next(iter(world.orders[uid("plain")].reading().derived().items()))
    await world.derive(again[0][0], uid("plain"), {**again[1], "total_amount": "1.00"}, again[0][1])  # a second content
    await world.derive("stock.reserve", uid("fifth"), {"order_id": uid("fifth"), "reservation_id": uid("mine")}, uid("mine"))
    await world.redis.set(f"order:{uid('sixth')}", json.dumps({"order_id": uid("sixth"), "version": 1}))
    await world.redis.set(
        "tracking:T-fifth", json.dumps([{"order_id": uid("fifth"), "shipment_id": uid("parcel fifth"), "status": "pending"}])
    )
    await world.put("order.paid", 1, b"k", b"no letter", event("order.paid"))
    lost = await world.put("order.paid", 1, b"k", b"another", event("order.paid"))
    await world.letter(lost, "not_json", b"k", b"not the same bytes", event("order.paid"))
    accepted = await world.send("payment.failed", {"order_id": uid("nobody"), "payment_id": uid("f"), "reason": "r"})
    await world.state(uid("nobody"), 2, "waiting")
    await world.letter(accepted, "field_missing", uid("nobody").encode(), b"{}", event("payment.failed"))
    foreign = json.dumps(paid("nobody", "5.00", "waits")).encode()
    stray = await world.put("order.paid", (world.lane(uid("nobody")) + 1) % world.lanes, b"other", foreign, event("order.paid", 1))
    await world.decide("third", 0, "50.00", cause="return", cause_id=uid("none"), units=[], shipping=[])
    await world.commit()

    report = await world.audit()
    assert broken(report) == {
        ("rows", "plain", "orders_shipment"),
        ("rows", "second", "orders_order"),
        ("rows", "third", "orders_order_item"),
        ("rows", "ghost", "orders_order"),
        ("rows", "fourth", "orders_return"),
        ("versions", "fifth", world.settings.changelog_topic),
        ("changelog", "sixth", world.settings.changelog_topic),
        ("derived", "plain", "suborder.created"),
        ("derived", "fourth", "payment.initiate"),
        ("derived", "fifth", "stock.reserve"),
        ("derived", "third", "refund.request"),
        ("cache", "sixth", f"order:{uid('sixth')}"),
        ("cache", "fifth", "tracking:T-fifth"),
        ("refunds", "third", DECISIONS),
        ("letters", "", DLQ),
        ("accounting", "", DLQ),
        ("accounting", "nobody", REKEYED),
    }
    found = {(finding.where, finding.expected, finding.found) for finding in report.findings}
    assert (f"orders_shipment {shipment} carrier", "C", "other") in found
    assert {finding.fact for finding in report.findings if finding.where == REKEYED} == {str(stray)}
    assert sum(finding.check == "letters" and finding.severity == "broken" for finding in report.findings) == 2
    assert not report.clean

    told = await asyncio.to_thread(subprocess.run, [*ORDERS, "audit", "--json"], capture_output=True, text=True)
    assert json.loads(told.stdout)["broken"]["rows"] == report.broken["rows"]
    assert told.returncode == 1, told.stderr
    few = await world.audit(most=1)
    assert few.broken == report.broken
    assert sum(finding.severity == "broken" for finding in few.findings) == 1


async def test_behind_the_log_only_what_must_hold_is_judged(world: World) -> None:
    await fill(world)
    await world.write()
    await world.commit(short=1)
    report = await world.audit()
    assert report.clean, report.findings
    assert report.lag > 0
    assert not report.settled
    assert any(notice.startswith(f"lag {report.lag}: ") for notice in report.notices)


async def test_nothing_committed_counts_from_the_start(world: World) -> None:
    await world.send("order.created", created("plain"))
    report = await world.audit()
    assert report.clean
    assert report.lag == 1
    assert report.counts["records"] == 0


async def test_where_the_log_does_not_tell_both_contents_are_right(world: World) -> None:
    await world.send("order.created", created("plain"))
    await world.send("order.paid", paid("plain", "40.00", "p"), 1)
    await world.send("order.paid", paid("plain", "30.00", "p"), 1, key=uid("payment"))
    first, second = world.orders[uid("plain")].readings()
    assert {first.status(), second.status()} == {"confirmed", "pending"}
    loser = next(place for place in world.orders[uid("plain")].candidates["order.paid", uid("p")][1].places)
    await world.letter(
        loser, "key_conflict", uid("payment").encode(), json.dumps(paid("plain", "30.00", "p")).encode(), event("order.paid", 1)
    )
    await world.write()
    await world.commit()
    assert (await world.audit()).clean
    await world.database.execute("UPDATE orders_order SET status = 'pending'")
    await world.state(uid("plain"), 2, "pending")
    await world.redis.flushdb()
    report = await world.audit()
    assert report.clean, report.findings
    await world.database.execute("UPDATE orders_order SET status = 'shipped'")
    assert broken(await world.audit()) == {("rows", "plain", "orders_order")}


def test_servers_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_KAFKA", "127.0.0.1:1")
    told = subprocess.run([*ORDERS, "audit"], capture_output=True, text=True)
    assert told.returncode == 2
    assert told.stderr.startswith("orders: no Kafka at 127.0.0.1:1")
    assert "Traceback" not in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1
