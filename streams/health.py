"""How a worker does: what its probes answer and its metrics of lanes and servers show."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Final

from settings import Settings
from sinks.postgres import PostgresSink
from sinks.redis import RedisSink
from sinks.refusals import told
from streams import metrics
from streams.control import Control
from streams.probes import Health
from streams.reports import LaneReport, WorkerReport, report_of
from streams.transport.app import BatchApp

STILL_SECONDS: Final = 20.0
"""Seconds without progress, waiting for no server, after which a lane counts as stuck."""
_LOOK_SECONDS: Final = 1.0
_NOT_OPEN: Final = "lanes aren't open yet"


class HealthWatch:
    """Looks at one worker's lanes and servers. Everything is called in the worker's event loop."""

    def __init__(
        self, app: BatchApp, rows: PostgresSink, cache: RedisSink, control: Control | None = None
    ) -> None:
        self._app = app
        self._rows = rows
        self._cache = cache
        self._control = control
        self._lanes: set[str] = set()
        self._paused: set[tuple[str, str]] = set()
        self._counted = {"retries": 0, "rewinds": 0}
        self.rows_behind: Mapping[int, int] = {}
        """Lane -> how many of its orders have older rows in Postgres than they should, or none."""

    def away(self) -> dict[str, float]:
        """Servers that don't answer, and for how many seconds each hasn't. Never blocks."""
        seconds = {
            "kafka": self._app.kafka_away(),
            "postgres": self._rows.availability.away(),
            "redis": self._cache.away_for(),
        }
        return {server: since for server, since in seconds.items() if since}

    def refused(self) -> dict[str, str]:
        """Of the servers that are `away` those that answer and refuse to write, and why. Never blocks."""
        reasons = {
            "kafka": None if self._control is None else self._control.availability.refusal,
            "postgres": self._rows.availability.refusal,
            "redis": self._cache.refusal,
        }
        away = self.away()
        return {server: why for server, why in reasons.items() if why is not None and server in away}

    def look(self) -> Health:
        """For the probes. Never blocks."""
        away, refused = self.away(), self.refused()
        waits = [told(server, since, refused.get(server)) for server, since in away.items()]
        waits += [] if self._app.ready else [_NOT_OPEN]
        now = time.monotonic()
        waits += [
            f"lane {outage.lane} has waited for {now - outage.since:.0f} s: {outage.why}"
            for outage in self._app.delivery.outages.values()
        ]
        return Health(self._stuck(away), "; ".join(waits) or None)

    def _stuck(self, away: Mapping[str, float]) -> str | None:
        if "postgres" in away:
            return None
        still = self._app.standing_still(STILL_SECONDS)
        return "; ".join(f"lane {look.name} has stood still for {look.still:.0f} s" for look in still) or None

    def report(self, settings: Settings) -> WorkerReport:
        """For orders.workers. Never blocks."""
        report, now = report_of(settings, "worker"), time.monotonic()
        outages = self._app.delivery.outages
        for look in self._app.look():
            outage = outages.get(look.name)
            waiting, why = (None, None) if outage is None else (now - outage.since, outage.why)
            behind = self.rows_behind.get(int(look.name), 0)
            report.lanes.append(
                LaneReport(look.name, look.lag, look.oldest, look.still, waiting, why, behind)
            )
        report.away = self.away()
        report.refused = self.refused()
        report.stuck = self._stuck(report.away)
        report.waits = None if self._app.ready else _NOT_OPEN
        return report

    def _measure_paused(self, wall: float) -> None:
        pauses = () if self._control is None else self._control.paused
        for each in pauses:
            metrics.PAUSED.labels(each.kind, each.name).set(1)
            metrics.PAUSED_SECONDS.labels(each.kind, each.name).set(each.seconds(wall))
        paused: set[tuple[str, str]] = {(each.kind, each.name) for each in pauses}
        for gone in self._paused - paused:
            metrics.PAUSED.remove(*gone)
            metrics.PAUSED_SECONDS.remove(*gone)
        self._paused = paused

    async def watch(self) -> None:
        """Keep the metrics of lanes and servers up to date, until cancelled."""
        while True:
            self._measure()
            await asyncio.sleep(_LOOK_SECONDS)

    def _measure(self) -> None:
        now, wall = time.monotonic(), time.time()
        outages = self._app.delivery.outages
        looks = self._app.look()
        for look in looks:
            outage = outages.get(look.name)
            late = 0.0 if look.oldest is None else max(0.0, wall - look.oldest / 1000)
            metrics.LANE_LAG.labels(look.name).set(look.lag)
            metrics.LANE_LAG_SECONDS.labels(look.name).set(late)
            metrics.LANE_WAITING.labels(look.name).set(0.0 if outage is None else now - outage.since)
            metrics.LANE_BUSY.labels(look.name).set(look.still or 0.0)
        names = {look.name for look in looks}
        for gone in self._lanes - names:
            for gauge in (
                metrics.LANE_LAG,
                metrics.LANE_LAG_SECONDS,
                metrics.LANE_WAITING,
                metrics.LANE_BUSY,
            ):
                gauge.remove(gone)
        self._lanes = names
        self._measure_paused(wall)
        away = self.away()
        for server in ("kafka", "postgres", "redis"):
            metrics.SERVER_AWAY.labels(server).set(away.get(server, 0.0))
        stats = self._app.stats()
        for name, total, counter in (
            ("retries", stats.retries, metrics.RETRIES),
            ("rewinds", stats.rewinds, metrics.REWINDS),
        ):
            counter.inc(total - self._counted[name])
            self._counted[name] = total
