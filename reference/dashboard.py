"""The Grafana dashboard, as JSON: deploy/grafana/orders.json."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

_HEIGHT: Final = 8
_COLUMNS: Final = 24
"""Of Grafana's grid."""
_PER_ROW: Final = 3
_OF_ALL: Final = ("orders_event_loop_lag_seconds_count", "orders_audit_age_seconds")
"""Each target serves one of these from its start: workers the first, the audit the second."""
_SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


class Panel(NamedTuple):
    """One plot."""

    title: str
    unit: str
    """Of Grafana: short, s, reqps, bytes."""
    queries: Sequence[tuple[str, str]]
    """PromQL and the legend of each of its series. JOB stands for the chosen jobs."""


_ROWS: Final[dict[str, tuple[Panel, ...]]] = {
    "Is all well?": (
        Panel("Longest wait of a lane", "s", [("max(orders_lane_waiting_seconds{JOB})", "waits")]),
        Panel("Servers away", "s", [("max by (server) (orders_server_away_seconds{JOB})", "{{server}}")]),
        Panel(
            "Lanes with a worker",
            "short",
            [
                ("count(count by (lane) (orders_lane_lag_records{JOB}))", "lanes"),
                ("sum(up{JOB})", "targets that answer"),
            ],
        ),
        Panel("Paused", "s", [("max by (kind, name) (orders_paused_seconds{JOB})", "{{kind}} {{name}}")]),
    ),
    "Flow": (
        Panel(
            "Records", "reqps", [("sum by (outcome) (rate(orders_records_total{JOB}[5m]))", "{{outcome}}")]
        ),
        Panel(
            "Events and commands out",
            "reqps",
            [("sum by (topic) (rate(orders_derived_total{JOB}[5m]))", "{{topic}}")],
        ),
        Panel(
            "Bulk jobs",
            "reqps",
            [
                ("sum by (kind) (rate(orders_bulk_events_total{JOB}[5m]))", "{{kind}}"),
                ("sum(orders_bulk_rate{JOB})", "pace"),
            ],
        ),
    ),
    "Lanes": (
        Panel(
            "Records left, by lane", "short", [("max by (lane) (orders_lane_lag_records{JOB})", "{{lane}}")]
        ),
        Panel(
            "Age of the oldest record, by lane",
            "s",
            [("max by (lane) (orders_lane_lag_seconds{JOB})", "{{lane}}")],
        ),
        Panel(
            "Seconds without progress, by lane",
            "s",
            [("max by (lane) (orders_lane_busy_seconds{JOB})", "{{lane}}")],
        ),
    ),
    "Where the time goes": (
        Panel(
            "Seconds of a batch by step",
            "s",
            [
                (
                    "sum by (step) (rate(orders_step_seconds_sum{JOB}[5m]))"
                    " / sum by (step) (rate(orders_step_seconds_count{JOB}[5m]))",
                    "{{step}}",
                )
            ],
        ),
        Panel(
            "Event loop lag",
            "s",
            [
                (
                    f"histogram_quantile({quantile}, sum by (instance, le)"
                    " (rate(orders_event_loop_lag_seconds_bucket{JOB}[5m])))",
                    f"{{{{instance}}}} {quantile}",
                )
                for quantile in (0.95, 0.99)
            ],
        ),
        Panel(
            "Records of a batch",
            "short",
            [
                (
                    "sum(rate(orders_batch_records_sum{JOB}[5m]))"
                    " / sum(rate(orders_batch_records_count{JOB}[5m]))",
                    "mean",
                )
            ],
        ),
    ),
    "What goes wrong": (
        Panel(
            "Dead letters by reason",
            "short",
            [("sum by (reason) (increase(orders_dead_letters_total{JOB}[10m])) > 0", "{{reason}}")],
        ),
        Panel(
            "Refused records by topic",
            "short",
            [
                (
                    'sum by (topic) (increase(orders_records_total{JOB,outcome="refused"}[10m])) > 0',
                    "{{topic}}",
                )
            ],
        ),
        Panel(
            "Retries and rewinds",
            "short",
            [
                ("sum by (instance) (increase(orders_retries_total{JOB}[10m]))", "{{instance}} retries"),
                ("sum by (instance) (increase(orders_rewinds_total{JOB}[10m]))", "{{instance}} rewinds"),
            ],
        ),
    ),
    "Is it right?": (
        Panel(
            "Orders with older rows than they had",
            "short",
            [("sum by (lane) (orders_rows_behind{JOB})", "{{lane}}")],
        ),
        Panel(
            "Differences that the audit finds",
            "short",
            [("max by (check) (orders_audit_broken{JOB})", "{{check}}")],
        ),
        Panel(
            "Age of the audit", "s", [("max by (instance) (orders_audit_age_seconds{JOB})", "{{instance}}")]
        ),
    ),
    "API and console": (
        Panel(
            "Requests by status",
            "reqps",
            [
                (
                    "sum by (service, status) (rate(orders_http_requests_total{JOB}[5m]))",
                    "{{service}} {{status}}",
                )
            ],
        ),
        Panel(
            "Seconds of a request, 95 of 100",
            "s",
            [
                (
                    "histogram_quantile(0.95, sum by (service, le)"
                    " (rate(orders_http_request_duration_seconds_bucket{JOB}[5m])))",
                    "{{service}}",
                )
            ],
        ),
        Panel(
            "Requests by key",
            "reqps",
            [("sum by (key) (rate(orders_http_key_requests_total{JOB}[5m]))", "{{key}}")],
        ),
        Panel(
            "Sources of answers",
            "reqps",
            [
                (
                    'sum by (source) (rate(orders_http_requests_total{JOB,source!="none"}[5m]))',
                    "{{source}}",
                )
            ],
        ),
    ),
    "Processes": (
        Panel("CPU", "short", [("rate(process_cpu_seconds_total{JOB}[5m])", "{{instance}} cores")]),
        Panel("Memory", "bytes", [("process_resident_memory_bytes{JOB}", "{{instance}}")]),
        Panel(
            "What a person should look at, raised",
            "short",
            [
                (
                    'sum by (kind) (increase(orders_attention_total{JOB,state="raised"}[1h])) > 0',
                    "{{kind}}",
                )
            ],
        ),
        Panel(
            "Deadlines that passed",
            "short",
            [("sum by (deadline) (increase(orders_deadlines_total{JOB}[10m]))", "{{deadline}}")],
        ),
    ),
}
"""Rows of the dashboard, what matters first above."""


