"""Deadlines and simulated services on real servers: what isn't answered is asked for again, and every order
ends."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from contracts.cloudevents import SourceEvent, binary, rfc3339
from contracts.topics import DECISIONS
from settings import Settings
from tests.servers import kafka
from tests.waiting import eventually
from tests.workers import audit, orders, processed, worker
from workload.producer import send

ORDER = "0a0a0a0a-0000-4000-8000-000000000001"
SELLER = "aaaaaaaa-0000-4000-8000-000000000001"
ITEM = {
    "item_id": "10000000-0000-4000-8000-000000000001",
    "product_id": SELLER,
    "seller_id": SELLER,
    "sku": "A",
    "quantity": 1,
    "price": "9.00",
}
CREATED = {"order_id": ORDER, "user_id": SELLER, "currency": "EUR", "total_amount": "9.00", "items": [ITEM]}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that wait for seconds, not for days."""
    for name, seconds in (("payment", 3), ("stock", 1), ("release", 1), ("label", 1), ("refund", 1)):
        monkeypatch.setenv(f"ORDERS_{name.upper()}_DEADLINE", str(seconds))
    for setting, after in (("SHIP_WITHIN", 5), ("SHIP_CANCEL_AFTER", 1), ("REFUND_RETRY_AFTER", 1)):
        monkeypatch.setenv(f"ORDERS_{setting}", str(after))


def event(type_: str, data: dict[str, Any], time_us: int) -> SourceEvent:
    attributes = {
        "specversion": "1.0",
        "id": f"{type_}-1",
        "source": "/tests",
        "type": type_,
        "time": rfc3339(time_us),
    }
    headers, value = binary(attributes, data)
    return SourceEvent(type_, ORDER.encode(), value, headers, time_us)


async def records(settings: Settings, topic: str) -> list[Any]:
    """Everything on a topic, by partition and offset."""
    consumer = AIOKafkaConsumer(**kafka(settings.brokers), group_id=None, isolation_level="read_committed")
    await consumer.start()
    try:
        everything: list[Any] = []
        partitions = [TopicPartition(topic, number) for number in range(settings.partitions)]
        ends = await consumer.end_offsets(partitions)
        for tp in (tp for tp in partitions if ends[tp]):
            consumer.assign([tp])
            await consumer.seek_to_beginning(tp)
            while await consumer.position(tp) < ends[tp]:
                everything += (await consumer.getmany(tp, timeout_ms=500)).get(tp, [])
        return everything
    finally:
        await consumer.stop()


def kinds(written: list[Any]) -> list[tuple[str, int, bool]]:
    """(deadline, attempt, final) of each record that says that one passed."""
    data = [
        json.loads(record.value)
        for record in written
        if dict(record.headers)["ce_type"] == b"deadline.passed"
    ]
    return [(each["deadline"], each["attempt"], each["final"]) for each in data]


def now() -> int:
    """Microseconds since 1970 by this machine's clock, which is the broker's too."""
    return time.time_ns() // 1000


@pytest.mark.parametrize("delivery", ["at_least_once", "exactly_once"])
async def test_an_order_that_nobody_answers_closes(
    fresh: Settings, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch, delivery: str
) -> None:
    monkeypatch.setenv("ORDERS_DELIVERY", delivery)
    with worker(tmp_path, "w1"):
        await send(fresh, [event("order.created", CREATED, now())])

        async def closed() -> bool:
            updates = [json.loads(record.value) for record in await records(fresh, "suborder.updated")]
            return any(
                (each["status"], each.get("closed_because")) == ("closed", "stock_unanswered")
                for each in updates
            )

        await eventually(closed, "the order is closed", 30)
        processed()
    decisions = await records(fresh, DECISIONS)
    passed = kinds(decisions)
    assert [each for each in passed if each[0] == "stock"] == [
        ("stock", 1, False),
        ("stock", 2, False),
        ("stock", 3, True),
    ]
    for record in decisions:
        moment = dict(record.headers)["ce_time"].decode()
        assert record.timestamp >= 1000 * _seconds(moment), (
            "by the broker's clock it had passed when it was written"
        )
    assert len(await records(fresh, "stock.reserve")) == 3
    assert len({dict(record.headers)["ce_id"] for record in await records(fresh, "stock.reserve")}) == 1
    audit()


async def test_a_deadline_survives_the_worker_and_its_disk(
    fresh: Settings, tmp_path: Path, impatient: None
) -> None:
    with worker(tmp_path, "w1") as first:
        await send(fresh, [event("order.created", CREATED, now())])
        processed()
        first.kill()
    with worker(tmp_path, "another"):  # with an empty folder: its index comes from the changelog

        async def asked_again() -> bool:
            return ("stock", 1, False) in kinds(await records(fresh, DECISIONS))

        await eventually(asked_again, "the stock is asked for again", 30)
        processed()
    audit()


