"""The lanes of a replay shared out among processes, and what these tell put together.

A process replays its lanes into states of its own, since one process alone may write to a RocksDB, and
compares their orders itself. A short log is replayed by the process that asks.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

from audit.processes import Job, side_by_side, usable_cores
from settings import Settings
from streams.lag import Lag, LagReader
from streams.lanes import lanes

RECORDS_A_PROCESS: Final = 40_000
"""Fewer aren't worth the start of another process."""

Progress = Callable[[int, int], None]
"""Called with how much is done and the total."""
Say = Callable[[str], None]
"""Called with the name of each step."""


class Share(NamedTuple):
    """The lanes that one of `of` processes has."""

    number: int
    of: int

    def has(self, lane: int) -> bool:
        """Tell whether the lane is among them."""
        return lane % self.of == self.number


ALL: Final = Share(0, 1)


def worth_processes(records: int | None) -> bool:
    """Tell whether so many records are worth the start of processes; None: nobody knows how many. Pure."""
    return records is None or records >= RECORDS_A_PROCESS


class Log(NamedTuple):
    """A group's lag, and the numbers of partitions that its topics had before."""

    lag: Lag
    former: Sequence[int]

    @property
    def processes(self) -> int:
        """How many processes are worth it to replay it: as many as there are cores at most."""
        lanes = len({lane for _, lane in self.lag})
        records = sum(position.committed for position in self.lag.values())
        return max(1, min(usable_cores(), lanes, records // RECORDS_A_PROCESS))


async def look(settings: Settings) -> Log:
    """Look at a group's log. Blocks. Raises TopicsMissing, PartitionMismatch, KafkaError."""
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(LagReader(settings))
        return Log(await reader.lag(), (await lanes(settings)).former)


class Step(NamedTuple):
    """A process says which step it begins."""

    what: str


class Done(NamedTuple):
    """A process says how much of its step is done."""

    done: int
    total: int


class Result(NamedTuple):
    """A process says what came of its share."""

    value: Any


Tell = Callable[[Step | Done | Result], None]
Work = Callable[[Tell], Awaitable[None]]
"""The work on one share: it tells its steps, how much is done, and the result last. Picklable, and so is
what it tells."""


async def share_out(work: Sequence[Work], progress: Progress, say: Say, *, apart: bool = True) -> list[Any]:
    """Do all of the work, each in a process of its own if there is more than one, and return the results.
    Without `apart` this process does all of it.

    Blocks. Raises what the first one raised that failed, and audit.processes.ProcessLost.
    """
    # Millions of objects are freed by their reference counts: a search for cycles after every 700 of them
    # was a third of a replay.
    gc.set_threshold(100_000, 50, 100)
    together = Together(len(work), progress, say)
    if len(work) == 1 or not apart:
        for number, each in enumerate(work):
            await each(partial(together.hear, number))
    else:
        jobs: list[Job] = [_Numbered(number, each) for number, each in enumerate(work)]
        await side_by_side(jobs, lambda message: together.hear(*message))
    return together.results


@dataclass(frozen=True, slots=True)
class _Numbered:
    """A job of audit.processes: work whose messages say whose they are."""

    number: int
    work: Work

    async def __call__(self, say: Callable[[object], None]) -> None:
        await self.work(lambda message: say((self.number, message)))


class Together:
    """What several processes tell, as if it were one: the step of the one that is furthest back, and how
    much of this step all have done."""

    def __init__(self, count: int, progress: Progress, say: Say) -> None:
        self._progress = progress
        self._say = say
        self._steps: list[str] = []
        self._at = [-1] * count
        self._shown = -1
        self._done: list[dict[int, Done]] = [{} for _ in range(count)]
        self._results: dict[int, Any] = {}

    @property
    def results(self) -> list[Any]:
        """What came of each share, once all are done."""
        return [self._results[number] for number in range(len(self._at))]

    def hear(self, number: int, message: Step | Done | Result) -> None:
        """Take in what one of them tells."""
        if isinstance(message, Result):
            self._results[number] = message.value
            self._at[number] = sys.maxsize
        elif isinstance(message, Done):
            self._done[number][self._at[number]] = message
        else:
            if message.what not in self._steps[self._at[number] + 1 :]:
                self._steps.append(message.what)
            self._at[number] = self._steps.index(message.what, self._at[number] + 1)
        self._show()

    def _show(self) -> None:
        last = min(self._at)
        if last >= len(self._steps):
            return
        if last > self._shown:
            self._shown = last
            self._say(self._steps[last])
        latest = [each[last] for each in self._done if last in each]
        if latest:
            self._progress(sum(each.done for each in latest), sum(each.total for each in latest))
