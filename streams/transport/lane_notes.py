"""What a lane leaves with its committed offsets for whoever has it next: it moves with the lane.

It follows the totals of streams.transport.waits in the metadata of the lane's offsets: of one of them a word,
of the others where logs ended that the lane writes to (LaneSpec.tracked). A version that doesn't know it
commits that offset without it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

_WORD: Final = re.compile(r"[a-z-]{0,32}")
_ENDS: Final = re.compile(r"waits [0-9a-f ]{1,100}; ends ([0-9a-f]{1,16}(?: [0-9a-f]{1,16}){0,15})")
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


def with_ends(metadata: str, ends: Sequence[int]) -> str:
    """The metadata of an offset with where logs end, at most 16; without any as it is. Pure."""
    return f"{metadata}; ends {' '.join(f'{end:x}' for end in ends)}" if ends else metadata


def ends_of(metadata: str) -> tuple[int, ...]:
    """Where logs ended, in an offset's metadata; empty where it doesn't say, whatever else is there. Pure."""
    match = _ENDS.fullmatch(metadata)
    return () if match is None else tuple(int(end, 16) for end in match.group(1).split(" "))
