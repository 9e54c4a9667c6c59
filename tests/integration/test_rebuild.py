"""orders rebuild and orders whatif on what real workers write: beside them, killed in
the middle, and switched to.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from redis.asyncio import Redis

from cli import main
from contracts.cloudevents import SourceEvent, binary, rfc3339
from operations.postgres import compare, references, regions, shadow
from settings import Settings, get_settings
from sinks import migrate
from sinks.schema import TABLES
from streams import topics
from streams.partitioner import partition_of
from tests.forked import Forked
from tests.integration.test_deadlines import CREATED, now, records
from tests.integration.test_repair import append, grown_in, states_of
from tests.mutants.planted import copied
from tests.servers import admin, as_admin, kafka
from tests.waiting import eventually, until
from tests.workers import audit, orders, processed, rows, worker
from workload import generator
from workload.producer import send

SHARES = generator.Shares(duplicates=0.05, shuffle=0.2, poison=0.01)
LOCK_SECONDS = "import operations.grouplock as g; g.SESSION_SECONDS = 6.0; from cli.main import main; main()"
"""A group lock that is given up soon after its process was killed."""
IN_TWO = (
    "import multiprocessing as m; m.current_process()._config['daemon'] = False; "
    "import operations.shares as s; s.RECORDS_A_PROCESS, s.usable_cores = 1, lambda: 2; "
    "from cli.main import main; main()"
)
"""Two processes share even a short log. A forked process may have none of its own unless it is told so."""


def history(count: int, seed: int) -> list[SourceEvent]:
    return list(generator.events(count, seed, SHARES))


def report_of(*arguments: str, code: int = 0) -> dict[str, Any]:
    done = orders(*arguments, "--json")
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def refused(*arguments: str) -> str:
    """What a command says that couldn't work."""
    done = orders(*arguments)
    assert done.returncode == 2, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


@contextmanager
def killed_later(*arguments: str, code: str = LOCK_SECONDS, **changes: str) -> Iterator[Forked]:
    """A command that is killed at the end."""
    command = (sys.executable, "-c", code, *arguments)
    process = Forked(command, Path(os.devnull), env={**os.environ, **changes})
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
async def database(fresh: Settings) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(fresh.postgres.get_secret_value())
    yield connection
    await connection.close()


async def planted_rows_are_told(database: Any) -> Any:
    """What was planted is told, and nothing else. Returns the id of the order whose row was altered."""
    items = await database.fetch("SELECT id, order_id FROM orders_order_item ORDER BY id LIMIT 2")
    altered = await database.fetchval(
        "UPDATE orders_order SET region = 'X', version = 99 WHERE id = $1 RETURNING id", items[0][1]
    )
    await database.execute("DELETE FROM orders_order_item WHERE id = $1", items[1][0])
    await database.execute(
        "INSERT INTO orders_return SELECT gen_random_uuid(), gen_random_uuid(), user_id, region, id, 1, '',"
        " 'requested', NULL, created_at, updated_at, 1 FROM orders_order_item LIMIT 1"
    )
    differences = report_of("rebuild", "diff", "--examples", "2", code=1)
    assert {
        name: (each["missing"], each["unexpected"], each["different"])
        for name, each in differences["tables"].items()
    } == {
        "orders_order": (0, 0, 1),
        "orders_order_item": (1, 0, 0),
        "orders_return": (0, 1, 0),
    }
    columns = differences["tables"]["orders_order"]["columns"]
    assert set(columns) == {"region", "version"}
    (region,) = columns["region"]["values"]
    assert (region["actual"], region["live"], region["rows"]) == ("X", "X", 1)
    assert (differences["orders"], len(differences["examples"])) == (len({altered, items[1][1]}) + 1, 2)
    return altered


async def workers_go_on(settings: Settings, folder: Path, before: list[SourceEvent]) -> None:
    """Workers go on after a switch, and what came before it changes nothing."""
    switched = await rows(settings, physical=True)
    with worker(folder, "other") as running:
        await send(settings, before)
        processed()
        assert await rows(settings, physical=True) == switched
        await send(settings, history(30, 72))
        processed()
        audit()
        assert running.terminate() == 0


