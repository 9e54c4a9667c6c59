"""Who is admitted to the console, and as what: by the keys and tokens of `orders api`.

A browser sends a key as the password of HTTP Basic, a program as a bearer token. Nothing is kept here.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple

from fastapi import Request
from fastapi.security.utils import get_authorization_scheme_param
from starlette.exceptions import HTTPException

from api.access import Access
from api.callers import SCOPE
from console.texts import text

CHALLENGE: Final = {"WWW-Authenticate": 'Basic realm="orders console", charset="UTF-8"'}


class Role(IntEnum):
    """What a visitor may see; each sees what the ones before it see."""

    VIEWER = 1
    """Everything but personal fields."""
    SUPPORT = 2
    """Personal fields, too."""
    OPERATOR = 3

    @property
    def personal(self) -> bool:
        """Whether personal fields are shown."""
        return self >= Role.SUPPORT


class Visitor(NamedTuple):
    """Whoever looks. `name`: of their key; "": nothing has to be shown here."""

    name: str
    role: Role


def role_of(scopes: Iterable[str]) -> Role | None:
    """The role of a key with these scopes: `view` is a viewer, `all` support (it reads every order over the
    API as well), `all` with `operate` an operator. None: such a key isn't admitted. Pure.
    """
    given = frozenset(scopes)
    if "all" in given:
        return Role.OPERATOR if "operate" in given else Role.SUPPORT
    return Role.VIEWER if "view" in given else None


async def visitor(request: Request) -> Visitor:
    """Who asks, a dependency of every page. Raises HTTPException: 401, 403, 429, 503; see api.access."""
    access: Access = request.app.state.access
    try:
        caller = await access.caller(key_of(request.headers.get("authorization")))
        if caller is None:
            return Visitor("", Role.OPERATOR)
        request.scope[SCOPE] = caller
        access.admit(caller)
    except HTTPException as error:
        if error.status_code == 401:
            raise HTTPException(401, text("sign_in"), CHALLENGE) from None
        raise
    role = role_of(caller.scopes.names)
    if role is None:
        raise HTTPException(403, text("not_admitted"))
    return Visitor(caller.name, role)


def key_of(header: str | None) -> str | None:
    """The key in an Authorization header; None: there is none. Pure."""
    scheme, given = get_authorization_scheme_param(header)
    if scheme.lower() == "bearer":
        return given or None
    if scheme.lower() != "basic":
        return None
    try:
        return base64.b64decode(given, validate=True).decode().partition(":")[2] or None
    except (binascii.Error, UnicodeDecodeError):
        return None


def only(seen_by: Visitor) -> None:
    """Raise HTTPException 403 for a page of personal fields whose visitor may not see them."""
    if not seen_by.role.personal:
        raise HTTPException(403, text("support_only"))
