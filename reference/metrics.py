"""The reference of all metrics as a Markdown page: docs/reference/metrics.md."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics import MetricWrapperBase

from streams import metrics

_PREAMBLE: Final = """# Metrics

Workers, bulk workers, `orders api`, `orders console` and `orders audit --follow` serve these at
`/metrics` on `ORDERS_METRICS_PORT`, in Prometheus' text format, all but the audit with those of the
process and of Python (`process_*`, `python_*`). Made from streams/metrics.py by `make docs`.
"""
_PARTS: Final[tuple[tuple[str, CollectorRegistry], ...]] = (
    ("Workers", REGISTRY),
    ("The API and the console", metrics.HTTP),
    ("The audit that follows", metrics.AUDIT),
)


def metrics_page() -> str:
    """The page: a table each of what workers, API and console, and the audit serve. Pure."""
    defined = [each for each in vars(metrics).values() if isinstance(each, MetricWrapperBase)]
    lines = [_PREAMBLE]
    for title, registry in _PARTS:
        names = {family.name for family in registry.collect()}
        rows = [row for each in defined if each._name in names for row in _rows(each)]
        lines += [f"## {title}", "", "| metric | type | labels | what it says |", "|---|---|---|---|"]
        lines += [*rows, ""]
    return "\n".join(lines)


def _rows(metric: MetricWrapperBase) -> Iterator[str]:
    name = f"{metric._name}_total" if metric._type == "counter" else metric._name
    labels = ", ".join(metric._labelnames)
    yield f"| `{name}` | {metric._type} | {labels} | {metric._documentation} |"


if __name__ == "__main__":
    print(metrics_page(), end="")
