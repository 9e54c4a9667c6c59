"""A TCP proxy that misbehaves when it is told to: between a worker and one server.

Toxiproxy does this too, but it is a Go program and knows no protocol: it can't lose the
answer of one committed transaction. This one lives in the harness's event loop, so a fault
begins and ends at a known moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Callable
from typing import Protocol

from stack import ports

CHUNK = 64 << 10


class Wire(Protocol):
    """Follows one connection's protocol. Made when the connection begins."""

    def to_server(self, data: bytes) -> bytes:
        """What to send on to the server of `data`."""

    def to_client(self, data: bytes) -> bytes | None:
        """What to send on to the client of `data`; None: end the connection,
        without a word to either side.
        """


class Proxy:
    """Listens on a port of its own on 127.0.0.1 and forwards to `target`.
    To be used in one event loop; no method blocks.

    The faults, each until `heal()`, apply to all connections, and to those made meanwhile:

    - cut(): connections are reset and new ones refused, as when the server's process is gone.
    - black_hole(): connections are accepted and stay up, nothing passes. What was under way arrives after the
      heal, as TCP does it. With `only`, for those connections alone whose client's port it says yes to.
    - slow(latency, rate): every piece of data waits, and at most `rate` bytes a
      second pass in each direction.

    And at once: reset() ends every connection with an RST; half_open() leaves every client with a connection
    whose other end is gone and that never says so. New connections work.
    """

    def __init__(self, name: str, wire: Callable[[], Wire] | None = None, port: int | None = None) -> None:
        """`port`: None takes a free one."""
        self.name = name
        self.target = 0
        self.accepted = 0
        self.held = 0
        """Pieces of data, and connections, that a black hole has held back so far."""
        self._wire = wire
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._pass = asyncio.Event()
        self._pass.set()
        self._only: Callable[[int], bool] | None = None
        self._latency = 0.0
        self._rate = 0.0
        self.port = port or ports.choose(set())
        self._held: socket.socket | None = _bound(self.port)

    @property
    def address(self) -> str:
        """host:port for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def connections(self) -> int:
        """How many are open now."""
        return len(self._links)

    async def start(self, target: int) -> None:
        """Forward to this port on 127.0.0.1 from now on."""
        self.target = target
        await self._listen()

    async def close(self) -> None:
        """End everything. May be called twice."""
        await self._unlisten()
        if self._held is not None:
            self._held.close()
            self._held = None
        await self._end_links(abort=True)

    # -- faults ----------------------------------------------------------------------------------------------

    async def cut(self) -> None:
        """See the class."""
        await self._unlisten()
        await self._end_links(abort=True)

    def black_hole(self, only: Callable[[int], bool] | None = None) -> None:
        """See the class."""
        self._only = only
        self._pass.clear()

    def slow(self, latency: float, rate: float) -> None:
        """See the class. `latency` in seconds, `rate` in bytes a second."""
        self._latency, self._rate = latency, rate

    async def reset(self) -> None:
        """See the class."""
        await self._end_links(abort=True)

    def half_open(self) -> None:
        """See the class."""
        for link in self._links:
            link.lose_server()

    async def heal(self) -> None:
        """Forward again as if nothing had been. Connections that were lost stay lost."""
        self._latency = self._rate = 0.0
        self._pass.set()
        if self._server is None:
            await self._listen()

    async def retarget(self, target: int) -> None:
        """Lead to another server from now on, and end the connections to the old one."""
        self.target = target
        await self._end_links(abort=True)

    # -- inside ----------------------------------------------------------------------------------------------

    async def hold(self, client: int, size: int) -> None:
        """What a piece of data of `size` bytes waits for before it passes. `client` is the client's port."""
        if self._latency or self._rate:
            await asyncio.sleep(self._latency + (size / self._rate if self._rate else 0.0))
        if not self._pass.is_set() and (self._only is None or self._only(client)):
            self.held += 1
            await self._pass.wait()

    async def _listen(self) -> None:
        held, self._held = self._held, None
        self._server = await asyncio.start_server(self._accept, sock=held or _bound(self.port), limit=CHUNK)

    async def _unlisten(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.close()
            # Bound but not listening, the port stays ours and refuses connections.
            self._held = _bound(self.port)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        link = _Link(self, reader, writer, self._wire() if self._wire is not None else None)
        self._links.add(link)
        try:
            await link.run(self.target)
        finally:
            self._links.discard(link)

    async def _end_links(self, *, abort: bool) -> None:
        links = list(self._links)
        for link in links:
            link.end(abort=abort)
        for link in links:
            await link.over.wait()


class _Link:
    """One connection through the proxy."""

    def __init__(
        self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, wire: Wire | None
    ) -> None:
        self.over = asyncio.Event()
        self._proxy = proxy
        self._reader = reader
        self._writer = writer
        self._client: int = writer.get_extra_info("peername")[1]
        self._wire = wire
        self._upstream: asyncio.StreamWriter | None = None
        self._server_lost = False
        self._task: asyncio.Task[None] | None = None

    async def run(self, target: int) -> None:
        self._task = asyncio.ensure_future(self._run(target))
        try:
            await asyncio.wait({self._task})
        finally:
            self._task.cancel()
            self.over.set()

    def lose_server(self) -> None:
        """The other end is gone, and no FIN or RST comes of it."""
        self._server_lost = True
        if self._upstream is not None:
            self._upstream.transport.abort()

    def end(self, *, abort: bool) -> None:
        """End both sides; with `abort` by an RST."""
        for writer in (self._writer, self._upstream):
            if writer is not None:
                if abort:
                    _reset_on_close(writer)
                writer.transport.abort()
        if self._task is not None:
            self._task.cancel()

    async def _run(self, target: int) -> None:
        try:
            await self._proxy.hold(self._client, 0)
            if self._server_lost:
                await self._swallow()
                return
            try:
                from_server, self._upstream = await asyncio.open_connection("127.0.0.1", target, limit=CHUNK)
            except OSError:
                self.end(abort=True)  # as a refused connection as one can be that was accepted
                return
            up = asyncio.ensure_future(self._to_server(self._upstream))
            down = asyncio.ensure_future(self._to_client(from_server))
            try:
                await asyncio.wait({up, down}, return_when=asyncio.FIRST_COMPLETED)
                if self._lost():
                    down.cancel()
                    await up
                    await self._swallow()
                    return
                # One side has finished; let the other have what is on its way.
                await asyncio.wait({up, down}, timeout=1.0)
            finally:
                up.cancel()
                down.cancel()
        finally:
            for writer in (self._writer, self._upstream):
                if writer is not None:
                    writer.close()

    def _lost(self) -> bool:
        return self._server_lost

    async def _to_server(self, upstream: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await self._reader.read(CHUNK):
                if self._wire is not None:
                    data = self._wire.to_server(data)
                await self._proxy.hold(self._client, len(data))
                if self._server_lost:
                    return
                if _was_reset(self._writer):
                    self.end(abort=True)  # as TCP does it: what the client has taken back is not delivered
                    return
                upstream.write(data)
                await upstream.drain()
            if upstream.can_write_eof():
                upstream.write_eof()

    async def _to_client(self, from_server: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await from_server.read(CHUNK):
                await self._proxy.hold(self._client, len(data))
                if self._wire is not None:
                    passed = self._wire.to_client(data)
                    if passed is None:
                        self.end(abort=True)
                        return
                    data = passed
                self._writer.write(data)
                await self._writer.drain()
            if not self._server_lost and self._writer.can_write_eof():
                self._writer.write_eof()

    async def _swallow(self) -> None:
        """Take what the client sends and never answer, until the client gives up."""
        with contextlib.suppress(OSError):
            while await self._reader.read(CHUNK):
                pass


def _bound(port: int) -> socket.socket:
    """A socket that has the port and doesn't listen."""
    holder = socket.socket()
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", port))
    holder.setblocking(False)
    return holder


def _was_reset(writer: asyncio.StreamWriter) -> bool:
    """Whether the other end has reset the connection, whatever the event loop has noticed of it."""
    connection = writer.get_extra_info("socket")
    try:
        return writer.transport.is_closing() or connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0
    except (OSError, ValueError):  # closed already
        return True


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    connection = writer.get_extra_info("socket")
    if connection is not None:
        with contextlib.suppress(OSError, ValueError):  # closed already
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
