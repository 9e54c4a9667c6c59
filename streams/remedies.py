"""Remedies for errors of the transport, which doesn't know our commands and settings itself."""

from __future__ import annotations

from typing import Final

from streams.transport import errors

REMEDIES: Final[dict[type[BaseException], str]] = {
    errors.DiskFull: (
        "make room, or set ORDERS_DATA to where there is some, and start the worker again: nothing is lost"
    ),
    errors.FolderInUse: "give this worker a --name of its own, or an ORDERS_DATA of its own",
    errors.GaveUp: (
        "start the worker again when that works; ORDERS_RETRY_LIMIT says how long it is tried again"
    ),
    errors.GroupShut: (
        "start the worker again when orders repair or orders rebuild has ended, or members that are no"
        " workers have left"
    ),
    errors.Stalled: "start the worker again; ORDERS_STALL_TIMEOUT says how long that may take",
    errors.TooFewPartitions: (
        "set ORDERS_PARTITIONS to what they have (to give them more, see orders partitions --help)"
    ),
    errors.UnknownTopics: "run orders init first",
    errors.Unreachable: "start it, or set where it is (ORDERS_KAFKA)",
    errors.WritersTimes: "orders init says how to set it",
}
