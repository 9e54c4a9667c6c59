"""What files hold, read again when they change."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from errors import OrdersError

T = TypeVar("T")

log = logging.getLogger(__name__)


class Watched(Generic[T]):
    """A value made of files. Whoever asks for it gets it as the files are now.

    `what` names it in the log. `read` makes the value and raises OrdersError if it can't. The constructor
    raises that; later the value before stays in force, and the log says so once. A value that has become
    empty is a warning.
    """

    def __init__(self, what: str, read: Callable[[], T], *paths: Path) -> None:
        self._what = what
        self._read = read
        self._paths = paths
        # Before reading: what changes meanwhile is read again.
        self._state = self._look()
        self._value = read()

    def current(self) -> T:
        """Return the value. Blocks for a look at each file (microseconds on a local disk), and for reading
        them if one has changed.
        """
        state = self._look()
        if state != self._state:
            self._state = state
            try:
                self._value = self._read()
            except OrdersError as error:
                log.error("%s: %s; what was read before stays in force", self._what, error)
            else:
                if self._value:
                    log.info("%s: read again", self._what)
                else:
                    log.warning("%s: read again; it holds none now, so nobody is admitted by it", self._what)
        return self._value

    def _look(self) -> list[tuple[int, ...] | None]:
        return [_state(path) for path in self._paths]


def _state(path: Path) -> tuple[int, ...] | None:
    """What differs once a file was written or replaced; None: it isn't there."""
    try:
        stat = os.stat(path)
    except OSError:
        return None
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns
