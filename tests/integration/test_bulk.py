"""Bulk jobs on real servers: every form of a file, refused lines, twice is once, and a kill of
whoever submits or unpacks.
"""

from __future__ import annotations

import gzip
import io
import json
import signal
import sys
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import asyncpg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from aiokafka import AIOKafkaProducer

from contracts.topics import BULK, BULK_COMPLETED, DLQ
from operations.dead_letters import Reader
from operations.submit.jobs import status
from settings import Settings
from streams.lag import LagReader
from tests.forked import run
from tests.servers import kafka
from tests.unit.builders import ANNA, BORIS, ORDER, USER, at, created, item_id, line, parcel, record, returned
from tests.waiting import eventually, until
from tests.workers import ORDERS, audit, orders, processed, worker

KILLED = """
import os, signal
from sinks.bulk import BulkJobs
from operations.submit import jobs as bulk
bulk.IN_FLIGHT = bulk.NOTED_EVERY = 1
sent = BulkJobs.sent
async def dying(self, job, part):
    await sent(self, job, part)
    if part == 2:
        os.kill(os.getpid(), signal.SIGKILL)
BulkJobs.sent = dying
from cli.main import main
main()
"""
"""A submit that dies before its third part leaves, and has noted the other two."""

AWAY = {
    "postgres": """
from credentials import PostgresUrl
async def dying(self, job, part):
    await sent(self, job, part)
    if part == 2:
        self.drop()
        self._settings = self._settings.model_copy(update={"postgres": PostgresUrl("postgresql://127.0.0.1:1/gone")})
BulkJobs.sent = dying
""",
    "kafka": """
bulk.SILENCE = 1
from wire import AIOKafkaProducer
send = AIOKafkaProducer.send
async def silent(self, *args, **more):
    sending = await send(self, *args, **more)
    silent = sending and json.loads(args[1]).get("part") == 3
    return asyncio.get_running_loop().create_future() if silent else sending
AIOKafkaProducer.send = silent
""",
}
"""A submit whose server goes away once two parts are acknowledged."""

COLUMNS = "order_id,time,user_id,currency,total_amount,item_id,product_id,seller_id,sku,quantity,price,note"


def order_id(n: int) -> str:
    return f"0e0e0e0e-0000-4000-8000-{n:012d}"


def an_order(n: int, **more: Any) -> dict[str, Any]:
    """A line of NDJSON: an order of two items."""
    return created(line(1), line(2, BORIS), order_id=order_id(n), time=at(1), **more)


def ndjson(*values: Any) -> bytes:
    return "".join(f"{json.dumps(value)}\n" for value in values).encode()


def in_csv(n: int, total: str = "30.00", quantity: str = "1") -> list[str]:
    """The same order as two lines of CSV; the second leaves out what the first has said."""
    product = "50000000-0000-4000-8000-000000000001"
    return [
        f"{order_id(n)},{at(1)},{USER},EUR,{total},{item_id(1)},{product},{ANNA},sku-1,{quantity},10.00,x",
        f"{order_id(n)},,,,,{item_id(2)},{product},{BORIS},sku-2,2,10.00,",
    ]


def submit(
    kind: str, file: Path | str, *more: str, code: int = 0, stdin: bytes | None = None
) -> dict[str, Any]:
    new = ("--as-new",) if kind == "orders" and "--live-from" not in more else ()
    command = (*ORDERS, "bulk", "submit", kind, str(file), "--json", *new, *more)
    done = run(command, stdin=stdin, timeout=60)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    summary: dict[str, Any] = json.loads(done.stdout)
    return summary


async def job(settings: Settings, job_id: str) -> dict[str, Any]:
    """The job's row; nothing if it isn't known."""
    rows = await status(settings, job_id, 1)
    return rows[0] if rows else {}


async def completed(settings: Settings, *jobs: str) -> None:
    async def are() -> bool:
        return all([(await job(settings, each)).get("state") == "completed" for each in jobs])

    await eventually(are, f"jobs {jobs} are completed", 60)


async def read(settings: Settings, *topics: str) -> list[Any]:
    """Every record of these topics."""
    records: list[Any] = []
    async with Reader(settings, topics) as reader:
        for topic in topics:
            for partition in reader.partitions(topic):
                records += [each async for each in reader.records(topic, partition)]
    return records


async def values(settings: Settings, query: str) -> list[Any]:
    connection = await asyncpg.connect(settings.postgres.get_secret_value())
    try:
        return [row[0] for row in await connection.fetch(query)]
    finally:
        await connection.close()


