"""What comes in is worse than usual: everything a hundred times, nothing but
poison, one order without end.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

from tests.chaos.faults.base import fault
from tests.chaos.load import giant
from tests.chaos.world import World
from workload.producer import send


@fault("duplicates-100", "load", (15.0, 25.0), what="every event comes a hundred times")
async def duplicates_100(world: World, random: Random) -> AsyncIterator[str]:
    world.load.copies = 100
    yield "100 copies"
    world.load.copies = 1


@fault("poison-only", "load", (60.0, 60.0), what="for a minute every record has to be refused; no lane stops")
async def poison_only(world: World, random: Random) -> AsyncIterator[str]:
    world.load.poison_only = True
    yield "100 % poison"
    world.load.poison_only = False


@fault(
    "order-10000-events",
    "load",
    (0.5, 1.0),
    what="one order with 10,000 events, as fast as they can be sent",
    alone=True,
)
async def order_10000_events(world: World, random: Random) -> AsyncIterator[str]:
    events = giant(random.randrange(1 << 31), 10_000)
    sent = await send(world.settings, events)
    seconds = await world.watch.caught_up(60.0)
    speed = "not handled within 60 s"
    if seconds is not None:
        speed = f"handled {seconds:.1f} s later, {len(events) / (sent.seconds + seconds):,.0f} events/s"
    world.notes.append(f"an order of {len(events):,} events, sent in {sent.seconds:.1f} s: {speed}")
    yield f"{len(events):,} events"
