"""What waits for a person and what has an id, by rows of a real Postgres."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid5

import asyncpg
import pytest
from msgspec.structs import replace

from contracts import ids
from domain.shapes import OrderRow, ReturnRow
from queries import worklists
from queries.reader import Reader
from queries.statements import Query
from queries.worklists import Place
from settings import Settings
from sinks.migrate import upgrade
from sinks.postgres import PostgresSink
from sinks.rows import RowBatch
from sinks.schema import DIALECT, PARTITION_COLUMNS, PartitionBy
from tests.contract.places import drop_database, new_database, payment_row, refund_row, suborder_row
from tests.stackfixture import Servers

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
STATUSES = ("completed", "failed", "requested")
MANY = 60


def named(what: str, n: int) -> UUID:
    return uuid5(UUID(int=7), f"{what} {n}")


def order_of(n: int) -> UUID:
    """Of a checkout, as the pipeline names it."""
    return UUID(bytes=ids.uuid5(named("checkout", n).bytes, "order"))


def moment(n: int) -> datetime:
    return FIRST + timedelta(hours=n // 3)  # several at the same time


def rows() -> RowBatch:
    batch = RowBatch()
    for n in range(MANY):
        order, user, at = str(order_of(n)), str(named("user", n % 7)), moment(n).isoformat()
        whose = order, user, ("eu", "us")[n % 2]
        ends = at, at, 3
        batch.orders.append(
            OrderRow(*whose, "shipped", "JPY", "5", "0", "0", str(named("cart", n)), at, *ends)
        )
        late = suborder_row(str(named("part", n)), *whose, *ends, seller_id=str(named("seller", n % 5)))
        late.currency = "JPY"
        if n % 4:
            late = replace(late, late_since=at, ship_by=at)
        batch.suborders.append(late)
        refund = refund_row(str(named("refund", n)), *whose, *ends)
        batch.refunds.append(replace(refund, status=STATUSES[n % 3], reason="=no"))
        batch.payments.append(payment_row(str(named("payment", n)), *whose, *ends))
        # The same return twice at once: ids of returns are only unique in their order.
        status = "requested" if n % 5 < 3 else "processed"
        back = (str(named("return", n // 3)), *whose, str(named("item", n)), 1, "why", status, None, *ends)
        batch.returns.append(ReturnRow(*back))  # type: ignore[arg-type]
    return batch


@pytest.fixture(scope="module", params=PARTITION_COLUMNS)
def filled(stack: Servers, request: pytest.FixtureRequest) -> Iterator[Settings]:
    by: PartitionBy = request.param

    async def fill() -> Settings:
        settings = await new_database(stack, postgres_partitions=4)
        await upgrade(settings, by)
        sink = PostgresSink(settings)
        await sink.start()
        await sink.write(rows())
        await sink.close()
        return settings

    settings = asyncio.run(fill())
    yield settings
    asyncio.run(drop_database(stack, settings))


@pytest.fixture
async def reader(filled: Settings) -> AsyncIterator[Reader]:
    reader = Reader(filled)
    yield reader
    await reader.close()


async def whole(reader: Reader, query: Any, row: Any, filters: dict[str, Any], limit: int) -> list[Any]:
    """All pages of a list, one behind the other."""
    shown: list[Any] = []
    after: Place | None = None
    while True:
        page = worklists.page(
            [row(each) for each in await reader.waiting(query(filters, after, limit + 1))], limit
        )
        shown += page.rows
        if page.next is None:
            return shown
        after = Place.parse(page.next)


async def test_pages_of_what_is_late_are_whole(reader: Reader) -> None:
    expected = sorted((moment(n), order_of(n), named("part", n)) for n in range(MANY) if n % 4)
    for limit in (2, 7, 100):
        late = await whole(reader, worklists.late_suborders, worklists.as_late, {}, limit)
        assert [each[:3] for each in late] == expected
    assert {(late[0].amount, late[0].currency)} == {("5", "JPY")}
    assert all(each.ship_by == each.since for each in late)
    filters = {"seller_id": named("seller", 2), "region": "eu", "before": FIRST + timedelta(hours=9)}
    some = await whole(reader, worklists.late_suborders, worklists.as_late, filters, 3)
    chosen = (n for n in range(27) if n % 4 and n % 5 == 2 and n % 2 == 0)
    assert sorted(each.id for each in some) == sorted(named("part", n) for n in chosen)


async def test_refunds_that_are_not_paid_and_returns_that_wait(reader: Reader) -> None:
    refunds = await whole(reader, worklists.waiting_refunds, worklists.as_refund, {}, 7)
    assert {each.id for each in refunds} == {named("refund", n) for n in range(MANY) if n % 3}
    failed = await whole(reader, worklists.waiting_refunds, worklists.as_refund, {"status": "failed"}, 7)
    assert {each.id for each in failed} == {named("refund", n) for n in range(MANY) if n % 3 == 1}
    of_stock = {"cause": "stock"}
    assert await whole(reader, worklists.waiting_refunds, worklists.as_refund, of_stock, 7) == []
    returns = await whole(reader, worklists.waiting_returns, worklists.as_return, {}, 2)
    waiting = sorted((moment(n), order_of(n), named("return", n // 3)) for n in range(MANY) if n % 5 < 3)
    assert [each[:3] for each in returns] == waiting
    assert returns[0].reason == "why"


def nodes(plan: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(kind, index) of each node of a plan."""
    yield plan["Node Type"], plan.get("Index Name", "")
    for child in plan.get("Plans", ()):
        yield from nodes(child)


