"""What upstream services send in one simulated history: a few orders, their events repeated,
displaced, mis-keyed and broken.
"""

from __future__ import annotations

from collections import defaultdict
from functools import lru_cache
from random import Random
from typing import NamedTuple
from uuid import UUID, uuid5

import msgspec

from audit.reference import Fact, Refusal, parse
from contracts.cloudevents import binary, rfc3339
from contracts.topics import CHECKOUT, CREATED, INPUT
from streams.partitioner import partition_of
from tests.property.records import dense
from workload import generator
from workload.poison import POISONS, Anchor
from workload.services import Behaviour, Customers, Later, Message, order_of

BLOCK = 2048
"""Seeds that share a corpus of orders to choose from."""
GENERATED, DENSE, PLACED = 160, 80, 40
MOST_EVENTS = 40
KEYED_BY_TIME = ("shipment.updated", "promise.updated")


class Arrival(NamedTuple):
    """A record that is appended to its topic at a time, in seconds.
    `parsed` is what the reference makes of it.
    """

    at: float
    topic: str
    partition: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    parsed: Fact | Refusal


class Sent(NamedTuple):
    """A record as upstream sends it."""

    topic: str
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    parsed: Fact | Refusal


class Corpus(NamedTuple):
    """Orders to choose from, each a list of events in the order of their times, and records that are
    refused whatever the order.
    """

    lively: list[list[Sent]]
    dense: list[list[Sent]]
    placed: list[list[Sent]]
    """Of these the order begins as a checkout."""
    poison: list[Sent]


def _sent(topic: str, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> Sent:
    return Sent(topic, key, value, tuple(headers), parse(topic, key, value, headers))


@lru_cache(maxsize=2)
def corpus(block: int) -> Corpus:
    """The same for the same block, wherever it is asked for."""
    orders: dict[str, list[Sent]] = defaultdict(list)
    shares = generator.Shares(duplicates=0.05, shuffle=0.0, poison=0.15)
    poison: list[Sent] = []
    for event in generator.events(GENERATED, block, shares):
        sent = _sent(event.topic, event.key, event.value, event.headers)
        if isinstance(sent.parsed, Fact):
            orders[sent.parsed.order_id].append(sent)
        elif len(event.value or b"") < 10_000:
            poison.append(sent)
    rng = Random(f"dense {block}")
    crowded = [[_sent(*each) for each in dense(n, rng)] for n in range(DENSE)]
    return Corpus(
        list(orders.values()),
        crowded,
        [_placed(*each) for each in Customers(Behaviour(seed=block)).checkouts(PLACED)],
        poison,
    )


def _placed(checkout: Message, cancellations: list[Later]) -> list[Sent]:
    """A checkout, and what the services tell of its order."""
    order_id = order_of(checkout.key)
    order = {"order_id": order_id}
    lines = checkout.data["items"]
    messages = [checkout]
    for seller in sorted({line["seller_id"] for line in lines}):
        reservation = {
            "seller_id": seller,
            "reservation_id": str(uuid5(UUID(order_id), f"reservation:{seller}")),
        }
        messages.append(Message("stock.reserved", order_id, order | reservation))
    amount = {"amount": checkout.data["total_amount"], "currency": checkout.data["currency"]}
    messages.append(Message("order.paid", order_id, order | amount | {"payment_id": checkout.key}))
    items = [
        {"item_id": line["item_id"], "quantity": line["quantity"]}
        for line in lines
        if line["seller_id"] == lines[0]["seller_id"]
    ]
    parcel = {"shipment_id": checkout.key, "seller_id": lines[0]["seller_id"], "items": items}
    messages += [
        Message("shipment.updated", order_id, order | parcel | {"status": status})
        for status in ("in_transit", "delivered")
    ]
    messages += [
        message for later in cancellations for message in later.act() if isinstance(message, Message)
    ]
    sent = []
    for n, message in enumerate(messages):
        time = rfc3339(generator.EPOCH_US + n * 3_600_000_000)
        attributes = {
            "specversion": "1.0",
            "id": f"{checkout.key}{n}",
            "source": "/simulated",
            "type": message.type,
            "time": time,
        }
        headers, value = binary(attributes, message.data)
        sent.append(_sent(message.type, message.key.encode(), value, headers))
    return sent


def history(seed: int, rng: Random, partitions: int) -> list[Arrival]:
    """What arrives in the history of a seed, by time."""
    samples = corpus(seed // BLOCK)
    records: list[Sent] = []
    for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))):
        order = rng.choice(rng.choices((samples.dense, samples.lively, samples.placed), (4, 5, 1))[0])
        records += order[: rng.randint(5, 20)] if len(order) > 5 else order
    records = records[:MOST_EVENTS]
    if rng.random() < 0.4:
        records += [_poisoned(rng, records, samples) for _ in range(rng.randint(1, 6))]
    duplicates, displaced, miskeyed, misplaced = (
        rng.choice((0.0, 0.0, share)) for share in (0.3, 0.5, 0.3, 0.2)
    )
    if rng.random() < 0.2:
        rng.shuffle(records)
    span = rng.choice((0.0, 0.5, 3.0, 8.0))
    arrivals: list[Arrival] = []
    for place, each in enumerate(records):
        at = span * place / len(records)
        if rng.random() < displaced:
            at += rng.random() * (span or 0.3)
        if rng.random() < miskeyed and isinstance(each.parsed, Fact):
            each = each._replace(key=rng.choice((None, each.parsed.order_id.upper().encode(), b"somebody")))
        arrivals.append(_arrival(at, each, partitions, rng, misplaced))
        if rng.random() < duplicates:
            again = _told_later(each, rng) if rng.random() < 0.5 else each
            arrivals.append(_arrival(at + rng.random() * (span + 1.0), again, partitions, rng, misplaced))
    arrivals.sort(key=lambda arrival: arrival.at)
    return arrivals


