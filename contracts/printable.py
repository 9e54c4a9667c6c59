"""Text that came from outside (an event, a file, a server, an argument, a setting), made harmless for a
terminal, and for a file that somebody looks at in one.
"""

from __future__ import annotations

from typing import Final

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


def _harmless(char: str) -> bool:
    return char.isprintable() and char not in _UNSEEN
