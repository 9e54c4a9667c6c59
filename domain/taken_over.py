"""Orders that another system handled until a time, their live_from: which of their facts are history,
and what these add up to (docs/rules.md, History of another system).
"""

from __future__ import annotations

from typing import Final

from domain.order import (
    Created,
    Deadline,
    Fact,
    Lapse,
    Order,
    Payment,
    RefundDecision,
    RefundReply,
    StockReply,
    fact_lists,
)

_OURS: Final = (Deadline, Lapse, RefundDecision)


def is_history(created: Created, fact: Fact) -> bool:
    """Whether a fact happened while the other system handled its order. Our own facts never did. Pure."""
    return created.live_from is not None and fact.time < created.live_from and not isinstance(fact, _OURS)


def is_answer(created: Created, reply: RefundReply) -> bool:
    """Whether a refund reply counts for what is waited for. A failure that another system was told of isn't
    one of ours; that a refund is paid counts, whoever says so: nobody is asked for it again. Pure.
    """
    return not reply.refused and not (reply.failed and is_history(created, reply))


def is_known_live(order: Order, created: Created) -> bool:
    """Whether any fact of an order but its order.created isn't history. What it refuses isn't its fact, and
    deadlines, like decisions, follow from what is known.
    """
    return any(
        not fact.refused and not isinstance(fact, _OURS) and not is_history(created, fact)
        for facts in fact_lists(order)
        for fact in facts
    )


class History:
    """What an order's history adds up to, as far as every fact of it counts by itself. Of an order with a
    live_from.
    """

    __slots__ = ("captured", "created", "gone", "is_all")

    def __init__(self, created: Created) -> None:
        self.created = created
        self.captured = 0
        """Money of its payments, minor units."""
        self.gone: dict[bytes, int] = {}
        """Item -> units that its stock.rejected and stock.released name."""
        self.is_all = True
        """No payment, no rejected, released or given up stock is live."""

    def pay(self, payment: Payment) -> None:
        """Count a payment that isn't refused."""
        if is_history(self.created, payment):
            self.captured += payment.amount
        else:
            self.is_all = False

    def lose(self, reply: StockReply, pairs: list[tuple[bytes, int]]) -> None:
        """Count a stock.rejected or stock.released that isn't refused, of these items and units."""
        if not is_history(self.created, reply):
            self.is_all = False
            return
        for item_id, quantity in pairs:
            self.gone[item_id] = self.gone.get(item_id, 0) + quantity

    def give_up(self) -> None:
        """Count a seller's stock that nobody answered for."""
        self.is_all = False
