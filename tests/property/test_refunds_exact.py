"""Refunds over long histories, by rational arithmetic from the amounts that upstream sent: exact to the last
minor unit, any currency.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from math import floor
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import ids
from domain import events
from domain.anomalies import anomalies
from domain.enums import Rank, ReturnStatus, StockAnswer
from domain.order import Cancellation, Created, Item, Payment, ReturnStage, Scan, StockReply
from domain.shapes import Event
from domain.status import view_of
from domain.totals import winning_stages
from tests.property.examples import examples, part
from tests.property.histories import ORDER_ID, SEEDS, Run, up_to
from tests.property.records import hour, raw_id, record

CURRENCIES = {"JPY": 0, "EUR": 2, "KWD": 3}
FACTS = 240


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("currency", CURRENCIES)
def test_every_refund_is_the_sum_of_what_its_units_cost(currency: str, seed: int) -> None:
    rng = Random(f"{currency}{seed}")
    causes: Counter[str] = Counter()
    for _ in range(part(30)):
        created = order_placed(currency, rng)
        run = Run()
        for event in wired(history(created, rng)):
            run.take(event)
            while run.decisions and rng.random() < 0.7:
                run.take(run.decisions.popleft())
        run.take_all([])
        causes.update(check(created, run))
    assert causes["return"] > part(30)
    assert causes["stock"] > part(30)
    assert causes["closed"] > 0


def check(created: Created, run: Run) -> list[str]:
    """The causes of the refunds, all of which are right."""
    sent = record(Event("order.created", ORDER_ID, created, "e", created.time, None)).value
    assert sent is not None
    prices, shares, postage = as_sent(sent)
    scale = 10 ** CURRENCIES[created.currency]
    requests: list[Any] = [derived.data for derived in run.derived if derived.type == "refund.request"]
    decisions = run.order.decisions
    assert len(requests) == len(decisions)
    assert all(decision.amount > 0 for decision in decisions)
    captured = sum(Fraction(payment.amount, scale) for payment in run.order.payments if not payment.refused)
    refunded = Fraction(0)
    paid_for: set[tuple[bytes, int]] = set()
    for request, decision in zip(requests, decisions, strict=True):
        assert len(request.amount.partition(".")[2]) == CURRENCIES[created.currency]
        units = [(item, n) for item, first, count in decision.units for n in range(first, first + count)]
        assert paid_for.isdisjoint(units)
        paid_for.update(units)
        if request.cause != "closed":
            assert Fraction(request.amount) == sum(prices[item] - shares[item][n] for item, n in units) + sum(
                postage[item] for item in decision.shipping
            )
        refunded += Fraction(request.amount)
    assert refunded <= captured
    now = view_of(run.order)
    if now.live == 0:
        assert refunded == captured
    elif "refund_uncovered" not in codes(run):
        # Where as many units were sent back as there are live ones, each unit has been paid for, but for
        # those that are worth nothing.
        for line in now.lines:
            stages = [
                stage
                for stage in winning_stages(run.order).values()
                if (stage.item_id, stage.status) == (line.item_id, ReturnStatus.PROCESSED)
            ]
            if sum(stage.quantity or line.quantity for stage in stages) >= line.live:
                unpaid = [n for n in range(line.quantity) if (line.item_id, n) not in paid_for]
                assert all(prices[line.item_id] == shares[line.item_id][n] for n in unpaid)
    return [request.cause for request in requests]


def codes(run: Run) -> set[str]:
    """Codes of the order's anomalies."""
    return {text.partition(":")[0] for text in anomalies(run.order, ORDER_ID)}


