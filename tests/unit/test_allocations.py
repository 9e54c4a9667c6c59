"""Which payments a refund goes back to (docs/rules.md, Which payments a refund goes back to)."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import pytest

from domain import events
from domain.allocations import allocate
from domain.enums import RefundCause
from domain.order import Payment, RefundDecision
from tables import codec
from tests.unit.builders import BORIS, ORDER, Data, OrderBuilder, at, item_id, line, made_id, payment, raw
from tests.unit.builders import event as arrives

P, Q, R = (bytes([n]) * 16 for n in (1, 2, 3))


def paid(time: int, payment_id: bytes, amount: int, refused: bool = False) -> Payment:
    return Payment(time, payment_id, amount, "EUR", refused=refused)


ONE, TWO, THREE = paid(1, Q, 10), paid(2, P, 20), paid(3, R, 30)


@pytest.mark.parametrize(
    ("payments", "allocated", "rest", "amount", "expected"),
    [
        pytest.param([ONE, TWO, THREE], {}, 0, 1, [(Q, 1)], id="the earliest"),
        pytest.param([ONE, TWO, THREE], {}, 0, 10, [(Q, 10)], id="all of it"),
        pytest.param([ONE, TWO, THREE], {}, 0, 11, [(Q, 10), (P, 1)], id="then the next"),
        pytest.param([ONE, TWO, THREE], {}, 0, 60, [(Q, 10), (P, 20), (R, 30)], id="everything"),
        pytest.param([ONE, TWO, THREE], {Q: 9}, 0, 3, [(Q, 1), (P, 2)], id="less what went back"),
        pytest.param([ONE, TWO, THREE], {Q: 10, P: 5}, 0, 16, [(P, 15), (R, 1)], id="none that is used up"),
        pytest.param([ONE, TWO, THREE], {}, 4, 7, [(Q, 6), (P, 1)], id="after the rest"),
        pytest.param([ONE, TWO, THREE], {}, 10, 1, [(P, 1)], id="the rest takes all of the first"),
        pytest.param([ONE, TWO, THREE], {}, 25, 6, [(P, 5), (R, 1)], id="the rest takes more than one"),
        pytest.param([ONE, TWO, THREE], {P: 18}, 11, 2, [(P, 1), (R, 1)], id="the rest takes what is left"),
        pytest.param([paid(1, Q, 10), paid(1, P, 10)], {}, 0, 11, [(P, 10), (Q, 1)], id="at one time by id"),
        pytest.param([paid(1, P, 10, True), TWO], {}, 0, 5, [(P, 5)], id="not one that was refused"),
        pytest.param([ONE, TWO], {R: 30, Q: 2}, 0, 9, [(Q, 8), (P, 1)], id="one that isn't known here"),
        pytest.param([ONE, TWO], {Q: 99}, 0, 9, [(P, 9)], id="more went back than was captured"),
    ],
)
def test_the_payments_that_an_amount_goes_back_to(
    payments: list[Payment], allocated: dict[bytes, int], rest: int, amount: int, expected: Any
) -> None:
    assert sum(part for _, part in expected) == amount
    for arrived in permutations(payments):
        assert allocate(arrived, allocated, rest, amount) == expected


def decided(builder: OrderBuilder) -> list[list[tuple[str, int]] | None]:
    names = {raw(payment(n)): f"p{n}" for n in range(9)}
    return [
        None
        if each.allocations is None
        else [(names[payment_id], amount) for payment_id, amount in each.allocations]
        for each in builder.settle().order.decisions
    ]


def built(*payments: tuple[str, int, int]) -> OrderBuilder:
    """Three units of 10.00 of Anna's and one of Boris'; (amount, number, hour) of each payment."""
    builder = OrderBuilder()
    builder.create(line(1, quantity=3), line(2, BORIS))
    for amount, n, hour in payments:
        builder.pay(amount, n, hour)
    return builder


def test_one_refund_after_the_other() -> None:
    builder = built(("15.00", 2, 1), ("12.00", 1, 2), ("13.00", 3, 3))
    for n in range(3):
        builder.give_back("processed", n, quantity=1)
    assert decided(builder) == [[("p2", 1000)], [("p2", 500), ("p1", 500)], [("p1", 700), ("p3", 300)]]
    builder.stock("rejected", BORIS)
    assert decided(builder)[3:] == [[("p3", 1000)]]
    assert builder.now.free == 0


def test_a_payment_that_turns_out_to_be_earlier_is_used_first_from_then_on() -> None:
    builder = built(("20.00", 1, 2), ("20.00", 2, 3))
    builder.give_back("processed", 1, quantity=1)
    assert decided(builder) == [[("p1", 1000)]]
    builder.pay("20.00", 2, 1)
    builder.give_back("processed", 2, quantity=1)
    assert decided(builder) == [[("p1", 1000)], [("p2", 1000)]]


def test_a_payment_in_another_currency_pays_nothing_back() -> None:
    builder = built()
    builder.pay("50.00", 1, 1, currency="USD")
    builder.pay("40.00", 2, 2)
    builder.give_back("processed", quantity=1)
    assert decided(builder) == [[("p2", 1000)]]


def test_a_closed_order_gives_each_payment_back() -> None:
    builder = built(("15.00", 1, 1), ("5.00", 2, 2))
    builder.stock("rejected")
    builder.stock("rejected", BORIS)
    builder.settle()
    builder.pay("20.00", 3, 3)
    assert decided(builder) == [[("p1", 1500), ("p2", 500)], [("p3", 2000)]]


# -- decisions of earlier versions ---------------------------------------------------------------------------

OLDER: Data = {
    "order_id": ORDER,
    "n": 0,
    "amount": 1000,
    "cause": "return",
    "cause_id": "30000000-0000-4000-8000-000000000000",
    "units": [[item_id(1), 0]],
    "shipping": [],
}


def older() -> Any:
    headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"older"),
        ("ce_source", b"/orders"),
        ("ce_type", b"refund.decided"),
        ("ce_time", at(5).encode()),
    ]
    return events.decode("orders.decisions", headers, json.dumps(OLDER).encode())


def test_a_request_of_an_earlier_versions_decision_stays_as_it_was() -> None:
    builder = built(("40.00", 1, 1))
    builder.give_back("processed", 0, quantity=1)
    builder.take(older())
    assert builder.published("refund.request") == [
        {
            "refund_id": made_id("refund:0"),
            "order_id": ORDER,
            "amount": "10.00",
            "currency": "EUR",
            "cause": "return",
            "cause_id": OLDER["cause_id"],
        }
    ]
    again = built(("40.00", 1, 1))
    again.order.decisions.append(
        RefundDecision(0, 0, 1000, RefundCause.RETURN, raw(OLDER["cause_id"]), [], [])
    )
    again.send("deadline.passed", 9, deadline="refund", refund_id=made_id("refund:0"), attempt=1, final=False)
    assert again.published("refund.request") == builder.published("refund.request")


def test_what_earlier_versions_paid_back_takes_from_the_first_payments() -> None:
    builder = built(("4.00", 1, 1), ("16.00", 2, 2), ("20.00", 3, 3))
    builder.give_back("processed", 0, quantity=1)
    builder.take(older())
    builder.decisions.clear()
    builder.give_back("processed", 1, quantity=1)
    builder.settle()
    builder.give_back("processed", 2, quantity=1)
    assert decided(builder) == [None, [("p2", 1000)], [("p3", 1000)]]


def test_a_state_of_an_earlier_version_says_no_payments() -> None:
    builder = built(("40.00", 1, 1))
    builder.give_back("processed", quantity=1)
    builder.settle()
    (decision,) = builder.order.decisions
    assert decision.allocations == [(raw(payment(1)), 1000)]
    assert codec.decode(codec.encode(builder.order)).decisions == [decision]


def test_a_decision_read_before_its_payments_is_kept_and_asked_for_as_decided() -> None:
    """After a crash: the decision lies in the log, and its order's events are read once more."""
    builder = built(("40.00", 1, 1))
    builder.give_back("processed", quantity=1)
    decision = builder.decisions[0]
    crashed = OrderBuilder()
    crashed.take(decision)
    assert crashed.published("refund.request") == []
    crashed.create(line(1, quantity=3), line(2, BORIS))
    assert crashed.published("refund.request") == builder.settle().published("refund.request")
    crashed.pay("40.00", 1, 1)
    crashed.give_back("processed", quantity=1)
    crashed.give_back("processed", 2, quantity=1)
    assert decided(crashed) == [[("p1", 1000)], [("p1", 1000)]]


def test_a_payment_id_is_told_in_canonical_form() -> None:
    builder = built()
    builder.take(
        arrives(
            "order.paid",
            {
                "order_id": ORDER,
                "payment_id": payment(1).replace("-", ""),
                "amount": "40.00",
                "currency": "EUR",
            },
        )
    )
    builder.give_back("processed", quantity=1)
    (request,) = builder.settle().published("refund.request")
    assert request["allocations"] == [{"payment_id": payment(1), "amount": "10.00"}]
