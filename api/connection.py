"""What a client's connection may take: bytes, time, and a place among the others.
uvicorn with httptools has no such limits.

Its protocol is extended here: llhttp goes on reading requests, and one that can't be read is answered by a
problem, as everything else is.
"""

from __future__ import annotations

import asyncio
import re
import resource
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from api.problems import problem
from api.requests import answered

MOST_HEAD: Final = 64 << 10
"""Bytes of a request line and its headers."""
MOST_BODY: Final = 64 << 10
"""Bytes of a body, as they come. Nothing reads it."""


class Limits(NamedTuple):
    """Of each connection, and of all.

    `timeout`: seconds from the beginning of a connection, or from the last answer, until the next request
    must be there as a whole; and for which an answer waits for its client. `most`: connections at a time. One
    more, and that which has been waited for the longest gives way. `logged`: whether requests that never came
    to be are in the access log.
    """

    timeout: float = 10.0
    most: int = 1000
    logged: bool = True

    def possible(self) -> Limits:
        """The same with no more connections than this process may have files."""
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        return self._replace(most=max(1, min(self.most, files - 100)))


_PIECE: Final = 4 << 10
"""Bytes that are parsed at once: no more than these go beyond a limit."""
LINGER: Final = 2.0
"""Seconds in which a client that was refused may go on sending, so that it comes to read why."""
_ABSOLUTE: Final = re.compile(rb"[A-Za-z][A-Za-z0-9+.-]*://([^/?#]*)(.*)", re.DOTALL)


class Refused(Exception):
    """A request that isn't answered as one: the status and what is wrong. Its connection ends."""


class Waiting(Protocol):
    """A connection whose client is to do something."""

    def give_way(self) -> None:
        """End the connection."""


waited_for: Final[dict[Waiting, None]] = {}
"""Connections of this process whose client is to do something, the longest wait first."""
opening: Final[set[Waiting]] = set()
"""Of these, those that don't speak HTTP yet (api.tls)."""


def admits(limits: Limits, others: int) -> bool:
    """Whether there is room for one more beside so many, or one gave way to it."""
    if others < limits.most:
        return True
    first = next(iter(waited_for), None)
    if first is not None:
        first.give_way()
    return first is not None


