"""The auditor finds what is planted, and nothing else.

Every damage has an order of its own in one world that is in order otherwise; one audit must name
each, and no other order.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import asyncpg
import msgspec
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete

from audit import auditor
from audit.findings import CHECKS, Finding, Report
from audit.follow import Follower, Told
from audit.log import Log, LogUnavailable
from audit.stores import TABLES, Cache, StoreUnavailable
from contracts.topics import DECISIONS, DLQ, REKEYED
from operations.grouplock import GroupLock
from settings import Settings
from streams import topics
from tests.integration.audit_world import (
    TRACE,
    TTL,
    World,
    cache_at,
    cancelled,
    copy_headers,
    created,
    event,
    gone,
    paid,
    pipeline_id,
    scanned,
    sent_back,
    uid,
    world_on,
)
from tests.servers import as_admin, kafka
from tests.stackfixture import execute
from tests.waiting import eventually
from tests.workers import orders

CHANGELOG = "*changelog"
"""Stands for the changelog's name."""
STRAYS = {
    "user:text:orders",
    "user:many:orders",
    "tracking:no json",
    "tracking:other Ü",
    f"order:{uid('a_summary_that_nobody_sent')}",
    f"user:{uid('stranger')}:orders",
}
"""Keys to which no row leads: an audit that follows doesn't see them."""


@pytest.fixture
async def world(fresh: Settings) -> AsyncIterator[World]:
    async with world_on(fresh) as made_world:
        yield made_world


# -- what can be damaged -------------------------------------------------------------------------------------

Step = Callable[[World, str], Awaitable[object]]


class Damage(NamedTuple):
    """`facts`: its order's facts; `then`: done when everything is written.

    `found`: (check, how `where` begins) of all that is broken.
    """

    facts: Step
    then: Step
    found: frozenset[tuple[str, str]]
    without: tuple[str, ...]
    nameless: bool


DAMAGES: dict[str, Damage] = {}


def _ageless(finding: dict[str, Any]) -> dict[str, Any]:
    """Without for how long it has been so: another audit is some time later."""
    return {name: re.sub(r"since [\d.]+ h", "", str(value)) for name, value in finding.items()}


async def ordinary(world: World, name: str) -> None:
    """Two sellers; the one's parcel has arrived."""
    await world.send("order.created", created(name))
    await world.send("order.paid", paid(name, "40.00"), 1)
    await world.send("shipment.updated", scanned(name, "in_transit"), 2)
    await world.send("shipment.updated", scanned(name, "delivered"), 4)


async def with_return(world: World, name: str) -> None:
    await ordinary(world, name)
    await world.send("order.returned", sent_back(name), 6)


async def refunded(world: World, name: str) -> None:
    await with_return(world, name)
    await world.decide(name, 0, 1000, units=[[uid(f"{name} ann"), 0]])


async def settled(world: World, name: str) -> None:
    await refunded(world, name)
    await world.send(
        "refund.completed", {"order_id": uid(name), "refund_id": pipeline_id(name, "refund:0")}, 8
    )


async def declined(world: World, name: str) -> None:
    await only_created(world, name)
    await world.send(
        "payment.failed", {"order_id": uid(name), "payment_id": uid(f"p {name}"), "reason": "r"}, 1
    )


async def cancelling(world: World, name: str) -> None:
    await ordinary(world, name)
    await world.send("order.cancel_requested", cancelled(name), 3)


async def only_created(world: World, name: str) -> None:
    await world.send("order.created", created(name))


async def only_paid(world: World, name: str) -> None:
    await world.send("order.paid", paid(name, "5.00"), 1)


async def combined(world: World, name: str) -> None:
    """One parcel holds two orders."""
    world.name(f"{name} beside")
    parcel = {"shipment_id": uid(f"parcel {name}"), "tracking_number": f"T-{name}"}
    for order in (name, f"{name} beside"):
        await world.send("order.created", created(order))
        await world.send("shipment.updated", {**scanned(order, "in_transit"), **parcel}, 2)


async def unknown(world: World, name: str) -> None:
    """The log doesn't know it."""


async def nothing(world: World, name: str) -> None:
    pass


def damage(
    *expected: tuple[str, str], facts: Step = ordinary, without: tuple[str, ...] = (), nameless: bool = False
) -> Callable[[Step], Step]:
    """Registers a damage under its function's name. `nameless`: no order can be told."""

    def register(then: Step) -> Step:
        DAMAGES[then.__name__] = Damage(facts, then, frozenset(expected), without, nameless)
        return then

    return register


def missing(type_: str, check: str, where: str, facts: Step = ordinary) -> None:
    """An event that has to be there isn't."""
    DAMAGES[f"no_{type_}"] = Damage(facts, nothing, frozenset({(check, where)}), (type_,), False)


# accounting and letters


@damage(("accounting", DLQ), nameless=True)
async def refused_without_a_letter(world: World, name: str) -> None:
    await world.put("order.paid", 1, b"k", b"no letter", event("order.paid"))


@damage(("accounting", DLQ), facts=ordinary)
async def conflict_without_a_letter(world: World, name: str) -> None:
    await world.send("order.paid", paid(name, "39.00"), 7)


@damage(("accounting", DLQ), facts=ordinary)
async def currency_refused_without_a_letter(world: World, name: str) -> None:
    await world.send("order.paid", paid(name, "1.00", "dollars", "USD"), 7)
    await again(world, name)


@damage(("accounting", REKEYED), facts=unknown)
async def not_passed_on(world: World, name: str) -> None:
    value = json.dumps(paid(name, "5.00")).encode()
    await world.put("order.paid", 0, b"other", value, event("order.paid", 1))


@damage(("accounting", DLQ), nameless=True)
async def copy_without_coordinates(world: World, name: str) -> None:
    value = json.dumps(paid(name, "5.00")).encode()
    await world.put(REKEYED, world.lane(uid(name)), uid(name).encode(), value, event("order.paid", 1))


@damage(("accounting", REKEYED), facts=unknown)
async def copy_in_a_wrong_lane(world: World, name: str) -> None:
    value, lane = json.dumps(paid(name, "5.00")).encode(), (world.lane(uid(name)) + 1) % world.lanes
    record_id = await world.put("order.paid", lane, b"other", value, event("order.paid", 1))
    await world.put(
        REKEYED, lane, uid(name).encode(), value, [*event("order.paid", 1), *copy_headers(record_id)]
    )


@damage(("letters", DLQ), nameless=True)
async def letter_of_other_bytes(world: World, name: str) -> None:
    record_id = await world.put("order.paid", 1, b"k", b"these", event("order.paid"))
    await world.letter(record_id, "not_json", b"k", b"those", event("order.paid"))


@damage(("letters", DLQ), nameless=True)
async def letter_of_another_key(world: World, name: str) -> None:
    record_id = await world.put("order.paid", 1, b"k", b"these", event("order.paid"))
    await world.letter(record_id, "not_json", b"other", b"these", event("order.paid"))


@damage(("letters", DLQ), nameless=True)
async def letter_without_its_headers(world: World, name: str) -> None:
    record_id = await world.put("order.paid", 1, b"k", b"these", event("order.paid"))
    await world.letter(record_id, "not_json", b"k", b"these", [])


