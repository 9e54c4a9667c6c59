"""What many histories come to, as text: the same, whether the rules are compiled or run from their source.

`python -m tests.forms FIRST COUNT` prints a line for each of COUNT seeds: a digest of all that is published,
of states, rows, cache entries and counts.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from random import Random
from typing import Any, Final, NamedTuple

from contracts.topics import DECISIONS
from operations.history import MemoryBatch
from settings import Settings
from streams.folder import BatchFolder, BatchOutput
from tables import codec
from tests.fuzz import records as fuzzed
from tests.property.records import dense

_HOUR_MS: Final = 3_600_000


class Taken(NamedTuple):
    """A record as a lane has it."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes | None]]
    timestamp: int
    timestamp_type: int


def digest(seed: int) -> str:
    """Fold some orders, dense and broken ones, in batches of any size; their decisions come back, and time
    passes."""
    rng = Random(seed)
    given: list[Any] = [each for n in range(3) for each in dense(rng.randrange(1_000), rng)]
    given += [fuzzed.record(seed, n) for n in range(40)]
    rng.shuffle(given)
    folder = BatchFolder(Settings(partitions=1))
    states: dict[bytes, bytes] = {}
    hashed = hashlib.sha256()
    offset = 0
    moment = _HOUR_MS
    while given:
        some, given = given[: (size := rng.randint(1, 90))], given[size:]
        taken: list[Any] = []
        for each in some:
            key = getattr(each, "key", None)
            taken.append(Taken(each.topic, 0, offset, key, each.value, each.headers, moment, 1))
            offset += 1
        while taken:
            batch = MemoryBatch(0, taken)
            output = folder.fold(batch, lambda keys: [states.get(key) for key in keys])
            given += _came_to(hashed, output, states)
            taken = list(batch.left)
        moment += rng.randrange(48 * _HOUR_MS)
        due = [(codec.due_of(state), order_id, state) for order_id, state in states.items()]
        passed = [each for each in due if 0 < each[0] <= moment]
        given += _came_to(hashed, folder.pass_deadlines(passed, moment), states)
    return hashed.hexdigest()


def _came_to(hashed: Any, output: BatchOutput, states: dict[bytes, bytes]) -> Sequence[Any]:
    """Takes in what a batch came to; returns the decisions, which come back."""
    states.update(output.states)
    for topic, records in sorted(output.out.items()):
        for each in records:
            headers = [header for header in each.headers if header[0] != "dlq_time"]
            hashed.update(repr((topic, each.key, each.content(), headers, each.partition)).encode())
    rows = output.rows
    for part in (*(getattr(rows, name) for name in rows.__slots__), output.cache):
        for text in sorted(map(repr, part)):
            hashed.update(text.encode())
    rest = (sorted(output.states.items()), output.moved, output.outcomes, output.letters, output.deadlines)
    hashed.update(repr(rest).encode())
    return [
        Taken(DECISIONS, 0, 0, each.key, each.content(), each.headers, 0, 1)
        for each in output.out.get(DECISIONS, ())
    ]


if __name__ == "__main__":
    first, count = map(int, sys.argv[1:])
    for seed in range(first, first + count):
        print(digest(seed))
