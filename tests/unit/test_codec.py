"""State bytes: a round trip, the version on top, and small."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from contracts import ids
from contracts.record_id import RecordId
from domain import events, rows
from domain.deadlines import next_due
from domain.fold import fold
from domain.order import Order
from domain.totals import RunningTotals
from settings import Settings
from tables import codec
from tests.unit.builders import ANNA, BORIS, ORDER, STRANGER, VALID, OrderBuilder, line, raw, record
from workload import generator


def typical() -> OrderBuilder:
    builder = OrderBuilder()
    builder.create(line(1, shipping_amount="3.00"))
    builder.pay("13.00")
    builder.scan("in_transit", tracking_number="D123456789012")
    builder.scan("delivered", tracking_number="D123456789012", hour=4)
    return builder


def eventful() -> OrderBuilder:
    builder = OrderBuilder()
    builder.give_back("processed", item=9)
    builder.create(line(1, ANNA, 3), line(2, BORIS))
    builder.pay("40.00")
    builder.pay("1.00", 2, currency="USD")
    builder.stock("rejected", items={1: 1})
    builder.cancel(BORIS)
    builder.send("payment.failed", payment_id=STRANGER, reason="r")
    builder.send("refund.failed", refund_id=STRANGER)
    return builder.settle()


@pytest.mark.parametrize(
    "builder", [OrderBuilder(), typical(), eventful()], ids=["empty", "typical", "eventful"]
)
def test_round_trip(builder: OrderBuilder) -> None:
    encoded = codec.encode(builder.order)
    assert codec.decode(encoded) == builder.order
    assert codec.encode(codec.decode(encoded)) == encoded


@pytest.mark.parametrize("version", [0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**32 - 1, 2**32])
def test_the_version_is_read_off_the_bytes(version: int) -> None:
    assert codec.version_of(codec.encode(Order(version=version))) == version


def test_the_version_is_read_off_a_longer_array_too() -> None:
    fields = [70_000, *msgspec.msgpack.decode(codec.encode(Order()))[1:], *range(10)]
    assert codec.version_of(msgspec.msgpack.encode(fields)) == 70_000


def test_the_status_is_read_off_the_bytes() -> None:
    assert codec.status_of(codec.encode(typical().order)) == "delivered"
    assert codec.status_of(codec.encode(Order())) == "pending"


def test_a_typical_order_is_small() -> None:
    assert len(codec.encode(typical().order)) < 450


@pytest.mark.parametrize("raw", [b"", b"\x00", b"\xc1", b"{}", codec.encode(typical().order)[:-1]])
def test_foreign_bytes_are_an_error(raw: bytes) -> None:
    with pytest.raises(msgspec.DecodeError):
        codec.decode(raw)


def test_a_state_of_an_older_program_is_read() -> None:
    older = msgspec.msgpack.encode(msgspec.msgpack.decode(codec.encode(typical().order))[:-1])
    assert codec.decode(older).proposed == 0


# -- what others wrote to the changelog ----------------------------------------------------------------------

KEY = raw(ORDER)


@pytest.mark.parametrize("builder", [typical(), eventful()], ids=["typical", "eventful"])
def test_a_state_is_one(builder: OrderBuilder) -> None:
    assert codec.is_state(KEY, codec.encode(builder.order))
    assert not codec.is_state(KEY[:-1], codec.encode(builder.order))


def test_states_of_any_history_are_states() -> None:
    for order_id, order in histories(60).items():
        assert codec.is_state(order_id, codec.encode(order))
        assert order.version == codec.natural_keys(order)


def test_what_passes_for_a_state_ends_no_fold() -> None:
    """Bytes of a state are changed at random.
    Most changes are noticed; whatever isn't must be as good as a state.
    """
    random, passed = Random(7), 0
    for order_id, order in histories(40).items():
        sound = codec.encode(order)
        for _ in range(60):
            changed = bytearray(sound)
            for _ in range(random.choice((1, 1, 2, 4))):
                changed[random.randrange(len(changed))] = random.randrange(256)
            if bytes(changed) == sound or not codec.is_state(order_id, bytes(changed)):
                continue
            passed += 1
            again = codec.decode(bytes(changed))
            next_due(again, order_id, Settings().deadline_policy)
            if again.created is not None:
                rows.order_row_and_summary(ids.text(order_id), order_id, again, None)
                rows.item_rows(ids.text(order_id), again)
                rows.shipment_rows(ids.text(order_id), again)
                rows.return_rows(ids.text(order_id), again)
            repeated = events.decode(
                *_record("order.paid", {**VALID["order.paid"], "order_id": ids.text(order_id)})
            )
            fold(
                again,
                repeated,
                None if again.created is not None else RecordId("order.paid", 0, 0),
                RunningTotals(again),
            )
            codec.encode(again)
    assert passed > 500


def _record(type_: str, data: dict[str, Any]) -> tuple[str, Any, bytes]:
    headers, value = record(type_, data)
    return type_, headers, value


def histories(count: int) -> dict[bytes, Order]:
    """States of synthetic orders with everything that can happen to them."""
    orders: dict[bytes, Order] = {}
    for each in generator.events(count, 5):
        event = events.decode(each.topic, each.headers, each.value, 1_000)
        order = orders.setdefault(event.order_id, Order())
        fold(
            order, event, RecordId(each.topic, 0, 0) if order.created is None else None, RunningTotals(order)
        )
    return orders