@damage(("letters", DLQ), ("accounting", DLQ), nameless=True)
async def letter_without_a_reason(world: World, name: str) -> None:
    record_id = await world.put("order.paid", 1, b"k", b"these", event("order.paid"))
    await world.letter(record_id, "", b"k", b"these", event("order.paid"))


@damage(("letters", DLQ), ("accounting", DLQ), nameless=True)
async def letter_of_no_time(world: World, name: str) -> None:
    record_id = await world.put("order.paid", 1, b"k", b"these", event("order.paid"))
    await world.letter(record_id, "not_json", b"k", b"these", event("order.paid"), dlq_time="yesterday")


@damage(("letters", DLQ), nameless=True)
async def letter_of_nowhere(world: World, name: str) -> None:
    record_id = await world.put("order.paid", 1, b"k", b"these", event("order.paid"))
    await world.letter(record_id, "not_json", b"k", b"these", event("order.paid"))
    await world.letter(record_id, "not_json", b"k", b"these", event("order.paid"), dlq_topic="elsewhere")


@damage(("letters", DLQ))
async def letter_of_a_fact_that_counts(world: World, name: str) -> None:
    record_id = await world.send(
        "payment.failed", {"order_id": uid(name), "payment_id": uid("f"), "reason": "r"}, 3
    )
    await again(world, name)
    await world.letter(record_id, "field_missing", uid(name).encode(), b"{}", event("payment.failed"))


@damage(("letters", DLQ))
async def letter_of_a_waiting_fact_that_says_something_else(world: World, name: str) -> None:
    record_id = await world.send("order.paid", paid(name, "1.00", "dollars", "USD"), 7)
    await again(world, name)
    fact = {
        "type": "order.paid",
        "time": "2026-01-02T03:07:00+00:00",
        "data": paid(name, "2.00", "dollars", "USD"),
    }
    value, detail = json.dumps(fact).encode(), "the value is the normalised fact"
    await world.letter(record_id, "order_currency", uid(name).encode(), value, [], dlq_detail=detail)


# rows


@damage(("rows", "orders_shipment {parcel} carrier"))
async def altered_text(world: World, name: str) -> None:
    await world.database.execute(
        "UPDATE orders_shipment SET carrier = E'o\\ther' WHERE id = $1", uid(f"parcel {name}")
    )


@damage(("rows", "orders_order {order} created_at"))
async def altered_time(world: World, name: str) -> None:
    await world.database.execute(
        "UPDATE orders_order SET created_at = created_at + interval '1 us' WHERE id = $1", uid(name)
    )


@damage(("rows", "orders_order_item {ann} price"))
async def altered_money(world: World, name: str) -> None:
    await world.database.execute(
        "UPDATE orders_order_item SET price = price + 0.0001 WHERE id = $1", uid(f"{name} ann")
    )


@damage(("rows", "orders_order {order} status"), ("rows", "orders_order {order} version"))
async def older_row(world: World, name: str) -> None:
    await world.database.execute(
        "UPDATE orders_order SET status = 'pending', version = 2 WHERE id = $1", uid(name)
    )


@damage(("rows", "orders_order_item {ann}"))
async def deleted_row(world: World, name: str) -> None:
    await world.database.execute("DELETE FROM orders_order_item WHERE id = $1", uid(f"{name} ann"))


@damage(("rows", "orders_return"))
async def row_too_many(world: World, name: str) -> None:
    rows = world.reading(name).rows()
    item = rows["orders_order_item"][0]
    row = (
        uid(f"return {name}"),
        *item[1:4],
        uid(f"{name} ann"),
        1,
        "x",
        "requested",
        None,
        *rows["orders_order"][0][-3:],
    )
    await world.insert("orders_return", [row])


@damage(("rows", "orders_order {order}"))
async def row_twice(world: World, name: str) -> None:
    row = world.reading(name).rows()["orders_order"][0]
    await world.insert("orders_order", [(row[0], uid("another user"), *row[2:])])


@damage(("rows", "orders_order {order}"), facts=unknown)
async def row_of_an_order_that_nobody_sent(world: World, name: str) -> None:
    other = world.reading("plain").rows()["orders_order"][0]
    await world.insert("orders_order", [(uid(name), *other[1:])])


@damage(("rows", "orders_order {order}"), facts=only_paid)
async def row_of_an_order_that_waits(world: World, name: str) -> None:
    other = world.reading("plain").rows()["orders_order"][0]
    await world.insert("orders_order", [(uid(name), *other[1:])])


@damage(("rows", "orders_suborder {suborder} units_delivered"), ("rows", "orders_suborder {suborder} status"))
async def altered_suborder(world: World, name: str) -> None:
    await world.database.execute(
        "UPDATE orders_suborder SET units_delivered = 1, status = 'shipped' WHERE id = $1",
        pipeline_id(name, f"suborder:{uid('ann')}"),
    )


@damage(("rows", "orders_suborder {suborder} version"), ("rows", "orders_suborder {suborder} total_amount"))
async def older_suborder(world: World, name: str) -> None:
    await world.database.execute(
        "UPDATE orders_suborder SET total_amount = 0, version = version - 1 WHERE id = $1",
        pipeline_id(name, f"suborder:{uid('ann')}"),
    )


@damage(("rows", "orders_suborder {suborder}"))
async def deleted_suborder(world: World, name: str) -> None:
    await world.database.execute(
        "DELETE FROM orders_suborder WHERE id = $1", pipeline_id(name, f"suborder:{uid('ann')}")
    )


@damage(("rows", "orders_payment {payment} amount"), ("rows", "orders_payment {payment} method"))
async def altered_payment(world: World, name: str) -> None:
    await world.database.execute(
        "UPDATE orders_payment SET amount = amount - 0.0001, method = 'cash' WHERE id = $1",
        uid(f"p {name}"),
    )


@damage(("rows", "orders_payment {payment}"), facts=declined)
async def deleted_payment(world: World, name: str) -> None:
    await world.database.execute("DELETE FROM orders_payment WHERE id = $1", uid(f"p {name}"))


@damage(("rows", "orders_payment {payment}"))
async def payment_of_another_user(world: World, name: str) -> None:
    row = world.reading(name).rows()["orders_payment"][0]
    await world.insert("orders_payment", [(*row[:2], uid("another user"), *row[3:])])


@damage(("rows", "orders_payment {parcel}"))
async def payment_too_many(world: World, name: str) -> None:
    row = world.reading(name).rows()["orders_payment"][0]
    await world.insert("orders_payment", [(uid(f"parcel {name}"), *row[1:])])


@damage(("rows", "orders_payment {payment}"), facts=only_paid)
async def payment_of_an_order_that_waits(world: World, name: str) -> None:
    row = world.reading("plain").rows()["orders_payment"][0]
    await world.insert("orders_payment", [(uid(f"p {name}"), uid(name), *row[2:])])


