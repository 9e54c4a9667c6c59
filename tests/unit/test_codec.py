"""State bytes: a round trip, the version on top, and small."""

from __future__ import annotations

from random import Random
from typing import Any

import msgspec
import pytest

from audit import states
from contracts import ids
from contracts.record_id import RecordId
from domain import events, parts, rows
from domain.deadlines import next_due
from domain.fold import fold
from domain.order import FORMAT, Order
from domain.totals import RunningTotals
from settings import Settings
from tables import codec
from tests.unit.builders import ANNA, BORIS, ORDER, STRANGER, VALID, OrderBuilder, line, raw, record, sealed
from workload import generator

FORMAT_AT = Order.__struct_fields__.index("format")


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


# -- states of other versions --------------------------------------------------------------------------------


def later(state: bytes) -> list[Any]:
    """The state as a later version might write it: one more field at the end of every array of fields."""
    values = msgspec.msgpack.decode(state)
    created, lists = values[1], [each for each in values[2:-1] if type(each) is list]
    for array in (created, *created[6], *(fact for facts in lists for fact in facts)):
        array.append({"more": [1, b"2", None]})
    return [*values, ["a list of facts"], 7]


def test_a_state_of_the_format_before_is_read_and_written_in_this_one() -> None:
    now = codec.encode(typical().order)
    before = msgspec.msgpack.encode(msgspec.msgpack.decode(now)[:FORMAT_AT])
    assert codec.is_state(KEY, before)
    assert states.read_state(before) == {**states.read_state(now), "format": 1}
    assert codec.encode(codec.decode(before)) == now
    assert msgspec.msgpack.decode(now)[FORMAT_AT] == FORMAT


@pytest.mark.parametrize("builder", [typical(), eventful()], ids=["typical", "eventful"])
def test_what_a_later_version_added_is_kept(builder: OrderBuilder) -> None:
    state = codec.encode(builder.order)
    values = later(state)
    raised = [values[0] + 2, *values[1:]]  # facts of a type that this version doesn't know
    for each in (values, raised):
        extended = msgspec.msgpack.encode(each)
        assert codec.is_state(KEY, extended)
        assert codec.encode(codec.decode(extended)) == extended
        assert codec.due_of(extended) == builder.order.due
    assert not codec.is_state(KEY, msgspec.msgpack.encode([values[0] - 1, *values[1:]]))
    assert codec.encode(codec.decode(state)) == state
    assert states.read_state(msgspec.msgpack.encode(values)) == states.read_state(state)


def test_a_later_versions_state_is_folded_on_and_keeps_what_it_had() -> None:
    extended = msgspec.msgpack.encode(later(codec.encode(typical().order)))
    order, plain = codec.decode(extended), typical().order
    folded = []
    for each in (order, plain):
        data = {**VALID["shipment.updated"], "order_id": ORDER, "seller_id": ANNA, "status": "returned"}
        event = events.decode(*_record("shipment.updated", data))
        folded.append(fold(each, event, None))
    assert folded[0] == folded[1]
    assert folded[0].changed
    values, expected = map(msgspec.msgpack.decode, (codec.encode(order), codec.encode(plain)))
    assert values[3][-1] == expected[3][-1]
    assert [fact[-1] for fact in values[3][:-1]] == [{"more": [1, b"2", None]}] * 2
    assert (values[0], values[len(expected) :]) == (expected[0], [["a list of facts"], 7])


def test_what_waited_for_its_order_takes_what_it_had_along() -> None:
    builder = OrderBuilder()
    builder.give_back("processed", item=9)
    values = msgspec.msgpack.decode(codec.encode(builder.order))
    values[10][0].append("more")
    order = codec.decode(msgspec.msgpack.encode(values))
    created = OrderBuilder()
    created.create(line(1))
    order.created, order.waiting = created.order.created, []
    assert msgspec.msgpack.decode(codec.encode(order))[10] == []


def test_a_state_of_a_later_format_is_kept_and_not_read() -> None:
    values = msgspec.msgpack.decode(codec.encode(typical().order))
    for ahead in (1, 40):
        values[FORMAT_AT], values[3] = FORMAT + ahead, "of another kind"
        newer = sealed(values)
        assert codec.is_state(KEY, newer)
        assert (codec.version_of(newer), codec.due_of(newer)) == (values[0], values[18])
        with pytest.raises(
            codec.NewerFormat, match=f"a state is of format {FORMAT + ahead}; this version reads 2 and 1; run"
        ):
            codec.decode(newer)


def test_what_only_looks_like_a_later_format_is_a_foreign_record() -> None:
    """It may not end a worker, so it needs the checksum with which later versions end their states."""
    values = msgspec.msgpack.decode(codec.encode(typical().order))
    values[FORMAT_AT] = FORMAT + 1
    newer = sealed(values)
    assert codec.is_state(KEY, newer)
    for other in (
        msgspec.msgpack.encode(values),
        msgspec.msgpack.encode([*values, 7]),
        newer[:-1] + bytes([newer[-1] ^ 1]),
        newer.replace(b"EUR", b"USD"),
    ):
        assert not codec.is_state(KEY, other)
        with pytest.raises(msgspec.DecodeError):
            codec.decode(other)


def test_the_next_format_has_its_checksum() -> None:
    """Else the version before would take its states for foreign records, and forget their orders."""
    encoded = codec.encode(typical().order)
    assert FORMAT == 2 or encoded == sealed(msgspec.msgpack.decode(encoded)[:-1])


def test_a_fact_of_an_unknown_type_that_waits_for_its_order_is_not_read() -> None:
    builder = OrderBuilder()
    builder.give_back("processed", item=9)
    values = msgspec.msgpack.decode(codec.encode(builder.order))
    values[10][0][0] = "notes"
    with pytest.raises(codec.NewerFormat, match="facts that this version doesn't know: notes"):
        codec.decode(msgspec.msgpack.encode([*values, [["a note"]]]))


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
    policy = Settings().deadline_policy
    for order_id, order in histories(40).items():
        sound = codec.encode(order)
        for _ in range(60):
            changed = bytearray(sound)
            for _ in range(random.choice((1, 1, 2, 4))):
                changed[random.randrange(len(changed))] = random.randrange(256)
            if bytes(changed) == sound or not codec.is_state(order_id, bytes(changed)):
                continue
            try:
                again = codec.decode(bytes(changed))
            except codec.NewerFormat:  # kept, and told when the order's next event comes
                continue
            passed += 1
            next_due(again, order_id, policy)
            if again.created is not None:
                row, _ = rows.order_row_and_summary(ids.text(order_id), order_id, again, None)
                parts.suborder_rows(order_id, again, row)
                parts.payment_rows(ids.text(order_id), again)
                parts.refund_rows(ids.text(order_id), order_id, again)
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
        event = events.decode(each.topic, each.headers, each.value, 2_000_000_000_000)
        order = orders.setdefault(event.order_id, Order())
        fold(
            order, event, RecordId(each.topic, 0, 0) if order.created is None else None, RunningTotals(order)
        )
    return orders
