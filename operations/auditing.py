"""Run the audit on the servers that the settings name. The auditor itself doesn't import the settings."""

from __future__ import annotations

import asyncio
import errno
import functools
import gc
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

from audit.auditor import Auditor
from audit.findings import Finding, Report
from audit.follow import Follower
from audit.scope import Target
from audit.stores import CacheServer
from errors import OrdersError
from settings import Settings
from sinks.clients import open_client
from sinks.connection import plain

_REDIS_SECONDS: Final = 10.0
CHECKPOINTS: Final = ".audit"
"""Folder below ORDERS_DATA."""

Progress = Callable[[str, int, int], None]
"""Called with the name of the step, how much of it is done, and how much there is."""


class NoRoom(OrdersError):
    """Raised when the audit can't keep its temporary files. The message says why."""


def target_of(settings: Settings, *, cache: bool, tables: bool, checkpoints: bool = False) -> Target:
    """Return what is audited.

    Without `cache` Redis is left out, without `tables` the workers' local tables. With `checkpoints` the
    audit leaves one below ORDERS_DATA, and relies on that of the audit before. Pure.
    """
    return Target(
        kafka=settings,
        group=settings.group,
        changelog=settings.changelog_topic,
        postgres=plain(settings.postgres.get_secret_value()),
        redis=cache_of(settings) if cache else None,
        partitions=settings.partitions,
        data=settings.data if tables else None,
        message_bytes=settings.message_bytes,
        checkpoints=settings.data / CHECKPOINTS if checkpoints else None,
    )


def cache_of(settings: Settings) -> CacheServer:
    """Return the Redis of the settings, for the auditor. Pure."""
    return CacheServer(
        functools.partial(open_client, settings, timeout=_REDIS_SECONDS),
        str(settings.redis),
        settings.redis_prefix,
    )


async def audit(
    target: Target,
    *,
    max_findings: int,
    progress: Progress = lambda what, done, total: None,
    only: frozenset[str] | None = None,
    on_finding: Callable[[Finding], None] | None = None,
    full: bool = False,
) -> Report:
    """Audit everything. Blocks for as long as it takes to read the log.

    `only`, `on_finding` and `full` are those of Auditor.

    Raises LogUnavailable, StoreUnavailable, OtherLanes, OtherRoom, and NoRoom for its own files.
    """
    auditor = Auditor(
        target, most_findings=max_findings, progress=progress, on_finding=on_finding, only=only, full=full
    )
    with _at_work():
        return await auditor.run()


async def follow(follower: Follower, stop: asyncio.Event) -> bool:
    """Follow until `stop` is set. Returns whether nothing is broken then.

    Raises what Follower.run raises, and NoRoom for the audit's own files.
    """
    with _at_work():
        return await follower.run(stop)


@contextmanager
def _at_work() -> Iterator[None]:
    # Millions of objects are freed by their reference counts; a search for cycles after
    # every 700 of them is a waste.
    gc.set_threshold(100_000, 50, 100)
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        if isinstance(error, OSError) and error.errno not in (
            errno.ENOSPC,
            errno.EDQUOT,
            errno.EROFS,
            errno.EACCES,
        ):
            raise
        raise NoRoom(
            f"the audit's own files: {error}; it keeps about one lane of the log below"
            f" {tempfile.gettempdir()}",
            "make room there, or set TMPDIR to another place",
        ) from error