@damage(
    ("rows", "orders_refund {refund} status"),
    ("rows", "orders_refund {refund} settled_at"),
    ("rows", "orders_refund {refund} updated_at"),
    ("rows", "orders_refund {refund} version"),
    facts=settled,
)
async def refund_that_did_not_hear_of_its_end(world: World, name: str) -> None:
    await world.database.execute(
        "UPDATE orders_refund SET status = 'requested', settled_at = NULL, updated_at = requested_at,"
        " version = 1 WHERE id = $1",
        pipeline_id(name, "refund:0"),
    )


@damage(
    ("rows", "orders_refund {refund} cause_id"), ("rows", "orders_refund {refund} number"), facts=refunded
)
async def altered_refund(world: World, name: str) -> None:
    await world.database.execute(
        "UPDATE orders_refund SET cause_id = order_id, number = 1 WHERE id = $1",
        pipeline_id(name, "refund:0"),
    )


@damage(("rows", "orders_refund {refund}"), facts=refunded)
async def deleted_refund(world: World, name: str) -> None:
    await world.database.execute("DELETE FROM orders_refund WHERE id = $1", pipeline_id(name, "refund:0"))


@damage(("rows", "orders_refund {refund}"))
async def refund_that_nobody_decided(world: World, name: str) -> None:
    row = world.reading("second").rows()["orders_refund"][0]
    own = world.reading(name).whose
    await world.insert("orders_refund", [(pipeline_id(name, "refund:0"), *own, *row[4:])])


# derived events and notices

for _type in (
    "suborder.created",
    "stock.reserve",
    "payment.initiate",
    "shipping.label.create",
    "stock.commit",
):
    missing(_type, "derived", _type)
missing("stock.restock", "derived", "stock.restock", refunded)
missing("refund.request", "derived", "refund.request", refunded)
missing("stock.release", "derived", "stock.release", cancelling)
missing("order.status_changed", "notices", "order.status_changed")
missing("suborder.updated", "notices", "suborder.updated of seller")


@damage(("derived", "suborder.created"))
async def second_content(world: World, name: str) -> None:
    (type_, made_id), data = next(iter(world.reading(name).derived().items()))
    await world.derive(type_, name, {**data, "total_amount": "1.00"}, made_id)


@damage(("derived", "stock.reserve"))
async def second_id(world: World, name: str) -> None:
    await world.derive("stock.reserve", name, {"reservation_id": uid("mine")}, uid("mine"))


@damage(("derived", "payment.initiate"))
async def other_event_id(world: World, name: str) -> None:
    made_id = pipeline_id(name, "payment")
    await world.derive(
        "payment.initiate", name, world.reading(name).derived()["payment.initiate", made_id], "something"
    )


@damage(("derived", "payment.initiate"))
async def event_of_no_cause(world: World, name: str) -> None:
    made_id = pipeline_id(name, "payment")
    await world.derive(
        "payment.initiate",
        name,
        world.reading(name).derived()["payment.initiate", made_id],
        made_id,
        cause="nothing",
    )


async def traced(world: World, name: str) -> None:
    await ordinary(world, name)
    await world.send(
        "payment.failed",
        {"order_id": uid(name), "payment_id": uid("f"), "reason": "r"},
        3,
        id_="traced",
        traceparent=TRACE,
    )


@damage(("derived", "payment.initiate"), facts=traced)
async def lost_trace(world: World, name: str) -> None:
    data = world.reading(name).derived()["payment.initiate", pipeline_id(name, "payment")]
    for more in ({}, {"traceparent": TRACE}):
        await world.derive(
            "payment.initiate", name, data, pipeline_id(name, "payment"), cause="traced", **more
        )


@damage(("derived", "payment.initiate"), facts=unknown)
async def event_of_an_order_that_nobody_sent(world: World, name: str) -> None:
    await world.derive(
        "payment.initiate",
        name,
        {"payment_request_id": pipeline_id(name, "payment")},
        pipeline_id(name, "payment"),
    )


@damage(("derived", "payment.initiate"), facts=only_paid)
async def event_of_an_order_that_waits(world: World, name: str) -> None:
    await world.derive(
        "payment.initiate",
        name,
        {"payment_request_id": pipeline_id(name, "payment")},
        pipeline_id(name, "payment"),
    )


@damage(("derived", "payment.initiate"), facts=unknown)
async def event_of_another_order_under_this_key(world: World, name: str) -> None:
    await world.derive(
        "payment.initiate",
        "plain",
        {"payment_request_id": pipeline_id("plain", "payment")},
        pipeline_id("plain", "payment"),
        key=uid(name),
    )


@damage(("derived", "stock.restock"))
async def no_cloudevent(world: World, name: str) -> None:
    await world.put("stock.restock", world.lane(uid(name)), uid(name).encode(), b"{}", [])


@damage(("derived", "stock.restock"))
async def no_json(world: World, name: str) -> None:
    headers = event("stock.restock", causeid="e")
    await world.put("stock.restock", world.lane(uid(name)), uid(name).encode(), b"{", headers)


@damage(("derived", "shipping.label.create"))
async def label_of_a_stranger(world: World, name: str) -> None:
    await world.label(name, uid("cleo"), 1)


@damage(("derived", "shipping.label.create"))
async def label_of_too_much(world: World, name: str) -> None:
    await world.label(name, uid("bob"), 3)


@damage(("derived", "stock.release"))
async def release_that_nobody_asked_for(world: World, name: str) -> None:
    await world.release(name, uid("bob"))


@damage(("derived", "stock.commit"))
async def commit_of_other_items(world: World, name: str) -> None:
    data = world.reading(name).commits[uid(f"parcel {name}")][0]
    await world.derive(
        "stock.commit", name, {**data, "items": [{**data["items"][0], "quantity": 1}]}, data["commit_id"]
    )


@damage(("derived", "stock.commit"), facts=only_created)
async def commit_of_no_parcel(world: World, name: str) -> None:
    commit_id = pipeline_id(name, f"commit:{uid('no parcel')}")
    await world.derive(
        "stock.commit", name, {"commit_id": commit_id, "shipment_id": uid("no parcel")}, commit_id
    )


@damage(("derived", "order.status_changed"))
async def notice_of_a_version_to_come(world: World, name: str) -> None:
    await world.notice(name, "shipped", 9)


@damage(("derived", "order.status_changed"))
async def notice_of_another_cause(world: World, name: str) -> None:
    await world.notice(name, "shipped", 4, cause={"type": "order.paid", "id": "x"})


@damage(("notices", "order.status_changed"))
async def last_status_is_not_so(world: World, name: str) -> None:
    await world.notice(name, "confirmed", 3)


@damage(("notices", "order.status_changed"))
async def last_status_of_another_user(world: World, name: str) -> None:
    await world.notice(name, "shipped", 4, user_id=uid("somebody"))


@damage(("notices", "suborder.updated"))
async def last_suborder_is_not_so(world: World, name: str) -> None:
    await world.suborder(name, "ann", 4, status="shipped")


@damage(("notices", "suborder.updated"))
async def last_suborder_costs_something_else(world: World, name: str) -> None:
    await world.suborder(name, "ann", 4, total_amount="19.00")


# refunds


@damage(("refunds", DECISIONS), facts=with_return)
async def undecided(world: World, name: str) -> None:
    pass


