"""How long records wait in a worker, from their arrival in its memory to the acknowledgement of their batch.

A worker commits its totals with its offsets, as the metadata that Kafka keeps beside each: so whoever reads
the group's offsets reads them too, and nobody has to be asked for them.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from streams.transport.records import Record, Slice

SAMPLE: Final = 64
"""How many records of a topic's part of a batch are looked at, about: a large batch costs no more for it."""

_NOTE: Final = re.compile(r"waits ([0-9a-f]{16})" + 4 * r" ([0-9]{1,18})" + r"(?:;.*)?", re.DOTALL)


class Waited(NamedTuple):
    """Records, and the milliseconds that these waited together."""

    records: int = 0
    ms: int = 0


class Totals(NamedTuple):
    """Totals of one process since its start: of records for which somebody waits, and of the others."""

    awaited: Waited
    others: Waited


class Waits:
    """The totals of this process. Added to in one thread; note() may be called in another one."""

    def __init__(self) -> None:
        self._name = secrets.token_hex(8)
        self._totals = (0.0, 0.0, 0.0, 0.0)

    def add(self, awaited: float, others: float, seconds: float) -> None:
        """So many records for which somebody waits, and others, have waited so long, each. Never blocks."""
        first, first_ms, second, second_ms = self._totals
        ms = seconds * 1000
        self._totals = (first + awaited, first_ms + awaited * ms, second + others, second_ms + others * ms)

    def note(self) -> str:
        """The totals as metadata of an offset. Never blocks."""
        return " ".join(("waits", self._name, *(str(int(total)) for total in self._totals)))


WAITS: Final = Waits()
"""Of all lanes of this process: as with its metrics, there is one of them."""


def read_notes(notes: Iterable[str]) -> dict[str, Totals]:
    """The latest totals of each process, by its name, of the metadata of a group's offsets.
    What isn't such a note is left out. Pure.
    """
    latest: dict[str, Totals] = {}
    for match in map(_NOTE.fullmatch, set(notes)):
        if match is not None:
            name, *numbers = match.groups()
            awaited, awaited_ms, others, others_ms = map(int, numbers)
            totals = Totals(Waited(awaited, awaited_ms), Waited(others, others_ms))
            latest[name] = max(totals, latest.get(name, totals), key=lambda each: sum(map(sum, each)))
    return latest


def awaited(slices: Sequence[Slice], counts: Callable[[Record], bool]) -> float:
    """About how many of these records count, by a sample of each topic's. Pure, if `counts` is."""
    number = 0.0
    for part in slices:
        size = len(part.records)
        if size:
            sample = part.records[:: -(-size // SAMPLE)]
            number += size * sum(map(counts, sample)) / len(sample)
    return number