def submit_orders(folder: Path) -> list[dict[str, Any]]:
    """A file of each kind; one of them again, which sends nothing."""
    plain = folder / "orders.ndjson"
    plain.write_bytes(ndjson(an_order(1), an_order(2, id="mine")))
    zipped = folder / "orders.csv.gz"
    zipped.write_bytes(gzip.compress("\n".join([COLUMNS, *in_csv(3), *in_csv(4)]).encode()))
    table = folder / "orders.parquet"
    nested = [{**an_order(n), "time": datetime.fromisoformat(at(1))} for n in (5, 6)]
    pq.write_table(pa.Table.from_pylist(nested), table)
    jobs = [submit("orders", file) for file in (plain, zipped, table)]
    assert [(each["format"], each["lines"], each["refused"], each["parts_sent_now"]) for each in jobs] == [
        ("ndjson", 2, 0, 1), ("csv", 2, 0, 1), ("parquet", 2, 0, 1),
    ]  # fmt: skip
    assert jobs[1]["ignored_columns"] == ["note"]
    # The same content is the same job, from wherever it comes, and is sent once.
    assert (again := submit("orders", "-", stdin=gzip.compress(plain.read_bytes())))["job_id"] == jobs[0][
        "job_id"
    ]
    assert again["parts_sent_now"] == 0
    return jobs


def submit_with_refused_lines(folder: Path) -> dict[str, Any]:
    """From stdin, with lines that can't be taken in between those that can."""
    bad = in_csv(8, total="99.00") + in_csv(9, quantity="none") + [in_csv(10)[0], in_csv(10)[1] + ",more"]
    text = "\n".join([COLUMNS, *in_csv(7), *bad, *in_csv(11)]).encode()
    report = folder / "refused.ndjson"
    mixed = submit("orders", "-", "--report", str(report), stdin=text, code=1)
    refused = [(each["line"], each["reason"]) for each in map(json.loads, report.read_text().splitlines())]
    assert refused == [(4, "total_mismatch"), (6, "field_malformed"), (8, "field_malformed")]
    assert (mixed["accepted"], mixed["refused"], mixed["refusals"][0]["reason"]) == (2, 3, "total_mismatch")
    # A line that may belong to any order of its file.
    for nobodys in (b'"open,', b"a,b", b"\xff,"):
        none = submit(
            "orders", "-", stdin="\n".join([COLUMNS, *in_csv(12)]).encode() + b"\n" + nobodys, code=1
        )
        assert (none["accepted"], none["refused"], none["parts_sent_now"]) == (0, 2, 0)
    return mixed


def submit_what_happens() -> list[dict[str, Any]]:
    """Shipping updates with refused lines beside them, and as CSV; a return as Parquet; payments."""
    scans = [
        {
            "order_id": order_id(n),
            "shipment_id": parcel(n),
            "seller_id": ANNA,
            "status": "in_transit",
            "time": at(3),
        }
        for n in (1, 3)
    ]
    more = submit(
        "shipments", "-", stdin=ndjson(*scans, {"order_id": 1}, [], {**scans[0], "time": None}), code=1
    )
    assert [each["reason"] for each in more["refusals"]] == [
        "field_missing",
        "field_malformed",
        "field_missing",
    ]
    flat = "order_id,shipment_id,seller_id,status,time,items\n"
    flat += f"{order_id(5)},{parcel(5)},{ANNA},in_transit,{at(3)},"
    flat += f'"[{{""item_id"":""{item_id(1)}"",""quantity"":1}}]"\n'
    shipped = submit("shipments", "-", stdin=flat.encode())
    buffer = io.BytesIO()
    back = {
        "order_id": order_id(5),
        "return_id": returned(1),
        "item_id": item_id(1),
        "reason": "broken",
        "status": "processed",
    }
    pq.write_table(
        pa.Table.from_pylist(
            [{**back, "time": datetime.fromisoformat(at(5)), "restock": False, "quantity": 1}]
        ),
        buffer,
    )
    came = submit("returns", "-", stdin=buffer.getvalue())
    paid = "order_id,payment_id,amount,currency,method,time\n"
    paid += (
        f"{order_id(3)},{parcel(31)},30.00,EUR,card,{at(2)}\n{order_id(4)},{parcel(41)},1.005,EUR,,{at(2)}\n"
    )
    captured = submit("payments", "-", stdin=paid.encode(), code=1)
    assert (captured["accepted"], captured["refusals"][0]["line"]) == (1, 3)
    return [more, shipped, came, captured]


