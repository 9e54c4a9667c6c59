"""A connection to a broker that says so when it is closed, and why it is refused.

Under uvloop, a write to a connection that has just been closed raises RuntimeError, where asyncio's own loop
raises nothing. aiokafka expects OSError: the task that keeps its metadata ends with anything else, without a
word, and the client never again learns who leads a partition.
"""

from __future__ import annotations

import asyncio
import weakref
from typing import Any, Final

from aiokafka import conn
from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaConnectionError, KafkaError, SaslAuthenticationFailed
from aiokafka.protocol.admin import SaslAuthenticateRequest
from aiokafka.util import create_future

from wire.access import Access
from wire.refused import refusal

GOODBYE_SECONDS: Final = 1.0
"""Seconds that a broker has to answer the end of TLS. Now and then it doesn't, and whoever closes a client
would wait for half a minute.
"""

SESSION_USED: Final = 0.8
"""Part of a session's life for which its connection is used. Sessions end with their token, or when the
broker wants to see the login again.
"""


def _without_payload(message: Any) -> str:
    return f"{type(message).__name__}(...)"


# aiokafka logs every message at the level debug. These hold a password or a token, or may repeat one.
for _request in SaslAuthenticateRequest._CLASSES:
    _request.__repr__ = _request.RESPONSE_TYPE.__repr__ = _without_payload


class _Bearer(conn.OAuthAuthenticator):  # type: ignore[misc]
    """aiokafka's, which takes a broker's first word for a welcome. Where that says why not, the broker waits
    for an answer, and then refuses the login (RFC 7628, 3.2.3).
    """

    async def step(self, payload: bytes | None) -> Any:
        return (b"\x01", True) if payload else await super().step(payload)