def dashboard() -> dict[str, Any]:
    """What Grafana imports. It asks for its Prometheus and has a choice of jobs. Pure."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in _ROWS.items():
        at = {"x": 0, "y": top, "w": _COLUMNS, "h": 1}
        panels.append({"type": "row", "title": title, "gridPos": at, "collapsed": False, "panels": []})
        for number, panel in enumerate(row):
            width = _COLUMNS // _PER_ROW
            at = {"x": number * width, "y": top + 1, "w": width, "h": _HEIGHT}
            panels.append(_plot(panel, at))
        top += 1 + _HEIGHT
    for number, each in enumerate(panels, 1):
        each["id"] = number
    return {
        "uid": "orders-stream",
        "title": "orders-stream",
        "description": "Made by reference/dashboard.py. What to do: docs/runbook.",
        "tags": ["orders-stream"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_datasource(), _jobs()]},
        "panels": panels,
    }


def _plot(panel: Panel, at: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "datasource": _SOURCE,
        "gridPos": at,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"tooltip": {"mode": "multi", "sort": "desc"}},
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _SOURCE,
                "expr": query.replace("JOB", 'job=~"$job"'),
                "legendFormat": legend,
            }
            for number, (query, legend) in enumerate(panel.queries)
        ],
    }


def _datasource() -> dict[str, Any]:
    return {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Prometheus"}


def _jobs() -> dict[str, Any]:
    return {
        "name": "job",
        "type": "query",
        "label": "Job",
        "datasource": _SOURCE,
        "query": f'label_values({{__name__=~"{"|".join(_OF_ALL)}"}}, job)',
        "refresh": 2,
        "multi": True,
        "includeAll": True,
    }


def dashboard_file() -> str:
    """The file's text. Pure."""
    return json.dumps(dashboard(), indent=1) + "\n"


if __name__ == "__main__":
    print(dashboard_file(), end="")
