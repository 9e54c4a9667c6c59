"""`orders api`: orders over HTTP, for readers."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import signal
import socket
from typing import Annotated

import asyncpg
import typer

from errors import OrdersError
from settings import get_settings
from sinks.connection import check


def api_command(
    host: Annotated[
        str, typer.Option(help="Address to serve. Addresses other than loopback need ORDERS_API_KEYS.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve; 0 takes a free one.")] = 8080,
) -> None:
    """Serve orders over HTTP until SIGTERM or Ctrl-C, from Redis, else the replica, else the primary.

    /openapi.json describes the paths. The databases may be away when it starts.

    Example: [bold]ORDERS_API_KEYS=$(openssl rand -hex 32) orders api --port 8080[/bold]
    """
    settings = get_settings()
    if not settings.bearer_keys and not _loopback(host):
        raise OrdersError(
            f"--host {host} is not loopback",
            "set ORDERS_API_KEYS, the keys that readers must give (openssl rand -hex 32)",
        )
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
    listening = _bound(host, port)

    import uvicorn

    from api import create_app
    from api.connection import Connection
    from cli.logs import configure

    configure(settings, "api")
    # Once it has shut down in order, uvicorn raises the signal again for whoever was there before it:
    # nobody, so the exit code is 0.
    signal.signal(signal.SIGTERM, lambda *_: None)
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(settings),
            http=Connection,
            ws="none",
            # What a client says of itself, or of a proxy before it, is never believed.
            proxy_headers=False,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="on",
            timeout_graceful_shutdown=15,
        )
    )
    server.run(sockets=[listening])
    if not server.started:
        raise typer.Exit(1)


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
