"""Metrics of requests, with labels that are bounded whoever asks for what."""

from __future__ import annotations

from typing import Final

from api.callers import Caller
from streams.metrics import HTTP_KEYS, HTTP_REQUESTS, HTTP_SECONDS

MOST_KEYS: Final = 100
"""Names of keys that have series of their own."""
METHODS: Final = frozenset({"GET", "HEAD", "POST"})

_keys: Final[set[str]] = set()
"""Names that have series."""


def counted(
    service: str, method: str, route: str, status: int, source: str, caller: Caller | None, seconds: float
) -> None:
    """Count an answered request. `route`: the template, `-` where none matched. Never blocks."""
    shown = "none" if route == "-" else route
    HTTP_REQUESTS.labels(service, method if method in METHODS else "other", shown, str(status), source).inc()
    HTTP_SECONDS.labels(service, shown).observe(seconds)
    HTTP_KEYS.labels(service, _key(caller), f"{status // 100}xx").inc()


def refused(service: str, status: int) -> None:
    """Count a request that was refused before it was there as a whole: its method and its route aren't known,
    nor how long it took. Never blocks.
    """
    HTTP_REQUESTS.labels(service, "other", "none", str(status), "none").inc()
    HTTP_KEYS.labels(service, "none", f"{status // 100}xx").inc()


def _key(caller: Caller | None) -> str:
    if caller is None:
        return "none"
    name = caller.name
    if name.startswith("jwt:"):  # as many as there are users
        return "token"
    if name not in _keys:
        if len(_keys) >= MOST_KEYS:
            return "others"
        _keys.add(name)
    return name
