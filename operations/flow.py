"""How many records came in and went out over the last hour, by the brokers' offsets: nothing is kept for it,
so it is there after a restart, and any number of processes say the same.
"""

from __future__ import annotations

import itertools
import time
from types import TracebackType
from typing import Final, NamedTuple, Self

from aiokafka import TopicPartition

from contracts.topics import DERIVED, INPUT
from settings import Settings
from wire.log import LogReader

STEP: Final = 120
"""Seconds of one point."""
POINTS: Final = 30


class Point(NamedTuple):
    """Records a second from `at` (seconds since 1970) on, for STEP seconds."""

    at: int
    taken_in: float
    sent: float


class FlowReader:
    """Reads the flow again and again. An async context manager; entering raises KafkaConnectionError.

    What offsets were at a time that has passed doesn't change, so it is asked for once.
    """

    def __init__(self, settings: Settings) -> None:
        self._log = LogReader(settings, "orders-flow")
        self._places: tuple[list[TopicPartition], list[TopicPartition]] = ([], [])
        self._known: dict[int, tuple[int, int]] = {}

    async def __aenter__(self) -> Self:
        await self._log.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._log.__aexit__(kind, error, trace)

    async def look(self) -> list[Point]:
        """The points of the last hour whose time is over, the oldest first.

        Blocks for a round trip for each point that isn't known yet. Raises KafkaError.
        """
        if not self._places[0]:
            self._places = (await self._of(INPUT), await self._of(DERIVED))
        last = int(time.time()) // STEP * STEP
        marks = [last - STEP * n for n in range(POINTS, -1, -1)]
        self._known = {mark: known for mark, known in self._known.items() if mark >= marks[0]}
        for mark in marks:
            if mark not in self._known:
                self._known[mark] = await self._at(mark)
        return points(self._known)

    async def _of(self, topics: tuple[str, ...]) -> list[TopicPartition]:
        return [TopicPartition(name, each) for name in topics for each in await self._log.partitions(name)]

    async def _at(self, mark: int) -> tuple[int, int]:
        incoming, outgoing = self._places
        offsets = await self._log.since([*incoming, *outgoing], mark * 1000)
        return sum(offsets[each] for each in incoming), sum(offsets[each] for each in outgoing)


def points(known: dict[int, tuple[int, int]]) -> list[Point]:
    """Time -> offsets in and out, as rates between each time and the one after it. Pure."""
    marks = sorted(known)
    return [
        Point(
            mark,
            max(0, known[after][0] - known[mark][0]) / (after - mark),
            max(0, known[after][1] - known[mark][1]) / (after - mark),
        )
        for mark, after in itertools.pairwise(marks)
    ]
