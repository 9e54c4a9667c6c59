"""Which payments a refund goes back to, and which refunds may pay less than what they name costs.

Written from the contract alone, as audit.reference. Money in minor units, ids are canonical UUID text.
Nothing here blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

Allocation = tuple[str, int]
"""payment_id, amount."""


def allocate(
    amount: int, payments: Sequence[Allocation], taken: Mapping[str, int], untied: int
) -> tuple[Allocation, ...]:
    """The payments that a refund of `amount` goes back to, in their order, each with its part.

    `payments`: what each has captured, by (time, payment_id). `taken`: payment_id -> what decisions before
    took of it. `untied`: what was paid back before without saying of which payment; it takes of what those
    leave, in the same order. A refund of more than what is left gets that.
    """
    result = []
    for payment_id, captured in payments:
        rest = captured - taken.get(payment_id, 0)
        before = min(untied, rest)
        untied -= before
        part = min(amount, rest - before)
        amount -= part
        if part > 0:
            result.append((payment_id, part))
    return tuple(result)


def misallocated(
    amount: int,
    allocations: Sequence[Allocation],
    captured: Mapping[str, int],
    taken: Mapping[str, int],
    untied: int,
) -> tuple[str, str] | None:
    """What is wrong about a refund's allocations as (expected, actual), whichever of the payments were known
    when it was decided; None: nothing.

    `captured`: payment_id -> what it captured. `untied`: the most that was paid back before without saying
    of which payment. Of the payments that it goes back to all but the last are used up.
    """
    said = ", ".join(f"{payment_id} {part}" for payment_id, part in allocations) or "none"
    if sum(part for _, part in allocations) != amount:
        return f"allocations of {amount}", said
    if len({payment_id for payment_id, _ in allocations}) < len(allocations):
        return "each payment once", said
    unused = 0
    for number, (payment_id, part) in enumerate(allocations):
        left = captured.get(payment_id, 0) - taken.get(payment_id, 0)
        if part > left:
            return f"at most {max(0, left)} of payment {payment_id}", str(part)
        if number < len(allocations) - 1:
            unused += left - part
    return (f"payments used up before the next, but for {untied}", said) if unused > untied else None


class LeftOver(NamedTuple):
    """What decides whether a refund of units is what is left. `captured`, `total`: of the order.
    `refunded`: what was paid back before, `goodwill`: the part of it that grants and another system paid.
    """

    captured: int
    total: int
    refunded: int
    goodwill: int

    def payable(self, cost: int) -> int | None:
        """What a refund of units that cost so much pays; None: captured money doesn't cover it. 0: of an
        order that was paid whole grants, and what another system paid back, left nothing.
        """
        left = self.captured - self.refunded
        if left >= cost:
            return cost
        if self.captured >= self.total and self.captured - (self.refunded - self.goodwill) >= cost:
            return max(0, left)
        return None

    @staticmethod
    def may_pay(amount: int, cost: int, total: int, refunded: int, goodwill: int) -> bool:
        """Whether a decision of `amount` about units that cost so much may have been made, whatever was
        captured then: if it pays less than that, it was all that had been captured.
        """
        if amount >= cost:
            return amount == cost
        return amount + refunded >= total and cost - amount <= goodwill