async def test_beside_workers_compared_and_switched_to(
    fresh: Settings, database: Any, tmp_path: Path
) -> None:
    events = history(150, 71)
    half = len(events) // 2
    assert (
        refused("rebuild", "diff") == "orders: there is no schema orders_rebuild; run orders rebuild start\n"
    )
    with worker(tmp_path) as running:
        await send(fresh, events[:half])
        processed()
        assert "there is no schema orders_rebuild" in refused("rebuild", "switch")
        first = report_of("rebuild", "start")
        assert first["records"] >= half
        # Beside it the pipeline goes on; nothing live is touched.
        await send(fresh, events[half:])
        assert report_of("rebuild", "diff")["same"]
        processed()
        before = await rows(fresh, physical=True)
        assert report_of("rebuild", "diff")["orders"] == 0
        assert report_of("rebuild", "start")["records"] == 0
        assert await rows(fresh, physical=True) == before
        truth = await rows(fresh)
        assert f"group {fresh.group} has members; stop all workers" in refused("rebuild", "switch")

        altered = await planted_rows_are_told(database)
        assert running.terminate() == 0

    # States: one behind, one that nobody knows. Grants, views and a summary that is wrong.
    states = await states_of(fresh)
    behind = grown_in(states)[0]
    await append(
        fresh, {behind: [states[behind][0]], "00000000-0000-4000-8000-00000000dead": [states[behind][-1]]}
    )
    await database.execute(
        "CREATE TABLE accounts_user (id uuid PRIMARY KEY); GRANT SELECT ON orders_order_p0 TO pg_monitor"
    )
    await references.link(fresh, {"users": "accounts_user"})
    async with Redis.from_url(as_admin(fresh.redis)) as redis:
        await redis.set(f"order:{altered}", "{}", ex=600)
        numbers = await redis.keys("tracking:*")
        hidden, there = next(
            (key, json.loads(value or ""))
            for key, value in zip(numbers, await redis.mget(numbers), strict=True)
            if str(altered).encode() not in (value or b"")
        )
        await redis.set(hidden, "[]", ex=600)
        await redis.set("tracking:nobody's", json.dumps([{"order_id": str(altered)}]), ex=600)
        await redis.set("rows:order:x", "{}", ex=600)
        await redis.zadd("user:x:orders", {str(altered): 5})
        await redis.expire("user:x:orders", 600)
        done = report_of("rebuild", "switch")
        assert (done["before"], done["states"], done["deleted"]) == ("orders_before_1", 2, 1)
        assert done["entries"] >= 5
        assert not await redis.exists("rows:order:x", "tracking:nobody's")
        assert json.loads(await redis.get(hidden) or "") == there
    audit()
    assert await rows(fresh) == truth
    assert [(each.column, each.enforced) for each in await references.listed(fresh)] == [("user_id", False)]
    assert await database.fetchval("SELECT has_table_privilege('pg_monitor', 'orders_order_p0', 'SELECT')")
    assert await database.fetchval("SELECT count(*) FROM orders_summary") == len(truth["orders_order"])
    assert (
        await database.fetchval("SELECT count(*) FROM orders_before_1.orders_order WHERE region = 'X'") == 1
    )
    assert report_of("rebuild", "status")["schemas"][0]["state"] == "was live"

    await workers_go_on(fresh, tmp_path, events[:200])
    assert report_of("rebuild", "drop") == {"dropped": ["orders_before_1"]}
    assert await rows(fresh)


