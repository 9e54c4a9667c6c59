"""Waiting for something to become true, with a deadline that says what was missing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

POLL = 0.05


def until(condition: Callable[[], object], what: str, seconds: float = 30.0) -> None:
    """Block until the condition holds. Raises AssertionError that names `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"after {seconds:.0f} s still not so: {what}"
        time.sleep(POLL)


async def eventually(condition: Callable[[], Awaitable[object]], what: str, seconds: float = 30.0) -> None:
    """The same for a condition that has to be awaited."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"after {seconds:.0f} s still not so: {what}"
        await asyncio.sleep(POLL)
