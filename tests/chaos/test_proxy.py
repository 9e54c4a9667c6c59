"""The proxy's faults against real sockets, and the lost answer against a real Postgres."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from tests.chaos.pgwire import LostReplies
from tests.chaos.proxy import Proxy
from tests.stackfixture import Servers
from tests.waiting import eventually

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A server that says everything back, and remembers what it heard and how connections ended."""

    def __init__(self) -> None:
        self.heard = bytearray()
        self.ended: list[str] = []
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open += 1
        try:
            while data := await reader.read(65536):
                self.heard += data
                writer.write(data)
                await writer.drain()
            self.ended.append("closed")
        except ConnectionError:
            self.ended.append("reset")
        finally:
            self.open -= 1
            writer.close()


@pytest.fixture
async def echo() -> AsyncIterator[tuple[Echo, Proxy]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    proxy = Proxy("echo")
    await proxy.start(server.sockets[0].getsockname()[1])
    yield echo, proxy
    await proxy.close()
    server.close()


@contextlib.asynccontextmanager
async def connected(proxy: Proxy) -> AsyncIterator[Pair]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()


async def said_back(pair: Pair, text: bytes, seconds: float = 5.0) -> bytes:
    """What comes back to `text` within the time."""
    pair[1].write(text)
    return await asyncio.wait_for(pair[0].readexactly(len(text)), seconds)


async def silent(pair: Pair, text: bytes) -> bool:
    with contextlib.suppress(TimeoutError):
        await said_back(pair, text, 0.2)
        return False
    return True


async def test_it_forwards(echo: tuple[Echo, Proxy]) -> None:
    async with connected(echo[1]) as pair:
        large = bytes(range(256)) * 4096
        assert await said_back(pair, large) == large
        pair[1].write_eof()
        assert await pair[0].read() == b""
    assert echo[0].ended == ["closed"]


async def test_cut_resets_and_refuses_until_it_is_healed(echo: tuple[Echo, Proxy]) -> None:
    _, proxy = echo
    async with connected(proxy) as pair:
        await said_back(pair, b"a")
        await proxy.cut()
        with pytest.raises(ConnectionResetError):
            await pair[0].read()
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection("127.0.0.1", proxy.port)
    await proxy.heal()
    async with connected(proxy) as pair:
        assert await said_back(pair, b"b") == b"b"


async def test_a_black_hole_accepts_and_delivers_later(echo: tuple[Echo, Proxy]) -> None:
    server, proxy = echo
    async with connected(proxy) as before:
        await said_back(before, b"a")
        proxy.black_hole()
        async with connected(proxy) as during:
            assert await silent(before, b"b")
            assert await silent(during, b"c")
            assert bytes(server.heard) == b"a"
            await proxy.heal()
            assert await before[0].readexactly(1) == b"b"
            assert await during[0].readexactly(1) == b"c"


async def test_a_black_hole_for_some_leaves_the_others_alone(echo: tuple[Echo, Proxy]) -> None:
    _, proxy = echo
    async with connected(proxy) as one, connected(proxy) as other:
        port = one[1].get_extra_info("sockname")[1]
        proxy.black_hole(lambda client: client == port)
        assert await silent(one, b"b")
        assert await said_back(other, b"c") == b"c"


async def test_what_a_client_takes_back_is_not_delivered_later(echo: tuple[Echo, Proxy]) -> None:
    """As TCP does it. A client that closes in peace, though, has its last words delivered."""
    server, proxy = echo
    async with connected(proxy) as taken_back, connected(proxy) as closed:
        await said_back(taken_back, b"a")
        await said_back(closed, b"b")
        proxy.black_hole()
        held = proxy.held
        taken_back[1].write(b"never")
        closed[1].write(b"last words")

        async def both() -> bool:
            return proxy.held == held + 2

        await eventually(both, "both are held")
        _reset(taken_back[1])
        closed[1].close()
        await proxy.heal()

        async def gone() -> bool:
            return proxy.connections == 0

        await eventually(gone, "both have ended")
    assert bytes(server.heard) == b"ablast words"


def _reset(writer: asyncio.StreamWriter) -> None:
    from tests.chaos.proxy import _reset_on_close

    _reset_on_close(writer)
    writer.transport.abort()


async def test_reset_ends_what_is_open_and_takes_new_ones(echo: tuple[Echo, Proxy]) -> None:
    _, proxy = echo
    async with connected(proxy) as pair:
        await said_back(pair, b"a")
        await proxy.reset()
        with pytest.raises(ConnectionResetError):
            await pair[0].read()
    async with connected(proxy) as pair:
        assert await said_back(pair, b"b") == b"b"


async def test_half_open_is_silent_for_ever_on_what_was_open(echo: tuple[Echo, Proxy]) -> None:
    server, proxy = echo
    async with connected(proxy) as pair:
        await said_back(pair, b"a")
        proxy.half_open()
        assert await silent(pair, b"b")
        assert not pair[0].at_eof()
        assert server.open == 0
        async with connected(proxy) as new:
            assert await said_back(new, b"c") == b"c"
    assert bytes(server.heard) == b"ac"


async def test_slow_is_slow(echo: tuple[Echo, Proxy]) -> None:
    _, proxy = echo
    async with connected(proxy) as pair:
        proxy.slow(0.0, 100_000)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await said_back(pair, bytes(20_000))
        assert loop.time() - began >= 0.4, "20 kB there and back at 100 kB/s each"
        await proxy.heal()
        assert await said_back(pair, b"b") == b"b"


async def test_another_target(echo: tuple[Echo, Proxy]) -> None:
    server, proxy = echo
    async with connected(proxy) as pair:
        await said_back(pair, b"a")
        await proxy.retarget(1)
        with pytest.raises(ConnectionResetError):
            await pair[0].read()
    async with connected(proxy) as pair:
        with contextlib.suppress(ConnectionResetError):
            assert await pair[0].read() == b""
    assert bytes(server.heard) == b"a"


async def test_the_answer_to_a_committed_statement_is_lost(stack: Servers) -> None:
    losses = LostReplies(b"INSERT INTO told")
    url = urlsplit(stack.env["ORDERS_POSTGRES"])
    assert url.port is not None
    proxy = Proxy("postgres", losses.wire)
    await proxy.start(url.port)
    through = urlunsplit(url._replace(netloc=f"{url.netloc.rpartition('@')[0]}@{proxy.address}"))
    direct = await asyncpg.connect(stack.env["ORDERS_POSTGRES"])
    try:
        await direct.execute("CREATE TABLE told (n int PRIMARY KEY)")
        connection = await asyncpg.connect(through)
        insert = "INSERT INTO told SELECT n FROM generate_series($1::int, $2) n"
        await connection.execute(insert, 1, 10)
        losses.wanted = 1
        assert await connection.fetchval("SELECT count(*) FROM told") == 10, "what only reads is answered"
        with pytest.raises(asyncpg.UniqueViolationError):
            await connection.execute(insert, 1, 1)  # a refusal is answered too
        with pytest.raises((asyncpg.ConnectionDoesNotExistError, ConnectionError)):
            await connection.execute(insert, 11, 20)
        assert losses.lost == 1
        assert await direct.fetchval("SELECT count(*) FROM told") == 20, "but it was committed"
        again = await asyncpg.connect(through)
        await again.execute(insert, 21, 21)
        await again.close()
    finally:
        await direct.execute("DROP TABLE told")
        await direct.close()
        await proxy.close()
