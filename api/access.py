"""Who is admitted: by a key of the environment, a named key of a file, or a token of an issuer."""

from __future__ import annotations

import math
import time
from functools import partial
from pathlib import Path
from typing import Annotated, Final

from fastapi import Depends, HTTPException, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param

from api.callers import SCOPE, Caller
from api.keys import digest_of, read_keys
from api.scopes import EVERYTHING, scopes
from api.watched import Watched
from queries.visibility import EVERYTHING as ALL_OF_IT
from queries.visibility import Visibility
from settings import Settings

_BEARER: Final = HTTPBearer(
    auto_error=False,
    description="A key of ORDERS_API_KEYS or of ORDERS_API_KEY_STORE, or a token of ORDERS_API_JWT_ISSUER; "
    "none is needed where none of these is set.",
)
_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}


class Access:
    """The keys and tokens that are accepted. Raises OrdersError for a file that can't be used."""

    def __init__(self, settings: Settings) -> None:
        self._rate = settings.api_rate
        self._fixed = {} if settings.api_keys_file is not None else self._of_settings(settings)
        self._fixed_file: Watched[dict[bytes, Caller]] | None = None
        if settings.api_keys_file is not None:
            self._fixed_file = Watched(
                "ORDERS_API_KEYS_FILE", partial(self._of_settings, settings), settings.api_keys_file
            )
        self._named: dict[bytes, Caller] = {}
        self._file: Watched[dict[bytes, Caller]] | None = None
        if settings.api_key_store is not None:
            self._file = Watched(
                "ORDERS_API_KEY_STORE",
                partial(self._read, settings.api_key_store),
                settings.api_key_store,
            )
        self._issuer = None
        if settings.api_jwt_issuer or settings.api_jwt_audience or settings.api_jwt_jwks:
            from api.tokens import Issuer

            self._issuer = Issuer(settings)

    @property
    def anybody(self) -> bool:
        """Whether nothing has to be shown."""
        return not self._fixed and self._fixed_file is None and self._file is None and self._issuer is None

    async def prepare(self) -> None:
        """Fetch the issuer's keys. Blocks for seconds at most. Raises OrdersError if it doesn't answer."""
        if self._issuer is not None:
            await self._issuer.prepare()

    def may_have(self, scope: str, authorization: str | None) -> bool:
        """Whether a request with this header may turn out to have a scope: its key has it, or it shows what
        looks like a token, which isn't checked here, or nothing has to be shown. Blocks as Watched.current.
        """
        if self.anybody:
            return True
        scheme, key = get_authorization_scheme_param(authorization)  # as HTTPBearer reads it
        if scheme.lower() != "bearer":
            return False
        caller = self._of_key(digest_of(key))
        if caller is None:
            return self._issuer is not None and key.count(".") == 2
        return scope in caller.scopes.names

    async def caller(self, key: str | None) -> Caller | None:
        """Return who shows this, or None where nothing has to be shown. Raises HTTPException: 401 if it isn't
        accepted, 503 if it can't be judged now. Blocks while an issuer is asked for new keys.
        """
        if self.anybody:
            return None
        if key is None:
            raise refused("give a key: Authorization: Bearer KEY")
        digest = digest_of(key)
        caller = self._of_key(digest)
        if caller is None and self._issuer is not None and key.count(".") == 2:
            caller = await self._issuer.caller(key, digest)
        if caller is None:
            raise refused("this key isn't accepted")
        return caller

    def known(self, digest: str) -> Caller | None:
        """Return whose key has this digest (SHA-256 in hex); None: nobody's. Blocks as Watched.current."""
        return self._of_key(bytes.fromhex(digest))

    def admit(self, caller: Caller) -> None:
        """Count a request. Raises HTTPException: 401 if the caller's time is over, 429 if it comes too
        often.
        """
        if caller.until != math.inf and caller.until <= time.time():
            raise refused("this key has expired")
        wait = caller.wait(time.monotonic())
        if wait:
            raise HTTPException(
                429, f"more than {caller.rate:g} requests a second", {"Retry-After": str(math.ceil(wait))}
            )

    def _of_key(self, digest: bytes) -> Caller | None:
        fixed = self._fixed if self._fixed_file is None else self._fixed_file.current()
        caller = fixed.get(digest)
        if caller is None and self._file is not None:
            caller = self._file.current().get(digest)
        return caller

    def _of_settings(self, settings: Settings) -> dict[bytes, Caller]:
        return {
            digest_of(key): Caller(f"ORDERS_API_KEYS:{number}", EVERYTHING, rate=self._rate)
            for number, key in enumerate(settings.bearer_keys, 1)
        }

    def _read(self, path: Path) -> dict[bytes, Caller]:
        before = self._named
        callers: dict[bytes, Caller] = {}
        for key in read_keys(path):
            digest = bytes.fromhex(key.sha256)
            rate = self._rate if key.rate is None else key.rate
            caller = Caller(key.name, scopes(key.scopes), until=key.expires_at, rate=rate)
            known = before.get(digest)
            # Whoever writes the file often gives nobody more requests.
            callers[digest] = known if known is not None and known.same(caller) else caller
        self._named = callers
        return callers


def refused(why: str) -> HTTPException:
    """The answer to what isn't accepted."""
    return HTTPException(401, why, _CHALLENGE)


async def admitted(
    request: Request, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> Visibility:
    """A dependency of a route: what the caller may see. Raises as Access.caller and Access.admit."""
    access: Access = request.app.state.access
    caller = await access.caller(None if credentials is None else credentials.credentials)
    if caller is None:
        return ALL_OF_IT
    # Before it is refused: the log says who comes too often.
    request.scope[SCOPE] = caller
    access.admit(caller)
    return caller.scopes.sees


Sees = Annotated[Visibility, Depends(admitted)]
"""What the caller of a request may see."""
