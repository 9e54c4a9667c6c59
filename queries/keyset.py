"""Cursors of keyset pagination: where a page ended.
Whatever is inserted meanwhile, what lies behind it neither moves nor shows twice.
"""

from __future__ import annotations

import struct
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, Self
from uuid import UUID

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAYOUT = struct.Struct(">q16s")


class Position(NamedTuple):
    """The last row of a page: its time, and its id among rows of one time."""

    time: datetime
    id: UUID

    def cursor(self) -> str:
        """Return the position as opaque text that clients send back."""
        return urlsafe_b64encode(
            _LAYOUT.pack((self.time - _EPOCH) // timedelta(microseconds=1), self.id.bytes)
        ).decode()

    @classmethod
    def parse(cls, cursor: str) -> Self:
        """Parse a cursor. Raises ValueError for anything that cursor() didn't return."""
        try:
            micros, id_ = _LAYOUT.unpack(urlsafe_b64decode(cursor.encode("ascii")))
            position = cls(_EPOCH + timedelta(microseconds=micros), UUID(bytes=id_))
        except (ValueError, struct.error, OverflowError):
            raise ValueError("not a cursor of this service") from None
        if position.cursor() != cursor:
            raise ValueError("not a cursor of this service")
        return position