async def of_cause_closed(world: World, name: str, amount: int) -> None:
    await ordinary(world, name)
    await world.decide(name, 0, amount, cause="closed", cause_id=uid(name))


@damage(("refunds", DECISIONS), facts=lambda world, name: of_cause_closed(world, name, 4001))
async def more_than_was_captured(world: World, name: str) -> None:
    pass


@damage(("refunds", DECISIONS), facts=lambda world, name: of_cause_closed(world, name, 0))
async def a_refund_of_nothing(world: World, name: str) -> None:
    pass


@damage(("refunds", DECISIONS))
async def an_amount_that_is_none(world: World, name: str) -> None:
    await world.decide(name, 0, "1.001", cause="closed", cause_id=uid(name))


async def paid_twice(world: World, name: str) -> None:
    await refunded(world, name)
    await world.decide(name, 1, 1000, units=[[uid(f"{name} ann"), 0]])


@damage(("refunds", DECISIONS), facts=paid_twice)
async def a_unit_paid_for_twice(world: World, name: str) -> None:
    pass


async def too_cheap(world: World, name: str) -> None:
    await with_return(world, name)
    await world.decide(name, 0, 900, units=[[uid(f"{name} ann"), 0]])


@damage(("refunds", f"{DECISIONS} n 0"), facts=too_cheap)
async def an_amount_for_something_else(world: World, name: str) -> None:
    pass


async def unit_of_nothing(world: World, name: str) -> None:
    await with_return(world, name)
    await world.decide(name, 0, 1000, units=[[uid(f"{name} ann"), 2]])


@damage(("refunds", f"{DECISIONS} n 0"), facts=unit_of_nothing)
async def a_unit_that_does_not_exist(world: World, name: str) -> None:
    pass


@damage(("refunds", DECISIONS), facts=refunded)
async def a_gap_in_the_decisions(world: World, name: str) -> None:
    await world.decide(name, 2, 1000)


@damage(("refunds", DECISIONS), facts=unknown)
async def a_decision_about_nothing(world: World, name: str) -> None:
    await world.decide(name, 0, 1000)


@damage(("refunds", DECISIONS), facts=ordinary)
async def a_decision_that_is_none(world: World, name: str) -> None:
    await world.decide(name, 0, 1000, cause="whim")


@damage(("refunds", DECISIONS), ("refunds", DECISIONS), ("changelog", CHANGELOG), facts=only_paid)
async def a_decision_too_early(world: World, name: str) -> None:
    await world.decide(name, 0, 100)


# states


@damage(("versions", CHANGELOG))
async def an_older_state_last(world: World, name: str) -> None:
    await world.state(name, version=3)


@damage(("changelog", CHANGELOG))
async def a_state_from_the_future(world: World, name: str) -> None:
    await world.state(name, version=9)


@damage(("changelog", CHANGELOG))
async def a_deleted_state(world: World, name: str) -> None:
    await world.put(world.settings.changelog_topic, world.lane(uid(name)), UUID(uid(name)).bytes, None, [])


@damage(("changelog", CHANGELOG))
async def a_state_that_is_none(world: World, name: str) -> None:
    await world.put(world.settings.changelog_topic, world.lane(uid(name)), UUID(uid(name)).bytes, b"\xff", [])


@damage(("changelog", CHANGELOG))
async def a_state_too_short(world: World, name: str) -> None:
    raw = msgspec.msgpack.encode([4, None])
    await world.put(world.settings.changelog_topic, world.lane(uid(name)), UUID(uid(name)).bytes, raw, [])


@damage(("changelog", CHANGELOG), nameless=True)
async def a_state_of_no_order(world: World, name: str) -> None:
    await world.put(world.settings.changelog_topic, 0, b"key", b"\x91\x01", [])


@damage(("changelog", CHANGELOG), facts=unknown)
async def a_state_that_nobody_sent(world: World, name: str) -> None:
    raw = world.states[uid("plain")]
    await world.put(world.settings.changelog_topic, world.lane(uid(name)), UUID(uid(name)).bytes, raw, [])


@damage(("changelog", CHANGELOG))
async def a_fact_lost_in_the_state(world: World, name: str) -> None:
    await world.state(name, payments=[])


@damage(("changelog", CHANGELOG))
async def a_fact_altered_in_the_state(world: World, name: str) -> None:
    ((time, payment, amount, *rest),) = msgspec.msgpack.decode(world.states[uid(name)])[2]
    await world.state(name, payments=[[time, payment, amount + 1, *rest]])


@damage(("changelog", CHANGELOG))
async def another_status_in_the_state(world: World, name: str) -> None:
    await world.state(name, status=1)


@damage(("changelog", CHANGELOG))
async def no_suborders_in_the_state(world: World, name: str) -> None:
    await world.state(name, suborders=[])


@damage(("changelog", CHANGELOG))
async def a_state_that_asked_for_no_label(world: World, name: str) -> None:
    await world.state(name, labelled=False)


@damage(("changelog", CHANGELOG), facts=refunded)
async def a_state_that_forgot_a_decision(world: World, name: str) -> None:
    await world.state(name, decisions=[], proposed=0)


@damage(("changelog", CHANGELOG), facts=only_paid)
async def a_waiting_fact_of_elsewhere(world: World, name: str) -> None:
    await world.state(name, waiting=[["payments", 0, ["order.paid", 0, 999]]])


@damage(("changelog", CHANGELOG), facts=only_paid)
async def a_waiting_fact_forgotten(world: World, name: str) -> None:
    await world.state(name, waiting=[])


# cache


@damage(("cache", "order:{order}"))
async def an_old_summary(world: World, name: str) -> None:
    await world.redis.set(f"order:{uid(name)}", json.dumps({"order_id": uid(name), "version": 1}), ex=TTL)


@damage(("cache", "order:{order}"))
async def a_summary_of_other_suborders(world: World, name: str) -> None:
    summary = json.loads(await world.redis.get(f"order:{uid(name)}"))
    summary["suborders"][0]["status"] = "closed"
    await world.redis.set(f"order:{uid(name)}", json.dumps(summary), ex=TTL)


@damage(("cache", "order:{order}"))
async def a_summary_that_is_none(world: World, name: str) -> None:
    await world.redis.set(f"order:{uid(name)}", b"\xff\xfe", ex=TTL)


@damage(("cache", "order:{order}"))
async def a_summary_of_another_type(world: World, name: str) -> None:
    await world.redis.delete(f"order:{uid(name)}")
    await world.redis.sadd(f"order:{uid(name)}", "x")


@damage(("cache", "order:{order}"))
async def a_summary_for_ever(world: World, name: str) -> None:
    await world.redis.persist(f"order:{uid(name)}")


@damage(("cache", "order:{order}"))
async def a_summary_for_too_long(world: World, name: str) -> None:
    await world.redis.expire(f"order:{uid(name)}", 1900)


@damage(("cache", "order:{order}"), facts=unknown)
async def a_summary_that_nobody_sent(world: World, name: str) -> None:
    await world.redis.set(f"order:{uid(name)}", "{}", ex=TTL)


@damage(("cache", "tracking:T-{name}"))
async def an_old_parcel(world: World, name: str) -> None:
    await world.track(f"T-{name}", uid(name), uid(f"parcel {name}"), "pending")


