"""What is done for every request: before its path is looked at, that its host is served here and its URL well
formed; afterwards a line in the access log, metrics, and the end of its span."""

from __future__ import annotations

import ipaddress
import logging
import re
import time
from collections.abc import MutableMapping
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from fastapi.telemetry import TelemetryConfig
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.callers import SCOPE, Caller
from api.counted import counted
from api.problems import problem
from streams.tracing import TRACER, request_span

log = logging.getLogger(__name__)

PROBES: Final = frozenset({"/live", "/ready", "/health"})
"""Routes that whoever keeps the service running asks every few seconds. Their lines are for debugging."""
UNTOLD: Final[TelemetryConfig] = {"tracing": False, "metrics": False, "logs": False, "auto_configure": False}
"""FastAPI's own spans hold paths and queries, and so ids and tracking numbers."""
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})

_HOST: Final = re.compile(r"(?:([A-Za-z0-9._~-]+)|\[([0-9A-Fa-f:.]+)\])(?::([0-9]{0,5}))?")
_BROKEN: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_TRACKING: Final = b"/tracking/"
_SOURCE: Final = b"x-source"


class Requests:
    """ASGI middleware: refuses requests that can't be meant, answers HEAD as GET without the body, and notes
    who asked for what: in the log, in metrics and, where there is a tracer, in a span."""

    def __init__(self, app: ASGIApp, *, only_loopback: bool, logged: bool, service: str = "api") -> None:
        """`only_loopback`: a request for another host is refused.
        A page in a browser on this machine could come here under a name of its own that leads to loopback.
        `service`: its label in the metrics.
        """
        self._app = app
        self._service = service
        self._only_loopback = only_loopback
        self._logged = logged

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":
            scope, send = {**scope, "method": "GET"}, _without_body(send)
        refused = self._refused(scope)
        app = self._app if refused is None else problem(*refused)
        # What raises is answered by a 500, above.
        status, source = 500, "none"

        async def noted(message: Message) -> None:
            nonlocal status, source
            if message["type"] == "http.response.start":
                status = message["status"]
                source = next(
                    (value.decode() for name, value in message["headers"] if name == _SOURCE), source
                )
            await send(message)

        tracer = getattr(scope["app"].state, TRACER, None)
        span = None if tracer is None or scope["path"] in PROBES else request_span(tracer, scope)
        begun = time.perf_counter()
        try:
            await app(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - begun
            caller: Caller | None = scope.get(SCOPE)
            # Never the path: it holds ids and tracking numbers.
            route = getattr(scope.get("route"), "path", "-")
            if self._logged:
                answered("-" if caller is None else caller.name, method, route, status, seconds)
            counted(self._service, method, route, status, source, caller, seconds)
            if span is not None:
                span.answered(method, route, status, source)

    def _refused(self, scope: MutableMapping[str, Any]) -> tuple[int, str] | None:
        hosts = [value.decode("latin-1") for name, value in scope["headers"] if name == b"host"]
        if len(hosts) > 1:
            return 400, "several Host headers"
        if hosts or self._only_loopback or scope["http_version"] != "1.0":
            host = hostname(hosts[0]) if hosts else None
            if host is None:
                return 400, "a Host header that names a host, such as localhost:8080"
            if self._only_loopback and host not in LOOPBACK:
                return 403, "without keys only requests to localhost are answered"
        if sum(name == b"authorization" for name, _ in scope["headers"]) > 1:
            return 400, "several Authorization headers"
        path = scope["raw_path"]
        if not (_well_formed(path) and _well_formed(scope["query_string"])):
            return 400, "the URL isn't percent-encoded UTF-8"
        # An encoded slash is a part of a name, a plain one ends it; to the router, which sees the path
        # decoded, they are the same.
        slashes = (
            path[len(_TRACKING) :].count(b"/") if path.startswith(_TRACKING) else path.lower().count(b"%2f")
        )
        return (404, "no such path") if slashes else None


def answered(who: str, method: str, route: str, status: int, seconds: float) -> None:
    """Write a line of the access log: no id, no number, no query, no address."""
    log.log(
        logging.DEBUG if route in PROBES else logging.INFO,
        "request who=%(who)s method=%(method)s route=%(route)s status=%(status)d ms=%(ms).1f",
        {"who": who, "method": method, "route": route, "status": status, "ms": seconds * 1000},
    )


def hostname(host: str) -> str | None:
    """The name or address of a Host header, in lower case; an address as it is written by rule.
    None: it can't be read.
    """
    match = _HOST.fullmatch(host)
    if match is None or int(match[3] or 0) > 65535:
        return None
    if match[1] is not None:
        return match[1].lower()
    try:
        return str(ipaddress.IPv6Address(match[2]))
    except ValueError:
        return None


def _well_formed(text: bytes) -> bool:
    if not text.isascii() or _BROKEN.search(text):
        return False
    try:
        unquote_to_bytes(text).decode()
    except UnicodeDecodeError:
        return False
    return True


def _without_body(send: Send) -> Send:
    async def headers_only(message: Message) -> None:
        if message["type"] == "http.response.body":
            message = {**message, "body": b""}
        await send(message)

    return headers_only
