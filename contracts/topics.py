"""Names of all topics. Each is named after the type of the events in it (docs/events.md, Records)."""

from __future__ import annotations

from typing import Final

from contracts import incoming, outgoing

CHECKOUT: Final = "checkout.completed"
"""Intake: each of these becomes an order.created.
Keyed by checkout_id, so it lies in another partition than its order.
"""

CREATED: Final = "order.created"

INPUT: Final = tuple(spec.type for spec in incoming.INPUT)
"""Events of other services, in the order of an order's life."""

DECISIONS: Final = incoming.DECISIONS
"""What the fold decided (refund.decided): comes back as a fact."""

REKEYED: Final = "orders.rekeyed"
"""Events that arrived under another key than their order's, on their way to their order's lane."""

INTERNAL: Final = (DECISIONS, REKEYED)

CLOCK: Final = "orders.clock"
"""Empty records, written to learn the brokers' time from their acknowledgement. Nobody reads them."""

WORKERS: Final = "orders.workers"
"""What each worker says of itself, every two seconds (streams.reports)."""

LANE: Final = (*INPUT, *INTERNAL)
"""Everything one lane reads: all topics of one partition number."""

DERIVED: Final = tuple(spec.type for spec in outgoing.DERIVED)
"""Events and commands that we publish."""

DLQ: Final = "orders.dlq"
"""Refused records, as they came."""

REDRIVEN: Final = "orders.redriven"
"""Which dead letters went back to their topics, when and by whom: the ledger of `orders dlq redrive`."""

RESOLVED: Final = "orders.resolved"
"""Which dead letters need nothing more, who said so and why (`orders dlq resolve`)."""

PARTITIONS: Final = "orders.partitions"
"""How many partitions the topics had before they were given more: where the history of a lane's orders
lies (`orders partitions`).
"""

CONTROL: Final = "orders.control"
"""Which lanes, topics and types of events are paused (`orders pause`); every worker follows it."""

OPERATIONS: Final = "orders.operations"
"""Who did what with the commands that write, when and why (`orders operations`)."""

BULK: Final = tuple(spec.type for spec in incoming.BULK)
"""Parts of bulk jobs. Read by the bulk workers' own group, which puts what is in
them on the ordinary topics.
"""

BULK_COMPLETED: Final = "bulk.completed"
"""Every part of a job has been unpacked."""
