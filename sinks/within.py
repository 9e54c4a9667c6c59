"""A limit for how long a server takes. What this process's own event loop is busy with doesn't count."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Final, Self

LOOKS: Final = 10
"""In so many parts the limit passes. Between two of them the loop has read whatever had come."""
_TURNS: Final = 4
"""Of the loop, after the last part: an answer that has come wakes its reader, which takes it in."""


class answered_within:  # noqa: N801 - as asyncio.timeout
    """Limit the time of an answer: `async with answered_within(seconds)`.

    It is like asyncio.timeout, but a loop that stands still, because it folds for 200 ms for example, uses up
    at most a tenth of `seconds` each time.

    Raises TimeoutError `seconds` after the beginning or, with a busy loop, later, but never before an answer
    that has arrived is read. A caller that asks several times within one limit reports each answer.
    """

    def __init__(self, seconds: float) -> None:
        self._part = seconds / LOOKS
        self._looks = 0
        self._late = 0
        self._timeout = asyncio.timeout(None)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._timeout.__aenter__()
        self._wait()
        return self

    def answered(self) -> None:
        """The server has answered, and the next question follows: parts that a busy loop
        used up don't count any more.
        """
        self._looks -= self._late
        self._late = 0

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._next.cancel()
        await self._timeout.__aexit__(kind, error, trace)

    def _wait(self) -> None:
        self._due = self._loop.time() + self._part
        self._next: asyncio.Handle = self._loop.call_at(self._due, self._check_due)

    def _check_due(self) -> None:
        self._looks += 1
        if self._looks <= LOOKS and self._loop.time() > self._due + self._part:
            self._late += 1
        if self._looks < LOOKS:
            self._wait()
        elif self._looks < LOOKS + _TURNS:
            self._next = self._loop.call_soon(self._check_due)
        else:
            self._timeout.reschedule(self._loop.time())
