"""The read side on real servers: a primary with a streaming replica, Redis, and a
line to each that can be cut.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4

import asyncpg
import httpx
import pytest
from fastapi import FastAPI
from redis.asyncio import Redis

from api.app import create_app
from contracts.statuses import OrderStatusText
from credentials import PostgresUrl
from domain import parts
from domain.shapes import ItemRow, OrderRow
from operations.secured import settings_of
from queries import statements
from queries.databases import Database
from queries.reader import Reader
from settings import Settings
from sinks import migrate
from sinks.postgres import PostgresSink
from sinks.rows import RowBatch
from stack import ports
from tests.chaos.proxy import Proxy
from tests.contract.places import suborder_row
from tests.forked import Forked
from tests.integration.api_world import World, entry, folded
from tests.servers import as_admin, without_files
from tests.stackfixture import administered, new_database, place, started
from tests.waiting import eventually, until
from tests.workers import ORDERS, orders

PROBLEM = "application/problem+json"
KEY = "a-key-that-nobody-guesses"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """A stack with a replica, and orders in it."""
    folder = tmp_path_factory.mktemp("replicated") / "stack"
    with place(folder):
        stack = started(folder, replica=True)
        with administered(stack):
            yield settings_of(without_files(stack.env))


@pytest.fixture(scope="module")
def filled(servers: Settings) -> Settings:
    async def fill() -> None:
        await migrate.upgrade(servers)
        async with World(servers, ORDERS_THERE()) as world:
            await world.put_rows()
        await replicated(servers)

    asyncio.run(fill())
    return servers


async def ask(url: str, statement: str) -> Any:
    connection = await asyncpg.connect(url)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


async def replicated(settings: Settings) -> None:
    """Until the replica has all that the primary has now."""
    assert settings.postgres_replica is not None
    position = await ask(settings.postgres.get_secret_value(), "SELECT pg_current_wal_lsn()::text")
    replica = settings.postgres_replica.get_secret_value()
    await eventually(
        lambda: ask(replica, f"SELECT pg_last_wal_replay_lsn() >= '{position}'::pg_lsn"),
        "the replica has caught up",
    )


ORDERS_THERE = functools.cache(lambda: folded(60))
"""What is in the databases."""

SOON = 2.0
"""Seconds after which a server that says nothing is taken to be away: the others must answer within it, also
where a dozen programs share the processors.
"""


class Service(NamedTuple):
    """The API, and what it reads."""

    app: FastAPI
    client: httpx.AsyncClient
    reader: Reader
    world: World
    cache: Proxy
    replica: Proxy
    primary: Proxy

    async def get(self, path: str, status: int = 200, **headers: str) -> httpx.Response:
        answer = await self.client.get(path, headers=headers)
        assert answer.status_code == status, answer.text
        if status >= 400:
            assert answer.headers["content-type"] == PROBLEM
            assert answer.json()["status"] == status
        return answer

    @property
    def reads(self) -> tuple[int, int]:
        """Statements sent: (to the replica, to the primary)."""
        replica = self.reader.databases.replica
        return 0 if replica is None else replica.reads, self.reader.databases.primary.reads

    def first(self, condition: Callable[[Any], bool] = lambda _: True) -> UUID:
        """Some order that is like that."""
        return next(order_id for order_id, order in self.world.orders.items() if condition(order))


Open = Callable[..., Any]


@pytest.fixture
def service(filled: Settings) -> Open:
    """`async with service(setting=...) as s`: the API over lines that can be cut; Redis is empty."""

    @asynccontextmanager
    async def open_(**changes: Any) -> AsyncIterator[Service]:
        lines = {name: Proxy(name) for name in ("redis", "postgres_replica", "postgres")}
        urls = {}
        for name, line in lines.items():
            parts = urlsplit(getattr(filled, name).get_secret_value())
            await line.start(parts.port or 0)
            urls[name] = urlunsplit(
                parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}@{line.address}")
            )
        settings = Settings.model_validate(dict(filled) | urls | changes)
        app = create_app(settings)
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with (
            Redis.from_url(as_admin(filled.redis)) as redis,
            World(filled, ORDERS_THERE()) as world,
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        ):
            await redis.flushdb()
            try:
                yield Service(app, client, app.state.reader, world, *lines.values())
            finally:
                for line in lines.values():
                    await line.heal()
                await app.state.reader.close()
                for line in lines.values():
                    await line.close()

    return open_


# -- hits and misses -----------------------------------------------------------------------------------------


async def test_a_hit_is_what_the_lanes_wrote_and_asks_no_database(service: Open) -> None:
    async with service() as s:
        order_id = s.first()
        await s.world.put_cache(order_id)
        answer = await s.get(f"/orders/{order_id}")
        assert answer.content == entry(order_id, s.world.orders[order_id]).summary
        assert answer.headers["x-source"] == "cache"
        assert answer.headers["etag"] == f'W/"{s.world.orders[order_id].version}"'
        assert answer.headers["x-order-version"] == str(s.world.orders[order_id].version)
        user = s.world.user_of(order_id)
        await s.get(f"/users/{user}/orders")
        before = s.reads
        recent = await s.get(f"/users/{user}/orders")
        assert recent.headers["x-source"] == "cache"
        assert s.reads == before
        assert s.reads[1] == 0, "the primary is left alone"


async def test_fifty_misses_at_once_are_one_read(service: Open) -> None:
    async with service() as s:
        order_id = s.first()
        answers = await asyncio.gather(*(s.get(f"/orders/{order_id}") for _ in range(50)))
        assert len({answer.content for answer in answers}) == 1
        assert answers[0].headers["x-source"] == "replica"
        assert s.reads == (2, 0), "the replica's lag, and one order"
        assert (await s.get(f"/orders/{order_id}")).headers["x-source"] == "cache"
        assert (await s.get(f"/orders/{order_id}/explain")).headers["x-source"] == "cache"
        assert s.reads == (2, 0)
        async with Redis.from_url(as_admin(s.world.settings.redis)) as redis:
            assert await redis.keys() == [f"rows:{order_id}".encode()], "the lanes' keys are the lanes'"
            assert 0 < await redis.ttl(f"rows:{order_id}") <= s.world.settings.cache_ttl_refill


async def test_who_goes_away_takes_nobody_elses_answer_along(service: Open) -> None:
    async with service() as s:
        order_id = s.first()
        s.replica.black_hole()
        first = asyncio.ensure_future(s.reader.order(order_id))
        second = asyncio.ensure_future(s.reader.order(order_id))
        replica = s.reader.databases.replica
        assert replica is not None

        async def asked() -> bool:
            return bool(replica.reads)

        await eventually(asked, "the replica is being asked")
        first.cancel()
        await s.replica.heal()
        assert (await second).version == s.world.orders[order_id].version


async def test_the_rows_say_what_the_cache_says(service: Open) -> None:
    """Of every generated order, whatever happened to it."""
    async with service() as s:
        seen_parcels = seen_returns = seen_payments = 0
        for order_id, order in s.world.orders.items():
            cached = json.loads(entry(order_id, order).summary)
            shown = (await s.get(f"/orders/{order_id}")).json()
            assert sorted(shown.pop("shipments"), key=by_shipment) == sorted(
                cached.pop("shipments"), key=by_shipment
            )
            assert shown == cached
            details = (await s.get(f"/orders/{order_id}/explain")).json()
            created = order.created
            assert [UUID(item["item_id"]).bytes for item in details["items"]] == sorted(
                item.item_id for item in created.items
            )
            assert {each["return_id"] for each in details["returns"]} == {
                str(UUID(bytes=each.return_id)) for each in order.returns
            }
            assert {(each["payment_id"], each["status"]) for each in details["payments"]} == {
                (each.id, each.status) for each in parts.payment_rows(str(order_id), order)
            }
            assert [(each["number"], each["amount"]) for each in details["refunds"]] == [
                (each.number, each.amount) for each in parts.refund_rows(str(order_id), order_id.bytes, order)
            ]
            assert [each["units_live"] for each in details["suborders"]] == [
                each.live for each in order.suborders
            ]
            times = [datetime.fromisoformat(moment["time"]) for moment in details["moments"]]
            assert times == sorted(times)
            seen_payments += len(details["payments"])
            seen_parcels += len(details["shipments"])
            seen_returns += len(details["returns"])
        assert seen_parcels > 20
        assert seen_returns > 3
        assert seen_payments > 20


def by_shipment(parcel: Any) -> str:
    return str(parcel["shipment_id"])


async def test_details_are_read_again_once_the_lanes_know_of_something_newer(service: Open) -> None:
    async with service() as s:
        order_id = s.first(lambda order: len(order.suborders) > 1)
        details = await s.get(f"/orders/{order_id}/explain")
        version = details.json()["version"]
        async with Redis.from_url(as_admin(s.world.settings.redis)) as redis:
            await s.world.put_cache(order_id)
            summary = entry(order_id, s.world.orders[order_id]).summary
            details = await s.get(f"/orders/{order_id}/explain")
            assert details.headers["x-source"] == "cache"
            assert [
                {name: each[name] for name in ("suborder_id", "seller_id", "status", "total_amount")}
                for each in details.json()["suborders"]
            ] == json.loads(summary)["suborders"]
            newer = summary.replace(b'"version":%d' % version, b'"version":%d' % (version + 1))
            await redis.set(f"order:{order_id}", newer)
            assert (await s.get(f"/orders/{order_id}/explain")).headers["x-source"] == "replica"
            # And where the lanes are behind (an outage of Redis), what readers have read is the newer one.
            await redis.set(
                f"order:{order_id}",
                summary.replace(b'"version":%d' % version, b'"version":%d' % (version - 1)),
            )
            assert (await s.get(f"/orders/{order_id}")).json()["version"] == version


async def test_what_is_not_ours_in_the_cache_is_not_there(service: Open) -> None:
    async with service() as s:
        order_id = s.first()
        user = s.world.user_of(order_id)
        for garbage in (b"", b"{", b'{"version":7}', b"[1]"):
            async with Redis.from_url(as_admin(s.world.settings.redis)) as redis:
                await redis.mset(
                    {
                        f"order:{order_id}": garbage.replace(b"7", b"0"),
                        f"rows:{order_id}": garbage,
                        f"rows:user:{user}": garbage,
                    }
                )
                await redis.zadd(f"user:{user}:orders", {str(order_id): 1})
            assert (await s.get(f"/orders/{order_id}/explain")).headers["x-source"] == "replica"
            async with Redis.from_url(as_admin(s.world.settings.redis)) as redis:
                await redis.set(f"rows:{order_id}", garbage)
            assert (await s.get(f"/orders/{order_id}")).headers["x-source"] == "replica"
            assert str(order_id) in (await s.get(f"/users/{user}/orders")).text


async def test_a_refill_never_replaces_a_newer_one(service: Open) -> None:
    async with service() as s:
        order_id = s.first()
        details = (await s.reader.details(order_id)).body
        version = json.loads(details)["version"]
        await s.reader.cache.refill_order(
            order_id,
            version - 1,
            details.replace(b'"version":%d' % version, b'"version":%d' % (version - 1), 1),
        )
        assert (await s.reader.cache.order(order_id))[1] == details
        newer = details.replace(b'"version":%d' % version, b'"version":%d' % (version + 1), 1)
        await s.reader.cache.refill_order(order_id, version + 1, newer)
        assert (await s.reader.cache.order(order_id))[1] == newer


async def test_partitioned_by_region_the_same_answers(filled: Settings, service: Open) -> None:
    by_region = urlunsplit(urlsplit(filled.postgres.get_secret_value())._replace(path="/by_region"))
    await new_database(filled.postgres.get_secret_value(), "by_region")
    settings = filled.model_copy(update={"postgres": PostgresUrl(by_region)})
    await migrate.upgrade(settings, "region")
    async with World(settings, ORDERS_THERE()) as world:
        await world.put_rows()
    paths = []
    for order_id, order in list(ORDERS_THERE().items())[:12]:
        assert order.created is not None
        paths += [f"/orders/{order_id}/explain", f"/users/{world.user_of(order_id)}/orders?limit=100"]
        paths += [f"/tracking/{scan.tracking_number}" for scan in order.scans if scan.tracking_number]
        paths.append(f"/sellers/{UUID(bytes=order.created.items[0].seller_id)}/suborders?limit=50")
    async with (
        service(postgres_replica=None, cache_ttl_refill=1) as s,
        service(postgres_replica=None, postgres=by_region) as other,
    ):
        answers = [(await s.get(path)).json() for path in paths]
        async with Redis.from_url(as_admin(filled.redis)) as redis:
            await redis.flushdb()
        assert [(await other.get(path)).json() for path in paths] == answers
        assert other.reads[1] >= len(set(paths)) // 2


# -- servers that are away -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "away", "source"),
    [
        ("cut", ("cache",), "replica"),
        ("cut", ("replica",), "primary"),
        ("cut", ("cache", "replica"), "primary"),
        ("cut", ("primary",), "replica"),
        ("black_hole", ("cache", "replica"), "primary"),
        ("black_hole", ("primary",), "replica"),
    ],
)
async def test_it_answers_while_servers_are_away(
    service: Open, how: str, away: tuple[str, ...], source: str
) -> None:
    async with service(redis_timeout=SOON, read_timeout=SOON) as s:
        order_id = s.first()
        user = s.world.user_of(order_id)
        await s.get(
            f"/orders/{s.first(lambda order: order is not s.world.orders[order_id])}"
        )  # connections are open
        for name in away:
            broken = getattr(s, name)
            if how == "cut":
                await broken.cut()
            else:
                broken.black_hole()
        answer = await s.get(f"/orders/{order_id}")
        assert answer.headers["x-source"] == source
        assert (await s.get(f"/users/{user}/orders?status={answer.json()['status']}")).headers[
            "x-source"
        ] == source
        health = (await s.get("/health")).json()
        assert health["status"] == "degraded"
        assert {name for name, each in health["sources"].items() if not each["up"]} == set(away)
        for name in away:
            await getattr(s, name).heal()

        async def well() -> bool:
            return bool((await s.get("/health")).json()["status"] == "ok")

        await eventually(well, "all is well again")


async def test_one_read_finds_out_that_all_connections_are_half_open(service: Open) -> None:
    async with service(redis_timeout=SOON, read_timeout=SOON, postgres_replica=None) as s:
        paths = [f"/orders/{order_id}/explain" for order_id in list(s.world.orders)[:6]]
        await asyncio.gather(*(s.get(path) for path in paths))
        assert s.primary.connections > 1
        async with Redis.from_url(as_admin(s.world.settings.redis)) as redis:
            await redis.flushdb()
        s.primary.half_open()
        before = s.reads[1]
        await s.get(paths[0], 503)

        async def well() -> bool:
            return bool((await s.client.get(paths[0])).status_code == 200)

        await eventually(well, "it is left alone for a second, and then found to be back")
        assert s.reads[1] == before + 2, "the second statement has found a new connection"
        for path in paths[1:]:
            await s.get(path)


@pytest.mark.parametrize(
    ("wanted", "standby"),
    [("read-write", False), ("primary", False), ("standby", True), ("prefer-standby", True)],
)
async def test_of_several_hosts_the_one_that_is_asked_for(
    filled: Settings, wanted: str, standby: bool
) -> None:
    assert filled.postgres_replica is not None
    places = [urlsplit(url.get_secret_value()) for url in (filled.postgres, filled.postgres_replica)]
    for order in (places, places[::-1]):
        first, second = order
        hosts = f"{first.netloc},127.0.0.1:{ports.choose(set())},{second.netloc.rpartition('@')[2]}"
        url = f"postgresql://{hosts}{first.path}?{first.query}&target_session_attrs={wanted}".replace(
            "?&", "?"
        )
        database = Database(filled, url, "primary")
        try:
            connection = await database._connect()
            try:
                assert await connection.fetchval("SELECT pg_is_in_recovery()") is standby
                assert not await connection.forgotten()
            finally:
                await connection.close()
            assert len(await database.rows(statements.ONE)) == 1
        finally:
            await database.close()


async def test_who_waits_for_a_connection_to_a_silent_replica_is_answered_too(service: Open) -> None:
    # All of them then share one connection to the primary, on a machine that others use too.
    async with service(read_pool=1, read_timeout=2 * SOON) as s:
        first, *others = s.world.orders
        await s.get(f"/orders/{first}")
        s.replica.black_hole()
        answers = await asyncio.gather(*(s.get(f"/orders/{order_id}") for order_id in others))
        assert {answer.headers["x-source"] for answer in answers} == {"primary"}


async def test_what_is_down_is_not_asked_by_each_request(service: Open) -> None:
    async with service() as s:
        s.reader.databases.replica._circuit._pause = 3600
        await s.replica.cut()
        for order_id in s.world.orders:
            assert (await s.get(f"/orders/{order_id}")).headers["x-source"] == "primary"
        assert s.reads == (1, len(s.world.orders))


async def test_without_any_database_the_cache_answers_and_the_rest_is_a_problem(service: Open) -> None:
    async with service() as s:
        known, unknown = list(s.world.orders)[:2]
        await s.world.put_cache(known)
        await s.replica.cut()
        await s.primary.cut()
        assert (await s.get(f"/orders/{known}")).headers["x-source"] == "cache"
        answer = await s.get(f"/orders/{unknown}", 503)
        assert answer.json()["type"] == "urn:orders:unavailable"
        assert answer.headers["retry-after"] == "1"
        health = await s.client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "down")


# -- a replica that is behind --------------------------------------------------------------------------------


async def test_a_replica_that_follows_nobody_is_passed_over(service: Open, filled: Settings) -> None:
    """As one that was promoted by mistake: what it has may be old for ever.
    Without a primary it answers all the same.
    """
    async with service(postgres_replica=filled.postgres.get_secret_value()) as s:
        first, second = list(s.world.orders)[:2]
        assert (await s.get(f"/orders/{first}")).headers["X-Source"] == "primary"
        await s.primary.cut()
        assert (await s.get(f"/orders/{second}")).headers["X-Source"] == "stale replica"


@asynccontextmanager
async def paused(s: Service) -> AsyncIterator[None]:
    """The replica takes in nothing more meanwhile."""
    url = s.world.settings.postgres_replica
    assert url is not None
    replica = as_admin(url)
    await ask(replica, "SELECT pg_wal_replay_pause()")
    await eventually(
        lambda: ask(replica, "SELECT pg_get_wal_replay_pause_state() = 'paused'"), "replay has paused"
    )
    try:
        yield
    finally:
        await ask(replica, "SELECT pg_wal_replay_resume()")
        await replicated(s.world.settings)


async def placed(s: Service, user: UUID) -> UUID:
    """A new order of this user, on the replica too."""
    batch = RowBatch()
    batch.orders.append(row(order_id := uuid4(), user, datetime(2026, 4, 30, tzinfo=UTC)))
    await insert(s, batch)
    await replicated(s.world.settings)
    return order_id


async def write_newer(s: Service, order_id: UUID) -> int:
    """A version more in the primary's rows; the replica has received it once this returns."""
    version = await ask(
        s.world.settings.postgres.get_secret_value(),
        f"UPDATE orders_order SET version = version + 1 WHERE id = '{order_id}' RETURNING version",
    )
    position = await ask(s.world.settings.postgres.get_secret_value(), "SELECT pg_current_wal_lsn()::text")
    assert s.world.settings.postgres_replica is not None
    replica = s.world.settings.postgres_replica.get_secret_value()
    await eventually(
        lambda: ask(replica, f"SELECT pg_last_wal_receive_lsn() >= '{position}'::pg_lsn"),
        "the replica has received it",
    )
    return int(version)


