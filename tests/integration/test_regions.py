"""Partitions for regions: added under writers, nothing lost, nothing twice, and
queries read no other partition.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from msgspec import structs

from cli import main
from operations.postgres import ddl, regions
from settings import Settings, get_settings
from sinks import migrate
from sinks.migrate import SchemaMismatch
from sinks.postgres import PostgresSink
from sinks.rows import RowBatch
from sinks.schema import FILLFACTOR, TABLES
from streams.transport.delivery import Verdict, judge
from tests.contract.places import Order, drop_database, ident, new_database
from tests.stackfixture import Servers
from tests.waiting import eventually


@pytest_asyncio.fixture
async def by_region(stack: Servers) -> AsyncIterator[Settings]:
    """A database partitioned by region, without orders."""
    settings = await new_database(stack)
    await migrate.upgrade(settings, "region")
    yield settings
    await drop_database(stack, settings)


async def fetch(settings: Settings, query: str, *arguments: object) -> list[tuple[Any, ...]]:
    async with ddl.connect(settings) as connection:
        return [tuple(row) for row in await connection.fetch(query, *arguments)]


def batch(orders: list[tuple[Order, str]]) -> RowBatch:
    """Rows of orders in regions."""
    rows = RowBatch()
    for order, region in orders:
        one = RowBatch()
        order.rows(one)
        rows.orders += [structs.replace(row, region=region) for row in one.orders]
        rows.items += [structs.replace(row, region=region) for row in one.items]
        rows.shipments += [structs.replace(row, region=region) for row in one.shipments]
        rows.returns += [structs.replace(row, region=region) for row in one.returns]
        rows.suborders += [structs.replace(row, region=region) for row in one.suborders]
        rows.payments += [structs.replace(row, region=region) for row in one.payments]
        rows.refunds += [structs.replace(row, region=region) for row in one.refunds]
        rows.attention += [structs.replace(row, region=region) for row in one.attention]
    return rows


def returned(number: int, version: int = 4) -> Order:
    """An order with a row in every table."""
    return Order(
        f"o{number}", version, "returned", created=10, updated=50, parcels=((f"p{number}", "delivered"),)
    )


async def write(settings: Settings, *orders: tuple[Order, str]) -> None:
    sink = PostgresSink(settings)
    await sink.start()
    try:
        await sink.write(batch(list(orders)))
    finally:
        await sink.close()


async def places(settings: Settings) -> dict[str, dict[str, int]]:
    """Table -> partition -> rows, where there are any."""
    return {
        table: dict(
            await fetch(
                settings,
                f"SELECT relname, count(*) FROM {table} t JOIN pg_class c ON c.oid = t.tableoid GROUP BY 1",
            )
        )
        for table in TABLES
    }


async def test_a_region_gets_partitions_with_the_rows_that_it_has(by_region: Settings) -> None:
    await write(by_region, (returned(1), "SP"), (returned(2), "RJ"), (returned(3), "SP"))
    assert await regions.listed(by_region) == {"SP": 2, "RJ": 1}
    (added,) = await regions.add(by_region, ["SP"])
    assert (added.region, added.created, added.moved) == ("SP", True, dict.fromkeys(TABLES, 2))
    assert await places(by_region) == {table: {f"{table}_r_sp": 2, f"{table}_default": 1} for table in TABLES}
    assert await regions.listed(by_region) == {"SP": None, "RJ": 1}
    # What comes later goes there too: an update of a row that was moved, and a new one.
    await write(by_region, (returned(1, version=5), "SP"), (returned(4), "SP"), (returned(5), ""))
    assert await places(by_region) == {table: {f"{table}_r_sp": 3, f"{table}_default": 2} for table in TABLES}
    assert await fetch(by_region, "SELECT version FROM orders_order WHERE id = $1", ident("o1")) == [(5,)]


async def test_again_is_harmless_and_names_are_taken_as_they_are(by_region: Settings) -> None:
    names = ["SP", "sp", "São Paulo", "", "it's", 'a"b', "x" * 200, "x" * 201, "a\\b", "a, b"]
    assert [added.created for added in await regions.add(by_region, [*names, "SP"])] == [True] * len(names)
    assert [added.created for added in await regions.add(by_region, names)] == [False] * len(names)
    assert await regions.listed(by_region) == dict.fromkeys(sorted(names), None)
    await write(by_region, *((returned(number), name) for number, name in enumerate(names)))
    assert await places(by_region) == {
        table: {regions.partition_name(table, name): 1 for name in names} for table in TABLES
    }


async def test_a_new_partition_is_made_like_the_others(by_region: Settings) -> None:
    await regions.add(by_region, ["SP"])
    query = (
        "SELECT c.relname, 'option', unnest(c.reloptions) FROM pg_class c WHERE c.relname LIKE $1 AND"
        " c.relkind = 'r' UNION ALL SELECT c.relname, 'index', pg_get_indexdef(indexrelid) FROM pg_index JOIN"
        " pg_class c ON c.oid = indrelid WHERE c.relname LIKE $1 AND c.relkind = 'r' UNION ALL SELECT"
        " c.relname, 'constraint', conname || conenforced || pg_get_constraintdef(k.oid) FROM pg_constraint k"
        " JOIN pg_class c ON c.oid = conrelid WHERE c.relname LIKE $1 AND c.relkind = 'r'"
    )

    async def of(part: str) -> list[list[str]]:
        return sorted(
            [text.replace(part, "") for text in row]
            for row in await fetch(by_region, query, f"orders%{part}")
        )

    assert await of("_r_sp") == await of("_default")
    options = [row for row in await of("_r_sp") if row[1] == "option"]
    assert options == sorted([table, "option", f"fillfactor={FILLFACTOR[table]}"] for table in TABLES)


async def test_nothing_is_lost_or_done_twice_under_writers(by_region: Settings) -> None:
    names = ["SP", "RJ", "MG", "BA"]
    newest = [0] * 40
    passed: list[int] = []
    errors: list[BaseException] = []
    stop = asyncio.Event()

    async def writer(mine: range, seed: int) -> None:
        """What a lane does: orders of its own, later and later versions, the same batch again
        after an error that passes.
        """
        rng, sink = random.Random(seed), PostgresSink(by_region)
        await sink.start()
        try:
            while not stop.is_set():
                chosen = rng.sample(mine, 5)
                orders = [(returned(number, newest[number] + 1), names[number % 4]) for number in chosen]
                while True:
                    try:
                        await sink.write(batch(orders))
                        break
                    except asyncpg.PostgresError as error:
                        errors.append(error)
                        if judge(error) is not Verdict.TEMPORARY:
                            raise
                for number in chosen:
                    newest[number] += 1
                passed.append(1)
        finally:
            await sink.close()

    async def written(more: int) -> None:
        seen = len(passed)

        async def so() -> bool:
            return len(passed) >= seen + more or any(task.done() for task in tasks)

        await eventually(so, f"{more} more batches written")

    tasks = [asyncio.create_task(writer(range(first, first + 20), first)) for first in (0, 20)]
    try:
        for name in names:
            await written(20)
            (added,) = await regions.add(by_region, [name])
            assert added.created
        await written(20)
    finally:
        stop.set()
        await asyncio.gather(*tasks)
    assert errors == []
    expected = {
        (ident(f"o{number}"), version, names[number % 4]) for number, version in enumerate(newest) if version
    }
    assert set(await fetch(by_region, "SELECT id::text, version, region FROM orders_order")) == expected
    for table, counts in (await places(by_region)).items():
        assert sum(counts.values()) == len(expected), table
        assert counts.keys() <= {f"{table}_r_{name.lower()}" for name in names}


async def test_who_is_in_the_way_is_named_and_nothing_is_changed(
    by_region: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ddl, "LOCK_TIMEOUT", 0.05)
    await write(by_region, (returned(1), "SP"))
    said: list[str] = []
    async with ddl.connect(by_region) as report:
        async with report.transaction():
            await report.execute(
                "SET LOCAL application_name = 'a long report'; SELECT FROM orders_return LIMIT 1"
            )
            with pytest.raises(
                ddl.Busy,
                match=(
                    r"within 2 s, nothing was changed; they are used by a long report \(pid \d+, idle in"
                    r" transaction"
                ),
            ):
                await regions.add(by_region, ["SP"], timeout=2, say=said.append)
        assert any("trying again" in line and "a long report" in line for line in said)
        assert await places(by_region) == {table: {f"{table}_default": 1} for table in TABLES}
        assert (await regions.add(by_region, ["SP"], timeout=10))[0].created


async def test_only_where_regions_were_chosen(stack: Servers) -> None:
    settings = await new_database(stack)
    try:
        with pytest.raises(SchemaMismatch, match="no tables yet; run orders init"):
            await regions.add(settings, ["SP"])
        await migrate.upgrade(settings)
        for call in (regions.add(settings, ["SP"]), regions.listed(settings)):
            with pytest.raises(SchemaMismatch, match="partitioned by user_id; choose regions at the start"):
                await call
    finally:
        await drop_database(stack, settings)


@pytest.mark.usefixtures("unnoted")
async def test_by_the_command_line(
    by_region: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORDERS_POSTGRES", by_region.postgres.get_secret_value())
    get_settings.cache_clear()
    await write(by_region, (returned(1), "SP"), (returned(2), "RJ"), (returned(3), ""))

    async def orders(*args: str) -> str:
        assert await asyncio.to_thread(main.run, ["db", "regions", *args]) == 0
        return capsys.readouterr().out

    assert "SP: 8 rows moved; writers waited " in await orders("add", "SP")
    (again, more) = json.loads(await orders("add", "SP", "MG", "--json"))["regions"]
    assert (again["created"], more["created"], more["moved"]) == (False, True, dict.fromkeys(TABLES, 0))
    assert json.loads(await orders("list", "--json")) == {
        "own_partitions": ["MG", "SP"],
        "in_default": {"": 1, "RJ": 1},
    }
    assert "in the default partition: '' (1 orders), RJ (1 orders)" in await orders("list")
    get_settings.cache_clear()
