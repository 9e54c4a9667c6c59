"""Clients of Redis, made alike for workers, readers, commands and the audit: what their URL says, how they
log in, and how they find a primary that Sentinel has moved.

`redis+sentinel://user:password@host:port,host:port/service/db` names the Sentinels and the service whose
primary is wanted (`rediss+sentinel` with TLS for both). User and password are Redis' own; a login at the
Sentinels is `?sentinel_username=...&sentinel_password=...`. Each new connection asks them where the primary
is, so after a failover the next attempt finds the new one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol, cast

import redis.asyncio
import redis.exceptions
from redis.asyncio.connection import Connection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider

from credentials import RedisUrl
from errors import OrdersError
from sinks.named import fault

ONCE: Final = Retry(NoBackoff(), 0)
"""For clients whose caller tries again itself."""

_SENTINEL: Final = re.compile(
    r"(?P<scheme>rediss?)\+sentinel://(?:(?P<login>[^@]*)@)?(?P<hosts>[^/?]+)/(?P<service>[^/?]+)(?P<rest>.*)"
)
_PORT: Final = 26379


class Unwanted(redis.exceptions.ConnectionError):
    """A server refuses what the URL asks of a connection: a database, a name, a way to log in."""


class UnusableFile(OrdersError):
    """A file that the URL names can't be used."""

    remedy = "correct ORDERS_REDIS, or check who may read the file"


class CacheSettings(Protocol):
    """Where Redis is, and how long it is waited for."""

    @property
    def redis(self) -> RedisUrl:
        """Its URL."""

    @property
    def redis_timeout(self) -> float:
        """Seconds that it has for an answer."""


class _Place(NamedTuple):
    """A URL, taken apart."""

    options: Mapping[str, Any]
    """Of a connection to Redis."""
    sentinels: list[tuple[str, int]]
    service: str
    """Whose primary is asked for; empty without Sentinels."""
    looking: Mapping[str, Any]
    """Of a connection to a Sentinel."""


def _read(url: RedisUrl) -> _Place:
    text = url.get_secret_value()
    named = _SENTINEL.fullmatch(text)
    if named is None:
        return _Place(parse_url(text), [], "", {})
    sentinels = [_address(each) for each in named["hosts"].split(",")]
    login = f"{named['login']}@" if named["login"] else ""
    options: dict[str, Any] = dict(parse_url(f"{named['scheme']}://{login}primary{named['rest']}"))
    del options["host"]
    options.pop("connection_class", None)
    if named["scheme"] == "rediss":
        options["ssl"] = True
    looking = {name: value for name, value in options.items() if name.startswith("ssl")}
    for name in ("username", "password"):
        if (value := options.pop(f"sentinel_{name}", None)) is not None:
            looking[name] = value
    return _Place(options, sentinels, named["service"], looking)


def _address(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":") if re.search(r":[0-9]+$", text) else (text, "", "")
    return host.strip("[]"), int(port or _PORT)


class _Login(CredentialProvider):
    """User and password of a URL, as they are when a connection is made."""

    def __init__(self, url: RedisUrl, *, sentinel: bool) -> None:
        self._url = url
        self._sentinel = sentinel

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        place = _read(self._url)
        given = place.looking if self._sentinel else place.options
        user, password = given.get("username"), given.get("password") or ""
        return (user, password) if user else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        return self.get_credentials()


def _quiet(kind: type[Any]) -> type[Any]:
    """Connections of this kind whose errors don't repeat what the server was told when they were made: one
    that doesn't know a command answers with its arguments, the password among them.
    """

    class Quiet(kind):  # type: ignore[misc]
        async def on_connect_check_health(self, check_health: bool = True) -> None:
            try:
                await super().on_connect_check_health(check_health)
            except redis.exceptions.NoPermissionError:
                raise  # it names the user and the command
            except redis.exceptions.ResponseError as error:
                text = re.split(r",? with args|['\"`]", str(error), maxsplit=1)[0].strip()
                if text.startswith("DB index"):
                    text = f"it has no database {self.db}"
                raise Unwanted(text) from None

    Quiet.__name__ = kind.__name__
    return Quiet


