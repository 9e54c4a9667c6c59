"""TLS before HTTP: the certificate, read again when it changes, and handshakes that can't last."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import uvicorn
from cryptography import x509

from api.connection import LINGER, Connection, Limits, admits, opening, waited_for
from api.watched import Watched
from credentials import read_file
from errors import OrdersError

log = logging.getLogger(__name__)


class CertificateUnusable(OrdersError):
    """The files of --cert and --key aren't a certificate, in time, and its key."""


def certificate(cert: Path, key: Path) -> Watched[ssl.SSLContext]:
    """Return what connections are secured with, as the files have it. Raises CertificateUnusable. Blocks
    while two small files are read.
    """
    return Watched("--cert and --key", partial(_context, cert, key), cert, key)


class TlsServer(uvicorn.Server):
    """uvicorn's server, but for how connections begin: whoever hasn't shown yet that it speaks TLS has a
    limited time, and a place among the connections, which it may have to give up.
    """

    def __init__(self, config: uvicorn.Config, context: Watched[ssl.SSLContext], limits: Limits) -> None:
        super().__init__(config)
        self._context = context
        self._limits = limits
        self._accepting: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to serve these sockets."""
        await super().startup(sockets=[])
        self._accepting = [asyncio.ensure_future(self._accept(each)) for each in sockets or ()]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more, and answer what has been asked. Blocks for timeout_graceful_shutdown at most."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    async def _accept(self, listening: socket.socket) -> None:
        listening.setblocking(False)
        listening.listen(self.config.backlog)
        failed = False
        while True:
            try:
                line, _ = await asyncio.get_running_loop().sock_accept(listening)
            except OSError as error:
                # The client is gone already, or there are no more files: the next one may have more luck.
                if not failed:
                    log.warning("a connection can't be accepted: %s", error)
                failed = True
                await asyncio.sleep(0.1)
                continue
            failed = False
            if admits(self._limits, len(self.server_state.connections) + len(opening)):
                Handshake(line, self._context.current(), self._limits.timeout, self._connection)
            else:
                line.close()

    def _connection(self, opened: Callable[[], None]) -> Connection:
        return Connection(
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
            limits=self._limits,
            opened=opened,
        )


class Handshake:
    """A connection whose client has to show that it speaks TLS."""

    def __init__(
        self,
        line: socket.socket,
        context: ssl.SSLContext,
        timeout: float,
        connection: Callable[[Callable[[], None]], Connection],
    ) -> None:
        opening.add(self)
        waited_for[self] = None
        self._task = asyncio.ensure_future(self._shake_hands(line, context, timeout, connection))

    def give_way(self) -> None:
        """End the connection in favour of another one."""
        self._opened()
        self._task.cancel()

    async def _shake_hands(
        self,
        line: socket.socket,
        context: ssl.SSLContext,
        timeout: float,
        connection: Callable[[Callable[[], None]], Connection],
    ) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                partial(connection, self._opened),
                line,
                ssl=context,
                ssl_handshake_timeout=timeout,
                ssl_shutdown_timeout=LINGER,
            )
        except OSError as error:
            # Scanners, plain HTTP, clients that don't trust the certificate.
            log.debug("no TLS: %s", error)
        finally:
            self._opened()

    def _opened(self) -> None:
        opening.discard(self)
        waited_for.pop(self, None)


def _context(cert: Path, key: Path) -> ssl.SSLContext:
    remedy = "give --cert and --key a certificate and its key, in PEM"
    for path in (cert, key):
        try:
            read_file(path, 0)
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
