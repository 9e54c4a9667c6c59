"""Looks on once a second: how far the group is behind, how fast it goes, how large the workers are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from aiokafka.errors import KafkaError

from settings import Settings
from streams.lag import Lag, LagReader, total
from streams.topics import TopicsMissing
from tests.chaos.workers import Clock, Supervised

INTERVAL = 1.0
PATIENCE = 5.0
"""Seconds until a look is given up: the brokers are away."""


@dataclass(frozen=True, slots=True)
class Sample:
    """`at` is seconds since the run began; lag and handled are records, None while the brokers don't
    say; rss is bytes by worker.
    """

    at: float
    lag: int | None
    handled: int | None
    sent: int
    rss: dict[str, int] = field(default_factory=dict)


class Watch:
    """Samples until it is closed. Reads straight from the brokers."""

    def __init__(
        self, settings: Settings, workers: Mapping[str, Supervised], clock: Clock, sent: Callable[[], int]
    ) -> None:
        self.samples: list[Sample] = []
        self.lag: Lag | None = None
        """The last one that could be read."""
        self.read_at = float("-inf")
        """When the look at `lag` began: everything committed before it counts."""
        self._settings = settings
        self._workers = workers
        self._clock = clock
        self._sent = sent
        self._task: asyncio.Task[None] | None = None
        self._looked = asyncio.Condition()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="watch")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def caught_up(self, seconds: float, *, everything: bool = False) -> float | None:
        """Wait until what was in the logs at this moment is handled (`everything`: until the lag is 0).

        Returns the seconds that it took, or None when they were not enough.
        """
        began = self._clock.now()
        goal: dict[tuple[str, int], int] | None = None
        while True:
            remaining = began + seconds - self._clock.now()
            if remaining <= 0:
                return None
            async with self._looked:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._looked.wait(), remaining)
            lag = self.lag
            if lag is None or self.read_at < began:
                continue
            if everything:
                if total(lag) == 0:
                    return self._clock.now() - began
                continue
            if goal is None:
                goal = {partition: position.end for partition, position in lag.items()}
            if all(lag[partition].committed >= end for partition, end in goal.items()):
                return self._clock.now() - began

    async def _run(self) -> None:
        reader: LagReader | None = None
        try:
            while True:
                began = self._clock.now()
                lag: Lag | None = None
                try:
                    if reader is None:
                        reader = LagReader(self._settings)
                        await asyncio.wait_for(reader.__aenter__(), PATIENCE)
                    lag = await asyncio.wait_for(reader.lag(), PATIENCE)
                except (KafkaError, OSError, TimeoutError, TopicsMissing, KeyError):
                    if reader is not None:
                        closing, reader = reader, None
                        with contextlib.suppress(KafkaError, OSError, TimeoutError):
                            await asyncio.wait_for(closing.close(), PATIENCE)
                if lag is not None:
                    self.lag, self.read_at = lag, began
                self.samples.append(
                    Sample(
                        round(began, 2),
                        total(lag) if lag is not None else None,
                        sum(position.committed for position in lag.values()) if lag is not None else None,
                        self._sent(),
                        {
                            name: rss
                            for name, worker in self._workers.items()
                            if (rss := worker.rss) is not None
                        },
                    )
                )
                async with self._looked:
                    self._looked.notify_all()
                await asyncio.sleep(max(0.1, INTERVAL - (self._clock.now() - began)))
        finally:
            if reader is not None:
                with contextlib.suppress(Exception):
                    await asyncio.wait_for(reader.close(), PATIENCE)
