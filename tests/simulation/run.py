"""Runs histories: one by its seed, many of them, and says of a failure what is needed to see it again."""

from __future__ import annotations

import contextlib
import gc
import hashlib
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from unittest import mock

from domain import refunds
from tests.simulation.verify import Verifier
from tests.simulation.worker import simulated
from tests.simulation.world import World

_world: World | None = None
"""The one that runs now: the real modules' clocks are its clocks."""


def _clock() -> float:
    assert _world is not None
    return _world.loop.now


def _wall_clock() -> float:
    assert _world is not None
    return _world.wall_clock()


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """The real modules run in virtual time inside of this. Enter it once."""
    with simulated(_clock, _wall_clock):
        yield


def enter(world: World) -> None:
    """From now on it is this world's time."""
    global _world
    _world = world


@dataclass(slots=True)
class SimulatedHistory:
    """What one history came to. `trace` is there if it was asked for."""

    seed: int
    problems: list[str]
    trace: list[str] = field(default_factory=list)
    mood: str = ""
    events: int = 0
    deaths: int = 0
    generations: int = 0
    late: int = 0
    hidden: int = 0
    passed: int = 0
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def digest(self) -> str:
        """Of the trace: the same seed has the same one."""
        return hashlib.blake2b("\n".join(self.trace).encode(), digest_size=16).hexdigest()


def run_seed(seed: int, *, tracing: bool = False) -> SimulatedHistory:
    """Live through the history of a seed and look at it. To be called inside prepared().

    In every third history a refund for units gone takes a decision for each unit:
    there is much to die between.
    """
    with mock.patch.object(refunds, "MOST_UNITS", refunds.MOST_UNITS if seed % 3 else 1):
        return _run_seed(seed, tracing)


def _run_seed(seed: int, tracing: bool) -> SimulatedHistory:
    world = World(seed, tracing=tracing)
    enter(world)
    problems: list[str] = []
    try:
        try:
            world.run()
        except AssertionError as error:
            problems.append(str(error))
        problems += [f"at {each.at:.3f} s: {each.what}" for each in world.violations]
        problems += [_raised(context) for context in world.loop.errors]
        if not problems:
            problems += Verifier(world).problems()
    finally:
        world.close()
    return SimulatedHistory(
        seed,
        problems,
        world.lines,
        world.plan.mood,
        len(world.plan.arrivals),
        world.deaths,
        world.group.generation,
        len(world.late),
        len(world.hidden),
        world.accounts.passed,
        Counter(world.network.counts),
    )


def _raised(context: dict[str, object]) -> str:
    return f"{context.get('message')}: {context.get('exception')!r}"


@dataclass(slots=True)
class Summary:
    """What many histories came to."""

    histories: int = 0
    events: int = 0
    seconds: float = 0.0
    deaths: int = 0
    generations: int = 0
    late: int = 0
    hidden: int = 0
    passed: int = 0
    moods: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    failed: list[SimulatedHistory] = field(default_factory=list)

    def add(self, outcome: SimulatedHistory) -> None:
        """Count one."""
        self.histories += 1
        self.events += outcome.events
        self.deaths += outcome.deaths
        self.generations += outcome.generations
        self.late += outcome.late
        self.hidden += outcome.hidden
        self.passed += outcome.passed
        self.moods[outcome.mood] += 1
        self.faults.update(outcome.faults)
        if outcome.problems:
            self.failed.append(outcome)

    def merge(self, other: Summary) -> None:
        """Add what another process has counted."""
        self.histories += other.histories
        self.events += other.events
        self.deaths += other.deaths
        self.generations += other.generations
        self.late += other.late
        self.hidden += other.hidden
        self.passed += other.passed
        self.moods.update(other.moods)
        self.faults.update(other.faults)
        self.failed += other.failed


def run_many(first: int, count: int, *, most_failures: int = 1, until: float = float("inf")) -> Summary:
    """Histories of `count` seeds from `first` on, until so many have failed or
    time.monotonic() has come to `until`.
    """
    summary = Summary()
    started = time.monotonic()
    with prepared():
        gc.disable()  # a history is mostly cycles: they are collected between histories
        try:
            for number, seed in enumerate(range(first, first + count)):
                summary.add(run_seed(seed))
                if number % 50 == 49:
                    gc.collect(1)
                if len(summary.failed) >= most_failures or time.monotonic() >= until:
                    break
        finally:
            gc.enable()
    summary.seconds = time.monotonic() - started
    return summary
