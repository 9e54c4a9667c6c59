"""What a fault is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from random import Random

from tests.chaos.schedule import Kind
from tests.chaos.world import World

Act = Callable[[World, Random], AsyncIterator[str]]

WAITS = r"lane \S+ waits since"
"""How a worker says that it retries in place: which lane, since when, why."""


@dataclass(frozen=True, slots=True)
class Fault:
    """`act` injects on entry and gives what it hit; it heals on exit.
    `sees` is a pattern that a worker's log must hold by then.
    """

    kind: Kind
    act: Callable[[World, Random], AbstractAsyncContextManager[str]]
    what: str
    sees: str


CATALOGUE: dict[str, Fault] = {}


def fault(
    name: str, area: str, hold: tuple[float, float], *, what: str, sees: str = "", alone: bool = False
) -> Callable[[Act], Callable[[World, Random], AbstractAsyncContextManager[str]]]:
    """Decorator: put a fault into the catalogue. `hold` in seconds; `what` is one line for people."""

    def register(act: Act) -> Callable[[World, Random], AbstractAsyncContextManager[str]]:
        managed = asynccontextmanager(act)
        assert name not in CATALOGUE, name
        CATALOGUE[name] = Fault(Kind(name, area, hold, alone), managed, what, sees)
        return managed

    return register


def some_worker(world: World, random: Random) -> str:
    """The name of one of the workers."""
    return random.choice(sorted(world.workers))
