"""States as they lie in changelogs: recorded bytes are read, and written again as they were.

tests/unit/states.txt holds an order's id and its state a line, in hex, written while numbers and tuples stood
where enums and structs are.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

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
from domain.order import Order, PublishedSuborder
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
    ]


@each_state
def test_a_recorded_state_is_written_again_byte_for_byte(order_id: bytes, state: bytes) -> None:
    order = codec.decode(state)
    assert codec.is_state(order_id, state)
    # The head says how many elements there are: those added since follow, with their defaults.
    names, written = Order.__struct_fields__, int.from_bytes(state[1:3], "big")
    added = [msgspec.msgpack.encode(getattr(Order(), name)) for name in names[written:]]
    assert codec.encode(order) == state[:1] + len(names).to_bytes(2, "big") + state[3:] + b"".join(added)


@each_state
def test_a_part_of_a_state_is_the_array_of_its_fields(order_id: bytes, state: bytes) -> None:
    """So it reads alike as a struct and as the tuple that it was."""
    parts = msgspec.msgpack.decode(state)[PARTS]
    assert [list(map(int, msgspec.structs.astuple(part))) for part in codec.decode(state).suborders] == parts


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
