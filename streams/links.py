"""Links from a span to the events that it is about, by their trace contexts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from contracts.cloudevents import read_attributes, trace_of
from contracts.errors import Refused
from streams.transport.records import Record

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Link


def links(records: Sequence[Record]) -> list[Link]:
    """A link to the trace context of each record that has one, each once. Pure."""
    from opentelemetry.trace import Link, get_current_span

    traces = dict.fromkeys(trace for record in records if (trace := _trace_of(record)) is not None)
    return [Link(get_current_span(context_of({"traceparent": trace})).get_span_context()) for trace in traces]


def _trace_of(record: Record) -> str | None:
    """As the contracts read it; of a record that they refuse, none."""
    try:
        by_name, _ = read_attributes(record.headers, record.value or b"")
    except Refused:
        return None
    return trace_of(by_name.get("ce_traceparent"), by_name.get("traceparent"))


def context_of(carrier: Mapping[str, str]) -> Context:
    """What W3C's headers say. Pure."""
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    return TraceContextTextMapPropagator().extract(carrier)
