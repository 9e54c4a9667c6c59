"""Whatever upstreams send, under whatever key and with whatever headers, the audit stays clean:
before and after a redrive.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any, NamedTuple
from uuid import UUID, uuid5

from aiokafka import AIOKafkaProducer

from contracts.topics import BULK
from settings import Settings
from tests.fuzz.records import record
from tests.servers import kafka
from tests.unit.builders import (
    ANNA,
    ORDER,
    attributes,
    binary,
    created,
    item_id,
    line,
    parcel,
    payment,
    returned,
)
from tests.workers import audit, orders, processed, worker

SEED = 12
RECORDS = 1_500
OF_AN_ORDER = 12
OURS = (
    *("rekeyed_topic", "rekeyed_partition", "rekeyed_offset", "rekeyed_key", "redrive_of", "redrive_count"),
    *("dlq_topic", "dlq_partition", "dlq_offset", "dlq_reason", "dlq_detail", "dlq_time"),
)
"""Headers that we add to records: an upstream that mirrors, retries or copies may send any of them."""


class Sent(NamedTuple):
    topic: str
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes | None]]


def mutated() -> Iterator[Sent]:
    """Records of the fuzzer as those of many orders, with our own headers among theirs."""
    for n in range(RECORDS):
        given, dice = record(SEED, n), Random(n)
        if given.value is not None:
            order = str(uuid5(UUID(ORDER), str(n // OF_AN_ORDER)))
            value = given.value.replace(ORDER.encode(), order.encode()).replace(
                ORDER.upper().encode(), order.upper().encode()
            )
            headers = [
                (name, text) for name, text in given.headers if name.isprintable()
            ]  # aiokafka takes no others
            for _ in range(dice.choice((0, 0, 1, 3))):
                forged = dice.choice(
                    (None, b"", b"0", b"0:0", b"order.created", b"\xff", order.encode(), b"9" * 30)
                )
                headers.insert(dice.randrange(len(headers) + 1), (dice.choice(OURS), forged))
            own = order.encode()
            yield Sent(
                given.topic,
                dice.choice((own, own, own, own, None, b"", own.upper(), b"\xff\xfe", b"%d" % n)),
                value,
                headers,
            )


def extreme(n: int, time: str, text: str) -> Iterator[Sent]:
    """One order at a time at the end of the calendar, with such a text wherever there is one."""
    order = str(uuid5(UUID(ORDER), f"extreme {n}"))
    by_type: dict[str, dict[str, Any]] = {
        "order.created": created(line(1, quantity=2, sku=text), region=text),
        "order.paid": {"payment_id": payment(1), "amount": "20.00", "currency": "EUR", "method": text},
        "shipment.updated": {
            "shipment_id": parcel(n),
            "seller_id": ANNA,
            "status": "delivered",
            "carrier": text,
            "tracking_number": f"{text[:900]}{n}",
            "location": text,
            "estimated_delivery": time[:10],
        },
        "order.returned": {
            "return_id": returned(n),
            "item_id": item_id(1),
            "reason": text,
            "status": "processed",
            "quantity": 1,
            "processed_at": time,
        },
        "stock.rejected": {
            "seller_id": ANNA,
            "reservation_id": parcel(1),
            "reason": text,
            "items": [{"item_id": item_id(1), "quantity": 1}],
        },
        "payment.failed": {"payment_id": payment(2), "reason": text},
        "order.cancel_requested": {"reason": text, "seller_id": ANNA},
    }
    by_type["stock.rejected"]["items"] = [{"item_id": item_id(1), "quantity": 1}]
    for type_, data in by_type.items():
        headers = binary(attributes(type_, time=time, id=text or "e", source=text or "s"))
        yield Sent(type_, order.encode(), json.dumps({**data, "order_id": order}).encode(), [*headers])


def large() -> Iterator[Sent]:
    """Records of more than may be passed on, though they take little room compressed; and one that
    is wrong by a text of 5 MB.
    """
    for n, size in enumerate((6 << 20, 7 << 20, 8 << 20)):
        for key in (None, b"own"):
            for type_, data in (("order.created", created()), ("payment.failed", {})):
                order = str(uuid5(UUID(ORDER), f"large {n} {key!r} {type_}"))
                headers: list[tuple[str, bytes | None]] = [*binary(attributes(type_)), ("dlq_x", b"x" * size)]
                yield Sent(
                    type_, key and order.encode(), json.dumps({**data, "order_id": order}).encode(), headers
                )
    scan = {"order_id": ORDER, "shipment_id": parcel(1), "seller_id": ANNA, "status": "x" * (5 << 20)}
    yield Sent(
        "shipment.updated",
        ORDER.encode(),
        json.dumps(scan).encode(),
        [*binary(attributes("shipment.updated"))],
    )


def astray() -> Iterator[Sent]:
    """Rivals under foreign keys, or none, with headers as if they had been passed on before."""
    order = str(uuid5(UUID(ORDER), "astray"))
    forged: list[tuple[str, bytes | None]] = [(name, b"7") for name in OURS]
    for n, key in enumerate((b"astray", None, order.encode(), b"astray too", None)):
        data = {"order_id": order, "payment_id": payment(1), "amount": f"{n + 1}.00", "currency": "EUR"}
        yield Sent("order.paid", key, json.dumps(data).encode(), [*binary(attributes("order.paid")), *forged])


def checkouts() -> Iterator[Sent]:
    """A checkout that comes three times, names an order, and pretends to be ours."""
    checkout = str(uuid5(UUID(ORDER), "checkout"))
    order = str(uuid5(UUID(checkout), "order"))
    for source, key in (("/shop", checkout), ("/orders", order), ("/shop", "astray")):
        data = {**created(), "checkout_id": checkout, "order_id": ORDER if source == "/shop" else 7}
        headers = binary(attributes("checkout.completed", source=source))
        yield Sent("checkout.completed", key.encode(), json.dumps(data).encode(), [*headers])
    headers = binary(attributes("order.created", source="/orders"))
    yield Sent(
        "order.created",
        order.encode(),
        json.dumps({**created(line(2)), "order_id": order}).encode(),
        [*headers],
    )


def parts() -> Iterator[Sent]:
    """Parts of bulk jobs with events of any form."""
    whole = {
        **created(),
        "order_id": str(uuid5(UUID(ORDER), "bulk")),
        "id": "é" * 1_000,
        "time": "2026-03-01T10:00:00Z",
    }
    odd = [
        {name: value for name, value in whole.items() if name != left} for left in ("id", "time", "order_id")
    ]
    events: list[Any] = [
        whole,
        *odd,
        whole | {"time": 5},
        whole | {"id": "x" * 3_000_000},
        whole | {"id": None},
        5,
        None,
        [],
        {},
    ]
    for topic in BULK:
        job = str(uuid5(UUID(ORDER), topic))
        data = {"job_id": job, "part": 1, "parts": 1, "events": events}
        yield Sent(topic, job.encode(), json.dumps(data).encode(), [*binary(attributes(topic))])


async def test_the_audit_stays_clean(fresh: Settings, tmp_path: Path) -> None:
    times = ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59.999999Z", "2016-12-31T23:59:60Z")
    texts = ("", "😀" * 1_000, "\x01\b\t\n\v\f\r\\\"'\x7f", "\\N\\.\u2028\uffff", "[bold]%s{}\x1b[31m")
    ends = [each for n in range(15) for each in extreme(n, times[n % 3], texts[n % 5])]
    async with AIOKafkaProducer(
        **kafka(fresh.brokers), compression_type="gzip", max_request_size=32 << 20
    ) as producer:
        sending = []
        for topic, key, value, headers in (*mutated(), *ends, *large(), *astray(), *checkouts(), *parts()):
            place = {"partition": 0} if key is None else {}
            sending.append(await producer.send(topic, value, key=key, headers=headers, **place))
        await asyncio.gather(*sending)
    with worker(tmp_path):
        processed()
        counts = audit()["counts"]
        assert (
            min(
                counts[each]
                for each in (
                    "facts",
                    "refused",
                    "rekeyed",
                    "conflicts",
                    "duplicates",
                    "checkouts",
                    "derived_events",
                )
            )
            > 5
        )
        done = orders("dlq", "redrive", "--all", "--json")
        assert json.loads(done.stdout)["sent"] > 500, done.stderr
        processed()
        assert audit()["counts"]["redriven"] > 500
