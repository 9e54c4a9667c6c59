"""No command ever leaves because of history: orders that another system handled until a time, their facts in
any order, any number of times, mixed with live ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec import structs

from contracts import ids, outgoing
from domain.anomalies import anomalies
from domain.enums import DeadlineKind, RefundCause, ReturnStatus, StockAnswer
from domain.order import Created, Deadline, Grant, Lapse, Order, Payment, ReturnStage, StockReply
from domain.paid_back import paid_back
from domain.shapes import Event
from domain.status import view_of
from domain.taken_over import is_history
from domain.totals import RunningTotals, winning_stages
from tests.property.examples import examples
from tests.property.histories import ORDER_ID, RANDOMS, Run, histories
from tests.property.test_confluence import all_rows, facts

MANY = examples(200)
LATE = 100 * 3_600_000_000
"""After everything that these histories tell."""


def taken_over(history: Sequence[Event], live_from: int | None, refunded: int | None = None) -> list[Event]:
    """The same history, of an order that another system handled until then."""
    return [
        structs.replace(each, fact=structs.replace(each.fact, live_from=live_from, refunded_amount=refunded))
        if isinstance(each.fact, Created)
        else each
        for each in history
    ]


def commands(run: Run) -> list[tuple[str, str]]:
    return [(each.type, each.ce_name) for each in run.derived if each.type not in outgoing.NOTICES]


def shuffled(history: Sequence[Event], random: Any) -> list[Event]:
    """In another order, some of it twice."""
    more = [*history, *(each for each in history if random.random() < 0.4)]
    random.shuffle(more)
    return more


@MANY
@given(histories, st.none() | st.integers(0, 5_000), RANDOMS, st.integers(1, 4))
def test_history_alone_asks_for_nothing(
    history: list[Event], refunded: int | None, random: Any, pace: int
) -> None:
    history = [each for each in history if not isinstance(each.fact, (Deadline, Lapse))]
    run = Run().take_all(shuffled(taken_over(history, LATE, refunded), random), pace)
    assert commands(run) == []
    assert run.order.decisions == []
    assert run.order.labelled is False
    notices = [each for each in run.derived if each.type in outgoing.NOTICES]
    assert notices
    assert all(each.history for each in notices)
    plain = Run().take_all(shuffled(taken_over(history, None), random), pace)
    assert all_rows(run.order) == all_rows(plain.order)
    theirs = {**facts(plain.order), "created": None}
    assert {**facts(run.order), "created": None} == theirs


@MANY
@given(histories, RANDOMS, st.integers(1, 4))
def test_where_nothing_is_history_an_order_does_what_it_does_without(
    history: list[Event], random: Any, pace: int
) -> None:
    history = shuffled(history, random)
    run = Run().take_all(taken_over(history, 0), pace)
    plain = Run().take_all(taken_over(history, None), pace)
    assert [(each.ce_name, each.data, each.history) for each in run.derived] == [
        (each.ce_name, each.data, each.history) for each in plain.derived
    ]
    assert run.order.decisions == plain.order.decisions
    assert anomalies(run.order, ORDER_ID) == anomalies(plain.order, ORDER_ID)


@MANY
@given(histories, st.integers(0, 7), RANDOMS, st.integers(1, 4))
def test_commands_are_those_of_the_live_facts(history: list[Event], cut: int, random: Any, pace: int) -> None:
    run = Run().take_all(shuffled(taken_over(history, cut * 3_600_000_000), random), pace)
    order = run.order
    created = order.created
    assert created is not None
    asked = {type_: {name for kind, name in commands(run) if kind == type_} for type_ in outgoing.DATA}
    ours = not is_history(created, created)
    again = any(isinstance(each.fact, Deadline) for each in history)
    if ours:
        assert asked["stock.reserve"]
        assert bool(asked["payment.initiate"]) is bool(created.total)
    elif not again:
        assert asked["stock.reserve"] == asked["payment.initiate"] == set()
    restocked = {
        f"stock.restock:{ids.uuid5_text(ORDER_ID, f'restock:{ids.text(stage.return_id)}')}"
        for stage in order.returns
        if not stage.refused
        and stage.status is ReturnStatus.PROCESSED
        and stage.restock is not False
        and not is_history(created, stage)
    }
    assert asked["stock.restock"] == restocked
    if not ours and not again and not any(live(order, each) for each in order.payments):
        assert asked["shipping.label.create"] == set()
    for decision in order.decisions:
        assert any(live(order, each) for each in causes(order, decision.cause, decision.cause_id))


def live(order: Order, fact: Any) -> bool:
    assert order.created is not None
    return not fact.refused and not is_history(order.created, fact)


def causes(
    order: Order, cause: RefundCause, cause_id: bytes
) -> list[Payment | StockReply | ReturnStage | Deadline | Grant]:
    """The facts of which one at least isn't history, if a refund of this cause was decided."""
    if cause is RefundCause.GRANT:
        return [each for each in order.grants if each.grant_id == cause_id]
    gone: list[Payment | StockReply | ReturnStage | Deadline | Grant] = [
        *(each for each in order.stock if each.type is not StockAnswer.RESERVED),
        *(each for each in order.deadlines if each.what is DeadlineKind.STOCK and each.final),
    ]
    if cause is RefundCause.RETURN:
        return [each for each in order.returns if each.return_id == cause_id]
    if cause is RefundCause.STOCK:
        return [
            each
            for each in gone
            if cause_id
            == (each.seller_id if isinstance(each, StockReply) else getattr(each, "subject", None))
        ]
    return [*gone, *order.payments]


@MANY
@given(histories, st.integers(0, 7), st.none() | st.integers(0, 5_000), st.integers(1, 4))
def test_history_first_refunds_stay_within_what_the_other_system_left(
    history: list[Event], cut: int, refunded: int | None, pace: int
) -> None:
    """And no unit that it paid for is paid for again."""
    moment = cut * 3_600_000_000
    history = taken_over(history, moment, refunded)
    before = [each for each in history if each.time < moment and not isinstance(each.fact, (Deadline, Lapse))]
    run = Run()
    for each in before:
        run.take(each)
    while run.decisions:
        run.take(run.decisions.popleft())
    order = run.order
    assume(order.created is not None)
    assert order.decisions == []
    now, totals = view_of(order), RunningTotals(order)
    paid = paid_back(now, totals)
    assert refunded is None or paid.amount == refunded
    assert refunded is not None or 0 <= paid.amount <= max(0, now.captured)
    rest = run.take_all([each for each in history if each not in before], pace).order
    after = view_of(rest)
    theirs = paid_back(after, RunningTotals(rest)).amount
    assert after.decided + theirs <= max(after.captured, theirs)
    assert order.created is not None
    processed = {
        stage.return_id
        for stage in winning_stages(rest).values()
        if stage.status is ReturnStatus.PROCESSED and is_history(order.created, stage)
    }
    assert not processed & {each.cause_id for each in rest.decisions}
