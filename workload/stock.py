"""The simulated inventory's count of its stock: what the pipeline told it against what parcels took and
customers brought back.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

INITIAL = 100_000
"""Units of each sku at the beginning, unless it is told otherwise: nothing runs out."""
TOLD = {"stock.commit": "commit_id", "stock.restock": "restock_id"}
"""Command that moves stock and asks for no answer -> the field of its id."""


class Stock:
    """Counts units by sku. Each command, parcel and return counts once, however often it comes.

    A difference is what left by the inventory's own count and wasn't committed (below 0: committed and never
    left), and what came back and wasn't restocked.
    """

    def __init__(self, initial: int = INITIAL) -> None:
        """`initial`: units of each sku at the beginning."""
        self._initial = initial
        self._taken: Counter[str] = Counter()
        """Sku -> units that are reserved or have left."""
        self._counted: set[tuple[str, str]] = set()
        self._skus: dict[str, str] = {}
        """Item -> its sku, as the commands say it."""
        self._moved: dict[str, Counter[str]] = defaultdict(Counter)
        """committed, restocked; and by the own count shipped, returned -> units by item."""
        self._apart: dict[str, Counter[str]] = {name: Counter() for name in TOLD}
        """Command -> units by item by which its count and the own one differ."""

    def learn(self, items: Iterable[dict[str, Any]]) -> None:
        """Remember the skus of a command's items."""
        self._skus.update((item["item_id"], item["sku"]) for item in items if "sku" in item)

    def take(self, item_id: str, units: int) -> int:
        """Reserve units of an item, at most those that are left of its sku; how many. Of an item whose sku
        isn't known as many as are asked for.
        """
        sku = self._skus.get(item_id)
        if sku is None:
            return units
        taken = max(0, min(units, self._initial - self._taken[sku]))
        self._taken[sku] += taken
        return taken

    def put_back(self, item_id: str, units: int) -> None:
        """Units of an item that were taken can be had again."""
        sku = self._skus.get(item_id)
        if sku is not None:
            self._taken[sku] -= units

    def told(self, type_: str, command: dict[str, Any]) -> None:
        """Count stock.commit or stock.restock."""
        items = command["items"] if type_ == "stock.commit" else [command]
        self.learn(items)
        name = "committed" if type_ == "stock.commit" else "restocked"
        is_new = self._count(name, command[TOLD[type_]], type_, items, -1)
        if is_new and type_ == "stock.restock":
            self.put_back(command["item_id"], command["quantity"])

    def sent(self, type_: str, data: dict[str, Any]) -> None:
        """Count a parcel that left, or goods that came back and are sound; nothing else moves stock."""
        if type_ == "shipment.updated" and data["status"] == "in_transit":
            self._count("shipped", data["shipment_id"], "stock.commit", data["items"], 1)
        elif type_ == "order.returned" and data["status"] == "processed" and data["restock"]:
            self._count("returned", data["return_id"], "stock.restock", [data], 1)

    def differs(self) -> bool:
        """Whether a command is missing or too much as of now."""
        return any(self._apart.values())

    def report(self, reserved: int, left: Mapping[str, int]) -> dict[str, Any]:
        """The count as of now. `reserved`: units reserved; `left`: those of orders that have ended, by order.

        `wrong` has a line for everything that doesn't add up.
        """
        totals = {
            name: self._moved[name].total() for name in ("committed", "restocked", "shipped", "returned")
        }
        initial = self._initial * len(set(self._skus.values()))
        on_hand = initial - reserved - totals["committed"] + totals["restocked"]
        wrong = [
            f"{self._skus.get(item, item)}: {abs(units)} {'too few' if units > 0 else 'too many'} in {type_}"
            for type_, apart in self._apart.items()
            for item, units in apart.items()
        ]
        by_sku: Counter[str] = Counter()
        for item, sku in self._skus.items():
            by_sku[sku] += self._moved["committed"][item] - self._moved["restocked"][item]
        wrong += [
            f"{sku}: {self._initial - out} on hand" for sku, out in by_sku.items() if out > self._initial
        ]
        wrong += [f"{sku}: {-out} more came back than left" for sku, out in by_sku.items() if out < 0]
        wrong += [f"order {order_id} has ended and {units} reserved" for order_id, units in left.items()]
        counts = {"initial": initial, "on_hand": on_hand, "reserved": reserved}
        return {**counts, **totals, "wrong": sorted(wrong)}

    def _count(self, name: str, id_: str, type_: str, items: list[dict[str, Any]], sign: int) -> bool:
        """Count units, once for each id; whether they weren't counted yet."""
        if (name, id_) in self._counted:
            return False
        self._counted.add((name, id_))
        apart = self._apart[type_]
        for item in items:
            item_id, units = item["item_id"], item["quantity"]
            self._moved[name][item_id] += units
            apart[item_id] += sign * units
            if not apart[item_id]:
                del apart[item_id]
        return True