@damage(("cache", "tracking:T-{name}"), facts=combined)
async def a_parcel_that_another_order_hides(world: World, name: str) -> None:
    others = [each for each in await world.tracked(f"T-{name}") if each["order_id"] != uid(name)]
    assert others
    await world.redis.set(f"tracking:T-{name}", json.dumps(others), ex=TTL)


@damage(("cache", "tracking:T-{name}"))
async def a_parcel_twice(world: World, name: str) -> None:
    await world.redis.set(f"tracking:T-{name}", json.dumps(await world.tracked(f"T-{name}") * 2), ex=TTL)


@damage(("cache", "tracking:other Ü"))
async def a_parcel_of_another_number(world: World, name: str) -> None:
    await world.track("other Ü", uid(name), uid(f"parcel {name}"), "delivered")


@damage(("cache", "tracking:no json"), nameless=True)
async def a_tracking_number_of_nothing(world: World, name: str) -> None:
    await world.redis.set("tracking:no json", "{", ex=TTL)


@damage(("cache", "user:{user}:orders"))
async def another_place_in_the_list(world: World, name: str) -> None:
    await world.redis.zadd(f"user:{uid(f'user {name}')}:orders", {uid(name): 5})


@damage(("cache", "user:{stranger}:orders"))
async def in_the_list_of_a_stranger(world: World, name: str) -> None:
    await world.redis.zadd(f"user:{uid('stranger')}:orders", {uid(name): 5})
    await world.redis.expire(f"user:{uid('stranger')}:orders", TTL)


@damage(("cache", "user:many:orders"), nameless=True)
async def a_list_of_too_many(world: World, name: str) -> None:
    await world.redis.zadd("user:many:orders", {uid(f"{name} {n}"): n for n in range(51)})
    await world.redis.expire("user:many:orders", TTL)


@damage(("cache", "user:text:orders"), nameless=True)
async def a_list_that_is_none(world: World, name: str) -> None:
    await world.redis.set("user:text:orders", "x", ex=TTL)


# local tables: done by the test itself, see `LOCAL`

LOCAL = ("local_table_behind", "local_table_without_it", "local_table_of_other_content", "local_table_ahead")
for _name in LOCAL[:3]:
    DAMAGES[_name] = Damage(ordinary, nothing, frozenset({("tables", "{table}")}), (), False)
DAMAGES[LOCAL[3]] = Damage(
    ordinary, nothing, frozenset(), (), False
)  # told of the changelog, where that has lost it


async def again(world: World, name: str) -> None:
    """State, rows, cache and last notices, after one more fact."""
    reading = world.reading(name)
    await world.state(name)
    for table in TABLES:
        column = "id" if table == "orders_order" else "order_id"
        await world.database.execute(f"DELETE FROM {table} WHERE {column} = $1", uid(name))
        await world.insert(table, reading.rows()[table])
    await world.cache(reading)


# -- the tests -----------------------------------------------------------------------------------------------


def expected_of(name: str, damage: Damage, world: World, tables: dict[int, Any]) -> set[tuple[str, str]]:
    words = {
        "order": uid(name),
        "name": name,
        "parcel": uid(f"parcel {name}"),
        "payment": uid(f"p {name}"),
        "suborder": pipeline_id(name, f"suborder:{uid('ann')}"),
        "refund": pipeline_id(name, "refund:0"),
        "ann": uid(f"{name} ann"),
        "user": uid(f"user {name}"),
        "stranger": uid("stranger"),
        "table": str(tables[world.lane(uid(name))]),
    }
    return {
        (check, where.format(**words).replace(CHANGELOG, world.settings.changelog_topic))
        for check, where in damage.found
    }


async def fill(world: World) -> None:
    """Orders with everything that can happen to them without being wrong."""
    world.name("plain", "second", "third", "fourth", "fifth", "nobody")
    for name in ("plain", "third", "fourth"):
        await ordinary(world, name)
    await refunded(world, "second")
    await cancelling(world, "fifth")
    await world.send("stock.released", gone("fifth"), 4)
    await world.decide(
        "fifth",
        0,
        2000,
        cause="stock",
        cause_id=uid("bob"),
        units=[[uid("fifth bob"), 0], [uid("fifth bob"), 1]],
    )
    await world.send("order.paid", paid("plain", "40.00"), 1)  # again
    await world.send("order.paid", paid("plain", "1.00", "extra"), 3, key=uid("payment"))  # under another key
    await world.send("order.paid", paid("nobody", "5.00"), 1)
    # Refused: no JSON, another content of a known key, the wrong currency of a fact that came
    # late and of one that waited.
    poison = await world.put("order.paid", 0, b"\xff\xfe", b"{not json", event("order.paid"))
    await world.letter(poison, "not_json", b"\xff\xfe", b"{not json", event("order.paid"))
    # And what a stranger wrote to the decisions about an order.
    foreign, of_order = (b"{}", event("refund.decided")), uid("second")
    strange = await world.put(DECISIONS, world.lane(of_order), of_order.encode(), *foreign)
    await world.letter(strange, "field_missing", of_order.encode(), *foreign)
    conflict = await world.send("order.paid", paid("third", "39.00"), 7)
    await world.letter(
        conflict,
        "key_conflict",
        uid("third").encode(),
        json.dumps(paid("third", "39.00")).encode(),
        event("order.paid", 7),
    )
    for name in ("dollars", "early"):
        record_id = await world.send("order.paid", paid("third", "1.00", name, "USD"), 8)
        data = paid("third", "1.00", name, "USD")
        if name == "dollars":
            await world.letter(
                record_id,
                "order_currency",
                uid("third").encode(),
                json.dumps(data).encode(),
                event("order.paid", 8),
            )
        else:
            value = json.dumps(
                {"type": "order.paid", "time": "2026-01-02T03:08:00+00:00", "data": data}
            ).encode()
            await world.letter(
                record_id,
                "order_currency",
                uid("third").encode(),
                value,
                [],
                dlq_detail="the value is the normalised fact",
            )
    # A stale write, and a newer one after it.
    await world.redis.set("somebody else's", "x")
    await world.redis.set("order", "x")


def broken(report: Report, names: dict[str, str]) -> dict[str, set[tuple[str, str]]]:
    """Name of the order ("" for none) -> (check, where)."""
    by_order: dict[str, set[tuple[str, str]]] = {}
    for finding in report.findings:
        if finding.severity == "broken":
            by_order.setdefault(names.get(finding.order_id, finding.order_id), set()).add(
                (finding.check, finding.where)
            )
    return by_order


