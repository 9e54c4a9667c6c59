"""What a batch holds is bounded: a small record may make megabytes of commands, or
name an order of megabytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from contracts import ids
from contracts.topics import DLQ
from domain.limits import limits_of
from domain.order import Order
from operations.history import at_hand, fold
from settings import Settings
from streams.folder import BatchFolder, BatchOutput
from streams.partitioner import partition_of
from tables import codec
from tests.unit.builders import ORDER, VALID, created, line, parcel, raw, record, sealed

WIDE = "\N{MUSICAL SYMBOL G CLEF}" * 1000
KEY = ids.text(raw(ORDER)).encode()
LANE = partition_of(KEY, Settings().partitions)


def taken(topic: str, offset: int, data: dict[str, Any], **changes: Any) -> Any:
    headers, value = record(topic, data, **changes)
    return SimpleNamespace(
        topic=topic,
        partition=LANE,
        offset=offset,
        timestamp=1,
        timestamp_type=1,
        key=KEY,
        value=value,
        headers=headers,
    )


def parcels(count: int, lines: int) -> list[Any]:
    """An order of so many lines with the longest texts, and so many parcels of all of it."""
    goods = [line(n, sku=WIDE) for n in range(1, lines + 1)]
    seller = goods[0]["seller_id"]
    history = [taken("order.created", 0, created(*goods))]
    for n in range(count):
        scan = {"order_id": ORDER, "shipment_id": parcel(n), "seller_id": seller, "status": "in_transit"}
        history.append(taken("shipment.updated", n, scan, id=f"scan-{n}"))
        history.append(taken("shipment.updated", count + n, {**scan, "status": "lost"}, id=f"broken-{n}"))
    return history


def folded(folder: BatchFolder, records: Sequence[Any]) -> list[BatchOutput]:
    states: dict[bytes, bytes] = {}
    works: list[BatchOutput] = []
    for work in fold(folder, LANE, records, at_hand(states)):
        works.append(work)
        states.update(work.states)
    return works


def published(works: Sequence[BatchOutput]) -> dict[str, list[Any]]:
    """What left, topic by topic, but for what is of the moment: dead letters' times, and notices,
    of which the last counts.
    """
    out: dict[str, list[Any]] = {}
    for work in works:
        for topic, records in work.out.items():
            if topic not in ("suborder.updated", "order.status_changed"):
                sent = [msgspec.structs.replace(each, value=each.content()) for each in records]
                out.setdefault(topic, []).extend(
                    msgspec.structs.replace(each, headers=[h for h in each.headers if h[0] != "dlq_time"])
                    for each in sent
                )
    return out


@pytest.mark.parametrize("held", [1, 40_000, 150_000])
def test_a_batch_in_stretches_comes_to_the_same(held: int) -> None:
    history = parcels(12, 5)
    whole, parts = BatchFolder(Settings()), BatchFolder(Settings())
    parts.held_bytes = held
    (at_once,), some = folded(whole, history), folded(parts, history)
    assert len(some) > 1
    assert published(some) == published([at_once])
    assert len(published(some)[DLQ]) == 12
    assert {key: state for work in some for key, state in work.states.items()} == at_once.states
    assert sum((work.outcomes for work in some), start=type(at_once.outcomes)()) == at_once.outcomes
    assert sum((work.letters for work in some), start=type(at_once.letters)()) == at_once.letters


def test_what_a_batch_publishes_is_bounded() -> None:
    folder = BatchFolder(Settings())
    folder.held_bytes = 2 << 20
    works = folded(folder, parcels(60, 100))
    assert sum(work.size for work in works) > 20 << 20
    largest = max(
        len(each.value)
        for work in works
        for records in work.out.values()
        for each in records
        if isinstance(each.value, bytes)
    )
    assert max(work.size for work in works) < folder.held_bytes + 4 * largest


def test_what_one_record_publishes_is_bounded() -> None:
    """Parcels that came before their order: all that they come to leaves with order.created."""
    history = parcels(200, 20)
    held, whole = BatchFolder(Settings()), BatchFolder(Settings())
    held.held_bytes = 1 << 20
    for folder in (held, whole):
        states = {raw(ORDER): folded(folder, history[1:])[-1].states[raw(ORDER)]}
        (work,) = fold(folder, LANE, history[:1], at_hand(states))
        commits = work.out["stock.commit"]
        assert len(commits) == 200
        if folder is held:
            first = published([work])
            assert work.size < held.held_bytes + 4 * len(commits[0].content() or b"")
        else:
            assert work.size > 10 << 20
            assert published([work]) == first


def test_an_order_above_a_lowered_limit_takes_in_nothing_and_stops_no_lane() -> None:
    """Its state was written while ORDERS_MESSAGE_BYTES was larger. Each event of it is a dead letter, its
    deadlines rest, and the orders beside it go on.
    """
    scans = [
        taken(
            "shipment.updated",
            n,
            {**VALID["shipment.updated"], "shipment_id": parcel(n)}
            | dict.fromkeys(("carrier", "location"), WIDE),
            id=f"scan-{n}",
        )
        for n in range(128)
    ]
    large, small = BatchFolder(Settings()), BatchFolder(Settings(message_bytes=1 << 20))
    states = {
        raw(ORDER): folded(large, [taken("order.created", 0, VALID["order.created"]), *scans])[-1].states[
            raw(ORDER)
        ]
    }
    limit = limits_of(1 << 20).state
    assert limit - 12_000 < len(states[raw(ORDER)]) < limit - 4_100, (
        "there is room for one more, not for three"
    )
    other = next(key for n in range(99) if partition_of((key := f"{n:08x}{ORDER[8:]}").encode(), 4) == LANE)
    paid = [
        taken(
            "order.paid",
            n,
            {**VALID["order.paid"], "payment_id": parcel(n)} | ({"method": WIDE} if n < 3 else {}),
            id=f"p-{n}",
        )
        for n in range(4)
    ]
    beside, more = (
        taken("order.paid", 9, {**VALID["order.paid"], "order_id": other, "payment_id": parcel(n)})
        for n in range(2)
    )
    beside.key = more.key = other.encode()

    (first,) = fold(small, LANE, [paid[0], beside], at_hand(states))
    assert (set(first.states), first.letters) == ({raw(ORDER), raw(other)}, {})
    (work,) = fold(small, LANE, [*paid[1:], more, scans[0]], at_hand(states := first.states))
    assert (set(work.states), work.letters) == ({raw(other)}, {"order_too_large": 4})
    assert set(work.out) == {DLQ}
    assert {dict(letter.headers)["dlq_offset"] for letter in work.out[DLQ]} == {b"0", b"1", b"2", b"3"}
    assert "raise it again, and redrive this" in dict(work.out[DLQ][0].headers)["dlq_detail"].decode()
    (again,) = fold(small, LANE, [scans[0]], at_hand(states))
    assert (again.states, again.letters, again.out) == ({}, {}, {}), "what is known already is no news"
    (other_work,) = fold(large, LANE, paid[1:], at_hand(states))
    state = other_work.states[raw(ORDER)]
    rests = small.pass_deadlines([(codec.due_of(state), raw(ORDER), state)], 1 << 60)
    assert (rests.states, rests.out, len(rests.moved)) == ({}, {}, 1)
    assert large.pass_deadlines([(codec.due_of(state), raw(ORDER), state)], 1 << 60).states


def test_a_state_that_cannot_be_read_names_its_order_and_what_waits_for_it() -> None:
    folder = BatchFolder(Settings())
    state = folded(folder, [taken("order.created", 0, VALID["order.created"])])[0].states[raw(ORDER)]
    values = msgspec.msgpack.decode(state)
    values[Order.__struct_fields__.index("format")] = 3
    states = {raw(ORDER): sealed(values)}
    said = (
        f"order {ORDER}: a state is of format 3; this version reads 2 and 1; {{}} waits for it, and the lane"
        " behind it; run that version, or a later one; if none has ever run here, stop the workers and run"
        f" orders repair --ids {ORDER}"
    )
    with pytest.raises(codec.NewerFormat, match=said.format(f"order.paid/{LANE}@9")):
        list(fold(folder, LANE, [taken("order.paid", 9, VALID["order.paid"])], at_hand(states)))
    with pytest.raises(codec.NewerFormat, match=said.format("a deadline that has passed")):
        folder.pass_deadlines([(1, raw(ORDER), states[raw(ORDER)])], 1)


def test_what_a_batch_loads_is_bounded() -> None:
    folder = BatchFolder(Settings())
    folder.held_bytes = 100_000
    state = folded(folder, parcels(0, 20))[0].states[raw(ORDER)]
    asked: list[int] = []

    def states(keys: Sequence[bytes]) -> list[bytes | None]:
        asked.append(len(keys) * len(state))
        return [state for _ in keys]

    history = []
    for n in range(500):
        order_id = f"{n:08x}{ORDER[8:]}"
        paid = {"order_id": order_id, "payment_id": parcel(n), "amount": "1.00", "currency": "EUR"}
        headers, value = record("order.paid", paid, id=f"p-{n}")
        key = order_id.encode()
        history.append(
            SimpleNamespace(
                **{**vars(taken("order.paid", n, {})), "key": key, "value": value, "headers": headers}
            )
        )
    works = list(fold(folder, LANE, history, states))
    assert len(works) > 5
    assert sum(len(work.states) for work in works) == 500
    assert max(len(work.states) for work in works) * len(state) < folder.held_bytes + 2 * len(state)
