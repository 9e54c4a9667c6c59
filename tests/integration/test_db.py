"""`orders db`: what it tells is so, on the real server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import pytest_asyncio

from cli import main
from operations.postgres import ddl, partitions
from settings import Settings, get_settings
from sinks import migrate
from sinks.schema import TABLES
from streams import topics
from tests.contract.places import drop_database, new_database
from tests.stackfixture import Servers
from tests.waiting import eventually

Orders = Callable[..., Coroutine[Any, Any, tuple[int, str, str]]]


@pytest_asyncio.fixture
async def database(stack: Servers, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Settings]:
    """A database without tables, which is also that of the environment."""
    settings = await new_database(stack)
    monkeypatch.setenv("ORDERS_POSTGRES", settings.postgres.get_secret_value())
    get_settings.cache_clear()
    yield settings
    get_settings.cache_clear()
    await drop_database(stack, settings)


pytestmark = pytest.mark.usefixtures("unnoted")


@pytest.fixture
def orders(capsys: pytest.CaptureFixture[str]) -> Orders:
    """Run `orders db ...` -> exit code, stdout, stderr."""

    async def run(*args: str) -> tuple[int, str, str]:
        code = await asyncio.to_thread(main.run, ["db", *args])
        return code, *capsys.readouterr()

    return run


async def execute(settings: Settings, *statements: str) -> None:
    async with ddl.connect(settings) as connection:
        for statement in statements:
            await connection.execute(statement)
            # Or what it counted would be added to what ANALYZE finds next.
            await connection.execute("SELECT pg_stat_force_next_flush()")


FILL = (
    "INSERT INTO orders_order SELECT gen_random_uuid(), gen_random_uuid(), 'SP', 'pending', 'BRL', 1, 0,"
    " now(), now(), 1 FROM generate_series(1, 4000)"
)


async def test_sizes_rows_and_bloat(database: Settings, orders: Orders) -> None:
    await migrate.upgrade(database)
    still = [f"ALTER TABLE orders_order_p{number} SET (autovacuum_enabled = false)" for number in (0, 1)]
    await execute(database, *still, FILL, "ANALYZE orders_order_p0, orders_order_p1")

    async def report() -> dict[str, Any]:
        code, out, err = await orders("--json")
        assert (code, err) == (0, "")
        document: dict[str, Any] = json.loads(out)
        return document

    whole = await report()
    assert (whole["partition_by"], whole["revision"]) == ("user_id", migrate.Alembic.head())
    assert [table["name"] for table in whole["tables"]] == list(TABLES)
    (first, *others) = whole["tables"]
    assert (first["rows"], first["dead_rows"]) == (4000, 0)
    assert [part["name"] for part in first["partitions"]] == ["orders_order_p0", "orders_order_p1"]
    assert sum(part["rows"] for part in first["partitions"]) == 4000
    assert 0 <= first["bloat_bytes"] < 0.1 * first["table_bytes"]
    assert all(table["rows"] == 0 and table["partitions"][0]["bloat_bytes"] is None for table in others)
    assert whole["database_bytes"] > first["table_bytes"] + first["index_bytes"] > 4000 * 100

    # Half of the rows are dead, and bloat once vacuum has taken them away.
    half = "DELETE FROM orders_order WHERE id IN (SELECT id FROM orders_order ORDER BY id LIMIT 2000)"
    await execute(database, half, "ANALYZE orders_order_p0, orders_order_p1")
    (second, *_) = (await report())["tables"]
    assert (second["rows"], second["dead_rows"]) == (2000, 2000)
    assert first["table_bytes"] * 0.3 < second["bloat_bytes"] < second["table_bytes"] * 0.6
    await execute(database, "VACUUM orders_order_p0", "VACUUM orders_order_p1")
    (third, *_) = (await report())["tables"]
    assert third["dead_rows"] == 0
    assert third["bloat_bytes"] > first["table_bytes"] * 0.3
    assert all(part["vacuumed_at"] for part in third["partitions"])

    code, out, err = await orders()
    assert (code, err) == (0, "")
    assert "partitioned by hash of user_id" in out
    assert all(text in out for text in (*TABLES, " 1/2 ", "2,000"))


async def test_holds_what_the_partition_holds(database: Settings, orders: Orders) -> None:
    await migrate.upgrade(database, "region")
    assert (await orders("regions", "add", "SP"))[0] == 0
    code, out, _ = await orders()
    assert code == 0
    assert "r_sp " in out
    assert "'SP'" in out
    overview = await partitions.overview(database)
    assert [part.bound for part in overview.partitions if part.table == "orders_return"] == [
        "FOR VALUES IN ('SP')",
        "DEFAULT",
    ]


async def test_init_chooses_once(
    database: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def no_topics(_: Settings) -> list[str]:
        return []

    monkeypatch.setattr(topics, "ensure", no_topics)  # they are all tests' own
    for _ in range(2):
        assert await asyncio.to_thread(main.run, ["init", "--partition-by", "region"]) == 0
        assert "partitioned by region" in capsys.readouterr().out
    assert (await partitions.overview(database)).layout.partition_by == "region"
    assert await asyncio.to_thread(main.run, ["init"]) == 2
    assert "by region, not by user_id; run orders init --partition-by region" in capsys.readouterr().err


@pytest.mark.usefixtures("database")
async def test_without_tables(orders: Orders) -> None:
    for args in ((), ("regions", "list"), ("regions", "add", "SP")):
        code, out, err = await orders(*args)
        assert (code, out) == (2, "")
        assert err == "orders: the database has no tables yet; run orders init\n"


async def test_who_holds_a_lock_for_which_others_wait(database: Settings, orders: Orders) -> None:
    await execute(database, "CREATE TABLE locked (id integer)")
    assert (await orders("locks"))[1] == "no session waits for another one's lock\n"
    async with ddl.connect(database) as holder, ddl.connect(database) as one, ddl.connect(database) as two:
        await holder.execute("SET application_name = 'a \x1b[2K person'")
        await holder.execute("BEGIN; LOCK TABLE locked")
        pid = await holder.fetchval("SELECT pg_backend_pid()")
        waiting = [asyncio.ensure_future(each.execute("SELECT * FROM locked")) for each in (one, two)]

        async def both_wait() -> bool:
            held = json.loads((await orders("locks", "--json"))[1])["holders"]
            return [(each["pid"], each["waiting"]) for each in held] == [(pid, 2)]

        await eventually(both_wait, "both wait for the one")
        code, out, _ = await orders("locks")
        assert code == 0
        assert out.startswith("2 sessions wait for ")
        assert f"session {pid} (" in out
        assert "idle in transaction" in out
        assert f"SELECT pg_terminate_backend({pid})" in out
        assert "\x1b" not in out
        await holder.execute("COMMIT")
        await asyncio.gather(*waiting)
