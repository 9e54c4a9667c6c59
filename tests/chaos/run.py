"""A run: the rounds of a schedule, one after the other, then everything healed, drained and audited."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from streams.transport.worker import STOP_MARGIN
from tests.chaos.faults import CATALOGUE
from tests.chaos.schedule import Round, Step
from tests.chaos.watch import Sample
from tests.chaos.workers import Exit
from tests.chaos.world import Shape, World, world

LIMIT = 60.0
"""Seconds from the last heal until what was sent before it has to be handled."""

Say = Callable[[str], None]


@dataclass(slots=True)
class Injection:
    """One fault as it happened.
    Times are seconds since the run began; `recovery` from its round's last heal, None: it took too long.
    """

    round: int
    kind: str
    seed: int
    hit: str = ""
    injected: float = 0.0
    healed: float = 0.0
    recovery: float | None = None
    said: str = ""
    """The first line of a worker's log that tells of it."""


@dataclass(slots=True)
class ChaosResult:
    """What a run came to. Everything that the report shows."""

    seed: int
    minutes: float | None
    began: float = field(default_factory=time.time)
    seconds: float = 0.0
    shape: dict[str, Any] = field(default_factory=dict)
    injections: list[Injection] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    exits: list[Exit] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    sent: int = 0
    drained: float | None = None
    """Seconds from the end of the load to lag 0."""
    audit: dict[str, Any] = field(default_factory=dict)

    @property
    def good(self) -> bool:
        """Nothing is wrong and the audit is clean."""
        return not self.problems and bool(self.audit.get("clean"))

    def document(self) -> dict[str, Any]:
        """As one JSON document."""
        return {"good": self.good, **asdict(self)}


async def run(
    folder: Path, seed: int, planned: Iterable[Round], shape: Shape, *, minutes: float | None = None, say: Say
) -> ChaosResult:
    """Run the rounds against a topology of its own in `folder`.
    Raises what the servers raise when they can't even be started.
    """
    async with arena(folder, seed, shape, minutes=minutes, say=say) as (here, outcome):
        for each in planned:
            await play(here, each, outcome, say)
    return outcome


@asynccontextmanager
async def arena(
    folder: Path, seed: int, shape: Shape, *, minutes: float | None = None, limit: float = LIMIT, say: Say
) -> AsyncIterator[tuple[World, ChaosResult]]:
    """A topology under load; at the end of the block everything is healed, drained, audited and stopped,
    and the outcome complete.

    What the block raises is among the outcome's problems.
    """
    outcome = ChaosResult(seed, minutes, shape=asdict(shape))
    async with world(folder, seed, shape, say) as here:
        await here.begin()
        outcome.began = time.time() - here.clock.now()
        say(f"{shape.brokers} brokers, {shape.workers} workers, {shape.rate:,.0f} events/s")
        try:
            try:
                yield here, outcome
            except Exception as error:
                here.problems.append(f"the harness failed: {type(error).__name__}: {error}")
            await settle(here, outcome, say, limit)
        finally:
            outcome.seconds = here.clock.now()
            outcome.samples = here.watch.samples
            outcome.sent = here.feeder.sent
            outcome.notes += here.notes
            outcome.problems += here.problems
            outcome.exits = sorted(
                [*(gone for worker in here.workers.values() for gone in worker.exits), *here.visitors],
                key=lambda gone: gone.at,
            )
            outcome.problems += judged(outcome.exits, here.settings.drain_timeout + STOP_MARGIN)


async def play(here: World, planned: Round, outcome: ChaosResult, say: Say) -> None:
    """One round: inject, hold, heal, wait for the recovery, rest."""
    marks = {name: worker.size() for name, worker in here.workers.items()}
    injections = [Injection(planned.number, step.kind, step.seed) for step in planned.steps]
    outcome.injections += injections
    began = asyncio.get_running_loop().time()
    results = await asyncio.gather(
        *(
            _inject(here, step, injection, began, say)
            for step, injection in zip(planned.steps, injections, strict=True)
        ),
        return_exceptions=True,
    )
    for injection, result in zip(injections, results, strict=True):
        if isinstance(result, BaseException):
            here.problems.append(f"{injection.kind}: the harness failed: {type(result).__name__}: {result}")
    recovery = await here.watch.caught_up(LIMIT)
    say(f"recovered after {recovery:.1f} s" if recovery is not None else f"NOT recovered after {LIMIT:.0f} s")
    for injection in injections:
        injection.recovery = recovery
        expected = CATALOGUE[injection.kind].sees
        if (
            expected and len(injections) == 1
        ):  # two at once can hide each other: what isn't tried doesn't fail
            line = await _said(here, marks, expected)
            if line is None:
                here.problems.append(
                    f"{injection.kind} (round {planned.number}): no worker's log says {expected!r}"
                )
            injection.said = line or ""
    if recovery is None:
        kinds = " and ".join(injection.kind for injection in injections)
        here.problems.append(f"round {planned.number}, {kinds}: not handled {LIMIT:.0f} s after the heal")
    await asyncio.sleep(planned.calm)


async def _inject(here: World, step: Step, injection: Injection, began: float, say: Say) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(max(0.0, began + step.after - loop.time()))
    async with AsyncExitStack() as healed:
        injection.injected = here.clock.now()
        injection.hit = await healed.enter_async_context(CATALOGUE[step.kind].act(here, Random(step.seed)))
        say(f"{step.kind}: {injection.hit}, for {step.hold:.1f} s")
        await asyncio.sleep(step.hold)
    injection.healed = here.clock.now()


async def _said(here: World, marks: dict[str, int], pattern: str) -> str | None:
    """The first line since the marks that matches."""
    for name, worker in here.workers.items():
        line = await asyncio.to_thread(_first, worker.text(marks[name]), pattern)
        if line is not None:
            return f"{name}: {line}"
    return None


def _first(text: str, pattern: str) -> str | None:
    return next((line.strip() for line in text.splitlines() if re.search(pattern, line)), None)


async def settle(here: World, outcome: ChaosResult, say: Say, limit: float = LIMIT) -> None:
    """Nothing is broken any more, and there is no more load; lag 0 within the limit; then the audit."""
    await here.heal()
    await here.feeder.stop()
    outcome.drained = await here.watch.caught_up(limit, everything=True)
    if outcome.drained is None:
        lag = here.watch.samples[-1].lag if here.watch.samples else None
        here.problems.append(f"the lag is {lag} {limit:.0f} s after the load has ended")
    say("auditing")
    outcome.audit = await here.audit()
    if not outcome.audit["clean"]:
        here.problems.append(
            f"the audit is not clean: {outcome.audit.get('broken') or outcome.audit.get('error')}"
        )


def judged(exits: Iterable[Exit], grace: float) -> list[str]:
    """What is wrong with how workers ended: 0 without having been asked, or more than
    `grace` seconds after SIGTERM.
    """
    problems = []
    for each in exits:
        if each.code == 0 and each.asked != "SIGTERM":
            problems.append(
                f"{each.worker} (pid {each.pid}) ended with 0 at {each.at:.0f} s though nobody asked it to"
            )
        if each.asked == "SIGTERM" and each.seconds is not None and each.seconds > grace:
            problems.append(
                f"{each.worker} (pid {each.pid}) took {each.seconds:.0f} s to end after SIGTERM, more than"
                f" {grace:.0f} s"
            )
    return problems
