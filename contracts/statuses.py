"""Words that events, rows and answers share: statuses, causes, deadlines.
domain.enums has the number of each in an order's state.
"""

from __future__ import annotations

from typing import Literal

OrderStatusText = Literal["pending", "confirmed", "shipped", "delivered", "returned"]
SuborderStatusText = Literal["pending", "confirmed", "shipped", "delivered", "returned", "closed"]
ParcelStatusText = Literal["pending", "in_transit", "delivered", "returned"]
ReturnStatusText = Literal["requested", "processed", "rejected"]
PaymentStatusText = Literal["captured", "failed"]
RefundStatusText = Literal["requested", "completed", "failed"]
RefundCauseText = Literal["return", "stock", "closed", "grant"]
"""Why a refund is owed."""
DeadlineText = Literal[
    "payment",
    "stock",
    "release",
    "label",
    "refund",
    "ship",
    "unshipped",
    "deliver",
    "return",
    "refund_retry",
]
"""What was waited for in vain, or what became due."""
AttentionStateText = Literal["raised", "cleared"]
"""Whether what a person should look at holds, or no longer does."""
AttentionText = Literal[
    "overpaid",
    "over_returned",
    "moved_though_gone",
    "came_back",
    "late_to_ship",
    "late_to_deliver",
    "return_overdue",
    "release_unanswered",
    "label_unscanned",
    "reservation_unknown",
    "refund_uncovered",
    "refund_contradicted",
    "refund_above_captured",
    "refund_failed",
    "refund_paid_twice",
    "refund_unconfirmed",
    "refund_unknown",
    "refunded_above_history",
]
"""What a person should look at, of an order."""
LatenessText = Literal["ship", "deliver"]
"""What a seller's units are late with."""
ClosedBecauseText = Literal[
    "cancelled", "payment_overdue", "stock_released", "stock_rejected", "stock_unanswered", "not_shipped"
]
"""Why none of a seller's units is live."""
