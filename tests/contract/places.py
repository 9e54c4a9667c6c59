"""The sinks behind one face: write orders, read, cut the server off.

Each twice: on a database of its own on the stack's real servers, and on the simulation's fake ones, which
have to keep the same promises.
"""

from __future__ import annotations

import asyncio
import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import redis.asyncio

from contracts.statuses import OrderStatusText, ParcelStatusText
from credentials import PostgresUrl, RedisUrl
from domain.shapes import (
    AttentionRow,
    ItemRow,
    OrderRow,
    PaymentRow,
    RefundRow,
    ReturnRow,
    ShipmentRow,
    SuborderRow,
)
from operations.postgres.compare import key_column, order_column
from settings import Settings
from sinks.base import Sink
from sinks.postgres import PostgresSink
from sinks.redis import RedisSink
from sinks.rows import CacheEntry, NotedAttention, RowBatch
from sinks.schema import TABLES
from tests import stackfixture
from tests.servers import REDIS_DATABASE, as_admin, url, with_path
from tests.simulation.network import Network, calm
from tests.simulation.stores import POSTGRES, REDIS, FakePostgres, FakeRedis, Keys, Tables
from tests.stackfixture import Servers

"""Nobody else's on the stack's Redis."""


def ident(name: str) -> str:
    """A UUID for a name, the same in every run."""
    return str(uuid.uuid5(uuid.NAMESPACE_OID, name))


def at(second: int) -> str:
    """A time in that second of some day."""
    return f"2026-03-01T10:{second // 60:02d}:{second % 60:02d}.000000+00:00"


@dataclass(frozen=True)
class Order:
    """What both sinks are told about an order, from which the rows and the entry are made."""

    name: str
    version: int
    status: OrderStatusText = "pending"
    created: int = 10
    updated: int = 20
    total: str = "12.50"
    parcels: tuple[tuple[str, ParcelStatusText], ...] = ()  # name, status

    def rows(self, into: RowBatch) -> None:
        order, user = ident(self.name), ident(f"user of {self.name}")
        created, updated = at(self.created), at(self.updated)
        ends = (created, updated, self.version)
        into.orders.append(
            OrderRow(order, user, "SP", self.status, "BRL", self.total, "0", "0", None, None, *ends)
        )
        product, seller, item = ident("product"), ident("seller"), ident(f"item of {self.name}")
        into.items.append(
            ItemRow(
                item,
                order,
                user,
                "SP",
                product,
                seller,
                None,
                "SKU-1",
                2,
                "5.00",
                "2.50",
                "0",
                "0",
                created,
                created,
                1,
            )
        )
        for parcel, status in self.parcels:
            into.shipments.append(
                ShipmentRow(
                    ident(parcel), order, user, "SP", seller, None, "DHL", f"T-{parcel}", status, None, *ends
                )
            )
        if self.status == "returned":
            id = ident(f"return of {self.name}")
            into.returns.append(
                ReturnRow(id, order, user, "SP", item, 1, "too small", "processed", updated, *ends)
            )
            into.refunds.append(refund_row(ident(f"refund of {self.name}"), order, user, "SP", *ends))
            into.attention.append(
                AttentionRow(order, user, "SP", "overpaid", "by 5.00", created, None, *ends)
            )
        kinds = "overpaid" if self.status == "returned" else ""
        into.noted.append(NotedAttention(order, user, "SP", kinds, updated, self.version))
        into.suborders.append(
            suborder_row(
                ident(f"suborder of {self.name}"),
                order,
                user,
                "SP",
                *ends,
                seller_id=seller,
                order_status=self.status,
                parcels=len(self.parcels),
            )
        )
        if self.status != "pending":
            into.payments.append(payment_row(ident(f"payment of {self.name}"), order, user, "SP", *ends))

    def entry(self) -> CacheEntry:
        order, user = ident(self.name), ident(f"user of {self.name}")
        summary = {
            "order_id": order,
            "user_id": user,
            "status": self.status,
            "version": self.version,
            "suborders": [{"version": 99}],
        }
        tracking = [
            (f"T-{parcel}", ident(parcel), parcel_json(order, parcel, status))
            for parcel, status in self.parcels
        ]
        return CacheEntry(
            order, user, 1_700_000_000_000 + self.created, self.version, 600, compact(summary), tracking, []
        )


def suborder_row(
    id: str, order: str, user: str, region: str, created: str, updated: str, version: int, **more: Any
) -> SuborderRow:
    """A row of orders_suborder, of one unit for 5.00; `more`: what of it is otherwise."""
    known: dict[str, Any] = dict.fromkeys(SuborderRow.__struct_fields__, 0)
    known |= dict.fromkeys(("closed_because", "ship_by", "deliver_by", "late_since"))
    known |= {name: "0" for name in known if name.endswith("_amount")}
    known |= {"id": id, "order_id": order, "user_id": user, "region": region}
    known |= {"status": "pending", "order_status": "pending", "currency": "BRL"}
    known |= {"items": 1, "units": 1, "units_ordered": 1, "units_live": 1}
    known |= {"items_amount": "5.00", "total_amount": "5.00"}
    known |= {"created_at": created, "updated_at": updated, "version": version}
    return SuborderRow(**(known | more))


