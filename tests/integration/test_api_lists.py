"""GET /orders on real servers: pages that are whole, filters, what each key sees, cursors, and how Postgres
finds the rows.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, get_args
from uuid import UUID, uuid5

import asyncpg
import httpx
import pytest
from sqlalchemy.dialects.postgresql import asyncpg as dialect

from contracts.statuses import OrderStatusText
from domain.shapes import ItemRow, OrderRow
from operations.postgres import regions
from queries import statements
from queries.keyset import Position
from queries.lists import Lists
from settings import Settings
from sinks.migrate import upgrade
from sinks.postgres import PostgresSink
from sinks.rows import RowBatch
from sinks.schema import PARTITION_COLUMNS, PartitionBy
from tests.contract.places import drop_database, new_database, suborder_row
from tests.integration.api_world import new_key, served
from tests.servers import as_admin
from tests.stackfixture import Servers

MANY = 3_000
STATUSES: tuple[OrderStatusText, ...] = get_args(OrderStatusText)
REGIONS = ("SP", "RJ", "MG")
FIRST = datetime(2026, 1, 1, tzinfo=UTC)
_NAMES = UUID(int=0)


def named(what: str, n: int) -> UUID:
    return uuid5(_NAMES, f"{what} {n}")


class Placed(NamedTuple):
    """An order as the test made it."""

    id: UUID
    user: UUID
    sellers: tuple[UUID, ...]
    status: OrderStatusText
    region: str
    time: datetime
    cart: UUID | None


def placed(n: int) -> Placed:
    """Several have the same time; a user has a fiftieth of them, a seller a twentieth or two."""
    sellers = tuple(dict.fromkeys((named("seller", n % 20), named("seller", n * 7 % 20))))
    status, region = STATUSES[n // 7 % 5], REGIONS[n % 3]
    time = FIRST + timedelta(minutes=n // 3)
    cart = named("cart", n // 10) if n % 5 == 0 else None  # two orders each
    return Placed(named("order", n), named("user", n % 50), sellers, status, region, time, cart)


ORDERS = sorted((placed(n) for n in range(MANY)), key=lambda each: (each.time, each.id), reverse=True)


def cart_of(each: Placed) -> tuple[str | None, str | None]:
    return (None, None) if each.cart is None else (str(each.cart), each.time.isoformat())


def rows(some: list[Placed]) -> RowBatch:
    batch = RowBatch()
    for each in some:
        whose = str(each.id), str(each.user), each.region
        at = each.time.isoformat()
        batch.orders.append(
            OrderRow(*whose, each.status, "EUR", "20.00", "0.00", "0.00", *cart_of(each), at, at, 3)
        )
        for seller in each.sellers:
            part = str(uuid5(each.id, f"suborder {seller}"))
            batch.suborders.append(
                suborder_row(part, *whose, at, at, 3, seller_id=str(seller), order_status=each.status)
            )
            for line in ("a", "b"):
                item = str(uuid5(each.id, f"{line} {seller}"))
                batch.items.append(
                    ItemRow(
                        item,
                        *whose,
                        str(seller),
                        str(seller),
                        None,
                        "S",
                        1,
                        "10.00",
                        "0.00",
                        "0.00",
                        "0.00",
                        at,
                        at,
                        1,
                    )
                )
    return batch


class Service(NamedTuple):
    """The API over the orders, by user's hash or by region."""

    client: httpx.AsyncClient
    settings: Settings
    store: Path

    def key(self, *scopes: str) -> str:
        return new_key(self.store, *scopes)

    async def get(self, key: str, code: int = 200, /, **query: Any) -> Any:
        answer = await self.client.get("/orders", params=query, headers={"Authorization": f"Bearer {key}"})
        assert answer.status_code == code, answer.text[:500]
        return answer.json()

    async def all(self, key: str, /, **query: Any) -> list[Any]:
        """The orders of all pages."""
        shown: list[Any] = []
        query = {"limit": 200} | query
        while True:
            page = await self.get(key, **query)
            shown += page["orders"]
            if page["next"] is None:
                return shown
            query |= {"cursor": page["next"]}


