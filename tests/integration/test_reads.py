"""What readers of the tables get: views that add up, and queries that read one partition of each table."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio
import sqlalchemy as sa

from contracts.statuses import ParcelStatusText, ReturnStatusText
from domain.shapes import ItemRow, OrderRow, ReturnRow, ShipmentRow, SuborderRow
from operations.postgres import ddl, regions
from queries.databases import Database
from queries.statements import Query
from settings import Settings
from sinks import migrate
from sinks.postgres import PostgresSink
from sinks.rows import RowBatch
from sinks.schema import DIALECT, PARTITION_COLUMNS, TABLES, PartitionBy, build_metadata
from tests.contract.places import (
    at,
    drop_database,
    ident,
    new_database,
    payment_row,
    refund_row,
    suborder_row,
)
from tests.stackfixture import Servers

pytestmark = pytest.mark.asyncio(loop_scope="module")

ANNA, BORIS = ident("anna"), ident("boris")
USER = ident("user 1")


def suborders(number: int, order_id: str, user: str, region: str) -> list[SuborderRow]:
    """Of an order of version 9."""
    more: dict[str, dict[str, Any]] = {
        ANNA: {"items": 2, "units": 3, "units_returned": 1, "items_amount": "40.00"},
        BORIS: {"status": "closed", "closed_because": "stock_rejected"},
    }
    ends = (at(number), at(number + 2), 9)
    return [
        suborder_row(
            ident(f"suborder {seller} {number}"), order_id, user, region, *ends, seller_id=seller, **what
        )
        for seller, what in more.items()
    ]


def order(number: int, region: str = "SP") -> RowBatch:
    """An order of two sellers: two lines of Anna's and two parcels of them, a line of Boris's; a
    return of each, hers processed.
    """
    id, user = ident(f"order {number}"), ident(f"user {number % 4}")
    whose = (id, user, region)
    at_first = (at(number), at(number), 1)
    later = (at(number + 1), at(number + 2), 2)

    def line(name: str, seller: str, quantity: int, price: str, shipping: str) -> ItemRow:
        return ItemRow(
            ident(f"{name} {number}"),
            *whose,
            ident("product"),
            seller,
            None,
            "S",
            quantity,
            price,
            shipping,
            "0",
            "0",
            *at_first,
        )

    def parcel(name: str, status: ParcelStatusText) -> ShipmentRow:
        return ShipmentRow(
            ident(f"{name} {number}"), *whose, ANNA, None, "DHL", f"T-{number}", status, None, *later
        )

    def back(name: str, item: str, status: ReturnStatusText) -> ReturnRow:
        return ReturnRow(
            ident(f"{name} {number}"), *whose, ident(f"{item} {number}"), 1, "too small", status, None, *later
        )

    return RowBatch(
        [
            OrderRow(
                id,
                user,
                region,
                "shipped",
                "BRL",
                "58.00",
                "2.00",
                "0",
                None,
                None,
                at(number),
                at(number + 2),
                9,
            )
        ],
        [
            line("a", ANNA, 2, "10.00", "5.00"),
            line("b", ANNA, 1, "20.00", "0"),
            line("c", BORIS, 1, "15.00", "0"),
        ],
        [parcel("p", "in_transit"), parcel("q", "delivered")],
        [back("r", "a", "processed"), back("s", "c", "requested")],
        suborders(number, *whose),
        [payment_row(ident(f"payment {number}"), *whose, *later)],
        [refund_row(ident(f"refund {number}"), *whose, *later)],
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=PARTITION_COLUMNS)
async def read(request: pytest.FixtureRequest, stack: Servers) -> AsyncIterator[tuple[Settings, PartitionBy]]:
    """A database with orders of four users in three regions, two of which have partitions."""
    settings = await new_database(stack, postgres_partitions=4)
    await migrate.upgrade(settings, request.param)
    if request.param == "region":
        await regions.add(settings, ["SP", "RJ"])
    sink = PostgresSink(settings)
    await sink.start()
    for number in range(12):
        await sink.write(order(number, ("SP", "RJ", "MG")[number % 3]))
    await sink.close()
    yield settings, request.param
    await drop_database(stack, settings)


async def fetch(settings: Settings, query: str, *arguments: object) -> list[dict[str, Any]]:
    async with ddl.connect(settings) as connection:
        return [dict(row) for row in await connection.fetch(query, *arguments)]


async def test_a_sellers_suborders(read: tuple[Settings, PartitionBy]) -> None:
    """With every column that the view of this name had."""
    settings, _ = read
    query = (
        "SELECT order_id, seller_id, user_id, region, order_status, currency, items, units, items_amount,"
        " shipping_amount, parcels, parcels_in_transit, parcels_delivered, parcels_returned, returns,"
        " units_returned, created_at, updated_at FROM orders_suborder WHERE seller_id = $1"
        " ORDER BY created_at DESC LIMIT 2"
    )
    newest, older = await fetch(settings, query, ANNA)
    assert (str(newest["order_id"]), str(older["order_id"])) == (ident("order 11"), ident("order 10"))
    assert (newest["region"], newest["items"], newest["units"], newest["units_returned"]) == ("MG", 2, 3, 1)
    assert (newest["items_amount"], newest["updated_at"]) == (
        Decimal("40"),
        datetime.fromisoformat(at(13)),
    )
    reasons = "SELECT DISTINCT status, closed_because FROM orders_suborder WHERE seller_id = $1"
    assert await fetch(settings, reasons, BORIS) == [{"status": "closed", "closed_because": "stock_rejected"}]
    assert await fetch(settings, "SELECT count(*) FROM orders_suborder") == [{"count": 24}]


async def test_one_row_an_order(read: tuple[Settings, PartitionBy]) -> None:
    settings, _ = read
    rows = await fetch(settings, "SELECT * FROM orders_summary WHERE user_id = $1 ORDER BY created_at", USER)
    assert [str(row["order_id"]) for row in rows] == [ident(f"order {number}") for number in (1, 5, 9)]
    assert {name: value for name, value in rows[0].items() if not name.endswith("_id")} == {
        "region": "RJ", "status": "shipped", "currency": "BRL",
        "total_amount": Decimal("58"), "discount_amount": Decimal("2"),
        "sellers": 2, "items": 3, "units": 4,
        "parcels": 2, "parcels_in_transit": 1, "parcels_delivered": 1, "parcels_returned": 0,
        "returns": 2, "units_returned": 1,
        "created_at": datetime.fromisoformat(at(1)), "updated_at": datetime.fromisoformat(at(3)),
        "version": 9,
    }  # fmt: skip
    assert await fetch(settings, "SELECT count(*) FROM orders_summary") == [{"count": 12}]


@pytest.mark.parametrize(
    ("asked", "expected"), [({}, "force_generic_plan"), ({"postgres_plan_cache_mode": "auto"}, "auto")]
)
async def test_connections_plan_as_the_settings_say(
    read: tuple[Settings, PartitionBy], asked: dict[str, str], expected: str
) -> None:
    settings = read[0].model_copy(update=asked)
    sink, database = (
        PostgresSink(settings),
        Database(settings, settings.postgres.get_secret_value(), "primary"),
    )
    await sink.start()
    assert sink._pool is not None
    assert await sink._pool.fetchval("SHOW plan_cache_mode") == expected
    assert (await database.rows(Query(sa.text("SHOW plan_cache_mode"), {})))[0][0] == expected
    await sink.close()
    await database.close()


# -- pruning -------------------------------------------------------------------------------------------------


def scanned(plan: Any) -> set[str]:
    """The tables that a plan reads; of one that was executed (ANALYZE), those that it did read."""
    below = [name for child in plan.get("Plans", ()) for name in scanned(child)]
    here = [plan["Relation Name"]] if "Relation Name" in plan and plan.get("Actual Loops", 1) else []
    return {*below, *here}


async def explain(settings: Settings, query: sa.Select[Any] | str, analyze: bool = False) -> set[str]:
    text = query
    if not isinstance(query, str):
        text = str(query.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True}))
    ((row),) = await fetch(settings, f"EXPLAIN (FORMAT JSON, ANALYZE {analyze}) {text}")
    return scanned(json.loads(row["QUERY PLAN"])[0]["Plan"])


def partitions(tables: set[str]) -> dict[str, int]:
    """Table -> how many of its partitions are among these."""
    whose = [max((table for table in TABLES if name.startswith(f"{table}_")), key=len) for name in tables]
    return {table: whose.count(table) for table in TABLES if table in whose}


def history(by: PartitionBy, **known: object) -> sa.Select[Any]:
    """A page of a user's orders: by status, within times, after the last row of the page before."""
    table = build_metadata(by).tables["orders_order"]
    last = (datetime(2026, 3, 1, 11, tzinfo=UTC), ident("order 99"))
    return (
        sa.select(table)
        .where(*(table.c[name] == value for name, value in known.items()))
        .where(
            table.c.status.in_(["shipped", "delivered"]), table.c.created_at >= last[0] - timedelta(days=30)
        )
        .where(sa.tuple_(table.c.created_at, table.c.id) < sa.tuple_(*map(sa.literal, last)))
        .order_by(table.c.created_at.desc(), table.c.id.desc())
        .limit(20)
    )