async def test_a_replica_behind_its_bound_is_passed_over(service: Open) -> None:
    async with service(replica_max_lag=0) as s:
        order_id = await placed(s, uuid4())
        other, third = list(s.world.orders)[:2]

        async def used() -> bool:
            return bool((await s.get("/health")).json()["status"] == "ok")

        await eventually(used, "it has what the primary has, the vacuum's writes too")
        assert (await s.get(f"/orders/{third}")).headers["x-source"] == "replica"
        async with paused(s):
            version = await write_newer(s, order_id)

            async def passed_over() -> bool:
                return not (await s.get("/health")).json()["sources"]["replica"]["used"]

            await eventually(passed_over, "the lag is seen")
            answer = await s.get(f"/orders/{order_id}")
            assert (answer.headers["x-source"], answer.json()["version"]) == ("primary", version)
            await s.primary.cut()
            answer = await s.get(f"/orders/{other}")
            assert answer.headers["x-source"] == "stale replica", "better than nothing, and it says so"
            assert (await s.get(f"/orders/{uuid4()}", 503)).json()["type"] == "urn:orders:unavailable", (
                "it may only not know it yet"
            )
            await s.primary.heal()

        await eventually(used, "it has caught up")


async def test_nobody_gets_less_than_they_have_seen(service: Open) -> None:
    async with service(replica_max_lag=300, cache_ttl_refill=300) as s:
        user = uuid4()
        order_id = await placed(s, user)
        async with paused(s):
            version = await write_newer(s, order_id)
            for path in (f"/orders/{order_id}", f"/orders/{order_id}/explain"):
                assert (await s.get(path)).json()["version"] == version - 1
                answer = await s.get(path, **{"X-Order-Version": str(version)})
                assert answer.json()["version"] == version
                assert (await s.get(f"{path}?min_version={version}")).json()["version"] == version
                problem = await s.get(f"{path}?min_version={version + 1}", 503)
                assert problem.json()["type"] == "urn:orders:version-not-there-yet"
                assert problem.headers["retry-after"] == "1"
                async with Redis.from_url(as_admin(s.world.settings.redis)) as redis:
                    await redis.flushdb()
            for path in (f"/users/{user}/orders?", f"/users/{user}/orders?from=2020-01-01T00:00:00Z&"):
                assert (await s.get(path)).headers["x-source"] == "replica"
                answer = await s.get(f"{path}seen={order_id}:{version}")
                assert answer.headers["x-source"] == "primary"
                assert {each["order_id"]: each["version"] for each in answer.json()["orders"]}[
                    str(order_id)
                ] == version
                assert (await s.get(f"{path}seen={order_id}:{version + 1}", 503)).json()[
                    "type"
                ] == "urn:orders:version-not-there-yet"
                async with Redis.from_url(as_admin(s.world.settings.redis)) as redis:
                    await redis.flushdb()
            # An order that the cache knows exists, whatever the replica thinks.
            new = uuid4()
            batch = RowBatch()
            batch.orders.append(row(new, user, datetime(2026, 5, 1, tzinfo=UTC)))
            await insert(s, batch)
            await s.get(f"/orders/{new}/explain", 404)
            async with Redis.from_url(as_admin(s.world.settings.redis)) as redis:
                head = {
                    "order_id": str(new),
                    "user_id": str(user),
                    "status": "pending",
                    "currency": "EUR",
                    "total_amount": "1.00",
                }
                times = {"created_at": "2026-05-01T00:00:00+00:00", "updated_at": "2026-05-01T00:00:00+00:00"}
                await redis.set(
                    f"order:{new}",
                    json.dumps(
                        {**head, **times, "version": 1, "suborders": [], "shipments": []},
                        separators=(",", ":"),
                    ),
                )
            assert (await s.get(f"/orders/{new}/explain")).headers["x-source"] == "primary"


