"""State <-> bytes: an Order as one msgpack array.
Key in RocksDB and in the changelog: the 16 raw bytes of the order's id.

The first element is the version, so that recovery can compare two states of a key without decoding either.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from contracts import money
from domain.enums import OrderStatus
from domain.order import Order, fact_lists

KEY_BYTES: Final = 16
_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(Order).decode

# An Order of which only `due` is looked at: everything before it is skipped in C.
_Peek: Final = msgspec.defstruct(
    "_Peek",
    [
        (name, int, 0) if name == "due" else (name, msgspec.Raw, msgspec.Raw())
        for name in Order.__struct_fields__
    ],
    array_like=True,
    gc=False,
)
_peek: Final[Callable[[bytes], Any]] = msgspec.msgpack.Decoder(_Peek).decode


def encode(order: Order) -> bytes:
    """State -> bytes. A typical order (one line, paid, delivered) takes about 350 bytes."""
    return _encode(order)


def decode(raw: bytes) -> Order:
    """Bytes -> state. Raises msgspec.DecodeError for anything that encode() didn't make."""
    try:
        return _decode(raw)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None


def is_state(key: bytes, raw: bytes) -> bool:
    """Tell whether encode() may have made these bytes for the order with this raw id: anybody may write to a
    changelog. Pure.

    The bytes must decode within the bounds of the fields, the version must be the number of facts, and the
    facts may name only currencies, lines and sellers that the order has.
    """
    if len(key) != KEY_BYTES:
        return False
    try:
        order = decode(raw)
    except msgspec.DecodeError:
        return False
    # Decisions are no natural keys: after a crash one may be all that an order has.
    return (
        order.version == natural_keys(order)
        and (order.version > 0 or bool(order.decisions))
        and _coherent(order)
    )


def _coherent(order: Order) -> bool:
    if not all(payment.currency in money.DIGITS for payment in order.payments):
        return False
    created = order.created
    if created is None:
        return not order.suborders and order.status is OrderStatus.PENDING
    lines = {item.item_id for item in created.items}
    named = [
        fact.items
        for facts in (order.scans, order.stock)
        for fact in facts
        if fact.items and not fact.refused
    ]
    return (
        created.currency in money.DIGITS
        and len(order.suborders) in (0, len({item.seller_id for item in created.items}))
        and all(item_id in lines for items in named for item_id, _ in items)
        and all(stage.item_id in lines for stage in order.returns if not stage.refused)
    )


def natural_keys(order: Order) -> int:
    """Return how many natural keys an order has taken in, by its facts; this is its version. Pure."""
    return (order.created is not None) + sum(map(len, fact_lists(order)))


def version_of(raw: bytes) -> int:
    """The version alone, read off the first element of the array."""
    head = raw[0]
    at = 1 if 0x90 <= head <= 0x9F else 3  # fixarray, array16
    tag = raw[at]
    if tag < 0x80:
        return tag
    width = {0xCC: 1, 0xCD: 2, 0xCE: 4, 0xCF: 8}[tag]
    return int.from_bytes(raw[at + 1 : at + 1 + width], "big")


def due_of(raw: bytes) -> int:
    """When the order's next deadline passes, ms by the broker's time; 0: none."""
    due: int = _peek(raw).due
    return due


def status_of(raw: bytes) -> str:
    """The order's status by name."""
    return decode(raw).status.text
