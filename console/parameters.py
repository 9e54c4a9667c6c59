"""What an address says: ids, times and choices. Each function is pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

from fastapi import Request

from console.texts import text


class Invalid(Exception):
    """An address, or a form, that can't be understood. The message says what of it, and why."""


def uuid_of(value: str) -> UUID:
    """An id. Raises Invalid."""
    try:
        return UUID(value)
    except ValueError:
        raise Invalid(text("bad_id", value=value)) from None


def number_of(value: str) -> int | None:
    """A number of a partition or an offset; None: it is none."""
    return int(value) if value.isascii() and value.isdecimal() and len(value) < 19 else None


def moment_of(request: Request, name: str) -> datetime | None:
    """A time of the query, in UTC where it has no offset; None: it isn't given. Raises Invalid."""
    value = request.query_params.get(name, "").strip()
    if not value:
        return None
    try:
        # A plus in a query is a space.
        time = datetime.fromisoformat(value.replace(" ", "+") if "T" in value else value)
        return time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    except (ValueError, OverflowError):
        raise Invalid(text("bad_time", value=value)) from None


def choice(request: Request, name: str, those: Sequence[str]) -> str | None:
    """One of some values of the query; None: it isn't given. Raises Invalid."""
    value = request.query_params.get(name, "")
    if value and value not in those:
        raise Invalid(text("bad_choice", value=value, those=", ".join(those)))
    return value or None


def own_path(value: str) -> str:
    """A path of the console to go on to, or its first page if it is none: nobody is sent elsewhere."""
    plain = value.isascii() and value.isprintable() and "\\" not in value
    return value if plain and re.match(r"/(?!/)", value) else "/"