# -- lists ---------------------------------------------------------------------------------------------------


def row(order_id: UUID, user: UUID, time: datetime, status: OrderStatusText = "pending") -> OrderRow:
    return OrderRow(
        str(order_id),
        str(user),
        "",
        status,
        "EUR",
        "1.00",
        "0",
        "0",
        None,
        None,
        time.isoformat(),
        time.isoformat(),
        1,
    )


def line(order_id: UUID, user: UUID, seller: UUID, time: datetime) -> ItemRow:
    ids_ = str(uuid4()), str(order_id), str(user), "", str(uuid4()), str(seller), None
    return ItemRow(*ids_, "SKU", 2, "1.50", "0.25", "0", "0", time.isoformat(), time.isoformat(), 1)


async def insert(s: Service, batch: RowBatch) -> None:
    sink = PostgresSink(s.world.settings)
    await sink.start()
    await sink.write(batch)
    await sink.close()


async def turn(s: Service, path: str, rows: str, between: Callable[[], Awaitable[None]]) -> list[Any]:
    """All rows, page after page."""
    collected: list[Any] = []
    cursor = None
    while True:
        page = (await s.get(path if cursor is None else f"{path}&cursor={cursor}")).json()
        collected += page[rows]
        cursor = page["next"]
        if cursor is None:
            return collected
        await between()


