"""The console as an ASGI application: its addresses, and what goes wrong as pages."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any, Final

from fastapi import Depends, FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response
from starlette.staticfiles import StaticFiles

from api.access import Access
from api.requests import UNTOLD, Requests
from console import forms, letter_view, order_view, schema_view
from console.access import Door, Visitor, only, visitor
from console.acts import offer_actions
from console.doing import Doing, NotDone
from console.find import look_for
from console.glance_view import overview_of
from console.pages import HEADERS, NOBODY, address, download, page
from console.parameters import Invalid, choice, moment_of, number_of, own_path, uuid_of
from console.sources import LETTERS, MOST_EXPORTED, Sources
from console.texts import EN, text
from console.worklists import AGES, WORKLISTS, as_csv, asked_for, cells
from contracts import times
from contracts.errors import REASONS
from contracts.statuses import OrderStatusText
from operations.dead_letters import DeadLetter, state_of
from queries.errors import NotFound, NotYet, Unavailable
from settings import Settings

SHOWN: Final = 100
"""Dead letters that a list shows."""
HOURS: Final = ("1", "24", "168", "0")
STATES: Final = ("new", "redriven", "parked", "final", "resolved")
STATUSES: Final[tuple[str, ...]] = OrderStatusText.__args__  # type: ignore[attr-defined]
BEFORE: Final = 3_600_000
"""Milliseconds before an order's own record in which others of it may lie."""

Seen = Annotated[Visitor, Depends(visitor)]
"""Who looks."""


def create_app(settings: Settings, sources: Sources | None = None, doing: Doing | None = None) -> FastAPI:
    """Create the ASGI application. It connects at its first request; its lifespan closes the connections.

    Blocks while the files of keys are read, if any are set. Raises OrdersError if they can't be used.
    """
    access = Access(settings)
    reads = Sources(settings) if sources is None else sources
    does = Doing(settings) if doing is None else doing

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await reads.close()
        await does.close()

    app = FastAPI(
        title="orders console",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        telemetry=UNTOLD,
    )
    app.state.access = access
    app.state.health = reads.health
    app.state.door = door = Door(settings, access)
    app.add_middleware(Requests, only_loopback=door.open, logged=settings.api_access_log, service="console")
    app.mount("/static", StaticFiles(directory=Path(__file__).parent / "static"))
    _install_errors(app)
    _let_in(app, door)
    _show_the_system(app, reads)
    _show_dead_letters(app, reads)
    _show_a_letter(app, reads, does)
    _show_an_order(app, reads)
    _show_lists(app, reads)
    _show_work(app, reads)
    _show_what_is_found(app, reads)
    offer_actions(app, reads, does)
    return app


# -- sessions ------------------------------------------------------------------------------------------------


def _let_in(app: FastAPI, door: Door) -> None:
    @app.get("/login")
    async def login(request: Request) -> Response:
        return _login_page(request, 200, "", request.query_params.get("next", "/"))

    @app.post("/login")
    async def logged_in(request: Request) -> Response:
        form = await forms.read(request)
        begun = door.enter(request, form.get("key", "").strip())
        response = RedirectResponse(own_path(form.get("next", "")), 303, headers=dict(HEADERS))
        door.sessions.put(request, response, begun)
        return response

    @app.post("/logout")
    async def logged_out(request: Request, _: forms.Sent) -> Response:
        response = RedirectResponse("/login", 303, headers=dict(HEADERS))
        door.sessions.end(request, response)
        return response


def _login_page(request: Request, status: int, said: str, next_: str) -> Response:
    by_key = not request.app.state.access.anybody
    values = {"said": said, "next": own_path(next_), "by_key": by_key}
    return page(request, "login", NOBODY, values, status)


# -- the system ----------------------------------------------------------------------------------------------


