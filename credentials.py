"""Secrets among the settings, and the URLs that may hold some.

None of them shows what is secret, as text, in a log, in an error or in a dump. Each may lie in a file: then
it is read again whenever a client asks for it, so that a secret can be changed without a restart.
"""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Self
from urllib.parse import parse_qsl, unquote

from pydantic import GetCoreSchemaHandler, SecretStr
from pydantic_core import CoreSchema, core_schema

log = logging.getLogger(__name__)

_PARTS: Final = re.compile(
    r"(?P<scheme>[a-z]+(?:\+[a-z]+)?)://(?:(?P<user>[^:/?#\[\]@]*)(?::(?P<password>[^/?#\[\]@]*))?@)?(?P<hosts>[^/?#@]*)"
    r"(?P<path>/[^?#@:]*)?(?:\?(?P<query>[^#@]*))?"
)
MOST_BYTES: Final = 1 << 16
"""Of a file that holds a secret."""
_HOST: Final = re.compile(r"(?:\[[0-9A-Za-z:.%]+\]|[\w.~%-]+)(?::(?P<port>[0-9]{1,5}))?")


class Secret(SecretStr):
    """A text that nothing shows. Only the client that needs it may call get_secret_value()."""

    def __init__(self, value: str) -> None:
        super().__init__(self._usable_text(value))
        self._variable = ""
        self._path: Path | None = None
        self._check: Callable[[str], object] | None = None
        self._kept = False
        """Whether the file could not be read at the last attempt, and that has been said."""

    @classmethod
    def from_file(cls, variable: str, path: Path, check: Callable[[str], object] | None = None) -> Self:
        """The text of a file without the newline at its end, read again by each get_secret_value().

        `variable` names the setting. `check` raises ValueError for a text that can't be used. Reads the file.
        Raises ValueError, without repeating the text, for a file that can't be read or used.
        """
        try:
            text = _text(path)
            if check is not None:
                check(text)
            secret = cls(text)
        except (OSError, ValueError) as error:
            # It may be the secret itself, where somebody meant the other variable.
            shown = path if path.is_absolute() or path.exists() else "***"
            raise ValueError(f"{variable}={shown}: {_why(error)}") from None
        secret._variable, secret._path, secret._check = variable, path, check
        return secret

    def get_secret_value(self) -> str:
        """Return what is hidden; of a file, what it has now. Reads the file.

        A file that can't be read, or whose text can't be used, changes nothing: the last text stays, and
        the log says so once.
        """
        if self._path is not None:
            try:
                text = _text(self._path)
                if self._check is not None:
                    self._check(text)
                self._secret_value = self._usable_text(text)
            except (OSError, ValueError) as error:
                if not self._kept:
                    log.warning(
                        "%s=%s: %s; what it had before stays in use", self._variable, self._path, _why(error)
                    )
                self._kept = True
            else:
                self._kept = False
        return self._secret_value

    def _usable_text(self, value: str) -> str:
        """The value. Raises ValueError, without repeating it, if it can't be used."""
        return value

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validated, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def _validated(cls, value: Any) -> Self:
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            raise ValueError(cls._refusal())
        return cls(value)

    @classmethod
    def _refusal(cls) -> str:
        return "must be text"


