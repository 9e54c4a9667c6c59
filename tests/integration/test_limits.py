"""No order and no record stops its lane: beyond what one may hold it is refused,
and everything else goes on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from aiokafka import AIOKafkaProducer

from contracts.cloudevents import SourceEvent
from domain import limits
from operations.dead_letters import read
from settings import Settings
from tests.servers import kafka
from tests.unit.builders import ORDER, STRANGER, VALID, at, record
from tests.workers import audit, processed, rows, worker
from workload import generator
from workload.producer import send

WIDE = "\N{MUSICAL SYMBOL G CLEF}" * 1000


def events_of(order: str, type_: str, count: int, **fields: str) -> Iterator[SourceEvent]:
    """So many facts of one type."""
    for n in range(count):
        data = VALID[type_] | {"order_id": order} | fields
        for name in ("payment_id", "shipment_id", "return_id"):
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
    created = [created_event(order) for order in (busy, greedy)]
    history = [*generator.events(50, 31, generator.Shares(0, 0, 0)), created[0]]
    history += events_of(busy, "shipment.updated", 10_000)
    for type_ in ("payment.failed", "order.returned"):
        history += events_of(greedy, type_, 4_000, reason=WIDE)
    history += [created[1], *generator.events(50, 32, generator.Shares(0, 0, 0))]
    with worker(tmp_path, "w1"):
        await send(fresh, history)
        processed()
        report = audit()
        assert report["counts"]["orders"] == 102
        by_table = await rows(fresh)
        assert sum(order == busy for order in (str(key[1]) for key in by_table["orders_shipment"])) == 10_000
        taken = limits.TYPE_BYTES["order.returned"] // (limits.FACT_BYTES + len(WIDE.encode()))
        assert sum(str(key[1]) == greedy for key in by_table["orders_return"]) == taken
        assert report["dead_letters"] == {"order_too_large": 2 * (4_000 - taken)}


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
