"""What an operator does about an error of the transport, which knows none of our commands and settings."""

from __future__ import annotations

from typing import Final

from streams.transport import errors

REMEDIES: Final[dict[type[BaseException], str]] = {
    errors.FolderInUse: "Give this worker a --name of its own, or an ORDERS_DATA of its own",
    errors.GaveUp: "ORDERS_RETRY_LIMIT says how long it is tried again",
    errors.GroupShut: "`orders repair` or `orders rebuild` is at work in it, or members that are no workers are in it: start this worker "
    "again when they are gone",
    errors.Stalled: "ORDERS_STALL_TIMEOUT says how long that may take",
    errors.TooFewPartitions: "Set ORDERS_PARTITIONS to what they have (to give them more, see orders partitions --help)",
    errors.TopicsMissing: "Run `orders init` first",
    errors.TransactionsRefused: "ORDERS_TRANSACTION_TIMEOUT sets the first of these",
    errors.Unreachable: "ORDERS_KAFKA says where it is looked for",
    errors.WritersTimes: "orders init says how to set it",
}
