"""What a worker goes through on its way to a point. It may die anywhere in it: then the scene is over.

A scene is as short as can be; several of them exist since no single life of a worker passes every await.
"""

from __future__ import annotations

import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from tests.chaos.sweep.arena import Arena, Life


@dataclass(frozen=True, slots=True)
class Scene:
    """`tweaks` and `env` are the worker's. `fresh`: without local state.
    `ahead`: Redis has seen more of the changelog than there is. `code`: what an unharmed worker ends with.
    """

    name: str
    act: Callable[[Arena, Life], Awaitable[None]]
    tweaks: tuple[str, ...] = ("often",)
    env: tuple[tuple[str, str], ...] = ()
    fresh: bool = False
    ahead: bool = False
    code: int = 0


SCENES: dict[str, Scene] = {}


def scene(
    name: str,
    *,
    tweaks: tuple[str, ...] = ("often",),
    env: tuple[tuple[str, str], ...] = (),
    fresh: bool = False,
    ahead: bool = False,
    code: int = 0,
) -> Callable[[Callable[[Arena, Life], Awaitable[None]]], Callable[[Arena, Life], Awaitable[None]]]:
    """Decorator: put it among the scenes, which are tried in the order in which they are written."""

    def register(act: Callable[[Arena, Life], Awaitable[None]]) -> Callable[[Arena, Life], Awaitable[None]]:
        SCENES[name] = Scene(name, act, tweaks, env, fresh, ahead, code)
        return act

    return register


async def _stopped(arena: Arena, life: Life) -> None:
    life.send(signal.SIGTERM)
    await arena.over(life)


@scene("drain")
async def drain(arena: Arena, life: Life) -> None:
    """A backlog, some more, SIGTERM."""
    await arena.handled(life)
    await arena.send(20)
    await arena.handled(life)
    await _stopped(arena, life)


@scene("recover", fresh=True)
async def recover(arena: Arena, life: Life) -> None:
    """The same from the changelog."""
    await arena.handled(life)
    await _stopped(arena, life)


@scene("other-changelog", ahead=True)
async def other_changelog(arena: Arena, life: Life) -> None:
    """The cache is of a changelog that is gone: all of it is refreshed."""
    await arena.until(life, lambda: life.text().count("its cache is complete") >= arena.settings.partitions)
    await arena.handled(life)
    await _stopped(arena, life)


@scene("deadlines", env=(("ORDERS_HISTORY_AGE", "1e9"), ("ORDERS_STOCK_DEADLINE", "0.2")))
async def deadlines(arena: Arena, life: Life) -> None:
    """Nobody answers in time."""
    await arena.ready(life)
    for _ in range(2):
        before = await arena.decided()
        await arena.send(20)
        await arena.passed(life, before + 2)
    await arena.handled(life)
    await _stopped(arena, life)


@scene("rebalance")
async def rebalance(arena: Arena, life: Life) -> None:
    """Another worker joins, takes its share, and leaves."""
    await arena.ready(life)
    other = await arena.companion()
    await arena.until(
        life,
        lambda: (
            "lanes closed (partitions revoked)" in life.text() and other.text().count("open, generation") > 0
        ),
    )
    await arena.send(20)
    other.send(signal.SIGTERM)
    await other.ended.wait()
    await arena.handled(life)
    await _stopped(arena, life)


@scene("outage")
async def outage(arena: Arena, life: Life) -> None:
    """Postgres and Redis go away and come back."""
    await arena.ready(life)
    await arena.cut()
    await arena.send(20)
    await arena.until(life, lambda: "waits since" in life.text())
    await arena.postgres.heal()
    await arena.until(life, lambda: "redis.away" in life.text())
    await arena.heal()
    await arena.until(life, lambda: "redis.back" in life.text())
    await arena.handled(life)
    await _stopped(arena, life)


@scene("lost-lists", tweaks=("often", "lose-lists"), fresh=True)
async def lost_lists(arena: Arena, life: Life) -> None:
    """Lists of records are lost, or come twice, between the reader and the offset tracker."""
    await arena.handled(life)
    await arena.send(30)
    await arena.handled(life)
    await _stopped(arena, life)


@scene("lost-unseen", tweaks=("often", "lose-lists", "blind"), fresh=True)
async def lost_unseen(arena: Arena, life: Life) -> None:
    """The same, and only the list behind the lost one tells of it."""
    await arena.ready(life)
    for _ in range(5):
        await arena.send(20)
    await arena.handled(life)
    await _stopped(arena, life)


@scene("flaky-lease", tweaks=("often", "flaky-lease"))
async def flaky_lease(arena: Arena, life: Life) -> None:
    """Heartbeats are late again and again."""
    await arena.handled(life)
    await arena.send(30)
    await arena.handled(life)
    await _stopped(arena, life)


@scene("hasty-start", tweaks=("often", "hasty-start"))
async def hasty_start(arena: Arena, life: Life) -> None:
    """The brokers don't let a producer start in time."""
    await arena.handled(life)
    await _stopped(arena, life)


@scene("stop-in-outage")
async def stop_in_outage(arena: Arena, life: Life) -> None:
    """SIGTERM while batches wait for Postgres and entries for Redis."""
    await arena.ready(life)
    await arena.handled(life)
    await arena.redis.cut()
    await arena.send(20)
    await arena.until(life, lambda: "redis.away" in life.text())
    await arena.postgres.cut()
    await arena.send(20)
    await arena.until(life, lambda: "waits since" in life.text())
    await _stopped(arena, life)


@scene("stop-in-silence", env=(("ORDERS_DRAIN_TIMEOUT", "0.3"), ("ORDERS_POSTGRES_STATEMENT_TIMEOUT", "2")))
async def stop_in_silence(arena: Arena, life: Life) -> None:
    """SIGTERM while Postgres doesn't answer: the lanes have to be cancelled."""
    await arena.ready(life)
    await arena.handled(life)
    before = arena.postgres.held
    arena.postgres.black_hole()
    await arena.send(20)
    await arena.until(life, lambda: arena.postgres.held > before)
    await _stopped(arena, life)


@scene("half-open", env=(("ORDERS_POSTGRES_STATEMENT_TIMEOUT", "0.5"),))
async def half_open(arena: Arena, life: Life) -> None:
    """Postgres's end of every connection is gone and never says so."""
    await arena.ready(life)
    await arena.handled(life)
    arena.postgres.half_open()
    await arena.send(20)
    await arena.handled(life)
    await _stopped(arena, life)


@scene("stop-slowly", tweaks=("often", "slow-produce"), env=(("ORDERS_DRAIN_TIMEOUT", "0.2"),))
async def stop_slowly(arena: Arena, life: Life) -> None:
    """SIGTERM while the brokers take their time."""
    await arena.ready(life)
    await arena.send(20)
    await _stopped(arena, life)


@scene("stalled", env=(("ORDERS_STALL_TIMEOUT", "0.5"), ("ORDERS_DRAIN_TIMEOUT", "0.3")), code=1)
async def stalled(arena: Arena, life: Life) -> None:
    """A batch takes longer than a batch can take: the worker ends itself."""
    await arena.ready(life)
    await arena.handled(life)
    arena.postgres.black_hole()
    await arena.send(20)
    await arena.over(life)


@scene("refused", code=1)
async def refused(arena: Arena, life: Life) -> None:
    """A topic takes nothing: the worker ends itself."""
    await arena.ready(life)
    await arena.handled(life)
    async with arena.small_messages():
        await arena.send(40)
        await arena.over(life)
