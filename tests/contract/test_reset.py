"""Connections that are lost while nobody uses them, on the event loop that workers run on:
uvloop tells it in its own way.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest
import uvloop

from settings import Settings
from sinks import connection
from sinks.connection import HalfOpen
from sinks.postgres import PostgresSink
from sinks.redis import RedisSink
from sinks.rows import RowBatch
from streams.transport.delivery import Delivery, Outcome
from tests.chaos.proxy import Proxy, Wire
from tests.contract.places import Order, eventually
from tests.servers import url
from tests.stackfixture import Servers

ORDER = Order("a", 4, "shipped", parcels=(("pa", "in_transit"),))


async def through(
    url: str, use: Callable[[str, Proxy], Awaitable[None]], wire: Callable[[], Wire] | None = None
) -> None:
    """Call `use` with the same URL through a proxy."""
    parts = urlsplit(url)
    assert parts.port is not None
    proxy = Proxy("test", wire)
    await proxy.start(parts.port)
    try:
        await use(
            urlunsplit(parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{proxy.address}")), proxy
        )
    finally:
        await proxy.close()


async def written(sink: PostgresSink, batch: RowBatch) -> None:
    await sink.write(batch)


def test_redis_is_away_for_a_moment(stack: Servers) -> None:
    async def use(url: str, proxy: Proxy) -> None:
        sink = RedisSink(Settings(redis=url))
        try:
            assert await sink.write([ORDER.entry()]) == 1
            await proxy.reset()
            await eventually(lambda: proxy.connections == 0)
            await sink.put([ORDER.entry()])  # which may find out
            assert await sink.put([ORDER.entry()], probe=True) is not None
            assert not sink.away
        finally:
            await sink.close()

    uvloop.run(through(url(stack.env, "REDIS"), use))


def test_postgres_is_away_for_a_moment(migrated: Settings) -> None:
    async def use(url: str, proxy: Proxy) -> None:
        sink = PostgresSink(Settings(postgres=url))
        await sink.start()
        batch = RowBatch()
        ORDER.rows(batch)
        try:
            await sink.write(batch)
            await proxy.reset()
            await eventually(lambda: proxy.connections == 0)
            delivery = Delivery(Settings())
            assert await delivery.run("0", lambda: written(sink, batch), asyncio.Event()) is Outcome.DONE
        finally:
            await sink.close()

    uvloop.run(through(migrated.postgres.get_secret_value(), use))


def test_one_attempt_finds_out_that_all_connections_to_postgres_are_half_open(migrated: Settings) -> None:
    async def use(url: str, proxy: Proxy) -> None:
        sink = PostgresSink(Settings(postgres=url))
        await sink.start()
        batch = RowBatch()
        ORDER.rows(batch)
        try:
            await asyncio.gather(*(sink.write(batch) for _ in range(3)))
            assert proxy.connections >= 2
            proxy.half_open()
            # Far below the statement's limit of 30 s: what is asked for is less than 10.
            async with asyncio.timeout(10):
                with pytest.raises(HalfOpen, match="half open"):
                    await sink.write(batch)
                assert await sink.write(batch) == 0
        finally:
            await sink.close()

    uvloop.run(through(migrated.postgres.get_secret_value(), use))


class Pooler:
    """A wire that gives sessions numbers of its own, as PgBouncer does."""

    def to_server(self, data: bytes) -> bytes:
        return data

    def to_client(self, data: bytes) -> bytes:
        return re.sub(rb"K\0\0\0\x0c....", b"K\0\0\0\x0c\x7f\0\0\0", data, flags=re.DOTALL)


@pytest.mark.parametrize("wire", [None, Pooler], ids=["server", "pooler"])
def test_a_slow_statement_is_only_slow(
    migrated: Settings, monkeypatch: pytest.MonkeyPatch, wire: type[Pooler] | None
) -> None:
    monkeypatch.setattr(connection, "LOOK", 0.2)

    async def use(url: str, proxy: Proxy) -> None:
        sink = PostgresSink(Settings(postgres=url))
        await sink.start()
        batch = RowBatch()
        replace(ORDER, version=ORDER.version + 1).rows(batch)
        blocker = await asyncpg.connect(migrated.postgres.get_secret_value())
        try:
            async with blocker.transaction():
                await blocker.execute("LOCK orders_order IN ACCESS EXCLUSIVE MODE")
                before = proxy.accepted
                writing = asyncio.ensure_future(sink.write(batch))
                await eventually(lambda: proxy.accepted >= before + 3 or writing.done())
                assert not writing.done(), "its server was asked several times, and knows the session"
            await writing
        finally:
            await blocker.close()
            await sink.close()

    uvloop.run(through(migrated.postgres.get_secret_value(), use, wire))