def _show_the_system(app: FastAPI, reads: Sources) -> None:
    @app.get("/")
    async def overview(request: Request, seen_by: Seen) -> Response:
        shown = overview_of(await reads.glance())
        return page(request, "overview", seen_by, {**shown, "live": address("/", part="live")})

    @app.get("/lanes")
    async def lanes(request: Request, seen_by: Seen) -> Response:
        shown = overview_of(await reads.glance())
        return page(request, "lanes", seen_by, {**shown, "live": address("/lanes", part="live")})

    @app.get("/jobs")
    async def jobs(request: Request, seen_by: Seen) -> Response:
        state = choice(request, "state", ("open", "done"))
        shown = [
            job
            for job in await reads.jobs()
            if state is None or (job["completed_at"] is None) == (state == "open")
        ]
        values = {"jobs": shown, "state": state, "live": address("/jobs", state=state, part="live")}
        return page(request, "jobs", seen_by, values)


# -- dead letters --------------------------------------------------------------------------------------------


def _show_dead_letters(app: FastAPI, reads: Sources) -> None:
    @app.get("/dead-letters")
    async def letters(request: Request, seen_by: Seen) -> Response:
        hours = choice(request, "hours", HOURS) or "24"
        state = choice(request, "state", STATES)
        wanted = {name: request.query_params.get(name) or None for name in ("reason", "topic", "hour")}
        since = 0 if hours == "0" else int((time.time() - int(hours) * 3600) * 1000)
        letters_, left = await reads.letters(since)
        with_state = [(letter, state_of(reads.settings, letter, note)) for letter, note in letters_]
        matching = [
            (letter, its) for letter, its in with_state if state in (None, its) and _is_like(letter, wanted)
        ]
        values = {
            "groups": letter_view.groups(letter for letter, _ in matching),
            "letters": matching[: -SHOWN - 1 : -1],
            "total": len(matching),
            "left": left,
            "most": LETTERS,
            "filters": {"hours": hours, "state": state, **wanted},
            "since": wanted["hour"] or (None if hours == "0" else times.text(since * 1000)[:19]),
            "until": wanted["hour"] and letter_view.next_hour(wanted["hour"]),
            "hours": HOURS,
            "states": STATES,
            "reasons": sorted({letter.reason for letter, _ in letters_} | {wanted["reason"] or ""} - {""}),
            "topics": sorted(
                {letter.record.topic for letter, _ in letters_} | {wanted["topic"] or ""} - {""}
            ),
        }
        return page(request, "dead_letters", seen_by, values)


def _show_a_letter(app: FastAPI, reads: Sources, does: Doing) -> None:
    @app.get("/dead-letters/{id_}")
    async def letter(request: Request, seen_by: Seen, id_: str) -> Response:
        partition, offset = (number_of(part) for part in ([*id_.split(":"), ""])[:2])
        if partition is None or offset is None or id_.count(":") != 1:
            raise NotFound(text("no_page"))
        letter_, note = await reads.letter(partition, offset)
        value = b"" if letter_.value is None or not seen_by.role.personal else letter_.value
        type_ = schema_view.type_of(letter_)
        shown = letter_view.value_of(letter_)
        values = {
            "letter": letter_,
            "note": note,
            "state": state_of(reads.settings, letter_, note),
            "means": REASONS.get(letter_.reason, text("unknown_reason")),
            "shown": shown,
            "schema": None if type_ is None else schema_view.schema_of(type_, shown.path),
            "type": type_,
            "held": [] if type_ is None else schema_view.holding(await does.paused(), type_),
            "hex": letter_view.in_hex(value),
            "broken": None if shown.lines is not None else letter_view.broken_row(letter_),
            "most": letter_view.HEX_BYTES,
            "key": _text(letter_.key),
            "headers": [(name, _text(each)) for name, each in letter_.headers],
        }
        return page(request, "dead_letter", seen_by, values)


def _is_like(letter: DeadLetter, wanted: dict[str, str | None]) -> bool:
    return (
        wanted["reason"] in (None, letter.reason)
        and wanted["topic"] in (None, letter.record.topic)
        and wanted["hour"] in (None, letter_view.hour_of(letter))
    )


