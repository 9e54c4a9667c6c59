"""Money is an integer of the currency's minor unit (cents, yen, fils). Exact, always."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import compiled
from contracts.errors import FIELD_MALFORMED, Refused

LIMIT: Final = 10**15
"""The most minor units of one amount."""

_ZERO_DIGITS = "BIF CLP DJF GNF ISK JPY KMF KRW PYG RWF UGX UYI VND VUV XAF XOF XPF"
_THREE_DIGITS = "BHD IQD JOD KWD LYD OMR TND"
_FOUR_DIGITS = "CLF UYW"
_TWO_DIGITS = (
    "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BMD BND BOB BOV BRL BSD BTN BWP BYN BZD CAD CDF"
    " CHE CHF CHW CNY COP COU CRC CUP CVE CZK DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GTQ GYD"
    " HKD HNL HTG HUF IDR ILS INR IRR JMD KES KGS KHR KPW KYD KZT LAK LBP LKR LRD LSL MAD MDL MGA MKD MMK MNT"
    " MOP MRU MUR MVR MWK MXN MXV MYR MZN NAD NGN NIO NOK NPR NZD PAB PEN PGK PHP PKR PLN QAR RON RSD RUB SAR"
    " SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB TJS TMT TOP TRY TTD TWD TZS UAH USD USN UYU"
    " UZS VED VES WST XAD XCD XCG YER ZAR ZMW ZWG "
)
DIGITS: Final[dict[str, int]] = {
    **dict.fromkeys(_ZERO_DIGITS.split(), 0),
    **dict.fromkeys(_TWO_DIGITS.split(), 2),
    **dict.fromkeys(_THREE_DIGITS.split(), 3),
    **dict.fromkeys(_FOUR_DIGITS.split(), 4),
}
"""Currency -> digits of its minor unit (ISO 4217, list one)."""

_LONGEST: Final = 40
_NATIVE_MOST: Final = 10**18
"""Up to it an amount fits into 64 bits: sums of many amounts may be above."""


def parse(text: str, digits: int) -> int | None:
    """Amount in major units as text, (0|[1-9][0-9]*)([.][0-9]+)?, -> minor units; None if the text is no
    amount with at most `digits` decimals, or above LIMIT.
    """
    if len(text) >= _LONGEST or not text.isascii():
        return None
    whole, point, fraction = text.partition(".")
    if not whole.isdigit() or (whole[0] == "0" and whole != "0"):
        return None
    if point and (len(fraction) > digits or not fraction.isdigit()):
        return None
    amount = int(whole + fraction.ljust(digits, "0"))
    return amount if amount <= LIMIT else None


def parse_field(text: str, digits: int, path: str) -> int:
    """Parse an amount as parse() does, but raise Refused naming `path` instead of returning None."""
    amount = parse(text, digits)
    if amount is None:
        raise Refused(
            FIELD_MALFORMED,
            f"{path}: not an amount with at most {digits} decimals and at most 10^15 minor units",
        )
    return amount


def _text(amount: int, digits: int) -> str:
    if digits == 0:
        return str(amount)
    padded = str(amount).rjust(digits + 1, "0")
    return f"{padded[:-digits]}.{padded[-digits:]}"


_to_text: Final[Callable[[int, int], str]] = _text if compiled.native is None else compiled.native.money_text


def text(amount: int, digits: int) -> str:
    """Minor units -> major units as text, with all `digits` decimals: text(1250, 2) == "12.50"."""
    return _to_text(amount, digits) if 0 <= amount <= _NATIVE_MOST else _text(amount, digits)


def allocate(amount: int, weights: Sequence[int]) -> list[int]:
    """Split `amount` by `weights`, to the unit: largest remainder, ties to the earlier weight.

    The shares add up to `amount` exactly. With amount <= sum(weights) no share is above its weight.
    All weights 0: all shares 0. A discount is shared like this (docs/rules.md, Money).
    """
    total = sum(weights)
    if amount == 0 or total == 0:
        return [0] * len(weights)
    shares = [amount * weight // total for weight in weights]
    remainder = amount - sum(shares)
    if remainder:
        # Python's sort is stable: of equal remainders the earlier weight comes first.
        by_remainder = sorted(range(len(weights)), key=lambda i: -(amount * weights[i] % total))
        for i in by_remainder[:remainder]:
            shares[i] += 1
    return shares


def share_of_first(share: int, quantity: int, first: int) -> int:
    """Return what the first `first` of `quantity` units have of a line's discount `share` (largest remainder,
    ties to low numbers)."""
    base, more = divmod(share, quantity)
    return base * first + min(more, first)
