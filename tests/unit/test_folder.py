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
from streams.folder import BatchFolder, BatchOutput
from streams.partitioner import partition_of
from tests.unit.builders import CHECKOUT, ORDER, PLACED, VALID, payment, record

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
    assert json.loads(first.content() or b"") == {**sent, "order_id": PLACED, "total_amount": "22.00"}
    assert again == first


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
