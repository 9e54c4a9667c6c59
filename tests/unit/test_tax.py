"""Tax: of a line and of its shipping, on top of the prices or in them (docs/rules.md, Tax)."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import msgspec
import pytest

from audit import reference
from contracts import errors
from contracts.errors import Refused
from domain import effects, events, limits, rows
from domain.order import Created, Order
from domain.tax import LineTax
from tables import codec
from tests.unit.builders import (
    ANNA,
    BORIS,
    CHECKOUT,
    ORDER,
    Data,
    OrderBuilder,
    created,
    event,
    line,
    raw,
    record,
    taxes,
)

# Anna: three units of 10.00, a tax that three doesn't divide; Boris: one unit of 30.00.
TWO = [
    line(1, ANNA, 3, "10.00", shipping_amount="2.00", taxes=taxes(VAT="2.00", CITY="0.50")),
    line(2, BORIS, 1, "30.00", shipping_amount="3.00", shipping_taxes=taxes(VAT="0.30")),
]


def built(*lines: Data, on_top: bool = True, **more: Any) -> OrderBuilder:
    builder = OrderBuilder()
    builder.create(*(lines or TWO), prices_include_tax=not on_top, **more)
    assert builder.refused == []
    return builder


def refused(data: Data, type_: str = "order.created") -> tuple[str, str]:
    with pytest.raises(Refused) as caught:
        event(type_, data)
    return caught.value.code, caught.value.detail


# -- what comes in -------------------------------------------------------------------------------------------


def one(on_top: bool | None, *, price: str = "10.00", quantity: int = 2, **more: Any) -> Data:
    included: Data = {} if on_top is None else {"prices_include_tax": not on_top}
    return created(line(1, ANNA, quantity, price, **more), **included)


@pytest.mark.parametrize(
    ("data", "code", "where"),
    [
        (one(None, taxes=taxes(VAT="1.00")), errors.FIELD_MALFORMED, "$.prices_include_tax: "),
        (one(None, shipping_taxes=taxes(VAT="0")), errors.FIELD_MALFORMED, "$.prices_include_tax: "),
        (
            one(True, taxes=[*taxes(VAT="1.00"), *taxes(VAT="2.00")]),
            errors.FIELD_MALFORMED,
            "$.items[0].taxes: a code stands twice",
        ),
        (
            one(True, shipping_taxes=[*taxes(A="1.00"), *taxes(B="1.00"), *taxes(A="1.00")]),
            errors.FIELD_MALFORMED,
            "$.items[0].shipping_taxes: a code stands twice",
        ),
        (one(True, taxes=taxes(VAT="-1.00")), errors.FIELD_MALFORMED, "$.items[0].taxes[0].amount: "),
        (one(True, taxes=taxes(VAT="1.001")), errors.FIELD_MALFORMED, "$.items[0].taxes[0].amount: "),
        (
            one(True, taxes=[*taxes(A="1.00"), {"code": "", "amount": "1.00"}]),
            errors.FIELD_MALFORMED,
            "Expected `str` of length >= 1",
        ),
        (
            one(True, taxes=[{"code": "A" * 33, "amount": "1.00"}]),
            errors.FIELD_MALFORMED,
            "Expected `str` of",
        ),
        (
            one(True, taxes=taxes(**{f"T{n}": "1.00" for n in range(21)})),
            errors.FIELD_MALFORMED,
            "Expected `array` of length <= 20",
        ),
        (one(True) | {"prices_include_tax": "yes"}, errors.FIELD_MALFORMED, "Expected `bool`"),
        (
            one(True, taxes=taxes(VAT="1.00")) | {"total_amount": "20.00"},
            errors.TOTAL_MISMATCH,
            "$.total_amount: ",
        ),
        (
            one(False, taxes=taxes(VAT="1.00")) | {"total_amount": "21.00"},
            errors.TOTAL_MISMATCH,
            "$.total_amount: ",
        ),
        (one(False, taxes=taxes(A="10.00", B="10.01")), errors.TAX_TOO_LARGE, "$.items[0].taxes: "),
        (
            one(False, shipping_amount="1.00", shipping_taxes=taxes(VAT="1.01")),
            errors.TAX_TOO_LARGE,
            "$.items[0].shipping_taxes: ",
        ),
        (one(False, shipping_taxes=taxes(VAT="0.01")), errors.TAX_TOO_LARGE, "$.items[0].shipping_taxes: "),
    ],
)
def test_refused(data: Data, code: str, where: str) -> None:
    reason, detail = refused(data)
    assert (reason, detail[: len(where)]) == (code, where)
    checkout = {name: value for name, value in data.items() if name != "order_id"}
    assert refused(checkout | {"checkout_id": CHECKOUT}, "checkout.completed")[0] == code


def test_tax_in_the_price_is_at_most_what_the_discount_leaves() -> None:
    """1.00 of discount on 10.00 and 30.00: 0.25 and 0.75."""
    lines = [
        line(2, ANNA, 1, "30.00", taxes=taxes(VAT="29.25")),
        line(1, ANNA, 1, "10.00", taxes=taxes(VAT="9.75")),
    ]
    event("order.created", created(*lines, discount="1.00", prices_include_tax=True))
    lines[1]["taxes"] = taxes(VAT="9.76")
    code, detail = refused(created(*lines, discount="1.00", prices_include_tax=True))
    assert (code, detail[:17]) == (errors.TAX_TOO_LARGE, "$.items[1].taxes:")


def test_tax_on_top_may_be_above_the_price() -> None:
    assert built(line(1, ANNA, 1, "0.01", taxes=taxes(DUTY="5.00"))).order.created is not None


@pytest.mark.parametrize("name", ["taxes", "shipping_taxes"])
def test_an_empty_list_asks_for_nothing(name: str) -> None:
    empty: Data = {name: []}
    fact = event("order.created", created(line(1, **empty))).fact
    assert isinstance(fact, Created)
    assert fact.prices_include_tax is None


@pytest.mark.parametrize(
    "change",
    [
        {"prices_include_tax": True},
        {"items": [line(1, taxes=[])]},
        {"items": [line(1, shipping_taxes=[])]},
    ],
)
def test_tax_is_content(change: Data) -> None:
    """An absent field equals only an absent one."""
    builder = OrderBuilder()
    builder.create(line(1))
    known = created(line(1))
    assert builder.send("order.created", **known).refused is None
    conflict = builder.send("order.created", **known | change).refused
    assert conflict is not None
    assert conflict[0] == errors.KEY_CONFLICT


@pytest.mark.parametrize(
    "again",
    [
        taxes(VAT="2.00", CITY="0.50"),
        taxes(CITY="0.50", VAT="2.00"),
        taxes(VAT="2.50"),
    ],
)
def test_an_order_with_the_same_total_and_other_taxes_is_a_conflict(again: list[Data]) -> None:
    builder = built()
    data = created({**TWO[0], "taxes": again}, TWO[1], prices_include_tax=False)
    conflict = builder.send("order.created", **data).refused
    assert (conflict is None) == (again == TWO[0]["taxes"])


def test_a_checkout_hands_its_taxes_on() -> None:
    data = created(*TWO, prices_include_tax=False)
    checkout = {name: value for name, value in data.items() if name != "order_id"}
    placed = effects.order_placed(event("checkout.completed", checkout | {"checkout_id": CHECKOUT}))
    sent = json.loads(effects.encode_data(placed))
    assert sent["prices_include_tax"] is False
    assert [each.get("taxes") for each in sent["items"]] == [each.get("taxes") for each in TWO]
    assert [each.get("shipping_taxes") for each in sent["items"]] == [
        each.get("shipping_taxes") for each in TWO
    ]


@pytest.mark.parametrize(("codes", "fits"), [(10, True), (12, False)])
@pytest.mark.parametrize("size", [1 << 20, 24 << 20])
def test_an_order_with_more_taxes_than_one_may_begin_with(size: int, codes: int, fits: bool) -> None:
    """The same for the auditor: 1,000 lines with as many taxes of the longest codes, and 52 lines."""
    bounds, lines = limits.limits_of(size), 1000 if size > 1 << 20 else 52
    many = [{"code": f"{n:02d}" + "\N{EURO SIGN}" * 30, "amount": "0.01"} for n in range(codes)]
    data = created(
        *(line(n, taxes=many, shipping_amount="1.00") for n in range(lines)), prices_include_tax=False
    )
    headers, value = record("order.created", data)
    fact = events.decode("order.created", headers, value).fact
    assert isinstance(fact, Created)
    parsed = reference.parse("order.created", ORDER.encode(), value, headers)
    assert isinstance(parsed, reference.Fact)
    assert reference.Room(size).begins(parsed) is fits
    assert limits.is_too_large(fact, bounds) is not fits


# -- shares --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("amounts", "quantity", "shares"),
    [
        ([200], 3, [67, 67, 66]),
        ([1, 1, 1], 3, [3, 0, 0]),  # of each code by itself
        ([2, 7], 3, [4, 3, 2]),
        ([0], 2, [0, 0]),
        ([], 2, [0, 0]),
    ],
)
def test_units_share_each_code_by_itself(amounts: list[int], quantity: int, shares: list[int]) -> None:
    (item,) = built(line(1, ANNA, quantity)).order.created.items  # type: ignore[union-attr]
    item.taxes = [(str(n), amount) for n, amount in enumerate(amounts)]
    tax = LineTax(item, True)
    assert [tax.of_first(n + 1) - tax.of_first(n) for n in range(quantity)] == shares
    assert tax.taxed() == sum(share > 0 for share in shares)


# -- what is due, what is told -------------------------------------------------------------------------------


@pytest.mark.parametrize(("on_top", "due"), [(True, "67.80"), (False, "65.00")])
def test_what_is_due_includes_the_tax_on_top(on_top: bool, due: str) -> None:
    builder = built(on_top=on_top)
    cents = int(due.replace(".", ""))
    builder.pay(f"{(cents - 1) / 100:.2f}")
    assert builder.status == "pending"
    builder.pay("0.01", n=2)
    assert builder.status == "confirmed"
    assert builder.published("payment.initiate")[0]["amount"] == due


@pytest.mark.parametrize(
    ("on_top", "totals"), [(True, ("34.50", "33.30", "23.68")), (False, ("32.00", "33.00", "22.00"))]
)
def test_suborders_tell_the_tax_of_what_is_live(on_top: bool, totals: tuple[str, str, str]) -> None:
    builder = built(on_top=on_top)
    anna, boris = builder.published("suborder.created")
    assert [(each["tax_amount"], each["total_amount"]) for each in (anna, boris)] == [
        ("2.50", totals[0]),
        ("0.30", totals[1]),
    ]
    per_item = [(i["tax_amount"], i["shipping_tax_amount"]) for each in (anna, boris) for i in each["items"]]
    assert per_item == [("2.50", "0.00"), ("0.00", "0.30")]
    builder.stock("rejected", ANNA, items={1: 1})
    builder.stock("rejected", BORIS)
    anna, boris = builder.published("suborder.updated")
    assert (anna["tax_amount"], anna["total_amount"]) == ("1.68", totals[2])  # twice 0.67 and 0.17
    assert anna["items"][0]["tax_amount"] == "1.68"
    assert (boris["tax_amount"], boris["total_amount"]) == ("0.00", "0.00")
    assert (boris["items"][0]["tax_amount"], boris["items"][0]["shipping_tax_amount"]) == ("0.00", "0.00")


def test_a_tax_that_changes_alone_is_told() -> None:
    """Of two lines of one price one unit is gone, and then the other one instead: a parcel had the first."""
    builder = built(line(1, taxes=taxes(VAT="1.00")), line(2, taxes=taxes(VAT="2.00")))
    builder.stock("rejected", ANNA, items={1: 1}, hour=1)
    builder.stock("released", ANNA, items={2: 1}, hour=2)
    builder.scan("in_transit", 1, 3, items={1: 1})
    notices = builder.published("suborder.updated")
    assert [each["tax_amount"] for each in notices] == ["2.00", "0.00", "1.00"]


def test_an_order_without_a_tax_tells_none() -> None:
    for lines in ([line(1, ANNA, 2)], [line(1, ANNA, 2, taxes=[], shipping_taxes=[])]):
        builder = built(*lines)
        builder.pay("20.00")
        builder.give_back("processed", quantity=1)
        builder.stock("rejected", items={1: 1})
        builder.settle()
        assert builder.published("refund.request")
        assert all("tax" not in json.dumps(msgspec.to_builtins(each.data)) for each in builder.derived)


def test_an_order_with_a_tax_of_nothing_tells_it() -> None:
    builder = built(line(1, taxes=taxes(EXEMPT="0")), line(2, BORIS))
    assert [each["tax_amount"] for each in builder.published("suborder.created")] == ["0.00", "0.00"]


# -- refunds -------------------------------------------------------------------------------------------------


def refunds(builder: OrderBuilder) -> list[tuple[str, str, str]]:
    """(cause, amount, tax) of those that are asked for; decided and asked for alike."""
    asked = builder.settle().published("refund.request")
    assert [each["tax_amount"].replace(".", "").lstrip("0") or "0" for each in asked] == [
        str(decision.tax) for decision in builder.order.decisions
    ]
    return [(each["cause"], each["amount"], each["tax_amount"]) for each in asked]


@pytest.mark.parametrize(
    ("on_top", "amounts"), [(True, ("10.84", "33.30", "21.66")), (False, ("10.00", "33.00", "20.00"))]
)
def test_a_refund_has_the_tax_of_its_units(on_top: bool, amounts: tuple[str, str, str]) -> None:
    builder = built(on_top=on_top)
    builder.pay("67.80" if on_top else "65.00")
    builder.give_back("processed", 1, quantity=1)
    builder.stock("rejected", BORIS)
    builder.settle()
    builder.give_back("processed", 2, quantity=2)
    assert refunds(builder) == [
        ("return", amounts[0], "0.84"),  # 0.67 of the one and 0.17 of the other
        ("stock", amounts[1], "0.30"),
        ("return", amounts[2], "1.66"),
    ]


def test_a_refund_of_units_gone_has_the_highest_numbers() -> None:
    builder = built()
    builder.pay("67.80")
    builder.stock("rejected", ANNA, items={1: 1})
    assert refunds(builder) == [("stock", "10.82", "0.82")]  # 0.66 and 0.16


@pytest.mark.parametrize("on_top", [True, False])
def test_what_closed_refunds_tell_adds_up(on_top: bool) -> None:
    """Of 2.80 of tax, as much as the money that came is of the cost, rounded down over all of them."""
    builder = built(on_top=on_top)
    builder.stock("rejected", ANNA)
    builder.stock("rejected", BORIS)
    whole = 6780 if on_top else 6500
    parts = (1, 2000, 2000, whole - 4001, 500)
    for n, part in enumerate(parts):
        builder.pay(f"{part / 100:.2f}", n)
        builder.settle()
    paid = refunds(builder)
    assert [amount for _, amount, _ in paid] == [f"{part / 100:.2f}" for part in parts]
    sums = [280 * sum(parts[: n + 1]) // whole for n in range(4)]
    assert sums[-1] == 280
    expected = [sums[0], *(after - before for before, after in pairwise(sums)), 0]
    assert [int(tax.replace(".", "")) for _, _, tax in paid] == expected


def test_a_closed_refund_tells_nothing_of_what_was_paid_for() -> None:
    builder = built()
    builder.pay("67.80")
    builder.give_back("processed", 1, quantity=1)
    builder.settle()
    builder.stock("rejected", ANNA)
    builder.stock("rejected", BORIS)
    assert refunds(builder) == [
        ("return", "10.84", "0.84"),
        ("stock", "23.66", "1.66"),
        ("closed", "33.30", "0.30"),
    ]


def test_closed_refunds_never_tell_less_than_nothing() -> None:
    """The order was closed, then a unit left after all, came back and was paid for by itself."""
    builder = built(line(1, ANNA, 2, "10.00", taxes=taxes(VAT="4.00")))
    builder.pay("24.00")
    builder.stock("rejected", ANNA)
    builder.settle()
    builder.scan("in_transit", items={1: 1})
    builder.give_back("processed", quantity=1)
    builder.pay("12.00", 2)
    builder.settle()
    builder.pay("1.00", 3)
    assert all(int(tax.replace(".", "")) >= 0 for _, _, tax in refunds(builder))


@pytest.mark.parametrize("on_top", [True, False])
def test_a_return_of_units_worth_nothing_takes_those_worth_something(on_top: bool) -> None:
    """Six units of 1 with a discount of 4. On top a tax of 1 makes them worth 1, 0, 0, 0, 1, 1."""
    builder = OrderBuilder()
    lines = [line(1, ANNA, 6, "1", taxes=taxes(VAT="1")), line(2, BORIS, 1, "0")]
    builder.create(*lines, currency="JPY", discount="4", prices_include_tax=not on_top)
    goods = builder.now.lines[0]
    assert [goods.cost_of(n, n + 1) for n in range(6)] == [int(on_top), 0, 0, 0, 1, 1]
    assert goods.worthless == ((1, 4) if on_top else (0, 4))
    builder.pay("3" if on_top else "2", currency="JPY")
    for n in range(6):
        builder.give_back("processed", n, quantity=1)
    builder.settle()
    paid = [(each.units[0][1], each.amount, each.tax) for each in builder.order.decisions]
    assert paid == ([(0, 1, 1), (4, 1, 0), (5, 1, 0)] if on_top else [(4, 1, 0), (5, 1, 0)])


# -- rows, states --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_top", [True, False])
def test_rows_tell_the_tax_either_way(on_top: bool) -> None:
    order = built(on_top=on_top).order
    assert rows.order_row(ORDER, order).tax_amount == "2.80"
    assert [(each.tax_amount, each.shipping_tax_amount) for each in rows.item_rows(ORDER, order)] == [
        ("2.50", "0.00"),
        ("0.00", "0.30"),
    ]


def test_the_cache_has_totals_with_the_tax_on_top() -> None:
    summary = json.loads(rows.order_row_and_summary(ORDER, raw(ORDER), built().order)[1].value)
    assert summary["total_amount"] == "67.80"
    assert [each["total_amount"] for each in summary["suborders"]] == ["34.50", "33.30"]


def test_a_state_without_tax_has_its_defaults_at_the_ends() -> None:
    builder = OrderBuilder()
    builder.create(line(1), line(2, BORIS))
    elements = msgspec.msgpack.decode(codec.encode(builder.order))
    names = Order.__struct_fields__
    whole = elements[names.index("created")]
    assert whole[7:] == [None] * len(whole[7:])
    assert [item[8:10] for item in whole[6]] == [[None, None]] * 2
    assert [part[9] for part in elements[names.index("suborders")]] == [0, 0]


def test_a_decision_without_a_tax_asks_as_it_did() -> None:
    """One that an earlier version wrote for an order whose tax it didn't know."""
    builder = built()
    data: Data = {"order_id": ORDER, "n": 0, "amount": 100, "cause": "closed", "cause_id": ORDER}
    headers, value = record("refund.decided", data | {"units": [], "shipping": []})
    builder.take(events.decode("orders.decisions", headers, value))
    assert builder.order.decisions[0].tax is None
    (asked,) = builder.published("refund.request")
    assert "tax_amount" not in asked
