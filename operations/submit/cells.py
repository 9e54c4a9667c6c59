"""Cells of somebody's file as amounts, numbers, times and ids, as a mapping says (docs/mapping.md).

What has more than one reading is refused. Pure.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final, NamedTuple
from zoneinfo import ZoneInfo

from contracts import ids

_LONGEST: Final = 60
"""Characters of a number or a time; a longer cell is neither."""
_SHOWN: Final = re.compile(r"[0-9.,:/+\-' \u00a0\u202f\u2019TZ]{1,40}", re.ASCII)
"""What an error may repeat of a cell: text without words is no free text."""

BLANKS: Final = " \t\r\n\u00a0\u202f\ufeff"
"""They say nothing around a cell."""


class Unclear(ValueError):
    """A cell that can't be read, or in more than one way. The message holds no words of the cell."""


class Numbers(NamedTuple):
    """How numbers are written. `decimal` None: a point, and three digits behind it are refused."""

    decimal: str | None = None
    thousands: str | None = None
    signs: tuple[str, ...] = ()
    """Currency signs that an amount may have before or behind it."""


def shown(text: str) -> str:
    """What an error repeats of a cell: a number or a time in quotes, of anything else nothing."""
    return repr(text) if _SHOWN.fullmatch(text) else "this cell"


def number(text: str, how: Numbers) -> str:
    """A number in the form of the events: digits, a point, digits. Raises Unclear."""
    given = text.strip(BLANKS)
    bare = _without_sign(given, how.signs)
    thousands = {" ": "[ \u00a0\u202f]", "'": "['\u2019]"}.get(
        how.thousands or "", re.escape(how.thousands or "")
    )
    grouped = rf"|[0-9]{{1,3}}(?:{thousands}[0-9]{{3}})+" if how.thousands else ""
    decimal = how.decimal or "."
    match = re.fullmatch(rf"([0-9]+{grouped})(?:{re.escape(decimal)}([0-9]+))?", bare[:_LONGEST])
    if match is None or len(bare) > _LONGEST:
        raise Unclear(f"{shown(given)} is no number: {_why_not(bare, how)}")
    if how.decimal is None and how.thousands is None and re.fullmatch(r"[1-9][0-9]{0,2}\.[0-9]{3}", bare):
        raise Unclear(f"{shown(given)}: a decimal point or a thousands separator? say decimal or thousands")
    whole = re.sub(r"[^0-9]", "", match[1]).lstrip("0") or "0"
    return whole if match[2] is None else f"{whole}.{match[2]}"


def amount(text: str, how: Numbers, digits: int) -> int:
    """An amount of a currency with so many decimals, in its minor unit. Zeros beyond them say nothing.

    Raises Unclear.
    """
    exact = Decimal(number(text, how)).scaleb(digits)
    if exact != exact.to_integral_value():
        raise Unclear(f"{shown(text.strip(BLANKS))} has more than {digits} decimals, which the currency has")
    if exact > 10**15:
        raise Unclear("above 10^15 of the currency's minor unit")
    return int(exact)


def whole(text: str, how: Numbers) -> int:
    """A whole number; zeros behind its decimal mark say nothing. Raises Unclear."""
    exact = Decimal(number(text, how))
    if exact != exact.to_integral_value():
        raise Unclear(f"{shown(text.strip(BLANKS))} is no whole number")
    return int(exact)


def _without_sign(text: str, signs: Sequence[str]) -> str:
    for sign in sorted(signs, key=len, reverse=True):
        if text.startswith(sign):
            return text[len(sign) :].strip(BLANKS)
        if text.endswith(sign):
            return text[: -len(sign)].strip(BLANKS)
    return text


