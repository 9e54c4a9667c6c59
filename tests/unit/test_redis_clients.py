"""Where Redis is, as its URL says, and that one place reads it."""

from __future__ import annotations

import ast
import asyncio
import re
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import certifi
import pytest
from pydantic import ValidationError
from redis.exceptions import ConnectionError as RedisConnectionError

from credentials import RedisUrl
from operations.grants import cache_rights
from settings import Settings
from sinks.clients import ONCE, open_client
from sinks.redis import RedisSink, checkpoint_key

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("url", "at"),
    [
        ("redis+sentinel://a:26379,b:1/orders/3", [("a", 26379), ("b", 1)]),
        (
            "redis+sentinel://u:p%2F@a,[::1]:7,[fe80::2]/orders",
            [("a", 26379), ("::1", 7), ("fe80::2", 26379)],
        ),
    ],
)
async def test_sentinels(url: str, at: list[tuple[str, int]]) -> None:
    client: Any = open_client(Settings(redis=RedisUrl(url)), timeout=6)
    pool = client.connection_pool
    asked = [each.connection_pool.connection_kwargs for each in pool.sentinel_manager.sentinels]
    assert [(each["host"], each["port"]) for each in asked] == at
    assert {each["socket_timeout"] for each in asked} == {6 / (len(at) + 1)}, "each leaves time for the next"
    assert pool.service_name == "orders"
    assert pool.connection_kwargs.get("db", 0) == (3 if url.endswith("/3") else 0)
    login = pool.connection_kwargs.get("credential_provider")
    assert (login and login.get_credentials()) == (("u", "p/") if "@" in url else None)
    assert not {"password", "username"} & set(pool.connection_kwargs)
    await client.aclose()


async def test_sentinels_by_tls_with_a_login_of_their_own() -> None:
    ca = Path(certifi.where())
    url = f"rediss+sentinel://:p@a/orders?ssl_ca_certs={ca}&sentinel_username=s&sentinel_password=q%26"
    client: Any = open_client(Settings(redis=RedisUrl(url)))
    [asked] = [each.connection_pool for each in client.connection_pool.sentinel_manager.sentinels]
    assert asked.connection_kwargs["credential_provider"].get_credentials() == ("s", "q&")
    assert client.connection_pool.connection_kwargs["credential_provider"].get_credentials() == ("p",)
    for pool in (asked, client.connection_pool):
        assert "SSL" in pool.connection_class.__name__
        assert pool.connection_kwargs["ssl_ca_certs"] == str(ca)
    await client.aclose()


async def test_a_login_of_a_file_is_read_for_each_connection(tmp_path: Path) -> None:
    file = tmp_path / "url"
    file.write_text("redis+sentinel://u:one@a/orders?sentinel_password=x")
    client: Any = open_client(Settings(redis_file=file))
    logins = [
        client.connection_pool.connection_kwargs["credential_provider"],
        client.connection_pool.sentinel_manager.sentinels[0].connection_pool.connection_kwargs[
            "credential_provider"
        ],
    ]
    file.write_text("redis+sentinel://u:two@a/orders?sentinel_password=y")
    assert [each.get_credentials() for each in logins] == [("u", "two"), ("y",)]
    await client.aclose()


async def test_another_host_in_the_file_needs_no_restart(tmp_path: Path) -> None:
    """Each new connection goes where the file says, also those to Sentinels; but not in another way."""
    file, asked = tmp_path / "url", []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(writer.get_extra_info("sockname")[1])
        writer.close()

    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(await asyncio.start_server(serve, "127.0.0.1", 0)) for _ in "ab"
        ]
        first, second = (server.sockets[0].getsockname()[1] for server in servers)
        for form in ("redis://127.0.0.1:{}/1", "redis+sentinel://127.0.0.1:{}/orders"):
            file.write_text(form.format(first))
            client: Any = open_client(Settings(redis_file=file), timeout=10, retry=ONCE)
            asked.clear()
            for port in (first, second):
                file.write_text(form.format(port))
                with pytest.raises(RedisConnectionError):
                    await client.ping()
                assert set(asked) == {port}
                asked.clear()
            file.write_text("redis://a" if "sentinel" in form else f"rediss://127.0.0.1:{first}")
            expected = "No master found" if "sentinel" in form else "another way than before: that needs a"
            with pytest.raises(RedisConnectionError, match=expected):
                await client.ping()
            assert asked == []
            await client.aclose()


@pytest.mark.parametrize(
    "prefix", ["staging", "a b:", "a::", ":", "*:", "user:", "x:rows:", "{x}:", "a:b", "ä:"]
)
def test_what_is_no_prefix(prefix: str) -> None:
    with pytest.raises(ValidationError, match=r"each with a colon behind it|take another name"):
        Settings.model_validate({"redis_prefix": prefix})


def test_a_prefix_is_before_every_key() -> None:
    plain, prefixed = Settings(), Settings(redis_prefix="a.1:b:")
    assert checkpoint_key(prefixed, 3) == f"a.1:b:{checkpoint_key(plain, 3)}"
    for role in ("owner", "worker", "reader", "audit"):
        rights = [cache_rights(settings, role) for settings in (plain, prefixed)]
        assert rights[0] is not None
        assert rights[1] is not None
        assert [key.replace("~", "~a.1:b:", 1) for key in rights[0].keys] == list(rights[1].keys)
    scripts = [RedisSink(settings)._script for settings in (plain, prefixed)]
    assert "PREFIX" not in scripts[0]
    assert scripts[0] == scripts[1].replace("a.1:b:", "")
    assert re.findall(r"'(?:order|user|tracking):", scripts[1]) == []


def test_one_place_makes_clients_of_redis() -> None:
    """Whoever makes one of its own reads a changed file once only, and knows no Sentinel."""
    makers = {
        str(path.relative_to(ROOT))
        for folder in ("api", "audit", "cli", "operations", "queries", "sinks", "streams", "workload")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).rpartition(".")[2] in ("from_url", "Redis", "ConnectionPool", "from_pool")
    }
    assert makers == {"sinks/clients.py"}