def as_sent(value: bytes) -> tuple[dict[bytes, Fraction], dict[bytes, list[Fraction]], dict[bytes, Fraction]]:
    """By item: the price of a unit, the share of the discount of each of its units, and the shipping:
    rational, from the wire's texts.
    """
    data = json.loads(value)
    digits = CURRENCIES[data["currency"]]
    quantum = Fraction(1, 10**digits)
    items = {bytes.fromhex(item["item_id"].replace("-", "")): item for item in data["items"]}
    prices = {item_id: Fraction(item["price"]) for item_id, item in items.items()}
    worth = {item_id: prices[item_id] * item["quantity"] for item_id, item in items.items()}
    lines = apportion(Fraction(data.get("discount_amount", "0")), worth, quantum)
    shares = {
        item_id: list(
            apportion(
                lines[item_id], dict.fromkeys(range(item["quantity"]), prices[item_id]), quantum
            ).values()
        )
        for item_id, item in items.items()
    }
    return (
        prices,
        shares,
        {item_id: Fraction(item.get("shipping_amount", "0")) for item_id, item in items.items()},
    )


def apportion(amount: Fraction, weights: dict[Any, Fraction], quantum: Fraction) -> dict[Any, Fraction]:
    """By the largest remainder in whole quanta, ties by key (docs/rules.md, Money)."""
    whole = sum(weights.values())
    if not whole:
        return dict.fromkeys(weights, Fraction(0))
    ideal = {key: amount * weight / whole for key, weight in weights.items()}
    shares = {key: floor(share / quantum) * quantum for key, share in ideal.items()}
    left = (amount - sum(shares.values())) / quantum
    assert left.denominator == 1
    for key in sorted(ideal, key=lambda key: (shares[key] - ideal[key], key))[: left.numerator]:
        shares[key] += quantum
    return shares


def order_placed(currency: str, rng: Random) -> Created:
    """Prices that a discount doesn't divide, in minor units."""
    sellers = [raw_id(0xA0, n) for n in range(3)]
    items = [
        Item(
            raw_id(0xB0, n),
            raw_id(0xC0, n),
            rng.choice(sellers),
            None,
            "sku",
            rng.randint(1, 9),
            rng.choice((1, 7, 333, 999, 10_007)),
            rng.choice((None, 0, 490)),
        )
        for n in range(rng.randint(2, 6))
    ]
    goods = sum(item.price * item.quantity for item in items)
    discount = rng.randint(1, goods)
    total = goods + sum(item.shipping or 0 for item in items) - discount
    return Created(0, raw_id(0xD0, 0), None, currency, total, discount, items)


