"""The lease: proof that the group still counts this worker in.

A paused worker (SIGSTOP, a suspended machine, a long stall) doesn't notice that its partitions were
given away. It may write only while the last heartbeat that the coordinator accepted was *sent* less
than TERM of a session ago.
"""

from __future__ import annotations

import time

TERM = 0.8
"""Fraction of the session timeout. The rest is for what is on its way to the broker already."""


def clock() -> float:
    """Seconds that go on while the machine is suspended, where the system has such a clock."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


class Lease:
    """Pure: decides from times that it is told. Read by the main thread, renewed by the consumer thread."""

    __slots__ = ("proven", "term")

    def __init__(self, session_timeout: float) -> None:
        self.term = session_timeout * TERM
        self.proven = float("-inf")

    def renew(self, sent: float) -> None:
        """The coordinator accepted a request that was sent at `sent`."""
        self.proven = max(self.proven, sent)

    def valid(self, now: float) -> bool:
        """True while writing is allowed."""
        return now - self.proven < self.term