@pytest.fixture(scope="module", params=PARTITION_COLUMNS)
def filled(stack: Servers, request: pytest.FixtureRequest) -> Iterator[Settings]:
    by: PartitionBy = request.param

    async def fill() -> Settings:
        settings = await new_database(stack, postgres_partitions=4)
        await upgrade(settings, by)
        if by == "region":
            await regions.add(settings, REGIONS[:2])
        sink = PostgresSink(settings)
        await sink.start()
        for n in range(0, MANY, 500):
            await sink.write(rows(ORDERS[n : n + 500]))
        await sink.close()
        connection = await asyncpg.connect(as_admin(settings.postgres.get_secret_value()))
        await connection.execute("ANALYZE")
        await connection.close()
        return settings

    settings = asyncio.run(fill())
    yield settings
    asyncio.run(drop_database(stack, settings))


@pytest.fixture
async def service(filled: Settings, tmp_path: Path) -> AsyncIterator[Service]:
    async with opened(filled, tmp_path) as opened_:
        yield opened_


@asynccontextmanager
async def opened(filled: Settings, folder: Path) -> AsyncIterator[Service]:
    store = folder / "keys"
    async with served(filled, store) as client:
        yield Service(client, filled, store)


def ids(orders: list[Any]) -> list[str]:
    return [each["order_id"] for each in orders]


def expected(**filters: Any) -> list[str]:
    """Ids of the orders that match, newest first."""
    return [
        str(each.id)
        for each in ORDERS
        if filters.get("user") in (None, each.user)
        and (filters.get("seller") is None or filters["seller"] in each.sellers)
        and filters.get("status") in (None, each.status)
        and filters.get("region") in (None, each.region)
        and filters.get("since", FIRST) <= each.time < filters.get("until", datetime.max.replace(tzinfo=UTC))
    ]


FILTERS: dict[str, Any] = {
    "user": named("user", 7),
    "seller": named("seller", 7),
    "status": "shipped",
    "region": "SP",
    "since": FIRST + timedelta(hours=2),
    "until": FIRST + timedelta(hours=14),
}


async def test_every_combination_of_filters(service: Service) -> None:
    everybody = service.key("all")
    matched = 0
    for given in product((False, True), repeat=len(FILTERS)):
        filters = {name: value for (name, value), there in zip(FILTERS.items(), given, strict=True) if there}
        query = {
            name: value.isoformat() if isinstance(value, datetime) else str(value)
            for name, value in filters.items()
        }
        wanted = expected(**filters)
        assert ids(await service.all(everybody, **query)) == wanted, filters
        matched += len(wanted) > 0
    assert matched > 55


async def test_pages_are_whole_where_many_have_the_same_time(service: Service) -> None:
    everybody = service.key("all")
    for filters in ({"user": named("user", 7)}, {"seller": named("seller", 7)}):
        query = {name: str(value) for name, value in filters.items()}
        assert ids(await service.all(everybody, limit=7, **query)) == expected(**filters)


# -- what a key sees -----------------------------------------------------------------------------------------


async def test_a_users_key_sees_its_own(service: Service) -> None:
    own, other, seller = named("user", 7), named("user", 8), named("seller", 7)
    key = service.key(f"user:{own}")
    assert ids(await service.all(key)) == expected(user=own)
    assert ids(await service.all(key, user=str(own), region="SP")) == expected(user=own, region="SP")
    assert ids(await service.all(key, seller=str(seller))) == expected(user=own, seller=seller)
    assert await service.get(key, user=str(other)) == {"orders": [], "next": None}
    assert (await service.all(key))[0]["user_id"] == str(own)


async def test_a_sellers_key_sees_its_orders_without_their_users(service: Service) -> None:
    own, other = named("seller", 7), named("seller", 8)
    key = service.key(f"seller:{own}")
    shown = await service.all(key, limit=50)
    assert ids(shown) == expected(seller=own)
    assert set(shown[0]) == {"order_id", "status", "currency", "created_at", "updated_at", "version"}
    assert ids(await service.all(key, status="shipped")) == expected(seller=own, status="shipped")
    # What it doesn't see it can't ask for either.
    buyer = next(each for each in ORDERS if own in each.sellers)
    for query in ({"user": str(buyer.user)}, {"region": buyer.region}, {"seller": str(other)}):
        assert await service.get(key, **query) == {"orders": [], "next": None}