def _text(value: bytes | None) -> str:
    return text("null") if value is None else value.decode("utf-8", "replace")


# -- an order ------------------------------------------------------------------------------------------------


def _show_an_order(app: FastAPI, reads: Sources) -> None:
    @app.get("/orders/{id_}")
    async def order(request: Request, seen_by: Seen, id_: str) -> Response:
        order_id, at = uuid_of(id_), moment_of(request, "as_of")
        step = number_of(request.query_params.get("step", ""))
        try:
            explained = await reads.order(order_id, at)
        except Unavailable as error:
            return page(request, "order_rows", seen_by, await _of_rows(reads, order_id, error))
        moments = order_view.moments(explained.facts)
        if step is not None:
            # By the time, so that the address stays what it shows when more facts come.
            chosen = moments[step].time if step < len(moments) else None
            to = address(request.url.path, as_of=chosen)
            return RedirectResponse(to, 303, headers=dict(HEADERS))
        document = explained.document
        if "user_id" in document and not seen_by.role.personal:
            document["user_id"] = None
        refunds = order_view.refunds(document, explained.order)
        since = explained.order.appended
        values = {
            "order": document,
            "bars": [order_view.bar(line) for line in document.get("lines", ())],
            "width": order_view.WIDTH,
            "refunds": refunds,
            "balance": order_view.balance(document, refunds) if document["known"] else [],
            "at": request.query_params.get("as_of", ""),
            "since": times.text((since - BEFORE) * 1000) if since else None,
            "moments": moments,
            "step": order_view.place_of(moments, at),
            "stores": await reads.stores(order_id, explained.now),
        }
        return page(request, "order", seen_by, values)

    @app.get("/orders/{id_}/stores")
    async def stores(request: Request, seen_by: Seen, id_: str) -> Response:
        only(seen_by)
        order_id = uuid_of(id_)
        values = {"order_id": order_id, "compared": await reads.compared(order_id)}
        return page(request, "stores", seen_by, values)

    @app.get("/orders/{id_}/records")
    async def records(request: Request, seen_by: Seen, id_: str) -> Response:
        only(seen_by)
        order_id = uuid_of(id_)
        since, until = moment_of(request, "from"), moment_of(request, "to")
        begin = 0 if since is None else int(since.timestamp() * 1000)
        search = await reads.records(
            order_id, begin, None if until is None else int(until.timestamp() * 1000)
        )
        shown = [
            (each, [(name, _text(value)) for name, value in each.headers], _text(each.value))
            for each in search.records
        ]
        values = {
            "order_id": order_id,
            "found": search,
            "records": shown,
            "from_": request.query_params.get("from", ""),
            "to": request.query_params.get("to", ""),
        }
        return page(request, "records", seen_by, values)


async def _of_rows(reads: Sources, order_id: Any, error: Unavailable) -> dict[str, Any]:
    return {"order": await reads.rows(order_id), "why": str(error)}


# -- lists ---------------------------------------------------------------------------------------------------


def _show_lists(app: FastAPI, reads: Sources) -> None:
    @app.get("/users/{id_}")
    async def user(request: Request, seen_by: Seen, id_: str) -> Response:
        only(seen_by)
        user_id, status = uuid_of(id_), choice(request, "status", STATUSES)
        at = request.query_params.get("cursor") or None
        try:
            orders = await reads.user(
                user_id, status, moment_of(request, "from"), moment_of(request, "to"), at
            )
        except ValueError:
            raise Invalid(text("bad_cursor")) from None
        filters = {
            "status": status,
            "from_": request.query_params.get("from"),
            "to": request.query_params.get("to"),
        }
        values = {"id": user_id, "orders": orders, "filters": filters, "statuses": STATUSES, "cursor": at}
        return page(request, "user", seen_by, values)

    @app.get("/sellers/{id_}")
    async def seller(request: Request, seen_by: Seen, id_: str) -> Response:
        seller_id, at = uuid_of(id_), request.query_params.get("cursor") or None
        try:
            suborders = await reads.seller(seller_id, at)
        except ValueError:
            raise Invalid(text("bad_cursor")) from None
        return page(request, "seller", seen_by, {"id": seller_id, "suborders": suborders, "cursor": at})


