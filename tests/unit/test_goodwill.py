"""Goodwill that was granted, and what a refund request says that it pays (docs/rules.md, Refunds)."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from contracts import errors
from contracts.errors import Refused
from domain import rows
from domain.explain import explain
from domain.order import Order
from domain.status import view_of
from tables import codec
from tests.unit.builders import (
    ANNA,
    BORIS,
    ORDER,
    STRANGER,
    VALID,
    Data,
    OrderBuilder,
    event,
    granted,
    item_id,
    line,
    made_id,
    moment,
    payment,
    raw,
    returned,
    taxes,
)

THREE = [line(1, quantity=3)]
"""30.00"""
SHIPPED = [line(1, quantity=3, shipping_amount="4.00"), line(2, BORIS, 1, "30.00", shipping_amount="3.00")]
"""34.00 of Anna's and 33.00 of Boris'."""
Step = tuple[Any, ...]


def built(lines: list[Data], *steps: Step, settled: bool = True, **more: Any) -> OrderBuilder:
    """An order that takes in these steps, (method, arguments ..., keywords); after each of them decisions
    come back.
    """
    builder = OrderBuilder()
    builder.create(*lines, **more)
    for name, *arguments in steps:
        keywords = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
        getattr(builder, name)(*arguments, **keywords)
        if settled:
            builder.settle()
    return builder


def refunds(builder: OrderBuilder) -> list[tuple[str, str]]:
    return [(each["cause"], each["amount"]) for each in builder.settle().published("refund.request")]


def uncovered(builder: OrderBuilder) -> bool:
    return "refund_uncovered" in builder.anomalies


# -- what comes in -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code", "detail"),
    [
        ({"amount": "0.00"}, errors.FIELD_MALFORMED, "$.amount: must be above 0"),
        ({"amount": "-1.00"}, errors.FIELD_MALFORMED, "$.amount"),
        ({"amount": "1.005"}, errors.FIELD_MALFORMED, "$.amount"),
        ({"amount": 1}, errors.FIELD_MALFORMED, "$.amount"),
        ({"amount": "1.0", "currency": "JPY"}, errors.FIELD_MALFORMED, "$.amount"),
        ({"currency": "ECU"}, errors.CURRENCY_UNKNOWN, "$.currency"),
        ({"grant_id": "17"}, errors.FIELD_MALFORMED, "$.grant_id"),
        ({"seller_id": None}, errors.FIELD_MALFORMED, "$.seller_id"),
        ({"item_id": "17"}, errors.FIELD_MALFORMED, "$.item_id"),
        ({"reason": "x" * 1001}, errors.FIELD_MALFORMED, "$.reason"),
    ],
)
def test_a_grant_that_can_t_be_right(changes: Data, code: str, detail: str) -> None:
    with pytest.raises(Refused) as caught:
        event("refund.granted", VALID["refund.granted"] | changes)
    assert caught.value.code == code
    assert detail in caught.value.detail


@pytest.mark.parametrize("name", ["order_id", "grant_id", "amount", "currency", "reason"])
def test_a_grant_without(name: str) -> None:
    with pytest.raises(Refused) as caught:
        event("refund.granted", {key: value for key, value in VALID["refund.granted"].items() if key != name})
    assert caught.value.code == errors.FIELD_MISSING


@pytest.mark.parametrize("waits", [False, True])
@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"seller_id": ANNA}, None),
        ({"item_id": item_id(2)}, None),
        ({"seller_id": BORIS, "item_id": item_id(2)}, None),
        ({"currency": "USD"}, errors.ORDER_CURRENCY),
        ({"seller_id": STRANGER}, errors.ORDER_SELLER),
        ({"item_id": item_id(9)}, errors.ORDER_ITEM),
        ({"seller_id": ANNA, "item_id": item_id(2)}, errors.ORDER_SELLER),
        ({"currency": "USD", "seller_id": STRANGER}, errors.ORDER_CURRENCY),
    ],
)
def test_a_grant_that_isn_t_the_orders(changes: Data, code: str | None, waits: bool) -> None:
    builder = OrderBuilder()
    if waits:
        builder.grant("1.00", **changes)
    builder.create(*SHIPPED)
    if not waits:
        builder.grant("1.00", **changes)
    codes = [late.code for late in builder.late] if waits else [each for each, _ in builder.refused]
    assert codes == ([] if code is None else [code])
    builder.pay("67.00")
    assert refunds(builder) == ([("grant", "1.00")] if code is None else [])
    assert builder.order.version == 3


def test_a_grant_is_one_by_its_id() -> None:
    builder = built(THREE, ("pay", "30.00"), ("grant", "2.00"), ("grant", "2.00", {"hour": 7, "reason": "x"}))
    assert refunds(builder) == [("grant", "2.00")]
    assert [code for code, _ in builder.refused] == []
    builder.grant("2.01")
    builder.grant("2.00", seller_id=ANNA)
    assert [code for code, _ in builder.refused] == [errors.KEY_CONFLICT] * 2
    builder.grant("2.00", hour=5, reason="sooner")
    assert [(each.reason, len(builder.order.grants)) for each in builder.order.grants] == [("sooner", 1)]
    builder.grant("2.00", 2)
    assert refunds(builder) == [("grant", "2.00")] * 2


def test_a_grant_changes_nothing_but_money() -> None:
    builder = built(THREE, ("pay", "30.00"), ("scan", "delivered"))
    before = codec.decode(codec.encode(builder.order))
    builder.grant("2.00", hour=9)
    after = builder.settle().order
    assert (after.status, after.suborders) == (before.status, before.suborders)
    assert rows.item_rows(ORDER, after) == rows.item_rows(ORDER, before)
    row = rows.order_row(ORDER, after)
    assert (row.version, row.updated_at) == (before.version + 1, moment(9))
    view = view_of(after)
    assert [line.live for line in view.lines] == [3]
    assert view.free == 2800


# -- when it is owed -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "expected", "waits"),
    [
        pytest.param([("grant", "5.00")], [], True, id="nothing is captured"),
        pytest.param([("pay", "4.99"), ("grant", "5.00")], [], True, id="a cent is missing"),
        pytest.param(
            [("pay", "5.00"), ("grant", "5.00")], [("grant", "5.00")], False, id="before all is paid"
        ),
        pytest.param(
            [("grant", "5.00"), ("pay", "30.00")],
            [("grant", "5.00")],
            False,
            id="until captured money covers it",
        ),
        pytest.param(
            [("pay", "30.00"), ("grant", "30.01")], [], True, id="never in part, were everything paid"
        ),
        pytest.param(
            [("pay", "30.00"), ("grant", "20.00"), ("grant", "11.00", 2), ("grant", "10.00", 3)],
            [("grant", "20.00"), ("grant", "10.00")],
            True,
            id="one that isn't covered holds up no other",
        ),
        pytest.param(
            [("pay", "30.00"), ("grant", "5.00"), ("stock", "rejected")],
            [("grant", "5.00"), ("closed", "25.00")],
            False,
            id="closed gives what is left",
        ),
        pytest.param(
            [("pay", "30.00"), ("stock", "rejected"), ("grant", "5.00"), ("pay", "2.00", 2)],
            [("closed", "30.00"), ("closed", "2.00")],
            False,
            id="not where no unit is live",
        ),
        pytest.param(
            [
                ("pay", "30.00"),
                ("give_back", "processed"),
                ("grant", "5.00"),
            ],
            [("return", "30.00")],
            True,
            id="after the units that came back nothing is left",
        ),
    ],
)
def test_when_goodwill_is_owed(steps: list[Step], expected: Any, waits: bool) -> None:
    builder = built(THREE, *steps)
    assert refunds(builder) == expected
    assert uncovered(builder) == waits


def test_refunds_of_units_come_before_goodwill() -> None:
    builder = OrderBuilder()
    builder.create(*SHIPPED)
    builder.grant("5.00")
    builder.grant("3.00", 2, hour=5)
    builder.give_back("processed", quantity=1)
    builder.stock("rejected", BORIS)
    builder.pay("67.00")
    assert refunds(builder) == [
        ("stock", "33.00"),
        ("return", "10.00"),
        ("grant", "3.00"),
        ("grant", "5.00"),
    ] or (refunds(builder) == [("return", "10.00"), ("stock", "33.00"), ("grant", "3.00"), ("grant", "5.00")])


def test_a_refund_of_units_that_is_not_covered_does_not_hold_up_goodwill() -> None:
    builder = built(SHIPPED, ("pay", "32.99"), ("stock", "rejected", BORIS), ("grant", "5.00"))
    assert refunds(builder) == [("grant", "5.00")]
    assert builder.anomalies == ["refund_uncovered"]


# -- what is left of a refund of units -----------------------------------------------------------------------

ONE_BACK: Data = {"quantity": 1}


@pytest.mark.parametrize(
    ("lines", "steps", "expected", "waits"),
    [
        pytest.param(
            THREE,
            [
                ("pay", "30.00"),
                ("grant", "5.00"),
                *(("give_back", "processed", n, ONE_BACK) for n in range(3)),
            ],
            [("grant", "5.00"), ("return", "10.00"), ("return", "10.00"), ("return", "5.00")],
            False,
            id="the last unit pays what is left",
        ),
        pytest.param(
            THREE,
            [
                ("pay", "30.00"),
                ("grant", "25.00"),
                *(("give_back", "processed", n, ONE_BACK) for n in range(3)),
            ],
            [("grant", "25.00"), ("return", "5.00")],
            False,
            id="nothing is left: nothing is owed",
        ),
        pytest.param(
            THREE,
            [("pay", "29.99"), ("grant", "25.00"), ("give_back", "processed", 1, ONE_BACK)],
            [("grant", "25.00")],
            True,
            id="not where less than the total was captured",
        ),
        pytest.param(
            THREE,
            [
                ("pay", "29.99"),
                ("grant", "25.00"),
                ("give_back", "processed", 1, ONE_BACK),
                ("pay", "0.01", 2),
            ],
            [("grant", "25.00"), ("return", "5.00")],
            False,
            id="once the total is captured",
        ),
        pytest.param(
            THREE,
            [
                ("pay", "30.00"),
                ("grant", "25.00"),
                ("give_back", "processed", 1, ONE_BACK),
                ("pay", "40.00", 2),
                ("give_back", "processed", 2, ONE_BACK),
            ],
            [("grant", "25.00"), ("return", "5.00"), ("return", "10.00")],
            False,
            id="what was paid short stays so",
        ),
        pytest.param(
            SHIPPED,
            [
                ("pay", "67.00"),
                ("grant", "40.00"),
                ("stock", "rejected", BORIS),
                ("give_back", "processed", 1),
            ],
            [("grant", "40.00"), ("stock", "27.00")],
            False,
            id="a seller's units with their shipping",
        ),
        pytest.param(
            THREE,
            [
                ("pay", "30.00"),
                ("grant", "5.00"),
                ("stock", "rejected"),
                ("scan", "in_transit", {"items": {1: 1}}),
            ],
            [("grant", "5.00"), ("closed", "25.00")],
            True,
            id="not what a closed refund keeps from being covered",
        ),
        pytest.param(
            THREE,
            [("pay", "30.00"), ("grant", "5.00"), ("grant", "26.00", 2)],
            [("grant", "5.00")],
            True,
            id="goodwill itself is never cut",
        ),
    ],
)
def test_what_goodwill_leaves_of_a_refund(
    lines: list[Data], steps: list[Step], expected: Any, waits: bool
) -> None:
    builder = built(lines, *steps)
    assert refunds(builder) == expected
    assert uncovered(builder) == waits


def test_in_any_order_units_come_first_where_money_is_there() -> None:
    """Of what waits until the payment comes."""
    steps: list[Step] = [("grant", "25.00"), ("give_back", "processed", 1, ONE_BACK)]
    for order in permutations(steps):
        builder = built(THREE, *order, ("pay", "30.00"), settled=False)
        assert refunds(builder) == [("return", "10.00")]
        assert uncovered(builder)
        builder.pay("5.00", 2)
        assert refunds(builder) == [("return", "10.00"), ("grant", "25.00")]


def test_a_refund_that_is_cut_pays_for_its_units_whole() -> None:
    lines = [line(1, quantity=3, taxes=taxes(VAT="2.50")), line(2, BORIS)]
    builder = built(lines, ("pay", "42.50"), ("grant", "40.00"), prices_include_tax=False)
    builder.give_back("processed", quantity=2)
    (_, request) = builder.settle().published("refund.request")
    assert request["amount"] == "2.50"
    assert request["tax_amount"] == "1.67"
    assert request["lines"] == [
        {"item_id": item_id(1), "quantity": 2, "amount": "21.67", "tax_amount": "1.67"}
    ]
    assert [(each.amount, each.tax, each.units) for each in builder.order.decisions[1:]] == [
        (250, 167, [(raw(item_id(1)), 0, 2)])
    ]
    # They are paid for: with more money the next return takes the unit that is left.
    builder.pay("20.00", 2)
    builder.give_back("processed", 2, quantity=1)
    assert builder.settle().order.decisions[2].units == [(raw(item_id(1)), 2, 1)]


@pytest.mark.parametrize(
    ("grant", "amounts"),
    [
        ("2.50", [50, 50, 50, 0]),
        ("3.00", [50, 50, 0]),
        ("3.80", [20, 0]),
        ("4.00", [0]),
    ],
)
def test_pieces_of_a_refund_are_cut_where_the_money_ends(
    grant: str, amounts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("domain.refunds.MOST_UNITS", 5)
    lines = [line(1, quantity=20, price="0.10"), line(2, BORIS, 1, "2.00")]
    builder = built(lines, ("pay", "4.00"), ("grant", grant), ("stock", "rejected"))
    pieces = [each.amount for each in builder.settle().order.decisions[1:]]
    assert pieces == [amount for amount in amounts if amount]
    assert builder.anomalies == []
    assert all(sum(count for *_, count in each.units) == 5 for each in builder.order.decisions[1:])


# -- what a request says -------------------------------------------------------------------------------------


def request_of(builder: OrderBuilder, n: int = -1) -> Data:
    data = builder.settle().published("refund.request")[n]
    names = ("amount", "tax_amount", "lines", "shipping_amount", "allocations")
    return {name: data[name] for name in names if name in data}


def to(amount: str, n: int = 1) -> Data:
    return {"payment_id": payment(n), "amount": amount}


def units(n: int, quantity: int, amount: str, tax: str | None = None) -> Data:
    data = {"item_id": item_id(n), "quantity": quantity, "amount": amount}
    return data if tax is None else data | {"tax_amount": tax}


TAXED = [
    line(1, ANNA, 3, "10.00", shipping_amount="2.00", taxes=taxes(VAT="2.00", CITY="0.50")),
    line(2, BORIS, 1, "30.00", shipping_amount="3.00", shipping_taxes=taxes(VAT="0.30")),
]


@pytest.mark.parametrize(
    ("lines", "more", "steps", "expected"),
    [
        pytest.param(
            SHIPPED,
            {},
            [("pay", "67.00"), ("stock", "rejected", BORIS)],
            {
                "amount": "33.00",
                "lines": [units(2, 1, "30.00")],
                "shipping_amount": "3.00",
                "allocations": [to("33.00")],
            },
            id="a seller's units with their shipping",
        ),
        pytest.param(
            SHIPPED,
            {"discount": "6.00"},
            [("pay", "60.00"), ("pay", "1.00", 2), ("give_back", "processed", ONE_BACK)],
            {
                "amount": "9.00",
                "lines": [units(1, 1, "9.00")],
                "shipping_amount": "0.00",
                "allocations": [to("9.00")],
            },
            id="less the discount",
        ),
        pytest.param(
            TAXED,
            {"prices_include_tax": False},
            [("pay", "67.80"), ("stock", "rejected", BORIS)],
            {
                "amount": "33.30",
                "tax_amount": "0.30",
                "lines": [units(2, 1, "30.00", "0.00")],
                "shipping_amount": "3.30",
                "allocations": [to("33.30")],
            },
            id="tax on top",
        ),
        pytest.param(
            TAXED,
            {"prices_include_tax": True},
            [("pay", "65.00"), ("give_back", "processed", {"quantity": 2})],
            {
                "amount": "20.00",
                "tax_amount": "1.68",
                "lines": [units(1, 2, "20.00", "1.68")],
                "shipping_amount": "0.00",
                "allocations": [to("20.00")],
            },
            id="tax in the prices",
        ),
        pytest.param(
            TAXED,
            {"prices_include_tax": False},
            [("pay", "67.80"), ("grant", "5.00")],
            {
                "amount": "5.00",
                "tax_amount": "0.00",
                "lines": [],
                "shipping_amount": "0.00",
                "allocations": [to("5.00")],
            },
            id="goodwill",
        ),
        pytest.param(
            TAXED,
            {"prices_include_tax": False},
            [("pay", "60.00"), ("pay", "7.80", 2), ("stock", "rejected"), ("stock", "rejected", BORIS)],
            {
                "amount": "33.30",
                "tax_amount": "0.30",
                "lines": [],
                "shipping_amount": "0.00",
                "allocations": [to("25.50"), to("7.80", 2)],
            },
            id="closed",
        ),
        pytest.param(
            [line(2, price="7"), line(1, quantity=2, price="5"), line(3, BORIS)],
            {"currency": "JPY"},
            [("pay", "27", {"currency": "JPY"}), ("stock", "rejected", {"items": {1: 1, 2: 1}})],
            {
                "amount": "12",
                "lines": [units(1, 1, "5"), units(2, 1, "7")],
                "shipping_amount": "0",
                "allocations": [to("12")],
            },
            id="several lines by item_id, a currency without decimals",
        ),
    ],
)
def test_what_a_request_says(lines: list[Data], more: Data, steps: list[Step], expected: Data) -> None:
    if more.get("currency") == "JPY":
        lines = [{**each, "price": each["price"].removesuffix(".00")} for each in lines]
    assert request_of(built(lines, *steps, **more)) == expected


def test_units_of_a_line_in_several_spans_are_one_line_of_a_request() -> None:
    builder = built([line(1, quantity=5), line(2, BORIS)], ("pay", "60.00"))
    builder.scan("in_transit", items={1: 2})
    builder.stock("rejected", items={1: 4})
    builder.settle()
    builder.scan("in_transit", 2, items={1: 1})
    builder.give_back("processed", quantity=5)
    builder.settle()
    assert [each.units for each in builder.order.decisions] == [
        [(raw(item_id(1)), 2, 3)],
        [(raw(item_id(1)), 0, 2)],
    ]
    assert request_of(builder)["lines"] == [units(1, 2, "20.00")]


def test_a_request_is_the_same_whenever_it_is_sent_again() -> None:
    builder = built(TAXED, ("pay", "67.80"), ("stock", "rejected", BORIS), prices_include_tax=False)
    refund = {"refund_id": made_id("refund:0")}
    builder.pay("5.00", 2, hour=0)
    builder.scan("in_transit", 2, seller=BORIS)
    builder.send("deadline.passed", 9, deadline="refund", attempt=1, final=False, **refund)
    first, again = builder.published("refund.request")
    assert first == again


# -- what people see -----------------------------------------------------------------------------------------


def test_a_grant_is_told_and_a_seller_does_not_see_it() -> None:
    builder = built(
        SHIPPED, ("pay", "67.00"), ("grant", "5.00", {"reason": "a secret", "item_id": item_id(1)})
    )
    document: Any = explain(raw(ORDER), builder.order)
    (fact,) = [each for each in document["facts"] if each["type"] == "refund.granted"]
    assert fact["what"] == f"5.00 EUR of goodwill about item {item_id(1)} was granted, grant {granted(1)}"
    (decided,) = [each for each in document["facts"] if each["type"] == "refund.decided"]
    assert decided["what"] == f"refund 0 of 5.00 EUR was decided, for grant {granted(1)}"
    assert decided["cause"] == {"type": "grant", "id": granted(1)}
    assert document["refunds"][0]["allocations"] == [[payment(1), "5.00"]]
    seen: Any = explain(raw(ORDER), builder.order, None, frozenset([raw(ANNA)]))
    assert [each["type"] for each in seen["facts"]] == ["order.created"]


def test_a_grant_that_waits_for_money_is_an_anomaly_with_its_facts() -> None:
    builder = built(THREE, ("pay", "4.00"), ("grant", "5.00"))
    document: Any = explain(raw(ORDER), builder.order)
    types = {each["n"]: each["type"] for each in document["facts"]}
    (reason,) = [each for each in document["why"] if each["of"] == "anomaly"]
    assert (reason["rule"], [types[n] for n in reason["facts"]], reason["numbers"]) == (
        "refund_uncovered",
        ["order.paid", "refund.granted"],
        {"amount": "5.00", "captured": "4.00", "decided": "0.00"},
    )
    assert document["anomalies"] == [
        f"refund_uncovered: grant {granted(1)}: captured money does not cover this refund"
    ]


def test_an_order_without_a_grant_keeps_its_fields() -> None:
    assert Order().grants == []
    builder = built(THREE, ("pay", "30.00"), ("give_back", "processed", {"item": 1}))
    assert returned(1) == builder.published("refund.request")[0]["cause_id"]
    assert builder.order.grants == []
