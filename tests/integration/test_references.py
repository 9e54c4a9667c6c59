"""References to other services' tables: declared, enforced, taken away, on the real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
import pytest_asyncio
from msgspec import structs

from cli import main
from operations.postgres import ddl, references, regions
from operations.postgres.references import BrokenReferences, Kind, LinkError
from settings import Settings, get_settings
from sinks import migrate
from sinks.postgres import PostgresSink
from sinks.rows import RowBatch
from sinks.schema import PARTITION_COLUMNS
from streams.transport.delivery import Verdict, judge
from tests.contract.places import Order, drop_database, ident, new_database, rows_of
from tests.stackfixture import Servers

TARGETS: dict[Kind, str] = {
    "users": "accounts_user",
    "products": "products_product",
    "warehouses": "warehouse",
}
COLUMNS = [
    ("orders_order", "user_id", "accounts_user"),
    ("orders_order_item", "product_id", "products_product"),
    ("orders_order_item", "warehouse_id", "warehouse"),
    ("orders_shipment", "warehouse_id", "warehouse"),
]

pytestmark = pytest.mark.usefixtures("unnoted")


@pytest_asyncio.fixture(params=PARTITION_COLUMNS)
async def shared(
    request: pytest.FixtureRequest, stack: Servers, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Settings]:
    """A database with our tables and those of other services, which are empty.
    It is also that of the environment.
    """
    settings = await new_database(stack)
    await migrate.upgrade(settings, request.param)
    await execute(settings, *(f"CREATE TABLE {table} (id uuid PRIMARY KEY)" for table in TARGETS.values()))
    monkeypatch.setenv("ORDERS_POSTGRES", settings.postgres.get_secret_value())
    get_settings.cache_clear()
    yield settings
    get_settings.cache_clear()
    await drop_database(stack, settings)


async def execute(settings: Settings, *statements: str) -> list[tuple[Any, ...]]:
    """Runs statements; the rows of the last one."""
    rows: list[asyncpg.Record] = []
    async with ddl.connect(settings) as connection:
        for statement in statements:
            rows = await connection.fetch(statement)
    return [tuple(row) for row in rows]


async def constraints(settings: Settings) -> list[tuple[Any, ...]]:
    """Foreign keys to other services' tables: ours, column, theirs, enforced, valid.
    Those of partitions too, under their table's name.
    """
    return await execute(
        settings,
        "SELECT DISTINCT coalesce(inhparent, conrelid)::regclass::text, attname::text,"
        " confrelid::regclass::text, conenforced, convalidated FROM pg_constraint LEFT JOIN pg_inherits ON"
        " inhrelid = conrelid JOIN pg_attribute ON attrelid = conrelid AND attnum = conkey[1] WHERE contype ="
        " 'f' AND confrelid::regclass::text !~ '^orders_' ORDER BY 1, 2",
    )


async def write(settings: Settings, batch: RowBatch) -> None:
    sink = PostgresSink(settings)
    await sink.start()
    try:
        await sink.write(batch)
    finally:
        await sink.close()


def order(name: str, warehouse: str | None = None) -> RowBatch:
    """An order and a parcel; the parcel comes from a warehouse."""
    batch = rows_of([Order(name, 1, parcels=((f"parcel of {name}", "pending"),))])
    batch.shipments = [structs.replace(row, warehouse_id=warehouse) for row in batch.shipments]
    return batch


def parents(name: str) -> list[str]:
    return [
        f"INSERT INTO accounts_user VALUES ('{ident(f'user of {name}')}')",
        f"INSERT INTO products_product VALUES ('{ident('product')}')",
    ]


async def test_declared_they_promise_nothing_and_again_is_harmless(shared: Settings) -> None:
    await write(shared, order("a", ident("nowhere")))
    done = await references.link(shared, TARGETS)
    assert [(each.table, each.column, each.to, each.changed) for each in done] == [
        (*column, True) for column in COLUMNS
    ]
    assert await constraints(shared) == [(*column, False, False) for column in COLUMNS]
    await write(shared, order("b", ident("nowhere")))
    assert [each.changed for each in await references.link(shared, TARGETS)] == [False] * 4
    assert {each.to for each in await references.listed(shared)} == set(TARGETS.values())
    assert [each.column for each in await references.unlink(shared, ["users", "warehouses"])] == [
        "user_id",
        "warehouse_id",
        "warehouse_id",
    ]
    assert await constraints(shared) == [(*COLUMNS[1], False, False)]
    assert len(await references.unlink(shared)) == 1
    assert await references.unlink(shared) == []
    assert await constraints(shared) == []


async def test_enforced_only_once_all_rows_keep_it(
    shared: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    await write(shared, order("a", ident("nowhere")))
    await references.link(shared, TARGETS)
    command = [
        "db",
        "link",
        "--enforced",
        "--json",
        *(word for kind, table in TARGETS.items() for word in (f"--{kind}", table)),
    ]
    assert await asyncio.to_thread(main.run, command) == 1
    broken = json.loads(capsys.readouterr().out)["broken"]
    assert [(each["table"], each["column"], each["rows"], each["missing"]) for each in broken] == [
        ("orders_order", "user_id", 1, [ident("user of a")]),
        ("orders_order_item", "product_id", 1, [ident("product")]),
        ("orders_shipment", "warehouse_id", 1, [ident("nowhere")]),
    ]
    assert all(each["partition"].startswith(f"{each['table']}_") for each in broken)
    assert await constraints(shared) == [(*column, False, False) for column in COLUMNS]

    await execute(shared, *parents("a"), f"INSERT INTO warehouse VALUES ('{ident('nowhere')}')")
    assert await asyncio.to_thread(main.run, command) == 0
    assert [each["changed"] for each in json.loads(capsys.readouterr().out)["references"]] == [True] * 4
    assert await constraints(shared) == [(*column, True, True) for column in COLUMNS]
    assert await asyncio.to_thread(main.run, ["db"]) == 0
    assert "orders_shipment.warehouse_id refers to warehouse: enforced" in capsys.readouterr().out
    assert not any(each.changed for each in await references.link(shared, TARGETS, enforced=True))
    # And back: what is asked for is what is there afterwards.
    await references.link(shared, TARGETS)
    assert await constraints(shared) == [(*column, False, False) for column in COLUMNS]


@pytest.mark.parametrize("shared", ["user_id"], indirect=True)
async def test_a_batch_waits_for_what_it_refers_to(shared: Settings) -> None:
    await references.link(shared, TARGETS, enforced=True)
    with pytest.raises(asyncpg.ForeignKeyViolationError) as caught:
        await write(shared, order("a"))
    assert judge(caught.value) is Verdict.TEMPORARY
    assert await execute(shared, "SELECT count(*) FROM orders_shipment") == [(0,)]
    await execute(shared, *parents("a"))
    await write(shared, order("a"))
    assert await execute(shared, "SELECT count(*) FROM orders_shipment") == [(1,)]


@pytest.mark.parametrize("shared", ["user_id"], indirect=True)
async def test_rows_that_break_it_meanwhile_leave_it_not_enforced(
    shared: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(shared, order("a"))
    look, looks = references._require_kept, []

    async def blind_at_first(*args: Any) -> None:
        looks.append(args)
        if len(looks) > 1:
            await look(*args)

    monkeypatch.setattr(references, "_require_kept", blind_at_first)
    with pytest.raises(BrokenReferences, match="1 rows refer to what isn't there"):
        await references.link(shared, {"users": "accounts_user"}, enforced=True)
    assert await constraints(shared) == [(*COLUMNS[0], False, False)]


@pytest.mark.parametrize("enforced", [False, True])
async def test_a_region_that_is_added_later_is_held_to_it_too(stack: Servers, enforced: bool) -> None:
    settings = await new_database(stack)
    try:
        await migrate.upgrade(settings, "region")
        await execute(
            settings,
            "CREATE TABLE accounts_user (id uuid PRIMARY KEY)",
            f"INSERT INTO accounts_user VALUES ('{ident('user of a')}')",
        )
        await references.link(settings, {"users": "accounts_user"}, enforced)
        await write(settings, order("a"))
        await regions.add(settings, ["SP", "RJ"])
        assert await constraints(settings) == [(*COLUMNS[0], enforced, enforced)]
        if enforced:
            with pytest.raises(asyncpg.ForeignKeyViolationError, match="orders_order_r_sp"):
                await write(settings, order("b"))
    finally:
        await drop_database(stack, settings)


@pytest.mark.parametrize("shared", ["user_id"], indirect=True)
async def test_what_does_not_fit_says_why(shared: Settings) -> None:
    await execute(
        shared,
        "CREATE VIEW seen AS SELECT * FROM warehouse",
        "CREATE TABLE numbers (id bigint PRIMARY KEY)",
        "CREATE TABLE loose (id uuid)",
        "CREATE TABLE without (name text)",
        "CREATE SCHEMA hr",
        'CREATE TABLE hr."An odd ""name" (id uuid UNIQUE)',
    )
    for table, says in {
        "nobody": "there is no table 'nobody' in this database; give --users its name",
        "": "there is no table ''",
        "a.b.c.d": "there is no table 'a.b.c.d'",
        "warehouse; DROP TABLE warehouse": "there is no table 'warehouse; DROP",
        "seen": "seen is no table",
        "numbers": "numbers.id is bigint, but orders_order.user_id is uuid",
        "loose": "loose.id is neither its primary key nor unique by itself",
        "without": "without has no column id",
    }.items():
        with pytest.raises(LinkError, match=says.replace("(", r"\(")):
            await references.link(shared, {"products": "products_product", "users": table})
    assert await constraints(shared) == []
    (odd,) = await references.link(shared, {"users": 'hr."An odd ""name"'}, enforced=True)
    assert odd.to == 'hr."An odd ""name"'
    with pytest.raises(
        LinkError, match=r"orders_order.user_id refers to hr.* run orders db unlink users first"
    ):
        await references.link(shared, {"users": "accounts_user"})


@pytest.mark.parametrize("shared", ["user_id"], indirect=True)
async def test_by_the_command_line(shared: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    async def orders(*args: str) -> tuple[int, str, str]:
        return await asyncio.to_thread(main.run, ["db", *args]), *capsys.readouterr()

    code, out, err = await orders("link", "--users", "nobody")
    assert (code, out) == (2, "")
    assert err.startswith("orders: there is no table 'nobody' in this database")
    assert await orders("link", "--users", "accounts_user") == (
        0,
        "orders_order.user_id refers to accounts_user: not enforced\n",
        "",
    )
    assert await orders("link", "--users", "accounts_user") == (
        0,
        "orders_order.user_id refers to accounts_user: not enforced, as before\n",
        "",
    )
    assert await orders("unlink") == (0, "orders_order.user_id no longer refers to accounts_user\n", "")
    assert await orders("unlink") == (0, "there was none\n", "")
    await write(shared, order("a"))
    code, out, err = await orders("link", "--users", "accounts_user", "--enforced")
    assert (code, err) == (1, "")
    assert f": 1 rows whose user_id isn't in accounts_user, such as {ident('user of a')}\n" in out
