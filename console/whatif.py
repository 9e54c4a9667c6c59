"""What one more event would change of an order, and what would leave: folded as a lane folds it, written
nowhere.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple
from uuid import UUID

import msgspec

from api.binding import Record as Sent
from contracts.topics import DECISIONS, DLQ
from domain.explain import explain
from domain.order import Order
from operations.history import at_hand, fold
from settings import Settings
from streams.folder import BatchFolder
from streams.partitioner import partition_of
from tables import codec

MOST_ROUNDS: Final = 50
"""Decisions that follow from each other; each is a record that comes back into the lane."""
_OUTSIDE: Final = ("facts", "why", "order_id", "as_of")
"""Members of an explanation that aren't compared: facts are listed, rules follow from the rest."""


@dataclass(slots=True)
class Taken:
    """A record as a lane takes it in (streams.dead_letters.Record)."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, Any]]
    timestamp: int
    timestamp_type: int


class Change(NamedTuple):
    """What is otherwise: where in the explanation (domain.explain), and its value before and after; "": there
    was, or would be, none.
    """

    path: str
    before: str
    after: str


class Leaving(NamedTuple):
    """An event that would be published, and its data as JSON for a person."""

    type: str
    data: str


class WhatIf(NamedTuple):
    """What an event would come to. `version`: the order's before; `refused`: (code, detail) of dead letters.
    `whole`: whether all that follows was looked at.
    """

    version: int
    status: str | None
    status_then: str | None
    changes: list[Change]
    facts: list[dict[str, Any]]
    leaves: list[Leaving]
    refused: list[tuple[str, str]]
    whole: bool

    @property
    def nothing(self) -> bool:
        """Whether nothing would change: the fact is known already."""
        return not (self.changes or self.facts or self.leaves or self.refused)


def what_if(settings: Settings, order_id: UUID, order: Order | None, event: Sent) -> WhatIf:
    """Fold an event, and the decisions that follow from it, into an order. Pure but for the time of day."""
    folder, lane = BatchFolder(settings), partition_of(str(order_id).encode(), settings.partitions)
    states = {} if order is None else {order_id.bytes: codec.encode(order)}
    before = _explained(order_id, states)
    now = int(time.time() * 1000)
    waiting = [Taken(event.topic, lane, 0, event.key, event.value, list(event.headers), now, 1)]
    leaves: list[Leaving] = []
    refused: list[tuple[str, str]] = []
    rounds = 0
    while waiting and rounds < MOST_ROUNDS:
        rounds += 1
        coming: list[Taken] = []
        for output in fold(folder, lane, waiting, at_hand(states)):
            states |= output.states
            for topic, records in output.out.items():
                for record in records:
                    content = record.content()
                    if topic == DECISIONS:
                        place = (topic, lane, rounds * 1_000 + len(coming))
                        coming.append(Taken(*place, record.key, content, record.headers, now, 1))
                    if topic == DLQ:
                        named = dict(record.headers)
                        refused.append((_text(named.get("dlq_reason")), _text(named.get("dlq_detail"))))
                    else:
                        leaves.append(Leaving(topic, _pretty(content)))
        waiting = coming
    after = _explained(order_id, states)
    old = [_fact(fact) for fact in before["facts"]]
    return WhatIf(
        before["version"],
        before.get("status"),
        after.get("status"),
        list(changes_between(before, after)),
        [fact for fact in after["facts"] if _fact(fact) not in old],
        leaves,
        refused,
        whole=not waiting,
    )


def _explained(order_id: UUID, states: dict[bytes, bytes]) -> dict[str, Any]:
    state = states.get(order_id.bytes)
    return explain(order_id.bytes, Order() if state is None else codec.decode(state))


def _fact(fact: dict[str, Any]) -> tuple[object, ...]:
    return fact["type"], fact["time"], fact["what"]


def changes_between(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    """The values of two documents that differ, by their paths. Pure."""
    old, new = (dict(_flat(document)) for document in (before, after))
    for path in dict.fromkeys([*old, *new]):
        if old.get(path) != new.get(path):
            yield Change(path, old.get(path, ""), new.get(path, ""))


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The leaves of a document by their paths: `money.captured`, `lines[0].live`."""
    if isinstance(value, dict):
        for name, member in value.items():
            if path or name not in _OUTSIDE:
                yield from _flat(member, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for index, member in enumerate(value):
            yield from _flat(member, f"{path}[{index}]")
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _text(value: bytes | None) -> str:
    return (value or b"").decode("utf-8", "replace")


def _pretty(value: bytes | None) -> str:
    return "" if value is None else msgspec.json.format(value, indent=2).decode()
