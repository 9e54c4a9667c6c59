"""What a process answers on ORDERS_METRICS_PORT beside its metrics: whether it lives, and whether it works.

A worker's /live: 200 while the event loop turns and no lane stands still, also when servers are away, which
no restart would mend. /ready: 200 while all lanes that are this worker's are open and all servers answer; a
worker that stands by, without lanes, is ready too. Otherwise 503. Each answer is a line of text. Those of
`orders api` and `orders console`: api/watch.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from typing import Any, Final, NamedTuple

TURN_SECONDS: Final = 4.0
"""How long the loop may take to answer: less than what probes wait, more than its longest step."""

Answer = tuple[str, str]
"""Status line and text."""


class Health(NamedTuple):
    """How a process does: a sentence each, or None."""

    stuck: str | None = None
    """Why it must be started again."""
    waits: str | None = None
    """Why no work is done, or not all of it, though it lives."""
    tells: str | None = None
    """What is wrong though it is ready."""


class Probes:
    """A WSGI application over another one, which gets every other path. Served in threads of its own."""

    def __init__(self, metrics: Callable[..., Iterable[bytes]]) -> None:
        self._metrics = metrics
        self._loop: asyncio.AbstractEventLoop | None = None
        self._look: Callable[[], Health] = Health

    def watch(self, loop: asyncio.AbstractEventLoop, look: Callable[[], Health]) -> None:
        """From now on ask this loop. `look` is called in it."""
        self._look, self._loop = look, loop

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
        answered: Future[Health] = Future()

        def turn() -> None:
            if answered.set_running_or_notify_cancel():
                answered.set_result(self._look())

        try:
            self._loop.call_soon_threadsafe(turn)
            health = answered.result(TURN_SECONDS)
        except RuntimeError:  # the loop is closed
            return "503 Service Unavailable", "it ends"
        except TimeoutError:
            answered.cancel()
            return "503 Service Unavailable", f"the event loop hasn't turned for {TURN_SECONDS:g} s"
        wrong = health.stuck or (health.waits if ready else None)
        if wrong:
            return "503 Service Unavailable", wrong
        line = f"ready, but {health.tells}" if health.tells else "ready"
        return "200 OK", health.waits or line