def _arrival(at: float, sent: Sent, partitions: int, rng: Random, misplaced: float) -> Arrival:
    partition = 0 if sent.key is None else partition_of(sent.key, partitions)
    if partitions > 1 and rng.random() < misplaced:
        partition = rng.randrange(partitions)  # an upstream with a partitioner of its own
    return Arrival(at, sent.topic, partition, *sent[1:])


def _told_later(sent: Sent, rng: Random) -> Sent:
    """The same event as another event with another time, perhaps an earlier one.
    Of a scan or a promise that would be another fact.
    """
    headers = dict(sent.headers)
    time = headers.get("ce_time")
    if time is None or sent.topic in KEYED_BY_TIME or not isinstance(sent.parsed, Fact):
        return sent
    hour = b"%02d" % rng.randrange(24)
    changed = [
        (name, time[:11] + hour + time[13:] if name == "ce_time" else value) for name, value in sent.headers
    ]
    return _sent(sent.topic, sent.key, sent.value, changed)


def _poisoned(rng: Random, records: list[Sent], samples: Corpus) -> Sent:
    """Something that has to be refused: by itself, or for the sake of an order of this history."""
    facts = [each for each in records if isinstance(each.parsed, Fact)]
    created = [each for each in facts if each.topic == "order.created" and "ce_id" in dict(each.headers)]
    if created and rng.random() < 0.5:
        poison = rng.choice([each for each in POISONS.values() if each.needs_order])
        record = poison.make(
            rng, Anchor(msgspec.json.decode(rng.choice(created).value or b""), generator.EPOCH_US)
        )
        return _sent(record.topic, record.key, record.value, record.headers)
    return rng.choice(samples.poison)


def topics_of(arrivals: list[Arrival]) -> tuple[str, ...]:
    """The input topics that a history uses, in the order of an order's life."""
    used = {arrival.topic for arrival in arrivals}
    if CHECKOUT in used:
        used.add(CREATED)
    return tuple(topic for topic in INPUT if topic in used)
