"""State bytes: a round trip, the version on top, and small."""

from __future__ import annotations

import msgspec
import pytest

from domain.order import Order
from tables import codec
from tests.unit.wire import ANNA, BORIS, STRANGER, Story, line


def typical() -> Story:
    told = Story()
    told.create(line(1, shipping_amount="3.00"))
    told.pay("13.00")
    told.scan("in_transit", tracking_number="D123456789012")
    told.scan("delivered", tracking_number="D123456789012", hour=4)
    return told


def eventful() -> Story:
    told = Story()
    told.give_back("processed", item=9)
    told.create(line(1, ANNA, 3), line(2, BORIS))
    told.pay("40.00")
    told.pay("1.00", 2, currency="USD")
    told.stock("rejected", items={1: 1})
    told.cancel(BORIS)
    told.tell("payment.failed", payment_id=STRANGER, reason="r")
    told.tell("refund.failed", refund_id=STRANGER)
    return told.settle()


@pytest.mark.parametrize("told", [Story(), typical(), eventful()], ids=["empty", "typical", "eventful"])
def test_round_trip(told: Story) -> None:
    encoded = codec.encode(told.order)
    assert codec.decode(encoded) == told.order
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
