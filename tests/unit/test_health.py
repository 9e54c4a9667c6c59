"""What a worker says of itself, by how its lanes and servers do."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import REGISTRY

from streams.health import HealthWatch
from streams.transport.lane import LaneLook


def watch(
    *looks: LaneLook,
    away: dict[str, float] | None = None,
    outages: dict[str, Any] | None = None,
    ready: bool = True,
    refused: dict[str, str] | None = None,
) -> HealthWatch:
    """Of a worker with these lanes. `away`: seconds by server."""
    seconds = {"kafka": 0.0, "postgres": 0.0, "redis": 0.0} | (away or {})
    waiting, why = outages or {}, refused or {}
    app: Any = SimpleNamespace(
        ready=ready,
        delivery=SimpleNamespace(outages=waiting),
        kafka_away=lambda: seconds["kafka"],
        look=lambda: list(looks),
        standing_still=lambda limit: [
            look for look in looks if (look.still or 0) > limit and look.name not in waiting
        ],
        stats=lambda: SimpleNamespace(retries=3, rewinds=1),
    )
    rows: Any = SimpleNamespace(
        availability=SimpleNamespace(away=lambda: seconds["postgres"], refusal=why.get("postgres"))
    )
    cache: Any = SimpleNamespace(away_for=lambda: seconds["redis"], refusal=why.get("redis"))
    return HealthWatch(app, rows, cache)


QUIET = LaneLook("90", 0, None, None)
STILL = LaneLook("91", 7, int(time.time() * 1000) - 60_000, 60.0)


class Outage:
    """One that began 12 s ago, whenever it is asked."""

    lane = "91"
    why = "OSError: no route"

    @property
    def since(self) -> float:
        return time.monotonic() - 12


@pytest.mark.parametrize(
    ("given", "stuck", "waits"),
    [
        (watch(QUIET), None, None),
        (watch(), None, None),
        (watch(ready=False), None, "lanes aren't open yet"),
        (watch(QUIET, STILL), "lane 91 has stood still for 60 s", None),
        (
            watch(QUIET, STILL, outages={"91": Outage()}),
            None,
            "lane 91 has waited for 12 s: OSError: no route",
        ),
        (watch(STILL, away={"postgres": 30.0}), None, "postgres hasn't answered for 30 s"),
        (
            watch(STILL, away={"redis": 2.0}),
            "lane 91 has stood still for 60 s",
            "redis hasn't answered for 2 s",
        ),
        (
            watch(away={"redis": 11.0}, refused={"redis": "it is full: OOM", "postgres": "of before"}),
            None,
            "redis answers, but has refused to write for 11 s: it is full: OOM",
        ),
        (watch(QUIET, away={"kafka": 9.0}, ready=False), None, "kafka hasn't answered for 9 s; lanes aren't"),
    ],
)
def test_it_says_what_it_waits_for_and_whether_it_is_stuck(
    given: HealthWatch, stuck: str | None, waits: str | None
) -> None:
    health = given.look()
    assert health.stuck == stuck
    assert (health.waits or "").startswith(waits or "")
    assert (health.waits is None) is (waits is None)


def value(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(name, labels)


def test_lanes_have_metrics_as_long_as_they_are_here() -> None:
    here = watch(STILL, away={"postgres": 30.0})
    retries = value("orders_retries_total") or 0.0
    here._measure()
    here._measure()
    assert value("orders_lane_lag_records", lane="91") == 7
    assert (value("orders_lane_lag_seconds", lane="91") or 0) >= 60
    assert value("orders_lane_busy_seconds", lane="91") == 60
    assert value("orders_lane_waiting_seconds", lane="91") == 0
    assert value("orders_server_away_seconds", server="postgres") == 30
    assert value("orders_server_away_seconds", server="redis") == 0
    assert value("orders_retries_total") == retries + 3
    here._app = watch(QUIET)._app
    here._measure()
    assert value("orders_lane_lag_records", lane="91") is None
    assert value("orders_lane_lag_records", lane="90") == 0
