"""How the local stack fails: what happened, what to do, and a server's own last words where there are any."""

from __future__ import annotations

from pathlib import Path

from errors import OrdersError

TAIL_LINES = 15

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
    last = [line for line in text.splitlines() if line.strip()][-lines:]
    return "\n".join(f"    {line[:500]}" for line in last) or "    (its log is empty)"
