"""Sessions of browsers: a signed cookie, and nothing kept here. So several consoles that share a secret share
their sessions, and a session can't be ended before its time but by withdrawing its key.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import jwt
from fastapi import Request
from starlette.responses import Response

from api.requests import LOOPBACK, hostname
from settings import Settings

_ALGORITHM: Final = "HS256"
_FOR: Final = "orders-console"
"""The audience of a cookie: a token that something else signed with the same secret is none."""
RENEWED: Final = 60
"""Seconds after which a session that is used gets a new cookie."""


LEEWAY: Final = 10
"""Seconds by which the clocks of consoles may differ."""


class Session(NamedTuple):
    """A browser's session. `id`: random, what its forms are bound to; `digest`: that of the key that was
    shown, in hex, "" where none has to be; `begun` and `seen`: seconds since 1970.
    """

    id: str
    digest: str
    begun: int
    seen: int


class Sessions:
    """Makes cookies and reads them. Without ORDERS_CONSOLE_SECRET the secret is this process's own."""

    def __init__(self, settings: Settings) -> None:
        self._given = settings.console_secret
        self._own = secrets.token_hex(32)
        self._idle, self._longest = settings.console_idle, settings.console_session

    def begin(self, digest: str = "") -> Session:
        """Begin a session, of whoever has shown a key of this digest."""
        now = int(time.time())
        return Session(secrets.token_hex(16), digest, now, now)

    def read(self, request: Request) -> Session | None:
        """The session of a request's cookie; None: there is none, it is over, or somebody else made it."""
        cookie = request.cookies.get(name_of(request))
        if cookie is None:
            return None
        try:
            claims: dict[str, Any] = jwt.decode(
                cookie,
                self._secret(),
                algorithms=[_ALGORITHM],
                audience=_FOR,
                leeway=LEEWAY,
                options={"require": ["exp", "iat", "nbf", "aud", "sid", "key"]},
            )
            return Session(str(claims["sid"]), str(claims["key"]), int(claims["iat"]), int(claims["nbf"]))
        except jwt.InvalidTokenError:
            return None

    def renewed(self, session: Session) -> Session | None:
        """The session as seen now; None: its cookie is good enough for a while."""
        now = int(time.time())
        return session._replace(seen=now) if now >= session.seen + RENEWED else None

    def put(self, request: Request, response: Response, session: Session) -> None:
        """Give the browser the session's cookie."""
        end = min(session.seen + self._idle, session.begun + self._longest)
        claims = {
            "aud": _FOR,
            "sid": session.id,
            "key": session.digest,
            "iat": session.begun,
            "nbf": session.seen,
            "exp": end,
        }
        cookie = jwt.encode(claims, self._secret(), _ALGORITHM)
        secure = is_secure(request)
        response.set_cookie(
            name_of(request), cookie, secure=secure, httponly=True, samesite="strict", path="/"
        )

    def end(self, request: Request, response: Response) -> None:
        """Take the cookie away."""
        secure = is_secure(request)
        response.delete_cookie(name_of(request), secure=secure, httponly=True, samesite="strict", path="/")

    def token(self, session: Session) -> str:
        """What each form of the session holds: nobody else can make it."""
        return hmac.new(self._secret().encode(), f"form {session.id}".encode(), hashlib.sha256).hexdigest()

    def is_of(self, session: Session, token: str) -> bool:
        """Whether a form's token is the session's."""
        return hmac.compare_digest(self.token(session).encode(), token.encode())

    def _secret(self) -> str:
        return self._given.get_secret_value() or self._own


def is_secure(request: Request) -> bool:
    """Whether a cookie must not go over plain HTTP: everywhere but on this machine, since a proxy may speak
    TLS for us. Pure.
    """
    return request.url.scheme == "https" or hostname(request.headers.get("host", "")) not in LOOPBACK


def name_of(request: Request) -> str:
    """The cookie's name: __Host- keeps other hosts of the domain from setting it. Pure."""
    return "__Host-orders-console" if is_secure(request) else "orders-console"


def is_same_site(request: Request) -> bool:
    """Whether a form was sent from a page of this console, as far as the browser tells. Pure."""
    origin = request.headers.get("origin")
    if origin is not None:
        try:
            return urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower() != ""
        except ValueError:
            return False
    return request.headers.get("sec-fetch-site", "same-origin") in ("same-origin", "none")