def read_file(path: Path, most: int) -> bytes:
    """What a file holds, of a larger one `most` + 1 bytes. Symbolic links are followed.

    Raises OSError, also for a pipe or a device: reading it would wait for somebody who writes, and what is
    read again would find it empty. Doesn't block beyond the disk.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "a pipe or a device is no file that can be read again", str(path))
        return file.read(most + 1)


def _text(path: Path) -> str:
    data = read_file(path, MOST_BYTES)
    if len(data) > MOST_BYTES:
        raise ValueError(f"more than {MOST_BYTES:,} bytes, so it is no secret")
    text = data.decode()
    return text.removesuffix("\n").removesuffix("\r")


def _why(error: OSError | ValueError) -> str:
    if isinstance(error, UnicodeDecodeError):  # it would repeat a byte
        return "the file isn't UTF-8"
    return error.strerror or type(error).__name__ if isinstance(error, OSError) else str(error)


class Name:
    """A user's name: no secret, but it may lie in a file beside its password, and is read as that is."""

    def __init__(self, value: str | Secret) -> None:
        self._text = Secret(value) if isinstance(value, str) else value

    @classmethod
    def from_file(cls, variable: str, path: Path) -> Self:
        """See Secret.from_file."""
        return cls(Secret.from_file(variable, path))

    def __str__(self) -> str:
        return self._text.get_secret_value()

    def __repr__(self) -> str:
        return repr(str(self))

    def __bool__(self) -> bool:
        return bool(str(self))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Name) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls._validated, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def _validated(cls, value: Any) -> Self:
        if isinstance(value, cls):
            return value
        if not isinstance(value, str):
            raise ValueError("must be text")
        return cls(value)


class ServerUrl(Secret):
    """A server's URL, which may hold passwords. Only the server's client may call get_secret_value().

    As text, in logs, in errors and in dumps it shows only where the server is, never what stands before the @
    or after the ?. Raises ValueError, without repeating the URL, if its parts are ambiguous. Never blocks.
    """

    schemes: ClassVar[tuple[str, ...]] = ()
    example: ClassVar[str] = ""

    def _usable_text(self, value: str) -> str:
        parts = _PARTS.fullmatch(value) if value.isprintable() and " " not in value else None
        if (
            parts is None
            or parts["scheme"] not in self.schemes
            or not self._usable(parts["scheme"], parts["hosts"], parts["path"] or "")
        ):
            raise ValueError(self._refusal())
        if not _is_query(parts["query"] or ""):
            raise ValueError(self._refusal())
        named = parse_qsl(parts["query"] or "", keep_blank_values=True)
        self._check_query(parts["scheme"], named)
        self._check_twice(parts.groupdict(default=""), {name for name, _ in named})
        hidden = "***@" if parts["user"] or parts["password"] else ""
        query = "?***" if parts["query"] else ""
        self._shown = f"{parts['scheme']}://{hidden}{parts['hosts']}{parts['path'] or ''}{query}"
        return value

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown!r})"

    @classmethod
    def _refusal(cls) -> str:
        return (
            f"must look like {cls.example}; in a name or password, / ? # [ ] @ are written %2F %3F %23 %5B"
            " %5D %40"
        )

    @classmethod
    def _usable(cls, scheme: str, hosts: str, path: str) -> bool:
        raise NotImplementedError

    @classmethod
    def _check_query(cls, scheme: str, query: list[tuple[str, str]]) -> None:
        """Raise ValueError for a parameter that the client can't use, without repeating what isn't known."""

    @classmethod
    def _check_twice(cls, parts: Mapping[str, str], named: Collection[str]) -> None:
        """Raise ValueError for what a part of the URL and a parameter of the query (`named`) say, where the
        client would take one of them without a word.
        """


class PostgresUrl(ServerUrl):
    """A URL of PostgreSQL, as asyncpg reads it: several hosts with commas, none for a socket."""

    schemes = ("postgresql", "postgres")
    example = "postgresql://user:password@host:port/database"

    @classmethod
    def _usable(cls, scheme: str, hosts: str, path: str) -> bool:
        return not hosts or all(map(_is_host, hosts.split(",")))

    @classmethod
    def _check_twice(cls, parts: Mapping[str, str], named: Collection[str]) -> None:
        # To libpq the last one counts, to asyncpg the first.
        port = re.search(r":[0-9]+(?:,|$)", parts["hosts"])
        for name, before, where in (
            ("user", parts["user"], "before the @"),
            ("password", parts["password"], "before the @"),
            ("host", parts["hosts"], "before the path"),
            ("port", port, "before the path"),
            ("dbname", parts["path"][1:], "in the path"),
            ("database", parts["path"][1:], "in the path"),
        ):
            if before and name in named:
                raise ValueError(f"{name} stands {where} and behind the ?; leave one")


