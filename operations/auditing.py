"""Run the audit on the servers that the settings name. The auditor itself doesn't import the settings."""

from __future__ import annotations

import errno
import gc
import sqlite3
import tempfile
from collections.abc import Callable
from typing import Final

from audit.auditor import Auditor, Target
from audit.findings import Finding, Report
from audit.stores import CacheServer
from errors import OrdersError
from settings import Settings
from sinks.clients import open_client
from sinks.connection import plain

_REDIS_SECONDS: Final = 10.0

Progress = Callable[[str, int, int], None]
"""Called with the name of the step, how much of it is done, and how much there is."""


class NoRoom(OrdersError):
    """Raised when the audit can't keep its temporary files. The message says why."""


def target_of(settings: Settings, *, cache: bool, tables: bool) -> Target:
    """Return what is audited.

    Without `cache` Redis is left out, without `tables` the workers' local tables. Pure.
    """
    return Target(
        kafka=settings,
        group=settings.group,
        changelog=settings.changelog_topic,
        postgres=plain(settings.postgres.get_secret_value()),
        redis=cache_of(settings) if cache else None,
        partitions=settings.partitions,
        data=settings.data if tables else None,
    )


def cache_of(settings: Settings) -> CacheServer:
    """Return the Redis of the settings, for the auditor. Pure."""
    return CacheServer(
        lambda: open_client(settings, timeout=_REDIS_SECONDS), str(settings.redis), settings.redis_prefix
    )


async def audit(
    target: Target,
    *,
    max_findings: int,
    progress: Progress = lambda what, done, total: None,
    only: frozenset[str] | None = None,
    on_finding: Callable[[Finding], None] | None = None,
) -> Report:
    """Audit everything. Blocks for as long as it takes to read the log.

    `only` and `on_finding` are those of Auditor.

    Raises LogUnavailable, StoreUnavailable, OtherLanes, and NoRoom for its own files.
    """
    auditor = Auditor(target, most_findings=max_findings, progress=progress, on_finding=on_finding, only=only)
    # Millions of objects are freed by their reference counts; a search for cycles after
    # every 700 of them is a waste.
    gc.set_threshold(100_000, 50, 100)
    try:
        return await auditor.run()
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