async def test_every_kind_in_every_form(fresh: Settings, tmp_path: Path) -> None:
    """Six files of orders, four of what happens to them; refused lines beside them; submitted
    twice; the audit is clean.
    """
    jobs, mixed, later = submit_orders(tmp_path), submit_with_refused_lines(tmp_path), submit_what_happens()
    submitted = [each["job_id"] for each in (*jobs, mixed, *later)]

    # What is no part, and what is in a part and no event, is a dead letter and harms nothing.
    headers, _ = record("order.bulk", {})
    part = {
        "job_id": ORDER,
        "part": 1,
        "parts": 1,
        "events": [an_order(12, id="12"), {"order_id": 7}, an_order(13, id="13")],
    }
    async with AIOKafkaProducer(**kafka(fresh.brokers)) as producer:
        for value in (b"{", json.dumps(part | {"part": 2}).encode(), json.dumps(part).encode()):
            await producer.send_and_wait("order.bulk", value, headers=headers)
    with worker(tmp_path) as both:
        await completed(fresh, ORDER, *submitted)
        processed()
        assert both.terminate() == 0, both.text()[-3000:]
    assert sorted(map(str, await values(fresh, "SELECT id FROM orders_order"))) == [
        order_id(n) for n in (1, 2, 3, 4, 5, 6, 7, 11, 12, 13)
    ]
    assert await values(fresh, "SELECT count(*) FROM orders_shipment WHERE status = 'in_transit'") == [3]
    assert await values(fresh, "SELECT status FROM orders_return") == ["processed"]
    paid = [json.loads(each.value) for each in await read(fresh, "order.paid")]
    assert [(each["order_id"], each["amount"]) for each in paid] == [(order_id(3), "30.00")]
    letters = Counter(dict(each.headers)["dlq_topic"] for each in await read(fresh, DLQ))
    assert letters == {b"order.bulk": 2, b"order.created": 1}
    ids = {dict(each.headers).get("ce_id") for each in await read(fresh, "order.created")}
    assert b"mine" in ids
    done = {each.key.decode(): json.loads(each.value) for each in await read(fresh, BULK_COMPLETED)}
    assert set(done) == {ORDER, *submitted}
    assert done[mixed["job_id"]] == {"job_id": mixed["job_id"], "kind": "orders", "parts": 1, "events": 2}
    printed = orders("bulk", "status", mixed["job_id"], "--json")
    [shown] = json.loads(printed.stdout)["jobs"]
    assert (shown["state"], shown["job_id"]) == ("completed", mixed["job_id"])
    assert (shown["lines"], shown["refused"], shown["parts_done"], shown["events"]) == (5, 3, 1, 2)
    audit()


async def test_killed_anywhere_every_line_arrives(fresh: Settings, tmp_path: Path, monkeypatch: Any) -> None:
    """The submitter dies before its third part, the worker in the middle of a part: the same
    parts, and each order once.
    """
    file = tmp_path / "orders.ndjson"
    file.write_bytes(ndjson(*(an_order(n) for n in range(1600))))
    command = (sys.executable, "-c", KILLED, "bulk", "submit", "orders", str(file), "--as-new")
    assert run(command, timeout=60).returncode == -signal.SIGKILL
    [begun] = await status(fresh, None, 9)
    job_id = str(begun["job_id"])
    assert begun["state"] == "submitting"

    other = tmp_path / "other.ndjson"
    other.write_bytes(ndjson(an_order(1)))
    done = orders("bulk", "submit", "orders", str(other), "--as-new", "--job", job_id)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is that of another file or kind" in done.stderr

    monkeypatch.setenv("ORDERS_BULK_RATE", "500")
    with worker(tmp_path, "one", (*ORDERS, "worker", "--role", "bulk", "--name", "one")) as first:
        rest = submit("orders", file)
        assert (rest["job_id"], rest["parts"], rest["parts_sent_now"]) == (job_id, 4, 2)

        async def begins() -> bool:
            return bool((await job(fresh, job_id))["parts_done"])

        await eventually(begins, "a part is unpacked", 60)
        first.kill()
    assert (stopped := await job(fresh, job_id))["parts_done"] < stopped["parts"]
    monkeypatch.setenv("ORDERS_BULK_RATE", "100000")
    with worker(tmp_path, "two"):
        await completed(fresh, job_id)
        processed()
    parts: dict[tuple[int, int], set[str]] = {}
    for each in await read(fresh, BULK[0]):
        part = json.loads(each.value)
        parts.setdefault((part["part"], part["parts"]), set()).add(json.dumps(part["events"]))
    assert {len(same) for same in parts.values()} == {1}
    assert set(parts) == {(n, 4) for n in (1, 2, 3, 4)}
    ids = [dict(each.headers)["ce_id"] for each in await read(fresh, "order.created")]
    assert len(set(ids)) == 1600
    assert await values(fresh, "SELECT count(*) FROM orders_order WHERE version = 1") == [1600]
    assert (await job(fresh, job_id))["events"] == 1600
    audit()


