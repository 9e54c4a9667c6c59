"""Forms that are sent: whether the visitor's own page sent them, and what is in them."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import parse_qsl

from fastapi import Depends, Request
from starlette.exceptions import HTTPException

from api.access import Access
from console.access import Door, Visitor, visitor
from console.sessions import is_same_site
from console.texts import text

MOST_BYTES: Final = 64 << 10
"""Of a form."""
_FIELDS: Final = 100
TOKEN: Final = "token"
"""The field in which a form shows that a page of the session made it."""

Form = dict[str, str]


def keeps_body(_access: Access, method: bytes, _target: bytes, _authorization: str | None) -> int:
    """Bytes that the body of a request may have: those of a form, also of a stranger, who logs in by it."""
    return MOST_BYTES if method == b"POST" else 0


async def read(request: Request) -> Form:
    """The form of a request of this site, its fields by name. Raises HTTPException: 403, 413, 415, 422."""
    if not is_same_site(request):
        raise HTTPException(403, text("other_site"))
    if (
        request.headers.get("content-type", "").partition(";")[0].strip()
        != "application/x-www-form-urlencoded"
    ):
        raise HTTPException(415, text("no_form"))
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MOST_BYTES:
            raise HTTPException(413, text("form_too_large", most=MOST_BYTES >> 10))
    try:
        fields = parse_qsl(
            body.decode(),
            keep_blank_values=True,
            strict_parsing=bool(body),
            errors="strict",
            max_num_fields=_FIELDS,
        )
    except ValueError:
        raise HTTPException(422, text("bad_form")) from None
    return {name: value.replace("\r\n", "\n") for name, value in reversed(fields)}


async def sent(request: Request, seen_by: Annotated[Visitor, Depends(visitor)]) -> Form:
    """A dependency of whatever changes something: the form, which a page of the visitor's session made.

    A program with a key sends no token: no browser shows its key by itself. Raises as read, and 403.
    """
    form = await read(request)
    door: Door = request.app.state.door
    if seen_by.session is not None and not door.sessions.is_of(seen_by.session, form.get(TOKEN, "")):
        raise HTTPException(403, text("old_form"))
    return form


Sent = Annotated[Form, Depends(sent)]
"""The form of a request."""
