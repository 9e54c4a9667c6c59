"""Secrets among the settings, and the URLs that may hold some.

None of them shows what is secret, as text, in a log, in an error or in a dump. Each may lie in a file: then
it is read again whenever a client asks for it, so that a secret can be changed without a restart.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final, Self
from urllib.parse import parse_qsl

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


def _text(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
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


class PostgresUrl(ServerUrl):
    """A URL of PostgreSQL, as asyncpg reads it: several hosts with commas, none for a socket."""

    schemes = ("postgresql", "postgres")
    example = "postgresql://user:password@host:port/database"

    @classmethod
    def _usable(cls, scheme: str, hosts: str, path: str) -> bool:
        return not hosts or all(map(_is_host, hosts.split(",")))


class RedisUrl(ServerUrl):
    """A URL of Redis, as redis-py reads it; or of its Sentinels, as sinks.clients does."""

    schemes = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
    example = "redis://user:password@host:port/db"

    @classmethod
    def _usable(cls, scheme: str, hosts: str, path: str) -> bool:
        if scheme.endswith("+sentinel"):
            return all(map(_is_host, hosts.split(","))) and bool(re.fullmatch(r"/[\w.-]+(?:/[0-9]*)?", path))
        return (not hosts and len(path) > 1) or (_is_host(hosts) and path[1:].isdecimal() >= bool(path[1:]))


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
