"""Money: exact integers of minor units, and how an amount is split."""

from __future__ import annotations

import itertools

import pytest

from contracts import money
from contracts.errors import FIELD_MALFORMED, Refused


@pytest.mark.parametrize(
    ("text", "digits", "amount"),
    [
        ("0", 2, 0),
        ("0.00", 2, 0),
        ("12.50", 2, 1250),
        ("12.5", 2, 1250),
        ("12", 2, 1200),
        ("12", 0, 12),
        ("1.234", 3, 1234),
        ("1.2", 3, 1200),
        ("1.2345", 4, 12345),
        ("10000000000000.00", 2, 10**15),
        ("1000000000000000", 0, 10**15),
        ("1000000000000.000", 3, 10**15),
    ],
)
def test_amounts(text: str, digits: int, amount: int) -> None:
    assert money.parse(text, digits) == amount


@pytest.mark.parametrize(
    ("text", "digits"),
    [
        pytest.param("-1.00", 2, id="negative"),
        pytest.param("+1.00", 2, id="plus sign"),
        pytest.param("1.000", 2, id="three decimals in EUR"),
        pytest.param("1.0", 0, id="one decimal in JPY"),
        pytest.param("1.0000", 3, id="four decimals in BHD"),
        pytest.param("01.00", 2, id="leading zero"),
        pytest.param("00", 2, id="two zeros"),
        pytest.param("1.", 2, id="point without decimals"),
        pytest.param(".5", 2, id="decimals without a whole"),
        pytest.param("1,00", 2, id="comma"),
        pytest.param("1e2", 2, id="exponent"),
        pytest.param("1_0", 2, id="underscore"),
        pytest.param("", 2, id="empty"),
        pytest.param(" 1", 2, id="space before"),
        pytest.param("1\n", 2, id="newline behind"),
        pytest.param("１", 2, id="a digit of another script"),
        pytest.param("NaN", 2, id="NaN"),
        pytest.param("10000000000000.01", 2, id="a cent above 10^15"),
        pytest.param("1000000000000001", 0, id="a yen above 10^15"),
        pytest.param("9" * 1000, 2, id="a thousand digits"),
        pytest.param("1." + "0" * 998, 2, id="a thousand decimals"),
    ],
)
def test_not_amounts(text: str, digits: int) -> None:
    assert money.parse(text, digits) is None
    with pytest.raises(Refused) as refused:
        money.parse_field(text, digits, "$.items[3].price")
    assert refused.value.code == FIELD_MALFORMED
    assert refused.value.detail.startswith("$.items[3].price: ")


@pytest.mark.parametrize(
    ("amount", "digits", "text"),
    [
        (0, 2, "0.00"),
        (5, 2, "0.05"),
        (1250, 2, "12.50"),
        (7, 0, "7"),
        (1, 3, "0.001"),
        (12345, 4, "1.2345"),
        (10**15, 2, "10000000000000.00"),
    ],
)
def test_text(amount: int, digits: int, text: str) -> None:
    assert money.text(amount, digits) == text
    assert money.parse(text, digits) == amount


@pytest.mark.parametrize(("currency", "digits"), [("JPY", 0), ("EUR", 2), ("BRL", 2), ("BHD", 3), ("CLF", 4)])
def test_minor_digits(currency: str, digits: int) -> None:
    assert money.DIGITS[currency] == digits


@pytest.mark.parametrize("code", ["XAU", "XXX", "XTS", "ECU", "eur", ""])
def test_what_is_no_currency(code: str) -> None:
    assert code not in money.DIGITS


@pytest.mark.parametrize(
    ("amount", "weights", "shares"),
    [
        pytest.param(0, [3, 5], [0, 0], id="nothing"),
        pytest.param(10, [10], [10], id="one line takes all"),
        pytest.param(10, [1, 1], [5, 5], id="even"),
        pytest.param(1, [1, 1, 1], [1, 0, 0], id="tie goes to the first"),
        pytest.param(2, [1, 1, 1], [1, 1, 0], id="ties go to the first ones"),
        pytest.param(100, [1, 1, 1], [34, 33, 33], id="a hundred by three"),
        pytest.param(5, [1, 2, 3], [1, 2, 2], id="largest remainder: 0.83, 1.67, 2.50"),
        pytest.param(1, [1, 3], [0, 1], id="the larger remainder wins over the earlier"),
        pytest.param(3, [0, 3, 0], [0, 3, 0], id="a line that costs nothing has no share"),
        pytest.param(0, [0, 0], [0, 0], id="all lines cost nothing"),
        pytest.param(
            10**15 - 1, [10**15, 10**15], [5 * 10**14, 5 * 10**14 - 1], id="beyond what a float holds"
        ),
    ],
)
def test_allocation(amount: int, weights: list[int], shares: list[int]) -> None:
    assert money.allocate(amount, weights) == shares
    assert sum(shares) == amount


@pytest.mark.parametrize(
    ("share", "quantity", "by_unit"),
    [(0, 3, [0, 0, 0]), (1, 3, [1, 0, 0]), (5, 3, [2, 2, 1]), (6, 3, [2, 2, 2]), (2, 1, [2])],
)
def test_a_lines_share_is_split_the_same_way(share: int, quantity: int, by_unit: list[int]) -> None:
    firsts = [money.share_of_first(share, quantity, first) for first in range(quantity + 1)]
    assert [after - before for before, after in itertools.pairwise(firsts)] == by_unit
    assert by_unit == money.allocate(share, [7] * quantity)