async def test_a_world_in_order_is_clean(world: World) -> None:
    await fill(world)
    await world.write()
    await world.state("plain", version=2)
    await world.state("plain")
    await world.local_tables({})
    await world.commit()
    report = await world.audit()
    assert broken(report, {}) == {}
    assert report.clean
    assert (report.settled, report.lag, report.notices) == (True, 0, [])
    assert report.compared == ["log", "changelog", "postgres", "redis", "local tables"]
    counts = report.counts
    assert (
        counts["orders"],
        counts["waiting_facts"],
        counts["duplicates"],
        counts["conflicts"],
        counts["stale_states"],
    ) == (5, 1, 1, 1, 1)
    assert (counts["cached_orders"], counts["cached_parcels"], counts["local_states"], counts["states"]) == (
        5,
        5,
        6,
        6,
    )
    refused = {"not_json": 1, "field_missing": 1, "key_conflict": 1, "order_currency": 2}
    assert dict(report.dead_letters) == refused
    assert dict(report.anomalies) == {"captured_above_total": 1}
    assert {table: report.checked[table] for table in TABLES} == {
        "orders_order": 5,
        "orders_order_item": 10,
        "orders_shipment": 5,
        "orders_return": 1,
        "orders_suborder": 10,
        "orders_payment": 6,
        "orders_refund": 2,
        "orders_attention": 1,
    }


