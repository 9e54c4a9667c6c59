"""Rows and cache entries of single orders, read by their ids: those that a round of an audit that follows has
to judge, and those that it only looks at, a few at a time, to tell whether they are what they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Final

from audit.checkpoint import LaneCheckpoint
from audit.foreign import read_json
from audit.judge import ENTRY, MEMBER, ROW, Item
from audit.reference import is_canonical
from audit.stores import TABLES, Cache, Entry, Rows, columns, rows_between, rows_of, text_at

_AT_ONCE: Final = 1_000
_USER: Final = columns("orders_order").index("user_id")
_NUMBER: Final = columns("orders_shipment").index("tracking_number")


class OrderReader:
    """Reads from the stores what belongs to single orders. `behind`: lanes whose cache isn't complete, so
    that it isn't compared. `home`: lane of an order. Methods block on the network and raise StoreUnavailable.
    """

    def __init__(
        self, rows: Rows, cache: Cache | None, behind: Iterable[int], home: Callable[[bytes], int]
    ) -> None:
        self._rows = rows
        self._cache = cache
        self._behind = frozenset(behind)
        self._home = home
        self.suspects: dict[int, list[bytes]] = {}
        """By lane, the orders that aren't what they were."""

    def cached(self, lane: int) -> bool:
        """Whether cache entries of this lane's orders are compared."""
        return self._cache is not None and lane not in self._behind

    async def items(self, keys: Iterable[bytes]) -> list[Item]:
        """ROW, ENTRY and MEMBER items of these orders."""
        wanted = [key for key in keys if is_canonical(key)]
        items: list[Item] = []
        for first in range(0, len(wanted), _AT_ONCE):
            some = wanted[first : first + _AT_ONCE]
            items += await self._read(some, rows_of(some))
        return items

    async def look(self, lanes: Sequence[LaneCheckpoint], after: bytes, count: int) -> bytes:
        """Compare the next `count` orders by their ids with the checkpoint, and what there is between them;
        those that aren't what they were become suspects. Returns after which to go on: b"" from the first.
        Raises CheckpointUnusable.
        """
        keys = sorted(key for lane in lanes for key in lane.keys(after, count + 1))
        last = keys[count - 1] if len(keys) > count else b""
        items: dict[bytes, list[Item]] = {key: [] for key in keys[:count]}
        for item in await self._read(keys[:count], rows_between(after, last)):
            items.setdefault(item[0], []).append(item)
        for key, own in items.items():
            lane = self._home(key)
            entry = lanes[lane].entry(key)
            if entry is None or not entry.agrees(own, 0, self.cached(lane)):
                self.suspects.setdefault(lane, []).append(key)
        return last

    async def _read(self, keys: Iterable[bytes], where: str) -> list[Item]:
        items: list[Item] = []
        orders, names = set(keys), set()
        for number, table in enumerate(TABLES):

            def take(key: bytes, line: bytes, number: int = number, table: str = table) -> None:
                items.append((key, ROW, number, line))
                orders.add(key)
                if table == "orders_order":
                    names.add(f"user:{text_at(line, _USER)}:orders")
                elif table == "orders_shipment":
                    names.add(f"tracking:{text_at(line, _NUMBER)}")

            await self._rows.lines(table, take, where)
        if self._cache is None:
            return items
        names |= {f"order:{key.decode()}" for key in orders if self.cached(self._home(key))}
        for entry in await self._cache.some(sorted(names)):
            items += [
                item
                for item in items_of(entry) or ()
                if item[0] in orders and self.cached(self._home(item[0]))
            ]
        return items


def items_of(entry: Entry) -> list[Item] | None:
    """What a cache entry says of which orders; None: it is no sorted set and should be one."""
    key, value = entry.key.decode("utf-8", "backslashreplace"), entry.value
    family, _, name = entry.key.partition(b":")
    if family == b"order":
        return [(name, ENTRY, key, entry.ttl, value)]
    if family == b"tracking" and not isinstance(value, list):
        return [(order_id, ENTRY, key, entry.ttl, value) for order_id in _orders_of(value)]
    if not isinstance(value, list):
        return None
    return [(member, MEMBER, key, entry.ttl, score) for member, score in value]


def _orders_of(tracking: bytes | None) -> list[bytes]:
    """Orders with a parcel in a tracking entry; none of them known, as b"", if it is
    no JSON array of parcels.
    """
    try:
        return sorted({each["order_id"].encode() for each in read_json(tracking)}) or [b""]
    except (ValueError, TypeError, KeyError, AttributeError):
        return [b""]
