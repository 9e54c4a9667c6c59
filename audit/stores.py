"""Reading what the pipeline wrote outside Kafka: rows in Postgres, entries in Redis, versions in state bytes."""

from __future__ import annotations

import importlib
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import asyncpg
import redis.asyncio
from redis.exceptions import RedisError

from audit.log import told

COLUMNS: Final = {
    "orders_order": "id user_id region status currency total_amount discount_amount created_at updated_at version",
    "orders_order_item": (
        "id order_id user_id region product_id seller_id warehouse_id sku quantity price shipping_amount created_at updated_at version"
    ),
    "orders_shipment": (
        "id order_id user_id region seller_id warehouse_id carrier tracking_number status estimated_delivery created_at updated_at version"
    ),
    "orders_return": "id order_id user_id region order_item_id quantity reason status processed_at created_at updated_at version",
}
TABLES: Final = tuple(COLUMNS)
_TIMES: Final = ("created_at", "updated_at", "processed_at", "estimated_delivery")
_MONEY: Final = ("total_amount", "discount_amount", "price", "shipping_amount")

Row = tuple[Any, ...]


class StoreUnavailable(Exception):
    """Postgres can't be read. The message says what happened."""


def columns(table: str) -> list[str]:
    return COLUMNS[table].split()


def order_column(table: str) -> str:
    return "id" if table == "orders_order" else "order_id"


def comparable(table: str, row: Sequence[Any]) -> Row:
    """A row as the reference writes it, or as asyncpg reads it, with values that compare: times, decimals, ids as text."""
    values: list[Any] = []
    for name, value in zip(columns(table), row, strict=True):
        if name in _TIMES and isinstance(value, str):
            value = datetime.fromisoformat(value)
        elif name in _MONEY:
            value = Decimal(value)
        elif isinstance(value, UUID):
            value = str(value)
        values.append(value)
    return tuple(values)


class Rows:
    """The four tables, read in one repeatable snapshot per question. Methods block on the network and raise StoreUnavailable."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    @classmethod
    @asynccontextmanager
    async def open(cls, dsn: str, *, patience: float = 10.0) -> AsyncIterator[Rows]:
        try:
            connection = await asyncpg.connect(dsn, timeout=patience)
        except (OSError, TimeoutError, asyncpg.PostgresError, ValueError) as error:
            raise StoreUnavailable(f"no Postgres at {_without_password(dsn)}: {told(error)}") from error
        try:
            yield cls(connection)
        finally:
            await connection.close()

    async def of_orders(self, order_ids: Sequence[str]) -> dict[str, dict[str, list[Row]]]:
        """order_id -> table -> its rows, comparable."""
        found: dict[str, dict[str, list[Row]]] = {}
        try:
            async with self._connection.transaction(isolation="repeatable_read", readonly=True):
                for table in TABLES:
                    names = columns(table)
                    owner = names.index(order_column(table))
                    query = f"SELECT {', '.join(names)} FROM {table} WHERE {order_column(table)} = ANY($1::uuid[])"
                    for record in await self._connection.fetch(query, order_ids):
                        row = comparable(table, tuple(record))
                        found.setdefault(row[owner], {}).setdefault(table, []).append(row)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreUnavailable(f"Postgres: {error}") from error
        return found

    async def count(self, table: str) -> int:
        try:
            return int(await self._connection.fetchval(f"SELECT count(*) FROM {table}"))
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreUnavailable(f"Postgres: {error}") from error

    async def identities(self, table: str) -> AsyncIterator[tuple[bytes, bytes]]:
        """(order id, row id) as raw bytes of every row, ascending, through a server-side cursor."""
        order = order_column(table)
        try:
            async with self._connection.transaction(readonly=True):
                async for record in self._connection.cursor(f"SELECT {order}, id FROM {table} ORDER BY {order}, id", prefetch=5000):
                    yield record[0].bytes, record[1].bytes
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
            raise StoreUnavailable(f"Postgres: {error}") from error


class Cache:
    """Redis, read in chunks. It may be down at any time: `failure` then says why, and everything looks absent."""

    def __init__(self, url: str) -> None:
        self._client = redis.asyncio.Redis.from_url(url, socket_timeout=5, socket_connect_timeout=2)
        self.failure = ""

    async def close(self) -> None:
        await self._client.aclose()

    async def values(self, keys: Sequence[str]) -> list[bytes | None]:
        """The string at each key, None where there is none."""
        if self.failure or not keys:
            return [None] * len(keys)
        try:
            found: list[Any] = await self._client.mget(keys)
        except (RedisError, OSError) as error:
            self.failure = told(error)
            return [None] * len(keys)
        return found

    async def scores(self, members: Sequence[tuple[str, str]]) -> list[float | None]:
        """The score of each (sorted set, member), None where there is none."""
        if self.failure or not members:
            return [None] * len(members)
        try:
            pipeline = self._client.pipeline(transaction=False)
            for key, member in members:
                pipeline.zscore(key, member)
            found: list[float | None] = await pipeline.execute()
        except (RedisError, OSError) as error:
            self.failure = told(error)
            return [None] * len(members)
        return found


def state_readers() -> tuple[Callable[[bytes], int], Callable[[bytes], str] | None]:
    """(version of state bytes, status of state bytes or None). Both raise ValueError or a subclass for bytes that are no state."""
    try:
        codec = importlib.import_module("tables.codec")
    except ModuleNotFoundError:
        return first_integer, None
    return getattr(codec, "version_of", first_integer), getattr(codec, "status_of", None)


def first_integer(raw: bytes) -> int:
    """The first element of a msgpack array, an unsigned integer. Raises ValueError."""
    try:
        head = raw[0]
        at = 1 if 0x90 <= head <= 0x9F else {0xDC: 3, 0xDD: 5}[head]
        kind = raw[at]
        if kind < 0x80:
            return kind
        width = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}[kind]
        value: int = struct.unpack_from(width, raw, at + 1)[0]
    except (IndexError, KeyError, struct.error) as error:
        raise ValueError("no msgpack array that begins with an integer") from error
    return value


def _without_password(dsn: str) -> str:
    head, at, tail = dsn.rpartition("@")
    if not at:
        return dsn
    scheme, _, user = head.partition("://")
    return f"{scheme}://{user.split(':')[0]}@{tail}"


def chunks(things: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (things[start : start + size] for start in range(0, len(things), size))
