"""Who is admitted to the console, and as what: by the keys and tokens of `orders api`, or by a proxy that
logs people in.

A browser shows a key once, in the form of /login, and then a session's cookie; a program shows it with each
request, as a bearer token. Where a proxy is trusted its headers say who it is.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable
from enum import IntEnum
from typing import Final, NamedTuple

from fastapi import Request
from fastapi.security.utils import get_authorization_scheme_param
from starlette.exceptions import HTTPException

from api.access import Access
from api.callers import SCOPE, Caller
from api.keys import digest_of
from api.scopes import scopes
from console.sessions import Session, Sessions
from console.texts import text
from settings import Settings

CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}
PROXY_SECRET: Final = "x-orders-proxy-secret"
"""The header in which a proxy shows ORDERS_CONSOLE_PROXY_SECRET."""


class Role(IntEnum):
    """What a visitor may see and do; each may what the ones before it may."""

    VIEWER = 1
    """Sees everything but personal fields."""
    SUPPORT = 2
    """Sees personal fields, too; sends events of customer service, with the right to write."""
    OPERATOR = 3
    """Does what changes the system."""

    @property
    def personal(self) -> bool:
        """Whether personal fields are shown."""
        return self >= Role.SUPPORT


class Visitor(NamedTuple):
    """Whoever looks. `name`: of their key; "": nothing has to be shown here. `writes`: whether they may send
    events. `session`: that of their browser; None: a program with a key, which no page can make send a form.
    """

    name: str
    role: Role
    writes: bool = False
    session: Session | None = None


def role_of(scopes: Iterable[str]) -> Role | None:
    """The role of a key with these scopes: `view` is a viewer, `all` support (it reads every order over the
    API as well), `all` with `operate` an operator. None: such a key isn't admitted. Pure.
    """
    given = frozenset(scopes)
    if "all" in given:
        return Role.OPERATOR if "operate" in given else Role.SUPPORT
    return Role.VIEWER if "view" in given else None


class Proxy:
    """A proxy that logs people in (by OpenID Connect, say) and tells in headers who they are."""

    def __init__(self, settings: Settings) -> None:
        self._user = settings.console_proxy_user.lower()
        self._groups = settings.console_proxy_groups.lower()
        self._roles = (
            (Role.OPERATOR, _listed(settings.console_proxy_operators)),
            (Role.SUPPORT, _listed(settings.console_proxy_support)),
            (Role.VIEWER, _listed(settings.console_proxy_viewers)),
        )
        self._networks = settings.proxy_networks
        self._secret = settings.console_proxy_secret

    @property
    def there(self) -> bool:
        """Whether one is trusted."""
        return bool(self._user)

    def sent(self, request: Request) -> bool:
        """Whether the request came from it: from one of its addresses, and with its secret, of which at least
        one is set.
        """
        if not self._user:
            return False
        if self._networks:
            try:
                address = ipaddress.ip_address(request.client.host if request.client else "")
            except ValueError:
                return False
            if not any(address in network for network in self._networks):
                return False
        secret = self._secret.get_secret_value()
        shown = request.headers.getlist(PROXY_SECRET)
        if secret:
            return len(shown) == 1 and hmac.compare_digest(shown[0].encode(), secret.encode())
        return bool(self._networks)

    def person(self, request: Request) -> tuple[str, Role | None] | None:
        """Who it says that this is, and their role; None: it says nothing, or two things at once."""
        users = request.headers.getlist(self._user)
        if len(users) != 1 or not users[0].strip():
            return None
        groups = {
            group.strip() for value in request.headers.getlist(self._groups) for group in value.split(",")
        }
        role = next((role for role, those in self._roles if those & groups), None)
        return users[0].strip(), role


def _listed(value: str) -> frozenset[str]:
    return frozenset(each.strip() for each in value.split(",") if each.strip())


class Door:
    """Everything that decides who comes in. Raises OrdersError for a file of keys that can't be used."""

    def __init__(self, settings: Settings, access: Access) -> None:
        self.access = access
        self.sessions = Sessions(settings)
        self.proxy = Proxy(settings)

    @property
    def open(self) -> bool:
        """Whether nothing has to be shown, and so only this machine is served."""
        return self.access.anybody and not self.proxy.there

    async def visitor(self, request: Request) -> Visitor:
        """See the function visitor."""
        scheme, key = get_authorization_scheme_param(request.headers.get("authorization"))
        if scheme.lower() == "bearer" and not self.access.anybody:
            caller = await self.access.caller(key)
            assert caller is not None
            return self._of(request, caller, None)
        session = self.sessions.read(request)
        if self.proxy.sent(request):
            person = self.proxy.person(request)
            if person is None:
                raise HTTPException(401, text("proxy_says_nothing"), CHALLENGE)
            name, role = person
            # For the log.
            request.scope[SCOPE] = Caller("proxy:(a user)", scopes(()))
            if role is None:
                raise HTTPException(403, text("no_group"))
            return Visitor(name, role, role.personal, session or self.sessions.begin())
        if self.open:
            return Visitor("", Role.OPERATOR, writes=True, session=session or self.sessions.begin())
        if session is None or not session.digest:
            raise HTTPException(401, text("sign_in"), CHALLENGE)
        known = self.access.known(session.digest)
        if known is None:
            raise HTTPException(401, text("key_gone"), CHALLENGE)
        return self._of(request, known, session)

    def _of(self, request: Request, caller: Caller, session: Session | None) -> Visitor:
        request.scope[SCOPE] = caller
        self.access.admit(caller)
        role = role_of(caller.scopes.names)
        if role is None:
            raise HTTPException(403, text("not_admitted"))
        return Visitor(caller.name, role, "write" in caller.scopes.names, session)

    def enter(self, request: Request, key: str) -> Session:
        """Begin the session of whoever shows this key. Raises HTTPException: 401 if it isn't accepted, 403 if
        it isn't for the console, 429.
        """
        caller = self.access.known(digest_of(key).hex())
        if caller is None:
            raise HTTPException(401, text("wrong_key"), CHALLENGE)
        self._of(request, caller, None)
        return self.sessions.begin(digest_of(key).hex())


async def visitor(request: Request) -> Visitor:
    """Who asks, a dependency of every page. Raises HTTPException: 401, 403, 429, 503; see api.access."""
    door: Door = request.app.state.door
    seen_by = await door.visitor(request)
    request.state.session = seen_by.session
    return seen_by


def only(seen_by: Visitor, role: Role = Role.SUPPORT) -> None:
    """Raise HTTPException 403 for a page whose visitor has less than this role."""
    if seen_by.role < role:
        raise HTTPException(403, text("support_only" if role is Role.SUPPORT else "operator_only"))
