"""What a simulated world's orders_attention and order.attention must say at rest, by the reference; and that
no order stays without an end and without somebody who is told.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from typing import Any

from audit.attention import KINDS, TABLE, event_name, malformed, misled, no_later, version_of
from audit.reference import Fact, Reading
from audit.stores import columns, comparable
from audit.topics import CREATED
from settings import Settings
from tests.simulation.world import ANSWERS, ENDS

Readings = Mapping[str, Sequence[Reading]]
"""Order -> its readings."""
_ENDED = ("delivered", "returned", "closed")


def wrong_rows(readings: Readings, rows: Iterable[Any]) -> Iterator[str]:
    """What is wrong about the table's rows, in words. `rows`: with its columns as attributes.

    Of each kind that holds there is one open row; a row of any other kind is cleared, and none is of a later
    version than its order.
    """
    by_order: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in rows:
        if row.kind in by_order[str(row.order_id)]:
            yield f"order {row.order_id}: several rows of {row.kind}"
        by_order[str(row.order_id)][row.kind] = row
    for order_id, each in readings.items():
        there = by_order.pop(order_id, {})
        if all(_wrong(reading, there) for reading in each):
            yield f"order {order_id}: {TABLE}: {'; '.join(_wrong(each[0], there))}"
    for order_id in by_order:
        yield f"order {order_id}: rows of {TABLE}, but no facts"


def _wrong(reading: Reading, there: Mapping[str, Any]) -> list[str]:
    """What differs from one reading."""
    expected = {row[0]: row for row in reading.rows()[TABLE]}
    vague = no_later(reading)
    wrong = [f"no row of {kind}" for kind in expected.keys() - there.keys()]
    for kind, row in there.items():
        if kind not in expected:
            if row.cleared_at is None or reading.created is None:
                wrong.append(f"a row of {kind}")
            elif row.version > version_of(reading):
                wrong.append(f"a row of {kind} of version {row.version}, at most {version_of(reading)}")
            continue
        wanted = comparable(TABLE, expected[kind])
        values = comparable(TABLE, [_text(getattr(row, name)) for name in columns(TABLE)])
        for name, value, value_there in zip(columns(TABLE), wanted, values, strict=True):
            earlier = name == "since" and kind in vague and value_there < value
            if value != value_there and not earlier:
                wrong.append(f"{kind} {name} is {value_there}, not {value}")
    return wrong


def _text(value: Any) -> Any:
    """As the reference writes it: ids as text."""
    return value if value is None or isinstance(value, (str, int)) else str(value)


def wrong_events(
    readings: Readings, events: Iterable[tuple[str, Mapping[str, Any]]], told_late: Container[str] = ()
) -> Iterator[str]:
    """What is wrong about order.attention, in words. `events`: (ce_id, data), in the order of the topic. The
    last of each kind tells how it ended, but of the orders of which a dead worker's landed late.
    """
    last: dict[str, dict[str, Mapping[str, Any]]] = defaultdict(dict)
    for event_id, data in events:
        each = readings.get(data["order_id"])
        if each is None:
            yield f"order {data['order_id']}: order.attention, but no facts"
            continue
        wrong = malformed(data, each)
        if wrong is not None:
            yield f"order {data['order_id']}: order.attention has {wrong[1]}, not {wrong[0]}"
            continue
        if event_id != each[0].event_id("order.attention", event_name(data)):
            yield f"order {data['order_id']}: order.attention {event_name(data)} has the id {event_id}"
        if not 0 < data["version"] <= version_of(each[0]):
            yield f"order {data['order_id']}: order.attention {event_name(data)}, at {version_of(each[0])}"
        last[data["order_id"]][data["kind"]] = data
    for order_id, each in readings.items():
        if each[0].created is None or order_id in told_late:
            continue
        for kind in KINDS:
            wrong = misled(kind, last[order_id].get(kind), each)
            if wrong is not None:
                yield f"order {order_id}: order.attention {kind}: {wrong[1]}, expected {wrong[0]}"


# -- an end for every order ----------------------------------------------------------------------------------


def waits_for_everything(settings: Settings) -> bool:
    """Whether every order must end or be told, whatever is silent. What isn't shipped needn't be asked back:
    it is late all the same.
    """
    waits = [f"{name}_deadline" for name in ANSWERS] + [name for name in ENDS if name != "ship_cancel_after"]
    return all(getattr(settings, name) > 0 for name in waits)


def left_alone(
    readings: Readings,
    rows: Iterable[Any],
    arrived: Mapping[str, Sequence[tuple[Fact, int]]],
    settings: Settings,
    waiting: Container[str] = (),
) -> Iterator[str]:
    """Orders without an end and without an open row, in words: to be asked of a world at rest of which
    waits_for_everything. Those that wait for their order.created aren't meant, nor those that
    ORDERS_HISTORY_AGE leaves out.

    `arrived`: order -> its facts, and when they came to its lane, ms by the brokers' clock. `waiting`: orders
    that still wait for a deadline: a promise may be far ahead.
    """
    seen = {str(row.order_id) for row in rows if row.cleared_at is None}
    for order_id, each in readings.items():
        if (
            order_id in seen
            or order_id in waiting
            or any(reading.created is None or has_ended(reading) for reading in each)
        ):
            continue
        begun = min(at for fact, at in arrived[order_id] if fact.type == CREATED)
        created = each[0].created
        assert created is not None
        if begun / 1000 - created.time.timestamp() <= settings.history_age:
            yield f"order {order_id}: {each[0].status()}, under way, and nobody is told"


def has_ended(reading: Reading) -> bool:
    """Whether nothing of an order is under way: no unit, no return, no refund."""
    completed = {fact.content["refund_id"] for fact in reading.facts if fact.type == "refund.completed"}
    return (
        all(suborder.status in _ENDED for suborder in reading.suborders)
        and all(stage.content["status"] != "requested" for stage in reading.returns.values())
        and all(reading.made_id(f"refund:{decision.n}") in completed for decision in reading.decisions)
    )