def history(created: Created, rng: Random) -> Iterator[tuple[str, Any]]:
    """The order is paid, then up to FACTS things happen to its parts, in any order; where nothing leaves,
    all is given back at last.
    """
    leaves = rng.random() < 0.6
    facts: list[tuple[str, Any]] = [("order.created", created)]
    parts = sorted({max(1, created.total // 3), max(1, created.total - created.total // 3)})
    facts += [
        ("order.paid", Payment(hour(rng), raw_id(1, n), amount, created.currency))
        for n, amount in enumerate(parts)
    ]
    rng.shuffle(facts)
    for n in range(rng.randint(10, FACTS)):
        item = rng.choice(created.items)
        seller, some = item.seller_id, [(item.item_id, rng.randint(1, 3))]
        reservation = ids.uuid5(ORDER_ID, f"reservation:{ids.text(seller)}")
        kind = rng.random()
        if kind < 0.4:
            status = ReturnStatus(rng.randrange(3))
            stage = ReturnStage(
                hour(rng), raw_id(3, n % 60), status, item.item_id, rng.randint(1, 2), "worn", None, None
            )
            facts.append(("order.returned", stage))
        elif kind < 0.8 and leaves:
            facts.append(
                (
                    "shipment.updated",
                    Scan(hour(rng), raw_id(2, n % 9), Rank(rng.randrange(4)), seller, items=some),
                )
            )
        elif 0.8 <= kind < 0.86:
            answer = StockAnswer(rng.randrange(1, 3))
            facts.append((f"stock.{answer.text}", StockReply(hour(rng), answer, seller, reservation, some)))
        elif 0.86 <= kind < 0.89:
            facts.append(("order.cancel_requested", Cancellation(hour(rng), seller, "late")))
        elif 0.89 <= kind < 0.9:
            facts.append(
                ("stock.released", StockReply(hour(rng), StockAnswer.RELEASED, seller, reservation, None))
            )
        elif 0.9 <= kind < 0.93:
            facts.append(
                ("order.paid", Payment(hour(rng), raw_id(1, 10 + n), rng.randint(1, 99), created.currency))
            )
    if not leaves:
        for seller in sorted({item.seller_id for item in created.items}):
            reservation = ids.uuid5(ORDER_ID, f"reservation:{ids.text(seller)}")
            facts.append(
                ("stock.released", StockReply(hour(rng), StockAnswer.RELEASED, seller, reservation, None))
            )
    yield from facts


def wired(facts: Iterator[tuple[str, Any]]) -> Iterator[Event]:
    """The same facts as an upstream service writes them, decoded: amounts have been texts in
    the currency's own digits.
    """
    for n, (kind, fact) in enumerate(facts):
        each = record(Event(kind, ORDER_ID, fact, f"e{n}", fact.time, None))
        yield events.decode(each.topic, each.headers, each.value)


# -- everything comes back -----------------------------------------------------------------------------------


def order_given_back(seed: int) -> tuple[Created, list[tuple[str, Any]]]:
    """An order of small prices, of which every unit is rejected or comes back, in whatever parts;
    paid for in two, at any time.
    """
    rng = Random(seed)
    currency = rng.choice(sorted(CURRENCIES))
    items = []
    for n in range(rng.randint(1, 3)):
        seller, shipping = raw_id(0xA0, rng.randint(0, 1)), rng.choice((None, 0, 2))
        price = rng.choice((0, 1, 1, 1, 2, 3, 100))
        items.append(
            Item(
                raw_id(0xB0, n),
                raw_id(0xC0, n),
                seller,
                None,
                "sku",
                rng.randint(1, 9),
                price,
                shipping,
            )
        )
    goods = sum(item.price * item.quantity for item in items)
    discount = up_to(rng, goods)
    total = goods + sum(item.shipping or 0 for item in items) - discount
    facts: list[tuple[str, Any]] = []
    first = up_to(rng, total)
    parts = [part for part in (first, total - first) if part]
    facts += [("order.paid", Payment(0, raw_id(1, n), part, currency)) for n, part in enumerate(parts)]
    for item in items:
        gone = up_to(rng, item.quantity)
        rejected = up_to(rng, gone)
        for answer, quantity in ((StockAnswer.REJECTED, rejected), (StockAnswer.RELEASED, gone - rejected)):
            if quantity:
                facts.append(
                    (
                        f"stock.{answer.text}",
                        StockReply(0, answer, item.seller_id, raw_id(4, 0), [(item.item_id, quantity)]),
                    )
                )
        left = item.quantity - gone
        while left:
            quantity = rng.randint(1, left)
            left -= quantity
            facts.append(
                (
                    "order.returned",
                    ReturnStage(
                        0,
                        raw_id(3, len(facts)),
                        ReturnStatus.PROCESSED,
                        item.item_id,
                        quantity,
                        "worn",
                        None,
                        None,
                    ),
                )
            )
    created = Created(0, raw_id(0xD0, 0), None, currency, total, discount, items)
    rng.shuffle(facts)
    return created, [("order.created", created), *facts]


@examples(150)
@given(order=st.builds(order_given_back, SEEDS), pace=st.integers(1, 9))
def test_all_that_came_back_or_never_left_is_paid_back(
    most_units: int, order: tuple[Created, list[tuple[str, Any]]], pace: int
) -> None:
    created, facts = order
    run = Run().take_all(list(wired(iter(facts))), pace)
    check(created, run)
    assert "refund_uncovered" not in codes(run)
    lines = view_of(run.order).lines
    stays = sum(line.shipping for line in lines if line.live) if any(line.live for line in lines) else 0
    assert sum(decision.amount for decision in run.order.decisions) == created.total - stays
