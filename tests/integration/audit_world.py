"""A world as the pipeline should leave it, written by hand from the auditor's reference, for the
auditor's tests to damage.

Input, decisions, re-keyed copies, dead letters, derived events, states, local tables, rows, cache, commits.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import asyncpg
import msgspec
import rocksdict
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.partitioner import murmur2
from redis.asyncio import Redis

from audit.auditor import Auditor
from audit.findings import Report
from audit.judge import summary_of
from audit.reference import Decision, Fact, Order, Reading, RecordId, parse, parse_decision
from audit.scope import Target
from audit.states import ADDED, FIELDS, state_of
from audit.stores import TABLES, CacheServer, columns, comparable
from contracts.topics import DECISIONS, DLQ, INPUT, REKEYED
from credentials import RedisUrl
from operations.auditing import cache_of
from settings import Settings
from streams.transport.table import OFFSET
from tests.servers import as_admin, kafka

NAMESPACE = UUID("11111111-0000-4000-8000-000000000000")
TTL = 600
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
Headers = list[tuple[str, bytes]]


def uid(name: str) -> str:
    return str(uuid5(NAMESPACE, name))


def event(type_: str, minute: int = 0, id_: str = "e", **more: str) -> Headers:
    time = f"2026-01-02T03:{minute:02d}:00Z"
    pairs = {"specversion": "1.0", "id": id_, "source": "/tests", "type": type_, "time": time, **more}
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
    return {
        "order_id": uid(order),
        "user_id": uid(f"user {order}"),
        "currency": "EUR",
        "total_amount": total,
        "items": items,
    }


def paid(order: str, amount: str, name: str = "p", currency: str = "EUR") -> dict[str, Any]:
    return {
        "order_id": uid(order),
        "payment_id": uid(f"{name} {order}"),
        "amount": amount,
        "currency": currency,
    }


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


def cancelled(order: str, seller: str = "bob") -> dict[str, Any]:
    return {"order_id": uid(order), "seller_id": uid(seller), "reason": "r"}


def gone(order: str, seller: str = "bob") -> dict[str, Any]:
    return {
        "order_id": uid(order),
        "seller_id": uid(seller),
        "reservation_id": pipeline_id(order, f"reservation:{uid(seller)}"),
    }


def pipeline_id(order: str, name: str) -> str:
    """An id that the pipeline makes."""
    return str(uuid5(UUID(uid(order)), name))


def state_bytes(reading: Reading, record_ids: Mapping[tuple[Any, ...], RecordId], **changes: Any) -> bytes:
    """The order's state as the changelog has it. `record_ids`: of the facts by natural key."""
    state = ADDED | state_of(reading)
    waiting = reading.facts if reading.created is None else []
    state["waiting"] = [["payments", n, list(record_ids[fact.key])] for n, fact in enumerate(waiting)]
    state |= {"labelled": state["status"] > 0, "proposed": len(reading.decisions)} | changes
    return msgspec.msgpack.encode(
        [list(state[name]) if isinstance(state[name], set) else state[name] for name in FIELDS]
    )


