"""Who calls, and how often they may."""

from __future__ import annotations

import math
import time
from typing import Final

from api.scopes import Scopes


class Caller:
    """Whoever has shown a key or a token. `name`: what the access log calls them.

    `until`: seconds since 1970 from which on their key counts no more. `rate`: requests a second, by a bucket
    that holds those of one second, at least one; 0: as many as they like.
    """

    __slots__ = ("_bucket", "name", "rate", "scopes", "until")

    def __init__(self, name: str, scopes: Scopes, *, until: float = math.inf, rate: float = 0.0) -> None:
        self.name = name
        self.scopes = scopes
        self.until = until
        self.rate = rate
        # Requests that are left, and when that was (time.monotonic()).
        self._bucket = [max(rate, 1.0), time.monotonic()]

    def wait(self, now: float) -> float:
        """Count a request at `now` (time.monotonic()) -> seconds until it may be sent; 0: it is admitted."""
        if not self.rate:
            return 0.0
        left, then = self._bucket
        left = min(max(self.rate, 1.0), left + (now - then) * self.rate)
        admitted = left >= 1.0
        self._bucket[:] = left - admitted, now
        return 0.0 if admitted else (1.0 - left) / self.rate

    def count_as(self, other: Caller) -> None:
        """Count its requests together with the other one's from now on."""
        self._bucket = other._bucket

    def same(self, other: Caller) -> bool:
        """Whether the other one is the same but for what is left of its rate."""
        return (self.name, self.scopes, self.until, self.rate) == (
            other.name,
            other.scopes,
            other.until,
            other.rate,
        )


SCOPE: Final = "orders.caller"
"""Where a request's ASGI scope has its Caller."""
