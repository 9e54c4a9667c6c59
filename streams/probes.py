"""What a worker answers on ORDERS_METRICS_PORT beside its metrics: whether it lives, and whether it works.

/live: 200 while the event loop turns, also when servers are away, which no restart would mend. /ready: 200
while all lanes that are this worker's are open; a worker that stands by, without lanes, is ready too.
Otherwise 503. Each answer is a line of text.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Final

TURN_SECONDS: Final = 4.0
"""How long the loop may take to answer: less than what probes wait, more than its longest step."""

Answer = tuple[str, str]
"""Status line and text."""


class Probes:
    """A WSGI application over another one, which gets every other path. Served in threads of its own."""

    def __init__(self, metrics: Callable[..., Iterable[bytes]]) -> None:
        self._metrics = metrics
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waits: Callable[[], str | None] = lambda: "it starts"

    def watch(self, loop: asyncio.AbstractEventLoop, waits: Callable[[], str | None]) -> None:
        """From now on ask this loop. `waits` is called in it and tells why no work is done there, or None."""
        self._waits, self._loop = waits, loop

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a request. Blocks for TURN_SECONDS at most."""
        path = environ.get("PATH_INFO")
        if path not in ("/live", "/ready"):
            return self._metrics(environ, start_response)
        status, text = self._answer(path == "/ready")
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{text}\n".encode()]

    def _answer(self, ready: bool) -> Answer:
        if self._loop is None:  # what comes before the loop is bounded: it ends or begins
            return ("503 Service Unavailable", "it starts") if ready else ("200 OK", "it starts")
        answered: Future[str | None] = Future()

        def turn() -> None:
            if answered.set_running_or_notify_cancel():
                answered.set_result(self._waits())

        try:
            self._loop.call_soon_threadsafe(turn)
            waits = answered.result(TURN_SECONDS)
        except RuntimeError:  # the loop is closed
            return "503 Service Unavailable", "it ends"
        except TimeoutError:
            answered.cancel()
            return "503 Service Unavailable", f"the event loop hasn't turned for {TURN_SECONDS:g} s"
        return ("503 Service Unavailable", waits) if ready and waits else ("200 OK", waits or "ready")
