"""orders_attention on real servers: the work list, GET /orders?attention=, orders attention, and what a
comparison of rows asks for.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid5

import httpx
import pytest

from cli.attention import attention_command
from domain.shapes import AttentionRow, OrderRow
from operations.postgres import compare, ddl
from queries.attention import attention_counts, open_attention
from queries.databases import Databases
from settings import Settings
from sinks.migrate import upgrade
from sinks.postgres import PostgresSink
from sinks.rows import RowBatch
from tests.integration.api_world import new_key, served

FIRST = datetime(2026, 1, 1, tzinfo=UTC)
KINDS = ("overpaid", "late_to_ship", "came_back")
COUNT = 30


def order_id(n: int) -> UUID:
    return uuid5(UUID(int=0), f"order {n}")


USER = str(UUID(int=7))


def written() -> RowBatch:
    """Of order n the kind n % 3 holds, the older the higher n is; of every second one another is cleared."""
    batch = RowBatch()
    for n in range(COUNT):
        placed, began = FIRST + timedelta(hours=n), (FIRST - timedelta(hours=n)).isoformat()
        whose, at = (str(order_id(n)), USER, "SP"), placed.isoformat()
        batch.orders.append(OrderRow(*whose, "pending", "EUR", "1", "0", "0", None, None, at, at, 2))
        batch.attention.append(AttentionRow(*whose, KINDS[n % 3], f"of {n}", began, None, at, at, 2))
        if n % 2:
            batch.attention.append(AttentionRow(*whose, "refund_failed", "seen", began, at, at, at, 2))
    return batch


@pytest.fixture
async def filled(settings: Settings) -> AsyncIterator[Settings]:
    await upgrade(settings)
    sink = PostgresSink(settings)
    await sink.start()
    try:
        await sink.write(written())
        yield settings
    finally:
        await sink.close()


@pytest.fixture
async def databases(filled: Settings) -> AsyncIterator[Databases]:
    databases = Databases(filled)
    try:
        yield databases
    finally:
        await databases.close()


async def test_what_is_open_in_pages_the_oldest_first(databases: Databases) -> None:
    assert await attention_counts(databases) == dict.fromkeys(sorted(KINDS), 10)
    for kind, expected in ((None, range(COUNT)), ("came_back", range(2, COUNT, 3))):
        ids, cursor = [], None
        while True:
            page = await open_attention(databases, 7, kind=kind, cursor=cursor)
            ids += [each.order_id for each in page.rows]
            cursor = page.next
            if cursor is None:
                break
        assert ids == [order_id(n) for n in reversed(expected)]
    lately = await open_attention(databases, 50, since=FIRST - timedelta(hours=3))
    assert [each.detail for each in lately.rows] == ["of 3", "of 2", "of 1", "of 0"]
    long_ago = await open_attention(databases, 2, before=FIRST - timedelta(hours=COUNT - 4))
    later = FIRST - timedelta(hours=COUNT - 4, minutes=-1)
    rest = await open_attention(databases, 50, before=later, cursor=long_ago.next)
    assert [each.detail for each in (*long_ago.rows, *rest.rows)] == ["of 29", "of 28", "of 27", "of 26"]
    first = await open_attention(databases, 7)
    for cursor in (first.next, "x", f"{first.next}x"):
        with pytest.raises(ValueError, match="cursor"):
            await open_attention(databases, 7, kind="overpaid", cursor=cursor)


async def test_orders_by_what_holds_over_http(filled: Settings, tmp_path: Path) -> None:
    store = tmp_path / "keys"
    async with served(filled, store) as client:
        headers = {"Authorization": f"Bearer {new_key(store, 'all')}"}
        listed = [each async for each in pages(client, headers)]
        assert listed == [str(order_id(n)) for n in reversed(range(0, COUNT, 3))]
        details = (await client.get(f"/orders/{order_id(1)}/explain", headers=headers)).json()
        assert [(each["kind"], each["cleared_at"] is None) for each in details["attention"]] == [
            ("late_to_ship", True),
            ("refund_failed", False),
        ]
        wrong = await client.get("/orders", headers=headers, params={"attention": "nothing"})
        assert wrong.status_code == 422


async def pages(client: httpx.AsyncClient, headers: dict[str, str]) -> AsyncIterator[str]:
    params = {"attention": "overpaid", "limit": "4"}
    while True:
        page = (await client.get("/orders", headers=headers, params=params)).json()
        for each in page["orders"]:
            yield each["order_id"]
        if page["next"] is None:
            return
        params["cursor"] = page["next"]


async def test_a_comparison_asks_for_what_holds_alone(filled: Settings) -> None:
    expected = written()
    expected.attention = [row for row in expected.attention if row.cleared_at is None][1:]
    ids = [row.id for row in expected.orders]
    async with ddl.connect(filled) as connection:
        differences = await compare.with_rows(connection, expected, ids)
    assert [(each.table, each.id, each.order_id) for each in differences] == [
        ("orders_attention", "overpaid", str(order_id(0)))
    ]


@pytest.fixture
def of_the_command(filled: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cli.attention.get_settings", lambda: filled)


async def test_the_command(of_the_command: None, capsys: pytest.CaptureFixture[str]) -> None:
    await asyncio.to_thread(attention_command, kind="overpaid", since=None, limit=3, wide=False, as_json=True)
    document = json.loads(capsys.readouterr().out)
    assert document["counts"] == dict.fromkeys(sorted(KINDS), 10)
    assert [each["detail"] for each in document["attention"]] == ["of 27", "of 24", "of 21"]
    assert document["more"]
    await asyncio.to_thread(attention_command, kind=None, since=None, limit=2, wide=False, as_json=False)
    printed = capsys.readouterr().out
    assert str(order_id(29)) in printed
    assert all(len(line) <= 80 for line in printed.splitlines())
