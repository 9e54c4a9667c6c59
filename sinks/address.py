"""How an address of PostgreSQL is read: as libpq reads it, with what asyncpg itself doesn't know.

What an error says of an address never repeats a value of it, nor a name that isn't known: a password may
stand in any place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from credentials import Refusal, read_file
from sinks.named import fault

KEEPALIVE: Final = {
    "keepalives_idle": 2,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 6000,
}
"""libpq's names. Together: a dead connection ends after 6 to 8 s.
Seconds, seconds, a number, milliseconds.
"""
SESSIONS: Final = {
    "any": "any",
    "read-write": "one that takes writes",
    "read-only": "one that takes no writes",
    "primary": "a primary",
    "standby": "a standby",
    "prefer-standby": "there",
}
"""Values of target_session_attrs, and what a host then must be."""

_FILES: Final = frozenset({"sslrootcert", "sslcert", "sslkey", "sslcrl"})
_ROOT: Final = "~/.postgresql/root.crt"
"""Where asyncpg looks for it, as libpq does."""
_CHECKED: Final = ("verify-ca", "verify-full")
_TLS: Final = ("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
_VALUES: Final[Mapping[str, tuple[str, ...]]] = {
    "sslmode": ("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": ("postgres", "direct"),
    "ssl_min_protocol_version": _TLS,
    "ssl_max_protocol_version": _TLS,
    "target_session_attrs": tuple(SESSIONS),
    "gsslib": ("gssapi", "sspi"),
}
"""Parameters that asyncpg reads, and what they may be."""
_UNCHANGED: Final[Mapping[str, tuple[str, ...]]] = {
    "channel_binding": ("prefer", "disable"),
    "client_encoding": ("auto", "UTF8", "utf8", "UTF-8", "utf-8"),
    "gssencmode": ("prefer", "disable"),
    "gssdelegation": ("0",),
    "load_balance_hosts": ("disable",),
    "replication": ("false", "off", "no", "0"),
    "sslcertmode": ("allow",),
    "sslcompression": ("0",),
    "sslsni": ("1",),
}
"""What libpq knows and asyncpg doesn't, and the values with which both do the same."""
_UNREAD: Final = frozenset(
    {
        "hostaddr",
        "max_protocol_version",
        "min_protocol_version",
        "oauth_client_id",
        "oauth_client_secret",
        "oauth_issuer",
        "oauth_scope",
        "require_auth",
        "requirepeer",
        "requiressl",
        "scram_client_key",
        "scram_server_key",
        "sslcrldir",
        "sslkeylogfile",
    }
)
"""What libpq knows and nothing here does: without it a connection would be another one than was asked for."""
_SERVICE: Final = frozenset(
    {
        *_FILES,
        *_VALUES,
        *_UNCHANGED,
        *KEEPALIVE,
        "application_name",
        "connect_timeout",
        "dbname",
        "fallback_application_name",
        "host",
        "keepalives",
        "krbsrvname",
        "options",
        "passfile",
        "password",
        "port",
        "sslpassword",
        "user",
    }
)
"""What a service may hold."""
_OWN: Final = frozenset({"search_path", "TimeZone", "application_name"})
"""Settings that this program asks for itself: their names may be told."""


class Unusable(ValueError):
    """An address that can't be used. It repeats nothing of it."""


def read(url: str) -> Address:
    """Return an address. Reads the file of services if it names one. Raises ClientConfigurationError."""
    try:
        return Address(url)
    except ValueError as error:
        raise unreadable(error) from None


def unreadable(error: Exception) -> asyncpg.ClientConfigurationError:
    """What is wrong with an address, up to where a client's error begins to repeat values of it."""
    text = (
        str(error) if isinstance(error, Unusable) else re.split(r", got |: |[\"']", str(error), maxsplit=1)[0]
    )
    return asyncpg.ClientConfigurationError(f"the address can't be read: {text.strip()}")


