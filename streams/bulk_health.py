"""How a bulk worker does: what its probes answer and its metrics of servers show."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Final

import asyncpg

from errors import OrdersError
from settings import Settings
from sinks.bulk import BulkJobs
from sinks.refusals import told
from streams import metrics
from streams.control import Control
from streams.probes import Health
from streams.reports import WorkerReport, report_of
from streams.transport.delivery import Delivery

LANE: Final = "bulk"
"""What its failures are logged and counted under."""
LOOK_SECONDS: Final = 2.0
_NOT_JOINED: Final = "it isn't in its group yet"


class BulkHealth:
    """Looks at the servers of one unpacker. Everything is called in its event loop.

    Kafka is asked each second by who follows what is paused, Postgres when no part's row is being written: so
    it is known of an idle one, too.
    """

    def __init__(self, settings: Settings, control: Control) -> None:
        self.control = control
        self.delivery = Delivery(settings)
        self.jobs = BulkJobs(settings, "orders-bulk")
        self.joined = False
        """Whether the unpacker is in its group."""
        self.unpacking = False
        """Whether it has a part in hand."""
        self._settings = settings
        self._retries = 0

    def away(self) -> dict[str, float]:
        """Servers that don't answer, and for how many seconds each hasn't. Never blocks."""
        seconds = {"kafka": self.control.availability.away(), "postgres": self.jobs.availability.away()}
        return {server: since for server, since in seconds.items() if since}

    def refused(self) -> dict[str, str]:
        """Of the servers that are `away` those that answer and refuse, and why. Never blocks."""
        asked = {"kafka": self.control.availability, "postgres": self.jobs.availability}
        reasons = {server: each.refusal for server, each in asked.items() if each.away()}
        return {server: why for server, why in reasons.items() if why is not None}

    def look(self) -> Health:
        """For the probes. Never blocks."""
        refused = self.refused()
        waits = [told(server, since, refused.get(server)) for server, since in self.away().items()]
        waits += [] if self.joined else [_NOT_JOINED]
        waiting = self._waiting()
        if waiting is not None:
            waits.append(f"lane {LANE} has waited for {waiting[0]:.0f} s: {waiting[1]}")
        return Health(waits="; ".join(waits) or None)

    def report(self) -> WorkerReport:
        """For orders.workers. Never blocks."""
        own = report_of(self._settings, "bulk")
        own.away, own.refused = self.away(), self.refused()
        waiting = self._waiting()
        own.waits = waiting[1] if waiting is not None else None if self.joined else _NOT_JOINED
        return own

    def _waiting(self) -> tuple[float, str] | None:
        """For how many seconds a failure has held it up, and why. One that is in its group and has no part
        waits for nothing, whatever failed before."""
        outage = self.delivery.outages.get(LANE)
        if outage is None or (self.joined and not self.unpacking):
            return None
        return time.monotonic() - outage.since, outage.why

    async def watch(self) -> None:
        """Ask Postgres again and again, and keep the metrics of servers up to date, until cancelled."""
        asking = asyncio.ensure_future(self._ask())
        try:
            while True:
                # A server that says nothing is measured, not waited for.
                await asyncio.wait({asking}, timeout=LOOK_SECONDS)
                self._measure()
                if asking.done():
                    await asyncio.sleep(LOOK_SECONDS)
                    asking = asyncio.ensure_future(self._ask())
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _ask(self) -> None:
        # That it is away is known by the call.
        with suppress(asyncpg.PostgresError, asyncpg.InterfaceError, OrdersError, OSError):
            await self.jobs.ping()

    def _measure(self) -> None:
        away, waiting = self.away(), self._waiting()
        for server in ("kafka", "postgres"):
            metrics.SERVER_AWAY.labels(server).set(away.get(server, 0.0))
        metrics.LANE_WAITING.labels(LANE).set(0.0 if waiting is None else waiting[0])
        metrics.RETRIES.inc(self.delivery.retries - self._retries)
        self._retries = self.delivery.retries
