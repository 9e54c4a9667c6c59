"""The network between the workers and one kind of server: cut, silent, reset, slow, half open.
For Kafka, Postgres and Redis alike.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from random import Random
from typing import Final

import psutil

from tests.chaos.faults.base import WAITS, Act, fault, some_worker
from tests.chaos.proxy import Proxy
from tests.chaos.world import World

SERVERS: Final = ("kafka", "postgres", "redis")


def _proxies(world: World, random: Random, server: str) -> list[Proxy]:
    """Of Kafka one broker's or all."""
    if server != "kafka":
        return [world.proxies[server]]
    return world.brokers if random.random() < 0.5 else [random.choice(world.brokers)]


def _names(proxies: list[Proxy]) -> str:
    return ", ".join(proxy.name for proxy in proxies)


def _cut(server: str) -> Act:
    async def act(world: World, random: Random) -> AsyncIterator[str]:
        proxies = _proxies(world, random, server)
        for proxy in proxies:
            await proxy.cut()
        yield _names(proxies)
        for proxy in proxies:
            await proxy.heal()

    return act


def _black_hole(server: str) -> Act:
    async def act(world: World, random: Random) -> AsyncIterator[str]:
        proxies = _proxies(world, random, server)
        for proxy in proxies:
            proxy.black_hole()
        yield _names(proxies)
        for proxy in proxies:
            await proxy.heal()

    return act


def _reset(server: str) -> Act:
    async def act(world: World, random: Random) -> AsyncIterator[str]:
        proxies = _proxies(world, random, server)
        for proxy in proxies:
            await proxy.reset()
        yield _names(proxies)

    return act


def _slow(server: str) -> Act:
    async def act(world: World, random: Random) -> AsyncIterator[str]:
        proxies = _proxies(world, random, server)
        latency, rate = round(random.uniform(0.05, 0.25), 3), float(random.choice((50_000, 200_000)))
        for proxy in proxies:
            proxy.slow(latency, rate)
        yield f"{_names(proxies)}: {latency * 1000:.0f} ms, {rate / 1000:.0f} kB/s"
        for proxy in proxies:
            await proxy.heal()

    return act


def _half_open(server: str) -> Act:
    async def act(world: World, random: Random) -> AsyncIterator[str]:
        proxies = _proxies(world, random, server)
        for proxy in proxies:
            proxy.half_open()
        yield _names(proxies)

    return act


_WAYS: Final[dict[str, tuple[Callable[[str], Act], tuple[float, float], str]]] = {
    "cut": (_cut, (3.0, 12.0), "connections are reset and refused"),
    "black-hole": (
        _black_hole,
        (3.0, 14.0),
        "connections are accepted and nothing passes; then what was sent arrives",
    ),
    "reset": (_reset, (0.1, 1.0), "every connection ends with an RST"),
    "slow": (_slow, (5.0, 12.0), "50 to 250 ms later, 50 to 200 kB/s"),
    "half-open": (_half_open, (0.1, 1.0), "the other end of every connection is gone and never says so"),
}

for _server in SERVERS:
    for _way, (_make, _hold, _what) in _WAYS.items():
        _sees = {"postgres": WAITS, "redis": "redis.away"}.get(_server, "") if _way == "cut" else ""
        fault(
            f"net-{_server}-{_way}",
            _server,
            _hold,
            what=f"between the workers and {_server}: {_what}",
            sees=_sees,
        )(_make(_server))


@fault(
    "net-kafka-isolated",
    "kafka",
    (8.0, 16.0),
    what="one worker reaches no broker, past its session, but Postgres and Redis: a zombie",
)
async def isolated(world: World, random: Random) -> AsyncIterator[str]:
    worker = world.workers[some_worker(world, random)]
    pid = worker.pid
    known: dict[int, bool] = {}

    def only(client: int) -> bool:
        if client not in known:
            known[client] = pid is not None and client in _ports(pid)
        return known[client]

    for proxy in world.brokers:
        proxy.black_hole(only)
    yield worker.name
    for proxy in world.brokers:
        await proxy.heal()


def _ports(pid: int) -> set[int]:
    """Local ports of a process's connections."""
    try:
        return {connection.laddr.port for connection in psutil.Process(pid).net_connections("tcp4")}
    except psutil.NoSuchProcess:
        return set()
