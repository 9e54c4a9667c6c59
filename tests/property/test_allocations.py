"""What refunds pay and which payments they go back to, in any order of arrival (docs/rules.md, Refunds)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import ids, money
from domain.anomalies import anomalies
from domain.enums import RefundCause
from domain.order import Created, Grant, Order
from domain.shapes import Event
from domain.status import view_of
from tests.property.examples import examples
from tests.property.histories import ORDER_ID, RANDOMS, Run, histories
from tests.property.records import raw_id
from tests.property.test_tax import MANY, each_way, given_back, gone, run_of

Facts = list[tuple[str, Any]]


def with_grants(rng: Random, facts: tuple[Created, Facts]) -> tuple[Created, Facts]:
    """The same order and up to three grants, of any amount."""
    created, others = facts
    grants: Facts = []
    for n in range(rng.randint(0, 3)):
        amount = rng.randint(1, max(1, created.total))
        grants.append(("refund.granted", Grant(0, raw_id(4, n), amount, created.currency, "late")))
    mixed = [*others, *grants]
    rng.shuffle(mixed)
    return created, mixed


def requests(run: Run) -> list[dict[str, Any]]:
    """Of each refund the request; one that is asked for again is the same."""
    asked: dict[str, dict[str, Any]] = {}
    for each in run.derived:
        if each.type == "refund.request":
            data = msgspec.to_builtins(each.data)
            data.pop("attempt", None)
            assert asked.setdefault(data["refund_id"], data) == data
    return list(asked.values())


def minor(text: str, currency: str) -> int:
    return money.parse_field(text, money.DIGITS[currency], "")


def check(run: Run) -> None:
    """Every refund's request says what its decision pays for, and no payment gives more back than it got."""
    order = run.order
    created = order.created
    assert created is not None
    captured = {each.payment_id: each.amount for each in order.payments if not each.refused}
    back: Counter[bytes] = Counter()
    for request, decision in zip(requests(run), order.decisions, strict=True):
        assert request["refund_id"] == ids.uuid5_text(ORDER_ID, f"refund:{decision.n}")
        assert decision.allocations is not None
        assert sum(amount for _, amount in decision.allocations) == decision.amount
        assert all(amount > 0 for _, amount in decision.allocations)
        named = [
            (each["payment_id"], minor(each["amount"], created.currency)) for each in request["allocations"]
        ]
        assert named == [(ids.text(payment_id), amount) for payment_id, amount in decision.allocations]
        back.update(dict(decision.allocations))
        whole = sum(minor(each["amount"], created.currency) for each in request["lines"])
        whole += minor(request["shipping_amount"], created.currency)
        units = sum(each["quantity"] for each in request["lines"])
        assert units == sum(count for _, _, count in decision.units)
        if decision.cause in (RefundCause.CLOSED, RefundCause.GRANT):
            assert (request["lines"], whole) == ([], 0)
        else:
            assert decision.amount <= whole
            assert decision.amount == whole or order.grants or created.live_from is not None
        if decision.tax is not None and request["lines"]:
            lines = sum(minor(each["tax_amount"], created.currency) for each in request["lines"])
            assert lines <= decision.tax == minor(request["tax_amount"], created.currency)
    assert set(back) <= set(captured)
    assert all(amount <= captured[payment_id] for payment_id, amount in back.items())
    assert sum(back.values()) == sum(each.amount for each in order.decisions) <= sum(captured.values())


def paid_back(order: Order, causes: Iterable[RefundCause]) -> int:
    return sum(each.amount for each in order.decisions if each.cause in causes)


@MANY
@given(histories, RANDOMS, st.integers(1, 6))
def test_requests_say_what_they_pay_and_no_payment_gives_back_more_than_it_captured(
    history: list[Event], random: Any, pace: int
) -> None:
    shuffled = history + [event for event in history if random.random() < 0.3]
    random.shuffle(shuffled)
    check(Run().take_all(shuffled, pace))


@each_way
@MANY
@given(random=RANDOMS, pace=st.integers(1, 9))
def test_of_units_given_back_the_refunds_add_up_or_all_that_was_captured_is_refunded(
    included: bool, random: Random, pace: int
) -> None:
    """An order paid exactly, of which every unit came back."""
    created, facts = with_grants(random, given_back(random, included))
    run = run_of(facts, pace)
    check(run)
    lines = view_of(run.order).lines
    goods = sum(line.cost_of(0, line.quantity) for line in lines)
    of_units = paid_back(run.order, (RefundCause.RETURN,))
    granted = paid_back(run.order, (RefundCause.GRANT,))
    assert of_units == goods or of_units + granted == created.total
    assert of_units <= goods
    decided = {each.cause_id for each in run.order.decisions if each.cause is RefundCause.GRANT}
    waiting = [each for each in run.order.grants if each.grant_id not in decided]
    named = [text for text in anomalies(run.order, ORDER_ID) if text.startswith("refund_uncovered")]
    # No refund of units waits, whatever was granted.
    assert len(named) == len(waiting)
    assert all(each.amount > created.total - of_units - granted for each in waiting)


@each_way
@MANY
@given(random=RANDOMS, pace=st.integers(1, 9))
def test_an_order_of_which_nothing_left_gives_all_back_goodwill_or_not(
    included: bool, random: Random, pace: int
) -> None:
    created, facts = with_grants(random, gone(random, included))
    run = run_of(facts, pace)
    check(run)
    assert sum(each.amount for each in run.order.decisions) == created.total
    assert not any(text.startswith("refund_uncovered") for text in anomalies(run.order, ORDER_ID))


@MANY
@given(histories, RANDOMS, st.lists(st.booleans(), min_size=8, max_size=8))
def test_beside_decisions_of_an_earlier_version(history: list[Event], random: Any, older: list[bool]) -> None:
    """Some of the decisions don't say which payments they go back to."""
    random.shuffle(history)
    run = Run()
    for event in history:
        run.take(event)
        while run.decisions:
            decided = run.decisions.popleft()
            fact: Any = decided.fact
            if older[fact.n % len(older)]:
                fact.allocations = None
            run.take(decided)
    order = run.order
    captured = {each.payment_id: each.amount for each in order.payments if not each.refused}
    back: Counter[bytes] = Counter()
    for request, decision in zip(requests(run), order.decisions, strict=True):
        says = decision.allocations is not None
        assert [name in request for name in ("lines", "shipping_amount", "allocations")] == [says] * 3
        assert sum(amount for _, amount in decision.allocations or ()) == (decision.amount if says else 0)
        back.update(dict(decision.allocations or ()))
    assert all(amount <= captured[payment_id] for payment_id, amount in back.items())


@pytest.mark.parametrize("kind", [given_back, gone])
@examples(60)
@given(pace=st.integers(1, 5), random=RANDOMS)
def test_facts_statuses_and_amounts_are_the_same_in_any_order(kind: Any, pace: int, random: Random) -> None:
    _, facts = with_grants(random, kind(random, random.random() < 0.5))
    once = run_of(facts, 1).order
    again = facts + [each for each in facts if random.random() < 0.3]
    random.shuffle(again)
    other = run_of(again, pace).order
    assert (once.status, once.suborders, once.version) == (other.status, other.suborders, other.version)
    assert sorted(map(repr, once.grants)) == sorted(map(repr, other.grants))
