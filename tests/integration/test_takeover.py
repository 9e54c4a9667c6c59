"""`orders import` on real servers: rows as told, no command, nothing twice after a kill anywhere, and live
events afterwards do what they always do.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from contracts import ids
from contracts.outgoing import DATA
from contracts.topics import DLQ, INPUT
from settings import Settings
from tests.forked import run
from tests.servers import kafka
from tests.unit.builders import ANNA, USER, at, item_id, raw, record
from tests.unit.takeover_files import COLUMNS, LIVE_FROM, PRODUCT, RETURNS, order_id, other_id, write
from tests.workers import audit, orders, processed, rows, worker

COMMANDS = tuple(topic for topic in DATA if not topic.startswith(("order.", "suborder.")))

SMALL_PARTS = """
import os, signal
from operations.submit import jobs as bulk
from operations.takeover import sending
bulk.IN_FLIGHT = bulk.NOTED_EVERY = 1
bulk.PART_EVENTS = 1
"""
DIES = {
    "a part is sent": """
from sinks.bulk import BulkJobs
sent = BulkJobs.sent
async def dying(self, job, part):
    await sent(self, job, part)
    if part == 2:
        os.kill(os.getpid(), signal.SIGKILL)
BulkJobs.sent = dying
""",
    "the jobs are sent": """
async def dying(settings, plan):
    os.kill(os.getpid(), signal.SIGKILL)
sending._send_directly = dying
""",
    "some cancellations are sent": """
from wire import AIOKafkaProducer
send = AIOKafkaProducer.send
async def dying(self, topic, *args, **more):
    future = await send(self, topic, *args, **more)
    if topic == "stock.released":
        await future
        os.kill(os.getpid(), signal.SIGKILL)
    return future
AIOKafkaProducer.send = dying
""",
    "everything is sent": """
async def dying(*args, **more):
    os.kill(os.getpid(), signal.SIGKILL)
