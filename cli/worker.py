"""`orders worker`: the pipeline in the foreground, in one process."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import re
import signal
from enum import Enum
from functools import partial
from typing import Annotated

import typer

import compiled
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
                "realtime runs the pipeline; bulk turns bulk jobs into events, at a limited pace; all"
                " does both in this process."
            )
        ),
    ] = Role.all,
) -> None:
    """Run the pipeline in the foreground, in one process.

    On SIGTERM it finishes what is in flight and exits 0. Start several with different names to share the
    partitions. A worker that can't go on exits 1 without acknowledging its batch: start it again.

    Example:

        orders worker --name w1
        orders worker --name b1 --role bulk
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
    from app import create_app
    from cli.logs import configure
    from cli.probes import serve
    from operations.pause import hold
    from streams.reports import report_of
    from streams.transport.worker import run_worker

    gc.enable()
    configure(settings, name)
    if role is Role.bulk:
        _tell_form()
        raise typer.Exit(asyncio.run(_bulk(settings, serve(settings))))
    app = create_app(settings, bulk=role is Role.all)
    if settings.dead_letter_hold:
        app.hold_topic = partial(hold, settings, report_of(settings, "worker").worker)
    app.claim_folder()
    _tell_form()
    probes = serve(settings)
    # A batch makes some hundred thousand objects that all go by reference count; looking through them for
    # cycles every 700 is a waste.
    gc.collect()
    gc.freeze()
    gc.set_threshold(1_000_000, 50, 100)

    def begun(loop: asyncio.AbstractEventLoop) -> None:
        if probes is not None:
            probes.watch(loop, app.health.look)

    raise typer.Exit(run_worker(app, begun))


def _tell_form() -> None:
    logging.getLogger("orders").info("the rules run %s", compiled.form())


async def _bulk(settings: Settings, probes: Probes | None) -> int:
    """Unpack until a signal comes; returns the exit code."""
    from streams import bulk, tracing
    from streams.bulk_health import BulkHealth
    from streams.control import Control
    from streams.reports import name_of, report

    log, stop = logging.getLogger("streams.bulk"), asyncio.Event()
    health = BulkHealth(settings, Control(settings, lambda lanes, topics: None))
    spans = tracing.tracer("orders-bulk", os.environ, instance=name_of(settings))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    if probes is not None:
        probes.watch(asyncio.get_running_loop(), health.look)
    reporting = asyncio.ensure_future(report(settings, health.report))
    try:
        await bulk.serve(settings, stop, health, spans, lambda: log.info("worker ready"))
    except OrdersError as failure:
        log.critical("the worker ends, nothing unfinished is acknowledged: %s", failure)
        return 1
    except Exception:
        log.critical("the worker crashed, nothing unfinished is acknowledged", exc_info=True)
        return 1
    finally:
        reporting.cancel()
    return 0