@pytest.mark.parametrize("server", AWAY)
async def test_a_server_that_goes_away_leaves_the_summary(
    fresh: Settings, tmp_path: Path, server: str
) -> None:
    """How many parts were sent, the job's id, one line of what is wrong; and the same command goes on."""
    file = tmp_path / "orders.ndjson"
    file.write_bytes(ndjson(*(an_order(n) for n in range(1600))))
    script = (
        "import asyncio, json\n"
        + KILLED.partition("async def dying")[0]
        + AWAY[server]
        + "from cli.main import main\nmain()\n"
    )
    command = (sys.executable, "-c", script, "bulk", "submit", "orders", str(file), "--as-new", "--json")
    done = run(command, timeout=60)
    assert done.returncode == 1, done.stderr[-2000:]
    summary = json.loads(done.stdout)
    assert (summary["parts"], summary["parts_sent_now"], summary["failed"]) == (4, 2, True)
    assert done.stderr.startswith(f"orders: cannot reach {server.title()} at ")
    assert done.stderr.count("\n") == 1
    rest = submit("orders", file)
    assert (rest["job_id"], rest["parts_sent_now"]) == (summary["job_id"], 2)


async def test_a_bulk_worker_ends_in_order_and_waits_for_the_pipeline(
    fresh: Settings, tmp_path: Path, monkeypatch: Any
) -> None:
    """Without a pipeline that works it off, no more is unpacked than it may have before it."""
    monkeypatch.setenv("ORDERS_BULK_BACKLOG", "40")
    monkeypatch.setenv("ORDERS_LOG_LEVEL", "debug")
    monkeypatch.setenv("ORDERS_BULK_RATE", "400")
    file = tmp_path / "orders.ndjson"
    file.write_bytes(ndjson(*(an_order(n) for n in range(200))))
    job_id = submit("orders", file)["job_id"]
    with worker(tmp_path, "b", (*ORDERS, "worker", "--role", "bulk", "--name", "b")) as alone:
        until(lambda: "bulk waits" in alone.text(), "the bound is reached")
        assert alone.terminate() == 0
    assert len(await read(fresh, "order.created")) < 200
    with (
        worker(tmp_path, "r", (*ORDERS, "worker", "--role", "realtime", "--name", "r")),
        worker(tmp_path, "b", (*ORDERS, "worker", "--role", "bulk", "--name", "b")),
    ):
        await completed(fresh, job_id)
        processed()
    assert await values(fresh, "SELECT count(*) FROM orders_order") == [200]
    # The lanes have told how long its events waited, and that nobody else did.
    async with LagReader(fresh) as reader:
        [(awaited, others)] = (await reader.look()).waits.values()
    assert (awaited.records, others.records) == (0, len(await read(fresh, "order.created")))
    assert others.ms > 0


async def test_an_unpacker_that_cannot_go_on_ends_its_worker(fresh: Settings, tmp_path: Path) -> None:
    """A bug, or what looks like one, is nothing to be lived with: the worker ends unacknowledged, and its
    successor takes the part.
    """
    connection = await asyncpg.connect(fresh.postgres.get_secret_value())
    try:
        with worker(tmp_path, "first") as first:
            await connection.execute("ALTER TABLE orders_bulk_job RENAME COLUMN done TO gone")
            headers, _ = record("return.bulk", {})
            part = {"job_id": ORDER, "part": 1, "parts": 1, "events": []}
            async with AIOKafkaProducer(**kafka(fresh.brokers)) as producer:
                await producer.send_and_wait("return.bulk", json.dumps(part).encode(), headers=headers)
            until(lambda: first.process.poll() is not None, "the worker ends")
            assert first.process.returncode == 1, first.text()[-2000:]
        await connection.execute("ALTER TABLE orders_bulk_job RENAME COLUMN gone TO done")
    finally:
        await connection.close()
    with worker(tmp_path, "second", (*ORDERS, "worker", "--role", "bulk", "--name", "second")):
        await completed(fresh, ORDER)
