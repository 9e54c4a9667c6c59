"""State <-> bytes: an Order as one msgpack array.
Key in RocksDB and in the changelog: the 16 raw bytes of the order's id.

The first element is the version, so that recovery can compare two states of a key without decoding either.

Workers of two versions share a group during an upgrade. A state that a later version has added fields to is
read, and written with them; one of a later format is kept as it is, and not read (docs/decisions/0036).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple, get_args, get_origin
from zlib import crc32

import msgspec
from msgspec import structs

from contracts import money
from domain.enums import OrderStatus
from domain.order import FORMAT, Extended, Order, Stored, fact_lists
from tables.formats import NewerFormat as NewerFormat

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
    return _encode(order) if type(order) is Order else _encode_extended(order)


def decode(raw: bytes) -> Order:
    """Bytes -> state. Raises NewerFormat, and msgspec.DecodeError for anything that no encode() made."""
    try:
        return _decode(raw)
    except (UnicodeDecodeError, RecursionError) as error:
        raise msgspec.DecodeError(str(error)) from None
    except msgspec.ValidationError:
        extended = _decode_extended(raw)
        if extended is None:
            raise
        return extended


def is_state(key: bytes, raw: bytes) -> bool:
    """Tell whether encode() may have made these bytes for the order with this raw id: anybody may write to a
    changelog. Pure.

    The bytes must decode within the bounds of the fields, the version must be the number of facts, and the
    facts may name only currencies, lines and sellers that the order has. A state of a later format, with its
    checksum, is one: to leave it out would be to forget its order.
    """
    if len(key) != KEY_BYTES:
        return False
    try:
        order = decode(raw)
    except msgspec.DecodeError:
        return False
    except NewerFormat:
        return True
    counted = natural_keys(order)
    # A later version may count facts that this one doesn't know.
    # Decisions are no natural keys: after a crash one may be all that an order has.
    return (
        (order.version == counted or (order.version > counted and type(order) is not Order))
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
        and all(
            len(parts) in (0, len({item.seller_id for item in created.items}))
            for parts in (order.suborders, order.left)
        )
        and all(item_id in lines for items in named for item_id, _ in items)
        and all(stage.item_id in lines for stage in order.returns if not stage.refused)
    )


def natural_keys(order: Order) -> int:
    """Return how many natural keys an order has taken in, by its facts; this is its version. Pure."""
    return (order.created is not None) + sum(map(len, fact_lists(order)))


# -- states of later versions: rare, and only while workers of two versions run ------------------------------


class _Shape(NamedTuple):
    """How many elements the array of a struct has, and which of them hold structs."""

    size: int
    inner: list[tuple[int, bool, _Shape]]
    """(its place, whether it is a list of structs, their shape)"""


def _shape_of(kind: type[Stored]) -> _Shape:
    fields = structs.fields(kind)
    inner = [
        (at, get_origin(field.type) is list, _shape_of(part))
        for at, field in enumerate(fields)
        for part in get_args(field.type)
        if isinstance(part, type) and issubclass(part, Stored)
    ]
    return _Shape(len(fields), inner)


_SHAPE: Final = _shape_of(Order)
_VERSION, _DUE, _FORMAT = map(Order.__struct_fields__.index, ("version", "due", "format"))
_Tails = dict[tuple[int, ...], list[Any]]
"""Where an array was longer, by the indexes that lead to it -> the elements that followed."""


_decode_as_extended: Final = msgspec.msgpack.Decoder(Extended).decode


def _decode_extended(raw: bytes) -> Extended | None:
    """A later version's state, without what only that one knows; None if it isn't one.

    Raises NewerFormat and msgspec.ValidationError. A later format whose checksum isn't right is none: a
    foreign record may not end a worker.
    """
    try:
        values = msgspec.msgpack.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    if not isinstance(values, list) or len(values) <= _FORMAT:
        return None
    if (
        all(type(values[at]) is int and values[at] >= 0 for at in (_VERSION, _DUE, _FORMAT))
        and (number := values[_FORMAT]) > FORMAT
        and _is_sealed(raw)
    ):
        raise NewerFormat(f"a state is of format {number}; this version reads {FORMAT} and {FORMAT - 1}")
    tails: _Tails = {}
    _cut(values, _SHAPE, (), tails)
    if not tails:
        return None
    order = _decode_as_extended(_encode(values))
    if unknown := {each.field for each in order.waiting} - {*Order.__struct_fields__}:
        raise NewerFormat(f"a state has facts that this version doesn't know: {', '.join(sorted(unknown))}")
    vars(order)["tails"] = tails
    return order


def _is_sealed(raw: bytes) -> bool:
    """Whether bytes end as those of every later format do (domain.order.FORMAT)."""
    return raw[-5:] == b"\xce" + crc32(raw[:-5]).to_bytes(4, "big")


def _cut(values: list[Any], shape: _Shape, path: tuple[int, ...], tails: _Tails) -> None:
    if len(values) > shape.size:
        tails[path] = values[shape.size :]
        del values[shape.size :]
    for at, many, inner in shape.inner:
        value = values[at] if at < len(values) else None
        if isinstance(value, list):
            for place, each in enumerate(value) if many else ((None, value),):
                if isinstance(each, list):
                    _cut(each, inner, (*path, at) if place is None else (*path, at, place), tails)


def _encode_extended(order: Order) -> bytes:
    values = msgspec.msgpack.decode(_encode(order))
    for path, tail in vars(order)["tails"].items():
        array = values
        for at in path:
            # What waited for its order no longer does.
            array = array[at] if at < len(array) else []
        array += tail
    return _encode(values)


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


def is_created(raw: bytes) -> bool:
    """Whether the order's order.created is known, and so it has rows. False for a state of a later format."""
    try:
        return decode(raw).created is not None
    except NewerFormat:
        return False


def status_of(raw: bytes) -> str:
    """The order's status by name."""
    return decode(raw).status.text
