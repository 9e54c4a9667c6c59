"""Names of all topics, as the auditor knows them: written down a second time, so that nothing that
is checked can change them.
"""

from __future__ import annotations

from typing import Final

CHECKOUT: Final = "checkout.completed"
"""Intake: each of these becomes an order.created.
Keyed by checkout_id, so it lies in another partition than its order.
"""

CREATED: Final = "order.created"

INPUT: Final = (
    CHECKOUT,
    CREATED,
    "order.paid",
    "payment.failed",
    "stock.reserved",
    "stock.rejected",
    "stock.released",
    "order.cancel_requested",
    "promise.updated",
    "shipment.updated",
    "order.returned",
    "refund.completed",
    "refund.failed",
    "refund.granted",
)
"""Events of other services, in the order of an order's life."""

DECISIONS: Final = "orders.decisions"
"""What the fold decided (refund.decided): comes back as a fact."""

REKEYED: Final = "orders.rekeyed"
"""Events that arrived under another key than their order's, on their way to their order's lane."""

INTERNAL: Final = (DECISIONS, REKEYED)

LANE: Final = (*INPUT, *INTERNAL)
"""Everything one lane reads: all topics of one partition number."""

DERIVED: Final = (
    "suborder.created",
    "suborder.updated",
    "suborder.late",
    "stock.reserve",
    "payment.initiate",
    "shipping.label.create",
    "stock.release",
    "stock.commit",
    "stock.restock",
    "refund.request",
    "order.status_changed",
    "order.attention",
)
"""Events and commands that we publish."""

DLQ: Final = "orders.dlq"
"""Refused records, as they came."""

REDRIVEN: Final = "orders.redriven"
"""Which dead letters went back to their topics, when and by whom: the ledger of `orders dlq redrive`."""

PARTITIONS: Final = "orders.partitions"
"""How many partitions the topics had before they were given more: where the history of a lane's orders
lies (`orders partitions`).
"""

BULK: Final = ("order.bulk", "shipment.bulk", "return.bulk", "payment.bulk")
"""Parts of bulk jobs, read by the bulk workers' own group."""
