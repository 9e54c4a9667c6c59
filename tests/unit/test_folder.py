"""What a batch passes on: a checkout as its order's order.created, an event under
another key to its order's lane.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from operations.history import fold
from settings import Settings
from streams.folder import SLICE_RECORDS, BatchFolder, BatchOutput
from streams.partitioner import partition_of
from tests.unit.builders import CHECKOUT, ORDER, PLACED, VALID, line, payment, record
from workload import generator

LANES = Settings().partitions


def folded(topic: str, key: str, count: int = 1) -> BatchOutput:
    """What `count` records of this valid event come to, at offset 7 and after, in the lane of their key."""
    headers, value = record(topic, VALID[topic])
    lane = partition_of(key.encode(), LANES)
    taken: dict[str, Any] = {"topic": topic, "partition": lane, "timestamp": 1, "timestamp_type": 1}
    records: Any = [
        SimpleNamespace(**taken, offset=7 + n, key=key.encode(), value=value, headers=headers)
        for n in range(count)
    ]
    (work,) = fold(BatchFolder(Settings()), lane, records, lambda keys: [None] * len(keys))
    return work


def test_a_checkout_becomes_its_orders_order_created() -> None:
    first, again = folded("checkout.completed", CHECKOUT, count=2).out["order.created"]
    assert first.key == PLACED.encode()
    assert first.partition == partition_of(first.key, LANES)
    sent = {name: value for name, value in VALID["checkout.completed"].items() if name != "checkout_id"}
    sent |= {"order_id": PLACED, "total_amount": "22.00", "cart_created_at": "2025-12-31T22:00:00+00:00"}
    assert json.loads(first.content() or b"") == sent
    assert again == first


def test_a_checkout_that_no_order_may_begin_with_is_refused() -> None:
    few = {
        **VALID["checkout.completed"],
        "items": [{**line(1), "quantity": 14_431}],
        "total_amount": "144310.00",
    }
    few.pop("discount_amount")
    headers, value = record("checkout.completed", few)
    given: Any = SimpleNamespace(
        topic="checkout.completed",
        partition=0,
        timestamp=1,
        timestamp_type=1,
        offset=7,
        key=None,
        value=value,
        headers=headers,
    )
    for settings, topic in ((Settings(), "order.created"), (Settings(message_bytes=1 << 20), "orders.dlq")):
        (work,) = fold(BatchFolder(settings), 0, [given], lambda keys: [None] * len(keys))
        assert set(work.out) == {topic}
        assert work.letters == ({"order_too_large": 1} if topic == "orders.dlq" else {})


def test_a_dead_letter_has_room_in_a_smaller_topic() -> None:
    """Seven eighths of it for the record: beyond that its value is left out."""
    for size, kept in ((917_504, True), (917_505, False)):
        key, name = ORDER.encode(), "n"
        value = b"x" * (size - len(key) - len(name) - 10)
        given: Any = SimpleNamespace(
            topic="order.paid",
            partition=0,
            timestamp=1,
            timestamp_type=1,
            offset=7,
            key=key,
            value=value,
            headers=[(name, b"")],
        )
        folder = BatchFolder(Settings(message_bytes=1 << 20))
        (letter,) = next(iter(fold(folder, 0, [given], lambda keys: []))).out["orders.dlq"]
        assert (letter.content() == value) is kept
        taken = (
            len(key)
            + len(letter.content() or b"")
            + sum(len(name) + len(text) + 10 for name, text in letter.headers)
        )
        assert taken + 1024 < 1 << 20


@pytest.mark.parametrize("key", [payment(1), ORDER.upper()], ids=["another id", "not in canonical form"])
def test_an_event_under_another_key_goes_to_its_orders_lane(key: str) -> None:
    work = folded("order.paid", key)
    assert work.states == {}
    assert set(work.out) == {"orders.rekeyed"}
    (sent,) = work.out["orders.rekeyed"]
    assert sent.key == ORDER.encode()
    assert sent.partition == partition_of(sent.key, LANES)
    headers, value = record("order.paid", VALID["order.paid"])
    assert sent.content() == value
    assert sent.headers == [
        *headers,
        ("rekeyed_topic", b"order.paid"),
        ("rekeyed_partition", b"%d" % partition_of(key.encode(), LANES)),
        ("rekeyed_offset", b"7"),
        ("rekeyed_key", key.encode()),
    ]


@pytest.mark.parametrize("seed", range(3))
def test_whatever_a_batch_writes_stands_in_it_once_as_it_is_last(seed: int) -> None:
    """However many slices have had an order, and whichever of its events came again."""
    events = list(generator.events(60, seed, generator.Shares(duplicates=0.4, shuffle=0.5)))
    # Every tenth event once more, as if it had happened earlier: order.created, too.
    for each in events[::10]:
        headers = [
            (name, b"2001-01-01T00:00:00Z" if name == "ce_time" else raw) for name, raw in each.headers
        ]
        events.append(each._replace(headers=headers))
    given: list[Any] = [
        SimpleNamespace(
            topic=each.topic,
            partition=0,
            timestamp=1,
            timestamp_type=1,
            offset=n,
            key=each.key,
            value=each.value,
            headers=each.headers,
        )
        for n, each in enumerate(events)
    ]
    assert len(given) > 3 * SLICE_RECORDS
    folder, states = BatchFolder(Settings(partitions=1)), dict[bytes, bytes]()
    (whole,) = fold(folder, 0, given, lambda keys: [None] * len(keys))
    last: list[dict[Any, Any]] = [{} for _ in written(whole)]
    for each in given:
        (work,) = fold(folder, 0, [each], lambda keys: [states.get(key) for key in keys])
        states.update(work.states)
        for known, part in zip(last, written(work), strict=True):
            known.update(part)
    for known, part in zip(last, written(whole), strict=True):
        assert len(part) == len(dict(part))
        assert dict(part) == known
    assert whole.states == states


def written(work: BatchOutput) -> list[list[tuple[Any, Any]]]:
    """Rows and cache entries, with their keys."""
    rows = work.rows
    return [
        [(row.id, row) for row in rows.orders],
        *(
            [((row.order_id, row.id), row) for row in part]
            for part in (
                rows.items,
                rows.shipments,
                rows.returns,
                rows.suborders,
                rows.payments,
                rows.refunds,
            )
        ),
        [(entry.order_id, entry._replace(untracked=[])) for entry in work.cache],
    ]