@pytest.mark.parametrize("what", ["history", "recent", "suborders"])
async def test_pages_are_complete_and_without_doubles_while_orders_come(service: Open, what: str) -> None:
    start = datetime(2026, 4, 1, tzinfo=UTC)
    user, seller = uuid4(), uuid4()
    async with service(postgres_replica=None) as s:

        async def place(*times: datetime) -> list[UUID]:
            batch, order_ids = RowBatch(), []
            for time in times:
                order_ids.append(order_id := uuid4())
                batch.orders.append(row(order_id, user, time))
                batch.items += (line(order_id, user, seller, time), line(order_id, user, seller, time))
                at = time.isoformat()
                whose = str(uuid4()), str(order_id), str(user), "", at, at, 1
                batch.suborders.append(suborder_row(*whose, seller_id=str(seller), units_ordered=4))
            await insert(s, batch)
            return order_ids

        # Four of each time, so that pages of seven end among equals.
        times = {}
        for second in range(15):
            moment = start + timedelta(seconds=second, microseconds=second)
            for order_id in await place(*[moment] * 4):
                times[order_id] = moment
        expected = [
            str(order_id)
            for order_id, _ in sorted(times.items(), key=lambda each: (each[1], each[0]), reverse=True)
        ]
        newest = start + timedelta(days=1)

        async def between() -> None:
            await place(newest, newest + timedelta(seconds=1))

        path = {
            "history": f"/users/{user}/orders?limit=7&from=2026-04-01T00:00:00Z",
            "recent": f"/users/{user}/orders?limit=7",
            "suborders": f"/sellers/{seller}/suborders?limit=7",
        }[what]
        rows = await turn(s, path, "suborders" if what == "suborders" else "orders", between)
        assert [each["order_id"] for each in rows] == expected
        if what == "suborders":
            assert {(each["quantity"], each["items_amount"], each["shipping_amount"]) for each in rows} == {
                (4, "5.00", "0.00")
            }