class Refusal(NamedTuple):
    """What Postgres says when a connection is refused, without what its URL holds: users, passwords, values
    of parameters. `parameter`: whether one of these is to blame.
    """

    text: str
    parameter: bool = False

    @classmethod
    def of(cls, url: str, state: str, message: str, own: Collection[str] = ()) -> Self:
        """`state`: the SQLSTATE; `message`: what the server says, in its language; `own`: names of parameters
        that are this program's. Never raises.
        """
        place, _, query = url.partition("?")
        given = parse_qsl(query, keep_blank_values=True)
        if state == "08P01" and ": " in message:  # a pooler repeats the name of a parameter
            what, _, name = message.partition(": ")
            return cls(message if name in own else what)
        # A name that the server knows is no secret; it also says one that it doesn't.
        named = [name for name, _ in given if re.search(rf"\b{re.escape(name)}\b", message)]
        of_name = state in ("42704", "42601")
        if given and (state[:2] == "22" or of_name or state == "55P02" or (named and state == "42501")):
            known = ", ".join(named) if named and not of_name else "a parameter"
            return cls(
                f"the server refuses {known} behind the ? of the URL; correct it, or take it out", True
            )
        login = place.partition("://")[2].partition("/")[0].rpartition("@")[0]
        secret = [*map(unquote, login.split(":", 1)), *(value for _, value in given)]
        for text in sorted({each for each in secret if each}, key=len, reverse=True):
            # Names are cut at 63 bytes.
            short = text.encode()[:63].decode(errors="ignore")
            for each in (text, short):
                message = re.sub(rf"(?<!\w){re.escape(each)}(?!\w)", "***", message)
        return cls(message)


class RedisUrl(ServerUrl):
    """A URL of Redis, as redis-py reads it; or of its Sentinels, as sinks.clients does.

    Only parameters of REDIS_PARAMETERS may stand behind the ?, each once: redis-py hands others, as text, to
    whatever of it has an argument of that name.
    """

    schemes = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
    example = "redis://user:password@host:port/db"

    @classmethod
    def _usable(cls, scheme: str, hosts: str, path: str) -> bool:
        if scheme.endswith("+sentinel"):
            return all(map(_is_host, hosts.split(","))) and bool(re.fullmatch(r"/[\w.-]+(?:/[0-9]*)?", path))
        return (not hosts and len(path) > 1) or (
            _is_host(hosts) and bool(re.fullmatch(r"(?:/[0-9]*)?", path))
        )

    @classmethod
    def _check_query(cls, scheme: str, query: list[tuple[str, str]]) -> None:
        names = [name for name, _ in query]
        for name, value in query:
            form = REDIS_PARAMETERS.get(name)
            if form is None:
                # Its name isn't repeated: what isn't known may be a password.
                raise ValueError(
                    f"a parameter behind the ? is none that is read here; take it out, or take one of"
                    f" {', '.join(REDIS_PARAMETERS)}"
                )
            if names.count(name) > 1:
                raise ValueError(f"{name} stands there more than once; leave one")
            if not form.pattern.fullmatch(value):
                raise ValueError(f"{name} must be {form.what}; correct it, or take it out")
            if name.startswith("ssl_") and not scheme.startswith("rediss"):
                raise ValueError(
                    f"{name} is for {'rediss+sentinel' if 'sentinel' in scheme else 'rediss'}://"
                )
            if name.startswith("sentinel_") and "sentinel" not in scheme:
                raise ValueError(f"{name} is for redis+sentinel://")
            if name == "socket_keepalive" and scheme == "unix":
                raise ValueError(f"{name} is for TCP; take it out")

    @classmethod
    def _check_twice(cls, parts: Mapping[str, str], named: Collection[str]) -> None:
        # Of Sentinels the database stands behind the service's name; a socket's path is a path.
        folders = 2 if parts["scheme"].endswith("+sentinel") else 1
        database = "" if parts["scheme"] == "unix" else "".join(parts["path"].split("/")[folders:])
        for name, before, where in (
            ("username", parts["user"], "before the @"),
            ("password", parts["password"], "before the @"),
            ("db", database, "in the path"),
        ):
            if before and name in named:
                raise ValueError(f"{name} stands {where} and behind the ?; leave one")


