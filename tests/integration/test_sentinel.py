"""Redis behind Sentinel: the cache goes on when the primary dies, and nobody restarts anything."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from typing import NamedTuple
from uuid import UUID

import pytest
from redis.exceptions import RedisError

from cli import main
from credentials import RedisUrl
from operations.auditing import cache_of
from queries.cache import CacheReader
from settings import Settings, get_settings
from sinks.clients import open_client
from sinks.redis import RedisSink
from stack.valkey import _binary
from tests.contract.places import Order, ident
from tests.waiting import eventually, until

PASSWORD, WATCHING = "for redis", "of/the@sentinel"
"""Of the servers, and of the Sentinel."""


class Servers(NamedTuple):
    url: str
    primary: subprocess.Popen[bytes]


def free_port() -> int:
    with socket.socket() as line:
        line.bind(("127.0.0.1", 0))
        port: int = line.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """A primary with a replica, and a Sentinel that watches them."""
    tmp_path = tmp_path_factory.mktemp("sentinel")
    first, second, sentinel = (free_port() for _ in range(3))
    started: list[subprocess.Popen[bytes]] = []

    def start(port: int, lines: list[str], *options: str) -> None:
        file = tmp_path / f"{port}.conf"
        common = ["bind 127.0.0.1", f"port {port}", f"dir {tmp_path}"]
        file.write_text("\n".join([*common, *lines]) + "\n")
        with (tmp_path / f"{port}.log").open("wb") as log:
            started.append(subprocess.Popen([_binary(), str(file), *options], stdout=log, stderr=log))

    login = [f'requirepass "{PASSWORD}"', f'masterauth "{PASSWORD}"', 'save ""', "repl-diskless-sync-delay 0"]
    watched = [
        f"sentinel monitor orders 127.0.0.1 {first} 1",
        f'sentinel auth-pass orders "{PASSWORD}"',
        "sentinel down-after-milliseconds orders 200",
        "sentinel failover-timeout orders 2000",
        f'requirepass "{WATCHING}"',
    ]
    try:
        start(first, login)
        start(second, [*login, f"replicaof 127.0.0.1 {first}"])
        until(lambda: "sync: Finished" in (tmp_path / f"{second}.log").read_text(), "a copy")
        start(sentinel, watched, "--sentinel")
        until(lambda: f"+slave slave 127.0.0.1:{second}" in (tmp_path / f"{sentinel}.log").read_text(), "two")
        # The first of the Sentinels named isn't there.
        yield Servers(
            f"redis+sentinel://:{PASSWORD.replace(' ', '%20')}@127.0.0.1:1,127.0.0.1:{sentinel}/orders/0"
            "?sentinel_password=of%2Fthe%40sentinel",
            started[0],
        )
    finally:
        for each in started:
            each.kill()
            each.wait()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (("/orders/0", "/other/0"), "/other/0?*** names a primary (ConnectionError); check"),
        (("%2Fthe%40sentinel", "wrong"), "names a primary (AuthenticationError, ConnectionError); check"),
        (("for%20redis", "wrong"), "refuses the login"),
    ],
)
async def test_what_does_not_fit_is_said_without_a_secret(
    servers: Servers, change: tuple[str, str], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = RedisUrl(servers.url.replace(*change))
    monkeypatch.setenv("ORDERS_REDIS", url.get_secret_value())
    async with open_client(Settings(), timeout=5) as client:
        with pytest.raises(RedisError) as raised:
            await client.ping()
    get_settings.cache_clear()
    message = main.explain(raised.value) or ""
    get_settings.cache_clear()
    assert says in message
    assert not [
        secret for secret in ("for redis", "for%20redis", "wrong", "of/the", "%2Fthe") if secret in message
    ]


async def test_the_cache_goes_on_on_another_server(servers: Servers) -> None:
    settings = Settings(redis=RedisUrl(servers.url))
    sink, reader, auditor = RedisSink(settings), CacheReader(settings), cache_of(settings).open()
    client = open_client(settings, timeout=5)
    a, b = Order("a", 4, "shipped"), Order("b", 1)

    async def written(order: Order) -> bool:
        done = await sink.put([order.entry()], probe=True)
        return done is not None and done.entries == 1

    async def shown(order: Order) -> bool:
        summary, _ = await reader.order(UUID(ident(order.name)))
        return summary == order.entry().summary

    try:
        await eventually(lambda: written(a), "written")
        assert await client.wait(1, 5000) == 1  # the replica has it too
        assert await shown(a)
        os.kill(servers.primary.pid, 9)
        await eventually(lambda: written(b), "written to the server that was the replica")
        await eventually(lambda: shown(b), "read from there")
        assert await shown(a)
        assert await auditor.dbsize() == 4
    finally:
        for each in (sink.close, reader.close, auditor.aclose, client.aclose):
            await each()
