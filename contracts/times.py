"""Times: microseconds since 1970-01-01T00:00:00Z inside, RFC 3339 outside."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final

import compiled
from contracts.errors import FIELD_MALFORMED, Refused

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RFC3339: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt]((?:[01]\d|2[0-3]):[0-5]\d:)([0-5]\d(?:\.\d+)?|60(?:\.\d+)?)([Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)
_LEAP_SECOND: Final = "60"
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_LONGEST: Final = 1_000
"""Characters, as of any text."""
_SECONDS: Final = tuple(f"{second:02}" for second in range(60))  # format specifiers are slow
_SECOND: Final = {text: second * 1_000_000 for second, text in enumerate(_SECONDS)}
_EARLIEST: Final = -62135596800_000_000  # 0001-01-01T00:00:00Z
_LATEST: Final = 253402300799_999_999  # 9999-12-31T23:59:59.999999Z


def parse(value: str, path: str) -> int:
    """RFC 3339 with offset -> microseconds, further digits cut off; a leap second (:60, of any minute) is
    the last one of its minute.

    Raises Refused naming `path`.
    """
    # As nearly everybody writes it: in UTC, whole seconds or up to microseconds.
    # Its minute is nearly always that of an event before.
    size = len(value)
    if 20 <= size <= 27 and value[16] == ":" and value[-1] == "Z" and value.isascii():
        second, fraction = value[17:19], value[20:-1]
        if second in _SECOND and (size == 20 or (value[19] == "." and fraction.isdigit())):
            return (
                _minute(value[:16], path) + _SECOND[second] + (int(fraction.ljust(6, "0")) if fraction else 0)
            )
    return _parse(value, path)


@lru_cache(maxsize=4096)
def _minute(value: str, path: str) -> int:
    return _parse(f"{value}:00Z", path)


def _parse(value: str, path: str) -> int:
    match = _RFC3339.fullmatch(value) if len(value) <= _LONGEST else None
    if match is None:
        raise Refused(FIELD_MALFORMED, f"{path}: not an RFC 3339 time with offset")
    day, minute, second, offset = match.groups()
    if second.startswith(_LEAP_SECOND):
        second = "59.999999"
    try:
        since = datetime.fromisoformat(f"{day}T{minute}{second}{offset.upper()}") - _EPOCH
    except ValueError:
        raise Refused(FIELD_MALFORMED, f"{path}: no such time") from None
    micros = (since.days * 86400 + since.seconds) * 1_000_000 + since.microseconds
    if not _EARLIEST <= micros <= _LATEST:
        raise Refused(FIELD_MALFORMED, f"{path}: outside the years 1 to 9999 in UTC")
    return micros


def parse_day(value: str, path: str) -> int:
    """Parse a time as parse() does; YYYY-MM-DD is midnight UTC of that day."""
    return parse(f"{value}T00:00:00Z", path) if _DATE.fullmatch(value) else parse(value, path)


def _text(micros: int) -> str:
    minute, rest = divmod(micros, 60_000_000)
    second, fraction = divmod(rest, 1_000_000)
    if fraction:
        return f"{_minute_text(minute)}{_SECONDS[second]}.{str(fraction + 1_000_000)[1:]}+00:00"
    return f"{_minute_text(minute)}{_SECONDS[second]}+00:00"


@lru_cache(maxsize=4096)  # events of one time come together
def _minute_text(minute: int) -> str:
    return (_EPOCH + timedelta(minutes=minute)).isoformat()[:17]


_to_text: Final[Callable[[int], str]] = _text if compiled.native is None else compiled.native.time_text


def text(micros: int) -> str:
    """Microseconds -> RFC 3339 in UTC: 2026-01-02T03:04:05.000006+00:00, without a fraction of 0. Raises
    OverflowError outside the years 1 to 9999.
    """
    return _to_text(micros)
