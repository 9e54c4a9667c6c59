"""The threads in which an event loop runs what would block it: steps of a login, look-ups of names."""

from __future__ import annotations

import asyncio

TIMEOUT = 1.0
"""Seconds that a thread in which something runs has to end."""


async def end_executor() -> None:
    """End the threads of the running loop's default executor: idle ones too look like threads that hang.
    The loop has no others afterwards. Blocks for TIMEOUT seconds at most.
    """
    # In a task that is left alone: the loop itself would wait for a thread that hangs.
    ending = asyncio.ensure_future(asyncio.get_running_loop().shutdown_default_executor())
    await asyncio.wait({ending}, timeout=TIMEOUT)
