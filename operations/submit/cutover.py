"""Orders of a file that were placed long before it is sent: another system handled them until some time, or
they are meant as new all the same.
"""

from __future__ import annotations

from time import time
from typing import NamedTuple, Self

from contracts import times
from contracts.errors import Refused
from errors import OrdersError
from operations.submit.rows import Row
from settings import Settings


class CutOver(NamedTuple):
    """`live_from`: until when another system handled the orders of a file, RFC 3339 in UTC; None: that isn't
    said. `old_before`: orders that were placed earlier are old, microseconds since 1970.
    """

    live_from: str | None = None
    old_before: int = -(1 << 62)

    @classmethod
    def of(cls, settings: Settings, live_from: str | None) -> Self:
        """By the clock of this machine. Raises OrdersError: `live_from` is no time, or still to come."""
        now = int(time() * 1_000_000)
        old_before = now - settings.deadline_policy.history * 1000
        if live_from is None:
            return cls(None, old_before)
        try:
            moment = times.parse(live_from, "--live-from")
        except Refused:
            raise OrdersError(
                f"--live-from: {live_from!r} is not an RFC 3339 time with its offset",
                "give one such as 2026-03-10T12:00:00Z",
            ) from None
        if moment > now:
            raise OrdersError(
                f"--live-from {live_from} is still to come",
                "send the file after it, when all that happened before is known",
            )
        return cls(times.text(moment), old_before)

    def applied(self, row: Row) -> Row:
        """The same order with this live_from, if it has none of its own."""
        if self.live_from is None or row.error is not None or "live_from" in row.values:
            return row
        raw = row.raw
        if raw is not None and row.values:
            at = raw.index(b"{") + 1
            raw = raw[:at] + f'"live_from":"{self.live_from}",'.encode() + raw[at:]
        return row._replace(values={**row.values, "live_from": self.live_from}, raw=raw)

    def is_old(self, row: Row) -> bool:
        """Whether a valid order would be sent as new, though it was placed long ago."""
        return "live_from" not in row.values and times.parse(row.values["time"], "") < self.old_before
