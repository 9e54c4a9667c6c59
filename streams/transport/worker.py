"""Run an app in the foreground: SIGTERM and SIGINT finish what is in flight and end
with 0, a crash ends with 1.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable

from errors import OrdersError
from streams.transport.app import BatchApp
from streams.transport.executor import end_executor

log = logging.getLogger(__name__)

STOP_MARGIN = 20.0
"""Seconds beyond drain_timeout that stopping may take before the process ends without more ado."""


def new_event_loop() -> asyncio.AbstractEventLoop:
    """A uvloop where there is one."""
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()


def run_worker(app: BatchApp, begun: Callable[[asyncio.AbstractEventLoop], None] = lambda loop: None) -> int:
    """Run `app` until a signal comes or it crashes; returns the exit code. Blocks.
    To be called once, in the main thread. `begun` is told the loop in which it is about to run.

    Logs through the logging module, which the caller has set up. Raises nothing.
    If a thread hangs, ends the process itself.
    """
    loop = new_event_loop()
    asyncio.set_event_loop(loop)
    app.loop = loop
    app.in_worker = True
    begun(loop)
    try:
        code = loop.run_until_complete(_serve(app))
        _cancel_rest(loop)
        loop.run_until_complete(end_executor())
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    if any(thread is not threading.main_thread() and not thread.daemon for thread in threading.enumerate()):
        log.critical("a thread does not end; ending the process")
        logging.shutdown()
        os._exit(code or 1)
    return code


async def _serve(app: BatchApp) -> int:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _ask, asked, number)
    starting = asyncio.ensure_future(app.start())
    ending = asyncio.ensure_future(asked.wait())
    failure: BaseException | None = None
    await asyncio.wait({starting, ending}, return_when=asyncio.FIRST_COMPLETED)
    if starting.done():
        failure = starting.exception()
        if failure is None:
            if not app.should_stop:
                log.info("worker ready")
            running = asyncio.ensure_future(app.wait_until_stopped())
            await asyncio.wait({running, ending}, return_when=asyncio.FIRST_COMPLETED)
            running.cancel()
    failure = failure or app.crash_reason
    if failure is not None:
        _report(app, failure)
    stopped = await _stop(app)
    ending.cancel()
    if not starting.done():
        starting.cancel()
        await asyncio.wait({starting}, timeout=STOP_MARGIN)
    failure = failure or app.crash_reason
    return 0 if failure is None and stopped else 1


def _ask(asked: asyncio.Event, number: signal.Signals) -> None:
    log.info("%s: finishing what is in flight", number.name)
    asked.set()


async def _stop(app: BatchApp) -> bool:
    try:
        await asyncio.wait_for(app.stop(), app.settings.drain_timeout + STOP_MARGIN)
    except TimeoutError:
        log.critical("the worker did not stop in time")
        return False
    except Exception:
        log.exception("the worker did not stop in order")
        return False
    return True


def _report(app: BatchApp, failure: BaseException) -> None:
    if isinstance(failure, OrdersError):
        log.critical("the worker ends, nothing unfinished is acknowledged: %s", app.explain(failure))
    else:
        log.critical("the worker crashed, nothing unfinished is acknowledged", exc_info=failure)


def _cancel_rest(loop: asyncio.AbstractEventLoop) -> None:
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    if tasks:
        with contextlib.suppress(asyncio.CancelledError):
            loop.run_until_complete(asyncio.wait(tasks, timeout=5))
    loop.run_until_complete(loop.shutdown_asyncgens())
