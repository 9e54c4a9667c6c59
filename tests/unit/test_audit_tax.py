"""Tax as the auditor reads the contract: worked examples, computed by hand."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from audit import states
from audit.derived import DERIVED
from audit.findings import Finding, Findings, Report
from audit.index import Index
from audit.judge import DERIVED_EVENT, FACT, Item, Judge, Lane
from audit.reference import (
    Decision,
    Fact,
    Order,
    Owed,
    Reading,
    Refusal,
    Room,
    discount_shares,
    parse_decision,
)
from audit.states import read_state, state_of
from audit.stores import columns, comparable, line_of, row_of
from audit.topics import CREATED, DECISIONS, LANE
from tests.unit.test_audit_reference import (
    ANN,
    BOB,
    ORDER,
    A,
    B,
    C,
    back,
    binary,
    created,
    decision,
    fact,
    fold,
    headers,
    item,
    paid,
    scan,
    stock,
    uid,
    units,
)


def tax(*amounts: str) -> list[dict[str, str]]:
    """A list of taxes with the codes T0, T1, ..."""
    return [{"code": f"T{number}", "amount": amount} for number, amount in enumerate(amounts)]


def taxed(total: str, *items: dict[str, Any], included: bool = False, **more: Any) -> Fact:
    content = {"prices_include_tax": included, "total_amount": total, **more}
    return fact("order.created", 0, **created(items, **content))


# -- fields --------------------------------------------------------------------------------------------------

LINE = item(taxes=tax("3.99", "0.01"), shipping_amount="2.00", shipping_taxes=tax("0.50"))
ON_TOP = created([LINE], total_amount="26.50", prices_include_tax=False)
INCLUDED = created([LINE], total_amount="22.00", prices_include_tax=True)


@pytest.mark.parametrize("data", [ON_TOP, INCLUDED])
def test_taxes_are_content_as_sent(data: dict[str, Any]) -> None:
    parsed = binary("order.created", data)
    assert isinstance(parsed, Fact)
    assert parsed.content["prices_include_tax"] is data["prices_include_tax"]
    (line,) = parsed.content["items"]
    assert line["taxes"] == ({"code": "T0", "amount": 399}, {"code": "T1", "amount": 1})
    assert line["shipping_taxes"] == ({"code": "T0", "amount": 50},)
    held = Order(ORDER)
    held.add(parsed)
    swapped = {**LINE, "taxes": LINE["taxes"][::-1]}
    for other in ({**data, "items": [swapped]}, {**data, "region": ""}):
        again = binary("order.created", other)
        assert isinstance(again, Fact)
        held.add(again)
    assert len(held.candidates["created",]) == 3


@pytest.mark.parametrize(
    ("line", "more"),
    [
        ({}, {"prices_include_tax": True}),
        ({}, {"prices_include_tax": False}),
        ({"taxes": []}, {}),
        ({"taxes": [], "shipping_taxes": []}, {"prices_include_tax": True}),
        ({"taxes": tax("0.00")}, {"prices_include_tax": False}),
        ({"taxes": tax("0", "0")}, {"prices_include_tax": True}),
        ({"taxes": [{"code": "é" * 32, "amount": "20.00", "rate": 7}]}, {"prices_include_tax": True}),
        ({"taxes": tax(*["1.00"] * 20)}, {"prices_include_tax": True}),
    ],
)
def test_taxes_that_are_taken(line: dict[str, Any], more: dict[str, Any]) -> None:
    data = created([item(**line)], **more)
    taken = binary("order.created", data), binary("checkout.completed", {**data, "checkout_id": uid("c")})
    assert all(isinstance(each, Fact) for each in taken)


@pytest.mark.parametrize(
    ("line", "more", "code", "path"),
    [
        ({"taxes": None}, {}, "field_malformed", "items[0].taxes"),
        ({"taxes": {}}, {}, "field_malformed", "items[0].taxes"),
        ({"taxes": ["VAT"]}, {}, "field_malformed", "items[0].taxes[0]"),
        ({"taxes": [{"amount": "1"}]}, {}, "field_missing", "items[0].taxes[0].code"),
        ({"taxes": [{"code": "T"}]}, {}, "field_missing", "items[0].taxes[0].amount"),
        ({"taxes": [{"code": "", "amount": "1"}]}, {}, "field_malformed", "items[0].taxes[0].code"),
        ({"taxes": [{"code": "x" * 33, "amount": "1"}]}, {}, "field_malformed", "items[0].taxes[0].code"),
        ({"taxes": [{"code": "a\0", "amount": "1"}]}, {}, "field_malformed", "items[0].taxes[0].code"),
        ({"taxes": [{"code": 7, "amount": "1"}]}, {}, "field_malformed", "items[0].taxes[0].code"),
        ({"taxes": [{"code": "T", "amount": 1}]}, {}, "field_malformed", "items[0].taxes[0].amount"),
        ({"taxes": tax("0.01", "0.001")}, {}, "field_malformed", "items[0].taxes[1].amount"),
        ({"taxes": tax("-1")}, {}, "field_malformed", "items[0].taxes[0].amount"),
        ({"taxes": tax(*["0"] * 21)}, {}, "field_malformed", "items[0].taxes"),
        ({"taxes": tax("1") * 2}, {}, "field_malformed", "items[0].taxes"),
        ({"shipping_taxes": tax("1", "0.0001")}, {}, "field_malformed", "items[0].shipping_taxes[1].amount"),
        ({"shipping_taxes": tax("1") * 2}, {}, "field_malformed", "items[0].shipping_taxes"),
        ({"taxes": tax("0")}, {"prices_include_tax": None}, "field_malformed", "prices_include_tax"),
        ({}, {"prices_include_tax": "true"}, "field_malformed", "prices_include_tax"),
        ({}, {"prices_include_tax": 1}, "field_malformed", "prices_include_tax"),
        # Required where a list has an entry.
        ({"taxes": tax("0")}, {}, "field_malformed", "prices_include_tax"),
        ({"shipping_taxes": tax("0")}, {}, "field_malformed", "prices_include_tax"),
    ],
)
def test_bad_taxes(line: dict[str, Any], more: dict[str, Any], code: str, path: str) -> None:
    assert binary("order.created", created([item(**line)], **more)) == Refusal(code, path)


@pytest.mark.parametrize(
    ("included", "total", "code", "path"),
    [
        (False, "26.50", None, ""),
        (False, "26.00", "total_mismatch", "total_amount"),  # without that of the shipping
        (False, "22.00", "total_mismatch", "total_amount"),
        (True, "22.00", None, ""),
        (True, "26.50", "total_mismatch", "total_amount"),
    ],
)
def test_the_total_with_tax(included: bool, total: str, code: str | None, path: str) -> None:
    parsed = binary("order.created", created([LINE], total_amount=total, prices_include_tax=included))
    assert isinstance(parsed, Fact) if code is None else parsed == Refusal(code, path)


@pytest.mark.parametrize(
    ("first", "second", "included", "path"),
    [
        # Goods of 30.00 and 10.00, a discount of 4.00: 27.00 and 9.00 are left.
        ({"taxes": tax("27.00")}, {"taxes": tax("9.00")}, True, None),
        ({"taxes": tax("27.01")}, {}, True, "items[0].taxes"),
        ({"taxes": tax("27.00", "0.01")}, {}, True, "items[0].taxes"),
        ({}, {"taxes": tax("4.50", "4.51")}, True, "items[1].taxes"),
        ({"shipping_taxes": tax("0.01")}, {}, True, "items[0].shipping_taxes"),
        ({}, {"shipping_taxes": tax("1.00", "2.00")}, True, None),
        ({}, {"shipping_taxes": tax("1.00", "2.01")}, True, "items[1].shipping_taxes"),
        ({"taxes": tax("0.01"), "shipping_taxes": tax("99.99")}, {}, False, None),
    ],
)
def test_taxes_in_the_price_are_no_more_than_it(
    first: dict[str, Any], second: dict[str, Any], included: bool, path: str | None
) -> None:
    lines = [item(A, quantity=3, **first), item(B, quantity=1, shipping_amount="3.00", **second)]
    total = "39.00" if included else "139.00"
    parsed = binary(
        "order.created",
        created(lines, discount_amount="4.00", total_amount=total, prices_include_tax=included),
    )
    assert isinstance(parsed, Fact) if path is None else parsed == Refusal("tax_too_large", path)


def test_codes_count_where_an_order_may_hold_less() -> None:
    def begins(*lists: list[dict[str, str]]) -> bool:
        lines = [item(uid(f"{n}"), quantity=1, price="0", taxes=each) for n, each in enumerate(lists)]
        placed = fact("order.created", 0, **created(lines, total_amount="0", prices_include_tax=True))
        return Room(batch=30_000).begins(placed)

    # A third is 10,000; three lines of one unit and a SKU of 5 characters count 9,717.
    assert begins([], [], [])
    assert begins(tax("0", "0"), tax("0", "0"), [])  # 283 are left; an entry takes 64 + 3 * 2
    assert not begins(tax("0", "0", "0"), tax("0", "0"), [])
    assert begins([{"code": "€" * 24, "amount": "0"}], [], [])  # 64 + 3 * 72
    assert not begins([{"code": "€" * 25, "amount": "0"}], [], [])


# -- units, live totals, refunds -----------------------------------------------------------------------------
#
# EUR   units  price  discount            taxes                 units cost on top      inside
# A       3    10.00  0.75: 25 25 25      5.00 and 0.01:        11.43 11.42 11.41      9.75 9.75 9.75
#                                         168 167 166
#                     shipping 2.00       0.38                  2.38                   2.00
# B       2     4.99  0.25: 13 12         1.90: 95 95           5.81 5.82              4.86 4.87
#
# The discount of 1.00: 30.00 / 39.98 of it are 75.04, 9.98 / 39.98 are 24.96: 0.75 and 0.25.
# Total: 39.98 + 2.00 - 1.00 = 40.98, and with all taxes (5.01 + 0.38 + 1.90 = 7.29) 48.27.

TWO = (
    item(A, ANN, 3, "10.00", shipping_amount="2.00", taxes=tax("5.00", "0.01"), shipping_taxes=tax("0.38")),
    item(B, BOB, 2, "4.99", taxes=tax("1.90")),
)


def two(included: bool) -> Fact:
    return taxed("40.98" if included else "48.27", *TWO, included=included, discount_amount="1.00")


def whole(included: bool) -> Fact:
    return paid("40.98" if included else "48.27")


@pytest.mark.parametrize(
    ("quantity", "price", "currency", "discount", "taxes", "total", "net", "shares", "cost"),
    [
        # JPY: 10 over three are 4 3 3, 5 are 2 2 1.
        (3, "100", "JPY", "0", ["10", "5"], "315", [100] * 3, [6, 5, 4], [106, 105, 104]),
        # Each code by itself: two of 1 are both the first unit's.
        (2, "5", "JPY", "0", ["1", "1"], "12", [5, 5], [2, 0], [7, 5]),
        (3, "0", "JPY", "0", ["2"], "2", [0, 0, 0], [1, 1, 0], [1, 1, 0]),
        # EUR: 0.10 of discount are 4 3 3, 0.20 of tax 7 7 6.
        (3, "1.00", "EUR", "0.10", ["0.20"], "3.10", [96, 97, 97], [7, 7, 6], [103, 104, 103]),
        # BHD: 0.116 over seven are 17 17 17 17 16 16 16, 0.010 of discount 2 2 2 1 1 1 1.
        (
            *(7, "0.333", "BHD", "0.010", ["0.116"], "2.437"),
            [331, 331, 331, 332, 332, 332, 332],
            [17, 17, 17, 17, 16, 16, 16],
            [348, 348, 348, 349, 348, 348, 348],
        ),
    ],
)
def test_shares_of_the_units(
    quantity: int,
    price: str,
    currency: str,
    discount: str,
    taxes: list[str],
    total: str,
    net: list[int],
    shares: list[int],
    cost: list[int],
) -> None:
    line = item(quantity=quantity, price=price, taxes=tax(*taxes))
    (line_there,) = fold(taxed(total, line, currency=currency, discount_amount=discount)).lines
    assert [each.net for each in line_there.units] == net
    assert [each.tax for each in line_there.units] == shares
    assert [each.cost for each in line_there.units] == cost
    if sum(shares) <= sum(net):
        inside = {**created([line], currency=currency, discount_amount=discount), "prices_include_tax": True}
        (line_there,) = fold(fact("order.created", 0, **inside)).lines
        assert [each.tax for each in line_there.units] == shares
        assert [each.cost for each in line_there.units] == net


@pytest.mark.parametrize(
    ("facts", "amounts", "on_top", "inside"),
    [
        # items, shipping, discount and tax of Ann's and Bob's part; their totals and the order's
        (
            [],
            [("30.00", "2.00", "0.75", "5.39"), ("9.98", "0.00", "0.25", "1.90")],
            ("36.64", "11.63", 4827),
            ("31.25", "9.73", 4098),
        ),
        (
            [stock("released", items=units(A, 1))],
            [("20.00", "2.00", "0.50", "3.73"), ("9.98", "0.00", "0.25", "1.90")],
            ("25.23", "11.63", 3686),
            ("21.50", "9.73", 3123),
        ),
        (
            [stock("rejected")],
            [("0.00", "0.00", "0.00", "0.00"), ("9.98", "0.00", "0.25", "1.90")],
            ("0.00", "11.63", 1163),
            ("0.00", "9.73", 973),
        ),
        (
            [stock("released", BOB, items=units(B, 1)), scan("in_transit", seller=BOB, items=units(B, 1))],
            [("30.00", "2.00", "0.75", "5.39"), ("4.99", "0.00", "0.13", "0.95")],
            ("36.64", "5.81", 4245),
            ("31.25", "4.86", 3611),
        ),
        (
            [stock("rejected"), stock("released", BOB)],
            [("0.00", "0.00", "0.00", "0.00"), ("0.00", "0.00", "0.00", "0.00")],
            ("0.00", "0.00", 4827),
            ("0.00", "0.00", 4098),
        ),
    ],
)
def test_live_totals_and_suborders(
    facts: list[Fact],
    amounts: list[tuple[str, ...]],
    on_top: tuple[str, str, int],
    inside: tuple[str, str, int],
) -> None:
    for included, (ann, bob, live) in ((False, on_top), (True, inside)):
        reading = fold(two(included), *facts)
        assert reading.live_total == live
        last = {each.seller_id: reading.last_suborder(each) for each in reading.suborders}
        names = ("items_amount", "shipping_amount", "discount_amount", "tax_amount")
        assert [tuple(last[seller][name] for name in names) for seller in (ANN, BOB)] == amounts
        assert [last[seller]["total_amount"] for seller in (ANN, BOB)] == [ann, bob]
        assert fold(*facts, two(included)).live_total == live


@pytest.mark.parametrize("included", [False, True])
def test_what_confirms_an_order_with_tax(included: bool) -> None:
    enough, short = ("40.98", "40.97") if included else ("48.27", "48.26")
    assert fold(two(included), paid(short)).status() == "pending"
    assert fold(two(included), paid(enough)).status() == "confirmed"
    request = fold(two(included)).derived()["payment.initiate", fold(two(included)).made_id("payment")]
    assert request["amount"] == enough


@pytest.mark.parametrize(
    ("facts", "cause", "named", "ships", "on_top", "inside", "tax"),
    [
        ([stock("released", items=units(A, 1))], ANN, [(A, 2)], [], 1141, 975, 166),
        ([stock("rejected")], ANN, [(A, 0), (A, 1), (A, 2)], [A], 3664, 3125, 539),
        ([stock("rejected", BOB)], BOB, [(B, 0), (B, 1)], [B], 1163, 973, 190),
        ([back(quantity=2)], uid("r"), [(A, 0), (A, 1)], [], 2285, 1950, 335),
        ([back(item_id=B, quantity=1)], uid("r"), [(B, 0)], [], 581, 486, 95),
        ([back(item_id=B)], uid("r"), [(B, 0), (B, 1)], [], 1163, 973, 190),
    ],
)
def test_refunds_with_tax(
    facts: list[Fact],
    cause: str,
    named: list[tuple[str, int]],
    ships: list[str],
    on_top: int,
    inside: int,
    tax: int,
) -> None:
    for included, amount in ((False, on_top), (True, inside)):
        reading = fold(two(included), whole(included), *facts)
        (owed,) = reading.owed()
        assert (owed.cause_id, owed.units, list(owed.shipping)) == (cause, tuple(named), ships)
        assert (owed.amount, owed.covered) == (amount, True)
        proposed = decision(0, owed.amount, owed.cause, cause, owed.units, owed.shipping)
        assert (reading.pays_for(proposed), reading.tax_of(proposed)) == (amount, tax)
        short = fold(two(included), paid(f"{(amount - 1) / 100:.2f}"), *facts)
        assert [each.covered for each in short.owed()] == [False]


@pytest.mark.parametrize(
    ("included", "total", "numbers"),
    [
        # JPY, 4 units of 1, discount 2: net 0 0 1 1. A tax of 1 is unit 0's: on top it is worth 1.
        (False, "3", [0, 2, 3]),
        (True, "2", [2, 3]),
    ],
)
def test_a_return_takes_units_that_are_worth_something(
    included: bool, total: str, numbers: list[int]
) -> None:
    line = item(quantity=4, price="1", taxes=tax("1"))
    facts = [
        taxed(total, line, included=included, currency="JPY", discount_amount="2"),
        paid(total, currency="JPY"),
        *(back(name=f"r{n}", quantity=1) for n in range(4)),
    ]
    decisions: list[Decision] = []
    while owed := fold(*facts, decisions=decisions).owed():
        first = owed[0]
        assert first.amount == 1
        decisions.append(decision(len(decisions), 1, "return", first.cause_id, first.units))
    assert [each.units for each in decisions] == [((A, number),) for number in numbers]
    taxes = [fold(*facts, decisions=decisions).tax_of(each) for each in decisions]
    assert taxes == ([0, 0] if included else [1, 0, 0])


def test_a_return_takes_the_lowest_units_where_one_of_them_is_worth_its_tax() -> None:
    # JPY, 3 units of 1, discount 2: net 0 0 1; with a tax of 1 on top they are worth 1 0 1.
    line = item(quantity=3, price="1", taxes=tax("1"))
    placed = taxed("2", line, currency="JPY", discount_amount="2")
    (owed,) = fold(placed, paid("2", currency="JPY"), back(quantity=2)).owed()
    assert (owed.amount, owed.units) == (1, ((A, 0), (A, 1)))


# -- closed refunds ------------------------------------------------------------------------------------------


def closed(n: int, amount: int, tax_amount: int | None = None) -> Decision:
    return Decision(ORDER, n, amount, "closed", ORDER, (), (), tax_amount)


@pytest.mark.parametrize(
    ("line", "total", "included", "refunds"),
    [
        # EUR: 4.20 of 24.20. 1200 * 420 / 2420 = 208.26, 1700: 295.04, 2420: 420, then nothing.
        (
            *({"taxes": tax("4.20")}, "24.20", False),
            [(1200, 208), (500, 87), (720, 125), (300, 0)],
        ),
        # The same inside 20.00: 420 * 1200 / 2000 = 252, 1999: 419.79, all.
        ({"taxes": tax("4.20")}, "20.00", True, [(1200, 252), (799, 167), (1, 1)]),
        # More than it cost: all of it.
        ({"taxes": tax("4.20")}, "24.20", False, [(99_999, 420), (1, 0)]),
        # Shipping of 3.00 with 0.57 on top, goods without: 57 * 1000 / 2357 = 24.18.
        (
            *({"shipping_amount": "3.00", "shipping_taxes": tax("0.57")}, "23.57", False),
            [(1000, 24), (1357, 33)],
        ),
        # Shares that round down to nothing.
        ({"taxes": tax("0.01")}, "20.01", False, [(1000, 0), (1000, 0), (1, 1)]),
    ],
)
def test_tax_of_closed_refunds(
    line: dict[str, Any], total: str, included: bool, refunds: list[tuple[int, int]]
) -> None:
    facts = [taxed(total, item(**line), included=included), stock("rejected")]
    decisions: list[Decision] = []
    for number, (amount, expected) in enumerate(refunds):
        each = closed(number, amount)
        assert fold(*facts, decisions=decisions).tax_of(each) == expected
        decisions.append(closed(number, amount, expected))
    assert [fold(*facts, decisions=decisions).tax_of(each) for each in decisions] == [
        expected for _, expected in refunds
    ]


@pytest.mark.parametrize(
    ("captured", "on_top"),
    [
        # A 0 and A 1 came back (22.85, of it 3.35 tax), Bob's were rejected (11.63, 1.90). A 2 and A's
        # shipping are left: 11.41 + 2.38 = 13.79, of it 1.66 + 0.38 = 2.04 tax.
        ("48.27", (1379, 204)),
        # 5.52 are left: 204 * 552 / 1379 = 81.66.
        ("40.00", (552, 81)),
        ("60.00", (2552, 204)),
    ],
)
def test_a_closed_refund_tells_the_tax_of_what_is_not_paid_for(
    captured: str, on_top: tuple[int, int]
) -> None:
    before = [
        Decision(ORDER, 0, 2285, "return", uid("r"), ((A, 0), (A, 1)), (), 335),
        Decision(ORDER, 1, 1163, "stock", BOB, ((B, 0), (B, 1)), (), 190),
    ]
    reading = fold(
        *(two(False), paid(captured), back(quantity=2), stock("rejected", BOB), stock("released")),
        decisions=before,
    )
    (owed,) = reading.owed()
    assert (owed.cause, owed.amount, reading.tax_of(closed(2, owed.amount))) == ("closed", *on_top)


def test_a_closed_refund_where_nothing_that_is_left_is_worth_anything() -> None:
    # JPY, 2 units of 1, discount 1: net 0 1, and the tax of 1 inside is unit 0's.
    line = item(quantity=2, price="1", taxes=tax("1"))
    facts = [
        taxed("1", line, included=True, currency="JPY", discount_amount="1"),
        *(paid("2", currency="JPY"), back(quantity=1), stock("released")),
    ]
    returned = Decision(ORDER, 0, 1, "return", uid("r"), ((A, 1),), (), 0)
    assert fold(*facts).tax_of(returned) == 0
    assert fold(*facts, decisions=[returned]).tax_of(closed(1, 1)) == 1


def test_a_closed_refund_tells_no_tax_below_0() -> None:
    # 2 units of 11.00 with 1.00 of tax each: closed 22.00, moved all the same, and one of them came back.
    facts = [taxed("22.00", item(taxes=tax("2.00"))), paid("44.00")]
    decisions = [
        closed(0, 2200, 200),
        Decision(ORDER, 1, 1100, "return", uid("r"), ((A, 0),), (), 100),
        closed(2, 1100, 0),
    ]
    assert fold(*facts, decisions=decisions).tax_of(decisions[2]) == 0


# -- sums ----------------------------------------------------------------------------------------------------


@st.composite
def exact_orders(draw: st.DrawFn) -> tuple[Fact, list[Fact], int]:
    """order.created of up to three lines in JPY, payments that add up to its total, and what its goods cost
    less the discount, with their taxes on top.
    """
    included = draw(st.booleans())
    lines: list[dict[str, Any]] = []
    for item_id in (A, B, C)[: draw(st.integers(1, 3))]:
        seller, postage = draw(st.sampled_from([ANN, BOB])), draw(st.integers(0, 3))
        quantity, price = draw(st.integers(1, 5)), draw(st.integers(0, 4))
        lines.append(item(item_id, seller, quantity, str(price), shipping_amount=str(postage)))
    bare = [{**line, "price": int(line["price"])} for line in lines]
    goods = sum(line["price"] * line["quantity"] for line in bare)
    discount = draw(st.integers(0, goods))
    discounts = discount_shares(bare, discount)
    on_goods = on_shipping = 0
    for line, known in zip(lines, bare, strict=True):
        net, postage = (
            known["price"] * known["quantity"] - discounts[known["item_id"]],
            int(known["shipping_amount"]),
        )
        goods_tax = draw(st.integers(0, net if included else 9))
        shipping_tax = draw(st.integers(0, postage if included else 3))
        first = draw(st.integers(0, goods_tax))
        line["taxes"] = tax(str(first), str(goods_tax - first))
        line["shipping_taxes"] = tax(str(shipping_tax))
        on_goods += 0 if included else goods_tax
        on_shipping += int(line["shipping_amount"]) + (0 if included else shipping_tax)
    worth = goods - discount + on_goods
    total = worth + on_shipping
    more = {"currency": "JPY", "discount_amount": str(discount)}
    placed = taxed(str(total), *lines, included=included, **more)
    part = draw(st.integers(0, total))
    parts = [("p", part), ("q", total - part)]
    return placed, [paid(str(amount), name, currency="JPY") for name, amount in parts if amount], worth


def decided(now: Sequence[Fact], decisions: list[Decision]) -> None:
    """Decide what is covered, one after the other."""
    while True:
        reading = fold(*now, decisions=decisions)
        covered = [each for each in (reading.owed() if reading.created else []) if each.covered]
        if not covered:
            return
        each: Owed = covered[0]
        proposed = decision(len(decisions), each.amount, each.cause, each.cause_id, each.units, each.shipping)
        decisions.append(replace(proposed, tax_amount=reading.tax_of(proposed)))


def assert_told(reading: Reading, tax: int) -> None:
    """All refunds together tell this tax, or less where it is in the prices: a unit that the discount leaves
    nothing is paid for by no refund, and has its share of the tax all the same.
    """
    refunded_tax = sum(each.tax_amount or 0 for each in reading.decisions)
    assert refunded_tax <= tax
    assert refunded_tax == tax or reading.known["prices_include_tax"]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_when_every_unit_came_back_the_refunds_add_up(data: st.DataObject) -> None:
    placed, payments, worth = data.draw(exact_orders())
    returns = []
    for line in placed.content["items"]:
        left, item_id = line["quantity"], line["item_id"]
        while left:
            count = data.draw(st.integers(1, left))
            returns.append(back(name=f"{item_id} {left}", item_id=item_id, quantity=count))
            left -= count
    decisions: list[Decision] = []
    now: list[Fact] = []
    for each in data.draw(st.permutations([placed, *payments, *returns])):
        now.append(each)
        decided(now, decisions)
    reading = fold(*now, decisions=decisions)
    assert reading.refunded == worth
    assert_told(reading, sum(line.tax_of(line.quantity) for line in reading.lines))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_when_every_unit_is_gone_the_refunds_add_up_to_all_that_was_captured(data: st.DataObject) -> None:
    placed, payments, _ = data.draw(exact_orders())
    gone = [
        stock(
            data.draw(st.sampled_from(["rejected", "released"])),
            line["seller_id"],
            items=[{"item_id": line["item_id"], "quantity": count}],
        )
        for line in placed.content["items"]
        for count in {line["quantity"], data.draw(st.integers(1, line["quantity"]))}
    ]
    decisions: list[Decision] = []
    now: list[Fact] = []
    for each in data.draw(st.permutations([placed, *payments, *gone])):
        now.append(each)
        decided(now, decisions)
    reading = fold(*now, decisions=decisions)
    assert reading.refunded == reading.captured == reading.known["total_amount"]
    assert_told(reading, sum(line.tax_of(line.quantity) + line.shipping_tax for line in reading.lines))


# -- what is told --------------------------------------------------------------------------------------------


def test_rows_tell_all_tax() -> None:
    for included in (False, True):
        reading = fold(two(included), stock("rejected"))
        assert taxes_in("orders_order", reading) == [["7.29"]]
        assert taxes_in("orders_order_item", reading) == [["5.01", "0.38"], ["1.90", "0.00"]]
    untaxed = fold(fact("order.created", 0, **created()))
    assert taxes_in("orders_order", untaxed) == [["0.00"]]
    assert taxes_in("orders_order_item", untaxed) == [["0.00", "0.00"]]


def taxes_in(table: str, reading: Reading) -> list[list[str]]:
    names = [name for name in columns(table) if "tax" in name]
    rows = reading.rows()[table]
    assert [row_of(table, line_of(table, row)) for row in rows] == [comparable(table, row) for row in rows]
    return [[row[columns(table).index(name)] for name in names] for row in rows]


def test_suborders_and_their_items_tell_tax() -> None:
    reading = fold(two(False), stock("released", items=units(A, 1)))
    (ann,) = [each for each in reading.suborders if each.seller_id == ANN]
    first = reading.derived()["suborder.created", ann.suborder_id]
    assert (first["tax_amount"], first["total_amount"]) == ("5.39", "36.64")
    assert first["items"] == [
        {"item_id": A, "quantity": 3, "tax_amount": "5.01", "shipping_tax_amount": "0.38"}
    ]
    last = reading.last_suborder(ann)
    assert (last["tax_amount"], last["total_amount"]) == ("3.73", "25.23")
    assert last["items"] == [{"item_id": A, "tax_amount": "3.35", "shipping_tax_amount": "0.38"}]
    # Nothing is live: nothing is told, of the shipping neither.
    reading = fold(two(False), stock("rejected"))
    (ann,) = [each for each in reading.suborders if each.seller_id == ANN]
    assert reading.last_suborder(ann)["items"] == [
        {"item_id": A, "tax_amount": "0.00", "shipping_tax_amount": "0.00"}
    ]


def test_an_order_without_tax_tells_none() -> None:
    data = created(prices_include_tax=True)
    reading = fold(fact("order.created", 0, **data), paid(), decisions=[decision(0, 50, "return", uid("r"))])
    said = [*reading.derived().values(), *(reading.last_suborder(each) for each in reading.suborders)]
    assert [each for each in said if "tax" in json.dumps(each)] == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"tax_amount": 0}, 0),
        ({"tax_amount": 12}, 12),
        ({"tax_amount": -1}, "tax_amount"),
        ({"tax_amount": "1.00"}, "tax_amount"),
        ({"tax_amount": 1 << 64}, "tax_amount"),
    ],
)
def test_a_decision_record_with_tax(changes: dict[str, Any], expected: int | str | None) -> None:
    data = {"order_id": ORDER, "n": 0, "amount": 100, "cause": "stock", "cause_id": ANN}
    value = json.dumps({**data, "units": [[A, 1]], "shipping": [A], **changes}).encode()
    read = parse_decision(value, headers("refund.decided"))
    if isinstance(expected, str):
        assert read == Refusal("field_malformed", expected)
    else:
        assert read == Decision(ORDER, 0, 100, "stock", ANN, ((A, 1),), (A,), expected)


# -- what is judged ------------------------------------------------------------------------------------------


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index(tmp_path)
    yield opened
    opened.close()


def record(topic: str, offset: int, value: Any) -> Item:
    own = [(name, text) for name, text in headers(topic if topic != DECISIONS else "refund.decided", id="e")]
    raw = json.dumps(value).encode()
    return (ORDER.encode(), FACT, LANE.index(topic), 0, offset, 0, raw, own)


def judged(index: Index, facts: Sequence[Item], events: Sequence[tuple[str, str, Any]]) -> list[Finding]:
    """What is broken about refunds and derived events of an order. `events`: type, event id, data."""
    findings = Findings(Report("g"), index, 100)
    judge = Judge(Lane(0, None, set(), [], False), index, findings, lambda key: 0)
    derived = [
        (
            ORDER.encode(),
            DERIVED_EVENT,
            DERIVED.index(type_),
            0,
            n,
            event_id,
            "e",
            None,
            json.dumps(data).encode(),
        )
        for n, (type_, event_id, data) in enumerate(events)
    ]
    judge.order(ORDER.encode(), [*facts, *derived])
    findings.judge()
    return [each for each in findings.report.findings if each.check in ("refunds", "derived", "notices")]


PAID = {"order_id": ORDER, "payment_id": uid("p"), "amount": "48.27", "currency": "EUR"}
RETURN = {
    "order_id": ORDER,
    "return_id": uid("r"),
    "item_id": A,
    "quantity": 2,
    "reason": "x",
    "status": "processed",
    "restock": False,
}
DECIDED = {
    "order_id": ORDER,
    "n": 0,
    "amount": 2285,
    "cause": "return",
    "cause_id": uid("r"),
    "units": [[A, 0], [A, 1]],
    "shipping": [],
    "tax_amount": 335,
}


def story(**changes: Any) -> list[Item]:
    """The order, a payment, a return, and the decision with these changes, None: without the field."""
    data = created(TWO, total_amount="48.27", discount_amount="1.00", prices_include_tax=False)
    decided = {name: value for name, value in {**DECIDED, **changes}.items() if value is not None}
    return [
        record(CREATED, 0, data),
        record("order.paid", 0, PAID),
        record("order.returned", 0, RETURN),
        record(DECISIONS, 0, decided),
    ]


@pytest.mark.parametrize(
    ("changes", "expected", "actual"),
    [
        ({}, None, None),
        ({"tax_amount": 334}, "tax_amount 335", "334"),
        ({"tax_amount": 0}, "tax_amount 335", "0"),
        ({"tax_amount": None}, "tax_amount 335", "none"),
        ({"amount": 1950}, "amount 2285, for what it names", "1950"),
    ],
)
def test_a_decision_with_another_tax_is_broken(
    index: Index, changes: dict[str, Any], expected: str | None, actual: str | None
) -> None:
    broken = judged(index, story(**changes), [])
    assert [(each.expected, each.actual) for each in broken if each.check == "refunds"] == (
        [] if expected is None else [(expected, actual)]
    )


def told_event(type_: str, **changes: Any) -> tuple[str, str, Any]:
    """A derived event of the story as it must be, with changes; of its items those of the first."""
    decisions = [Decision(ORDER, 0, 2285, "return", uid("r"), ((A, 0), (A, 1)), (), 335)]
    reading = fold(two(False), whole(False), back(quantity=2), decisions=decisions)
    ann = next(each for each in reading.suborders if each.seller_id == ANN)
    data: dict[str, Any]
    if type_ == "suborder.updated":
        name, data = f"3:{ANN}", {**reading.last_suborder(ann), "version": 3}
    else:
        key = next(
            key
            for key, each in reading.derived().items()
            if key[0] == type_ and each.get("seller_id") in (None, ANN)
        )
        name, data = key[1], dict(reading.derived()[key])
    items = data.get("items")
    if items is not None and "items" in changes:
        changes = {**changes, "items": [{**items[0], **changes["items"]}, *items[1:]]}
    return type_, reading.made_id(f"{type_}:{name}"), {**data, **changes}


@pytest.mark.parametrize(
    ("type_", "changes", "actual"),
    [
        ("refund.request", {}, None),
        ("refund.request", {"tax_amount": "3.34"}, "tax_amount 3.34"),
        ("suborder.created", {}, None),
        ("suborder.created", {"tax_amount": "5.01"}, "tax_amount 5.01"),
        ("suborder.created", {"total_amount": "31.25"}, "total_amount 31.25"),
        ("suborder.created", {"items": {"tax_amount": "5.00"}}, "items"),
        ("suborder.created", {"items": {"shipping_tax_amount": "0.00"}}, "items"),
        ("suborder.updated", {"tax_amount": "0.00"}, "tax_amount 0.00"),
        ("suborder.updated", {"items": {"tax_amount": "0.00"}}, "items"),
    ],
)
def test_an_event_that_tells_another_tax_is_broken(
    index: Index, type_: str, changes: dict[str, Any], actual: str | None
) -> None:
    broken = [each.actual for each in judged(index, story(), [told_event(type_, **changes)])]
    assert [each[: len(actual or "")] for each in broken] == ([] if actual is None else [actual])


@pytest.mark.parametrize("amount", [None, "0.00", "0.01"])
def test_an_order_without_tax_is_broken_where_it_tells_some(index: Index, amount: str | None) -> None:
    reading = fold(fact("order.created", 0, **created()))
    (key,) = [key for key in reading.derived() if key[0] == "suborder.created"]
    data = dict(reading.derived()[key])
    if amount is not None:
        data["items"] = [{**each, "tax_amount": amount} for each in data["items"]]
        data["tax_amount"] = amount
    event = ("suborder.created", reading.made_id(f"suborder.created:{key[1]}"), data)
    broken = judged(index, [record(CREATED, 0, created())], [event])
    assert [each.actual for each in broken] == (["0.01", "0.01"] if amount == "0.01" else [])


# -- states --------------------------------------------------------------------------------------------------


def test_a_state_holds_tax() -> None:
    decisions = [Decision(ORDER, 0, 2285, "return", uid("r"), ((A, 0), (A, 1)), (), 335)]
    state = state_of(
        fold(two(False), back(quantity=2), stock("released", items=units(A, 1)), decisions=decisions)
    )
    items, included = state["created"][6:8]
    assert included is False
    assert [line[8:10] for line in items] == [
        ((("T0", 500), ("T1", 1)), (("T0", 38),)),
        ((("T0", 190),), None),
    ]
    assert [each[7] for each in state["decisions"]] == [335]
    assert sorted(each[9] for each in state["suborders"]) == [190, 373]
    untaxed = state_of(
        fold(fact("order.created", 0, **created()), decisions=[decision(0, 1, "closed", ORDER)])
    )
    assert untaxed["created"][7] is None
    assert untaxed["created"][6][0][8:10] == (None, None)
    assert (untaxed["decisions"][0][7], untaxed["suborders"][0][9]) == (None, 0)


def test_a_state_of_before_has_no_tax() -> None:
    line = [b"i", b"p", b"s", None, "SKU", 1, 100, None]
    decided_before, suborder = [5, 0, 1, 0, b"c", [], []], [0, 100, 0, 0, 1, 0, 0, 0, 0]
    head = [5, b"u", None, "EUR", 100, None]

    def read(created: list[Any], decision: list[Any], suborder: list[Any]) -> states.State:
        known: list[Any] = [1, created, [], [], [], [], [], [], [], [decision], [], 0, [suborder], False, 1]
        return read_state(msgspec.msgpack.encode(known))

    before = read([*head, [line]], [*decided_before, 7], suborder)
    assert before == read(
        [*head, [[*line, None, None]], None], [*decided_before, 7, None, None], [*suborder, 0]
    )
    later = [[["T", 5]], []]
    now = read(
        [*head, [[*line, *later, None, None, "later"]], True, *[None] * 5, "later"],
        [*decided_before, 7, 5, None, "later"],
        [*suborder, 5, False, "later"],
    )
    assert (now["created"][7], now["created"][6][0][8:10]) == (True, ((("T", 5),), ()))
    assert (now["decisions"][0][7:], now["suborders"][0][9:]) == ((5, None), (5, False))
