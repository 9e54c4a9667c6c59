"""Runs the sweep: look which scene passes which point, then kill there."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from operator import itemgetter
from pathlib import Path
from random import Random
from typing import Any

from stack import Stack
from tests.chaos.sweep.arena import Arena, Dead, arena
from tests.chaos.sweep.points import AFTER, BEFORE, Point, points
from tests.chaos.sweep.scenes import SCENES, Scene
from tests.chaos.world import SERVERS

RESET_EVERY = 12
"""Kills after which topics and tables are emptied: an audit reads all of them."""
BACKLOG = 40
"""Events that lie there before a worker starts."""
DEEPEST = 12
"""A point is killed at most at so late a pass."""
SURE = 3
"""Passes of a scene from which on the next life of it passes there too, however its records
fall into batches and pauses.
"""


@dataclass(frozen=True, slots=True)
class Kill:
    """Die `side` of `point` when it is passed the n-th time in `scene`.
    `others`: scenes that passed it too, the most often first.
    """

    point: Point
    side: str
    scene: str
    n: int
    others: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.side} {self.point}, pass {self.n} of scene {self.scene}"


@dataclass(slots=True)
class Result:
    """What became of a kill. `died`: it was reached this time.
    `problem` is empty when the audit was clean.
    """

    kill: Kill
    died: bool
    problem: str = ""


@dataclass(slots=True)
class Swept:
    """A sweep's outcome."""

    seed: int
    known: int = 0
    """Points in the code, each with two sides."""
    results: list[Result] = field(default_factory=list)
    unreached: list[str] = field(default_factory=list)
    """Sides of points that no scene passed."""
    stuck: list[str] = field(default_factory=list)
    """Scenes that didn't come to their end, unharmed as they were."""

    @property
    def good(self) -> bool:
        return (
            not self.stuck
            and any(result.died for result in self.results)
            and not any(result.problem for result in self.results)
        )

    def document(self) -> dict[str, Any]:
        return {
            "good": self.good,
            "seed": self.seed,
            "points": self.known,
            "killed": sum(result.died for result in self.results),
            "missed": [str(result.kill) for result in self.results if not result.died],
            "unreached": self.unreached,
            "stuck": self.stuck,
            "problems": [
                {"kill": str(result.kill), "problem": result.problem}
                for result in self.results
                if result.problem
            ],
            "results": [asdict(result) for result in self.results],
        }


async def reconnoitre(arena: Arena, scene: Scene) -> dict[tuple[str, str], int]:
    """Play a scene unharmed: (point, side) -> passes.
    Raises TimeoutError if it doesn't come to its end as it should.
    """
    await arena.send(BACKLOG)
    life = await arena.live(tweaks=scene.tweaks, env=dict(scene.env), fresh=scene.fresh, ahead=scene.ahead)
    with contextlib.suppress(Dead):
        await scene.act(arena, life)
    await arena.over(life)
    if life.code != scene.code:
        raise TimeoutError(
            f"scene {scene.name} ended with {life.code}, not {scene.code}; its log: {life.log}"
        )
    await arena.drained()
    return life.counts()


