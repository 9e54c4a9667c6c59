"""Real orders, folded here, put by the real sinks where a reader looks for them:
nothing else moves meanwhile.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import httpx
from aiokafka.admin import NewTopic

from api.app import create_app
from api.keys import changing, made
from contracts import ids
from contracts.errors import Refused
from domain import events, parts, rows
from domain.attention import attention_rows
from domain.fold import fold
from domain.order import Order
from domain.totals import RunningTotals
from operations.secured import settings_of
from settings import Settings
from sinks.postgres import PostgresSink
from sinks.redis import RedisSink
from sinks.rows import CacheEntry, RowBatch
from streams.partitioner import partition_of
from tables import codec
from tests.stackfixture import GROUPS, Servers
from wire import clients
from workload import generator


def with_kafka(stack: Servers, settings: Settings) -> Settings:
    """Settings of a group that nobody else has, and of the stack's Kafka."""
    kafka = {name: value for name, value in settings_of(stack.env) if name.startswith("kafka")}
    return settings.model_copy(update=kafka | {"group": f"{GROUPS}{uuid4().hex[:12]}", "partitions": 2})


@asynccontextmanager
async def served(settings: Settings, store: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API, with an empty file of named keys, `store`."""
    store.write_text("")
    app = create_app(settings.model_copy(update={"api_key_store": store}))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://orders.example") as client:
        try:
            yield client
        finally:
            await app.state.reader.close()


def new_key(store: Path, *scopes: str) -> str:
    """A key with these scopes, added to the file."""
    with changing(store) as keys:
        line, key = made(f"key-{len(keys)}", scopes)
        keys.append(line)
    return key


def folded(count: int, seed: int = 1) -> dict[UUID, Order]:
    """So many generated orders, each with all of its facts."""
    by_id: dict[UUID, tuple[Order, RunningTotals]] = {}
    for each in generator.events(count, seed, generator.Shares(0, 0, 0)):
        try:
            event = events.decode(each.topic, each.headers, each.value, 0)
        except Refused:
            continue
        order_id = UUID(bytes=event.order_id)
        if order_id not in by_id:
            order = Order()
            by_id[order_id] = order, RunningTotals(order)
        order, totals = by_id[order_id]
        fold(order, event, None, totals)
    return {order_id: order for order_id, (order, _) in by_id.items() if order.created is not None}


def row_batch(orders: Iterable[tuple[UUID, Order]]) -> RowBatch:
    """All rows of these orders."""
    batch = RowBatch()
    for order_id, order in orders:
        text = str(order_id)
        batch.orders.append(rows.order_row(text, order))
        batch.items += rows.item_rows(text, order)
        batch.shipments += rows.shipment_rows(text, order)
        batch.returns += rows.return_rows(text, order)
        batch.suborders += parts.suborder_rows(order_id.bytes, order, batch.orders[-1])
        batch.payments += parts.payment_rows(text, order)
        batch.refunds += parts.refund_rows(text, order_id.bytes, order)
        batch.attention += attention_rows(text, order_id.bytes, order, *rows.fact_times(order))
    return batch


def entry(order_id: UUID, order: Order) -> CacheEntry:
    """What the lanes put into the cache."""
    _, brief = rows.order_row_and_summary(str(order_id), order_id.bytes, order)
    return CacheEntry(
        str(order_id),
        brief.user_id,
        brief.created_ms,
        order.version,
        600,
        brief.value,
        brief.tracking,
        brief.untracked,
    )


class World:
    """Where the orders are put. `orders`: by id."""

    def __init__(self, settings: Settings, orders: dict[UUID, Order]) -> None:
        self.settings = settings
        self.orders = orders
        self._rows = PostgresSink(settings)
        self._cache = RedisSink(settings)

    async def __aenter__(self) -> World:
        await self._rows.start()
        return self

    async def __aexit__(self, *_: Any) -> None:
        await self._rows.close()
        await self._cache.close()

    async def put_rows(self, *order_ids: UUID) -> None:
        """Into the primary; all without ids."""
        await self._rows.write(row_batch((each, self.orders[each]) for each in order_ids or self.orders))

    async def put_cache(self, *order_ids: UUID) -> None:
        """Into Redis; all without ids."""
        await self._cache.write([entry(each, self.orders[each]) for each in order_ids or self.orders])

    async def put_states(self, *order_ids: UUID) -> None:
        """Into the changelog, which is created if it isn't there; all without ids."""
        topic, partitions = self.settings.changelog_topic, self.settings.partitions
        admin = clients.admin(self.settings, "orders-tests")
        await admin.start()
        try:
            # That it is there already is among the answers, not an error.
            await admin.create_topics([NewTopic(topic, partitions, 1)])
        finally:
            await admin.close()
        async with clients.producer(self.settings, "orders-tests") as producer:
            for each in order_ids or self.orders:
                partition = partition_of(str(each).encode(), partitions)
                state = codec.encode(self.orders[each])
                await producer.send_and_wait(topic, state, each.bytes, partition)

    def user_of(self, order_id: UUID) -> UUID:
        created = self.orders[order_id].created
        assert created is not None
        return UUID(ids.text(created.user_id))