def _followed(kind: type[Any], url: RedisUrl, sentinel: int | None = None) -> type[Any]:
    """Connections of this kind that lead where the URL leads when they are made. `sentinel`: to which of its
    Sentinels; None: to Redis.
    """

    class Followed(_quiet(kind)):  # type: ignore[misc]
        async def _connect(self) -> None:
            place = _read(url)
            _require_files(place)
            if sentinel is not None and place.sentinels:
                self.host, self.port = place.sentinels[sentinel % len(place.sentinels)]
            elif sentinel is None and not place.service and _kind(place) is kind:
                options = {"host": "localhost", "port": 6379, "db": 0, **place.options}
                for name in ("path", "db") if "path" in options else ("host", "port", "db"):
                    setattr(self, name, options[name])
            else:
                raise redis.exceptions.ConnectionError(
                    f"{url} is reached in another way than before: that needs a restart"
                )
            await super()._connect()

    Followed.__name__ = kind.__name__
    return Followed


def _kind(place: _Place) -> type[Any]:
    kind: type[Any] = place.options.get("connection_class", Connection)
    return kind


class _OfSentinel(redis.asyncio.Redis):
    """A client that closes its connections to the Sentinels too."""

    async def aclose(self, close_connection_pool: bool | None = None) -> None:
        await super().aclose(close_connection_pool)
        await cast(Any, self.connection_pool).sentinel_manager.aclose()


def open_client(settings: CacheSettings, *, timeout: float | None = None, **options: Any) -> Any:
    """A redis.asyncio.Redis for `settings.redis`, not connected yet. Never blocks.

    `timeout`: seconds that connecting and each answer may take; without one the caller limits the time.
    `options`: those of a connection of redis-py, before which those of the URL come. Where the URL lies in a
    file it is read anew for each connection: host, port and database, or the Sentinels; user and password, if
    it has any now. Raises UnusableFile for a file that the URL names and that can't be used.
    """
    url = settings.redis
    place = _read(url)
    _require_files(place)
    given: dict[str, Any] = {"socket_timeout": timeout, "socket_connect_timeout": timeout, **options}
    given |= place.options
    _hide(given, url, sentinel=False)
    if not place.service:
        given["connection_class"] = _followed(_kind(place), url)
        return redis.asyncio.Redis.from_pool(redis.asyncio.ConnectionPool(**given))
    # One that doesn't answer must leave time for the next one, and for Redis itself.
    share = (timeout or settings.redis_timeout) / (len(place.sentinels) + 1)
    looking = {"socket_timeout": share, "socket_connect_timeout": share, "retry": ONCE, **place.looking}
    _hide(looking, url, sentinel=True)
    make: Any = Sentinel  # untyped
    manager = make(place.sentinels, sentinel_kwargs=looking)
    for number, each in enumerate(manager.sentinels):
        pool = each.connection_pool
        pool.connection_class = _followed(pool.connection_class, url, number)
    client = manager.master_for(place.service, redis_class=_OfSentinel, **given)
    client.connection_pool.connection_class = _quiet(client.connection_pool.connection_class)
    return client


def _require_files(place: _Place) -> None:
    """Raise UnusableFile before OpenSSL does without saying which, or waits for somebody who writes."""
    for name in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        path = place.options.get(name)
        if path and (wrong := fault(name, Path(path))):
            raise UnusableFile(f"ORDERS_REDIS: {wrong}")


def _hide(options: dict[str, Any], url: RedisUrl, *, sentinel: bool) -> None:
    """Put whoever knows the login in place of the login."""
    if options.pop("username", None) or options.get("password"):
        options["credential_provider"] = _Login(url, sentinel=sentinel)
    options.pop("password", None)
