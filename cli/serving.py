"""How the services over HTTP are served: who may look, the listening socket, uvicorn."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import signal
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import typer

from errors import OrdersError
from settings import Settings
from sinks.connection import check
from wire.access import Access

if TYPE_CHECKING:
    from fastapi import FastAPI

    from api.access import Access as Admission


def serve(
    settings: Settings,
    create: Callable[[Settings], FastAPI],
    host: str,
    port: int,
    cert: Path | None,
    key: Path | None,
    *,
    name: str,
    keeps: Callable[[Admission, bytes, bytes, str | None], int] | None = None,
    guarded: bool = False,
) -> None:
    """Serve an application until SIGTERM or Ctrl-C. `name`: in its log lines. `keeps`: the bytes that a body
    may have which it reads, as api.events.keeps_body; None: it reads none. `guarded`: it asks for something
    else than keys, too. The application's state has its `access`.

    Raises OrdersError for an address other than loopback without keys, for files of Kafka's certificates that
    can't be used, and for what can't be served.
    """
    keys = settings.bearer_keys or settings.api_key_store or settings.api_jwt_issuer
    if not keys and not guarded and not _loopback(host):
        raise OrdersError(
            f"--host {host} is not loopback",
            "set ORDERS_API_KEYS (openssl rand -hex 32), ORDERS_API_KEY_STORE (orders keys) or"
            " ORDERS_API_JWT_ISSUER, so that readers must show who they are",
        )
    if (cert is None) != (key is None):
        raise OrdersError("--cert and --key belong together", "give both, or neither")
    _check_addresses(settings)
    Access(settings)  # raises for certificates and keys that could never be used

    import uvicorn

    from api.connection import Connection, Limits
    from api.following import followed
    from api.tls import TlsServer, certificate
    from api.watch import watched
    from cli import probes
    from cli.logs import configure
    from streams import metrics, tracing

    application = create(settings)
    asyncio.run(application.state.access.prepare())
    limits = Limits.of(settings, keeps and partial(keeps, application.state.access), name)
    context = None if cert is None or key is None else certificate(cert, key)
    listening = _bound(host, port)
    configure(settings, name)
    watched(application, probes.serve(settings, metrics.HTTP), settings, name)
    followed(application, settings, name)
    application.state.tracer = tracing.tracer(f"orders-{name}", os.environ)
    # Once it has shut down in order, uvicorn raises the signal again for whoever was there before it:
    # nobody, so the exit code is 0.
    signal.signal(signal.SIGTERM, lambda *_: None)
    config = uvicorn.Config(
        application,
        http=partial(Connection, limits=limits),  # type: ignore[arg-type]
        ws="none",
        # What a client says of itself, or of a proxy before it, is never believed.
        proxy_headers=False,
        log_config=None,
        # api.requests writes one.
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=15,
    )
    server = uvicorn.Server(config) if context is None else TlsServer(config, context, limits)
    server.run(sockets=[listening])
    if not server.started:
        raise typer.Exit(1)


def _check_addresses(settings: Settings) -> None:
    for name, url in (
        ("ORDERS_POSTGRES", settings.postgres),
        ("ORDERS_POSTGRES_REPLICA", settings.postgres_replica),
    ):
        try:
            # A server that is away comes back; an address that can't be used doesn't get better.
            asyncio.run(check((url or settings.postgres).get_secret_value()))
        except asyncpg.ClientConfigurationError as error:
            # What it got may be a secret.
            raise OrdersError(f"{name}: {str(error).partition(', got ')[0]}", "correct the URL") from None


def _loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
        try:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listening.bind(address)
        except OSError:
            listening.close()
            raise
    except OSError as error:
        what = "is in use" if error.errno == errno.EADDRINUSE else f"can't be served: {error.strerror}"
        raise OrdersError(f"{host}:{port} {what}", "choose another --port, or another --host") from None
    return listening
