"""Whether a server answers, by what became of the calls to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from sinks.refusals import refusal

PATIENCE: Final = 5.0
"""Seconds after which a call without an answer says that its server is away. Calls take 0.1 s."""


class Availability:
    """Of one server. It asks nothing itself: who calls the server does so within `asked`."""

    def __init__(
        self, answers: tuple[type[Exception], ...] = (), clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`answers`: exceptions that a server raises which is there."""
        self._answers = answers
        self._clock = clock
        self._began: list[float] = []
        """When the calls began that have no answer yet."""
        self._failing_since: float | None = None
        self.refusal: str | None = None
        """Why the server refused the last call, which failed; None: nothing says that it is there."""

    @contextmanager
    def asked(self) -> Iterator[None]:
        """Around a call to the server. Raises what the call raises."""
        began = self._clock()
        self._began.append(began)
        try:
            yield
        except self._answers:
            self._failing_since = self.refusal = None
            raise
        except Exception as error:
            self.refusal = refusal(error)
            if self._failing_since is None:
                self._failing_since = began
            raise
        else:
            self._failing_since = self.refusal = None
        finally:
            self._began.remove(began)

    def away(self) -> float:
        """Seconds for which the server hasn't answered, or has refused (`refusal`); 0: it does what it
        is asked, as far as anybody has asked."""
        now = self._clock()
        since = [began for began in self._began if now - began > PATIENCE]
        if self._failing_since is not None:
            since.append(self._failing_since)
        return max((now - began for began in since), default=0.0)