async def test_an_audit_leaves_a_checkpoint_for_the_next_one(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(world)
    await world.write()
    tables = await world.local_tables({})
    await world.commit()
    checkpoints = world.settings.data / ".audit"
    report = await world.audit(checkpoints=checkpoints)
    assert (broken(report, {}), report.trusted) == ({}, {})
    read = report.counts["records"]

    again_read = await world.audit(checkpoints=checkpoints)
    assert (again_read.clean, again_read.trusted["orders"]) == (True, 5)  # the sixth waits: it is always told
    assert again_read.counts["waiting_facts"] == again_read.counts["records"] == 1
    assert "5 orders" in again_read.notices[0]
    assert again_read.dead_letters == report.dead_letters

    # One order goes on, and its state isn't in the worker's local table yet; of another one the summary is
    # gone from the cache.
    await world.send("payment.failed", {"order_id": uid("third"), "payment_id": uid("f"), "reason": "r"}, 9)
    await again(world, "third")
    await world.redis.delete(f"order:{uid('plain')}")
    await world.commit()
    monkeypatch.setattr(auditor, "RECORDS_A_PROCESS", 1)
    for processes in (2, 1):
        report = await world.audit(checkpoints=checkpoints, processes=processes)
        assert broken(report, {}) == {}
        assert report.trusted["orders"] == (3 if processes == 2 else 4)
    assert report.compared == ["log", "changelog", "postgres", "redis", "local tables"]

    full = await world.audit(checkpoints=checkpoints, full=True)
    assert (full.trusted, full.notices, full.clean) == ({}, [], True)
    assert full.counts["records"] == read + 1

    (manifest,) = checkpoints.glob("*/*/checkpoint.json")
    document = json.loads(manifest.read_text())
    name = f"order.paid/{world.lane(uid('plain'))}"
    manifest.write_text(json.dumps(document | {"positions": document["positions"] | {name: 10_000}}))
    report = await world.audit(checkpoints=checkpoints)
    assert (report.clean, report.trusted) == (True, {})
    (notice,) = report.notices
    assert notice.endswith(": everything is audited anew")
    assert f"{name} ends at" in notice

    # What isn't clean, or isn't committed, is looked at again.
    await world.database.execute("DELETE FROM orders_return WHERE id = $1", uid("return second"))
    for _ in range(2):
        assert set(broken(await world.audit(checkpoints=checkpoints), {})) == {uid("second")}
    await world.insert("orders_return", world.reading("second").rows()["orders_return"])
    await world.send("payment.failed", {"order_id": uid("fourth"), "payment_id": uid("f"), "reason": "r"}, 9)
    await again(world, "fourth")
    report = await world.audit(checkpoints=checkpoints)
    assert (report.clean, report.settled, report.inconclusive.total() > 0) == (True, False, True)
    await world.commit()
    report = await world.audit(checkpoints=checkpoints)
    assert (report.clean, report.settled, report.trusted["orders"]) == (True, True, 3)
    await world.database.execute("DELETE FROM orders_return WHERE id = $1", uid("return second"))
    assert set(broken(await world.audit(checkpoints=checkpoints), {})) == {uid("second")}
    assert sorted(path.name for path in manifest.parent.iterdir()) == sorted(
        ["checkpoint.json", "lock", *(f"lane-{lane}.sqlite" for lane in tables)]
    )


async def test_a_topic_that_was_made_anew_under_its_name_has_everything_audited(world: World) -> None:
    await fill(world)
    await world.write()
    await world.commit()
    checkpoints = world.settings.data / ".audit"
    assert (await world.audit(checkpoints=checkpoints)).clean
    assert (await world.audit(checkpoints=checkpoints)).trusted
    topic = "refund.failed"
    assert sum(await world.ends(topic)) == 0
    admin = AIOKafkaAdminClient(**kafka(world.settings.brokers))
    await admin.start()
    try:
        await admin.delete_topics([topic])

        async def gone() -> bool:
            return topic not in await admin.list_topics()

        await eventually(gone, "the topic is gone")
    finally:
        await admin.close()
    await topics.ensure(world.settings)
    report = await world.audit(checkpoints=checkpoints)
    assert (report.clean, report.trusted) == (True, {})
    assert report.notices == [
        f"the last audit's checkpoint is of other topic ids ({topic}): everything is audited anew"
    ]
    assert (await world.audit(checkpoints=checkpoints)).trusted


async def test_what_is_planted_is_found_and_nothing_else(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(world)
    later = frozenset(  # what can only be wrong from the beginning
        name
        for name, damage in DAMAGES.items()
        if damage.without or any(check == "refunds" for check, _ in damage.found)
    )
    for name, damage in DAMAGES.items():
        world.name(name)
        if name not in later:
            await damage.facts(world, name)
    await world.write()
    await world.local_tables({})
    await world.commit()
    checkpoints = world.settings.data / ".audit"
    first = await world.audit(checkpoints=checkpoints)
    assert broken(first, {uid(name): name for name in world.names}) == {}
    assert (first.trusted, first.notices) == ({}, [])

    for name in sorted(later):
        await DAMAGES[name].facts(world, name)
    without = frozenset((type_, name) for name in later for type_ in DAMAGES[name].without)
    await world.write(without, later)
    old = {
        name: msgspec.msgpack.encode([version, *msgspec.msgpack.decode(world.states[uid(name)])[1:]])
        for name, version in ((LOCAL[0], 3), (LOCAL[3], 9))
    }
    old[LOCAL[2]] = world.states[uid(LOCAL[1])]
    tables = await world.local_tables({**old, LOCAL[1]: None})
    for name, damage in DAMAGES.items():
        await damage.then(world, name)
    await world.commit()

    report = await world.audit()
    check_damages(report, world, tables)
    assert not report.clean
    assert set(report.broken) == set(CHECKS)
    differences = {(finding.where, finding.expected, finding.actual) for finding in report.findings}
    assert (f"orders_shipment {uid('parcel altered_text')} carrier", "C", "o\ther") in differences
    assert (f"orders_order_item {uid('altered_money ann')} price", "10.00", "10.0001") in differences

    followed = await follow(world, checkpoints)
    assert {(each.check, each.order_id, each.where) for each in followed} == {
        (check, order_id, where)
        for check, order_id, where, *_ in facts_of(report)
        if check != "tables" and where not in STRAYS
    }

    since = await world.audit(checkpoints=checkpoints)
    assert since.trusted["orders"] > 5
    assert since.broken == report.broken
    assert facts_of(since) == facts_of(report)

    out = await asyncio.to_thread(orders, "audit", "--json")
    assert out.returncode == 1, out.stderr
    document = json.loads(out.stdout)
    assert (document["clean"], document["broken"]) == (False, dict(report.broken))
    monkeypatch.setattr(auditor, "RECORDS_A_PROCESS", 1)
    few = (await world.audit(most=3, processes=2)).document()
    whole = report.document()
    for kept in (few, whole):
        kept["seconds"] = 0
    kept_findings, all_findings = few.pop("findings"), whole.pop("findings")
    for severity in ("broken", "report"):
        of_it = [_ageless(each) for each in all_findings if each["severity"] == severity]
        assert [_ageless(each) for each in kept_findings if each["severity"] == severity] == of_it[:3]
    assert few == whole


async def follow(world: World, checkpoints: Path) -> list[Finding]:
    """What an audit that follows has told by its third round."""
    news: list[Told] = []
    rounds, stop = 0, asyncio.Event()

    def count(follower: Follower) -> None:
        nonlocal rounds
        rounds += 1
        if rounds == 3:
            stop.set()

    target = world.target(checkpoints=checkpoints, data=None)
    say: Callable[[str], None] = lambda text: None  # noqa: E731
    follower = Follower(target, interval=0.1, rate=10_000, tell=news.append, say=say, after_round=count)
    assert not await follower.run(stop)
    assert {each.what for each in news} == {"broken"}
    return [each.finding for each in news]


def facts_of(report: Report) -> set[tuple[str, ...]]:
    """What is broken, but for what it is instead: a TTL grows less meanwhile."""
    return {
        (each.check, each.order_id, each.where, each.expected, each.fact)
        for each in report.findings
        if each.severity == "broken"
    }


def check_damages(report: Report, world: World, tables: dict[int, Any]) -> None:
    """Every damage is found with what was expected of it, and nothing else is."""
    by_name = broken(report, {uid(name): name for name in DAMAGES})
    nameless = by_name.pop("", set())
    for number in range(51):  # the members of a list of too many
        assert by_name.pop(uid(f"a_list_of_too_many {number}")) == {("cache", "user:many:orders")}
    every = {
        each
        for name, damage in DAMAGES.items()
        if damage.nameless
        for each in expected_of(name, damage, world, tables)
    }
    assert all(
        any(each == check and record_id.startswith(where) for check, where in every)
        for each, record_id in nameless
    ), sorted(nameless)
    for name, damage in DAMAGES.items():
        wanted = expected_of(name, damage, world, tables)
        if damage.nameless:
            for check, where in wanted:
                assert any(each == check and record_id.startswith(where) for each, record_id in nameless), (
                    name,
                    sorted(nameless),
                )
        else:
            got = by_name.pop(name, set())
            assert all(
                any(each == check and record_id.startswith(where) for each, record_id in got)
                for check, where in wanted
            ), (
                name,
                got,
            )
            assert all(
                any(each == check and record_id.startswith(where) for check, where in wanted)
                for each, record_id in got
            ), (
                name,
                got,
            )
    assert by_name == {}


async def test_commits_beyond_the_log_and_uneven_topics(world: World) -> None:
    await world.admin.create_partitions({"stock.restock": NewPartitions(world.lanes + 1)})
    await world.send("order.created", created("plain"))
    await world.commit(order_created=-5)
    report = await world.audit()
    assert {("accounting", "stock.restock"), ("accounting", f"order.created/{world.lane(uid('plain'))}")} <= {
        (finding.check, finding.where) for finding in report.findings
    }


async def test_a_local_table_beyond_the_changelog(world: World) -> None:
    world.name("plain")
    await ordinary(world, "plain")
    await world.write()
    paths = await world.local_tables({}, behind=-3)
    await world.commit()
    report = await world.audit()
    assert broken(report, {}) == {"": {("tables", str(path)) for path in paths.values()}}
    assert (await world.audit(data=None)).clean


async def test_behind_the_log_only_orders_at_rest_are_judged(world: World) -> None:
    """An order about which a record isn't committed may be ahead of what is; another one may not."""
    world.name("moving", "still", "behind")
    for name in ("still", "behind", "moving"):
        await ordinary(world, name)
    await world.write()
    for name in ("moving", "still"):
        await world.database.execute("UPDATE orders_order SET status = 'returned' WHERE id = $1", uid(name))
    await world.database.execute("UPDATE orders_order SET version = 1 WHERE id = $1", uid("behind"))
    await world.commit()
    # Sent since: taken in, but not committed.
    for name in ("moving", "behind"):
        await world.send("payment.failed", {"order_id": uid(name), "payment_id": uid("f"), "reason": "r"}, 3)
    report = await world.audit()
    assert (report.lag, report.settled, report.clean) == (2, False, False)
    assert broken(report, {}) == {
        uid("still"): {("rows", f"orders_order {uid('still')} status")},
        uid("behind"): {
            ("rows", f"orders_order {uid('behind')} version")
        },  # what was committed must be there
    }
    assert dict(report.inconclusive) == {"rows": 1}
    assert any(notice.startswith("lag 2: ") for notice in report.notices)


async def test_a_record_under_a_foreign_key_moves_its_order(world: World) -> None:
    world.name("moving")
    await ordinary(world, "moving")
    await world.write()
    await world.database.execute("UPDATE orders_order SET status = 'returned' WHERE id = $1", uid("moving"))
    await world.commit()
    value = json.dumps(paid("moving", "5.00", "extra")).encode()
    await world.put("order.paid", 0, b"other", value, event("order.paid", 1))
    report = await world.audit()
    assert (report.clean, dict(report.inconclusive)) == (True, {"rows": 1})


async def test_nothing_committed_counts_from_the_start(world: World) -> None:
    await world.send("order.created", created("plain"))
    report = await world.audit()
    assert report.clean
    assert report.lag == 1
    assert report.counts["records"] == 0


async def test_where_the_log_does_not_tell_the_state_does(world: World) -> None:
    world.name("plain")
    await world.send("order.created", created("plain"))
    await world.send("order.paid", paid("plain", "40.00"), 1)
    await world.send("order.paid", paid("plain", "30.00"), 1, key=uid("payment"))
    order = world.orders[uid("plain")]
    first, second = order.readings()
    assert {first.status(), second.status()} == {"confirmed", "pending"}
    loser = order.candidates["order.paid", uid("p plain")][1].records[0]
    await world.letter(
        loser,
        "key_conflict",
        uid("payment").encode(),
        json.dumps(paid("plain", "30.00")).encode(),
        event("order.paid", 1),
    )
    await world.write()
    await world.commit()
    report = await world.audit()
    assert report.clean, report.findings
    for other in ("pending", "shipped"):
        await world.database.execute("UPDATE orders_order SET status = $1", other)
        assert broken(await world.audit(), {}) == {
            uid("plain"): {("rows", f"orders_order {uid('plain')} status")}
        }


@pytest.mark.parametrize("away", [False, True])
async def test_a_fact_that_only_one_of_two_orders_refuses(world: World, away: bool) -> None:
    """Two orders under one id, one with the parcel's seller, one without; the log
    doesn't tell which came first.
    """
    world.name("plain")
    await world.send("order.created", created("plain"))
    other = created("plain", sellers=("cat", "bob"))
    await world.send("order.created", other, key=uid("elsewhere"))
    await world.send("shipment.updated", scanned("plain", "in_transit"), 2)
    order = world.orders[uid("plain")]
    assert [len(reading.refused) for reading in order.readings()] == [0, 1]
    loser = order.candidates["created",][1].records[0]
    await world.letter(
        loser, "key_conflict", uid("elsewhere").encode(), json.dumps(other).encode(), event("order.created")
    )
    await world.write()
    if away:
        # A state of no use: all that is known is that one of the two is right.
        await world.state("plain", status=4)
    await world.commit()
    problems = broken(await world.audit(), {})
    assert {check for each in problems.values() for check, _ in each} == ({"changelog"} if away else set())


async def test_it_only_reads_and_joins_no_group(world: World) -> None:
    """With roles that can't write, and nothing in the cluster is different afterwards."""
    await fill(world)
    await world.write()
    await world.commit()
    role = f"auditor_{world.settings.group.replace('-', '_')}"
    owner = as_admin(world.settings.postgres)
    await execute(owner, f"CREATE ROLE {role} LOGIN PASSWORD 'p'; GRANT pg_read_all_data TO {role}")
    user = f"audit-{world.settings.group}"
    await world.redis.acl_setuser(
        user,
        enabled=True,
        reset=True,
        passwords=["+p"],
        keys=["*"],
        categories=["+@read", "+@connection"],
        commands=["+eval_ro"],
    )
    groups = sorted(await world.admin.list_consumer_groups())
    try:
        async with Log(world.settings) as log:
            before = await log.committed(world.settings.group)
            report = await world.audit(
                postgres=_as(world.settings.postgres.get_secret_value(), role, "p"),
                redis=cache_at(_as(world.settings.redis.get_secret_value(), user, "p")),
            )
            assert report.clean, report.findings
            assert "redis" in report.compared
            assert await log.committed(world.settings.group) == before
        assert sorted(await world.admin.list_consumer_groups()) == groups
        # The roles are what keeps it from writing, not its good will.
        connection = await asyncpg.connect(_as(world.settings.postgres.get_secret_value(), role, "p"))
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute("DELETE FROM orders_order")
        await connection.close()
    finally:
        await world.redis.acl_deluser(user)
        await execute(owner, f"DROP OWNED BY {role}; DROP ROLE {role}")


def _as(url: str, user: str, password: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{user}:{password}@{rest.rpartition('@')[2]}"


async def test_a_parcel_that_may_have_been_evicted_is_only_told(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.name("plain")
    await combined(world, "plain")
    await world.write()
    await world.commit()
    assert (await world.audit()).clean
    await a_parcel_that_another_order_hides(world, "plain")
    assert broken(await world.audit(), {}) == {uid("plain"): {("cache", "tracking:T-plain")}}

    async def evicts(_cache: Cache) -> bool:
        return True

    monkeypatch.setattr(Cache, "evicts", evicts)
    report = await world.audit()
    assert report.clean
    assert [(each.check, each.where) for each in report.findings] == [("cache", "tracking:T-plain")]


async def test_a_cache_that_is_being_refreshed_is_waited_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.name("plain")
    await ordinary(world, "plain")
    await world.write()
    await world.commit()
    lane = world.lane(uid("plain"))
    end = (await world.ends(world.settings.changelog_topic))[lane]
    mark, summary = f"cache:{world.settings.group}:{lane}", await world.redis.get(f"order:{uid('plain')}")
    await an_old_summary(world, "plain")
    old = {uid("plain"): {("cache", f"order:{uid('plain')}")}}
    await world.redis.set(mark, f"1 1 {end - 1}")

    report = await world.audit()
    assert broken(report, {}) == old
    assert "no worker is running" in report.notices[0]

    looks = 0
    behind = Cache.behind

    async def look(cache: Cache, group: str, ends: Mapping[int, int]) -> dict[int, int]:
        nonlocal looks
        looks += 1
        if looks == 3:  # the lane has refreshed it
            await world.redis.set(f"order:{uid('plain')}", summary, ex=TTL)
            await world.redis.set(mark, f"1 2 {end}")
        return await behind(cache, group, ends)

    async with GroupLock(world.settings):  # somebody is in the group
        report = await world.audit(cache_stall=0.0)
        assert broken(report, {}) == old
        assert "for 0 s nothing came" in report.notices[0]
        monkeypatch.setattr(Cache, "behind", look)
        report = await world.audit()
    assert (report.clean, report.notices, looks) == (True, [], 3)


async def test_without_redis_it_says_so(world: World) -> None:
    world.name("plain")
    await ordinary(world, "plain")
    await world.write()
    await world.commit()
    with pytest.raises(StoreUnavailable, match=r"no Redis at redis://127\.0\.0\.1:1/0: .*--no-cache"):
        await world.audit(redis=cache_at("redis://127.0.0.1:1/0"))
    with pytest.raises(StoreUnavailable, match=r"no Sentinel of redis\S+ names a primary; check"):
        await world.audit(redis=cache_at("redis+sentinel://127.0.0.1:1/orders/0"))
    report = await world.audit(redis=None)
    assert report.clean
    assert "redis" not in report.compared


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("ORDERS_KAFKA", "127.0.0.1:1", "orders: no Kafka at 127.0.0.1:1"),
        (
            "ORDERS_POSTGRES",
            "postgresql://u:secret@127.0.0.1:1/x",
            "orders: no Postgres at postgresql://***@127.0.0.1:1/x",
        ),
        ("ORDERS_REDIS", "redis://:secret@127.0.0.1:1/0", "orders: no Redis at redis://***@127.0.0.1:1/0"),
    ],
)
def test_servers_that_are_not_there(
    fresh: Settings, monkeypatch: pytest.MonkeyPatch, name: str, value: str, said: str
) -> None:
    monkeypatch.setenv(name, value)
    done = orders("audit")
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr
    assert "secret" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    if name == "ORDERS_REDIS":
        assert orders("audit", "--no-cache").returncode == 0


async def test_records_that_are_deleted_while_they_are_read_are_told(settings: Settings) -> None:
    topic = f"{settings.group}.deleted"
    partition = TopicPartition(topic, 0)
    admin = AIOKafkaAdminClient(**kafka(settings.brokers))
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, 1, 1)])
        async with AIOKafkaProducer(**kafka(settings.brokers)) as producer:
            for _ in range(3):
                await producer.send_and_wait(topic, b"x", partition=0)
        async with Log(settings) as log:
            span = (await log.spans([partition]))[partition]
            await admin.delete_records({partition: RecordsToDelete(before_offset=2)})
            with pytest.raises(LogUnavailable, match=f"records of {topic}/0 were deleted .*; run it again"):
                [records async for records in log.read(partition, span)]
    finally:
        await admin.delete_topics([topic])
        await admin.close()
