"""Pages as HTML: the templates, what they may call, and the headers of every answer."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote, urlencode

import jinja2
from fastapi import Request
from markupsafe import Markup, escape
from starlette.responses import HTMLResponse, Response

from console.access import Role, Visitor
from console.sessions import Session, Sessions
from console.texts import text
from contracts.printable import printable

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'self';"
    " frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: browsers would send forms with the origin null.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Vary": "Authorization, Cookie",
}
"""Of every page. Addresses hold ids, which no other site and no cache is to have."""

LIVE: Final = "live"
"""?part=live: only what changes, for the script."""


_ROW: Final = re.compile(r"<tr\b.*?</tr>", re.DOTALL)
_CELL: Final = re.compile(r"<td\b(?! colspan)")


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("console", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"t": text, "address": address}
    environment.filters |= {"moment": moment, "number": number, "short": short, "pretty": pretty}
    environment.filters["labelled"] = labelled
    return environment


def _harmless(value: Any) -> Any:
    """What a template puts out: of texts what would steer a terminal or turn the direction of writing is
    escaped, as on the command line. HTML is escaped afterwards.
    """
    return printable(value, lines=True) if type(value) is str else value


def moment(value: str | float | datetime | None) -> str:
    """A time to the second, in UTC: of RFC 3339, of seconds since 1970. What is none stays as it is. Pure."""
    if value is None:
        return text("unknown")
    if isinstance(value, datetime):
        time = value
    elif isinstance(value, str):
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            return value
    else:
        time = datetime.fromtimestamp(value, UTC)
    if time.tzinfo is not None:
        time = time.astimezone(UTC)
    return f"{time:%Y-%m-%d %H:%M:%S}"


def number(value: float) -> str:
    """With commas; what is no integer with one digit behind the point. Pure."""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"


def short(id_: object) -> str:
    """The first 8 characters of an id, by which the find box finds an order. Pure."""
    return str(id_)[:8]


def pretty(document: Any) -> str:
    """A document as JSON for a person. Pure."""
    return json.dumps(document, indent=2, ensure_ascii=False)


def labelled(rows: Markup, headings: Sequence[str]) -> Markup:
    """Rows of a table, each cell of one with its column's heading as `data-heading`: on a narrow page a row
    stands as a list, and the style sheet puts the heading before the cell. One that spans columns has none.
    Pure.
    """

    def row(match: re.Match[str]) -> str:
        names = iter(headings)
        return _CELL.sub(lambda cell: f'{cell[0]} data-heading="{escape(next(names, ""))}"', match[0])

    return Markup(_ROW.sub(row, str(rows)))


def address(path: str, *parts: object, **query: object) -> str:
    """A path of the console: `path` with each of `parts` behind it, and the filters that are given. Pure."""
    whole = "/".join([path.rstrip("/"), *(quote(str(part), safe=":") for part in parts)]) or "/"
    given = {name.rstrip("_"): value for name, value in query.items() if value not in (None, "")}
    return f"{whole}?{urlencode(given)}" if given else whole


_templates: Final = _environment()

PARTS: Final = frozenset(each for each in _templates.list_templates() if each.endswith("_live.html"))
"""The parts of pages that change while they are looked at."""


def page(
    request: Request, name: str, seen_by: Visitor, values: Mapping[str, Any], status: int = 200
) -> HTMLResponse:
    """A page of a template; with `?part=live` only its part that changes, if it has one."""
    part = f"{name}_live.html"
    only_part = request.query_params.get("part") == LIVE and part in PARTS
    html = _templates.get_template(part if only_part else f"{name}.html").render(
        visitor=seen_by,
        role=text(f"role_{seen_by.role.name.lower()}"),
        personal=seen_by.role.personal,
        path=request.url.path,
        pages=PAGES,
        token=_token_of(request),
        operator=seen_by.role is Role.OPERATOR,
        looked_for=request.query_params.get("q", ""),
        **values,
    )
    # JSON can hold half of a surrogate pair, which no bytes stand for: it is shown as its escape.
    text_ = html.encode(errors="backslashreplace")
    response = HTMLResponse(text_, status, headers=dict(HEADERS))
    if not only_part:
        # A page that renews itself is no sign of somebody who looks.
        _keep_session(request, response)
    return response


def _token_of(request: Request) -> str:
    session = getattr(request.state, "session", None)
    return "" if session is None else request.app.state.door.sessions.token(session)


def _keep_session(request: Request, response: Response) -> None:
    session: Session | None = getattr(request.state, "session", None)
    if session is None:
        return
    sessions: Sessions = request.app.state.door.sessions
    fresh = session if sessions.read(request) is None else sessions.renewed(session)
    if fresh is not None:
        sessions.put(request, response, fresh)


def download(text: str, name: str) -> Response:
    """A file of CSV. `name`: of the file; letters, digits, dots and dashes."""
    headers = {**HEADERS, "Content-Disposition": f'attachment; filename="{name}"'}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)


PAGES: Final = (
    ("/", "overview"),
    ("/lanes", "lanes"),
    ("/work/attention", "work"),
    ("/dead-letters", "dead_letters"),
    ("/jobs", "jobs"),
    ("/operations", "operations"),
)
"""Addresses that every page leads to, and the names of their texts."""

NOBODY: Final = Visitor("", Role.VIEWER)
"""Whoever isn't admitted."""
