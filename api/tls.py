"""TLS before HTTP: the certificate, read again when it changes, and handshakes that can't last."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from cryptography import x509
from uvicorn.server import ServerState

from api.connection import Connection, Limits, admits, opening, waited_for
from api.watched import Watched
from errors import OrdersError

log = logging.getLogger(__name__)


class CertificateUnusable(OrdersError):
    """The files of --cert and --key aren't a certificate, in time, and its key."""


def certificate(cert: Path, key: Path) -> Watched[ssl.SSLContext]:
    """Return what connections are secured with, as the files have it. Raises CertificateUnusable. Blocks
    while two small files are read.
    """
    return Watched("--cert and --key", partial(_context, cert, key), cert, key)


class Handshake(asyncio.Protocol):
    """A connection until its client has shown that it speaks TLS; then it is a Connection's.

    It has a place among the connections meanwhile, and may be the one that gives way.
    """

    def __init__(
        self,
        *,
        context: Watched[ssl.SSLContext],
        limits: Limits,
        connection: Callable[..., Connection],
        server_state: ServerState,
        **options: Any,
    ) -> None:
        """`connection` is called with the rest, which is what uvicorn gives to each protocol."""
        self._context = context
        self._limits = limits
        self._connection = partial(connection, server_state=server_state, **options)
        self._connections = server_state.connections
        self._transport: Any = None
        self._task: asyncio.Task[None] | None = None
        # What came before the Connection was there, and whether nothing more will.
        self._early = b""
        self._ended = self._lost = False

    def connection_made(self, transport: Any) -> None:
        """Begin the handshake."""
        self._transport = transport
        if not admits(self._limits, len(self._connections) + len(opening)):
            transport.abort()
            return
        # No byte comes before the handshake's own protocol is there.
        transport.pause_reading()
        opening.add(self)
        waited_for[self] = None
        self._task = asyncio.get_running_loop().create_task(self._shake_hands())

    def give_way(self) -> None:
        """End the connection in favour of another one."""
        self._forget()
        self._transport.abort()

    def data_received(self, data: bytes) -> None:
        """Keep what comes right behind the handshake."""
        self._early += data

    def eof_received(self) -> bool:
        """Keep the connection: what has come may ask for something."""
        self._ended = True
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        """Its client, or its place, is gone."""
        self._lost = True
        self._forget()

    async def _shake_hands(self) -> None:
        try:
            secured = await asyncio.get_running_loop().start_tls(
                self._transport,
                self,
                self._context.current(),
                server_side=True,
                ssl_handshake_timeout=self._limits.patience,
            )
        except OSError as error:
            # Scanners, plain HTTP, clients that don't trust the certificate.
            log.debug("no TLS: %s", error)
            self._transport.abort()
            return
        finally:
            self._forget()
        if secured is None or self._lost:
            return
        connection = self._connection()
        secured.set_protocol(connection)
        connection.connection_made(secured)
        if self._early:
            connection.data_received(self._early)
        if self._ended and not connection.eof_received():
            secured.close()

    def _forget(self) -> None:
        opening.discard(self)
        waited_for.pop(self, None)


def _context(cert: Path, key: Path) -> ssl.SSLContext:
    remedy = "give --cert and --key a certificate and its key, in PEM"
    for path in (cert, key):
        try:
            with path.open("rb") as file:
                file.read(1)
        except OSError as error:
            raise CertificateUnusable(f"{path}: {error.strerror}", remedy) from None

    def password() -> str:
        raise CertificateUnusable(f"{key} is locked by a password", "give --key a key without one")

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key, password)
        end = x509.load_pem_x509_certificates(cert.read_bytes())[0].not_valid_after_utc
    except ssl.SSLError as error:
        what = (
            f"{key} is not the key of {cert}"
            if error.reason == "KEY_VALUES_MISMATCH"
            else f"{cert} and {key} hold no certificate and key"
        )
        raise CertificateUnusable(what, remedy) from None
    except (OSError, ValueError):
        raise CertificateUnusable(f"{cert} and {key} hold no certificate and key", remedy) from None
    if end <= datetime.now(UTC):
        raise CertificateUnusable(
            f"the certificate {cert} has expired ({end:%Y-%m-%d %H:%M} UTC)", "renew it"
        )
    return context
