"""An order as of a time is what a fold of its facts up to then makes, whatever came when."""

from __future__ import annotations

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from domain.asof import as_of
from domain.explain import explain
from domain.order import Order
from domain.shapes import Event
from tests.property.examples import examples
from tests.property.histories import ORDER_ID, RANDOMS, Run, histories
from tests.property.test_confluence import all_rows, facts

MANY = examples(150)


def recorded(run: Run, history: list[Event], time: int, random: Any) -> Order:
    """A fold of the records of this run with an event time up to `time`, in an order of its own: decisions as
    they were made, by number, at any places among the others.
    """
    then = [event for event in history if event.time <= time]
    random.shuffle(then)
    for decision in run.order.decisions:
        if decision.time <= time:
            at = random.randint(0, len(then))
            later = [n for n, event in enumerate(then) if event.type == "refund.decided"]
            at = max([at, *(n + 1 for n in later)])
            event = Event("refund.decided", ORDER_ID, decision, "d", decision.time, None, decision.appended)
            then.insert(at, event)
    fold = Run()
    for event in then:
        fold.take(event)
    return fold.order


def told(order: Order) -> Any:
    """All that is said of an order, but for when records were appended: of a repetition that may differ."""
    document = explain(ORDER_ID, order)
    for fact in document["facts"]:
        del fact["appended"]
    return document


@MANY
@given(histories, RANDOMS, st.integers(1, 5), st.data())
def test_it_is_a_fold_of_the_facts_up_to_then(
    history: list[Event], random: Any, pace: int, data: st.DataObject
) -> None:
    time = data.draw(st.sampled_from(sorted({event.time for event in history}))) + data.draw(
        st.integers(-1, 1)
    )
    again = [
        msgspec.structs.replace(
            event, fact=msgspec.structs.replace(event.fact, time=event.time - 1), time=event.time - 1
        )
        for event in history
        if event.type != "shipment.updated" and random.random() < 0.3
    ]
    whole = [*history, *again, *(event for event in history if random.random() < 0.3)]
    random.shuffle(whole)
    run = Run().take_all(whole, pace)
    before = msgspec.msgpack.encode(run.order)
    order = run.order
    then, expected = as_of(order, ORDER_ID, time), recorded(run, whole, time, random)
    assert msgspec.msgpack.encode(order) == before, "the order itself stays as it is"
    assert facts(then) == facts(expected)
    assert then.decisions == expected.decisions
    assert told(then) == told(expected)
    if then.created is not None:
        assert all_rows(then) == all_rows(expected)


@MANY
@given(histories, RANDOMS, st.integers(1, 5))
def test_as_of_the_end_of_time_it_is_the_order_itself(history: list[Event], random: Any, pace: int) -> None:
    random.shuffle(history)
    order = Run().take_all(history, pace).order
    at_the_end = explain(ORDER_ID, order, 253_402_300_799_999_999)
    assert explain(ORDER_ID, order) == at_the_end | {"as_of": None}
