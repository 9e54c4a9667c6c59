"""Tokens of an issuer: JWTs, checked with the issuer's public keys (JWKS) out of a file or from a URL."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiohttp
import jwt
from fastapi import HTTPException

from api.callers import Caller
from api.scopes import scopes
from api.watched import Watched
from credentials import JwksPlace, read_file
from errors import OrdersError
from settings import Settings

log = logging.getLogger(__name__)

ALGORITHMS: Final = ("RS256", "ES256", "EdDSA")
"""Only signatures by a private key: with an HMAC whoever can check a token can make one."""
REFRESH_PAUSE: Final = 60.0
"""Seconds between two fetches: a token with a made-up kid must not become a request to the issuer."""
REFRESH_AGE: Final = 600.0
"""Seconds after which keys are fetched again, so that one that the issuer has withdrawn ends."""
FETCH_SECONDS: Final = 5.0
MOST_BYTES: Final = 1 << 20
"""Of a JWKS."""
LEEWAY: Final = 10.0
"""Seconds by which the issuer's clock may differ from ours."""
MOST_TOKENS: Final = 10_000
"""Tokens whose signature isn't checked again, and subjects whose rate is counted."""

_KINDS: Final = ((("RSA", None), "RS256"), (("EC", "P-256"), "ES256"), (("OKP", "Ed25519"), "EdDSA"))
"""(kty, crv) of a key, and the algorithm that it is for."""
_FAULTS: Final = (
    (jwt.ExpiredSignatureError, "the token has expired"),
    (jwt.ImmatureSignatureError, "the token isn't valid yet"),
    (jwt.InvalidAudienceError, "the token is for another audience"),
    (jwt.InvalidIssuerError, "the token is of another issuer"),
    (jwt.MissingRequiredClaimError, "the token lacks a claim: exp, iss, aud and sub are needed"),
)


class IssuerUnusable(OrdersError):
    """The issuer's keys aren't to be had, or can't be used."""


_UNNAMEABLE: Final = re.compile(r"[^\w@.:|/+=-]", re.ASCII)
"""What a subject mustn't bring into a line of the log."""

_Keys = dict[str | None, jwt.PyJWK]
"""An issuer's keys by kid; under None the one that a token without kid means, if there is only one."""


class Issuer:
    """Callers by their tokens.

    The constructor reads a file and raises IssuerUnusable if it can't. Keys of a URL are there once `prepare`
    has returned, else from the first token on.
    """

    def __init__(self, settings: Settings) -> None:
        missing = [
            f"ORDERS_API_JWT_{name.upper()}"
            for name in ("issuer", "audience", "jwks")
            if not getattr(settings, f"api_jwt_{name}")
        ]
        if missing:
            raise IssuerUnusable(
                f"{' and '.join(missing)} not set", "set ORDERS_API_JWT_ISSUER, _AUDIENCE and _JWKS together"
            )
        self._issuer = settings.api_jwt_issuer
        self._audience = settings.api_jwt_audience
        self._rate = settings.api_rate
        place = settings.api_jwt_jwks.get_secret_value()
        self._url = place if settings.api_jwt_jwks.is_url else None
        path = Path(place)
        self._file = None if self._url else Watched("ORDERS_API_JWT_JWKS", partial(_of_file, path), path)
        self._keys: _Keys = {} if self._file is None else self._file.current()
        self._fetching: asyncio.Task[None] | None = None
        self._asked, self._fetched = -math.inf, -math.inf
        # What the last fetch failed of; None: it didn't.
        self._failure: str | None = None
        self._known: OrderedDict[bytes, Caller] = OrderedDict()
        self._callers: OrderedDict[str, Caller] = OrderedDict()

    async def prepare(self) -> None:
        """Fetch the keys of a URL. Blocks for FETCH_SECONDS at most. Raises IssuerUnusable."""
        if self._url is not None:
            self._take(await _of_url(self._url))

    async def caller(self, token: str, digest: bytes) -> Caller:
        """Return whose token this is; `digest`: of its text. Raises HTTPException: 401 if it isn't accepted,
        503 if its key is unknown and the issuer doesn't answer. Blocks while an unknown key is fetched.
        """
        await self._renew()
        known = self._known.get(digest)
        if known is not None:
            self._known.move_to_end(digest)
            return known
        try:
            kid = jwt.get_unverified_header(token).get("kid")
        except jwt.PyJWTError:
            raise _invalid("this isn't a token") from None
        if kid not in self._keys and self._url is not None:
            await self._refresh()
        key = self._keys.get(kid)
        if key is None:
            if self._failure is not None:
                raise HTTPException(503, "the issuer of tokens doesn't answer", {"Retry-After": "60"})
            raise _invalid("the token isn't signed by a key of the issuer")
        caller = self._of(self._claims(token, key))
        self._known[digest] = caller
        if len(self._known) > MOST_TOKENS:
            self._known.popitem(last=False)
        return caller

    def _claims(self, token: str, key: jwt.PyJWK) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                # Of the key, never what the token says of itself.
                algorithms=[key.algorithm_name],
                issuer=self._issuer,
                audience=self._audience,
                leeway=LEEWAY,
                options={"require": ["exp", "iss", "aud", "sub"]},
            )
            if not isinstance(claims["exp"], int | float):  # PyJWT takes a text
                raise ValueError("exp is no number")
            float(claims["exp"])  # JSON's integers may be larger than any
            return claims
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise _invalid(
                next((text for kind, text in _FAULTS if isinstance(error, kind)), "the token isn't valid")
            ) from None

    def _of(self, claims: dict[str, Any]) -> Caller:
        scope = claims.get("scope", claims.get("scp", ""))
        words = scope.split() if isinstance(scope, str) else scope if isinstance(scope, list) else []
        may = scopes(word for word in words if isinstance(word, str))
        # A user's own token: its subject is most likely the user, whose id doesn't go into a log.
        name = "jwt:(a user)" if may.sees.users else f"jwt:{_UNNAMEABLE.sub('_', claims['sub'])[:100]}"
        caller = Caller(name, may, until=float(claims["exp"]) + LEEWAY, rate=self._rate)
        if not self._rate:
            return caller
        # A subject's requests are counted together, whichever of its tokens they come with.
        first = self._callers.setdefault(claims["sub"], caller)
        self._callers.move_to_end(claims["sub"])
        if len(self._callers) > MOST_TOKENS:
            self._callers.popitem(last=False)
        caller.count_as(first)
        return caller

    # -- the issuer's keys -----------------------------------------------------------------------------------

    async def _renew(self) -> None:
        """Take in a file that has changed; have keys of a URL fetched that were fetched long ago."""
        if self._file is not None:
            keys = self._file.current()
            if keys is not self._keys:
                self._take(keys)
        elif time.monotonic() > self._fetched + REFRESH_AGE and self._keys:
            self._begin()  # and nobody waits for it

    async def _refresh(self) -> None:
        """Fetch the keys, if that wasn't tried within REFRESH_PAUSE; all who want it wait for one fetch."""
        task = self._begin()
        if task is not None:
            await asyncio.shield(task)

    def _begin(self) -> asyncio.Task[None] | None:
        if self._fetching is None and time.monotonic() >= self._asked + REFRESH_PAUSE:
            self._asked = time.monotonic()
            self._fetching = asyncio.ensure_future(self._fetch())
        return self._fetching

    async def _fetch(self) -> None:
        assert self._url is not None
        try:
            keys = await _of_url(self._url)
        except IssuerUnusable as error:
            if self._failure is None:
                log.error("ORDERS_API_JWT_JWKS: %s; the keys that are known stay in force", error.message)
            self._failure = error.message
        else:
            if self._failure is not None:
                log.info("ORDERS_API_JWT_JWKS: the issuer answers again")
            self._take(keys)
        finally:
            self._fetching = None

    def _take(self, keys: _Keys) -> None:
        self._keys = keys
        self._failure = None
        self._fetched = time.monotonic()
        # Their keys may be withdrawn.
        self._known.clear()


