"""Traces by OpenTelemetry, as the usual OTEL_* variables say (docs/how-to/trace.md).

Without them, or without the extra `otel`, nothing of OpenTelemetry's SDK is loaded and no batch asks for it.
The trace of an event is published as it came (contracts): a batch's span links to it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, Final

from contracts.cloudevents import trace_of
from streams.links import context_of, links
from streams.transport.batch import LaneBatch
from streams.transport.delivery import Stale

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span, Tracer

    from streams.pipeline import Pipeline, Step

log = logging.getLogger(__name__)

TRACER: Final = "tracer"
"""Where an ASGI application's state has its tracer, or None."""
TRACEPARENT: Final = "orders.traceparent"
"""Where a request's ASGI scope has the trace context that what follows from it belongs to."""
PROTOCOL: Final = "http/protobuf"
_LINKS: Final = "OTEL_SPAN_LINK_COUNT_LIMIT"


def tracer(
    service: str, environ: Mapping[str, str], *, instance: str | None = None, links: int = 128
) -> Tracer | None:
    """What makes spans, or None where none are asked for, or can't be sent: a warning says why.

    `service`, `instance`: what the process is called unless the environment says it. `links`: how many a span
    keeps, unless the environment says it. Spans are sent by a thread; what can't be sent is dropped. Never
    blocks.
    """
    if not _asked_for(environ):
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace import SpanLimits, TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        log.warning(
            "OTEL_... asks for traces, but no traces are sent: %s; pip install 'orders-stream[otel]'", error
        )
        return None
    limits = SpanLimits() if environ.get(_LINKS) else SpanLimits(max_links=links)
    try:
        provider = TracerProvider(resource=_resource(service, instance, environ), span_limits=limits)
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    except ValueError as error:
        log.warning("a variable OTEL_... can't be used, so no traces are sent: %s", error)
        return None
    return of(provider)


def of(provider: TracerProvider) -> Tracer:
    """The tracer of a provider. Never the global one, which FastAPI would take, too: its spans hold paths."""
    return provider.get_tracer("orders-stream")


def _asked_for(environ: Mapping[str, str]) -> bool:
    def given(*names: str) -> str:
        return next((value for name in names if (value := environ.get(name, "").strip())), "")

    if given("OTEL_SDK_DISABLED").lower() == "true":
        return False
    exporter = given("OTEL_TRACES_EXPORTER").lower()
    endpoint = given("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
    if exporter == "none" or not (exporter or endpoint):
        return False
    protocol = given("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL") or PROTOCOL
    for name, value, known in (
        ("OTEL_TRACES_EXPORTER", exporter or "otlp", "otlp"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol, PROTOCOL),
    ):
        if value != known:
            log.warning("%s is %r, so no traces are sent: only %s is known here", name, value, known)
            return False
    return True


def _resource(service: str, instance: str | None, environ: Mapping[str, str]) -> Any:
    from opentelemetry.sdk.resources import Resource

    given = environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    own = {}
    if not environ.get("OTEL_SERVICE_NAME") and "service.name=" not in given:
        own["service.name"] = service
    if instance is not None and "service.instance.id=" not in given:
        own["service.instance.id"] = instance
    return Resource.create(own)


# -- batches -------------------------------------------------------------------------------------------------


def traced(pipeline: Pipeline, tracer: Tracer | None, group: str) -> Callable[[LaneBatch], Awaitable[None]]:
    """What handles batches: the pipeline itself, or it within spans. `group`: the consumer group's name."""
    if tracer is None:
        return pipeline.handle
    from opentelemetry.trace import SpanKind, StatusCode

    async def handle(batch: LaneBatch) -> None:
        """As Pipeline.handle. A batch that is tried again gets another span."""
        name = "process batch" if batch.moment is None else "pass deadlines"
        with tracer.start_as_current_span(
            name, kind=SpanKind.CONSUMER, record_exception=False, set_status_on_exception=False
        ) as span:
            try:
                await pipeline.handle(batch)
            except Exception as error:
                span.set_attribute("error.type", type(error).__name__)
                if not isinstance(error, Stale):
                    span.set_status(StatusCode.ERROR)
                raise
            finally:
                if span.is_recording():
                    _describe(span, batch, group)

    def within(name: str, step: Step) -> Step:
        async def stepped(batch: LaneBatch, work: Any) -> None:
            with tracer.start_as_current_span(name, record_exception=False, set_status_on_exception=False):
                await step(batch, work)

        return stepped

    pipeline.wrap_steps(within)
    return handle


def _describe(span: Span, batch: LaneBatch, group: str) -> None:
    """Say what the batch was, once folding may have shortened it."""
    parts = [part for part in batch.slices if part.records]
    span.set_attributes(
        {
            "messaging.system": "kafka",
            "messaging.operation.type": "process",
            "messaging.consumer.group.name": group,
            "messaging.destination.partition.id": str(batch.partition),
            "messaging.batch.message_count": len(batch),
            "orders.records": [
                f"{part.topic} {part.records[0].offset}-{part.records[-1].offset}" for part in parts
            ],
        }
    )
    for link in links([record for part in parts for record in part.records]):
        span.add_link(link.context)


# -- requests ------------------------------------------------------------------------------------------------


class RequestSpan:
    """The span of one request. It holds no path and no query: they have ids and tracking numbers."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def answered(self, method: str, route: str, status: int, source: str) -> None:
        """End it. `route`: the template, `-` where none matched."""
        from opentelemetry.trace import StatusCode

        span = self._span
        span.update_name(method if route == "-" else f"{method} {route}")
        span.set_attribute("http.response.status_code", status)
        if route != "-":
            span.set_attribute("http.route", route)
        if source != "none":
            span.set_attribute("orders.source", source)
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(StatusCode.ERROR)
        span.end()


def request_span(tracer: Tracer, scope: MutableMapping[str, Any]) -> RequestSpan:
    """Begin the span of a request, below its caller's; the scope then has its context (TRACEPARENT)."""
    from opentelemetry.trace import SpanKind, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    sent = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in scope["headers"]
        if name in (b"traceparent", b"tracestate")
    }
    span = tracer.start_span(
        scope["method"],
        context=context_of(sent),
        kind=SpanKind.SERVER,
        attributes={"http.request.method": scope["method"], "url.scheme": scope["scheme"]},
    )
    carrier: dict[str, str] = {}
    TraceContextTextMapPropagator().inject(carrier, set_span_in_context(span))
    scope[TRACEPARENT] = carrier.get("traceparent")
    return RequestSpan(span)


def trace_context(scope: Mapping[str, Any]) -> str | None:
    """The trace context of a request: its span's, else its caller's; None: there is no valid one. Pure."""
    own = scope.get(TRACEPARENT)
    sent = [value for name, value in scope["headers"] if name == b"traceparent"]
    return trace_of(None if own is None else own.encode(), *sent)