async def test_history_by_status_and_time(service: Open) -> None:
    async with service() as s:
        user = uuid4()
        start = datetime(2026, 4, 1, tzinfo=UTC)
        batch = RowBatch()
        for hour in range(10):
            batch.orders.append(
                row(uuid4(), user, start + timedelta(hours=hour), "delivered" if hour % 2 else "pending")
            )
        await insert(s, batch)
        await replicated(s.world.settings)

        async def hours(query: str) -> list[int]:
            page = (await s.get(f"/users/{user}/orders?{query}")).json()
            return [datetime.fromisoformat(each["created_at"]).hour for each in page["orders"]]

        assert await hours("") == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]
        assert await hours("status=delivered") == [9, 7, 5, 3, 1]
        assert await hours("status=returned") == []
        assert await hours("from=2026-04-01T03:00:00Z&to=2026-04-01T06:00:00Z") == [5, 4, 3], (
            "from is in, to isn't"
        )
        assert await hours("from=2026-04-01T03:00:00%2B01:00&to=2026-04-01T06:00:00%2B01:00") == [4, 3, 2]
        assert await hours("status=delivered&from=2026-04-01T03:00:00Z&limit=2") == [9, 7]


async def test_recent_orders_show_what_the_lanes_wrote_since(service: Open) -> None:
    async with service() as s:
        order_id = s.first()
        user = s.world.user_of(order_id)
        first = (await s.get(f"/users/{user}/orders")).json()["orders"]
        before = s.reads
        newer = entry(order_id, s.world.orders[order_id])
        new = uuid4()
        summary = re.sub(rb'"order_id":"[^"]+"', b'"order_id":"%s"' % str(new).encode(), newer.summary)
        summary = re.sub(rb'"created_at":"[^"]+"', b'"created_at":"2026-12-01T00:00:00+00:00"', summary)
        await s.world._cache.write(
            [
                newer._replace(
                    order_id=str(new),
                    created_ms=1_796_083_200_000,
                    summary=summary,
                    tracking=[],
                    untracked=[],
                )
            ]
        )
        again = await s.get(f"/users/{user}/orders")
        assert [each["order_id"] for each in again.json()["orders"]] == [
            str(new),
            *(each["order_id"] for each in first),
        ]
        assert (again.headers["x-source"], s.reads) == ("cache", before)
        async with Redis.from_url(as_admin(s.world.settings.redis)) as redis:
            await redis.delete(f"order:{new}")
        assert (await s.get(f"/users/{user}/orders")).headers["x-source"] == "replica", (
            "an order of which nothing is known: asked again"
        )


