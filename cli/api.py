"""`orders api`: orders over HTTP, for readers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.serving import serve
from settings import get_settings


def api_command(
    host: Annotated[
        str, typer.Option(help="Address to serve. Addresses other than loopback need keys or an issuer.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve; 0 takes a free one.")] = 8080,
    cert: Annotated[
        Path | None,
        typer.Option(help="Serve TLS with this certificate (PEM, with its chain), read again on change."),
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's key (PEM, without a password).")] = None,
) -> None:
    """Serve orders over HTTP until SIGTERM or Ctrl-C, from Redis, else the replica, else the primary.

    With ORDERS_API_WRITE=true it takes in events too (POST /events).

    Who may read: ORDERS_API_KEYS, named keys (orders keys), or tokens of an issuer (ORDERS_API_JWT_ISSUER).

    /openapi.json describes the paths. The databases may be away when it starts.

    Example: [bold]ORDERS_API_KEYS=$(openssl rand -hex 32) orders api --port 8080[/bold]
    """
    from api.app import create_app
    from api.events import keeps_body

    settings = get_settings()
    keeps = keeps_body if settings.api_write else None
    serve(settings, create_app, host, port, cert, key, name="api", keeps=keeps)
