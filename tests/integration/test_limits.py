"""No order and no record stops its lane: beyond what one may hold it is refused,
and everything else goes on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from audit.auditor import OtherRoom
from contracts import bulk
from contracts.cloudevents import SourceEvent
from domain import limits
from operations import auditing
from operations.dead_letters import read
from operations.servers import require
from settings import Settings, get_settings
from streams import topics
from tests.servers import admin, kafka
from tests.unit.builders import CHECKOUT, ORDER, STRANGER, VALID, at, created, line, record
from tests.waiting import until
from tests.workers import audit, processed, rows, worker
from workload import generator
from workload.producer import send

WIDE = "\N{MUSICAL SYMBOL G CLEF}" * 1000


def events_of(order: str, type_: str, count: int, **fields: str) -> Iterator[SourceEvent]:
    """So many facts of one type."""
    for n in range(count):
        data = VALID[type_] | {"order_id": order} | fields
        for name in ("payment_id", "shipment_id", "return_id", "refund_id"):
            if name in data:
                data[name] = data[name][:24] + f"{n:012d}"
        headers, value = record(type_, data, time=at(1), id=f"{type_}-{n}")
        yield SourceEvent(type_, order.encode(), value, headers, 0)


def created_event(order: str) -> SourceEvent:
    headers, value = record("order.created", VALID["order.created"] | {"order_id": order}, time=at(0))
    return SourceEvent("order.created", order.encode(), value, headers, 0)


async def test_an_order_of_any_size_stops_no_lane(fresh: Settings, tmp_path: Path) -> None:
    """One has ten thousand scans; another has more than one order may, and would not fit
    a record of its changelog.
    """
    busy, greedy = ORDER, ORDER[:-1] + "2"
    taken = limits.TYPE_BYTES["order.returned"] // (limits.FACT_BYTES + len(WIDE.encode()))
    many = 2 * taken
    created = [created_event(order) for order in (busy, greedy)]
    history = [*generator.events(50, 31, generator.Shares(0, 0, 0)), created[0]]
    history += events_of(busy, "shipment.updated", 10_000)
    for type_ in ("payment.failed", "order.returned"):
        history += events_of(greedy, type_, many, reason=WIDE)
    history += [created[1], *generator.events(50, 32, generator.Shares(0, 0, 0))]
    with worker(tmp_path, "w1"):
        await send(fresh, history)
        processed()
        report = audit()
        assert report["counts"]["orders"] == 102
        by_table = await rows(fresh)
        assert sum(order == busy for order in (str(key[1]) for key in by_table["orders_shipment"])) == 10_000
        assert sum(str(key[1]) == greedy for key in by_table["orders_return"]) == taken
        assert report["dead_letters"] == {"order_too_large": 2 * (many - taken)}


async def test_a_record_that_came_compressed_and_is_too_large_to_pass_on(
    fresh: Settings, tmp_path: Path
) -> None:
    """Its topic takes it, since it's small as it came; what we write isn't compressed."""
    huge = {"note": "x" * (20 << 20)}
    refused = record("payment.failed", VALID["payment.failed"] | {"reason": 1} | huge)
    astray = record("payment.failed", VALID["payment.failed"] | huge)
    taken = record("payment.failed", VALID["payment.failed"] | {"payment_id": STRANGER} | huge)
    with worker(tmp_path, "w1"):
        async with AIOKafkaProducer(
            **kafka(fresh.brokers),
            compression_type="gzip",
            max_request_size=32 << 20,
            max_batch_size=32 << 20,
        ) as producer:
            for key, (headers, value) in ((ORDER, refused), ("another", astray), (ORDER, taken)):
                await producer.send_and_wait("payment.failed", value, key.encode(), headers=headers)
        await send(fresh, generator.events(20, 33, generator.Shares(0, 0, 0)))
        processed()
        report = audit()
    assert report["dead_letters"] == {"field_malformed": 1, "record_too_large": 1}
    assert report["counts"]["waiting_facts"] == 1
    letters = {letter.reason: letter async for letter in read(fresh)}
    for letter, key, headers in (
        (letters["field_malformed"], ORDER, refused[0]),
        (letters["record_too_large"], "another", astray[0]),
    ):
        assert (letter.key, letter.value, list(letter.headers)) == (key.encode(), None, headers)
        assert letter.detail.endswith("the raw record is at the coordinates")
    assert Counter(letter.record.topic for letter in letters.values()) == {"payment.failed": 2}
    assert json.loads(refused[1])["reason"] == 1


@pytest.fixture
async def small(
    migrated: None, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Settings]:
    """Topics that take no batch above 1 MiB, what Kafka takes by default."""
    monkeypatch.setenv("ORDERS_MESSAGE_BYTES", str(1 << 20))
    get_settings.cache_clear()
    small = Settings()
    await topics.delete_all(admin(small))
    await topics.ensure(small)
    yield small
    await topics.delete_all(admin(small))


def wide(order: str, lines: int) -> SourceEvent:
    headers, value = record("order.created", created(*map(line, range(lines)), order_id=order), time=at(0))
    return SourceEvent("order.created", order.encode(), value, headers, 0)


def checkout(number: int, lines: int) -> SourceEvent:
    """One of so many lines, of some 300 bytes each."""
    key = f"{number:08x}{CHECKOUT[8:]}"
    data = {**created(*(line(n, sku="x" * 100) for n in range(lines))), "checkout_id": key}
    del data["order_id"]
    headers, value = record("checkout.completed", data, time=at(0), id=f"checkout-{number}")
    return SourceEvent("checkout.completed", key.encode(), value, headers, 0)


async def test_a_kafka_that_takes_no_batch_above_1_mib(
    small: Settings,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_command: Callable[..., tuple[int, str]],
) -> None:
    """As much less is taken in, so that everything that is written fits: states, derived events and dead
    letters. Who has another setting is told.
    """
    greedy, later = ORDER, ORDER[:-1] + "2"
    history = [wide(greedy, 100), wide(later, 110), checkout(0, 110), checkout(1, 90)]
    for type_, field in (
        ("payment.failed", "reason"),
        ("order.returned", "reason"),
        ("shipment.updated", "location"),
        ("refund.failed", "reason"),
    ):
        history += events_of(greedy, type_, 30, **{field: WIDE})
    bounds = limits.limits_of(1 << 20)
    fact = limits.FACT_BYTES + len(WIDE.encode())
    refused = (
        3 * (30 - bounds.types["order.returned"] // fact)
        + 30
        - bounds.types["shipment.updated"] // (fact + 30)
    )
    await send(small, history)
    astray = record("payment.failed", VALID["payment.failed"] | {"note": "x" * 917_504})
    async with AIOKafkaProducer(
        **kafka(small.brokers), compression_type="gzip", max_request_size=2 << 20
    ) as out:
        await out.send_and_wait("payment.failed", astray[1], b"another", headers=astray[0])
        scan = {
            **VALID["shipment.updated"],
            "order_id": greedy,
            "id": "s",
            "time": at(1),
            "note": "x" * 655_360,
        }
        part = bulk.encode_part(ORDER, 1, 1, [json.dumps(scan).encode()])
        headers = bulk.headers_of("shipment.bulk", ORDER, at(1), "/bulk")
        await out.send_and_wait("shipment.bulk", part, b"job", headers=headers)
    with worker(tmp_path, "w1") as one:
        until(lambda: "is unpacked" in one.text(), "the bulk job is unpacked")
        processed()
        assert one.process.poll() is None
        report = audit()
    assert report["dead_letters"] == {"order_too_large": 2 + refused, "record_too_large": 2}
    assert report["counts"]["orders"] == 2
    for other in (8 << 20, 24 << 20):
        elsewhere = small.model_copy(update={"message_bytes": other})
        said = f"=1048576, ORDERS_MESSAGE_BYTES is {other}: .*set ORDERS_MESSAGE_BYTES=1048576"
        with pytest.raises(topics.TopicMismatch, match=said):
            await require(elsewhere)
        with pytest.raises(OtherRoom, match=said):
            await auditing.audit(auditing.target_of(elsewhere, cache=False, tables=False), max_findings=1)
    monkeypatch.setenv("ORDERS_MESSAGE_BYTES", str(8 << 20))
    get_settings.cache_clear()
    assert run_command("whatif") == (1, ""), "it names the orders that hold more, or would"
    code, said = run_command("worker")
    assert (code, "set ORDERS_MESSAGE_BYTES=1048576 here" in said) == (2, True)
