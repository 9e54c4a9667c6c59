"""The HTTP service: its paths and parameters, and how the answers of queries.reader are sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Annotated, Any, Final
from uuid import UUID

import msgspec
from fastapi import Depends, FastAPI, Header, Path, Query, Response

from api.access import Access, Sees, admitted
from api.events import answer_events
from api.parameters import Id, Rows, Time, Version, invalid, names_version, only_known
from api.problems import Problem, install
from api.requests import UNTOLD, Requests
from api.sending import Sender
from contracts.statuses import AttentionText, OrderStatusText
from queries.cache import RECENT
from queries.documents import (
    Health,
    OrderDetails,
    OrderPage,
    Orders,
    SellerDetails,
    SellerSummary,
    Suborders,
    Summary,
    Timeline,
    Tracked,
    TrackedStatus,
)
from queries.keyset import Position
from queries.reader import Answer, Filters, Reader, Seen
from settings import Settings

_ABOUT = """Orders, for readers; where it is switched on, events for them are taken in (`/events`).

**Sources.** An answer comes from the cache, else from the replica, else from the primary;
`X-Source` says which. A source that is down is skipped, and so is a replica that is too far behind.
`stale replica` means that nothing else answered.

**Reading one's own writes.** An order's version grows with each fact. It is in `ETag`, in
`X-Order-Version`, in each summary and in the events. Send it back as `X-Order-Version` (or
`min_version`; for lists `seen=ORDER_ID:VERSION`), and you get no older answer. While no source has
that version, the answer is 503 `urn:orders:version-not-there-yet` with `Retry-After`: events are
published before their rows are written.

**What only the cache knows.** A suborder's status and live amount and a parcel's location are in no
row. They are null once the cache has dropped the order, 10 to 30 minutes after its last event.