async def test_the_orders_of_a_cart(service: Service) -> None:
    cart = named("cart", 7)
    of_cart = [each for each in ORDERS if each.cart == cart]
    first, second = of_cart
    assert first.user != second.user
    everybody = service.key("all")
    assert ids(await service.all(everybody, cart=str(cart), limit=1)) == [str(each.id) for each in of_cart]
    assert ids(await service.all(everybody, cart=str(cart), status=first.status)) == [
        str(each.id) for each in of_cart if each.status == first.status
    ]
    assert ids(await service.all(service.key(f"user:{second.user}"), cart=str(cart))) == [str(second.id)]
    # A cart is the customer's: to a seller it's as if it weren't there.
    seller = service.key(f"seller:{first.sellers[0]}")
    assert await service.get(seller, cart=str(cart)) == {"orders": [], "next": None}
    assert await service.get(everybody, cart=str(named("cart", MANY))) == {"orders": [], "next": None}


async def test_scopes_add_up(service: Service) -> None:
    users, sellers = [named("user", n) for n in (7, 8)], [named("seller", n) for n in (3, 4)]
    key = service.key(*(f"user:{each}" for each in users), *(f"seller:{each}" for each in sellers))
    shown = await service.all(key, limit=30)
    wanted = [each for each in ORDERS if each.user in users or set(each.sellers) & {*sellers}]
    assert ids(shown) == [str(each.id) for each in wanted]
    assert ["user_id" in each for each in shown] == [each.user in users for each in wanted]
    assert ids(await service.all(key, region="SP")) == [
        str(each.id) for each in wanted if each.user in users and each.region == "SP"
    ]


async def test_whoever_sees_no_order_gets_an_empty_list(service: Service) -> None:
    for scope in ("tracking", "write"):
        assert await service.get(service.key(scope)) == {"orders": [], "next": None}


# -- what is refused -----------------------------------------------------------------------------------------


async def test_a_cursor_belongs_to_its_filters(service: Service) -> None:
    everybody, user = service.key("all"), str(named("user", 7))
    cursor = (await service.get(everybody, user=user, limit=3))["next"]
    refused = await service.get(everybody, 422, user=user, status="shipped", limit=3, cursor=cursor)
    assert refused["errors"][0]["where"] == "query.cursor"
    assert "other filters" in refused["detail"]
    assert len((await service.get(everybody, user=user, limit=50, cursor=cursor))["orders"]) == 50


async def test_a_cursor_belongs_to_what_its_key_sees(service: Service) -> None:
    own = named("seller", 7)
    everybody, seller, twin = (service.key(scope) for scope in ("all", f"seller:{own}", f"seller:{own}"))
    cursors = {key: (await service.get(key, limit=3))["next"] for key in (everybody, seller)}
    for key, other in ((everybody, seller), (seller, everybody)):
        refused = await service.get(key, 422, limit=3, cursor=cursors[other])
        assert refused["errors"][0]["where"] == "query.cursor"
    # Another key for the same goes on, and where a filter leaves both the same list, so does any.
    assert (
        ids((await service.get(twin, limit=50, cursor=cursors[seller]))["orders"])
        == expected(seller=own)[3:53]
    )
    cursor = (await service.get(everybody, seller=str(own), limit=3))["next"]
    assert (
        ids((await service.get(seller, seller=str(own), limit=50, cursor=cursor))["orders"])
        == expected(seller=own)[3:53]
    )


@pytest.mark.parametrize("forge", [
    lambda cursor: cursor[:-4], lambda cursor: cursor + "AAAA", lambda cursor: "!" + cursor[1:],
    lambda _: Position(FIRST, UUID(int=7)).cursor(), lambda _: Position(FIRST, UUID(int=7)).cursor(b"\0" * 8),
])  # fmt: skip
async def test_a_forged_cursor(service: Service, forge: Any) -> None:
    everybody, user = service.key("all"), str(named("user", 7))
    cursor = (await service.get(everybody, user=user, limit=3))["next"]
    refused = await service.get(everybody, 422, user=user, cursor=forge(cursor))
    assert (refused["type"], refused["errors"][0]["where"]) == ("urn:orders:invalid-request", "query.cursor")


@pytest.mark.parametrize(
    "query", [{"attention": "rich"}, {"status": "lost"}, {"user": "me"}, {"since": "today"}]
)
async def test_what_can_not_be_asked(service: Service, query: dict[str, str]) -> None:
    refused = await service.get(service.key("all"), 422, **query)
    assert refused["errors"][0]["where"] == f"query.{next(iter(query))}"