def whole(by: PartitionBy, table: str, **known: object) -> sa.Select[Any]:
    """All rows of an order in a table."""
    declared = build_metadata(by).tables[table]
    return sa.select(declared).where(*(declared.c[name] == value for name, value in known.items()))


async def test_history_and_one_order_read_one_partition_of_each_table(
    read: tuple[Settings, PartitionBy],
) -> None:
    settings, by = read
    known = {"user_id": USER, "region": "RJ"}
    assert partitions(await explain(settings, history(by, **known))) == {"orders_order": 1}
    assert partitions(await explain(settings, history(by, **{by: known[by]}))) == {"orders_order": 1}
    for table in TABLES:
        key = "id" if table == "orders_order" else "order_id"
        assert partitions(await explain(settings, whole(by, table, **known, **{key: ident("order 1")}))) == {
            table: 1
        }
    # Without the column every partition is looked into: the test can tell.
    other = {name: value for name, value in known.items() if name != by}
    assert partitions(await explain(settings, history(by, **other))) == {
        "orders_order": 4 if by == "user_id" else 3
    }


async def test_summaries_read_one_partition_of_each_table(read: tuple[Settings, PartitionBy]) -> None:
    settings, by = read
    view, one = "orders_summary", dict.fromkeys(TABLES[:4], 1)
    known = {"user_id": f"user_id = '{USER}'", "region": "region = 'RJ'"}
    page = f"SELECT * FROM {view} WHERE {known[by]} ORDER BY created_at DESC LIMIT 20"
    assert partitions(await explain(settings, page, analyze=True)) == one
    single = (
        f"SELECT * FROM {view} WHERE {known['user_id']} AND {known['region']} AND order_id ="
        f" '{ident('order 1')}'"
    )
    assert partitions(await explain(settings, single, analyze=True)) == one