async def many_differences_come_in_parts(database: Any, expected: set[str]) -> None:
    """Where all orders differ, only some of the differences are held at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "HELD_ROWS", 20)
        whole = compare.between(database, "orders_rebuild", UUID(int=0), UUID(int=(1 << 128) - 1))
        parts = [[each.order_id for each in some] async for some in whole]
    assert len(parts) > len(expected) / 20
    assert max(map(len, parts)) <= 20
    assert sorted(chain(*parts)) == sorted(expected)


async def killed_in_two_processes_it_goes_on(settings: Settings, database: Any, count: int) -> None:
    """A start that was killed goes on with the states of both processes, and all orders are compared."""

    async def some_rows() -> bool:
        return bool(
            await database.fetchval("SELECT to_regclass('orders_rebuild.rebuild') IS NOT NULL")
            and await database.fetchval("SELECT EXISTS (SELECT FROM orders_rebuild.orders_order)")
        )

    with killed_later("rebuild", "start", code=IN_TWO):
        await eventually(some_rows, "the shadow has rows", 60)
    assert len([*(settings.data / ".rebuild").glob("*/part-*")]) == 2
    done = orders("rebuild", "start")
    assert (done.returncode, "beginning again" in done.stderr) == (0, False), done.stderr
    nothing = report_of("rebuild", "diff")
    assert (nothing["same"], nothing["compared"]) == (True, count)


async def test_killed_in_the_middle_it_goes_on(fresh: Settings, database: Any, tmp_path: Path) -> None:
    with worker(tmp_path) as running:
        await send(fresh, history(250, 73))
        processed()
        assert running.terminate() == 0
    truth = await rows(fresh)

    await killed_in_two_processes_it_goes_on(fresh, database, len(truth["orders_order"]))

    # Its states are gone: it says so, and begins again.
    shutil.rmtree(fresh.data / ".rebuild")
    assert "its states aren't in" in refused("rebuild", "diff")
    done = orders("rebuild", "start")
    assert (done.returncode, "beginning again: its states aren't in" in done.stderr) == (0, True), done.stderr

    # A reader in a long transaction holds the switch up, then it is killed.
    await database.execute("UPDATE orders_order SET region = 'X'")
    await many_differences_come_in_parts(
        database, {str(row[0]) for row in await database.fetch("SELECT id FROM orders_order")}
    )
    reader = await asyncpg.connect(fresh.postgres.get_secret_value())
    reading = reader.transaction()
    await reading.start()
    await reader.fetch("SELECT FROM orders_order LIMIT 1")

    async def waits() -> bool:
        query = (
            "SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = 'orders_order'::regclass)"
        )
        return bool(await database.fetchval(query))

    with killed_later("rebuild", "switch"):
        await eventually(waits, "the switch waits for the reader", 60)
    await reading.rollback()
    await reader.close()
    assert await database.fetchval("SELECT to_regnamespace('orders_before_1')") is None

    # The rows are live, then Redis doesn't answer, and it is killed again.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"

        def switched() -> bool:
            with killed_later("rebuild", "switch", ORDERS_REDIS=url) as process:
                until(
                    lambda: process.poll() is not None or _connected(silent),
                    "it asks Redis, or is refused",
                    60,
                )
                return process.poll() is None

        until(switched, "the group lets it in again", 60)
    assert await database.fetchval("SELECT to_regnamespace('orders_before_1')") is not None
    assert (
        report_of("rebuild", "status")["schemas"][0]["state"]
        == "was live; run orders rebuild switch once more"
    )
    assert "isn't done; run orders rebuild switch once more first" in refused("rebuild", "drop")
    until(lambda: orders("rebuild", "switch").returncode == 0, "it does what is left", 60)
    assert await rows(fresh) == truth
    audit()


def _connected(server: socket.socket) -> bool:
    server.settimeout(0.05)
    try:
        connection, _ = server.accept()
        connection.close()
    except TimeoutError:
        return False
    return True


async def test_regions_transactions_and_enforced_references(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_DELIVERY", "exactly_once")
    await topics.delete_all(admin(settings))
    await topics.ensure(settings)
    await migrate.upgrade(settings, "region")
    database = await asyncpg.connect(settings.postgres.get_secret_value())
    try:
        with worker(tmp_path) as running:
            await send(settings, history(100, 74))
            processed()
            names = [
                row[0]
                for row in await database.fetch(
                    "SELECT region FROM orders_order GROUP BY region ORDER BY count(*) DESC LIMIT 2"
                )
            ]
            report_of("rebuild", "start")
            await regions.add(settings, names)
            assert "the live tables have other columns, partitions or indexes now" in refused(
                "rebuild", "diff"
            )
            done = orders("rebuild", "start")
            assert (done.returncode, "beginning again: the live tables have other" in done.stderr) == (
                0,
                True,
            ), done.stderr
            assert report_of("rebuild", "diff")["same"]
            assert running.terminate() == 0
        truth = await rows(settings)
        await database.execute("CREATE TABLE accounts_user (id uuid PRIMARY KEY)")
        await database.execute("INSERT INTO accounts_user SELECT DISTINCT user_id FROM orders_order")
        await references.link(settings, {"users": "accounts_user"}, enforced=True)

        # A rebuilt row that refers to nobody can't go live.
        user = await database.fetchval("SELECT user_id FROM orders_order LIMIT 1")
        await database.execute("DELETE FROM orders_order WHERE user_id = $1", user)
        await database.execute("DELETE FROM accounts_user WHERE id = $1", user)
        assert "run orders db unlink" in refused("rebuild", "switch")
        await database.execute("INSERT INTO accounts_user VALUES ($1)", user)
        report_of("rebuild", "switch")
        assert await rows(settings) == truth
        (link,) = await references.listed(settings)
        assert (link.enforced, link.valid) == (True, True)
        places = await database.fetch(
            "SELECT DISTINCT tableoid::regclass::text FROM orders_order WHERE region = ANY($1)", names
        )
        assert {row[0] for row in places} == {regions.partition_name("orders_order", name) for name in names}
        # What was live holds nobody back.
        old = (
            "SELECT count(*) FROM pg_constraint WHERE contype = 'f' AND connamespace ="
            " 'orders_before_1'::regnamespace"
        )
        assert await database.fetchval(old) == 0
        audit()
    finally:
        await database.close()
        await topics.delete_all(admin(settings))


def whatif_with_other_rules(code: str) -> dict[str, Any]:
    """Of a copy of the source with two rules changed: another region where none is said, and no labels."""
    with copied() as copy:
        rule = copy / "domain" / "rows.py"
        rule.write_text(rule.read_text().replace('created.region or ""', 'created.region or "nowhere"'))
        asking = copy / "domain" / "fold.py"
        text = asking.read_text()
        assert "    _ask_labels(created, now, writer, order)\n" in text
        asking.write_text(text.replace("    _ask_labels(created, now, writer, order)\n", "    pass\n"))
        asked = (
            sys.executable,
            "-c",
            code,
            "whatif",
            "--json",
            "--examples",
            "1",
        )
        done = subprocess.run(
            asked, cwd=copy, capture_output=True, text=True, timeout=180, env=dict(os.environ)
        )
    assert done.returncode == 1, done.stdout[-2000:] + done.stderr[-2000:]
    changed: dict[str, Any] = json.loads(done.stdout)
    return changed


async def test_what_a_changed_rule_would_change(
    fresh: Settings, database: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = [f"0a0a0a0a-0000-4000-8000-00000000000{number}" for number in range(3)]
    with worker(tmp_path) as running:
        # What a bulk worker refused was published by none of the rules that are tried.
        await send(
            fresh,
            [
                *history(12, 75),
                *(placed(order_id) for order_id in waiting),
                SourceEvent("order.bulk", b"", b"", [], 0),
            ],
        )
        processed()
        # Nothing changed says nothing, while the pipeline goes on.
        await send(fresh, history(12, 76))
        nothing = report_of("whatif")
        assert (nothing["same"], nothing["rows"]["orders"], nothing["published"]["differences"]) == (
            True,
            0,
            {},
        )
        processed()
        assert running.terminate() == 0
    truth = await rows(fresh, physical=True)
    # Other settings.
    with monkeypatch.context() as patch:
        patch.setenv("ORDERS_STOCK_DEADLINE", "900")
        patient = report_of("whatif", code=1)
    assert (
        patient["rows"]["orders"],
        patient["published"]["differences"],
        patient["deadlines"]["orders"],
    ) == (0, {}, {"later": 3})
    assert {each["order_id"] for each in patient["deadlines"]["examples"]} == set(waiting)
    assert {each["expected"] - each["actual"] for each in patient["deadlines"]["examples"]} == {300_000}

    changed = whatif_with_other_rules(IN_TWO)
    counts = {
        table: await database.fetchval(f"SELECT count(*) FROM {table} WHERE region = ''") for table in TABLES
    }
    assert counts["orders_order"] >= len(waiting)
    values = {"actual": "", "expected": "nowhere", "live": "", "anew": "nowhere"}
    assert {
        table: {name: each["values"] for name, each in changes["columns"].items()}
        for table, changes in changed["rows"]["tables"].items()
    } == {
        table: {"region": [{**values, "rows": count}]}
        for table, count in counts.items()
        # These take the order's as it is.
        if count and table not in ("orders_payment", "orders_refund", "orders_attention")
    }
    labels = await published(fresh, "shipping.label.create")
    assert changed["published"]["differences"] == {"shipping.label.create": {"unexpected": len(labels)}}
    assert changed["published"]["topics"] == {"shipping.label.create": {"was": len(labels)}}, (
        "of the release before"
    )
    (example,) = changed["published"]["examples"]
    assert (example["topic"], example["difference"], example["id"] in labels) == (
        "shipping.label.create",
        "unexpected",
        True,
    )
    assert await rows(fresh, physical=True) == truth


def placed(order_id: str) -> SourceEvent:
    """An order of now, whose answers are waited for."""
    data = {**CREATED, "order_id": order_id}
    attributes = {
        "specversion": "1.0",
        "id": order_id,
        "source": "/tests",
        "type": "order.created",
        "time": rfc3339(now()),
    }
    headers, value = binary(attributes, data)
    return SourceEvent("order.created", order_id.encode(), value, headers, now())


async def published(settings: Settings, topic: str) -> set[str]:
    """Ids of the events on a topic."""
    return {dict(record.headers)["ce_id"].decode() for record in await records(settings, topic)}


async def test_without_the_beginning_of_the_log(fresh: Settings, tmp_path: Path) -> None:
    event = placed("0a0a0a0a-0000-4000-8000-000000000001")
    with worker(tmp_path) as running:
        await send(fresh, [event])
        processed()
        assert running.terminate() == 0
    lane = partition_of(event.key or b"", fresh.partitions)
    admin = AIOKafkaAdminClient(**kafka(fresh.brokers))
    await admin.start()
    await admin.delete_records({TopicPartition("order.created", lane): RecordsToDelete(1)})
    await admin.close()
    for command in (("rebuild", "start"), ("whatif",)):
        said = f"orders: order.created/{lane} begins at 1: its orders can't be folded again"
        remedy = "bring back what is missing: without it there is nothing to fold them from"
        assert refused(*command) == f"{said}; {remedy}\n"


WRONG = {
    "start --schema public": "'public' is a schema of others",
    "start --schema orders_before_1": "'orders_before_1' is a schema of others",
    "start --schema Drop;--": "'Drop;--' can't be the schema's name",
    "start --schema theirs": "schema theirs is there and wasn't made by orders rebuild",
    "diff --schema theirs": "schema theirs is there and wasn't made by orders rebuild",
    "switch": "there is no schema orders_rebuild; run orders rebuild start",
    "drop theirs": "schema theirs is none of orders rebuild's",
}


async def test_wrong_schemas(fresh: Settings, database: Any, capsys: pytest.CaptureFixture[str]) -> None:
    await database.execute("CREATE SCHEMA theirs")
    for arguments, said in WRONG.items():
        assert await asyncio.to_thread(main.run, ["rebuild", *arguments.split()]) == 2
        assert capsys.readouterr().err.startswith(f"orders: {said}")
    assert await database.fetchval("SELECT to_regnamespace('theirs')") is not None


async def test_one_at_a_time_and_none_of_another_group(
    fresh: Settings, database: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    report_of("rebuild", "start")
    await shadow.hold(database, "orders_rebuild")
    assert "another orders rebuild is at work in schema orders_rebuild" in refused("rebuild", "diff")
    await database.execute("SELECT pg_advisory_unlock_all()")
    monkeypatch.setenv("ORDERS_GROUP", f"{fresh.group}-2")
    assert f"schema orders_rebuild is of group {fresh.group}" in refused("rebuild", "start")


@pytest.mark.usefixtures("unnoted")
def test_servers_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORDERS_POSTGRES", "postgresql://127.0.0.1:1/none")
    get_settings.cache_clear()
    for command in (["rebuild", "start"], ["rebuild", "status"], ["whatif"]):
        assert main.run(command) == 2
        assert "cannot reach Postgres" in capsys.readouterr().err
    get_settings.cache_clear()
