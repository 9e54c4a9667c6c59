"""As much of Postgres's protocol as it takes to lose the answer to a committed statement.

The sink writes a batch with one prepared statement in its implicit transaction: Bind, Execute, Sync. The
server commits at the Sync and then says CommandComplete and ReadyForQuery. Losing those two leaves a client
that cannot know whether its batch was written.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

_NO_TLS_CODES = (80877103, 80877104)
"""SSLRequest and GSSENCRequest: answered with one letter, without a frame."""


class LostReplies:
    """How many answers are still to be lost, by all connections together. `lost` counts those that were."""

    def __init__(self, marker: bytes = b"INSERT INTO public.orders_order") -> None:
        self.marker = marker
        """A statement whose text holds it is one that writes."""
        self.wanted = 0
        self.lost = 0

    def wire(self) -> PostgresWire:
        """For Proxy(wire=...)."""
        return PostgresWire(self)


class PostgresWire:
    """A proxy.Wire. Holds an answer back while it may have to be lost, and passes
    everything else on at once.
    """

    def __init__(self, losses: LostReplies) -> None:
        self._losses = losses
        self._client = bytearray()
        self._server = bytearray()
        self._started = False
        self._letters = 0
        self._writing: set[bytes] = set()
        """Names of prepared statements that write."""
        self._answering = False
        """A statement that writes was executed, its answer isn't complete."""
        self._held = bytearray()

    def to_server(self, data: bytes) -> bytes:
        self._client += data
        if not self._started:
            self._read_startup()
        if self._started:
            for kind, body in _frames(self._client):
                if kind == b"P":
                    name, text = body.split(b"\0", 2)[:2]
                    (self._writing.add if self._losses.marker in text else self._writing.discard)(name)
                elif kind == b"B":
                    self._answering = bytes(body.split(b"\0", 2)[1]) in self._writing
        return data

    def to_client(self, data: bytes) -> bytes | None:
        letters = data[: self._letters]
        self._letters -= len(letters)
        self._server += data[len(letters) :]
        failed = complete = False
        for kind, _ in _frames(self._server):
            failed = failed or kind == b"E"
            complete = complete or kind == b"Z"
        if not self._answering or not self._losses.wanted or failed:
            if complete or failed:  # what ends a refusal may come by itself
                self._answering = False
            return self._release(data)
        self._held += data
        if not complete:
            return b""
        self._losses.wanted -= 1
        self._losses.lost += 1
        return None

    def _release(self, data: bytes) -> bytes:
        held, self._held = bytes(self._held), bytearray()
        return held + data

    def _read_startup(self) -> None:
        while len(self._client) >= 8:
            size, code = struct.unpack_from(">ii", self._client)
            if len(self._client) < size:
                return
            del self._client[:size]
            if code not in _NO_TLS_CODES:
                self._started = True
                return
            self._letters += 1


def _frames(buffer: bytearray) -> Iterator[tuple[bytes, bytes]]:
    """Complete messages, taken out of the buffer: type and body."""
    while len(buffer) >= 5:
        size = 1 + struct.unpack_from(">i", buffer, 1)[0]
        if len(buffer) < size:
            return
        message = bytes(buffer[:size])
        del buffer[:size]
        yield message[:1], message[5:]
