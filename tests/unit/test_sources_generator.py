"""The generator: the same every time, adds up, and every kind of trouble occurs as often as asked for."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from decimal import Decimal
from itertools import pairwise
from random import Random
from typing import Any
from uuid import UUID, uuid5

import pytest
from aiokafka.partitioner import murmur2

from contracts import errors
from contracts.cloudevents import SourceEvent
from contracts.errors import Refused
from domain.events import decode
from streams import partitioner
from workload import generator, producer
from workload.generator import Shares
from workload.poison import POISONS, Anchor

CLEAN = Shares(duplicates=0, shuffle=0, poison=0)
DIGITS = {"JPY": 0, "EUR": 2, "USD": 2, "BRL": 2, "BHD": 3, "KWD": 3}
TAXES = ("taxes", "shipping_taxes")


def parts(event: SourceEvent) -> tuple[dict[str, Any], dict[str, Any]]:
    """Attributes and data of a valid event of either binding, ids in canonical form."""
    assert event.value is not None
    headers = {name: value.decode() for name, value in event.headers}
    body = json.loads(event.value)
    if headers["content-type"].startswith("application/cloudevents+json"):
        attributes, data = {name: value for name, value in body.items() if name != "data"}, body["data"]
    else:
        attributes, data = (
            {name[3:]: value for name, value in headers.items() if name.startswith("ce_")},
            body,
        )
    return attributes, canonical(data)


def canonical(data: dict[str, Any]) -> dict[str, Any]:
    return {
        name: [canonical(item) for item in value]
        if name == "items"
        else str(UUID(value))
        if name.endswith("_id")
        else value
        for name, value in data.items()
    }


@pytest.fixture(scope="module")
def clean() -> list[SourceEvent]:
    return list(generator.events(600, 5, CLEAN))


def test_the_same_seed_gives_the_same_bytes() -> None:
    shares = Shares(0.05, 0.05, 0.02)
    assert list(generator.events(50, 1, shares)) == list(generator.events(50, 1, shares))
    assert list(generator.events(50, 1, shares)) != list(generator.events(50, 2, shares))
    assert list(generator.workload(50, 1, 10)) == list(generator.workload(50, 1, 10))


def test_every_event_is_valid_and_in_the_order_of_its_time(clean: list[SourceEvent]) -> None:
    for event in clean:
        decoded = decode(event.topic, event.headers, event.value)
        assert (decoded.type, decoded.time) == (event.topic, event.time_us)
    assert all(earlier.time_us <= later.time_us for earlier, later in pairwise(clean))
    assert {event.topic for event in clean} == {
        "order.created",
        "order.paid",
        "payment.failed",
        "stock.reserved",
        "stock.rejected",
        "stock.released",
        "order.cancel_requested",
        "promise.updated",
        "shipment.updated",
        "order.returned",
        "refund.granted",
    }


def test_orders_add_up(clean: list[SourceEvent]) -> None:
    orders = [parts(event)[1] for event in clean if event.topic == "order.created"]
    assert len(orders) == 600
    for order in orders:
        lines = sum(
            Decimal(item["price"]) * item["quantity"] + Decimal(item.get("shipping_amount", 0))
            for item in order["items"]
        )
        discount = Decimal(order.get("discount_amount", 0))
        taxes = [tax for item in order["items"] for name in TAXES for tax in item.get(name, ())]
        on_top = 0 if order.get("prices_include_tax") else sum(Decimal(tax["amount"]) for tax in taxes)
        assert Decimal(order["total_amount"]) == lines - discount + on_top
        assert len(order["total_amount"].partition(".")[2]) == DIGITS[order["currency"]]
    assert {order["currency"] for order in orders} == set(DIGITS)
    assert max(len({item["seller_id"] for item in order["items"]}) for order in orders) >= 3
    assert any("discount_amount" in order for order in orders)
    assert any("region" not in order for order in orders)
    taxed = [order for order in orders if "prices_include_tax" in order]
    assert {order["currency"] for order in taxed} == set(DIGITS)
    assert {order["prices_include_tax"] for order in taxed} == {True, False}


def test_as_many_orders_have_taxes_as_are_asked_for() -> None:
    for taxed, counts in ((0, {0}), (1, {50})):
        created = [
            parts(event)[1]
            for event in generator.events(50, 1, generator.Shares(0, 0, 0), taxed)
            if event.topic == "order.created"
        ]
        assert {sum("prices_include_tax" in order for order in created)} == counts


def test_as_many_orders_are_promised_as_are_asked_for() -> None:
    for share, counts in ((0.0, {0}), (1.0, {50})):
        events = [(event.topic, parts(event)[1]) for event in generator.events(50, 1, CLEAN, promised=share)]
        created = [data for topic, data in events if topic == "order.created"]
        assert {sum("ship_by" in order["items"][0] for order in created)} == counts
        assert any(topic == "promise.updated" for topic, _ in events) == bool(share)


def test_what_is_promised_changes_nothing_else_of_an_order() -> None:
    def others(promised: float) -> list[str]:
        events_without = []
        for event in generator.events(50, 1, CLEAN, promised=promised):
            data = parts(event)[1]
            for item in data.get("items") or ():
                item.pop("ship_by", None)
                item.pop("deliver_by", None)
            if event.topic != "promise.updated":
                events_without.append(json.dumps([event.topic, data], sort_keys=True))
        return sorted(events_without)

    assert others(0.0) == others(1.0)


def test_as_many_orders_have_grants_as_are_asked_for_and_nothing_else_changes() -> None:
    none, some, every = (
        [parts(event) for event in generator.events(50, 1, generator.Shares(0, 0, 0), granted=share)]
        for share in (0, 0.3, 1)
    )
    counts = []
    for stream in (none, some, every):
        granted = [data for _, data in stream if "grant_id" in data]
        counts.append(len({data["order_id"].replace("-", "").lower() for data in granted}))
        others = {(data["order_id"], len(data)) for _, data in stream if "items" in data}
        assert len(others) >= 50
    assert counts[0] == 0
    assert 5 <= counts[1] <= 30
    paid = [
        data for _, data in every if "items" in data and "user_id" in data and Decimal(data["total_amount"])
    ]
    assert counts[2] == len(paid)


def test_as_many_orders_as_are_asked_for_are_another_systems() -> None:
    for share, counts in ((0, {0}), (1, {50})):
        stream = list(generator.events(50, 1, CLEAN, taken_over=share))
        orders = [parts(event)[1] for event in stream if event.topic == "order.created"]
        assert {sum("live_from" in order for order in orders)} == counts
    assert any("refunded_amount" in order for order in orders)
    history = Counter(
        parts(event)[0]["time"] < order["live_from"]
        for order in orders
        for event in stream
        if parts(event)[1]["order_id"] == order["order_id"]
    )
    assert min(history[True], history[False]) > 50
    plain = generator.events(50, 1, CLEAN, taken_over=0)
    assert [event.topic for event in stream] == [event.topic for event in plain]


def test_facts_are_about_lines_and_sellers_that_the_order_has(clean: list[SourceEvent]) -> None:
    events = [(event.topic, *parts(event)) for event in clean]
    orders = {data["order_id"]: data for topic, _, data in events if topic == "order.created"}
    for topic, attributes, data in events:
        order = orders[data["order_id"]]
        lines = {item["item_id"]: item for item in order["items"]}
        if "seller_id" in data and topic != "order.created":
            assert data["seller_id"] in {line["seller_id"] for line in lines.values()}
            for item in data.get("items", ()):
                assert lines[item["item_id"]]["seller_id"] == data["seller_id"]
                assert 1 <= item["quantity"] <= lines[item["item_id"]]["quantity"]
        if topic.startswith("stock.") and attributes["time"] >= order.get("live_from", ""):
            assert data["reservation_id"] == str(
                uuid5(UUID(data["order_id"]), f"reservation:{data['seller_id']}")
            )
        if topic == "order.returned":
            assert data["quantity"] <= lines[data["item_id"]]["quantity"]


def test_every_turn_of_fate_occurs(clean: list[SourceEvent]) -> None:
    events = [(event.topic, *parts(event)) for event in clean]
    scans = [data for topic, _, data in events if topic == "shipment.updated"]
    assert {scan["status"] for scan in scans} == {"pending", "in_transit", "delivered", "returned"}
    assert {"items" in scan for scan in scans} == {True, False}
    assert {data["status"] for topic, _, data in events if topic == "order.returned"} == {
        "requested",
        "processed",
        "rejected",
    }
    assert {"seller_id" in data for topic, _, data in events if topic == "order.cancel_requested"} == {
        True,
        False,
    }
    assert {
        "items" in data for topic, _, data in events if topic in ("stock.rejected", "stock.released")
    } == {True, False}
    totals = {
        data["order_id"]: Decimal(data["total_amount"])
        for topic, _, data in events
        if topic == "order.created"
    }
    captured: defaultdict[str, Decimal] = defaultdict(Decimal)
    payments: Counter[str] = Counter()
    for topic, _, data in events:
        if topic == "order.paid":
            captured[data["order_id"]] += Decimal(data["amount"])
            payments[data["order_id"]] += 1
    differences = [captured[order_id] - total for order_id, total in totals.items()]
    assert any(difference > 0 for difference in differences)
    assert any(difference < 0 for difference in differences)
    assert sum(difference == 0 for difference in differences) > 0.85 * len(totals)
    assert max(payments.values()) >= 2


def test_both_bindings_and_other_keys(clean: list[SourceEvent]) -> None:
    whole = sum(("content-type", b"application/json") not in event.headers for event in clean)
    assert 0.03 < whole / len(clean) < 0.07
    elsewhere = sum(event.key != parts(event)[1]["order_id"].encode() for event in clean)
    assert 0.015 < elsewhere / len(clean) < 0.05
    assert any(event.key is None for event in clean)


def test_duplicates_repeat_what_was_there(clean: list[SourceEvent]) -> None:
    twice = list(generator.events(600, 5, Shares(duplicates=0.2, shuffle=0, poison=0)))
    assert 0.15 < len(twice) / len(clean) - 1 < 0.25
    known = {json.dumps(parts(event)[1], sort_keys=True) for event in clean}
    assert {json.dumps(parts(event)[1], sort_keys=True) for event in twice} == known
    assert len({event.value for event in twice}) < len(twice)
    assert len({parts(event)[0]["id"] for event in twice}) > len(clean)


def test_shuffling_only_displaces(clean: list[SourceEvent]) -> None:
    shuffled = list(generator.events(600, 5, Shares(duplicates=0, shuffle=0.1, poison=0)))
    assert sorted(shuffled, key=repr) == sorted(clean, key=repr)
    late = sum(event.time_us < before.time_us for before, event in pairwise(shuffled))
    assert 0.07 < late / len(clean) < 0.13
    placed: set[str] = set()
    early = 0
    for event in shuffled:
        order_id = parts(event)[1]["order_id"]
        if event.topic == "order.created":
            placed.add(order_id)
        early += order_id not in placed
    assert early > 10


@pytest.mark.parametrize(
    "poison",
    [poison for poison in POISONS.values() if not poison.needs_order],
    ids=lambda poison: poison.name,
)
def test_poison_is_refused_for_its_reason(poison: Any) -> None:
    event = poison.make(Random(3))
    with pytest.raises(Refused) as caught:
        decode(event.topic, event.headers, event.value)
    assert caught.value.code == poison.reason


@pytest.mark.parametrize(
    "poison", [poison for poison in POISONS.values() if poison.needs_order], ids=lambda poison: poison.name
)
def test_poison_for_the_orders_sake_is_an_event_of_that_order(poison: Any, clean: list[SourceEvent]) -> None:
    created = next(parts(event)[1] for event in clean if event.topic == "order.created")
    event = poison.make(Random(3), Anchor(created, 0))
    assert decode(event.topic, event.headers, event.value).order_id == UUID(created["order_id"]).bytes
    assert event.key == created["order_id"].encode()
    assert parts(event)[1] != created
    with pytest.raises(ValueError, match="needs an order"):
        poison.make(Random(3))


def test_every_reason_has_a_poison() -> None:
    beyond_a_limit = {
        errors.ORDER_TOO_LARGE,
        errors.RECORD_TOO_LARGE,
    }  # thousands of events, a record that came compressed
    beneath_an_event = {
        errors.UNREADABLE,
        errors.ORIGIN_UNKNOWN,
    }  # bytes that no producer writes, records on a topic of our own
    assert {poison.reason for poison in POISONS.values()} == set(
        errors.REASONS
    ) - beyond_a_limit - beneath_an_event


def test_poison_comes_as_often_as_asked_and_after_its_order(clean: list[SourceEvent]) -> None:
    poisoned = list(generator.events(600, 5, Shares(duplicates=0, shuffle=0, poison=0.05)))
    valid = {event.value for event in clean}
    added = [event for event in poisoned if event.value not in valid]
    assert [event for event in poisoned if event.value in valid] == clean
    assert 0.03 < len(added) / len(clean) < 0.07
    placed: set[bytes | None] = set()
    conflicts = 0
    for event in poisoned:
        if event.value in valid:
            if event.topic == "order.created":
                placed.add(event.key)
        elif event.topic == "order.created" and event.value and b"-other" in event.value:
            assert event.key in placed
            conflicts += 1
    assert conflicts > 1


def test_the_workload_is_what_the_benchmark_says() -> None:
    orders, spread = 2000, 100
    events = list(generator.workload(orders, 1, spread))
    for event in events:
        assert decode(event.topic, event.headers, event.value).time == event.time_us
    counts = Counter(event.topic for event in events)
    assert (counts["order.created"], counts["order.paid"], counts["shipment.updated"]) == (
        orders,
        orders,
        2 * orders,
    )
    assert 0.06 < counts["order.returned"] / orders < 0.10
    created = [json.loads(event.value or b"") for event in events if event.topic == "order.created"]
    assert 1.17 < sum(len(order["items"]) for order in created) / orders < 1.23
    assert {order["currency"] for order in created} == {"EUR"}
    paid = {
        event.key: json.loads(event.value or b"")["amount"] for event in events if event.topic == "order.paid"
    }
    assert all(paid[order["order_id"].encode()] == order["total_amount"] for order in created)
    newest: dict[bytes | None, int] = {}
    place = 0
    for event in events:
        if event.topic == "order.created":
            place += 1
            newest[event.key] = place
        elif event.topic == "order.paid" and place < orders:
            assert place - newest[event.key] == spread


def test_partitions_are_those_of_kafkas_default_partitioner() -> None:
    rng = Random(1)
    for length in range(64):
        key = rng.randbytes(length)
        assert partitioner.murmur2(key) == murmur2(key)
        assert partitioner.partition_of(key, 7) == (murmur2(key) & 0x7FFFFFFF) % 7
        assert producer.partition_of(key, 7) == (murmur2(key) & 0x7FFFFFFF) % 7
    assert producer.partition_of(None, 7) == 0
