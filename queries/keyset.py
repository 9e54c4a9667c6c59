"""Cursors of keyset pagination: where a page ended.
Whatever is inserted meanwhile, what lies behind it neither moves nor shows twice.
"""

from __future__ import annotations

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import NamedTuple, Self
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAYOUT = struct.Struct(">q16s")
_FORGED = "not a cursor of this service"


class Position(NamedTuple):
    """The last row of a page: its time, and its id among rows of one time."""

    time: datetime
    id: UUID

    def cursor(self, filters: bytes = b"") -> str:
        """Return the position as opaque text that clients send back. `filters`: those of the list, as
        bound_to() makes them, so that the cursor is of use in no other list.
        """
        place = _LAYOUT.pack(micros(self.time), self.id.bytes)
        return urlsafe_b64encode(place + filters).decode()

    @classmethod
    def parse(cls, cursor: str, filters: bytes = b"") -> Self:
        """Parse a cursor. Raises ValueError for anything that cursor() didn't return with these filters."""
        try:
            raw = urlsafe_b64decode(cursor.encode("ascii"))
            micros, id_ = _LAYOUT.unpack(raw[: _LAYOUT.size])
            position = cls(_EPOCH + timedelta(microseconds=micros), UUID(bytes=id_))
        except (ValueError, struct.error, OverflowError):
            raise ValueError(_FORGED) from None
        if position.cursor(raw[_LAYOUT.size :]) != cursor or len(raw) != _LAYOUT.size + len(filters):
            raise ValueError(_FORGED)
        if raw[_LAYOUT.size :] != filters:
            raise ValueError(
                "a cursor of a list with other filters, or of a key that sees other orders: give what it was"
                " made with"
            )
        return position


def micros(time: datetime) -> int:
    """Microseconds since 1970."""
    return (time - _EPOCH) // timedelta(microseconds=1)


def bound_to(filters: Mapping[str, object]) -> bytes:
    """A digest of all that a list depends on: 8 bytes that its cursors carry. None is what isn't given."""
    given = sorted((name, str(value)) for name, value in filters.items() if value is not None)
    return blake2b(repr(given).encode(), digest_size=8).digest()