class Connection(HttpToolsProtocol):
    """One client's. Its requests are answered one after the other."""

    def __init__(
        self, *arguments: Any, limits: Limits, opened: Callable[[], None] | None = None, **options: Any
    ) -> None:
        """`opened` is called once it is there; the rest is uvicorn's."""
        super().__init__(*arguments, **options)
        self._limits = limits
        self._opened = opened
        self._timer: asyncio.TimerHandle | None = None
        self._stuck: asyncio.TimerHandle | None = None
        # What is being read: the head of a request or what follows it, and so many bytes of that; whether
        # there are any of the request.
        self._in_head, self._size, self._begun = True, 0, False
        # What isn't parsed yet, because requests before it aren't answered.
        self._rest = b""
        # The application of a request whose body isn't there yet.
        self._held: Any = None
        # The request that is being answered, or was the last one; `cycle` is the last that has come.
        self._answered: Any = None
        # What the connection ends with, once the requests before are answered; and whether
        # nothing is read any more.
        self._refusal: Refused | None = None
        self._deaf = False
        self._ended = False

    # -- what the transport says -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if self._opened is not None:
            self._opened()
        if not admits(self._limits, len(self.connections) - 1 + len(opening)):
            self._refuse(Refused(503, "too many connections"))
            return
        self._wait_for_client(self._limits.timeout)

    def connection_lost(self, exc: Exception | None) -> None:
        self._wait_for_client(None)
        self._unset_keepalive_if_required()
        self._rest, self._deaf = b"", True
        self.pipeline.clear()
        if self._answered is not None:
            self._answered.disconnected = True
        self.resume_writing()
        super().connection_lost(exc)

    def eof_received(self) -> bool:  # type: ignore[override]
        # It sends no more, but may read what it has asked for.
        self._ended = True
        return self._busy

    def data_received(self, data: bytes) -> None:
        if not self._deaf and not self.transport.is_closing():
            self._rest += data
            self._parse()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(self._limits.timeout, self.transport.abort)

    def resume_writing(self) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        super().resume_writing()

    # -- what the parser says --------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._size, self._begun = True, 0, True

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # a trailer isn't a header
            # llhttp keeps the blanks behind a value, which aren't part of it (RFC 9112, 5.1).
            super().on_header(name, value.strip(b" \t"))

    def on_headers_complete(self) -> None:
        if len(self.url) + sum(len(name) + len(value) for name, value in self.headers) > MOST_HEAD:
            raise self._too_long()
        if self.parser.get_http_version() not in ("1.0", "1.1"):
            raise Refused(505, "HTTP/1.1 or 1.0")
        if any(name == b"content-length" and int(value) > MOST_BODY for name, value in self.headers):
            raise _too_much()
        absolute = _ABSOLUTE.fullmatch(self.url)
        if absolute is not None:
            # The host is its authority, whatever the header says (RFC 9112, 3.2.2).
            self.headers[:] = [(name, value) for name, value in self.headers if name != b"host"] + [
                (b"host", absolute[1])
            ]
            self.url = absolute[2] if absolute[2][:1] == b"/" else b"/" + absolute[2]
        self._in_head, self._size = False, 0
        super().on_headers_complete()
        if self.expect_100_continue:
            # It is answered at once, and then nobody knows whether a body comes.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Drop the body: no path reads it."""

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_head, self._size, self._begun = True, 0, False
        app, self._held = self._held, None
        if app is not None:
            self._start_asgi_task(self.cycle, app)
        if self._busy:
            self._wait_for_client(None)

    def give_way(self) -> None:
        """End the connection in favour of another one."""
        self._wait_for_client(None)
        self.transport.abort()

    # -- inside ----------------------------------------------------------------------------------------------

    @property
    def _busy(self) -> bool:
        """Whether a request is being answered."""
        current: Any = self.cycle
        return current is not None and not current.response_complete and self._held is None

    def _start_asgi_task(self, cycle: Any, app: Any) -> None:
        if cycle is self.cycle and not self._in_head and not cycle.waiting_for_100_continue:
            self._held = app  # until its body is there
        else:
            self._answered = cycle
            super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if not self.transport.is_closing():
            self._parse()
        if not self._busy:
            if self._refusal is not None and not self.transport.is_closing():
                self._refuse(self._refusal)
            else:
                self._wait_for_client(self._limits.timeout)
                if self._ended:
                    self.transport.close()

    def _parse(self) -> None:
        """Take in what has come, up to the first request that has to wait for another one's answer."""
        while self._rest and not self.pipeline and not self._deaf:
            piece, self._rest = self._rest[:_PIECE], self._rest[_PIECE:]
            self._size += len(piece)
            self._unset_keepalive_if_required()
            try:
                self.parser.feed_data(piece)
                if self._size > (MOST_HEAD if self._in_head else MOST_BODY):
                    raise self._too_long() if self._in_head else _too_much()
            except httptools.HttpParserUpgrade:
                # Nothing else is spoken here: it is answered as if it hadn't asked, and
                # what follows isn't read.
                self.cycle.keep_alive = False
                self._deaf, self._rest = True, b""
            except Refused as refused:
                self._refuse(refused)
            except httptools.HttpParserError as error:
                cause = error.__context__
                self._refuse(
                    cause if isinstance(cause, Refused) else Refused(400, "this can't be read as HTTP")
                )
        if self._rest and not self._deaf:
            self.flow.pause_reading()

    def _refuse(self, refused: Refused) -> None:
        """End the connection, behind the answers to what came before."""
        self._deaf, self._rest = True, b""
        if self._busy:
            self._refusal = refused
            return
        status, detail = refused.args
        if self._limits.logged:
            answered("-", "-", "-", status, 0.0)
        answer = problem(status, detail, headers={"Connection": "close"})
        head = b"".join(
            b"%s: %s\r\n" % each for each in (*self.server_state.default_headers, *answer.raw_headers)
        )
        self._held, self._refusal = None, None
        self.transport.write(STATUS_LINE[status] + head + b"\r\n" + bytes(answer.body))
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self._wait_for_client(LINGER)

    def _wait_for_client(self, seconds: float | None) -> None:
        """Start the time limit of waiting for the client; None stops it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        waited_for.pop(self, None)
        if seconds is not None:
            self._timer = self.loop.call_later(seconds, self._give_up)
            waited_for[self] = None

    def _give_up(self) -> None:
        if (
            self._begun
            and not self._deaf
            and not self.transport.is_closing()
            and not self.transport.get_write_buffer_size()
        ):
            self._refuse(Refused(408, f"no whole request within {self._limits.timeout:g} s"))
        else:
            self.give_way()

    def _too_long(self) -> Refused:
        if self.headers and len(self.url) <= MOST_HEAD:
            return Refused(431, f"more than {MOST_HEAD >> 10} KiB of headers")
        return Refused(414, f"more than {MOST_HEAD >> 10} KiB of request line")


def _too_much() -> Refused:
    return Refused(413, f"more than {MOST_BODY >> 10} KiB of body")