def plan(
    passed: Mapping[str, Mapping[tuple[str, str], int]], seed: int, known: Sequence[Point]
) -> tuple[list[Kill], list[str]]:
    """For each side of each point a kill, and the sides that no scene passes. Pure.

    It is in the first scene that surely passes it, or else in the one that passed it most.
    """
    random = Random(f"{seed}:sweep")
    kills: list[Kill] = []
    unreached: list[str] = []
    for point in known:
        for side in (BEFORE, AFTER):
            usable = [(name, passed[name].get((point.key, side), 0)) for name in SCENES if name in passed]
            most = max(usable, key=itemgetter(1), default=("", 0))
            name, count = next((each for each in usable if each[1] >= SURE), most)
            if not count:
                unreached.append(f"{side} {point}")
                continue
            # Passes differ a little between two lives: the second half of what was seen may not come.
            others = sorted(
                (each for each in usable if each[1] and each[0] != name), key=itemgetter(1), reverse=True
            )
            n = random.randint(1, max(1, min(count // 2, DEEPEST)))
            kills.append(Kill(point, side, name, n, tuple(other for other, _ in others)))
    return kills, unreached


async def kill(arena: Arena, each: Kill) -> Result:
    """One kill, then a healthy worker, then the audit."""
    scene = SCENES[each.scene]
    await arena.send(BACKLOG)
    life = await arena.live(
        armed=(each.point.key, each.side, each.n),
        tweaks=scene.tweaks,
        env=dict(scene.env),
        fresh=scene.fresh,
        ahead=scene.ahead,
    )
    problem = ""
    try:
        await scene.act(arena, life)
    except Dead:
        pass
    except TimeoutError as error:
        problem = f"scene {scene.name}: {error}"
    died = life.code == -9
    try:
        report = await arena.mended()
    except TimeoutError as error:
        return Result(each, died, f"afterwards: {error}")
    if not report["clean"]:
        broken = [finding for finding in report["findings"] if finding["severity"] == "broken"]
        problem = f"the audit: {report['broken']}, {broken[:3]}"
    return Result(each, died, problem)


async def sweep(
    arena: Arena, kills: Iterable[Kill], on_result: Callable[[Result], None] = lambda _: None
) -> list[Result]:
    """All of them, one after the other."""
    results: list[Result] = []
    for number, each in enumerate(kills):
        if number % RESET_EVERY == 0:
            await arena.reset()
        result = await kill(arena, each)
        for scene in (each.scene, *each.others):
            # The pass did not come this time.
            if not result.died and not result.problem:
                result = await kill(arena, Kill(each.point, each.side, scene, 1))
        results.append(result)
        on_result(result)
        if result.problem:
            await arena.reset()
    return results


Told = Callable[[int, int, str], None]
"""How many kills are done, of how many, and a line about the last one where there is something to say."""


async def sweep_stacks(folder: Path, seed: int, stacks: int, on_progress: Told) -> Swept:
    """Every point, on servers of its own, several side by side.
    Topic names are the contract's, so each sweeper has a broker to itself.
    """
    known = points()
    async with AsyncExitStack() as opened:
        arenas = [
            await opened.enter_async_context(
                _served(folder / f"stack-{number}", folder / "logs" / str(number))
            )
            for number in range(stacks)
        ]
        passed: dict[str, dict[tuple[str, str], int]] = {}
        stuck: list[str] = []
        scenes = deque(SCENES.values())

        async def look(arena: Arena) -> None:
            while scenes:
                scene = scenes.popleft()
                await arena.reset()  # what another scene has left would make it pass more than it does alone
                try:
                    passed[scene.name] = await reconnoitre(arena, scene)
                except TimeoutError as error:
                    stuck.append(str(error))

        await asyncio.gather(*(look(arena) for arena in arenas))
        kills, unreached = plan(passed, seed, known)
        left = deque(kills)
        done = 0

        def one(result: Result) -> None:
            nonlocal done
            done += 1
            line = f"MISSED {result.kill}" if not result.died else ""
            on_progress(
                done, len(kills), f"FAILED {result.kill}: {result.problem}" if result.problem else line
            )

        def taken() -> Iterator[Kill]:
            while left:
                yield left.popleft()

        results = await asyncio.gather(*(sweep(arena, taken(), one) for arena in arenas))
    return Swept(seed, len(known), [result for some in results for result in some], unreached, stuck)


@asynccontextmanager
async def _served(folder: Path, logs: Path) -> AsyncIterator[Arena]:
    stack = await asyncio.to_thread(Stack.start, folder)
    try:
        env = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith("ORDERS_") or name not in SERVERS
        }
        async with arena(env | stack.env | {"ORDERS_GROUP": "orders"}, logs) as served:
            yield served
    finally:
        await asyncio.to_thread(stack.purge)