class Address:
    """A URL, and one for each of its hosts (`hosts`), without what asyncpg would hand to the server as a
    setting though it is the client's. Raises ValueError.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.path == "/":  # to asyncpg a database without a name, before the one in the query
            parts = parts._replace(path="")
        query = (
            dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
        )
        query = _with_service(query)
        _check(query)
        keepalive = {
            name: query.pop(name) for name in (*KEEPALIVE, "keepalives", "connect_timeout") if name in query
        }
        fallback = query.pop("fallback_application_name", None)
        if fallback is not None:
            query.setdefault("application_name", fallback)
        strange = next(
            (name for name, value in keepalive.items() if not re.fullmatch(r"-?[0-9]{1,9}", value)), None
        )
        if strange is not None:
            raise Unusable(f"{strange} isn't a whole number")
        numbers = {name: int(value) for name, value in keepalive.items()}
        self.connect_timeout = max(0, numbers.pop("connect_timeout", 0))
        """Seconds for each host; 0: not said."""
        self.keepalive = (
            {name: numbers.get(name, value) for name, value in KEEPALIVE.items()}
            if numbers.get("keepalives", 1)
            else {}
        )
        """libpq's parameters; none: they are switched off."""
        self.named = "application_name" in query
        self._files = {name: path for name, path in query.items() if name in _FILES and path}
        self._tls = query.get("sslmode") or os.environ.get("PGSSLMODE", "")
        self._wanted = query.get("target_session_attrs") or os.environ.get("PGTARGETSESSIONATTRS", "any")
        if self._wanted not in SESSIONS:
            raise Unusable(f"PGTARGETSESSIONATTRS must be one of {', '.join(SESSIONS)}")
        user, at, netloc = parts.netloc.rpartition("@")
        named = _named_hosts(netloc, query) if netloc else []

        def with_(hosts: str, query: Mapping[str, str]) -> str:
            return urlunsplit(parts._replace(netloc=f"{user}{at}{hosts}", query=urlencode(query)))

        self.plain = with_(",".join(named), query)
        if named:
            self.hosts = [with_(host, query) for host in named]
        else:
            several = query.get("host", "").split(",")
            places = zip(several, _ports(query.get("port", ""), len(several)), strict=True)
            self.hosts = [with_("", query | {"host": host, "port": port}) for host, port in places]

    def require_files(self) -> None:
        """Raise asyncpg.ClientConfigurationError for a file that can't be used, or isn't named and has to be:
        asyncpg would blame the server, or say less.
        """
        for name, path in self._files.items():
            if wrong := fault(name, Path(path)):
                raise asyncpg.ClientConfigurationError(wrong)
        rootless = "sslrootcert" not in self._files and not os.environ.get("PGSSLROOTCERT")
        if self._tls in _CHECKED and rootless and not os.path.exists(os.path.expanduser(_ROOT)):
            raise asyncpg.ClientConfigurationError(
                f"sslmode={self._tls} needs sslrootcert=FILE, a certificate of who signed the server's; or"
                f" put it in {_ROOT}"
            )

    def refuse_pipes(self) -> None:
        """Raise asyncpg.ClientConfigurationError for what isn't a file: OpenSSL would wait for its writer.
        One that isn't there may not be needed.
        """
        for name, path in self._files.items():
            try:
                if Path(path).exists():
                    read_file(Path(path), 0)
            except PermissionError:
                pass
            except (OSError, ValueError) as error:
                raise _no_file(name, error) from None

    def attempts(self) -> Iterator[tuple[str, str | None]]:
        """Yield the hosts to try in turn, each with the session that it must offer."""
        first = ("standby", "any") if self._wanted == "prefer-standby" and len(self.hosts) > 1 else (None,)
        for session in first:
            for host in self.hosts:
                yield host, session

    def nowhere(self) -> str:
        """What is wrong when no host is what target_session_attrs asks for."""
        return (
            f"no host of it is {SESSIONS[self._wanted]}, which target_session_attrs={self._wanted} asks for"
        )

    def refusal(self, error: asyncpg.PostgresError) -> Exception:
        """What a server said when it was connected to, without what the address holds: of the same class,
        or ClientConfigurationError where a parameter of the address is to blame.
        """
        refused = Refusal.of(self.plain, error.sqlstate or "", error.args[0] if error.args else "", _OWN)
        if refused.parameter:
            return asyncpg.ClientConfigurationError(refused.text)
        harmless = type(error)(refused.text)
        vars(harmless)["sqlstate"] = error.sqlstate
        return harmless


