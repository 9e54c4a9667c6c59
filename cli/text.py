"""Text that came from outside (an event, a file, a server, an argument, a setting),
made harmless for a terminal.
"""

from __future__ import annotations

from typing import Final, TextIO

_UNSEEN: Final = frozenset(
    map(
        chr,
        (
            0x34F,
            0x115F,
            0x1160,
            0x17B4,
            0x17B5,
            *range(0x180B, 0x1810),
            0x3164,
            0xFFA0,
            *range(0xE0100, 0xE01F0),
        ),
    )
)
"""What Python calls printable and nobody sees."""


def printable(text: object, *, lines: bool = False) -> str:
    """Text that can't move the cursor, change colours, turn the direction of writing or hide anything: what
    would is escaped, as in \\x1b.

    A line break is escaped too, unless `lines`: then what is printed may have several.
    For Rich it still has to be printed as text, not as markup. Never blocks, never raises.
    """
    plain = str(text)
    if plain.isascii() and plain.isprintable():
        return plain
    return "".join(
        char if _harmless(char) or (lines and char == "\n") else char.encode("unicode_escape").decode()
        for char in plain
    )


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


def _harmless(char: str) -> bool:
    return char.isprintable() and char not in _UNSEEN
