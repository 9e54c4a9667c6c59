"""What each worker says of itself on orders.workers, every two seconds: `orders status` reads it there.

A worker that has ended says nothing, so a report counts for SECONDS_GOOD.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from typing import Final

import msgspec
from aiokafka.errors import KafkaError
from msgspec import Struct

from contracts.topics import WORKERS
from settings import Settings
from wire import clients

log = logging.getLogger(__name__)

EVERY_SECONDS: Final = 2.0
SECONDS_GOOD: Final = 15.0
"""Seconds after which a worker that says nothing counts as gone."""


class LaneReport(Struct, omit_defaults=True):
    """How one lane does."""

    lane: str
    lag: int = 0
    """Records that it hasn't finished."""
    oldest: int | None = None
    """The brokers' time of the oldest of those that it has, ms since 1970."""
    still: float | None = None
    """Seconds for which its batch hasn't got on; None: it has no batch."""
    waiting: float | None = None
    """Seconds for which it has waited for a server; None: it doesn't."""
    why: str | None = None
    """What it waits for."""
    rows_behind: int = 0
    """Orders of which the rows in Postgres are older than they should be, or gone."""


class WorkerReport(Struct, omit_defaults=True):
    """How one worker does. `at`: ms since 1970 by its own clock."""

    at: int
    worker: str
    """Its name and its host's: w1@host."""
    pid: int
    role: str
    lanes: list[LaneReport] = []
    away: dict[str, float] = {}
    """Servers that don't answer it, or refuse to write, and for how many seconds."""
    refused: dict[str, str] = {}
    """Of these the ones that answer and refuse to write, and why."""
    stuck: str | None = None
    waits: str | None = None
    """Why it does no work yet."""
    log_level: str | None = None
    """The lowest level that it logs."""


def name_of(settings: Settings) -> str:
    """What a worker is called: its name and its host's, w1@host. Pure but for the host's name."""
    return f"{settings.data.name}@{socket.gethostname()}"


def report_of(settings: Settings, role: str) -> WorkerReport:
    """A report of this process without lanes. Pure but for the clock and the host's name."""
    level = logging.getLevelName(logging.getLogger().level).lower()
    return WorkerReport(int(time.time() * 1000), name_of(settings), os.getpid(), role, log_level=level)


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(WorkerReport).decode


def decode(value: bytes | None) -> WorkerReport | None:
    """A record's value as a report; None if it is none, since anybody may write there. Pure."""
    try:
        return _decode(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


async def report(settings: Settings, look: Callable[[], WorkerReport]) -> None:
    """Send what `look` says, again and again, until cancelled. While Kafka is away nothing is sent.

    A worker never ends because of this: whatever Kafka raises is noted in the log, below what is shown.
    """
    while True:
        try:
            async with clients.producer(settings, "orders-report", request_timeout_ms=10_000) as producer:
                while True:
                    now = look()
                    await producer.send_and_wait(WORKERS, _encode(now), now.worker.encode())
                    await asyncio.sleep(EVERY_SECONDS)
        except (KafkaError, OSError) as error:
            log.debug("a report wasn't sent: %r", error)
        await asyncio.sleep(EVERY_SECONDS)