def _no_file(name: str, error: Exception) -> asyncpg.ClientConfigurationError:
    why = (error.strerror if isinstance(error, OSError) else None) or type(error).__name__
    return asyncpg.ClientConfigurationError(f"{name} names no file that can be read ({why})")


def _check(query: dict[str, str]) -> None:
    """Take out what asyncpg doesn't know and does all the same. Raises ValueError for what can't be done."""
    for name, values in _VALUES.items():
        if query.get(name, values[0]) not in ("", *values):
            raise Unusable(f"{name} must be one of {', '.join(values)}")
    for name, values in _UNCHANGED.items():
        if query.get(name) in values:
            del query[name]
        elif name in query:
            raise Unusable(f"{name} is only supported as {' or '.join(values)}")
    unread = sorted(_UNREAD & query.keys())
    if unread:
        raise Unusable(f"{unread[0]} isn't supported")
    if "database" in query:  # asyncpg's own name for it
        database = query.pop("database")
        query.setdefault("dbname", database)
    if any("\0" in value for value in query.values()):
        raise Unusable("a value holds the character U+0000")


def _named_hosts(netloc: str, query: dict[str, str]) -> list[str]:
    """Hosts before the path, with the ports of the query where they have none themselves."""
    named = netloc.split(",")
    ports = _ports(query.pop("port", ""), len(named))
    hosts = []
    for host, port in zip(named, ports, strict=True):
        own = re.search(r":([0-9]*)$", host)
        if own is not None and own[1]:
            _ports(own[1], 1)
        hosts.append(host if own is not None or not port else f"{host}:{port}")
    return hosts


def _ports(text: str, hosts: int) -> list[str]:
    """A port for each host; an empty one is the usual."""
    ports = text.split(",")
    if len(ports) not in (1, hosts):
        raise Unusable("as many ports as hosts, or one")
    if any(port and not (re.fullmatch(r"[0-9]{1,5}", port) and 0 < int(port) < 65536) for port in ports):
        raise Unusable("port must be 1 to 65535")
    return ports * hosts if len(ports) == 1 else ports


# -- services ------------------------------------------------------------------------------------------------


def _with_service(query: dict[str, str]) -> dict[str, str]:
    """A query with what its service, or that of PGSERVICE, adds to it. Raises ValueError, without repeating
    what a file of services holds.
    """
    file, name = query.pop("servicefile", ""), query.pop("service", "") or os.environ.get("PGSERVICE", "")
    if not name:
        return query
    return {**_service(name, file or os.environ.get("PGSERVICEFILE", "")), **query}


def _service(name: str, file: str) -> dict[str, str]:
    folder = os.environ.get("PGSYSCONFDIR")
    paths = [Path(file or os.path.expanduser("~/.pg_service.conf"))]
    paths += [Path(folder, "pg_service.conf")] if folder else []
    for path in paths:
        try:
            text = read_file(path, _MOST_BYTES).decode()
        except FileNotFoundError:
            continue
        except UnicodeDecodeError:
            raise Unusable("the file of services isn't UTF-8") from None
        except OSError as error:
            raise Unusable(f"the file of services can't be read ({error.strerror})") from None
        given = _section(text, name)
        if given is not None:
            return given
    raise Unusable(
        "its service isn't there; define it in ~/.pg_service.conf, or where PGSERVICEFILE or PGSYSCONFDIR say"
    )


_MOST_BYTES: Final = 1 << 20


def _section(text: str, name: str) -> dict[str, str] | None:
    """The parameters of a service; None if the file doesn't define it."""
    given: dict[str, str] | None = None
    within = False
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith("["):
            if given is not None:
                break  # of several with one name the first counts
            within = line == f"[{name}]"
            given = {} if within else None
        elif within and given is not None:
            key, equals, value = line.partition("=")
            key = key.strip()
            if not equals or key not in _SERVICE:
                raise Unusable(f"line {number} of the file of services sets no parameter that is read here")
            given.setdefault(key, value.strip())
    return given
