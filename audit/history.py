"""Orders that another system handled until some time: which facts are history, and what of the order that
system has paid back.

Written from the contract alone, as audit.reference. Money in minor units. Nothing here blocks.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, NamedTuple, TypeAlias

Fact: TypeAlias = Any
"""That of audit.reference, which imports this module."""
NaturalKey: TypeAlias = tuple[Hashable, ...]

_NEVER: Final = ("deadline.passed", "refund.decided")
_TELLING: Final = ("order.paid", "stock.rejected", "stock.released", "shipment.updated", "order.returned")
"""Facts that may bring an order to a status."""


@dataclass(frozen=True, slots=True)
class Live:
    """From when on an order's facts are ours. `since` None: all of them.

    `latest`: the latest time of those facts whose repetitions say several: whether such a fact came live
    first, and what left then, depends on the order of arrival.
    """

    since: datetime | None
    latest: Mapping[NaturalKey, datetime] = field(default_factory=dict)

    def is_history(self, fact: Fact) -> bool:
        """Whether another system handled it."""
        return self.since is not None and fact.type not in _NEVER and fact.time < self.since

    def may_have_been_live(self, fact: Fact) -> bool:
        """Whether it isn't history, or wasn't when it came."""
        return (
            self.since is None
            or not self.is_history(fact)
            or self.latest.get(fact.key, fact.time) >= self.since
        )

    def is_surely_live(self, fact: Fact) -> bool:
        """Whether it is no history; the earliest time is what counts, so it never was."""
        return not self.is_history(fact)

    def tells(self, facts: Iterable[Fact]) -> bool:
        """Whether history may have brought the order to its status: then it causes no command."""
        return any(fact.type in _TELLING and self.is_history(fact) for fact in facts)


class Elsewhere(NamedTuple):
    """What of an order counts as paid for by another system: its units, (item_id, unit number), the shipping
    of these lines, and what both cost and have of tax.
    """

    units: frozenset[tuple[str, int]] = frozenset()
    shipping: frozenset[str] = frozenset()
    cost: int = 0
    tax: int = 0


def counted_as_paid(
    quantity: int, live_count: int, decided: Collection[int], returned: int, gone: int
) -> list[int]:
    """The places of a line's units that history's returns (of `returned` units) and its stock replies (of
    `gone` units) count as paid for. `decided`: places of the units that decisions paid for.

    Of the others returns take the lowest, stock replies the lowest that aren't live, then the highest live.
    """
    left = [place for place in range(quantity) if place not in decided]
    taken, left = left[:returned], left[returned:]
    dead = [place for place in left if place >= live_count]
    living = [place for place in left if place < live_count]
    more = max(0, gone - len(dead))
    return sorted([*taken, *dead[:gone], *living[len(living) - min(more, len(living)) :]])


def paid_back(said: int | None, captured: int, total: int, cost: int) -> int:
    """What another system paid back. `said`: as order.created has it. Without that what history captured
    above the total less `cost`, that of the units and shipping that count as paid for.
    """
    return min(cost, max(0, captured - (total - cost))) if said is None else said