async def test_history_waits_for_nothing(fresh: Settings, tmp_path: Path, impatient: None) -> None:
    other = str(uuid5(UUID(ORDER), "recent"))
    with worker(tmp_path, "w1"):
        at = now()
        old = event("order.created", CREATED, at - 2 * 3600 * 1_000_000)
        new = event("order.created", {**CREATED, "order_id": other}, at)._replace(key=other.encode())
        await send(fresh, [old, new])

        async def fired() -> bool:
            return bool(kinds(await records(fresh, DECISIONS)))

        await eventually(fired, "a deadline of the recent order passes", 30)
        processed()
    whose = {json.loads(record.value)["order_id"] for record in await records(fresh, DECISIONS)}
    assert whose == {other}
    audit()


async def test_what_is_never_shipped_is_told_asked_back_and_closed(
    fresh: Settings, tmp_path: Path, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORDERS_LABEL_DEADLINE", "0")
    with worker(tmp_path, "w1"):
        at = now()
        promised = {**ITEM, "ship_by": rfc3339(at + 1_000_000)}
        paid = {"payment_id": SELLER, "amount": "9.00", "currency": "EUR"}
        reservation = str(uuid5(UUID(ORDER), f"reservation:{SELLER}"))
        reply = {"order_id": ORDER, "seller_id": SELLER, "reservation_id": reservation}
        await send(
            fresh,
            [
                event("order.created", {**CREATED, "items": [promised]}, at),
                event("stock.reserved", reply, at),
                event("order.paid", {"order_id": ORDER, **paid}, at),
            ],
        )

        async def asked_back() -> bool:
            return bool(await records(fresh, "stock.release"))

        await eventually(asked_back, "the stock is asked back", 30)
        await send(fresh, [event("stock.released", reply, now())])
        processed()
    (late,) = [json.loads(record.value) for record in await records(fresh, "suborder.late")]
    assert (late["what"], late["units"]) == ("ship", 1)
    last = json.loads((await records(fresh, "suborder.updated"))[-1].value)
    assert (last["status"], last["closed_because"]) == ("closed", "not_shipped")
    assert json.loads((await records(fresh, "refund.request"))[0].value)["amount"] == "9.00"
    audit()


async def test_every_order_ends_though_services_overlook_and_workers_die(
    fresh: Settings, tmp_path: Path, impatient: None
) -> None:
    """Carts in; delivered, partly returned or closed out; nothing hangs.
    One of two workers is killed in the middle.
    """
    with worker(tmp_path, "w1") as first, worker(tmp_path, "w2"):
        simulating = asyncio.create_task(
            asyncio.to_thread(
                orders,
                *("simulate", "--checkouts", "100", "--rate", "40", "--delay", "0.1", "--timeout", "120"),
                *(
                    "--silence",
                    "0.1",
                    "--refusals",
                    "0.1",
                    "--duplicates",
                    "0.1",
                    "--unshipped",
                    "0.1",
                    "--seed",
                    "3",
                ),
                *("--taxed", "0.8", "--grants", "0.5", "--failed-refunds", "0.5", "--returns", "0.4"),
                *("--stock", "2"),
                "--json",
            )
        )

        async def under_way() -> bool:
            return len(await records(fresh, "shipping.label.create")) > 20

        await eventually(under_way, "labels are asked for", 60)
        first.kill()
        done = await simulating
        assert done.returncode == 0, done.stdout + done.stderr
        processed()
    summary = json.loads(done.stdout)
    assert summary["hanging"] == []
    assert summary["checkouts"] == 100 == sum(summary["ended"].values())
    assert summary["ignored"] > 0
    assert summary["ended"]["delivered"] > 0
    assert summary["unpaid"] == []
    stock = summary["stock"]
    assert stock["wrong"] == []
    assert stock["committed"] == stock["shipped"] > 0
    assert stock["restocked"] == stock["returned"] > 0
    assert stock["initial"] == stock["on_hand"] + stock["reserved"] + stock["shipped"] - stock["returned"]
    assert summary["sent"]["refund.granted"] > 5
    # Twice for each of them.
    assert summary["sent"]["refund.failed"] > 5
    taxes = await taxed_orders(fresh)
    assert taxes[True] > 20
    assert taxes[False] > 20
    report = audit()
    assert report["counts"]["orders"] == 100


async def taxed_orders(settings: Settings) -> Counter[bool]:
    """Whether prices include tax -> so many checkouts."""
    checkouts = [json.loads(each.value) for each in await records(settings, "checkout.completed")]
    modes = {each["checkout_id"]: each.get("prices_include_tax") for each in checkouts}
    return Counter(included for included in modes.values() if included is not None)


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
