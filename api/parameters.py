"""Types of parameters that accept what the OpenAPI document says, where pydantic would accept more."""

from __future__ import annotations

import re
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Any, Final
from uuid import UUID

from annotated_types import Ge, Le
from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BeforeValidator

_UUID: Final = re.compile(
    r"[0-9A-Fa-f]{8}(-?)[0-9A-Fa-f]{4}\1[0-9A-Fa-f]{4}\1[0-9A-Fa-f]{4}\1[0-9A-Fa-f]{12}", re.ASCII
)
_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]{0,18})", re.ASCII)
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(?:\.\d+)?(?:[Zz]|[+-]\d\d:\d\d)", re.ASCII)
_TAG: Final = re.compile(r'[ \t,]*(?:(?:W/)?("[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?=,|$)|$)')
_MOST_TOLD: Final = 10

MOST: Final = 200
"""Rows of a page."""


def invalid(*faults: tuple[str, str]) -> RequestValidationError:
    """A request that can't be understood: (part of the request, what is wrong with it), ..."""
    return RequestValidationError(
        [{"loc": where.split(".", 1), "msg": what, "type": "value_error"} for where, what in faults]
    )


async def only_known(request: Request) -> None:
    """A dependency of a route: raises RequestValidationError when the query has a parameter that the route
    hasn't, or one twice; or when a header that the route has, and that isn't a list, comes twice.
    """
    route = request.scope["route"].dependant
    names = {field.alias for field in route.query_params}
    counts = Counter(name for name, _ in request.query_params.multi_items())
    faults = [(f"query.{name[:100]}", "no such parameter") for name in counts if name not in names]
    faults += [
        (f"query.{name}", "given more than once")
        for name, count in counts.items()
        if name in names and count > 1
    ]
    faults += [
        (f"header.{field.alias}", "given more than once")
        for field in route.header_params
        if field.alias != "if-none-match" and len(request.headers.getlist(field.alias)) > 1
    ]
    if faults:
        raise invalid(*faults[:_MOST_TOLD])


def _uuid(value: Any) -> Any:
    if not isinstance(value, str) or not _UUID.fullmatch(value):
        raise ValueError("a UUID, with or without dashes")
    return UUID(value)


def _integer(value: Any) -> Any:
    if isinstance(value, str):
        if not _INTEGER.fullmatch(value):
            raise ValueError("an integer, in digits")
        return int(value)
    return value


def _time(value: Any) -> Any:
    if not isinstance(value, str) or not _TIME.fullmatch(value):
        raise ValueError("a time with its offset, such as 2026-01-31T00:00:00Z")
    try:
        return datetime.fromisoformat(value.upper()).astimezone(UTC)
    except OverflowError:
        raise ValueError("outside the years 1 to 9999 in UTC") from None


Id = Annotated[UUID, BeforeValidator(_uuid)]
# The bounds stand before the validator: behind it the OpenAPI document wouldn't have them.
Version = Annotated[int, Ge(0), Le(2**31 - 1), BeforeValidator(_integer)]
Rows = Annotated[int, Ge(1), Le(MOST), BeforeValidator(_integer)]
Time = Annotated[datetime, BeforeValidator(_time)]
"""In UTC."""


def names_version(lines: list[str] | None, etag: str) -> bool:
    """Whether If-None-Match, which may come in several lines, names this ETag (compared weakly, RFC 9110,
    13.1.2). A list that can't be read names none.
    """
    if not lines:
        return False
    if {line.strip() for line in lines} == {"*"}:
        return True
    own, text, at, matches = etag.removeprefix("W/"), ",".join(lines), 0, False
    while at < len(text):
        tag = _TAG.match(text, at)
        if tag is None:
            return False
        matches = matches or tag[1] == own
        at = tag.end()
    return matches
