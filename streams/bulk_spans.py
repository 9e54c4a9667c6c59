"""Spans of a bulk worker: one for each part, with one below it for each step that waits for a server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from streams.links import links

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer

NAME: Final = "unpack part"


class PartSpans:
    """Makes them, or nothing where there is no tracer."""

    def __init__(self, tracer: Tracer | None, group: str) -> None:
        """`group`: the consumer group's name."""
        self._tracer = tracer
        self._group = group

    @contextmanager
    def part(self, record: Any) -> Iterator[None]:
        """Around what is done with one record of a bulk topic. Raises what that raises."""
        if self._tracer is None:
            yield
            return
        from opentelemetry.trace import SpanKind, StatusCode

        with self._tracer.start_as_current_span(
            NAME,
            kind=SpanKind.CONSUMER,
            attributes={
                "messaging.system": "kafka",
                "messaging.operation.type": "process",
                "messaging.consumer.group.name": self._group,
                "messaging.destination.partition.id": str(record.partition),
                "messaging.batch.message_count": 1,
                "orders.records": [f"{record.topic} {record.offset}-{record.offset}"],
            },
            links=links([record]),
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                yield
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                span.set_status(StatusCode.ERROR)
                raise

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Around a step of a part. Raises what that raises."""
        if self._tracer is None:
            yield
            return
        with self._tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False):
            yield
