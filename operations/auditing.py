"""The audit of what the settings name. The auditor itself knows neither our settings nor our errors of the disk."""

from __future__ import annotations

import errno
import gc
import sqlite3
import tempfile
from collections.abc import Callable

from audit.auditor import Auditor, Target
from audit.findings import Finding, Report
from errors import OrdersError
from settings import Settings
from sinks.connection import plain

Progress = Callable[[str, int, int], None]
"""Gets what is at work, how much of it is done, and how much there is."""


class NoRoom(OrdersError):
    """The audit can't keep its temporary files. The message says why."""


def target_of(settings: Settings, *, cache: bool, tables: bool) -> Target:
    """What the settings name. `cache`, `tables`: whether Redis and the workers' local tables are looked at. Pure."""
    return Target(
        brokers=settings.brokers,
        group=settings.group,
        changelog=settings.changelog_topic,
        postgres=plain(settings.postgres.get_secret_value()),
        redis=settings.redis.get_secret_value() if cache else None,
        partitions=settings.partitions,
        data=settings.data if tables else None,
    )


async def audit(
    target: Target,
    *,
    max_findings: int,
    progress: Progress = lambda what, done, whole: None,
    only: frozenset[str] | None = None,
    hear: Callable[[Finding], None] | None = None,
) -> Report:
    """Audit everything; `only`, `hear`: see Auditor. Blocks for as long as it takes to read the log.

    Raises LogUnavailable, StoreUnavailable, OtherLanes, and NoRoom for its own files.
    """
    auditor = Auditor(target, most_findings=max_findings, progress=progress, hear=hear, only=only)
    # Millions of objects that all go by reference count: looking through them for cycles every 700 is a waste.
    gc.set_threshold(100_000, 50, 100)
    try:
        return await auditor.run()
    except (OSError, sqlite3.OperationalError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        raise NoRoom(
            f"the audit's own files: {error}; it keeps about one lane of the log below {tempfile.gettempdir()}",
            "make room there, or set TMPDIR to another place",
        ) from error