def payment_row(
    id: str, order: str, user: str, region: str, created: str, updated: str, version: int
) -> PaymentRow:
    """A captured payment of 5.00."""
    ends = (created, updated, version)
    return PaymentRow(id, order, user, region, "captured", "5.00", "BRL", "card", None, *ends)


def refund_row(
    id: str, order: str, user: str, region: str, created: str, updated: str, version: int
) -> RefundRow:
    """A refund of 5.00 that was paid out."""
    ends = (created, updated, version)
    return RefundRow(
        *(id, order, user, region, 0),
        "completed",
        "5.00",
        "0",
        "BRL",
        "return",
        ident("cause"),
        1,
        None,
        created,
        updated,
        *ends,
    )


def compact(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def parcel_json(order_id: str, parcel: str, status: str, location: str | None = None) -> bytes:
    return compact(
        {
            "order_id": order_id,
            "shipment_id": ident(parcel),
            "carrier": "DHL",
            "status": status,
            "location": location,
            "estimated_delivery": None,
        }
    )


async def eventually(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Returns when the condition holds; fails when it doesn't within that time."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


class Line:
    """A connection between the sink and its server that can be cut: whatever runs the
    server, it is gone for the sink.
    """

    def __init__(self, url: str) -> None:
        self._parts = urlsplit(url)
        self._port = 0
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()

    @property
    def url(self) -> str:
        """The server's address by this line."""
        login, at_, _ = self._parts.netloc.rpartition("@")
        return urlunsplit(self._parts._replace(netloc=f"{login}{at_}127.0.0.1:{self._port}"))

    async def mend(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in self._open:
                writer.transport.abort()
            await self._server.wait_closed()
            await eventually(lambda: not self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(self._parts.hostname, self._parts.port)
        self._open |= {writer, back}
        try:
            await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        finally:
            self._open -= {writer, back}

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()
        except OSError:
            sink.transport.abort()
        else:
            sink.close()


class Place(ABC):
    """A sink and the server behind it."""

    sink: Sink[Any]

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    async def open(self) -> None:
        await self.empty()
        await self.start_server()
        self.sink = self.another()
        await self.sink.start()

    async def close(self) -> None:
        await self.sink.close()
        await self.end_server()

    @abstractmethod
    def another(self) -> Sink[Any]:
        """One more sink on the same place, as another worker has it."""

    @abstractmethod
    def batch(self, orders: Iterable[Order]) -> Any: ...

    @abstractmethod
    async def content(self) -> Any:
        """Everything there is, comparable."""

    @abstractmethod
    async def empty(self) -> None: ...

    async def write(self, *orders: Order) -> int:
        return await self.sink.write(self.batch(orders))

    async def write_with_retries(self, *orders: Order, seconds: float = 10) -> int:
        """As the pipeline does: again and again while the error is of the kind that passes."""
        async with asyncio.timeout(seconds):
            while True:
                try:
                    if not isinstance(self.sink, RedisSink):
                        return await self.write(*orders)
                    written = await self.sink.put(self.batch(orders), probe=True)
                    if written is not None:
                        return written.entries
                except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError, TimeoutError):
                    pass
                await asyncio.sleep(0.01)

    @abstractmethod
    async def end_server(self) -> None:
        """The server is gone without a word."""

    @abstractmethod
    async def start_server(self) -> None:
        """The server is back, on the same port."""


class RealPlace(Place):
    """On a real server, by a line that can be cut."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.line = Line(self.url)

    @property
    @abstractmethod
    def url(self) -> str:
        """The server's own address."""

    async def end_server(self) -> None:
        await self.line.cut()

    async def start_server(self) -> None:
        await self.line.mend()


class FakePlace(Place):
    """On a fake server, in this process."""

    server: str

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.network: Network = calm()

    async def end_server(self) -> None:
        self.network.down.add(self.server)

    async def start_server(self) -> None:
        self.network.down.discard(self.server)


def rows_of(orders: Iterable[Order]) -> RowBatch:
    batch = RowBatch()
    for order in orders:
        order.rows(batch)
    return batch


class PostgresPlace(RealPlace):
    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self._asking: asyncpg.Connection[asyncpg.Record] | None = None

    async def close(self) -> None:
        await super().close()
        if self._asking is not None:
            await self._asking.close()

    @property
    def url(self) -> str:
        return self.settings.postgres.get_secret_value()

    def another(self) -> PostgresSink:
        return PostgresSink(self.settings.model_copy(update={"postgres": PostgresUrl(self.line.url)}))

    def batch(self, orders: Iterable[Order]) -> RowBatch:
        return rows_of(orders)

    async def fetch(self, query: str, *arguments: object) -> list[asyncpg.Record]:
        """Ask the server itself, over one connection: to come in anew costs more than most answers."""
        if self._asking is None:
            address = self.settings.postgres.get_secret_value()
            self._asking = await asyncpg.connect(address, statement_cache_size=0)
        return await self._asking.fetch(query, *arguments)

    async def content(self) -> dict[str, list[str]]:
        rows = await self.fetch(
            " UNION ALL ".join(f"SELECT '{table}', {table}::text FROM {table}" for table in TABLES)
            + " ORDER BY 1, 2"
        )
        return {table: [row[1] for row in rows if row[0] == table] for table in TABLES}

    async def row_versions(self) -> list[tuple[Any, ...]]:
        """Where each row's version lies and which transaction wrote it."""
        return [
            tuple(row)
            for table in TABLES
            for row in await self.fetch(
                f"SELECT tableoid, ctid, xmin FROM {table}"
                f" ORDER BY {order_column(table)}, {key_column(table)}"
            )
        ]

    async def empty(self) -> None:
        # Quicker than TRUNCATE for a few rows in many partitions.
        await self.fetch(f"WITH {', '.join(f'{table}_ AS (DELETE FROM {table})' for table in TABLES)} SELECT")


class FakePostgresPlace(FakePlace):
    server = POSTGRES

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.tables = Tables()

    def another(self) -> FakePostgres:
        return FakePostgres(self.network, self.tables)

    def batch(self, orders: Iterable[Order]) -> RowBatch:
        return rows_of(orders)

    async def content(self) -> dict[str, list[Any]]:
        return {table: sorted(rows.values(), key=repr) for table, rows in self.tables.rows.items()}

    async def empty(self) -> None:
        for rows in self.tables.rows.values():
            rows.clear()


class RedisPlace(RealPlace):
    sink: RedisSink

    @property
    def url(self) -> str:
        return self.settings.redis.get_secret_value()

    def another(self) -> RedisSink:
        return RedisSink(self.settings.model_copy(update={"redis": RedisUrl(self.line.url)}))

    async def start_server(self) -> None:
        # As after a restart: it knows no script any more.
        # What it held is kept, which is the harder case: it is out of date.
        async with redis.asyncio.Redis.from_url(as_admin(self.settings.redis)) as client:
            await client.script_flush()
        await super().start_server()

    def batch(self, orders: Iterable[Order]) -> Sequence[CacheEntry]:
        return [order.entry() for order in orders]

    async def content(self) -> dict[str, Any]:
        by_key: dict[str, Any] = {}
        async with redis.asyncio.Redis.from_url(
            as_admin(self.settings.redis), decode_responses=True
        ) as client:
            lists: list[str] = []
            texts: list[str] = []
            async for key in client.scan_iter(count=1000):
                (lists if key.startswith("user:") else texts).append(key)
            for key in lists:
                by_key[key] = await client.zrange(key, 0, -1, withscores=True)
            if texts:  # at once: to ask for each costs ten times that
                for key, text in zip(texts, await client.mget(texts), strict=True):
                    by_key[key] = text if key.startswith("cache:") else json.loads(str(text))
        return by_key

    async def empty(self) -> None:
        async with redis.asyncio.Redis.from_url(as_admin(self.settings.redis)) as client:
            await client.flushdb()


class FakeRedisPlace(FakePlace):
    server = REDIS
    sink: RedisSink

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings)
        self.keys = Keys()

    def another(self) -> RedisSink:
        return RedisSink(self.settings, client=FakeRedis(self.network, self.keys))

    async def start_server(self) -> None:
        self.keys.known = False
        await super().start_server()

    def batch(self, orders: Iterable[Order]) -> Sequence[CacheEntry]:
        return [order.entry() for order in orders]

    async def content(self) -> dict[str, Any]:
        return self.keys.readable()

    async def empty(self) -> None:
        self.keys.flush()


PLACES: dict[str, type[Place]] = {
    "postgres": PostgresPlace,
    "redis": RedisPlace,
    "fake postgres": FakePostgresPlace,
    "fake redis": FakeRedisPlace,
}


async def new_database(stack: Servers, **changes: Any) -> Settings:
    """Settings of a new, empty database on the stack, and of a Redis database that is emptied now."""
    base = url(stack.env, "POSTGRES")
    name = f"contract_{uuid.uuid4().hex[:12]}"
    await stackfixture.new_database(base, name)
    cache = with_path(url(stack.env, "REDIS"), str(REDIS_DATABASE))
    async with redis.asyncio.Redis.from_url(as_admin(cache)) as client:
        await client.flushdb()  # an earlier test's orders may have the same ids
    return Settings(
        postgres=with_path(base, name), redis=cache, data=Path("unused"), postgres_partitions=2
    ).model_copy(update=changes)


async def drop_database(stack: Servers, settings: Settings) -> None:
    name = urlsplit(settings.postgres.get_secret_value()).path[1:]
    await stackfixture.execute(as_admin(url(stack.env, "POSTGRES")), f"DROP DATABASE {name} WITH (FORCE)")