def _show_work(app: FastAPI, reads: Sources) -> None:
    @app.get("/work/{name}")
    async def work(request: Request, seen_by: Seen, name: str) -> Response:
        of = WORKLISTS.get(name)
        if of is None:
            raise NotFound(text("no_page"))
        now = datetime.now(UTC)
        given, filters = asked_for(request, of, now)
        personal = seen_by.role.personal
        if choice(request, "format", ("csv",)):
            everything = await reads.all_waiting(of, filters)
            if everything is None:
                raise Invalid(text("too_many_rows", most=MOST_EXPORTED))
            # Of a hundred thousand rows it takes longer than others should wait.
            file = await asyncio.to_thread(as_csv, of, everything, personal=personal)
            return download(file, f"{name}-{now:%Y%m%dT%H%M%SZ}.csv")
        at = request.query_params.get("cursor") or None
        try:
            shown = await reads.waiting(of, filters, at)
        except ValueError:
            raise Invalid(text("bad_cursor")) from None
        values = {
            "name": name,
            "tabs": WORKLISTS,
            "headings": [text(column.name) for column in of.columns],
            "right": [n for n, column in enumerate(of.columns) if column.kind in ("number", "money")],
            "rows": [cells(of, row, personal=personal) for row in shown.rows],
            "next": shown.next,
            "cursor": at,
            "filters": defaultdict(str, given),
            "choices": of.choices,
            "ages": AGES,
            "counts": {} if of.rows else await reads.attention(),
            "fields": (*of.ids, *of.texts, *(() if of.rows else ("from",))),
            "link": partial(address, request.url.path, **given),
        }
        return page(request, "work", seen_by, values)


def _show_what_is_found(app: FastAPI, reads: Sources) -> None:
    @app.get("/find")
    async def find(request: Request, seen_by: Seen) -> Response:
        search = await look_for(reads, request.query_params.get("q", ""), seen_by)
        if len(search.hits) == 1:
            return RedirectResponse(search.hits[0].path, 303, headers=dict(HEADERS))
        return page(request, "found", seen_by, {"found": search}, 200 if search.hits else 404)


# -- what goes wrong -----------------------------------------------------------------------------------------


def _install_errors(app: FastAPI) -> None:
    def answer(request: Request, status: int, said: str, headers: Any = None) -> Response:
        values = {
            "title": EN.get(f"status_{status}", HTTPStatus(status).phrase),
            "said": said,
            "advice": EN.get(f"advice_{status}", ""),
            "again": status in (429, 503),
        }
        response = page(request, "error", NOBODY, values, status)
        response.headers.update(headers or {})
        return response

    def of(status: int) -> Callable[[Request, Exception], Awaitable[Response]]:
        async def answered(request: Request, error: Exception) -> Response:
            return answer(request, status, str(error), {"Retry-After": "1"} if status == 503 else None)

        return answered

    app.add_exception_handler(NotFound, of(404))
    app.add_exception_handler(NotYet, of(503))
    app.add_exception_handler(Unavailable, of(503))
    app.add_exception_handler(Invalid, of(422))
    app.add_exception_handler(NotDone, of(409))

    @app.exception_handler(HTTPException)
    async def _http(request: Request, error: HTTPException) -> Response:
        said = str(error.detail)
        if error.status_code == 401:
            here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            asked = request.method == "GET" and request.url.path != "/login"
            response = _login_page(request, 401, said, here if asked else "/")
            response.headers.update(error.headers or {})
            return response
        if said == HTTPStatus(error.status_code).phrase:
            said = text("no_page") if error.status_code == 404 else ""
        return answer(request, error.status_code, said, error.headers)

    @app.exception_handler(Exception)
    async def _broken(request: Request, _: Exception) -> Response:
        # Starlette passes it on to the server, which logs it.
        return answer(request, 500, "")
