"""Work that is done side by side by processes of their own, which send back messages.

Spawned and not forked: this process has threads (of RocksDB, of name lookups, of whoever called), and a fork
of it can wait for ever for a lock that one of them held. A child has what is in its job, and nothing else.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from multiprocessing.connection import Connection
from typing import Any, Final

from errors import OrdersError

_LENGTH: Final = 4
"""Bytes that say how long a message is."""

_processes: Final = multiprocessing.get_context("spawn")

Say = Callable[[object], None]
"""Sends a message to the parent. It may block, and ends the process when the parent is gone."""
Job = Callable[[Say], Awaitable[None]]
"""Does what is to be done. It must be picklable, and so must what it says, which may be no exception."""


class ProcessLost(OrdersError):
    """A process that worked for this one was killed. The message says by which signal."""

    remedy = "run it again; where memory is short, with fewer processes"


def usable_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


async def side_by_side(jobs: Sequence[Job], hear: Callable[[Any], None]) -> None:
    """Do all jobs at once, each in a process of its own, and call `hear(message)` with what they say, in the
    order in which each says it.

    Blocks until all are done. Raises what the first one raised that failed, and
    ProcessLost; then the others are killed.
    """

    async def run(job: Job) -> None:
        async with aclosing(_said(job)) as messages:
            async for message in messages:
                hear(message)

    tasks = [asyncio.ensure_future(run(job)) for job in jobs]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _said(job: Job) -> AsyncGenerator[Any]:
    """What a process says that does this job."""
    readable, writable = _processes.Pipe(duplex=False)
    process = _processes.Process(target=_child, args=(job, writable, gc.get_threshold()), daemon=True)
    try:
        process.start()  # blocks for some ms
    finally:
        writable.close()
    reader, transport = asyncio.StreamReader(), None
    try:
        with readable:
            pipe = os.fdopen(os.dup(readable.fileno()), "rb")
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), pipe
        )
        while head := await _exactly(reader, _LENGTH):
            message = pickle.loads(await _exactly(reader, int.from_bytes(head, "big")))  # our own child's
            if isinstance(message, BaseException):
                raise message
            yield message
    except BaseException:
        process.kill()
        raise
    finally:
        if transport is not None:
            transport.close()
        process.join()  # it has ended, or is killed
    if code := process.exitcode:
        raise ProcessLost(
            f"process {process.pid} ended {f'by signal {-code}' if code < 0 else f'with code {code}'}"
        )


async def _exactly(reader: asyncio.StreamReader, count: int) -> bytes:
    """Nothing at the end."""
    try:
        return await reader.readexactly(count)
    except asyncio.IncompleteReadError:
        return b""


def _child(job: Job, writable: Connection, threshold: tuple[int, int, int]) -> None:
    """Do the job, and end without a word of Python's own."""
    gc.set_threshold(*threshold)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C is the parent's to tell
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # What a client says of each attempt to connect is no line for a person, as in cli.main.
    logging.getLogger("aiokafka").addHandler(logging.NullHandler())
    with os.fdopen(os.dup(writable.fileno()), "wb") as pipe:
        writable.close()

        def say(message: object) -> None:
            packed = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
            try:
                pipe.write(len(packed).to_bytes(_LENGTH, "big") + packed)
                pipe.flush()
            except BrokenPipeError:
                os._exit(1)

        try:
            with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
                runner.run(_run(job, say))
        except BaseException as error:
            try:
                pickle.loads(pickle.dumps(error))
            except Exception:  # of a library's own making
                error = RuntimeError("".join(traceback.format_exception(error)))
            say(error)
    os._exit(0)


def _end_with_parent() -> None:
    """Wait for the parent's end, and end this process: it may hold what the next run needs, and say nothing
    for long."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


async def _run(job: Job, say: Say) -> None:
    await job(say)