async def test_tracking(service: Open) -> None:
    async with service() as s:
        order_id = s.first(lambda order: any(scan.tracking_number for scan in order.scans))
        [(number, _, cached), *_] = entry(order_id, s.world.orders[order_id]).tracking
        [shown] = (await s.get(f"/tracking/{number}")).json()
        assert shown == json.loads(cached) | {"location": None}
        assert (await s.get(f"/tracking/{number}")).headers["x-source"] == "cache"
        reads = s.reads
        await s.world.put_cache(order_id)
        answer = await s.get(f"/tracking/{number}")
        assert answer.json() == [json.loads(cached)], "the lanes' own comes first"
        assert s.reads == reads
        await s.get("/tracking/nobody%2Fs%20number", 404)
        await s.get("/tracking/a%00b", 422)


async def test_a_seller_sees_its_suborder_whatever_the_cache_knows(service: Open) -> None:
    async with service() as s:
        order_id = s.first(lambda order: len(order.suborders) > 1 and order.scans)
        summary = json.loads(entry(order_id, s.world.orders[order_id]).summary)
        suborder = summary["suborders"][0]
        path = f"/sellers/{suborder['seller_id']}/suborders?limit=200"

        async def shown() -> Any:
            return next(
                each for each in (await s.get(path)).json()["suborders"] if each["order_id"] == str(order_id)
            )

        seen = await shown()
        assert (seen["suborder_id"], seen["order_status"]) == (suborder["suborder_id"], summary["status"])
        assert (seen["status"], seen["total_amount"]) == (suborder["status"], suborder["total_amount"])
        own = [parcel for parcel in summary["shipments"] if parcel["seller_id"] == suborder["seller_id"]]
        assert sorted(seen["shipments"], key=by_shipment) == sorted(own, key=by_shipment)


