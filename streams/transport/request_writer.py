"""The last step of a write: a large request becomes whole only while the lease holds.

A broker acts on a request when it has its last byte. The kernel takes what its buffer has room for, and the
event loop writes the rest when there is room again: milliseconds later, or after the minute for which the
process was stopped, before any check of ours runs. So the last byte is kept back until everything before it
is in the kernel's hands, and the gate is asked once more.

With TLS there are two transports: what the upper one has encrypted the lower one may still hold, and only the
lower one knows. The last byte then is a record of its own, so the broker can't decrypt it before it is sent.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka.errors import KafkaError

AT_ONCE = 16 << 10
"""Bytes of a request that is written whole: the kernel has room for it, since what was sent before has been
answered.
"""
LOOK_INTERVAL = 0.001
"""Seconds between two looks at what the transport below TLS still holds: it tells TLS alone."""


class RequestWriter:
    """A connection's StreamWriter, as far as aiokafka uses one. Bound to the event loop."""

    def __init__(
        self,
        writer: asyncio.StreamWriter,
        lower: asyncio.WriteTransport,
        gate: Callable[[], Awaitable[None]],
    ) -> None:
        """`lower`: the transport to the kernel: the writer's own, or the one below its TLS. `gate` is awaited
        before the last byte. What it raises ends the connection.
        """
        self._writer = writer
        self._lower = lower
        self._gate = gate
        self._kept = b""
        self._finishing: asyncio.Task[None] | None = None
        # drain waits until the transport has nothing left: the kernel has it, or what is below TLS. Not with
        # high=0, of which TLS makes a pause for nothing, that nothing ends.
        writer.transport.set_write_buffer_limits(high=1, low=0)
        lower.set_write_buffer_limits(high=1, low=0)
        # Ends with an RST: the kernel forgets what it has not delivered. Otherwise it goes on delivering for
        # minutes after a close.
        line = writer.get_extra_info("socket")
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def write(self, data: bytes) -> None:
        """Write a request. Never blocks. Raises RuntimeError if the connection is closed, as uvloop does."""
        if self._kept:
            self._kept += data
        elif len(data) <= AT_ONCE:
            self._writer.write(data)
        else:
            self._writer.write(memoryview(data)[:-1])
            self._kept = data[-1:]
            self._finishing = asyncio.ensure_future(self._finish())

    async def _finish(self) -> None:
        try:
            await self._writer.drain()
            while self._lower.get_write_buffer_size():
                if self._writer.is_closing():
                    raise ConnectionResetError("closed meanwhile")
                await asyncio.sleep(LOOK_INTERVAL)
                await self._writer.drain()
            await self._gate()
        except (KafkaError, OSError):
            self.close()
        else:
            kept, self._kept = self._kept, b""
            if not self._writer.is_closing():
                self._writer.write(kept)

    def close(self) -> None:
        """Close the connection. What it has not sent is forgotten."""
        if self._finishing is not None:
            self._finishing.cancel()
        self._writer.transport.abort()

    async def drain(self) -> None:
        """See asyncio.StreamWriter."""
        await self._writer.drain()

    def is_closing(self) -> bool:
        """See asyncio.StreamWriter."""
        return self._writer.is_closing()

    def get_extra_info(self, name: str) -> Any:
        """See asyncio.StreamWriter."""
        return self._writer.get_extra_info(name)