@pytest.mark.parametrize(
    ("query", "index"),
    [
        (worklists.late_suborders({}, None, 9), "late_since_order_id_id"),
        (
            worklists.late_suborders(
                {"before": FIRST + timedelta(days=365)},
                Place(FIRST, order_of(1), order_of(1)),
                9,
            ),
            "late_since_order_id_id",
        ),
        (worklists.waiting_refunds({}, None, 9), "requested_at_order_id_id"),
        (worklists.waiting_refunds({"status": "failed"}, None, 9), "requested_at_order_id_id"),
        (worklists.waiting_returns({}, None, 9), "created_at_order_id_id"),
    ],
)
async def test_a_page_is_read_in_the_order_of_an_index(filled: Settings, query: Query, index: str) -> None:
    statement = query.statement.params(query.values)  # type: ignore[attr-defined]
    text = str(statement.compile(dialect=DIALECT, compile_kwargs={"literal_binds": True}))
    connection = await asyncpg.connect(filled.postgres.get_secret_value())
    try:
        # Of a table of a few rows any other plan is cheaper.
        await connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off")
        plan = json.loads(await connection.fetchval(f"EXPLAIN (FORMAT JSON) {text}"))[0]["Plan"]
    finally:
        await connection.close()
    read = {name for kind, name in nodes(plan) if kind.startswith("Index")}
    assert read
    assert all(index in name for name in read), read
    assert "Sort" not in {kind for kind, _ in nodes(plan)}


@pytest.mark.parametrize("cursor", ["", "x", "1.2", "1.2.3", f"{1 << 80}.{'0' * 32}.{'0' * 32}"])
def test_a_cursor_is_one_of_ours(cursor: str) -> None:
    with pytest.raises(ValueError, match="cursor"):
        Place.parse(cursor)


async def test_what_belongs_to_an_order_leads_to_it(reader: Reader) -> None:
    for kind, id_ in (
        ("order", order_of(8)),
        ("checkout", named("checkout", 8)),
        ("cart", named("cart", 8)),
        ("payment", named("payment", 8)),
        ("refund", named("refund", 8)),
    ):
        assert await reader.found(id_) == [(kind, order_of(8))]
    shared = await reader.found(named("return", 2))
    assert sorted(shared) == sorted(("return", order_of(n)) for n in (6, 7, 8))
    assert await reader.found(named("nothing", 8)) == []