# -- over HTTP -----------------------------------------------------------------------------------------------


async def test_etags(service: Open) -> None:
    async with service() as s:
        order_id = s.first()
        etag = (await s.get(f"/orders/{order_id}")).headers["etag"]
        for given in (etag, etag.removeprefix("W/"), f'"1000", {etag}', "*"):
            answer = await s.get(f"/orders/{order_id}", 304, **{"If-None-Match": given})
            assert (answer.content, answer.headers["etag"]) == (b"", etag)
        assert (await s.get(f"/orders/{order_id}", **{"If-None-Match": '"1000"'})).json()


async def test_every_error_is_a_problem(service: Open) -> None:
    async with service() as s:
        await s.get("/nowhere", 404)
        answer = await s.client.post(f"/orders/{uuid4()}")
        assert (answer.status_code, answer.headers["content-type"], answer.headers["allow"]) == (
            405,
            PROBLEM,
            "GET, HEAD",
        )
        assert (await s.get(f"/orders/{uuid4()}", 404)).json()["type"] == "urn:orders:not-found"
        user = f"/users/{uuid4()}/orders"
        for path, where in (
            ("/orders/some", "path.order_id"),
            (f"/orders/{uuid4()}?min_version=-1", "query.min_version"),
            (f"{user}?limit=0", "query.limit"),
            (f"{user}?limit=201", "query.limit"),
            (f"{user}?status=lost", "query.status"),
            (f"{user}?from=yesterday", "query.from"),
            (f"{user}?from=2026-01-01T00:00:00", "query.from"),
            (f"{user}?to=0001-01-01T00:00:00%2B14:00", "query.to"),
            (f"{user}?cursor=AAAA", "query.cursor"),
            (f"{user}?seen=1:1", "query.seen"),
            (f"{user}?seen=--------------------------------:1", "query.seen"),
        ):
            answer = await s.get(path, 422)
            assert answer.json()["type"] == "urn:orders:invalid-request"
            assert [each["where"] for each in answer.json()["errors"]] == [where]
        assert s.reads[1] == 0
        s.reader.order = None  # a bug of ours
        assert set((await s.get(f"/orders/{uuid4()}", 500)).json()) == {"type", "title", "status"}


