"""Dead letters for a page: groups of them, and the place in a value that a reason is about. All pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from api.binding import path_of
from contracts.errors import Refused
from operations.dead_letters import DeadLetter

LINES: Final = 2_000
"""Lines of a value that are shown."""
HEX_BYTES: Final = 4_096
"""Bytes that are shown as numbers."""
_ROW: Final = 16
_BYTE: Final = re.compile(r"\(byte (\d{1,9})\)")
"""How a parser tells in a detail where it stopped."""


class Group(NamedTuple):
    """Letters of one reason and topic in one hour (RFC 3339, to the hour)."""

    hour: str
    reason: str
    topic: str
    letters: int


def groups(letters: Iterable[DeadLetter]) -> list[Group]:
    """Letters by hour, reason and topic: the newest hour first, in it the most first."""
    counts = Counter((hour_of(each), each.reason, each.record.topic) for each in letters)
    all_of_them = [Group(*key, count) for key, count in counts.items()]
    all_of_them.sort(key=lambda each: (each.reason, each.topic))
    all_of_them.sort(key=lambda each: (each.hour, each.letters), reverse=True)
    return all_of_them


def hour_of(letter: DeadLetter) -> str:
    """The hour in which it was refused, as a page's address has it: 2026-03-10T12."""
    return letter.time[:13]


def next_hour(hour: str) -> str:
    """The hour after one; of what is none the same. Pure."""
    try:
        return f"{datetime.fromisoformat(hour + ':00') + timedelta(hours=1):%Y-%m-%dT%H}"
    except (ValueError, OverflowError):
        return hour


_MISSING: Final = re.compile(r"Object missing required field `(\w+)`")
"""msgspec's detail of a missing member, whose name isn't in the path."""


class Line(NamedTuple):
    """A line of a value. `marked`: what the reason is about."""

    text: str
    marked: bool = False


class Value(NamedTuple):
    """A letter's value. `lines`: as JSON, None if it is none; `left`: lines that aren't shown.
    `path`: what the reason is about; `at`: whether its place is there (of a missing member its parent's).
    """

    lines: list[Line] | None
    left: int
    path: str
    at: bool


def value_of(letter: DeadLetter) -> Value:
    """A letter's value with its reason's place."""
    path = path_of(Refused(letter.reason, letter.detail))
    missing = _MISSING.match(letter.detail)
    if missing is not None:
        path += f".{missing[1]}"
    try:
        document = json.loads(letter.value or b"")
    except (ValueError, RecursionError):
        return Value(None, 0, path, at=False)
    steps = _steps(path)
    # The path is of the event's data, beside which an event has its attributes.
    inside = isinstance(document, dict) and isinstance(document.get("data"), (dict, list)) and "$" in path
    place: tuple[str | int, ...] | None = _deepest(document, [*(["data"] if inside else []), *steps])
    if not place and not path.startswith("$"):
        place = None  # an attribute, which a header may have
    try:
        lines = list(_lines(document, (), place, ""))
    except RecursionError:
        return Value(None, 0, path, at=False)
    shown = lines[:LINES]
    return Value(shown, len(lines) - len(shown), path, at=any(line.marked for line in shown))


def _steps(path: str) -> list[str | int]:
    """$.items[0].price -> items, 0, price; ce_id -> id, as an event in one JSON object has it."""
    steps: list[str | int] = []
    for part in path.removeprefix("$").removeprefix("ce_").split("."):
        name, *indexes = part.split("[")
        if name:
            steps.append(name)
        for index in indexes:
            number = index.rstrip("]")
            steps.append(int(number) if number.isdecimal() and len(number) < 9 else number)
    return steps


def _deepest(document: Any, steps: list[str | int]) -> tuple[str | int, ...]:
    """The longest part of a path that is there; (): the document itself."""
    place: list[str | int] = []
    for step in steps:
        is_member = isinstance(document, dict) and step in document
        is_element = isinstance(document, list) and isinstance(step, int) and step < len(document)
        if not (is_member or is_element):
            break
        document = document[step]
        place.append(step)
    return tuple(place)


def _lines(
    value: Any, at: tuple[str | int, ...], place: tuple[str | int, ...] | None, name: str
) -> Iterator[Line]:
    pad, marked = "  " * len(at), at == place
    if isinstance(value, dict | list) and value:
        pairs: Iterable[tuple[str | int, Any]] = (
            value.items() if isinstance(value, dict) else enumerate(value)
        )
        yield Line(f"{pad}{name}{'{' if isinstance(value, dict) else '['}", marked)
        for key, member in pairs:
            label = f"{json.dumps(key, ensure_ascii=False)}: " if isinstance(value, dict) else ""
            yield from _lines(member, (*at, key), place, label)
        yield Line(f"{pad}{'}' if isinstance(value, dict) else ']'}")
    else:
        yield Line(f"{pad}{name}{json.dumps(value, ensure_ascii=False)}", marked)


def in_hex(value: bytes) -> list[str]:
    """The first HEX_BYTES of a value, 16 a line: where, as numbers, as ASCII."""
    lines = []
    for start in range(0, min(len(value), HEX_BYTES), _ROW):
        row = value[start : start + _ROW]
        plain = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"{start:08x}  {row.hex(' '):<47}  {plain}")
    return lines


def broken_row(letter: DeadLetter) -> int | None:
    """The line of `in_hex` where a value ceases to be JSON, by the letter's detail; None: it doesn't say."""
    match = _BYTE.search(letter.detail)
    return None if match is None else int(match[1]) // _ROW
