"""Which captured payments a refund goes back to (docs/rules.md, Which payments a refund goes back to)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from domain.order import Allocations, Payment


def allocate(
    payments: Iterable[Payment], allocated: Mapping[bytes, int], rest: int, amount: int
) -> Allocations:
    """The payments that `amount` (minor units, above 0) goes back to, and what to each. Pure.

    They are used in order of time, then of payment_id: each up to what it captured less what `allocated`
    (payment -> minor units) says of it, after `rest`, which was paid back without saying from which.
    """
    left = [
        (payment.time, payment.payment_id, payment.amount - allocated.get(payment.payment_id, 0))
        for payment in payments
        if not payment.refused and payment.amount > allocated.get(payment.payment_id, 0)
    ]
    left.sort()
    parts: Allocations = []
    for _, payment_id, free in left:
        skipped = min(rest, free)
        rest -= skipped
        part = min(free - skipped, amount)
        if part:
            parts.append((payment_id, part))
            amount -= part
            if not amount:
                break
    return parts
