"""Errors of the local stack: what happened, what to do, and the last lines of the server's own log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from errors import OrdersError

TAIL_LINES = 15

_FRAME: Final = re.compile(r"(?:\s|\\t)*(?:at [\w.$/@<>]+\(|\.\.\. \d+ more)")
"""A line of a Java trace that says where, not what. The start of a log line may hold a tab as two letters."""
_NO_ROOM: Final = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)

SEE_BELOW = "see the last lines"
"""The remedy where only the log knows what is wrong."""


class StackError(OrdersError):
    """A server that cannot be started, a folder that cannot be used, a jar that is not the locked one."""


def tail(log: Path, lines: int = TAIL_LINES) -> str:
    """The last lines of a log, indented, or a note that there are none. Blocks for one small read."""
    try:
        with log.open("rb") as file:
            file.seek(0, 2)
            file.seek(max(0, file.tell() - 64 * 1024))
            text = file.read().decode("utf-8", "replace")
    except OSError as error:
        return f"    (its log cannot be read: {error})"
    return last_of(text, lines) or "    (its log is empty)"


def last_of(text: str, lines: int = TAIL_LINES) -> str:
    """The last lines that say something, indented. Pure."""
    last = [line for line in spoken(text) if line.strip()][-lines:]
    return "\n".join(f"    {line[:500]}" for line in last)


def spoken(text: str) -> list[str]:
    """The lines of a log without the frames of Java's traces, or where one line holds a whole trace. Pure."""
    lines = text.replace("\\n", "\n").replace("\\t", "\t").splitlines()
    return [line for line in lines if not _FRAME.match(line)]


def full(text: str) -> bool:
    """Whether a log says that its file system has no room. Pure."""
    return _NO_ROOM.search(text) is not None


def failed(message: str, last: str, folder: Path, remedy: str) -> StackError:
    """The error of a program that failed, by its last lines: that the disk of its folder is full, if they say
    so. Pure."""
    if full(last):
        return StackError(f"{message}: the disk of {folder} is full", "make room there")
    return StackError(message, remedy, log=last)
