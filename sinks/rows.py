"""What the pipeline hands to the sinks: rows for Postgres, entries for Redis. Plain tuples: nothing is built per field."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

Row = tuple[str | int | None, ...]
"""One row, in the column order of `sinks.schema`: ids, enums, money (decimal text in major units) and times (RFC 3339, +00:00) as text,
quantity and version as int, None for NULL.
"""


@dataclass(slots=True)
class RowBatch:
    """Rows of the four tables that are written together. Each primary key at most once in a batch; an order's rows may come in any number
    of batches.
    """

    orders: list[Row] = field(default_factory=list)
    items: list[Row] = field(default_factory=list)
    shipments: list[Row] = field(default_factory=list)
    returns: list[Row] = field(default_factory=list)

    def __len__(self) -> int:
        """Rows in all four tables."""
        return len(self.orders) + len(self.items) + len(self.shipments) + len(self.returns)


class CacheEntry(NamedTuple):
    """One order as the cache shows it."""

    order_id: str
    user_id: str
    """Whose list of recent orders it belongs to."""
    created_ms: int
    """Milliseconds since 1970: the order's place in that list."""
    version: int
    """The order's version; an entry never replaces one with a higher version."""
    ttl: int
    """Seconds until it expires, 600 to 1,800."""
    summary: bytes
    """The summary, a JSON object. The first "version":N in it is the order's."""
    tracking: list[tuple[str, str, bytes]]
    """(tracking number, shipment id, JSON object of that shipment, which begins with order_id and shipment_id): entries to put under their
    tracking numbers. Under a number, order and shipment id together say which entry it is.
    """
    untracked: list[tuple[str, str]]
    """(tracking number, shipment id): entries to take away, because the parcel has another number now."""