@dataclass
class World:
    """Servers, and what lies on them. Orders go by a name, of which all their ids are made."""

    settings: Settings
    producer: AIOKafkaProducer
    admin: AIOKafkaAdminClient
    database: Any
    redis: Any
    lanes: int
    orders: dict[str, Order] = field(default_factory=dict)
    states: dict[str, bytes] = field(default_factory=dict)

    def lane(self, key: str) -> int:
        return int((murmur2(key.encode()) & 0x7FFFFFFF) % self.lanes)

    def reading(self, name: str) -> Reading:
        return self.orders[uid(name)].reading()

    # -- input -----------------------------------------------------------------------------------------------

    async def put(
        self, topic: str, lane: int, key: bytes | None, value: bytes | None, headers: Headers
    ) -> RecordId:
        sent = await self.producer.send_and_wait(topic, value, key, partition=lane, headers=headers)
        return RecordId(topic, sent.partition, sent.offset)

    async def send(
        self, type_: str, data: dict[str, Any], minute: int = 0, *, key: str | None = None, **more: str
    ) -> RecordId:
        """An input event as upstream sends it; under a foreign key it is passed on to its own
        lane, as the pipeline does.
        """
        value, headers, order_id = json.dumps(data).encode(), event(type_, minute, **more), data["order_id"]
        record_id = await self.put(
            type_, self.lane(key or order_id), (key or order_id).encode(), value, headers
        )
        fact = parse(type_, None, value, headers)
        assert isinstance(fact, Fact), fact
        self.orders.setdefault(fact.order_id, Order(fact.order_id)).add(
            fact, record_id, rekeyed=key is not None
        )
        if key is not None:
            await self.put(
                REKEYED, self.lane(order_id), order_id.encode(), value, [*headers, *copy_headers(record_id)]
            )
        return record_id

    async def decide(self, order: str, n: int, amount: int | str, **more: Any) -> None:
        order_id = uid(order)
        cause = {"cause": "return", "cause_id": uid(f"return {order}"), "units": [], "shipping": []}
        value = json.dumps({"order_id": order_id, "n": n, "amount": amount, **cause, **more}).encode()
        headers = event("refund.decided")
        await self.put(DECISIONS, self.lane(order_id), order_id.encode(), value, headers)
        decision = parse_decision(value, headers)
        if isinstance(decision, Decision) and order_id in self.orders:
            self.orders[order_id].decide(decision)

    async def letter(
        self,
        record_id: RecordId,
        reason: str,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        **changes: str,
    ) -> None:
        own = {
            "dlq_topic": record_id.topic,
            "dlq_partition": str(record_id.partition),
            "dlq_offset": str(record_id.offset),
            "dlq_reason": reason,
            "dlq_detail": "somewhere",
            "dlq_time": "2026-01-02T03:00:00Z",
        } | changes
        await self.put(
            DLQ,
            record_id.partition,
            key,
            value,
            [*headers, *((name, text.encode()) for name, text in own.items() if text)],
        )

    # -- what is written of it -------------------------------------------------------------------------------

    async def derive(
        self,
        type_: str,
        order: str,
        data: Mapping[str, Any],
        name: str,
        cause: str = "e",
        key: str | None = None,
        **more: str,
    ) -> RecordId:
        """A derived event. `name`: what its id is the uuid5 of, after the type."""
        headers = event(type_, id_=pipeline_id(order, f"{type_}:{name}"), causeid=cause) + [
            (f"ce_{n}", v.encode()) for n, v in more.items()
        ]
        key = key or uid(order)
        return await self.put(
            type_,
            self.lane(key),
            key.encode(),
            json.dumps({"order_id": uid(order), **data}).encode(),
            headers,
        )

    async def notice(self, order: str, to: str, version: int, **more: Any) -> None:
        user = self.reading(order).known["user_id"]
        data = {
            "user_id": user,
            "from": "pending",
            "to": to,
            "cause": {"type": "order.paid", "id": "e"},
            "version": version,
        }
        await self.derive("order.status_changed", order, {**data, **more}, str(version))

    async def suborder(self, order: str, seller: str, version: int, **changes: Any) -> None:
        """suborder.updated as the facts have it, but for `changes`."""
        reading = self.reading(order)
        suborder = next(each for each in reading.suborders if each.seller_id == uid(seller))
        data = {**reading.last_suborder(suborder), "version": version, **changes}
        await self.derive("suborder.updated", order, data, f"{version}:{uid(seller)}")

    async def state(self, order: str, **changes: Any) -> RecordId:
        """A state in the changelog as the facts have it, but for `changes`."""
        held = self.orders[uid(order)]
        record_ids = {key: candidates[0].records[0] for key, candidates in held.candidates.items()}
        self.states[uid(order)] = raw = state_bytes(held.reading(), record_ids, **changes)
        return await self.put(
            self.settings.changelog_topic, self.lane(uid(order)), UUID(uid(order)).bytes, raw, []
        )

    async def insert(self, table: str, rows: Iterable[Sequence[Any]]) -> None:
        names = columns(table)
        marks = ", ".join(f"${number + 1}" for number in range(len(names)))
        await self.database.executemany(
            f"INSERT INTO {table} ({', '.join(names)}) VALUES ({marks})",
            [comparable(table, row) for row in rows],
        )

    async def write(
        self, without: frozenset[tuple[str, str]] = frozenset(), only: frozenset[str] | None = None
    ) -> None:
        """Everything that follows from the facts so far, of all orders or `only` of these (names), but for
        events `without` (type, name of the order).
        """
        names = {uid(name): name for name in self.names}
        for order_id, order in self.orders.items():
            name, reading = names[order_id], order.reading()
            if only is not None and name not in only:
                continue
            await self.state(name, version=1, status=0)
            await self.state(name)
            if reading.created is None:
                continue
            for table in TABLES:
                await self.insert(table, reading.rows()[table])
            await self.cache(reading)
            left = {type_ for type_, whose in without if whose == name}
            for (type_, made_id), data in reading.derived().items():
                if type_ not in left:
                    await self.derive(type_, name, data, made_id)
            await self._write_varying(name, reading, left)
            if reading.status() != "pending" and "order.status_changed" not in left:
                await self.notice(name, reading.status(), reading.version)
            for suborder in reading.suborders:
                if (suborder.status, suborder.live) != (
                    "pending",
                    suborder.ordered,
                ) and "suborder.updated" not in left:
                    data = {**reading.last_suborder(suborder), "version": reading.version}
                    await self.derive(
                        "suborder.updated", name, data, f"{reading.version}:{suborder.seller_id}"
                    )

    async def _write_varying(self, name: str, reading: Reading, left: set[str]) -> None:
        for seller in sorted(reading.surely_labelled() if "shipping.label.create" not in left else ()):
            await self.label(name, seller, 1)
        for seller in sorted(reading.surely_released() if "stock.release" not in left else ()):
            await self.release(name, seller)
        for data, *_ in reading.commits.values() if "stock.commit" not in left else ():
            await self.derive("stock.commit", name, data, data["commit_id"])

    async def label(self, order: str, seller_id: str, quantity: int) -> None:
        items = [
            {"item_id": line.item_id, "quantity": quantity}
            for line in self.reading(order).lines
            if line.seller_id == seller_id
        ]
        made_id = pipeline_id(order, f"label:{seller_id}")
        data = {
            "label_request_id": made_id,
            "suborder_id": pipeline_id(order, f"suborder:{seller_id}"),
            "seller_id": seller_id,
            "items": items,
        }
        await self.derive("shipping.label.create", order, data, made_id)

    async def release(self, order: str, seller_id: str) -> None:
        items = [
            {"item_id": line.item_id, "quantity": 1}
            for line in self.reading(order).lines
            if line.seller_id == seller_id
        ]
        made_id = pipeline_id(order, f"reservation:{seller_id}")
        await self.derive(
            "stock.release",
            order,
            {"reservation_id": made_id, "seller_id": seller_id, "items": items},
            made_id,
        )

    @property
    def names(self) -> list[str]:
        return list(self._names)

    _names: list[str] = field(default_factory=list)

    def name(self, *names: str) -> None:
        """Orders that are going to be sent."""
        self._names += names

    async def cache(self, reading: Reading) -> None:
        order_id, user_id = reading.order_id, reading.known["user_id"]
        await self.redis.set(f"order:{order_id}", json.dumps(summary_of(reading)), ex=TTL)
        first = min(fact.time for fact in reading.accepted).timestamp()
        await self.redis.zadd(f"user:{user_id}:orders", {order_id: first * 1000})
        await self.redis.expire(f"user:{user_id}:orders", TTL)
        for shipment_id, scan in reading.parcels.items():
            await self.track(scan.content["tracking_number"], order_id, shipment_id, scan.content["status"])

    async def track(self, number: str, order_id: str, shipment_id: str, status: str) -> None:
        entry: dict[str, Any] = {
            "order_id": order_id,
            "shipment_id": shipment_id,
            "carrier": "C",
            "status": status,
        }
        entry |= {"location": None, "estimated_delivery": None}
        others = [
            each
            for each in await self.tracked(number)
            if (each["order_id"], each["shipment_id"]) != (order_id, shipment_id)
        ]
        await self.redis.set(f"tracking:{number}", json.dumps([*others, entry]), ex=TTL)

    async def tracked(self, number: str) -> list[dict[str, Any]]:
        parcels: list[dict[str, Any]] = json.loads(await self.redis.get(f"tracking:{number}") or "[]")
        return parcels

    async def local_tables(self, changes: Mapping[str, bytes | None], behind: int = 0) -> dict[int, Path]:
        """A worker's local tables with the states of all orders, but for `changes` by name; read to the
        changelog's end, less `behind`.
        """
        folder = self.settings.data / "w" / self.settings.group
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "v1" / "tables").mkdir(parents=True)
        (folder / "cluster").write_text((await self.admin.describe_cluster())["cluster_id"] + "\n")
        ends = await self.ends(self.settings.changelog_topic)
        changed = {uid(name): raw for name, raw in changes.items()}
        paths = {}
        for lane in range(self.lanes):
            paths[lane] = folder / "v1" / "tables" / f"state-{lane}.db"
            table = rocksdict.Rdict(str(paths[lane]), rocksdict.Options(raw_mode=True))
            for order_id, raw in {**self.states, **changed}.items():
                if raw is not None and self.lane(order_id) == lane:
                    table[UUID(order_id).bytes] = raw
            table[OFFSET] = str(ends[lane] - 1 - behind).encode()
            table.close()
        return paths

    async def ends(self, topic: str) -> list[int]:
        async with AIOKafkaConsumer(**kafka(self.settings.brokers)) as consumer:
            ends = await consumer.end_offsets([TopicPartition(topic, lane) for lane in range(self.lanes)])
        return [ends[TopicPartition(topic, lane)] for lane in range(self.lanes)]

    async def commit(self, **short: int) -> None:
        """Commit the ends of all topics that the pipeline reads, less so many records (type with _ for .)."""
        async with AIOKafkaConsumer(
            **kafka(self.settings.brokers), group_id=self.settings.group, enable_auto_commit=False
        ) as consumer:
            partitions = [
                TopicPartition(topic, lane)
                for topic in (*INPUT, DECISIONS, REKEYED)
                for lane in range(self.lanes)
            ]
            consumer.assign(partitions)
            ends = await consumer.end_offsets(partitions)
            away = {each: short.get(each.topic.replace(".", "_"), 0) for each in partitions}
            await consumer.commit({each: max(0, end - away[each]) for each, end in ends.items()})

    async def audit(self, most: int = 1000, processes: int = 1, full: bool = False, **changes: Any) -> Report:
        return await Auditor(self.target(**changes), most_findings=most, processes=processes, full=full).run()

    def target(self, **changes: Any) -> Target:
        settings = self.settings
        values: dict[str, Any] = {
            "kafka": settings,
            "group": settings.group,
            "changelog": settings.changelog_topic,
            "postgres": settings.postgres.get_secret_value(),
            "redis": cache_of(settings),
            "data": settings.data,
        } | changes
        return Target(**values)


def cache_at(url: str) -> CacheServer:
    """The Redis of a URL."""
    return cache_of(Settings(redis=RedisUrl(url)))


def copy_headers(record_id: RecordId) -> Headers:
    """What a re-keyed copy says of where its record lies."""
    origin = {
        "rekeyed_topic": record_id.topic,
        "rekeyed_partition": str(record_id.partition),
        "rekeyed_offset": str(record_id.offset),
    }
    return [(name, text.encode()) for name, text in origin.items()]


@asynccontextmanager
async def world_on(settings: Settings) -> AsyncIterator[World]:
    database = await asyncpg.connect(settings.postgres.get_secret_value())
    admin = AIOKafkaAdminClient(**kafka(settings.brokers))
    try:
        await admin.start()
        async with (
            AIOKafkaProducer(**kafka(settings.brokers), acks="all") as producer,
            Redis.from_url(as_admin(settings.redis)) as redis,
        ):
            yield World(settings, producer, admin, database, redis, settings.partitions)
    finally:
        await admin.close()
        await database.close()
