"""`orders console`: a web page for operators and support."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.serving import serve
from settings import get_settings


def console_command(
    host: Annotated[
        str, typer.Option(help="Address to serve. Addresses other than loopback need keys or an issuer.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to serve; 0 takes a free one.")] = 8090,
    cert: Annotated[
        Path | None,
        typer.Option(help="Serve TLS with this certificate (PEM, with its chain), read again on change."),
    ] = None,
    key: Annotated[Path | None, typer.Option(help="The certificate's key (PEM, without a password).")] = None,
) -> None:
    """Serve a web page that shows how everything does and where an order is, until SIGTERM or Ctrl-C.

    It keeps nothing: several may run, and the servers may be away when it starts. What it does is noted in
    orders operations; events are sent with ORDERS_API_WRITE=true.

    Who may look: the keys of orders api, shown once at the login, or whoever a proxy has logged in
    (ORDERS_CONSOLE_PROXY_USER). A key with the scope view sees all but personal fields, one with all sees
    them too. Without keys and proxy it is for this machine only.

    Example: [bold]orders console --port 8090[/bold]
    """
    from console.app import create_app
    from console.forms import keeps_body

    settings = get_settings()
    by_proxy = bool(settings.console_proxy_user)
    serve(settings, create_app, host, port, cert, key, name="console", keeps=keeps_body, guarded=by_proxy)