async def test_keys(service: Open) -> None:
    async with service(api_keys=f"another-key-entirely, {KEY}") as s:
        path = f"/orders/{s.first()}"
        assert (await s.get(path, 401)).headers["www-authenticate"] == "Bearer"
        await s.get(path, 401, Authorization="Bearer wrong")
        await s.get(path, 401, Authorization=f"Basic {KEY}")
        await s.get(path, 401, Authorization=f"Bearer another-key-entirely, {KEY}")
        await s.get(path, Authorization=f"Bearer {KEY}")
        await s.get(path, Authorization=f"Bearer {KEY}", Host="orders.example")
        await s.get("/health")
    async with service() as s:
        path = f"/orders/{s.first()}"
        await s.get(path)
        await s.get(path, 403, Host="orders.example")


async def test_the_openapi_document_is_valid_and_tells_of_every_answer(service: Open) -> None:
    async with service(api_write=True) as s:
        document = (await s.get("/openapi.json")).json()
        import_module("openapi_spec_validator").validate(document)
        assert set(document["paths"]) == {
            "/orders",
            "/orders/{order_id}",
            "/orders/{order_id}/explain",
            "/orders/{order_id}/story",
            "/orders/{order_id}/timeline",
            "/users/{user_id}/orders",
            "/tracking/{number}",
            "/sellers/{seller_id}/suborders",
            "/health",
            "/events",
        }
        del document["paths"]["/events"]  # tests/unit/test_api_events.py
        for path, methods in document["paths"].items():
            answers = methods["get"]["responses"]
            assert path == "/health" or {"200", "401", "422", "429", "503"} <= answers.keys()
            assert all(
                PROBLEM in answers[status]["content"]
                for status in answers
                if status[0] in "45" and path != "/health"
            )
        deprecated = {path for path, methods in document["paths"].items() if methods["get"].get("deprecated")}
        assert deprecated == {"/orders/{order_id}/story"}
        assert "HTTPValidationError" not in json.dumps(document)


async def test_the_path_of_the_release_before_answers_the_same(service: Open) -> None:
    async with service() as s:
        order_id = s.first()
        details = await s.get(f"/orders/{order_id}/explain")
        assert details.json()["items"]
        assert (await s.get(f"/orders/{order_id}/story")).content == details.content


def test_the_service_as_a_process(filled: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("postgres", "postgres_replica", "redis"):
        monkeypatch.setenv(f"ORDERS_{name.upper()}", getattr(filled, name).get_secret_value())
    monkeypatch.delenv("ORDERS_API_KEYS", raising=False)
    refused = orders("api", "--host", "0.0.0.0")
    assert (refused.returncode, refused.stdout, refused.stderr.count("\n")) == (2, "", 1), refused.stderr
    assert "ORDERS_API_KEYS" in refused.stderr
    port = ports.choose(set())
    process = Forked((*ORDERS, "api", "--port", str(port)), tmp_path / "log")
    try:

        def ready() -> bool:
            assert process.poll() is None, (tmp_path / "log").read_text()
            try:
                return bool(httpx.get(f"http://127.0.0.1:{port}/health").json()["status"] == "ok")
            except httpx.TransportError:
                return False

        until(ready, "it serves")
        taken = orders("api", "--port", str(port))
        assert (taken.returncode, taken.stderr.count("\n")) == (2, 1), taken.stderr
        assert "--port" in taken.stderr
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0, (tmp_path / "log").read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
