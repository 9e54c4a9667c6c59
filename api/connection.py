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

from api import counted
from api.problems import problem
from api.requests import answered
from settings import Settings

MOST_HEAD: Final = 64 << 10
"""Bytes of a request line and its headers."""
MOST_BODY: Final = 64 << 10
"""Bytes of a body that nothing reads, as they come."""
MOST_KEPT: Final = 64 << 20
"""Bytes of bodies that are read, of all requests of this process until they are answered."""


class Limits(NamedTuple):
    """Of each connection, and of all.

    `timeout`: seconds from the beginning of a connection, or from the last answer, until the next request
    must be there as a whole; and for which an answer waits for its client. `most`: connections at a time. One
    more, and that which has been waited for the longest gives way. `logged`: whether requests that never came
    to be are in the access log. `service`: under what they are counted. `body`: (method, target,
    Authorization) -> the most bytes of a body that is read; 0: nothing reads it. None: no path reads any.
    """

    timeout: float = 10.0
    most: int = 1000
    logged: bool = True
    body: Callable[[bytes, bytes, str | None], int] | None = None
    service: str = "api"

    @classmethod
    def of(
        cls, settings: Settings, body: Callable[[bytes, bytes, str | None], int] | None, service: str
    ) -> Limits:
        """Those of the settings, as far as this process can."""
        timeout, most = settings.api_request_timeout, settings.api_connections
        return cls(timeout, most, settings.api_access_log, body, service).possible()

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


class _Kept:
    """How much of MOST_KEPT is taken."""

    bytes = 0


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
        # How many bytes the body may have; what is there of it, if it is read; and the size of those of
        # requests that aren't answered yet.
        self._most = MOST_BODY
        self._body: list[bytes] | None = None
        self._kept: dict[Any, int] = {}
        # Bytes that are still to come of a body which the parser doesn't read, because its head asks for
        # another protocol: Java's client does so with its first request.
        self._unparsed = 0
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
        self._forget(*self._kept)
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
        absolute = _ABSOLUTE.fullmatch(self.url)
        if absolute is not None:
            # The host is its authority, whatever the header says (RFC 9112, 3.2.2).
            self.headers[:] = [(name, value) for name, value in self.headers if name != b"host"] + [
                (b"host", absolute[1])
            ]
            self.url = absolute[2] if absolute[2][:1] == b"/" else b"/" + absolute[2]
        self._in_head, self._size = False, 0
        self._expect_body()
        super().on_headers_complete()
        if self.expect_100_continue:
            # It is answered at once, and then nobody knows whether a body comes.
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        """Keep the body if something reads it."""
        if self._body is None:
            return
        self._body.append(body)
        self._kept[self.cycle] = self._kept.get(self.cycle, 0) + len(body)
        _Kept.bytes += len(body)
        if _Kept.bytes > MOST_KEPT:
            raise Refused(503, "too many requests at a time")

    def on_message_complete(self) -> None:
        if self._unparsed:
            return
        if self._body is not None:
            self.cycle.body += b"".join(self._body)
            self._body = None
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
        self._forget(self._answered)
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

    def _expect_body(self) -> None:
        """Decide what is done with a body. Raises Refused if it says of itself that it is too large."""
        length = next((int(value) for name, value in self.headers if name == b"content-length"), 0)
        read = 0
        if self._limits.body is not None:
            authorization = next((value for name, value in self.headers if name == b"authorization"), None)
            read = self._limits.body(
                self.parser.get_method(),
                self.url,
                None if authorization is None else authorization.decode("latin-1"),
            )
        self._most, self._body = (read, []) if read else (MOST_BODY, None)
        if length > self._most:
            raise _too_much(self._most)
        if read and self.parser.should_upgrade():
            if any(name == b"transfer-encoding" for name, _ in self.headers):
                raise Refused(411, "an upgrade is asked for: give the body's Content-Length")
            self._unparsed = length
        if self.parser.get_http_version() == "1.0":
            self.expect_100_continue = False  # RFC 9110, 10.1.1
        if read and self.expect_100_continue:
            # So the request is answered once its body is there.
            self.expect_100_continue = False
            if not self._busy:
                self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _forget(self, *answered: Any) -> None:
        """Give back the room of the bodies of these requests."""
        for cycle in answered:
            _Kept.bytes -= self._kept.pop(cycle, 0)

    def _parse(self) -> None:
        """Take in what has come, up to the first request that has to wait for another one's answer."""
        while self._rest and not self.pipeline and not self._deaf:
            if self._unparsed:
                self._take_unparsed()
                continue
            piece, self._rest = self._rest[:_PIECE], self._rest[_PIECE:]
            self._size += len(piece)
            self._unset_keepalive_if_required()
            try:
                self.parser.feed_data(piece)
                if self._size > (MOST_HEAD if self._in_head else self._most):
                    raise self._too_long() if self._in_head else _too_much(self._most)
            except httptools.HttpParserUpgrade as upgrade:
                self._stay(piece[upgrade.args[0] :])
            except Refused as refused:
                self._refuse(refused)
            except httptools.HttpParserError as error:
                cause = error.__context__
                self._refuse(
                    cause if isinstance(cause, Refused) else Refused(400, "this can't be read as HTTP")
                )
        if self._rest and not self._deaf:
            self.flow.pause_reading()

    def _stay(self, behind: bytes) -> None:
        """Answer a request for another protocol as if it hadn't asked: nothing else is spoken here. What
        follows it isn't read.
        """
        self.cycle.keep_alive = False
        if self._unparsed:
            self._rest = behind + self._rest
        else:
            self._deaf, self._rest = True, b""

    def _take_unparsed(self) -> None:
        piece, self._rest = self._rest[: self._unparsed], b""
        self._unparsed -= len(piece)
        try:
            self.on_body(piece)
        except Refused as refused:
            self._refuse(refused)
            return
        if not self._unparsed:
            self._deaf = True
            self.on_message_complete()

    def _refuse(self, refused: Refused) -> None:
        """End the connection, behind the answers to what came before."""
        self._deaf, self._rest = True, b""
        if self._busy:
            self._refusal = refused
            return
        status, detail = refused.args
        counted.refused(self._limits.service, status)
        if self._limits.logged:
            answered("-", "-", "-", status, 0.0)
        again = {"Retry-After": "1"} if status == 503 else {}
        answer = problem(status, detail, headers={"Connection": "close", **again})
        head = b"".join(
            b"%s: %s\r\n" % each for each in (*self.server_state.default_headers, *answer.raw_headers)
        )
        self._held, self._refusal, self._body = None, None, None
        self._forget(*self._kept)
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


def _too_much(most: int) -> Refused:
    return Refused(413, f"more than {most >> 10:,} KiB of body")
