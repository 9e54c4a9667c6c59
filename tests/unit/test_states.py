"""States as they lie in changelogs: recorded bytes are read, and written again as they were.

tests/unit/states.txt holds an order's id and its state a line, in hex, written while numbers and tuples stood
where enums and structs are; the last line, with a grant, later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args, get_origin

import msgspec
import pytest
from msgspec import structs

from domain.enums import (
    ClosedBecause,
    DeadlineKind,
    Numbered,
    OrderStatus,
    Rank,
    RefundCause,
    ReturnStatus,
    StockAnswer,
    SuborderStatus,
)
from domain.order import Order, PublishedSuborder, Stored
from tables import codec

RECORDED = [
    (bytes.fromhex(order_id), bytes.fromhex(state))
    for order_id, state in map(
        str.split, Path(__file__).with_name("states.txt").read_text(encoding="ascii").splitlines()
    )
]
STATUS, PARTS = map(Order.__struct_fields__.index, ("status", "suborders"))
each_state = pytest.mark.parametrize(("order_id", "state"), RECORDED, ids=range(len(RECORDED)))


def held(order: Order) -> list[Numbered]:
    """Every number that a state holds, by its meaning."""
    return [
        order.status,
        *(each for part in order.suborders for each in (part.status, part.because)),
        *(scan.rank for scan in order.scans),
        *(stage.status for stage in order.returns),
        *(reply.type for reply in order.stock),
        *(decision.cause for decision in order.decisions),
        *(deadline.what for deadline in order.deadlines),
        *(lapse.what for lapse in order.lapses),
    ]


@each_state
def test_a_recorded_state_is_written_again_byte_for_byte(order_id: bytes, state: bytes) -> None:
    assert codec.is_state(order_id, state)
    elements = msgspec.msgpack.decode(state)
    assert msgspec.msgpack.encode(elements) == state
    assert codec.encode(codec.decode(state)) == msgspec.msgpack.encode(completed(elements, Order))


def completed(elements: list[Any], kind: type[Stored]) -> list[Any]:
    """The elements of a struct and those added since, with their defaults; so for each part of it."""
    for at, field in enumerate(structs.fields(kind)):
        if at == len(elements):
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            elements.append(default)
        for part in get_args(field.type):
            if isinstance(part, type) and issubclass(part, Stored) and elements[at]:
                for each in elements[at] if get_origin(field.type) is list else [elements[at]]:
                    completed(each, part)
    return elements


@each_state
def test_a_part_of_a_state_is_the_array_of_its_fields(order_id: bytes, state: bytes) -> None:
    """So it reads alike as a struct and as the tuple that it was."""
    parts = msgspec.msgpack.decode(state)[PARTS]
    decoded = [list(map(int, structs.astuple(part))) for part in codec.decode(state).suborders]
    assert [each[: len(part)] for each, part in zip(decoded, parts, strict=True)] == parts


def test_an_element_of_a_part_keeps_its_meaning() -> None:
    names = [
        "status",
        "items_amount",
        "shipping",
        "discount",
        "live",
        "in_transit",
        "delivered",
        "returned",
        "because",
        "tax",
        "not_shipped",
    ]
    assert list(PublishedSuborder.__struct_fields__)[: len(names)] == names


def test_the_recorded_states_hold_every_number() -> None:
    kinds = (
        OrderStatus,
        SuborderStatus,
        Rank,
        ReturnStatus,
        StockAnswer,
        RefundCause,
        DeadlineKind,
        ClosedBecause,
    )
    numbers: set[tuple[type[Numbered], int]] = set()
    for _, state in RECORDED:
        numbers |= {(type(each), int(each)) for each in held(codec.decode(state))}
    numbers.add((ClosedBecause, ClosedBecause.NOT_SHIPPED))  # held as PublishedSuborder.not_shipped
    assert numbers == {(kind, int(each)) for kind in kinds for each in kind}


@pytest.mark.parametrize(("place", "number"), [(STATUS, 5), (STATUS, -1), (PARTS, 6)])
def test_a_number_without_a_meaning_is_no_state(place: int, number: int) -> None:
    order_id, state = next((key, raw) for key, raw in RECORDED if codec.decode(raw).suborders)
    elements = msgspec.msgpack.decode(state)
    if place == PARTS:
        elements[PARTS][0][0] = number
    else:
        elements[place] = number
    changed = msgspec.msgpack.encode(elements)
    assert not codec.is_state(order_id, changed)
    with pytest.raises(msgspec.ValidationError):
        codec.decode(changed)
