"""A word that a lane leaves with its committed offsets for whoever has it next: it moves with the lane.

It follows the totals of streams.transport.waits in the metadata of one of the lane's offsets. A version that
doesn't know it commits that offset without it.
"""

from __future__ import annotations

import re
from typing import Final

_WORD: Final = re.compile(r"[a-z-]{0,32}")
_NOTE: Final = re.compile(r"waits [0-9a-f ]{1,100}; lane ([a-z-]{1,32})")


def with_note(metadata: str, note: str) -> str:
    """The metadata of an offset with a lane's note. Pure. Raises ValueError for what is no such word."""
    if not _WORD.fullmatch(note):
        raise ValueError(f"{note!r} can't be a lane's note: at most 32 small letters and dashes")
    return f"{metadata}; lane {note}" if note else metadata


def note_of(metadata: str) -> str:
    """The lane's note in an offset's metadata; empty where there is none, whatever else is there. Pure."""
    match = _NOTE.fullmatch(metadata)
    return "" if match is None else match.group(1)