# -- how Postgres finds the rows -----------------------------------------------------------------------------


async def plan(settings: Settings, lists: Lists, **filters: Any) -> list[dict[str, Any]]:
    """The nodes of the plan that a reader's connection uses for the second page."""
    known = {"status": None, "region": None, "since": None, "until": None} | filters
    query = statements.orders(
        lists, after=Position(FIRST + timedelta(hours=15), UUID(int=7)), limit=21, **known
    )
    compiled = query.statement.compile(dialect=dialect.dialect())  # type: ignore[attr-defined,no-untyped-call]
    values = [query.values.get(name, compiled.params[name]) for name in compiled.positiontup]
    connection = await asyncpg.connect(as_admin(settings.postgres.get_secret_value()))
    try:
        await connection.execute(f"SET plan_cache_mode = {settings.postgres_plan_cache_mode}")
        await connection.execute("SET jit = off")
        prepared = await connection.prepare(str(compiled))
        explained = await prepared.explain(*values, analyze=True)
    finally:
        await connection.close()
    (top,) = json.loads(explained) if isinstance(explained, str) else explained

    def nodes(node: dict[str, Any]) -> list[dict[str, Any]]:
        return [node, *(below for child in node.get("Plans", ()) for below in nodes(child))]

    return nodes(top["Plan"])


USER, SELLER = named("user", 7), named("seller", 7)


@pytest.mark.parametrize("more", [
    {}, {"status": "shipped"}, {"region": "SP"}, {"since": FIRST, "until": FIRST + timedelta(hours=14)},
])  # fmt: skip
@pytest.mark.parametrize(
    "lists",
    [
        Lists((USER,)),
        Lists((USER, named("user", 8))),
        Lists((USER,), (), SELLER),
        Lists((), (SELLER,)),
        Lists((), (SELLER, named("seller", 8))),
        Lists((USER,), (SELLER,)),
    ],
    ids=["user", "users", "user and seller", "seller", "sellers", "scopes of both"],
)
async def test_no_partition_is_read_through_where_an_index_is_there(
    filled: Settings, lists: Lists, more: dict[str, Any]
) -> None:
    nodes = await plan(filled, lists, **more)
    read = [node for node in nodes if "Relation Name" in node and node["Actual Loops"]]
    assert read
    assert [node["Relation Name"] for node in read if node["Node Type"] == "Seq Scan"] == []


def index_rows(nodes: list[dict[str, Any]], table: str) -> Any:
    """The rows of a table that a plan looked at through an index."""
    return sum(
        node["Actual Rows"] * node["Actual Loops"]
        for node in nodes
        if node.get("Relation Name", "").startswith(f"{table}_") and "Index" in node["Node Type"]
    )


async def test_a_page_reads_little_of_what_a_seller_has(filled: Settings) -> None:
    """A twentieth of all suborders is the seller's: a page of 21 orders looks at few of them."""
    assert 0 < index_rows(await plan(filled, Lists((), (SELLER,))), "orders_suborder") < 150


async def test_a_page_of_all_orders_reads_little(filled: Settings) -> None:
    nodes = await plan(filled, Lists())
    assert "Seq Scan" not in {node["Node Type"] for node in nodes}
    assert 0 < index_rows(nodes, "orders_order") < 150


async def test_a_cart_is_found_by_its_index(filled: Settings) -> None:
    nodes = await plan(filled, Lists(), cart=named("cart", 7))
    used = {node["Index Name"].split("_cart_id_idx")[0] for node in nodes if "Index Name" in node}
    assert used
    assert all("cart" in node["Index Name"] for node in nodes if "Index Name" in node), used


async def test_since_bounds_what_is_read_for_a_region_that_no_order_has(filled: Settings) -> None:
    since = FIRST + timedelta(hours=14)
    nodes = await plan(filled, Lists(), region="XX", since=since)
    looked_at = sum(
        (node["Actual Rows"] + node.get("Rows Removed by Filter", 0)) * node["Actual Loops"]
        for node in nodes
        if "Relation Name" in node
    )
    there = [each for each in ORDERS if since <= each.time <= FIRST + timedelta(hours=15)]
    assert looked_at <= len(there)
