"""Workers die, are asked to stop, freeze, come and go."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from random import Random

from streams.transport.worker import STOP_MARGIN
from tests.chaos.faults.base import fault, some_worker
from tests.chaos.world import World


@fault("worker-kill", "worker", (0.5, 4.0), what="kill -9 of a worker; its supervisor starts it again")
async def worker_kill(world: World, random: Random) -> AsyncIterator[str]:
    name = some_worker(world, random)
    world.workers[name].send(signal.SIGKILL)
    yield name


@fault("workers-kill-all", "worker", (0.5, 2.0), what="kill -9 of all workers at once")
async def workers_kill_all(world: World, random: Random) -> AsyncIterator[str]:
    for worker in world.workers.values():
        worker.send(signal.SIGKILL)
    yield "all"


@fault(
    "worker-term",
    "worker",
    (0.5, 4.0),
    what="SIGTERM of a worker: it drains, commits, leaves the group, exits 0",
)
async def worker_term(world: World, random: Random) -> AsyncIterator[str]:
    worker = world.workers[some_worker(world, random)]
    grace = world.settings.drain_timeout + STOP_MARGIN
    worker.send(signal.SIGTERM)
    ending = asyncio.ensure_future(worker.ended(grace))
    yield worker.name
    outcome = await ending
    if outcome is None:
        world.problems.append(f"{worker.name}: SIGTERM had not ended it after {grace:.0f} s")
        worker.send(signal.SIGKILL)
    elif outcome.asked == "SIGTERM":
        world.notes.append(f"{worker.name}: SIGTERM to exit {outcome.code} in {outcome.seconds:.1f} s")


@fault(
    "worker-zombie",
    "worker",
    (9.0, 15.0),
    what="SIGSTOP of a worker past its session, then SIGCONT: it must do no harm",
)
async def worker_zombie(world: World, random: Random) -> AsyncIterator[str]:
    worker = world.workers[some_worker(world, random)]
    worker.send(signal.SIGSTOP)
    try:
        yield worker.name
    finally:
        worker.send(signal.SIGCONT)


@fault(
    "rebalance-storm",
    "worker",
    (12.0, 20.0),
    what="further workers join and leave every few seconds",
    alone=True,
)
async def rebalance_storm(world: World, random: Random) -> AsyncIterator[str]:
    came = 0

    async def storm() -> None:
        nonlocal came
        while True:
            came += 1
            extra = world.worker(f"x{came % 2}")
            extra.start()
            try:
                await asyncio.sleep(random.uniform(1.0, 4.0))
            finally:
                await asyncio.shield(extra.down(random.choice((signal.SIGKILL, signal.SIGTERM)), 30.0))
                world.visitors.extend(extra.exits)

    blowing = asyncio.create_task(storm())
    yield "two further workers"
    blowing.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await blowing
    world.notes.append(f"rebalance storm: {came} workers came and went")
