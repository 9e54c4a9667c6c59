"""Runs the sweep: look which scene passes which point, then kill there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from random import Random
from typing import Any

from tests.chaos.sweep.arena import Arena, Dead
from tests.chaos.sweep.points import AFTER, BEFORE, Point, points
from tests.chaos.sweep.scenes import SCENES, Scene

RESET_EVERY = 12
"""Kills after which topics and tables are emptied: an audit reads all of them."""
BACKLOG = 40
"""Events that lie there before a worker starts."""
DEEPEST = 12
"""A point is killed at most at so late a pass."""


@dataclass(frozen=True, slots=True)
class Kill:
    """Die `side` of `point` when it is passed the n-th time in `scene`."""

    point: Point
    side: str
    scene: str
    n: int

    def __str__(self) -> str:
        return f"{self.side} {self.point}, pass {self.n} of scene {self.scene}"


@dataclass(slots=True)
class Result:
    """What became of a kill. `died`: it was reached this time. `problem` is empty when the audit was clean."""

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

    @property
    def good(self) -> bool:
        return not any(result.problem for result in self.results)

    def document(self) -> dict[str, Any]:
        return {
            "good": self.good,
            "seed": self.seed,
            "points": self.known,
            "killed": sum(result.died for result in self.results),
            "missed": [str(result.kill) for result in self.results if not result.died],
            "unreached": self.unreached,
            "problems": [{"kill": str(result.kill), "problem": result.problem} for result in self.results if result.problem],
            "results": [asdict(result) for result in self.results],
        }


async def reconnoitre(arena: Arena, scenes: Iterable[Scene]) -> dict[str, dict[tuple[str, str], int]]:
    """Play each scene once unharmed: scene -> (point, side) -> passes. Raises TimeoutError if a scene doesn't come to its end."""
    passed: dict[str, dict[tuple[str, str], int]] = {}
    for scene in scenes:
        await arena.send(BACKLOG)
        life = await arena.live(tweaks=scene.tweaks, env=dict(scene.env), fresh=scene.fresh)
        with contextlib.suppress(Dead):
            await scene.act(arena, life)
        await arena.over(life)
        passed[scene.name] = life.counts()
        await arena.mended()
    return passed


def plan(passed: dict[str, dict[tuple[str, str], int]], seed: int, known: Sequence[Point]) -> tuple[list[Kill], list[str]]:
    """For each side of each point a kill in the first scene that passes it, and the sides that none passes. Pure."""
    random = Random(f"{seed}:sweep")
    kills: list[Kill] = []
    unreached: list[str] = []
    for point in known:
        for side in (BEFORE, AFTER):
            usable = [(name, counts[point.key, side]) for name, counts in passed.items() if counts.get((point.key, side))]
            if not usable:
                unreached.append(f"{side} {point}")
                continue
            name, count = usable[0]
            # Passes differ a little between two lives: the second half of what was seen may not come.
            kills.append(Kill(point, side, name, random.randint(1, max(1, min(count // 2, DEEPEST)))))
    return kills, unreached


async def kill(arena: Arena, each: Kill) -> Result:
    """One kill, then a healthy worker, then the audit."""
    scene = SCENES[each.scene]
    await arena.send(BACKLOG)
    life = await arena.live(armed=(each.point.key, each.side, each.n), tweaks=scene.tweaks, env=dict(scene.env), fresh=scene.fresh)
    problem = ""
    with contextlib.suppress(Dead):
        try:
            await scene.act(arena, life)
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


async def sweep(arena: Arena, seed: int, kills: Sequence[Kill], told: Callable[[Result], None] = lambda _: None) -> list[Result]:
    """All of them, one after the other."""
    results: list[Result] = []
    for number, each in enumerate(kills):
        if number % RESET_EVERY == 0:
            await arena.reset()
        result = await kill(arena, each)
        if not result.died and not result.problem and each.n > 1:
            # So late a pass did not come this time.
            result = await kill(arena, Kill(each.point, each.side, each.scene, 1))
        results.append(result)
        told(result)
        if result.problem:
            await arena.reset()
    return results


async def whole(arena: Arena, seed: int, told: Callable[[Result], None] = lambda _: None) -> Swept:
    """Every point."""
    known = points()
    passed = await reconnoitre(arena, SCENES.values())
    kills, unreached = plan(passed, seed, known)
    return Swept(seed, len(known), await sweep(arena, seed, kills, told), unreached)