**What a key sees.** A key has scopes: `all`, `user:ID` (a user's orders), `seller:ID` (of each order
that seller's part, without the user), `tracking` (`/tracking`, without order and place). What it may
not see is to it as if it weren't there: 404, or an empty list.

**Parameters.** An unknown parameter, one that is given twice and an empty one are errors. HEAD
answers as GET does, without the body.

Errors are `application/problem+json` (RFC 9457)."""

_PROBLEM: Final = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
_VERSIONED: Final = {
    "ETag": {"description": 'The order\'s version, weak: W/"7".', "schema": {"type": "string"}},
    "X-Order-Version": {"description": "The order's version.", "schema": {"type": "integer"}},
}
_SOURCE: Final = {
    "X-Source": {
        "description": "The source of the answer.",
        "schema": {"type": "string", "enum": ["cache", "replica", "primary", "stale replica"]},
    }
}

_Get = Callable[..., Callable[[Callable[..., Any]], Callable[..., Any]]]
"""Registers the answer to a path, behind a key."""

_DASHES: Final = "With or without dashes."
_encode = msgspec.json.Encoder().encode


def _responses(
    model: Any, description: str, *, versioned: bool = False, missing: bool = False
) -> dict[int | str, dict[str, Any]]:
    responses: dict[int | str, dict[str, Any]] = {
        200: {
            "model": model,
            "description": description,
            "headers": {**_SOURCE, **(_VERSIONED if versioned else {})},
        },
        401: {"description": "No key, or one that isn't accepted.", "content": _PROBLEM},
        422: {"description": "An invalid request.", "content": _PROBLEM},
        429: {
            "description": "More requests than the key may send; try again after `Retry-After` seconds.",
            "content": _PROBLEM,
        },
        503: {
            "description": "Temporarily unavailable; try again after `Retry-After` seconds.",
            "content": _PROBLEM,
        },
    }
    if versioned:
        responses[304] = {"description": "The caller's version is the newest.", "headers": _VERSIONED}
    if missing:
        responses[404] = {"description": "There is none.", "content": _PROBLEM}
    return responses


def create_app(settings: Settings) -> FastAPI:
    """Create the ASGI application.

    It connects at its first request; its lifespan closes the connections. Blocks while the files of keys are
    read, if any are set, and with ORDERS_API_WRITE those of Kafka's certificates and passwords. Raises
    OrdersError if they can't be used.
    """
    access = Access(settings)
    reader = Reader(settings)
    sender = Sender(settings) if settings.api_write else None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await reader.close()
        if sender is not None:
            await sender.close()

    app = FastAPI(
        title="orders-stream",
        version="1",
        description=_ABOUT,
        lifespan=lifespan,
        # They would load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        strict_content_type=False,
        # A path with a slash at its end is another path.
        redirect_slashes=False,
        telemetry=UNTOLD,
    )
    app.add_middleware(Requests, only_loopback=access.anybody, logged=settings.api_access_log)
    app.state.reader = reader
    app.state.health = reader.health
    app.state.access = access
    app.state.sender = sender
    install(app)
    get = partial(app.get, dependencies=[Depends(admitted), Depends(only_known)], response_class=Response)
    _answer_one_order(get, reader)
    _answer_a_timeline(get, reader)
    _answer_orders(get, reader)
    _answer_a_users_orders(get, reader)
    _answer_parcels(get, reader)
    _answer_a_sellers_suborders(get, reader)
    _answer_health(app, reader)
    if sender is not None:
        answer_events(app, sender)
    app.openapi = _exact(app.openapi)  # type: ignore[method-assign]
    return app


def _answer_one_order(get: _Get, reader: Reader) -> None:
    @get(
        "/orders/{order_id}",
        summary="An order's summary",
        responses=_responses(Summary | SellerSummary, "The order.", versioned=True, missing=True),
        tags=["orders"],
    )
    async def order(
        order_id: OrderId,
        sees: Sees,
        min_version: MinVersion = 0,
        x_order_version: OrderVersion = 0,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Status, amount, suborders and parcels: from the cache, else from the rows."""
        return _one(await reader.order(order_id, max(min_version, x_order_version), sees), if_none_match)

    details = _responses(
        OrderDetails | SellerDetails,
        "The order with everything that its rows hold.",
        versioned=True,
        missing=True,
    )

    @get("/orders/{order_id}/explain", summary="An order's details", responses=details, tags=["orders"])
    @get(
        "/orders/{order_id}/story",
        summary="An order's details, under the path of the release before",
        responses=details,
        tags=["orders"],
        deprecated=True,
    )
    async def explain(
        order_id: OrderId,
        sees: Sees,
        min_version: MinVersion = 0,
        x_order_version: OrderVersion = 0,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """The order's items, suborders, parcels, returns, payments and refunds, each with its latest state,
        and what happened in the order of time. Stock replies and single scans are only in the changelog: the
        timeline has them. The answer may be as far behind the summary as the replica is.

        An order's partition follows from its user. Where the cache doesn't know the user, every partition is
        searched by its primary key.
        """
        return _one(await reader.details(order_id, max(min_version, x_order_version), sees), if_none_match)


def _answer_a_timeline(get: _Get, reader: Reader) -> None:
    responses = _responses(Timeline, "What happened, and why.", versioned=True, missing=True)
    responses[200]["headers"]["X-Source"] = {
        "description": "The source of the answer.",
        "schema": {"type": "string", "enum": ["changelog"]},
    }

    @get("/orders/{order_id}/timeline", summary="An order's facts", responses=responses, tags=["orders"])
    async def timeline(
        order_id: OrderId,
        sees: Sees,
        as_of: Annotated[
            Time | None, Query(description="The order as of then, by the times of its events (RFC 3339).")
        ] = None,
        min_version: MinVersion = 0,
        x_order_version: OrderVersion = 0,
        if_none_match: IfNoneMatch = None,
    ) -> Response:
        """Every fact of the order in the order of their times, and why it is what it is: the rules that made
        its status, those of its suborders, its refunds and anomalies, each with its facts and numbers. The
        keys are those of `orders show --json`.

        The facts are only in Kafka's changelog, of which a partition is read: use it for single orders that
        somebody looks at. ETag and X-Order-Version are those of the whole order, also with `as_of`.
        """
        answer = await reader.timeline(order_id, as_of, max(min_version, x_order_version), sees)
        return _one(answer, if_none_match)


def _answer_orders(get: _Get, reader: Reader) -> None:
    responses = _responses(OrderPage, "A page, newest first.")

    @get("/orders", summary="Orders", responses=responses, tags=["orders"])
    async def orders(
        sees: Sees,
        user: Annotated[Id | None, Query(description=f"Of this user. {_DASHES}")] = None,
        seller: Annotated[Id | None, Query(description=f"With an item of this seller. {_DASHES}")] = None,
        status: Annotated[OrderStatusText | None, Query(description="Only those of this status now.")] = None,
        region: Annotated[
            str | None,
            Query(
                min_length=1, max_length=1000, pattern=r"^[^\x00]+$", description="Only those of this region."
            ),
        ] = None,
        since: Annotated[Time | None, Query(description="Placed then or later (RFC 3339).")] = None,
        until: Annotated[Time | None, Query(description="Placed before (RFC 3339).")] = None,
        cart: Annotated[Id | None, Query(description=f"That this cart became. {_DASHES}")] = None,
        attention: Annotated[
            AttentionText | None, Query(description="Only those of which this kind of attention holds now.")
        ] = None,
        cursor: Cursor = None,
        limit: Limit = 20,
    ) -> Response:
        """The orders that the key sees and that match every filter. A filter by what the key doesn't see of
        an order doesn't find it: sellers see neither users nor regions nor carts nor attention.

        Give `user`, `seller` or `cart` where you can: without them a list of a status or a region may have
        every order read, one such list at a time.
        """
        filters = Filters(user, seller, status, region, since, until, cart, attention)
        try:
            return _answer(await reader.orders(filters, limit, cursor=cursor, sees=sees))
        except ValueError as error:
            raise invalid(("query.cursor", str(error))) from None


def _answer_a_users_orders(get: _Get, reader: Reader) -> None:
    @get(
        "/users/{user_id}/orders",
        summary="A user's orders",
        responses=_responses(Orders, "A page, newest first."),
        tags=["orders"],
    )
    async def orders(
        user_id: Annotated[Id, Path(description=_DASHES)],
        sees: Sees,
        status: Annotated[OrderStatusText | None, Query(description="Only those of this status now.")] = None,
        since: Annotated[
            Time | None, Query(alias="from", description="Placed then or later (RFC 3339).")
        ] = None,
        until: Annotated[Time | None, Query(alias="to", description="Placed before (RFC 3339).")] = None,
        cursor: Cursor = None,
        limit: Limit = 20,
        seen: SeenToken = None,
    ) -> Response:
        """Without a filter and up to 50, the recent orders come from the cache, else from the rows.

        An order that is created between two pages is on one of them or on none. Only an order whose time of
        creation changes, because an earlier fact came late, may be on two.
        """
        if status is None and since is None and until is None and cursor is None and limit <= RECENT:
            return _answer(await reader.recent(user_id, limit, _seen(seen), sees))
        answer = await reader.history(
            user_id,
            limit,
            status=status,
            since=since,
            until=until,
            after=_position(cursor),
            seen=_seen(seen),
            sees=sees,
        )
        return _answer(answer)


def _answer_parcels(get: _Get, reader: Reader) -> None:
    @get(
        "/tracking/{number:path}",
        summary="Parcels by tracking number",
        responses=_responses(
            list[Tracked | TrackedStatus], "The parcels, 100 at most; nearly always one.", missing=True
        ),
        tags=["parcels"],
    )
    async def tracking(
        number: Annotated[
            str,
            Path(
                min_length=1,
                max_length=1000,
                # No carrier's number holds a NUL.
                pattern=r"^[^\x00]+$",
                description="As the carrier writes it, percent-encoded.",
            ),
        ],
        sees: Sees,
    ) -> Response:
        """The parcels of all orders with this number, 100 at most.

        They come from the rows, or from a copy of them in the cache that is at most `ORDERS_CACHE_TTL_REFILL`
        seconds old, with what was written to the cache since. Where no database answers, only parcels with an
        event within the last 10 to 30 minutes are found.
        """
        return _answer(await reader.tracking(number, sees))


def _answer_a_sellers_suborders(get: _Get, reader: Reader) -> None:
    @get(
        "/sellers/{seller_id}/suborders",
        summary="A seller's suborders",
        responses=_responses(Suborders, "A page, newest first."),
        tags=["sellers"],
    )
    async def suborders(
        seller_id: Annotated[Id, Path(description=_DASHES)],
        sees: Sees,
        cursor: Cursor = None,
        limit: Limit = 20,
        seen: SeenToken = None,
    ) -> Response:
        """The seller's part of each order, and its parcels.

        Partitions are by user or region, so all of them are searched, by the index on seller and time. Every
        page costs about the same.
        """
        answer = await reader.suborders(
            seller_id, limit, after=_position(cursor), seen=_seen(seen), sees=sees
        )
        return _answer(answer)


def _answer_health(app: FastAPI, reader: Reader) -> None:
    @app.get(
        "/health",
        dependencies=[Depends(only_known)],
        summary="The health of the service",
        response_class=Response,
        responses={
            200: {"model": Health, "description": "The service answers; if degraded, with fewer sources."},
            503: {"model": Health, "description": "No database answers."},
        },
        tags=["service"],
    )
    async def service_health() -> Response:
        """Needs no key."""
        health = await reader.health()
        return Response(
            _encode(health), 503 if health.status == "down" else 200, media_type="application/json"
        )


def _exact(plain: Callable[[], dict[str, Any]]) -> Callable[[], dict[str, Any]]:
    """FastAPI's OpenAPI document, with the Problem that we answer in the place of its own error, and without
    the null that no parameter can be: one that isn't given is left out.
    """

    def openapi() -> dict[str, Any]:
        document = plain()
        schemas = document["components"]["schemas"]
        if "Problem" not in schemas:
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
            schemas |= problem.pop("$defs", {})
            schemas["Problem"] = problem
            # Errors are problems; FastAPI's own schemas are never sent.
            schemas.pop("HTTPValidationError", None)
            schemas.pop("ValidationError", None)
            for path in document["paths"].values():
                for parameter in (each for method in path.values() for each in method.get("parameters", ())):
                    schema = parameter["schema"]
                    for either in schema.pop("anyOf", ()):
                        schema |= {} if either == {"type": "null"} else either
        return document

    return openapi


OrderId = Annotated[Id, Path(description=_DASHES)]
MinVersion = Annotated[
    Version, Query(description="The oldest version to return; the same as X-Order-Version.")
]
OrderVersion = Annotated[
    Version, Header(description="The version that the caller has seen: no older one is returned.")
]
IfNoneMatch = Annotated[
    list[str] | None, Header(description="ETags that the caller has: 304 if the newest is among them.")
]
Cursor = Annotated[
    str | None, Query(description="`next` of the previous page; give the same filters.", max_length=64)
]
Limit = Annotated[Rows, Query(description="The most rows of a page.")]
SeenToken = Annotated[
    str | None,
    Query(
        pattern=r"^([0-9A-Fa-f]{32}|[0-9A-Fa-f]{8}(-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}):[0-9]{1,9}$",
        description=(
            "ORDER_ID:VERSION of an order of this list that the caller has seen: no older list is returned."
        ),
    ),
]


def _one(answer: Answer, if_none_match: list[str] | None) -> Response:
    etag = f'W/"{answer.version}"'
    headers = {"ETag": etag, "X-Order-Version": str(answer.version), **_about(answer)}
    if names_version(if_none_match, etag):
        return Response(status_code=304, headers=headers)
    return Response(answer.body, headers=headers, media_type="application/json")


def _answer(answer: Answer) -> Response:
    return Response(answer.body, headers=_about(answer), media_type="application/json")


def _about(answer: Answer) -> dict[str, str]:
    # Of an answer for which nothing was asked there is no source.
    source = {} if answer.source is None else {"X-Source": answer.source}
    # Another key may see less.
    return {**source, "Cache-Control": "private, no-cache", "Vary": "Authorization"}


def _position(cursor: str | None) -> Position | None:
    if cursor is None:
        return None
    try:
        return Position.parse(cursor)
    except ValueError as error:
        raise invalid(("query.cursor", str(error))) from None


def _seen(token: str | None) -> Seen | None:
    if token is None:
        return None
    order_id, _, version = token.rpartition(":")
    try:
        return Seen(UUID(order_id), int(version))
    except ValueError:
        raise invalid(("query.seen", "not ORDER_ID:VERSION")) from None
