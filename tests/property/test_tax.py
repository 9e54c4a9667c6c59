"""What an order with tax gets back in all, to the minor unit, in any order of arrival (docs/rules.md)."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import ids
from domain import events
from domain.enums import RefundCause, ReturnStatus, StockAnswer
from domain.order import Created, Item, Payment, ReturnStage, StockReply
from domain.shapes import Event
from domain.status import view_of
from domain.tax import is_taxed, whole_tax
from tests.property.examples import examples
from tests.property.histories import ORDER_ID, RANDOMS, SEEDS, Run, taxed, up_to
from tests.property.records import raw_id, record

CURRENCIES = ("JPY", "EUR", "KWD")
"""Of 0, 2 and 3 digits."""
MANY = examples(120)
each_way = pytest.mark.parametrize("included", [True, False], ids=["in the prices", "on top"])


def order(rng: Random, included: bool) -> Created:
    """Small prices and amounts that units don't divide."""
    items = [
        Item(
            raw_id(0xB0, n),
            raw_id(0xC0, n),
            raw_id(0xA0, rng.randint(0, 1)),
            None,
            "sku",
            rng.randint(1, 7),
            rng.choice((0, 1, 1, 2, 3, 100, 333)),
            rng.choice((None, 0, 2, 49)),
        )
        for n in range(rng.randint(1, 3))
    ]
    goods = sum(item.price * item.quantity for item in items)
    discount = rng.choice((None, *2 * [up_to(rng, goods)]))
    total = goods + sum(item.shipping or 0 for item in items) - (discount or 0)
    currency = rng.choice(CURRENCIES)
    return taxed(Created(0, raw_id(0xD0, 0), None, currency, total, discount, items), rng, included)


def paid_exactly(rng: Random, created: Created) -> list[tuple[str, Any]]:
    first = up_to(rng, created.total)
    parts = [part for part in (first, created.total - first) if part]
    return [("order.paid", Payment(0, raw_id(1, n), part, created.currency)) for n, part in enumerate(parts)]


def given_back(rng: Random, included: bool) -> tuple[Created, list[tuple[str, Any]]]:
    """Every unit comes back by processed returns, of any size."""
    created = order(rng, included)
    facts = paid_exactly(rng, created)
    for item in created.items:
        left = item.quantity
        while left:
            quantity = rng.randint(1, left)
            left -= quantity
            return_id = raw_id(3, len(facts))
            stage = ReturnStage(0, return_id, ReturnStatus.PROCESSED, item.item_id, quantity, "worn")
            facts.append(("order.returned", stage))
    facts.append(("order.created", created))
    rng.shuffle(facts)
    return created, facts


def gone(rng: Random, included: bool) -> tuple[Created, list[tuple[str, Any]]]:
    """Every unit is rejected or released, in any parts; some came back by returns all the same."""
    created = order(rng, included)
    facts = paid_exactly(rng, created)
    for n, item in enumerate(created.items):
        reservation = ids.uuid5(ORDER_ID, f"reservation:{ids.text(item.seller_id)}")
        rejected = up_to(rng, item.quantity)
        parts = ((StockAnswer.REJECTED, rejected), (StockAnswer.RELEASED, item.quantity - rejected))
        for answer, quantity in parts:
            if quantity:
                reply = StockReply(0, answer, item.seller_id, reservation, [(item.item_id, quantity)])
                facts.append((f"stock.{answer.text}", reply))
        if rng.random() < 0.5:
            stage = ReturnStage(0, raw_id(3, n), ReturnStatus.PROCESSED, item.item_id, 1, "worn")
            facts.append(("order.returned", stage))
    facts.append(("order.created", created))
    rng.shuffle(facts)
    return created, facts


def run_of(facts: list[tuple[str, Any]], pace: int) -> Run:
    """Fold them as records."""
    sent = [
        record(Event(kind, ORDER_ID, fact, f"e{n}", fact.time, None)) for n, (kind, fact) in enumerate(facts)
    ]
    run = Run().take_all([events.decode(each.topic, each.headers, each.value) for each in sent], pace)
    assert run.refusals == []
    return run


def tax_of(run: Run) -> int:
    return sum(decision.tax or 0 for decision in run.order.decisions)


@each_way
@MANY
@given(seed=SEEDS, pace=st.integers(1, 9))
def test_all_units_given_back_pay_the_goods_with_their_tax(included: bool, seed: int, pace: int) -> None:
    created, facts = given_back(Random(seed), included)
    run = run_of(facts, pace)
    lines = view_of(run.order).lines
    goods = sum(line.price * line.quantity - line.discount for line in lines)
    tax = sum(amount for item in created.items for _, amount in item.taxes or ())
    assert sum(decision.amount for decision in run.order.decisions) == goods + (0 if included else tax)
    assert tax_of(run) <= tax
    if not included:
        # Whatever costs nothing has no tax then, so all of the tax is told.
        assert tax_of(run) == tax or not is_taxed(created)


@each_way
@MANY
@given(seed=SEEDS, pace=st.integers(1, 9))
def test_an_order_of_which_nothing_left_gets_all_back(included: bool, seed: int, pace: int) -> None:
    created, facts = gone(Random(seed), included)
    decisions = run_of(facts, pace).order.decisions
    assert sum(decision.amount for decision in decisions) == created.total
    if is_taxed(created):
        assert all(decision.tax is not None and decision.tax >= 0 for decision in decisions)
        named = sum(decision.tax or 0 for decision in decisions)
        assert named <= whole_tax(created)
        if decisions and decisions[-1].cause is RefundCause.CLOSED:
            # All of it is told, but for that of units that cost nothing and were paid for with others.
            assert named == whole_tax(created)
    else:
        assert all(decision.tax is None for decision in decisions)


@each_way
@MANY
@given(seed=SEEDS, random=RANDOMS, pace=st.integers(1, 5))
def test_what_is_due_and_told_is_the_same_in_any_order(
    included: bool, seed: int, random: Any, pace: int
) -> None:
    """Rows and the last notices too: tests/property/test_confluence.py."""
    _, facts = random.choice((given_back, gone))(Random(seed), included)
    once = run_of(facts, 1)
    again = list(facts)
    random.shuffle(again)
    other = run_of(again, pace)
    assert once.order.suborders == other.order.suborders
    assert once.order.status == other.order.status
    amounts = [sum(each.amount for each in run.order.decisions) for run in (once, other)]
    assert amounts[0] == amounts[1]


@each_way
@MANY
@given(seed=SEEDS)
def test_suborders_add_up_to_the_order(included: bool, seed: int) -> None:
    created, facts = gone(Random(seed), included)
    placed = run_of([each for each in facts if each[0] == "order.created"], 1)
    parts: list[Any] = [each.data for each in placed.derived if each.type == "suborder.created"]

    def minor(text: str) -> int:
        return int(text.replace(".", ""))

    assert sum(minor(each.total_amount) for each in parts) == created.total
    if is_taxed(created):
        assert sum(minor(each.tax_amount) for each in parts) == whole_tax(created)
        for each in parts:
            items = sum(minor(item.tax_amount) + minor(item.shipping_tax_amount) for item in each.items)
            assert items == minor(each.tax_amount)
