"""Whether rows and cache say of an order what its state says: by versions, and value by value. All pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple
from uuid import UUID

import msgspec

from console.whatif import Change, changes_between
from contracts.strict_json import read_foreign
from domain.order import Order
from operations.history import project
from operations.postgres.compare import Difference
from settings import Settings
from streams.folder import BatchFolder, BatchOutput
from tables import codec

Name = Literal["state", "rows", "cache"]
Says = Literal["same", "behind", "ahead", "missing", "expired", "waits", "away"]

GOOD: Final = ("same", "expired", "waits")
"""What is as it should be. expired: the cache forgets; waits: there are no rows before an order.created."""


class Store(NamedTuple):
    """A place where an order is kept, the version that it has there (0: none), and how that is to the state's
    (ahead: something came since the state was read).
    """

    name: Name
    version: int
    says: Says

    @property
    def good(self) -> bool:
        """Whether it is as it should be."""
        return self.says in GOOD


def stores_of(order: Order, rows: int | None, cache: int | None) -> list[Store]:
    """State, rows and cache. `rows`, `cache`: versions there, 0 for none; None: it doesn't answer."""
    return [
        Store("state", order.version, "same"),
        Store("rows", rows or 0, _says(order, rows, "missing")),
        Store("cache", cache or 0, _says(order, cache, "expired")),
    ]


def _says(order: Order, version: int | None, without: Says) -> Says:
    if version is None:
        return "away"
    if version == 0:
        return "waits" if order.created is None else without
    if version == order.version:
        return "same"
    return "behind" if version < order.version else "ahead"


class Row(NamedTuple):
    """A row that isn't what the state makes it. `missing`: it isn't there; `extra`: it should not be."""

    table: str
    id: str
    missing: bool
    extra: bool
    changes: list[Change]


class Compared(NamedTuple):
    """`rows`: those that differ; `cache`: what differs in the cache entry, None if there is none."""

    rows: list[Row]
    cache: list[Change] | None


def held_of(settings: Settings, order_id: UUID, order: Order) -> BatchOutput:
    """What the stores should hold of an order, by its state."""
    return project(BatchFolder(settings), {order_id.bytes: codec.encode(order)})


def compare(held: BatchOutput, differences: Iterable[Difference], entry: bytes | None) -> Compared:
    """What should be held, beside the rows that differ from that and the cache entry that is there."""
    rows = [
        Row(
            each.table,
            each.id,
            each.actual is None,
            each.expected is None,
            [Change(name, expected or "", actual or "") for name, actual, expected in each.columns()],
        )
        for each in differences
    ]
    if entry is None:
        return Compared(rows, None)
    should = _object(held.cache[0].summary) if held.cache else {}
    return Compared(rows, list(changes_between(should, _object(entry))))


def _object(entry: bytes) -> dict[str, Any]:
    """An entry's members; none of what somebody else put there."""
    document = read_foreign(msgspec.json.decode, entry)
    return document if isinstance(document, dict) else {}
