"""Text for a terminal, in lines: what came from outside made harmless by contracts.printable."""

from __future__ import annotations

from typing import TextIO

from contracts.printable import printable


def one_line(text: object) -> str:
    """Make a text of several lines, such as a server's error, printable in one line."""
    return printable(" ".join(line.strip() for line in str(text).splitlines() if line.strip()))


def say(text: object, *, lines: bool = False, file: TextIO | None = None) -> None:
    """Print text that may hold something from outside, harmless, on stdout or `file`: as one line, so that
    nothing in it can pass for a line of ours, unless `lines`.

    Whoever prints without a console prints by this; `print` is for JSON. Blocks as print does.
    """
    print(printable(text, lines=lines), file=file)


def second(time: str) -> str:
    """An RFC 3339 time in UTC to the second; another text as it is."""
    return f"{time[:19]}Z" if time.endswith(("+00:00", "Z")) else time


def encodable(text: str, encoding: str) -> str:
    """Escape the characters that an encoding lacks."""
    try:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    except (LookupError, UnicodeError):
        return text