def _why_not(text: str, how: Numbers) -> str:
    if len(text) > _LONGEST:
        return "too long"
    if text.startswith("="):
        return "a spreadsheet's formula; export its value"
    if text[:1] in ("-", "\u2212", "("):
        return "it is negative"
    if re.fullmatch(r"[0-9.,]+[eE][+-]?[0-9]+", text):
        return "a spreadsheet shortened it to powers of ten; export all its digits"
    if re.search(r"[^0-9.,' \u00a0\u202f\u2019]", text):
        return "there are letters or signs in it; currency says which an amount may have"
    marks = f"decimal is {how.decimal or '.'!r}" + (f", thousands {how.thousands!r}" if how.thousands else "")
    return f"{marks}; the mapping's [numbers] says how numbers are written"


# -- times ---------------------------------------------------------------------------------------------------

SERIALS: Final = {"serial-1900": datetime(1899, 12, 30), "serial-1904": datetime(1904, 1, 1)}  # noqa: DTZ001
"""Spreadsheets' days as numbers -> their day 0. That of 1900 is off by one up to 28 February 1900."""
RFC3339: Final = "rfc3339"
DIRECTIVES: Final = "YymdHIMSfpbBaAz"
"""Of Python's strptime, those that a format may have; names of months and days are English."""


class Times(NamedTuple):
    """How times are written. `zone`: of times without an offset; `fold`: which of the two, when an hour
    comes twice: 0 the earlier, 1 the later, None: it is refused."""

    format: str = RFC3339
    zone: ZoneInfo | None = None
    fold: int | None = None


def moment(text: str, how: Times, numbers: Numbers) -> str:
    """A time as RFC 3339 in UTC. Serial numbers are rounded to the second. Raises Unclear."""
    given = text.strip(BLANKS)
    if len(given) > _LONGEST or not given.isascii():
        raise Unclear(f"{shown(given)} is no time")
    if how.format == RFC3339:
        return given  # the pipeline's own form, judged as it judges every event
    try:
        read = _serial(given, how.format, numbers) if how.format in SERIALS else _parsed(given, how.format)
        return _zoned(read, how, given).astimezone(UTC).isoformat().replace("+00:00", "Z")
    except OverflowError:
        raise Unclear(f"{shown(given)} is outside the years 1 to 9999") from None


def _parsed(text: str, format: str) -> datetime:
    try:
        return datetime.strptime(text, format)  # noqa: DTZ007
    except ValueError:
        raise Unclear(f"{shown(text)} isn't of the format {format!r}") from None


def _serial(text: str, format: str, numbers: Numbers) -> datetime:
    # The decimal mark of a spreadsheet's number, but no separators: nobody writes these in a serial number.
    days = Decimal(number(text, Numbers(numbers.decimal or ".")))
    base = SERIALS[format]
    if format == "serial-1900" and days < 61:
        if days >= 60 or days < 1:
            raise Unclear(f"{shown(text)}: the system of 1900 has no such day")
        base += timedelta(days=1)
    if days > 2_958_466:
        raise Unclear(f"{shown(text)} is outside the years 1 to 9999")
    return base + timedelta(seconds=round(days * 86_400))


def _zoned(read: datetime, how: Times, text: str) -> datetime:
    if read.tzinfo is not None:
        return read
    assert how.zone is not None, "a mapping without a zone has formats with an offset"
    earlier, later = (read.replace(tzinfo=how.zone, fold=fold) for fold in (0, 1))
    if earlier.utcoffset() == later.utcoffset():
        return earlier
    back = earlier.astimezone(UTC).astimezone(how.zone)
    if back.replace(tzinfo=None) != read:
        raise Unclear(f"{shown(text)} doesn't exist in {how.zone.key}: clocks went forward")
    if how.fold is None:
        raise Unclear(f"{shown(text)} comes twice in {how.zone.key}: clocks went back; say twice")
    return later if how.fold else earlier


# -- ids -----------------------------------------------------------------------------------------------------


def made_id(namespace: bytes, kind: str, values: Sequence[str]) -> str:
    """The id of a thing that has none: uuid5 of the JSON list of its kind and its values, in a namespace
    (16 bytes). The same values are the same thing."""
    return ids.uuid5_text(namespace, json.dumps([kind, *values], ensure_ascii=False, separators=(",", ":")))