def _invalid(why: str) -> HTTPException:
    return HTTPException(
        401, why, {"WWW-Authenticate": f'Bearer error="invalid_token", error_description="{why}"'}
    )


def _of_file(path: Path) -> _Keys:
    try:
        data = read_file(path, MOST_BYTES)
    except OSError as error:
        raise IssuerUnusable(f"{path}: {error.strerror}", "check ORDERS_API_JWT_JWKS") from None
    return _parsed(data, str(path))


async def _of_url(url: str) -> _Keys:
    shown = str(JwksPlace(url))
    try:
        async with (
            aiohttp.ClientSession(
                timeout=aiohttp.ClientTimeout(total=FETCH_SECONDS), trust_env=True
            ) as session,
            # Elsewhere somebody else may answer.
            session.get(url, allow_redirects=False) as answer,
        ):
            if answer.status != 200:
                raise IssuerUnusable(f"{shown} answers {answer.status}", "check ORDERS_API_JWT_JWKS")
            data = await answer.content.read(MOST_BYTES + 1)
            while len(data) <= MOST_BYTES and (more := await answer.content.read(MOST_BYTES)):
                data += more
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        # Its text may repeat the address.
        why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
        raise IssuerUnusable(
            f"the issuer's keys can't be fetched from {shown} ({why})",
            "check ORDERS_API_JWT_JWKS and the issuer",
        ) from None
    return _parsed(data, shown)


def _parsed(data: bytes, where: str) -> _Keys:
    """The keys of a JWKS that can be used here. Raises IssuerUnusable if there is none."""
    try:
        if len(data) > MOST_BYTES:
            raise ValueError
        listed = json.loads(data)["keys"]
        usable = [key for key in map(_key, listed) if key is not None]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise IssuerUnusable(f"{where} holds no JWKS", "check ORDERS_API_JWT_JWKS") from None
    if not usable:
        raise IssuerUnusable(
            f"{where} holds no public key for {', '.join(ALGORITHMS)}", "check ORDERS_API_JWT_JWKS"
        )
    keys: _Keys = {key.key_id: key for key in usable if isinstance(key.key_id, str)}
    if len(usable) == 1:
        keys[None] = usable[0]
    return keys


def _key(data: Any) -> jwt.PyJWK | None:
    """A key for signatures, or None: another kind, too short, or for something else."""
    if not isinstance(data, dict) or "d" in data or data.get("use", "sig") != "sig":
        return None
    kind = data.get("kty"), data.get("crv")
    algorithm = next((each for known, each in _KINDS if known == kind), None)
    if algorithm is None or data.get("alg", algorithm) != algorithm:
        return None
    try:
        key = jwt.PyJWK(data, algorithm)
    except jwt.PyJWTError:
        return None
    return None if key.Algorithm.check_key_length(key.key) else key
