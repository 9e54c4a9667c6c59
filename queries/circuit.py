"""A circuit breaker: whether a server is asked, or known to be away."""

from __future__ import annotations

import asyncio
import logging

log = logging.getLogger(__name__)


class Circuit:
    """Opens when a server doesn't answer.
    Then it is left alone for `pause` seconds at a time, but for one request that finds out.
    """

    def __init__(self, name: str, pause: float = 1.0) -> None:
        self._name = name
        self._pause = pause
        self._until = 0.0
        self.open = False

    def admits(self) -> bool:
        """Tell whether to ask the server. While it is open, one caller at a time is admitted, to find out."""
        if not self.open:
            return True
        now = asyncio.get_running_loop().time()
        if now < self._until:
            return False
        self._until = now + self._pause
        return True

    def worked(self) -> None:
        """It answered."""
        if self.open:
            self.open = False
            log.info("reads.source_back: %s", self._name)

    def failed(self, error: BaseException) -> None:
        """It didn't."""
        self._until = asyncio.get_running_loop().time() + self._pause
        if not self.open:
            self.open = True
            log.warning(
                "reads.source_away: %s: %s", self._name, f"{type(error).__name__}: {error}".splitlines()[0]
            )
