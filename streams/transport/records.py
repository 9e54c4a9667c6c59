"""What lanes, batches, producers and stores hand to each other. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from msgspec import Struct


class Record(Protocol):
    """aiokafka's ConsumerRecord. `timestamp`: ms, the broker's append time if `timestamp_type` is 1."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    timestamp_type: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, Any]]


def place(name: str) -> dict[str, str]:
    """`topic/partition` as fields of a log line. Pure."""
    topic, _, partition = name.rpartition("/")
    return {"topic": topic, "partition": partition}


class OutRecord(Struct, gc=False):
    """A record to publish. `partition` None: the batch's.

    `value` may be a function that makes it when it is sent, the same each time.
    """

    key: bytes | None
    value: bytes | Callable[[], bytes] | None
    headers: list[tuple[str, Any]]
    partition: int | None = None

    def content(self) -> bytes | None:
        """The value as it is sent. Pure."""
        return self.value() if callable(self.value) else self.value


@dataclass(frozen=True, slots=True)
class Slice:
    """One topic's part of a batch: records in offset order, without a hole, and the position after them."""

    topic: str
    records: Sequence[Record]
    to: int


def cut(slices: Sequence[Slice], count: int) -> tuple[tuple[Slice, ...], tuple[Slice, ...]]:
    """The first so many records, and the others. Pure."""
    first: list[Slice] = []
    rest: list[Slice] = []
    for part in slices:
        here = min(count, len(part.records))
        count -= here
        if here == len(part.records):
            first.append(part)
            continue
        if here:
            first.append(Slice(part.topic, part.records[:here], part.records[here - 1].offset + 1))
        rest.append(Slice(part.topic, part.records[here:], part.to))
    return tuple(first), tuple(rest)


class Moved(Struct, gc=False):
    """A state's due time has changed, ms; 0: none."""

    key: bytes
    before: int
    now: int


class DueState(NamedTuple):
    """An entry of the index of due times: when, whose, and the state as it is now (None: deleted).

    The state's own due time may have changed since the entry was made.
    """

    at: int
    key: bytes
    state: bytes | None
