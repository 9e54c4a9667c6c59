"""Any permutation, duplication and split of a history ends in the same facts, the same
rows and the same commands.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Any
from unittest.mock import patch

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from contracts.incoming import FACT_FIELDS
from contracts.outgoing import RefundRequest
from domain import parts, rows
from domain import totals as totals
from domain.anomalies import anomalies
from domain.order import Order
from domain.shapes import Event
from domain.status import view_of
from tables import codec
from tests.property.examples import examples
from tests.property.histories import ORDER_ID, RANDOMS, SAME_IN_ANY_ORDER, Run, histories

KEYED_BY_TIME = ("shipment.updated", "promise.updated")
MANY = examples(150)


def facts(order: Order) -> dict[str, Any]:
    """The order's facts as sets; what only remembers what was published, and refunds, may differ
    with the order of arrival.
    """
    by_field: dict[str, Any] = {
        name: sorted(repr(fact) for fact in getattr(order, name)) for name in FACT_FIELDS
    }
    return by_field | {
        "version": order.version,
        "created": order.created,
        "status": order.status,
        "suborders": order.suborders,
    }


def all_rows(order: Order) -> list[Any]:
    """But for refunds: which were decided may differ."""
    key = "order"
    row = rows.order_row(key, order)
    return [
        row,
        parts.suborder_rows(bytes(16), order, row),
        sorted(parts.payment_rows(key, order), key=repr),
        sorted(rows.item_rows(key, order), key=repr),
        sorted(rows.shipment_rows(key, order), key=repr),
        sorted(rows.return_rows(key, order), key=repr),
    ]


def promised(order: Order) -> list[Any]:
    """Of each seller what it promised, and since when it is late."""
    return [(each.ship_by, each.deliver_by, each.late_since) for each in view_of(order).suborders]


def commands(run: Run) -> set[tuple[str, str, bytes]]:
    return {
        (d.type, d.ce_name, msgspec.json.encode(d.data)) for d in run.derived if d.type in SAME_IN_ANY_ORDER
    }


def last_notices(run: Run) -> dict[str, Any]:
    """Last suborder notice of each seller and last status, without the version at
    which they were last news.
    """
    last: dict[str, Any] = {"status": "pending"}
    for derived in run.derived:
        data = msgspec.to_builtins(derived.data)
        if derived.type in ("suborder.created", "suborder.updated"):
            last[data["seller_id"]] = {name: value for name, value in data.items() if name != "version"}
        elif derived.type == "order.status_changed":
            last["status"] = data["to"]
    return last


def refused_keys(run: Run) -> int:
    return len(run.refusals) + len(run.late)


@MANY
@given(histories, RANDOMS, st.integers(1, 5))
def test_any_order_and_repetition_ends_the_same(history: list[Event], random: Any, pace: int) -> None:
    once = Run().take_all(history)
    shuffled = history + [event for event in history if random.random() < 0.4]
    random.shuffle(shuffled)
    other = Run().take_all(shuffled, pace)
    assert facts(once.order) == facts(other.order)
    assert all_rows(once.order) == all_rows(other.order)
    assert promised(once.order) == promised(other.order)
    assert commands(once) == commands(other)
    assert last_notices(once) == last_notices(other)
    assert {a for a in anomalies(once.order, ORDER_ID) if not a.startswith("refund")} == {
        a for a in anomalies(other.order, ORDER_ID) if not a.startswith("refund")
    }
    assert refused_keys(once) == refused_keys(other)


@MANY
@given(histories, st.data())
def test_an_earlier_repetition_moves_times_alone(history: list[Event], data: st.DataObject) -> None:
    event = data.draw(st.sampled_from([e for e in history if e.type not in KEYED_BY_TIME]))
    earlier = msgspec.structs.replace(
        event, fact=msgspec.structs.replace(event.fact, time=event.fact.time - 1_000), time=event.time - 1_000
    )
    ahead = Run().take_all([earlier, *history])
    after = Run().take_all([*history, earlier])
    assert facts(ahead.order) == facts(after.order)
    assert all_rows(ahead.order) == all_rows(after.order)


@MANY
@given(histories, st.integers(1, 4), st.data())
def test_a_replay_from_an_older_state_publishes_nothing_new(
    history: list[Event], pace: int, data: st.DataObject
) -> None:
    """Kill anywhere: the state is an older one, the log is read again from there.
    The same commands leave, under the same ids.
    """
    run = Run().take_all(history, pace)
    cut = data.draw(st.integers(0, len(history)))
    crashed = Run()
    for event in history[:cut]:
        crashed.take(event)
    lost = crashed.raw
    for event in history[cut : cut + 2]:  # effects of these left, their state didn't stay
        crashed.take(event)
    crashed.raw = lost
    replayed = crashed.take_all(history[cut:], pace)
    assert facts(run.order) == facts(replayed.order)
    assert all_rows(run.order) == all_rows(replayed.order)
    assert commands(run) == commands(replayed)


@MANY
@given(histories, RANDOMS, st.integers(1, 6))
def test_refunds_stay_within_captured_money_and_pay_each_unit_once(
    history: list[Event], random: Any, pace: int
) -> None:
    random.shuffle(history)
    run = Run()
    asked: dict[str, Any] = {}
    captured = 0
    for n, event in enumerate(history):
        run.take(event)
        if n % pace == 0 and run.decisions:
            run.take(run.decisions.popleft())
        captured = sum(p.amount for p in run.order.payments if not p.refused)
        assert sum(d.amount for d in run.order.decisions) <= captured
    run.take_all([])
    for derived in run.derived:
        if derived.type == "refund.request":
            assert isinstance(derived.data, RefundRequest)
            data = msgspec.structs.replace(derived.data, attempt=msgspec.UNSET)
            assert asked.setdefault(data.refund_id, data) == data, "one refund, one content, at any attempt"
    total = sum(Fraction(data.amount) for data in asked.values())
    assert total == Fraction(sum(d.amount for d in run.order.decisions), 100)
    assert 0 <= total * 100 <= captured
    units = [
        (item, n)
        for decision in run.order.decisions
        for item, first, count in decision.units
        for n in range(first, first + count)
    ]
    postage = [item for decision in run.order.decisions for item in decision.shipping]
    assert len(units) == len(set(units))
    assert len(postage) == len(set(postage))
    assert all(decision.amount > 0 for decision in run.order.decisions)


@MANY
@given(histories)
def test_an_order_with_no_live_unit_keeps_no_money(history: list[Event]) -> None:
    order = Run().take_all(history).order
    now = view_of(order)
    assert order.created is not None
    if now.live == 0 and order.created.live_from is None:
        assert now.decided == now.captured


@MANY
@given(
    histories,
    st.lists(st.booleans(), min_size=40, max_size=40),
    RANDOMS,
    st.integers(1, 5),
)
def test_sums_kept_over_a_batch_tell_the_same_as_fresh_ones(
    history: list[Event], cuts: list[bool], random: Any, pace: int
) -> None:
    """However a history is split into batches: within one the order and its sums stay in hand,
    between two both are made anew.
    """
    history = history + [
        msgspec.structs.replace(event, fact=_earlier(event), time=event.time - 1)
        for event in history
        if random.random() < 0.3
    ]
    random.shuffle(history)
    fresh, kept = Run(), Run(cuts)
    fresh.take_all(history, pace)
    with patch.object(totals, "INDEX_FROM", 2):
        kept.take_all(history, pace)
    assert kept.raw == fresh.raw
    assert [(each.ce_name, each.data) for each in kept.derived] == [
        (each.ce_name, each.data) for each in fresh.derived
    ]
    assert (kept.refusals, kept.late) == (fresh.refusals, fresh.late)


def _earlier(event: Event) -> Any:
    return (
        event.fact
        if event.type in KEYED_BY_TIME
        else msgspec.structs.replace(event.fact, time=event.fact.time - 1)
    )


@MANY
@given(histories)
def test_state_bytes_round_trip_and_tell_their_version(history: list[Event]) -> None:
    run = Run().take_all(history)
    assert run.raw is not None
    order = codec.decode(run.raw)
    assert codec.encode(order) == run.raw
    assert codec.version_of(run.raw) == order.version


@MANY
@given(histories)
def test_live_units_and_shares_add_up(history: list[Event]) -> None:
    order = Run().take_all(history).order
    assert order.created is not None
    now = view_of(order)
    assert sum(line.discount for line in now.lines) == (order.created.discount or 0)
    for line in now.lines:
        assert 0 <= line.live <= line.quantity
        assert line.returned <= line.delivered <= line.in_transit <= line.quantity
        costs = [line.cost_of(number, number + 1) for number in range(line.quantity)]
        taxes = [line.tax_of(number, number + 1) for number in range(line.quantity)]
        goods = line.price * line.quantity - line.discount
        on_top = line.tax is not None and line.tax.on_top
        assert sum(costs) == line.cost_of(0, line.quantity) == goods + on_top * sum(taxes)
        assert min(costs) >= 0
        assert taxes == sorted(taxes, reverse=True)
        first, after = line.worthless
        assert [number for number, cost in enumerate(costs) if not cost] == list(range(first, after))
    full = sum(line.cost_of(0, line.quantity) + line.postage for line in now.lines)
    assert full == order.created.total
