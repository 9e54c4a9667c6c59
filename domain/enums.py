"""What an order's state holds as a number and everybody else reads as a word: statuses,
ranks, causes, deadlines.

A number never changes its meaning, since states hold it: a new word takes the next one.
contracts.statuses has the words.

In Python 3.11 looking a member up in its class costs as much as ten comparisons.
So modules that every event goes through look theirs up once, when they are imported.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Literal

from contracts.statuses import (
    ClosedBecauseText,
    DeadlineText,
    OrderStatusText,
    ParcelStatusText,
    RefundCauseText,
    ReturnStatusText,
    SuborderStatusText,
)


class Numbered(IntEnum):
    """A number with a word: its name in lower case."""

    text: str
    """Its word in events, rows and answers."""

    def __init__(self, number: int) -> None:
        self.text = self._name_.lower()


class OrderStatus(Numbered):
    """How far an order is (docs/rules.md, Status of an order)."""

    text: OrderStatusText

    PENDING = 0
    CONFIRMED = 1
    SHIPPED = 2
    DELIVERED = 3
    RETURNED = 4


class SuborderStatus(Numbered):
    """How far a seller's part is: as an order, with the same numbers, and CLOSED while
    none of its units is live.
    """

    text: SuborderStatusText

    PENDING = 0
    CONFIRMED = 1
    SHIPPED = 2
    DELIVERED = 3
    RETURNED = 4
    CLOSED = 5


class Rank(Numbered):
    """How far a parcel is; a unit is as far as its parcel."""

    text: ParcelStatusText

    PENDING = 0
    IN_TRANSIT = 1
    DELIVERED = 2
    RETURNED = 3


class ReturnStatus(Numbered):
    """The stages of a return. The last two are final."""

    text: ReturnStatusText

    REQUESTED = 0
    PROCESSED = 1
    REJECTED = 2


class StockAnswer(Numbered):
    """What the inventory says of units: the last part of its event's type."""

    text: Literal["reserved", "rejected", "released"]

    RESERVED = 0
    REJECTED = 1
    RELEASED = 2


class RefundCause(Numbered):
    """Why a refund is owed."""

    text: RefundCauseText

    RETURN = 0
    """A return was processed."""
    STOCK = 1
    """Units of a seller are gone."""
    CLOSED = 2
    """No unit of the order is live."""
    GRANT = 3
    """Goodwill was granted; it pays for no unit."""


class DeadlineKind(Numbered):
    """What was waited for in vain (domain.deadlines)."""

    text: DeadlineText

    PAYMENT = 0
    STOCK = 1
    RELEASE = 2
    LABEL = 3
    REFUND = 4
    # From here on only Lapse holds them: the version before this one can't read their numbers.
    SHIP = 5
    UNSHIPPED = 6
    DELIVER = 7
    RETURN = 8
    REFUND_RETRY = 9


class ClosedBecause(Numbered):
    """Why none of a seller's units is live. NOT_CLOSED, which is never told: some is."""

    text: ClosedBecauseText

    NOT_CLOSED = 0
    CANCELLED = 1
    PAYMENT_OVERDUE = 2
    STOCK_RELEASED = 3
    STOCK_REJECTED = 4
    STOCK_UNANSWERED = 5
    NOT_SHIPPED = 6
    """In a view alone: a state says it by PublishedSuborder.not_shipped."""