class _Form(NamedTuple):
    """What a parameter's value must be: in words, and its pattern."""

    what: str
    pattern: re.Pattern[str]


_ANY: Final = _Form("text", re.compile(r"[^\x00]+"))
_PRINTED: Final = _Form("text without spaces", re.compile(r"[!-~]+"))
_WHOLE: Final = _Form("a whole number", re.compile(r"[0-9]{1,9}"))
_ABOVE_0: Final = _Form("a whole number above 0", re.compile(r"0*[1-9][0-9]{0,8}"))
_SECONDS: Final = _Form("seconds above 0, such as 1.5", re.compile(r"(?=.*[1-9])[0-9]{1,6}(?:\.[0-9]{1,6})?"))
_YES: Final = _Form("true or false", re.compile(r"1|0|t|f|true|false|y|n|yes|no", re.IGNORECASE))
REDIS_PARAMETERS: Final[Mapping[str, _Form]] = {
    "username": _ANY,
    "password": _ANY,
    "sentinel_username": _ANY,
    "sentinel_password": _ANY,
    "db": _WHOLE,
    "client_name": _PRINTED,
    "protocol": _Form("2 or 3", re.compile("[23]")),
    "socket_timeout": _SECONDS,
    "socket_connect_timeout": _SECONDS,
    "socket_keepalive": _YES,
    "retry_on_timeout": _YES,
    "health_check_interval": _WHOLE,
    "max_connections": _ABOVE_0,
    "ssl_ca_certs": _ANY,
    "ssl_ca_path": _ANY,
    "ssl_certfile": _ANY,
    "ssl_keyfile": _ANY,
    "ssl_password": _ANY,
    "ssl_cert_reqs": _Form("none, optional or required", re.compile("none|optional|required")),
    "ssl_check_hostname": _YES,
    "ssl_min_version": _Form("771 (TLS 1.2) or 772 (TLS 1.3)", re.compile("77[12]")),
    "ssl_ciphers": _ANY,
}
"""Parameters of a URL of Redis. Those of redis-py that would change what commands answer (decode_responses),
or that no text can be (retry), aren't among them.
"""


_JWKS_URL: Final = re.compile(
    r"((?:https://[^/?#@\s]+|http://(?:localhost|127\.0\.0\.1|\[::1\])(?::[0-9]{1,5})?)(?:/[^?@#\s]*)?)(\?[^@#\s]*)?"
)


class JwksPlace(Secret):
    """Where an issuer's keys are: a file, or a URL, of which nothing shows what stands behind the ?."""

    def _usable_text(self, value: str) -> str:
        self._shown = value
        self.is_url = "://" in value
        """Whether it is a URL, not a file."""
        if self.is_url:
            # Over plain HTTP somebody on the way could put keys of their own in place of the issuer's.
            parts = _JWKS_URL.fullmatch(value)
            if parts is None:
                raise ValueError("must be a file or an https URL (http only of loopback), without a password")
            self._shown = f"{parts[1]}?***" if parts[2] else parts[1]
        return value

    def __str__(self) -> str:
        return self._shown

    def __repr__(self) -> str:
        return f"JwksPlace({self._shown!r})"


def _is_host(text: str) -> bool:
    host = _HOST.fullmatch(text)
    return host is not None and int(host["port"] or 0) <= 65535


def _is_query(text: str) -> bool:
    try:
        return all(
            re.fullmatch(r"[A-Za-z_][\w.]*", name)
            for name, _ in parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text))
        )
    except ValueError:
        return False
