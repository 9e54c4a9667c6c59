"""POST /events: events of other services, taken in over HTTP."""

from __future__ import annotations

import asyncio
from time import time
from typing import Any, Final
from urllib.parse import unquote

import httptools
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from pydantic import BaseModel, Field

from api.access import Access, Sees
from api.binding import MEDIA_TYPES, MOST_EVENTS, Record, TooMany, UnsupportedMedia, path_of, record, split
from api.callers import SCOPE, Caller
from api.parameters import only_known
from api.problems import RefusedEvent, problem
from api.sending import Sender, TooLarge
from contracts.errors import Refused
from contracts.topics import INPUT
from streams.tracing import trace_context

PATH: Final = "/events"
MOST_BODY: Final = 4 << 20
"""Bytes of a request's body."""
WRITE: Final = "write"
"""The scope that a key needs."""

_AT_ONCE: Final = 50
"""Events that are decoded without a pause, some milliseconds: others are served meanwhile."""


class AcceptedEvent(BaseModel):
    """An event that all in-sync replicas have."""

    id: str
    topic: str
    partition: int
    offset: int | None = Field(
        description="null, very rarely: a repetition wrote it, and the brokers don't tell where."
    )


class Accepted(BaseModel):
    """The events of a request, in its order."""

    accepted: list[AcceptedEvent]


async def writes(request: Request, _: Sees) -> None:
    """A dependency of a route: raises HTTPException, 403, unless the caller's key has the scope."""
    caller: Caller | None = request.scope.get(SCOPE)
    if caller is not None and WRITE not in caller.scopes.names:
        raise HTTPException(
            403,
            f"this key doesn't have the scope {WRITE}",
            {"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{WRITE}"'},
        )


def keeps_body(access: Access, method: bytes, target: bytes, authorization: str | None) -> int:
    """Bytes that the body of a request may have, or 0 if nothing will read it: a stranger's is never kept."""
    if method != b"POST" or _routed(target) != PATH:
        return 0
    return MOST_BODY if access.may_have(WRITE, authorization) else 0


def _routed(target: bytes) -> str | None:
    """The path of a request's target as the router compares it; None: it can't be read."""
    try:
        path = httptools.parse_url(target).path
    except httptools.HttpParserInvalidURLError:
        return None
    return unquote((path or b"").decode("latin-1"))


def answer_events(app: FastAPI, sender: Sender) -> None:
    """Register the path."""

    @app.post(
        PATH,
        dependencies=[Depends(writes), Depends(only_known)],
        response_class=Response,
        status_code=202,
        summary="Take in events",
        responses=_RESPONSES,
        openapi_extra=_REQUEST,
        tags=["events"],
    )
    async def events(request: Request) -> Response:
        """CloudEvents 1.0 in the HTTP binding: binary, structured, or a batch of up to 1,000. The types are
        those of docs/events.md that other services send.

        Either all events of a request are written or, with 422, none. Sending one again changes nothing.
        """
        body = await _body(request)
        if body is None:
            return problem(413, f"more than {MOST_BODY >> 20} MiB of body")
        try:
            records, refused = await _records(request.scope["headers"], body)
            if refused:
                return problem(
                    422, f"{len(refused)} refused, nothing was written", "events-refused", refused=refused
                )
            trace = trace_context(request.scope)
            if trace is not None:  # an event's own counts before it
                for each in records:
                    each.headers.append(("traceparent", trace.encode()))
            places = await sender.send(records)
        except UnsupportedMedia as error:
            return problem(415, str(error))
        except TooMany as error:
            return problem(413, str(error))
        except TooLarge as error:
            which = "an event" if error.index is None else f"event {error.index}"
            return problem(413, f"{which} is larger than its topic takes")
        accepted = [
            AcceptedEvent(id=each.id, topic=each.topic, partition=place.partition, offset=place.offset)
            for each, place in zip(records, places, strict=True)
        ]
        return Response(Accepted(accepted=accepted).model_dump_json(), 202, media_type="application/json")


async def _body(request: Request) -> bytes | None:
    pieces, size = [], 0
    async for piece in request.stream():
        size += len(piece)
        if size > MOST_BODY:
            return None
        pieces.append(piece)
    return b"".join(pieces)


async def _records(
    headers: list[tuple[bytes, bytes]], body: bytes
) -> tuple[list[Record], list[RefusedEvent]]:
    """The records of a request, and what of it is refused. Raises UnsupportedMedia, TooMany."""
    records: list[Record] = []
    refused: list[RefusedEvent] = []
    try:
        mode, values = split(headers, body)
    except Refused as refusal:
        return [], [_told(None, refusal)]
    for index, value in enumerate(values):
        if index and index % _AT_ONCE == 0:
            await asyncio.sleep(0)
        try:
            records.append(record(mode, headers, value, int(time() * 1000)))
        except Refused as refusal:
            refused.append(_told(index, refusal))
    return records, refused


def _told(index: int | None, refusal: Refused) -> RefusedEvent:
    return RefusedEvent(index=index, code=refusal.code, path=path_of(refusal), detail=refusal.detail)


# -- the document --------------------------------------------------------------------------------------------

_PROBLEM: Final = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_AFTER: Final = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
_RESPONSES: Final[dict[int | str, dict[str, Any]]] = {
    202: {"model": Accepted, "description": "All are in Kafka, acknowledged by all in-sync replicas."},
    401: {"description": "No key, or one that isn't accepted.", "content": _PROBLEM},
    403: {"description": f"A key without the scope `{WRITE}`.", "content": _PROBLEM},
    413: {
        "description": f"More than {MOST_BODY >> 20} MiB or {MOST_EVENTS:,} events, or an event that is"
        " larger than its topic takes.",
        "content": _PROBLEM,
    },
    415: {"description": "A content type or encoding that isn't read.", "content": _PROBLEM},
    422: {
        "description": "`refused` says why, event by event (`urn:orders:events-refused`), or the request is"
        " invalid. Nothing was written.",
        "content": _PROBLEM,
    },
    429: {"description": "More requests than the key may send.", "content": _PROBLEM, "headers": _AFTER},
    503: {
        "description": "Kafka doesn't answer. Some of the events may be written: send all of them again.",
        "content": _PROBLEM,
        "headers": _AFTER,
    },
}
_TEXT: Final = {"type": "string", "minLength": 1, "maxLength": 1000}
_EVENT: Final = {
    "type": "object",
    "required": ["specversion", "id", "source", "type", "time"],
    "properties": {
        "specversion": {"const": "1.0"},
        "id": _TEXT,
        "source": _TEXT,
        "type": {"enum": list(INPUT)},
        "time": {"type": "string", "format": "date-time"},
        "data": {"type": "object", "description": "As the type's JSON Schema says (docs/events.md)."},
        "data_base64": {"type": "string", "contentEncoding": "base64"},
    },
}
_SCHEMAS: Final = (
    {"type": "object", "description": "Binary mode: the data; the attributes are headers `ce-...`."},
    _EVENT,
    {"type": "array", "maxItems": MOST_EVENTS, "items": _EVENT},
)
_REQUEST: Final[dict[str, Any]] = {
    "requestBody": {
        "required": True,
        "content": {name: {"schema": schema} for name, schema in zip(MEDIA_TYPES, _SCHEMAS, strict=True)},
    },
    "parameters": [
        {
            "name": f"ce-{name}",
            "in": "header",
            "required": False,
            "description": "In binary mode, with percent-encoding.",
            "schema": {"type": "string"},
        }
        for name in ("specversion", "id", "source", "type", "time", "dataschema", "traceparent")
    ],
}
