"""Delivery: the only error policy of the pipeline.

Whatever a lane's handler raises is judged here and nowhere else:

- temporary (Kafka, Postgres, the network): the same batch is tried again, in place, until it
  works. The lane takes nothing else meanwhile, and that is the backpressure. Past `retry_limit`
  the worker ends, unacknowledged.
- stale: the batch belongs to an assignment that is gone. Its new owner reads it again; here it is dropped.
- everything else is a bug. It leaves this module as it came, and the worker ends, unacknowledged.

Nothing is caught and skipped.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import asyncpg
from aiokafka import errors as kafka

from errors import OrdersError, TakenAway, named
from streams.transport.config import TransportSettings
from wire.denied import acl
from wire.refused import AccessRefused, chain

log = logging.getLogger(__name__)

LOG_EVERY = 60.0
"""Seconds between two log lines for the same reason, whichever lanes wait."""
MOST_REASONS = 100
"""Reasons that are remembered."""


class Stale(Exception):
    """The batch belongs to an assignment that is gone: it can never be acknowledged, and
    nothing may be written for it.
    """


class GaveUp(OrdersError):
    """A batch kept failing for longer than `retry_limit`. The worker has to end."""

    remedy = "start the worker again when what failed works again"


class Verdict(enum.Enum):
    """What an exception means for the batch that raised it."""

    TEMPORARY = "temporary"
    STALE = "stale"
    BUG = "bug"


class Outcome(enum.Enum):
    """What became of a batch."""

    DONE = "done"
    STALE = "stale"
    CLOSING = "closing"  # it was waiting for a retry when its lane had to close: not done


KAFKA_PERMANENT: tuple[type[BaseException], ...] = (
    kafka.IllegalStateError,
    kafka.MessageSizeTooLargeError,
    kafka.RecordTooLargeError,
    kafka.InvalidTopicError,
)
"""Kafka errors that the same request gets again at every attempt."""

POSTGRES_TEMPORARY: tuple[type[BaseException], ...] = (
    asyncpg.PostgresConnectionError,  # class 08
    asyncpg.TransactionRollbackError,  # class 40: serialization failure, deadlock
    asyncpg.InsufficientResourcesError,  # class 53: too many connections, disk full, out of memory
    # Class 57: shutdown, crash of a neighbour, starting up, query canceled.
    asyncpg.OperatorInterventionError,
    asyncpg.LockNotAvailableError,
    # Of an enforced reference to another service's table (orders db references): its row is on its way.
    asyncpg.ForeignKeyViolationError,
    asyncpg.ReadOnlySQLTransactionError,  # a failover is under way: this was the primary
    asyncpg.IdleInTransactionSessionTimeoutError,
    # A password that is being changed, a grant that lacks: who mends it needn't restart the worker.
    asyncpg.InvalidAuthorizationSpecificationError,  # class 28
    asyncpg.InsufficientPrivilegeError,
    # An address was good when the worker started: a file of it is being changed (a certificate, a password).
    asyncpg.ClientConfigurationError,
)

POSTGRES_CLOSED = (
    "connection is closed",
    "connection was closed",
    "connection has been released",
    "pool is clos",
)
"""asyncpg reports a connection that went away between two statements as
InterfaceError, like a wrong argument.
"""


def judge(exc: BaseException) -> Verdict:
    """Temporary, stale or a bug. Of a group the worst member counts. Never raises, never blocks."""
    if isinstance(exc, BaseExceptionGroup):
        verdicts = {judge(member) for member in exc.exceptions}
        return next(v for v in (Verdict.BUG, Verdict.STALE, Verdict.TEMPORARY) if v in verdicts)
    if isinstance(exc, Stale):
        return Verdict.STALE
    if isinstance(exc, KAFKA_PERMANENT):
        return Verdict.BUG
    if isinstance(exc, (kafka.KafkaError, *POSTGRES_TEMPORARY, TakenAway, OSError, asyncio.TimeoutError)):
        return Verdict.TEMPORARY
    if isinstance(exc, asyncpg.InterfaceError) and any(text in str(exc) for text in POSTGRES_CLOSED):
        return Verdict.TEMPORARY
    return Verdict.BUG


@dataclass(slots=True)
class Outage:
    """One lane that cannot go on, from its first failure until it works again.
    Times are monotonic seconds.
    """

    lane: str
    since: float
    why: str
    failures: int = 0

    def fail(self, why: str) -> None:
        """Count a failure."""
        self.why = why
        self.failures += 1

    def pause(self, first: float, longest: float) -> float:
        """Seconds to wait before the next attempt."""
        return float(min(first * 2 ** min(self.failures - 1, 32), longest))


class Delivery:
    """Runs attempts under the policy. One per worker; its state is what the metrics show."""

    def __init__(self, settings: TransportSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._first = settings.retry_first
        self._longest = settings.retry_longest
        self._limit = settings.retry_limit
        self._clock = clock
        self.outages: dict[str, Outage] = {}
        """Lanes that wait at this moment."""
        self.retries = 0
        """Attempts that failed, since the worker started."""
        self._told: dict[str, float] = {}
        """Reason, but for its numbers -> when it was logged, while a lane waits."""

    def failed(self, lane: str, why: str) -> float:
        """Note that `lane` cannot go on now.
        Returns the seconds to wait; raises GaveUp past `retry_limit`.
        """
        now = self._clock()
        outage = self.outages.get(lane)
        if outage is None:
            outage = self.outages[lane] = Outage(lane, now, why)
        self.retries += 1
        lasted = now - outage.since
        outage.fail(why)
        if self._to_be_told(why, now):
            since = time.strftime("%H:%M:%S", time.localtime(time.time() - lasted))
            log.warning(
                "lane %(lane)s waits since %(since)s (%(seconds).1f s, attempt %(attempt)d; lanes that wait:"
                " %(lanes)d): %(why)s",
                {
                    "lane": lane,
                    "since": since,
                    "seconds": lasted,
                    "attempt": outage.failures,
                    "lanes": len(self.outages),
                    "why": why,
                },
            )
        if lasted > self._limit:
            raise GaveUp(
                f"lane {lane} failed for {lasted:.0f} s (the limit is {self._limit:g} s), at last: {why}"
            )
        return outage.pause(self._first, self._longest)

    def _to_be_told(self, why: str, now: float) -> bool:
        """Whether this reason is new, or was logged a while ago."""
        reason = re.sub(r"[0-9]+", "0", why)
        if now - self._told.get(reason, float("-inf")) < LOG_EVERY:
            return False
        if len(self._told) >= MOST_REASONS:
            self._told.clear()
        self._told[reason] = now
        return True

    def recovered(self, lane: str) -> None:
        """Note that `lane` goes on."""
        outage = self.outages.pop(lane, None)
        if outage is not None:
            log.info(
                "lane %(lane)s goes on after %(seconds).1f s and %(attempts)d failed attempts",
                {"lane": lane, "seconds": self._clock() - outage.since, "attempts": outage.failures},
            )
            if not self.outages:
                self._told.clear()

    def forget(self, lane: str) -> None:
        """The lane is closed."""
        self.outages.pop(lane, None)

    async def run(self, lane: str, attempt: Callable[[], Awaitable[None]], closing: asyncio.Event) -> Outcome:
        """Call `attempt` until it returns, or the lane is closing, or the batch is stale.

        Blocks for as long as the outage lasts.
        Raises GaveUp past the limit, and whatever else is not temporary.
        """
        while True:
            try:
                await attempt()
            except Exception as exc:
                verdict = judge(exc)
                if verdict is Verdict.BUG:
                    raise
                if verdict is Verdict.STALE:
                    return Outcome.STALE
                try:
                    pause = self.failed(lane, describe(exc))
                except GaveUp as gave_up:
                    raise gave_up from exc
            else:
                self.recovered(lane)
                return Outcome.DONE
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(closing.wait(), pause)
            if closing.is_set():
                return Outcome.CLOSING


def describe(exc: BaseException) -> str:
    """One line that names the exception: why a broker doesn't let us in, where that is behind it, and the ACL
    that lacks.
    """
    exc = next((cause for cause in chain(exc) if isinstance(cause, AccessRefused)), exc)
    line = named(exc)
    lacking = acl(exc)
    return line if lacking is None else f"{line}; this client lacks the ACL {lacking}"