sending.taken_in = dying
""",
}
"""Where an import is killed -> how."""
MAIN = "\nfrom cli.main import main\nmain()\n"


async def ends(settings: Settings, topics: tuple[str, ...]) -> dict[str, int]:
    """How many records these topics have."""
    consumer = AIOKafkaConsumer(**kafka(settings.brokers))
    await consumer.start()
    try:
        counts = {}
        for topic in topics:
            places = [TopicPartition(topic, n) for n in range(settings.partitions)]
            counts[topic] = sum((await consumer.end_offsets(places)).values())
        return counts
    finally:
        await consumer.stop()


async def send(settings: Settings, type_: str, data: dict[str, Any], time: str) -> None:
    """Send one live event."""
    headers, value = record(type_, data, time=time, id=f"{type_} at {time}")
    async with AIOKafkaProducer(**kafka(settings.brokers)) as producer:
        await producer.send_and_wait(type_, value, key=data["order_id"].encode(), headers=headers)


async def statuses(settings: Settings) -> dict[str, tuple[str, int]]:
    """Order -> status and version."""
    connection = await asyncpg.connect(settings.postgres.get_secret_value())
    try:
        return {
            str(row["id"]): (row["status"], row["version"])
            for row in await connection.fetch("SELECT id, status::text, version FROM orders_order")
        }
    finally:
        await connection.close()


def imported(folder: Path, *more: str, code: int = 0) -> dict[str, Any]:
    done = orders("import", str(folder), "--live-from", LIVE_FROM, "--json", *more)
    assert done.returncode == code, done.stdout[-2000:] + done.stderr[-3000:]
    document: dict[str, Any] = json.loads(done.stdout)
    return document


async def test_history_is_there_and_asked_for_nothing(fresh: Settings, tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", returns=RETURNS)
    with worker(tmp_path):
        refused = imported(folder, code=1)
        assert refused["sent"] is False
        assert {each["order_id"] for each in refused["untold"]} == {order_id(1), order_id(4)}
        assert await ends(fresh, INPUT) == dict.fromkeys(INPUT, 0), "nothing was sent"

        done = imported(folder, "--refunds-as-computed")
        assert done["compared"] == {"as_told": 4, "later": 0, "differences": [], "different": 0}
        expected = {
            order_id(1): "delivered",
            order_id(2): "shipped",
            order_id(3): "pending",
            order_id(4): "confirmed",
        }
        there = await statuses(fresh)
        assert {order: status for order, (status, _) in there.items()} == expected
        assert await ends(fresh, (*COMMANDS, DLQ)) == dict.fromkeys((*COMMANDS, DLQ), 0)
        before, inputs = await rows(fresh, physical=True), await ends(fresh, INPUT)
        again = imported(folder, "--refunds-as-computed")
        assert [each["now"] for each in again["jobs"] if each["job"]] == [0, 0, 0, 0]
        assert await rows(fresh, physical=True) == before
        sent_again = {topic for topic, count in (await ends(fresh, INPUT)).items() if count > inputs[topic]}
        assert sent_again == {"order.cancel_requested", "stock.released"}, (
            "they have no job, and change nothing"
        )
        audit()

        # From the cut-over on: a payment makes labels, a parcel a commit, a return a refund.
        paid = {"order_id": order_id(3), "payment_id": other_id(30), "amount": "30.00", "currency": "EUR"}
        await send(fresh, "order.paid", paid, at(21))
        parcel = {
            "order_id": order_id(3),
            "shipment_id": other_id(31),
            "seller_id": ANNA,
            "status": "in_transit",
        }
        processed()
        await send(fresh, "shipment.updated", parcel, at(22))
        back = {"order_id": order_id(1), "return_id": other_id(32), "item_id": item_id(1), "reason": "late"}
        await send(fresh, "order.returned", back | {"status": "processed"}, at(23))
        processed()
        counts = {topic: count for topic, count in (await ends(fresh, COMMANDS)).items() if count}
        assert counts == {
            "shipping.label.create": 2,
            "stock.commit": 1,
            "stock.restock": 1,
            "refund.request": 1,
        }
        later = imported(folder, "--refunds-as-computed")["compared"]
        assert (later["as_told"], later["later"], later["different"]) == (2, 2, 0)
        audit()


async def test_killed_anywhere_nothing_is_done_twice(fresh: Settings, tmp_path: Path) -> None:
    folder = write(tmp_path / "shop", returns=RETURNS)
    command = ("import", str(folder), "--live-from", LIVE_FROM, "--refunds-as-computed", "--json")
    with worker(tmp_path):
        for where, dying in DIES.items():
            done = run((sys.executable, "-c", SMALL_PARTS + dying + MAIN, *command), timeout=120)
            assert done.returncode == -signal.SIGKILL, (where, done.stderr[-2000:])
        done = run((sys.executable, "-c", SMALL_PARTS + MAIN, *command), timeout=120)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        document = json.loads(done.stdout)
        assert [(each["parts"], each["now"]) for each in document["jobs"][:-1]] == [
            (4, 0),
            (3, 0),
            (3, 0),
            (1, 0),
        ]
        assert document["compared"]["different"] == 0
        sent = await ends(fresh, ("order.created", "order.paid", "shipment.updated", "order.returned"))
        assert sent == {"order.created": 4, "order.paid": 3, "shipment.updated": 3, "order.returned": 1}
        assert await ends(fresh, (*COMMANDS, DLQ)) == dict.fromkeys((*COMMANDS, DLQ), 0)
        audit()


async def test_an_order_that_is_not_what_was_told_ends_with_1(fresh: Settings, tmp_path: Path) -> None:
    """Another order has its id here already."""
    other = f"{order_id(2)},{at(1)},{USER},EUR,7.00,{item_id(1)},{PRODUCT},{ANNA},tea,1,7.00\n"
    (tmp_path / "other.csv").write_text(f"{COLUMNS}\n{other}")
    folder = write(tmp_path / "shop", cancellations="")
    with worker(tmp_path):
        assert (
            orders(
                "bulk", "submit", "orders", str(tmp_path / "other.csv"), "--live-from", LIVE_FROM
            ).returncode
            == 0
        )
        processed()
        compared = imported(folder, code=1)["compared"]
        assert compared["as_told"] == 3
        assert [each["order_id"] for each in compared["differences"]] == [order_id(2)]
    assert ids.text(raw(order_id(2))) == order_id(2)


@pytest.mark.parametrize("wait", ["--no-wait", "--timeout=0"])
async def test_without_a_worker_it_says_what_to_do(fresh: Settings, tmp_path: Path, wait: str) -> None:
    folder = write(tmp_path / "shop", cancellations="")
    done = orders("import", str(folder), "--live-from", LIVE_FROM, wait)
    if wait == "--no-wait":
        assert done.returncode == 0
        assert "taken in" not in done.stdout
    else:
        assert done.returncode == 2
        assert "0 of 3 parts are unpacked" in done.stderr
        assert "start a worker" in done.stderr