class Connection(conn.AIOKafkaConnection):  # type: ignore[misc]
    """aiokafka's, of which a write to a closed transport is a broken connection. What it needs to be let in
    is read when it is made, and its client is told why it isn't let in (see Access).
    """

    lower: asyncio.WriteTransport
    """The transport to the kernel: below TLS, where there is TLS."""
    _ageing: asyncio.TimerHandle | None = None
    _old = False
    """Whether its session ends soon: it ends itself between two requests, and the client makes another."""

    def __init__(self, host: str, port: int, **options: Any) -> None:
        access = options.get("sasl_oauth_token_provider")
        self._access = access if isinstance(access, Access) else None
        if self._access is not None:
            options |= self._access.options()
        super().__init__(host, port, **options)

    async def connect(self) -> Any:
        """Connect and log in. Blocks until that is done.
        Raises KafkaError (AccessRefused, where a broker is there), OSError or TimeoutError.
        """
        try:
            opened = await self._open()
        except (KafkaError, OSError, TimeoutError) as error:
            refused = self._why(error)
            if refused is None or refused is error:
                raise
            raise refused from error
        if self._access is not None:
            self._access.refusal = None
        return opened

    async def _open(self) -> Any:
        """As aiokafka's connect, but for TLS: it begins in a second step, to have the transport below it."""
        loop = self._loop
        self._closed_fut = create_future()
        reader = asyncio.StreamReader(limit=conn.READER_LIMIT, loop=loop)
        protocol = conn.AIOKafkaProtocol(self._closed_fut, reader, loop=loop)
        async with asyncio.timeout(self._request_timeout):
            if self._security_protocol.endswith("SSL"):
                self.lower, _ = await loop.create_connection(asyncio.Protocol, self.host, self.port)
                transport = await loop.start_tls(
                    self.lower,
                    protocol,
                    self._ssl_context,
                    server_hostname=self.host,
                    ssl_shutdown_timeout=GOODBYE_SECONDS,
                )
                protocol.connection_made(transport)
            else:
                transport, _ = await loop.create_connection(lambda: protocol, self.host, self.port)
                self.lower = transport
        writer = asyncio.StreamWriter(transport, protocol, reader, loop)
        self._reader, self._writer, self._protocol = reader, writer, protocol
        self._read_task = self._create_reader_task()
        if self._max_idle_ms is not None:
            self._idle_handle = loop.call_soon(self._idle_check, weakref.ref(self))
        try:
            await self._do_version_lookup()
            if self._security_protocol.startswith("SASL"):
                await self._do_sasl_handshake()
        except BaseException:
            self.close()
            # Without a goodbye: whoever wasn't let in ends its loop next, with the socket still open.
            self.lower.abort()
            raise
        return reader, writer

    def authenticator_oauth(self) -> Any:
        """See aiokafka."""
        return _Bearer(sasl_oauth_token_provider=self._sasl_oauth_token_provider)

    async def _do_sasl_handshake(self) -> None:
        try:
            await super()._do_sasl_handshake()
        except (KafkaError, OSError, TimeoutError):
            raise
        except Exception as error:
            # Of a client's step: an answer that isn't of this mechanism, a server that doesn't know the
            # password either.
            raise SaslAuthenticationFailed(
                f"the broker's answer is not what it should be ({type(error).__name__})"
            ) from error

    def close(self, reason: Any = None, exc: Any = None) -> Any:
        """See aiokafka. A broker that hangs up at the first request behind ApiVersions wants a login."""
        if (
            reason == CloseReason.CONNECTION_BROKEN
            and self._requests
            and self._correlation_id == 2
            and self._security_protocol == "PLAINTEXT"
            and isinstance(exc, EOFError)
        ):
            self._why(exc)
        if self._ageing is not None:
            self._ageing.cancel()
        return super().close(reason, exc)

    def _handle_frame(self, frame: bytes) -> None:
        super()._handle_frame(frame)
        self._end_if_old()

    def _end_if_old(self) -> None:
        if self._old and not self._requests:
            self.close(reason=CloseReason.IDLE_DROP)

    @staticmethod
    def _age(reference: weakref.ref[Connection]) -> None:
        connection = reference()
        if connection is not None:
            connection._old = True
            connection._end_if_old()

    def _why(self, error: BaseException) -> Any:
        if self._access is None:
            return None
        reason = refusal(
            error,
            f"{self._host}:{self._port}",
            self._security_protocol,
            self._access.login,
        )
        if reason is not None:
            self._access.refused(reason)
        return reason

    def send(self, request: Any, expect_response: bool = True) -> Any:
        """Write a request; returns what its response is awaited by.
        Raises KafkaConnectionError. Never blocks.
        """
        try:
            answer = super().send(request, expect_response)
        except RuntimeError as error:
            raise self._broken(error) from error
        return self._discreet(answer) if isinstance(request, SaslAuthenticateRequest) else answer

    async def _discreet(self, answer: Any) -> Any:
        """The answer to a login, without the secret that it may repeat. It says when the session ends."""
        response = await answer
        secret = self._sasl_plain_password or (self._access.shown if self._access is not None else "")
        if secret and response.error_message:
            response.error_message = response.error_message.replace(secret, "***")
        lifetime = getattr(response, "session_lifetime_ms", 0)
        if lifetime > 0:
            # The broker ends the connection at the first request after it, in the middle of somebody's work.
            seconds = lifetime / 1000 * SESSION_USED
            self._ageing = self._loop.call_later(seconds, self._age, weakref.ref(self))
        return response

    def _send_sasl_token(self, payload: bytes, expect_response: bool = True) -> Any:
        try:
            return super()._send_sasl_token(payload, expect_response)
        except RuntimeError as error:
            raise self._broken(error) from error

    def _broken(self, error: RuntimeError) -> Exception:
        if not self._writer.is_closing():
            return error
        self.close(reason=CloseReason.CONNECTION_BROKEN)
        broken: Exception = KafkaConnectionError(f"Connection at {self._host}:{self._port} broken: {error}")
        return broken
