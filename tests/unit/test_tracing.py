"""Traces: when there are none, what a batch's span says, and what a request's does."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, Final, cast

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from streams import tracing
from streams.links import links
from streams.tracing import RequestSpan, request_span, trace_context, traced, tracer
from streams.transport.delivery import Stale

TRACES: Final = [f"00-{number:032x}-{number:016x}-01" for number in (10, 11, 12)]


@pytest.fixture
def memory() -> InMemorySpanExporter:
    return InMemorySpanExporter()


def made(memory: InMemorySpanExporter) -> Any:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return tracing.of(provider)


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({}, ""),
        ({"OTEL_SERVICE_NAME": "x"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"}, ""),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "TRUE"}, ""),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "OTEL_TRACES_EXPORTER is 'zipkin', so no traces are sent"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "only http/protobuf is known here",
        ),
    ],
)
def test_there_are_no_traces_unless_they_are_asked_for(
    environ: dict[str, str], says: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert tracer("orders-worker", environ) is None
    assert (says in caplog.text, bool(caplog.records)) == (True, bool(says))


def test_without_the_extra_a_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with caplog.at_level(logging.WARNING):
        assert tracer("orders-worker", {"OTEL_TRACES_EXPORTER": "otlp"}) is None
    assert "pip install 'orders-stream[otel]'" in caplog.text


def test_nothing_is_loaded_without_the_variables() -> None:
    # redis-py itself loads the SDK's metrics where the SDK is installed.
    code = (
        "import sys; import app, api.app, console.app; from settings import Settings;"
        " app.create_app(Settings()); api.app.create_app(Settings());"
        " print([name for name in sys.modules if name.startswith(('opentelemetry.sdk.trace',"
        " 'opentelemetry.exporter'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def record(offset: int, *headers: tuple[str, bytes], value: bytes = b"{}") -> Any:
    return SimpleNamespace(offset=offset, headers=headers, value=value)


def test_links_are_read_as_events_are() -> None:
    mark = ("ce_specversion", b"1.0")
    whole = f'{{"specversion": "1.0", "traceparent": "{TRACES[2]}", "data": {{}}}}'.encode()
    given = [
        record(0, mark, ("ce_traceparent", TRACES[0].encode()), ("traceparent", TRACES[2].encode())),
        record(1, mark, ("traceparent", TRACES[1].encode())),
        record(2, mark, ("traceparent", TRACES[1].encode())),
        record(3, mark, ("ce_traceparent", b"no trace")),
        record(4, value=whole),
        record(5, value=b"\xff"),
        record(6),
    ]
    assert [each.context.span_id for each in links(given)] == [10, 11, 12]


class Handled:
    """A pipeline with one step, which raises what it is told."""

    def __init__(self, error: Exception | None) -> None:
        async def write(*_: Any) -> None:
            if error is not None:
                raise error

        self.steps: Any = ("postgres", write)

    def wrap_steps(self, wrap: Callable[[str, Any], Any]) -> None:
        self.steps = self.steps[0], wrap(*self.steps)

    async def handle(self, batch: Any) -> None:
        await cast(Callable[..., Awaitable[None]], self.steps[1])(batch, None)


class Batch(SimpleNamespace):
    def __len__(self) -> int:
        return sum(len(part.records) for part in self.slices)


@pytest.mark.parametrize(
    ("error", "status"),
    [(None, StatusCode.UNSET), (OSError("user 7"), StatusCode.ERROR), (Stale(), StatusCode.UNSET)],
)
async def test_a_batch_is_a_span(
    memory: InMemorySpanExporter, error: Exception | None, status: StatusCode
) -> None:
    trace = ("ce_traceparent", TRACES[0].encode())
    records = [record(7, ("ce_specversion", b"1.0"), trace), record(9)]
    batch = Batch(partition=3, moment=None, slices=(SimpleNamespace(topic="order.paid", records=records),))
    handle = traced(cast(Any, Handled(error)), made(memory), "orders")
    if error is None:
        await handle(cast(Any, batch))
    else:
        with pytest.raises(type(error)):
            await handle(cast(Any, batch))
    step, whole = memory.get_finished_spans()
    assert (step.name, step.parent and step.parent.span_id) == ("postgres", whole.context.span_id)
    assert whole.status.status_code is status
    assert [each.context.trace_id for each in whole.links] == [10]
    said = dict(whole.attributes or {})
    assert said["messaging.batch.message_count"] == 2
    assert said["messaging.destination.partition.id"] == "3"
    assert said["orders.records"] == ("order.paid 7-9",)
    assert "user 7" not in f"{whole.to_json()}{step.to_json()}", "an error's text may hold what is personal"


async def test_without_a_tracer_the_pipeline_is_called_itself() -> None:
    pipeline = cast(Any, Handled(None))
    assert traced(pipeline, None, "orders") == pipeline.handle


def request(*headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"method": "GET", "scheme": "http", "path": "/orders/secret", "headers": list(headers)}


def test_a_request_is_below_its_caller_and_tells_no_path(memory: InMemorySpanExporter) -> None:
    scope = request((b"traceparent", TRACES[0].encode()))
    span = request_span(made(memory), scope)
    inside = trace_context(scope)
    assert inside is not None
    span.answered("GET", "/orders/{order_id}", 503, "none")
    [ended] = memory.get_finished_spans()
    assert (ended.context.trace_id, ended.parent and ended.parent.span_id) == (10, 10)
    assert inside == f"00-{10:032x}-{ended.context.span_id:016x}-01"
    assert (ended.name, ended.status.status_code) == ("GET /orders/{order_id}", StatusCode.ERROR)
    assert "secret" not in ended.to_json()


def test_a_request_that_no_route_takes_is_named_by_its_method(memory: InMemorySpanExporter) -> None:
    RequestSpan(made(memory).start_span("x")).answered("GET", "-", 404, "none")
    [ended] = memory.get_finished_spans()
    assert ended.name == "GET"


@pytest.mark.parametrize(
    ("sent", "known"),
    [([TRACES[0]], TRACES[0]), (["00-none"], None), ([], None)],
    ids=["valid", "no", "none"],
)
def test_without_a_tracer_the_callers_context_is_carried_on(sent: list[str], known: str | None) -> None:
    assert trace_context(request(*((b"traceparent", each.encode()) for each in sent))) == known
