"""`orders worker`: the pipeline in the foreground, in one process."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import signal
from collections.abc import Callable
from enum import Enum
from typing import Annotated, Any

import typer

from errors import OrdersError
from operations.servers import require
from settings import Settings, get_settings
from streams.probes import Probes


class Role(Enum):
    """The roles of a worker."""

    all = "all"
    realtime = "realtime"
    bulk = "bulk"


def worker_command(
    name: Annotated[
        str, typer.Option(help="Name of the worker and of its folder in ORDERS_DATA, unique on its machine.")
    ] = "worker",
    role: Annotated[
        Role,
        typer.Option(
            help=(
                "realtime runs the pipeline; bulk unpacks bulk jobs into the pipeline's topics, paced; all"
                " does both in this process."
            )
        ),
    ] = Role.all,
) -> None:
    """Run the pipeline in the foreground, in one process.

    On SIGTERM it finishes what is in flight and exits 0. Start several with different names to share the
    partitions. A worker that can't go on exits 1 without acknowledging its batch: start it again.

    Example: orders worker --name w1; orders worker --name b1 --role bulk
    """
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name) or name.startswith("."):
        raise OrdersError(
            f"--name {name!r} can't be a folder's name",
            "take at most 64 letters, digits, dots, dashes and underscores",
        )
    settings = get_settings()
    settings = settings.model_copy(update={"data": settings.data / name})

    asyncio.run(require(settings, schema=True))

    gc.disable()  # As in cli.main.load: the most is imported here.
    from prometheus_client import start_http_server

    from app import create_app
    from cli.logs import configure
    from streams.transport import run_worker

    gc.enable()
    configure(settings, name)
    if role is Role.bulk:
        raise typer.Exit(asyncio.run(_bulk(settings, _metrics(settings, start_http_server))))
    app = create_app(settings, bulk=role is Role.all)
    app.claim_folder()
    probes = _metrics(settings, start_http_server)
    # A batch makes some hundred thousand objects that all go by reference count; looking through them for
    # cycles every 700 is a waste.
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)

    def begun(loop: asyncio.AbstractEventLoop) -> None:
        if probes is not None:
            probes.watch(loop, lambda: None if app.ready else "lanes aren't open yet")

    raise typer.Exit(run_worker(app, begun))


def _metrics(settings: Settings, start: Callable[..., Any]) -> Probes | None:
    """Serve metrics and probes in a thread, if they are to be served."""
    if not settings.metrics_port:
        return None
    try:
        server, _ = start(settings.metrics_port, addr=settings.metrics_host)
    except OSError as error:
        where = f"ORDERS_METRICS_PORT={settings.metrics_port} on {settings.metrics_host}"
        raise OrdersError(f"{where}: {error.strerror}", "choose another port or address, or port 0") from None
    probes = Probes(server.get_app())
    server.set_app(probes)
    return probes


async def _bulk(settings: Settings, probes: Probes | None) -> int:
    """Unpack until a signal comes; returns the exit code."""
    from streams.bulk import serve

    log, stop = logging.getLogger("streams.bulk"), asyncio.Event()
    waits: str | None = "it has not joined its group yet"
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if probes is not None:
        probes.watch(asyncio.get_running_loop(), lambda: waits)

    def ready() -> None:
        nonlocal waits
        waits = None
        log.info("worker ready")

    try:
        await serve(settings, stop, ready)
    except OrdersError as failure:
        log.critical("the worker ends, nothing unfinished is acknowledged: %s", failure)
        return 1
    except Exception:
        log.critical("the worker crashed, nothing unfinished is acknowledged", exc_info=True)
        return 1
    return 0
