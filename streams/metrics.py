"""Names of all metrics, in one place. Served when ORDERS_METRICS_PORT is set."""

from __future__ import annotations

import asyncio
from typing import Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
)

from contracts.errors import REASONS

RECORDS: Final = Counter(
    "orders_records_total", "Input records by what became of them.", ["topic", "outcome"]
)
"""outcome: applied, duplicate, refused, rekeyed."""

DERIVED: Final = Counter("orders_derived_total", "Derived events and commands published.", ["topic"])
DEAD_LETTERS: Final = Counter("orders_dead_letters_total", "Dead letters by reason.", ["reason"])
for _reason in REASONS:
    DEAD_LETTERS.labels(_reason)  # A series that begins above 0 has no increase, so an alert would miss it.
BULK_EVENTS: Final = Counter("orders_bulk_events_total", "Events of bulk jobs that were unpacked.", ["kind"])
BULK_RATE: Final = Gauge(
    "orders_bulk_rate", "Events a second at which this worker unpacks bulk jobs. 0: there is none."
)
DEADLINES: Final = Counter("orders_deadlines_total", "Deadlines that passed.", ["deadline"])
ATTENTION: Final = Counter(
    "orders_attention_total",
    "Notices of what a person should look at: raised (again when its detail changes) and cleared.",
    ["kind", "state"],
)
STEP_SECONDS: Final = Histogram(
    "orders_step_seconds",
    "Seconds a batch spends in each of the steps, waiting included.",
    ["step"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
)


def step_took(step: str, seconds: float) -> None:
    """Note how long a step of a batch took. Never blocks."""
    STEP_SECONDS.labels(step).observe(seconds)


def commit_took(seconds: float) -> None:
    """Note how long the commit of a batch's transaction took. Never blocks."""
    step_took("commit", seconds)


LOOP_LAG: Final = Histogram(
    "orders_event_loop_lag_seconds",
    "Seconds by which the event loop was late for what was due, looked at ten times a second.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 1.0, 10.0),
)
"""Whatever holds the loop delays all lanes, the probes and the writes that are answered meanwhile."""
_LOOK_SECONDS: Final = 0.1


async def watch_loop() -> None:
    """Note how late the running event loop is, until cancelled."""
    clock = asyncio.get_running_loop().time
    while True:
        due = clock() + _LOOK_SECONDS
        await asyncio.sleep(_LOOK_SECONDS)
        LOOP_LAG.observe(max(0.0, clock() - due))


LANE_LAG: Final = Gauge(
    "orders_lane_lag_records",
    "Records in the lane's input topics that it hasn't finished, as far as it knows where they end.",
    ["lane"],
)
LANE_LAG_SECONDS: Final = Gauge(
    "orders_lane_lag_seconds",
    "Seconds since the brokers took the oldest record that the lane has and hasn't finished. 0: it has none.",
    ["lane"],
)
LANE_WAITING: Final = Gauge(
    "orders_lane_waiting_seconds",
    "Seconds for which the lane has waited for a server. 0: it doesn't wait. Of a bulk worker: bulk.",
    ["lane"],
)
LANE_BUSY: Final = Gauge(
    "orders_lane_busy_seconds",
    "Seconds for which the lane's batch hasn't got on. 0: it has no batch.",
    ["lane"],
)
SERVER_AWAY: Final = Gauge(
    "orders_server_away_seconds",
    "Seconds for which a server hasn't answered this process, or has refused to write."
    " 0: neither, or nobody has asked.",
    ["server"],
)
"""server: kafka, postgres, redis; of the API and the console postgres, replica, redis."""
PAUSED: Final = Gauge(
    "orders_paused",
    "1 for each lane, topic and type of event that is paused (orders pause), on every worker.",
    ["kind", "name"],
)
"""kind: lane, topic, type."""
PAUSED_SECONDS: Final = Gauge(
    "orders_paused_seconds", "Seconds for which it has been paused.", ["kind", "name"]
)
RETRIES: Final = Counter("orders_retries_total", "Attempts at a batch that failed and are made again.")
REWINDS: Final = Counter(
    "orders_rewinds_total", "Times that records were lost on their way to a lane and read again."
)

ROWS_BEHIND: Final = Gauge(
    "orders_rows_behind",
    "Orders known to have older rows in Postgres than they had; there until all of the lane have their rows.",
    ["lane"],
)
"""Above 0: Postgres went back in time, and orders repair --rows brings the rows back."""
LAST_BATCH: Final = Gauge(
    "orders_last_batch_timestamp_seconds", "When a batch was last finished, in seconds since 1970."
)
BATCH_RECORDS: Final = Histogram(
    "orders_batch_records", "Records of a batch.", buckets=(1, 10, 50, 100, 250, 500, 1000, 2000, 5000)
)

AUDIT: Final = CollectorRegistry()
"""What `orders audit --follow` serves; workers don't."""
AUDIT_BROKEN: Final = Gauge(
    "orders_audit_broken", "Differences that the audit has found and that last.", ["check"], registry=AUDIT
)
AUDIT_POSITION: Final = Gauge(
    "orders_audit_position",
    "Offset up to which an input partition is audited.",
    ["topic", "partition"],
    registry=AUDIT,
)
AUDIT_AGE: Final = Gauge(
    "orders_audit_age_seconds",
    "Seconds since the moment up to which everything that was committed is audited.",
    registry=AUDIT,
)

HTTP: Final = CollectorRegistry()
"""What `orders api` and `orders console` serve; workers don't."""
ProcessCollector(registry=HTTP)
PlatformCollector(registry=HTTP)
GCCollector(registry=HTTP)
HTTP.register(LOOP_LAG)
HTTP.register(SERVER_AWAY)
HTTP_REQUESTS: Final = Counter(
    "orders_http_requests_total",
    "Requests that were answered, by route, status and the source of the answer. Those that were refused"
    " before they were there as a whole have the method other and the route none.",
    ["service", "method", "route", "status", "source"],
    registry=HTTP,
)
"""service: api, console. route: the template, never the path. source: of X-Source; none: it says none."""
HTTP_SECONDS: Final = Histogram(
    "orders_http_request_duration_seconds",
    "Seconds from a request's headers to the end of its answer.",
    ["service", "route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0),
    registry=HTTP,
)
HTTP_KEYS: Final = Counter(
    "orders_http_key_requests_total",
    "Requests by the name of the key that they showed: 100 names, then others; token: one of the issuer's.",
    ["service", "key", "status_class"],
    registry=HTTP,
)
"""status_class: 2xx, 3xx, 4xx, 5xx. key: none where none was shown or it wasn't accepted."""
HTTP_READY: Final = Gauge("orders_http_ready", "1 while /ready is 200, else 0.", ["service"], registry=HTTP)
