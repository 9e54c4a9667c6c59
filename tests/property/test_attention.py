"""What a person should look at is the same in any order of arrival, however facts are repeated and split into
batches; and what holds since when is what the order as of every time says.
"""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import times
from contracts.incoming import FACT_FIELDS
from domain.anomalies import KINDS, anomalies
from domain.asof import as_of
from domain.attention import BETWEEN, attention_rows, kept, renew, since_of
from domain.order import Order, PaymentFailure
from domain.rows import fact_times
from domain.shapes import Event
from tests.property.examples import examples
from tests.property.histories import ORDER_ID, RANDOMS, Run, histories
from tests.property.test_as_of import recorded
from tests.property.test_confluence import KEYED_BY_TIME

MANY = examples(150)
TEXT = "00000000-0000-0000-0000-000000000000"
END = 253_402_300_799_999_999

Held = dict[str, tuple[str, int]]
"""Kind -> all that hold of it, and since when."""


def by_the_words(order: Order) -> Held:
    """What holds, as docs/rules.md says it: the order is looked at as of each of its times."""
    if order.created is None:
        return {}
    facts = [fact for name in FACT_FIELDS for fact in getattr(order, name)]
    moments = sorted({each.time for each in [order.created, *facts, *order.decisions]})
    seen = [told(as_of(order, ORDER_ID, moment)) for moment in moments]
    held: Held = {}
    for kind, detail in told(order).items():
        first = max([at + 1 for at, then in enumerate(seen) if kind not in then], default=0)
        held[kind] = (detail, moments[first])
    return held


def told(order: Order) -> dict[str, str]:
    details: dict[str, list[str]] = {}
    for text in anomalies(order, ORDER_ID):
        kind, _, detail = text.partition(": ")
        details.setdefault(kind, []).append(detail)
    return {kind: BETWEEN.join(texts) for kind, texts in details.items()}


def noted(order: Order) -> Held:
    """What the state says that holds."""
    return {each.kind: (each.detail, each.since) for each in order.attention if each.cleared_at is None}


def as_kept(held: Held) -> Held:
    return {kind: (kept(detail), since) for kind, (detail, since) in held.items()}


def untidy(history: list[Event], random: Any) -> list[Event]:
    """The history in any order, some of it again, some of it again with an earlier time."""
    again = [event for event in history if random.random() < 0.3]
    earlier = [
        msgspec.structs.replace(
            event, fact=msgspec.structs.replace(event.fact, time=event.time - 1), time=event.time - 1
        )
        for event in history
        if event.type not in KEYED_BY_TIME and random.random() < 0.3
    ]
    whole = [*history, *again, *earlier]
    random.shuffle(whole)
    return whole


@MANY
@given(histories, RANDOMS, st.lists(st.booleans(), max_size=5), st.integers(1, 5))
def test_it_is_what_the_order_as_of_every_time_says(
    history: list[Event], random: Any, cuts: list[bool], pace: int
) -> None:
    run = Run(cuts).take_all(untidy(history, random), pace)
    expected = by_the_words(run.order)
    assert expected.keys() <= {*KINDS}
    assert noted(run.order) == as_kept(expected)
    assert since_of(run.order, ORDER_ID) == {kind: since for kind, (_, since) in expected.items()}
    # The last event of each kind says it, too.
    events: list[Any] = [each.data for each in run.derived if each.type == "order.attention"]
    last = {data.kind: data for data in events}
    said = {kind: data.detail for kind, data in last.items() if data.state == "raised"}
    assert said == {kind: detail for kind, (detail, _) in expected.items()}
    if run.order.created is not None:
        rows = {each.kind: each for each in attention_rows(TEXT, ORDER_ID, run.order, *fact_times(run.order))}
        assert {kind for kind, row in rows.items() if row.cleared_at is None} == {*expected}
        assert {kind: (rows[kind].detail, rows[kind].since) for kind in expected} == {
            kind: (detail, times.text(since)) for kind, (detail, since) in expected.items()
        }
        assert {*rows} == {*last}, "what was seen stays"


@MANY
@given(histories, RANDOMS, st.integers(1, 5))
def test_any_order_and_repetition_ends_the_same(history: list[Event], random: Any, pace: int) -> None:
    """With the decisions that were made: which these are may differ with the order of arrival."""
    whole = untidy(history, random)
    run = Run().take_all(whole, pace)
    other = recorded(run, whole, END, random)
    assert noted(other) == noted(run.order)
    assert other.attended == run.order.attended


@pytest.mark.source
@MANY
@given(histories, RANDOMS, st.integers(0, 20))
def test_what_an_earlier_version_took_in_is_looked_at_again(
    history: list[Event], random: Any, without: int
) -> None:
    """It keeps what this one has noted, and takes in facts."""
    whole = untidy(history, random)
    run = Run().take_all(whole[:without])
    with patch("domain.fold.attend"):
        run.take_all(whole[without:])
    renewed = run.order
    renew(renewed, ORDER_ID)
    assert noted(renewed) == as_kept(by_the_words(run.order))
    # The next fact has it looked at, whatever it is.
    time = random.choice(history).time
    run.take(Event("payment.failed", ORDER_ID, PaymentFailure(time, bytes(16), "no"), "n", time, None, 1))
    assert noted(run.order) == as_kept(by_the_words(run.order))
