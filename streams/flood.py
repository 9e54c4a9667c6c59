"""Notices when many records of one topic are refused within a minute. Pure but for the callback."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable
from typing import Final

WINDOW_SECONDS: Final = 60.0


class Flood:
    """Counts the refused records of each topic, of one worker."""

    def __init__(self, most: int, notice: Callable[[str, int], None]) -> None:
        """`notice` is called with a topic and its number once more than `most` were refused in
        WINDOW_SECONDS; then its count begins anew. 0: never.
        """
        self._most = most
        self._notice = notice
        self._counts: dict[str, deque[tuple[float, int]]] = defaultdict(deque)

    def add(self, topic: str, count: int, now: float) -> None:
        """`count` more were refused. `now`: seconds by a clock that only goes on."""
        if not self._most or not count:
            return
        counts = self._counts[topic]
        counts.append((now, count))
        while counts[0][0] <= now - WINDOW_SECONDS:
            counts.popleft()
        total = sum(number for _, number in counts)
        if total > self._most:
            counts.clear()
            self._notice(topic, total)
