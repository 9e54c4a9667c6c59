"""JSON as the contract has it: UTF-8 all through, not deeper than DEEPEST, and
nothing in it that is no JSON.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, Struct

from contracts import errors
from contracts.errors import Refused

DEEPEST: Final = 500
"""So many arrays and objects lie in each other at most.
JSON's parsers stop somewhere, each elsewhere: what all of them read is a rule.
"""
SHALLOW: Final = 2 * DEEPEST
"""A value of no more bytes can't be deeper."""

T = TypeVar("T")
Payload = Any
"""bytes or Raw. msgspec's stubs call Raw bytes, which it isn't, and compiled code would hold us to that."""

_TOO_DEEP: Final = f"arrays and objects more than {DEEPEST} deep"
_LONGEST_DETAIL: Final = 200
_BESIDE_STRUCTURE: Final = bytes(set(range(256)) - set(b'[]{}"'))
_skip: Final = msgspec.json.Decoder(Raw).decode


def refuse_other_bytes(value: bytes) -> None:
    """Raise Refused if `value` isn't UTF-8 throughout: decoders look only at the text of fields that they
    know."""
    try:
        value.decode()
    except UnicodeDecodeError:
        raise Refused(errors.NOT_JSON, "not UTF-8") from None


def refuse_deep(value: bytes, shallow: int = 0) -> None:
    """Raise Refused if the JSON `value` is nested deeper than DEEPEST.

    `shallow`: how many of its objects are side by side in a list.
    """
    if (
        len(value) > SHALLOW
        and _count(value, b"[") + _count(value, b"{") - shallow >= DEEPEST
        and _depth(value) > DEEPEST
    ):
        raise Refused(errors.NOT_JSON, _TOO_DEEP)


def _count(value: bytes, char: bytes) -> int:
    return len(value) - len(value.replace(char, b""))  # a third of what bytes.count takes


def _depth(value: bytes) -> int:
    """Return how deep the arrays and objects of the JSON `value` are nested, at most DEEPEST + 1."""
    if b"\\" in value:
        value = re.sub(rb"\\.", b"", value, flags=re.DOTALL)
    # Between quotes only brackets are left, so two quotes side by side may go: what lies
    # between others stays there.
    structure = value.translate(None, _BESIDE_STRUCTURE).replace(b'""', b"")
    depth = deepest = 0
    for char in b"".join(structure.split(b'"')[::2]):
        if char in b"[{":
            depth += 1
            if depth > deepest:
                deepest = depth
                if deepest > DEEPEST:
                    break
        else:
            depth -= 1
    return deepest


def refuse_no_json(value: bytes) -> None:
    """Raise Refused if any part of `value` isn't JSON: a decoder stops at the
    first error of a known field.
    """
    try:
        _skip(value)
    except msgspec.DecodeError as error:
        raise Refused(errors.NOT_JSON, str(error)) from None
    except RecursionError:
        raise Refused(errors.NOT_JSON, _TOO_DEEP) from None
    refuse_deep(value)


def parse_json(decode: Callable[[Any], Any], value: Payload, code: str) -> Any:
    """`value` by a decoder of msgspec.
    Raises Refused with `code` where a member is wrong, FIELD_MISSING, NOT_JSON. Pure.
    """
    try:
        return decode(value)
    except msgspec.ValidationError as error:
        what = str(error)
        if what.startswith("Invalid enum value") and len(what) > _LONGEST_DETAIL:  # it repeats the value
            what = "Invalid enum value of many characters" + what[what.rindex(" - at ") :]
        raise Refused(errors.FIELD_MISSING if "missing required field" in what else code, what) from None
    except msgspec.DecodeError as error:
        raise Refused(errors.NOT_JSON, str(error)) from None
    except RecursionError:
        raise Refused(errors.NOT_JSON, _TOO_DEEP) from None


def read_foreign(decode: Callable[[Any], T], value: bytes | str | None) -> T | None:
    """What a decoder of msgspec reads, or None where that isn't what it is for: anybody may write to
    a topic or a cache. Pure.
    """
    try:
        return None if value is None else decode(value)
    except (msgspec.MsgspecError, ValueError, RecursionError):  # ValueError: no UTF-8
        return None


def refuse_nul(value: Payload, data: Struct) -> None:
    """Raises Refused if a text of `data`, which was read from `value`, holds U+0000:
    PostgreSQL's text can't. Pure.

    JSON can only write it as an escape.
    """
    if b"\\u0000" in bytes(value):
        _look_for_nul(data, "$")


def _look_for_nul(data: object, path: str) -> None:
    if isinstance(data, str) and "\x00" in data:
        raise Refused(errors.FIELD_MALFORMED, f"{path}: holds the character U+0000")
    if isinstance(data, Struct):
        for name in data.__struct_fields__:
            _look_for_nul(getattr(data, name), f"{path}.{name}")
    elif isinstance(data, list):
        for i, element in enumerate(data):
            _look_for_nul(element, f"{path}[{i}]")
