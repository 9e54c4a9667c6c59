"""What a connection to a broker needs to be let in: certificates, a password, a token. They are read when the
connection is made, so what has changed meanwhile needs no restart.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import json
import logging
import os
import re
import shlex
import signal
import ssl
import subprocess
import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol

from aiokafka.abc import AbstractTokenProvider

from credentials import read_file
from errors import OrdersError
from wire.refused import AccessRefused, NoToken

log = logging.getLogger(__name__)

COMMAND_SECONDS: Final = 20.0
"""Seconds that a command has to print a token."""
MARGIN: Final = 60.0
"""Seconds before its end from which on a token isn't used for a new connection any more; of one that lives
shorter than ten times as long, a tenth of its life.
"""
MOST_BYTES: Final = 1 << 16
"""Of a file that holds a token."""
_TOKEN: Final = re.compile(r"[!-~]+")


class Hidden(Protocol):
    """A secret."""

    def get_secret_value(self) -> str:
        """What is hidden, as it is now. May read a file."""


class SecuritySettings(Protocol):
    """How a program gets into the brokers."""

    @property
    def kafka_security_protocol(self) -> str:
        """PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL."""

    @property
    def kafka_sasl_mechanism(self) -> str | None:
        """PLAIN, SCRAM-SHA-256, SCRAM-SHA-512 or OAUTHBEARER; for SASL_PLAINTEXT and SASL_SSL."""

    @property
    def kafka_sasl_username(self) -> object:
        """For all but OAUTHBEARER. str() says what it is now, and may read a file."""

    @property
    def kafka_sasl_password(self) -> Hidden:
        """For all but OAUTHBEARER."""

    @property
    def kafka_ssl_cafile(self) -> Path | None:
        """Whose certificates are trusted; None: the machine's."""

    @property
    def kafka_ssl_certfile(self) -> Path | None:
        """This client's certificate, if it has one."""

    @property
    def kafka_ssl_keyfile(self) -> Path | None:
        """Its key; None: in the same file."""

    @property
    def kafka_ssl_key_password(self) -> Hidden:
        """Of the key; empty: it has none."""

    @property
    def kafka_oauth_token_file(self) -> Path | None:
        """For OAUTHBEARER: this or the command."""

    @property
    def kafka_oauth_token_command(self) -> Hidden:
        """For OAUTHBEARER: program and arguments; empty: the file."""

    @property
    def oauth_extensions(self) -> Mapping[str, str]:
        """For OAUTHBEARER: what is sent with the token."""


class BadFile(OrdersError):
    """A certificate or a key that can't be read or used."""

    remedy = "check the file and who may read it"


class Access(AbstractTokenProvider):  # type: ignore[misc]
    """How the connections of one client get in, and why the last one did not.

    aiokafka hands it to each connection as the provider of tokens, whatever the mechanism is.
    """

    def __init__(self, settings: SecuritySettings) -> None:
        """Read the files, so that a program ends at its start if one can't be used. Raises BadFile."""
        self._settings = settings
        self._tls = (
            _certificates(settings.kafka_ssl_cafile, settings.kafka_ssl_certfile, settings.kafka_ssl_keyfile)
            if settings.kafka_security_protocol.endswith("SSL")
            else None
        )
        self.shown = ""
        """The token that a broker was shown last."""
        self._command = settings.kafka_oauth_token_command.get_secret_value()
        self.refusal: AccessRefused | None = None
        """Why a broker refused the last connection that it refused, until one is let in."""
        self.options()

    def options(self) -> dict[str, Any]:
        """Keyword arguments of a client's and a connection's, as they are now. Reads files.

        Raises BadFile for certificates that could never be used. Those that can't be used any more are
        used as they were.
        """
        settings = self._settings
        options: dict[str, Any] = {
            "security_protocol": settings.kafka_security_protocol,
            "sasl_oauth_token_provider": self,
        }
        if self._tls is not None:
            options["ssl_context"] = self._tls.context(settings.kafka_ssl_key_password.get_secret_value())
        if settings.kafka_sasl_mechanism is not None:
            options["sasl_mechanism"] = settings.kafka_sasl_mechanism
            if settings.kafka_sasl_mechanism != "OAUTHBEARER":
                options["sasl_plain_username"] = str(settings.kafka_sasl_username)
                options["sasl_plain_password"] = settings.kafka_sasl_password.get_secret_value()
        return options

    @property
    def login(self) -> str:
        """What is tried, for a person: no secret. May read a file."""
        user = str(self._settings.kafka_sasl_username)
        return f"{f'of {user} ' if user else ''}by {self._settings.kafka_sasl_mechanism}"

    async def token(self) -> str:
        """The token of OAUTHBEARER. Blocks while the command runs. Raises NoToken."""
        self.shown = await self._token()
        return self.shown

    def extensions(self) -> dict[str, str]:
        """What is sent with the token of OAUTHBEARER."""
        return dict(self._settings.oauth_extensions)

    async def _token(self) -> str:
        if self._command:
            return await _tokens(self._command).get()
        path = self._settings.kafka_oauth_token_file
        assert path is not None, "the settings have been checked"
        try:
            data = read_file(path, MOST_BYTES)
            if len(data) > MOST_BYTES:
                raise ValueError(f"more than {MOST_BYTES:,} bytes")
            return _parsed(data.decode())[0]
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            raise NoToken(
                f"no token in ORDERS_KAFKA_OAUTH_TOKEN_FILE={path} ({why})", "see what should write it"
            ) from None

    def refused(self, refusal: AccessRefused) -> None:
        """A broker didn't let a connection in."""
        self.refusal = refusal
        if self._command:
            _tokens(self._command).forget()


class _Certificates:
    """An SSL context that is made again when a file of it has changed."""

    def __init__(self, ca: Path | None, certificate: Path | None, key: Path | None) -> None:
        self._ca, self._certificate, self._key = ca, certificate, key
        self._made: ssl.SSLContext | None = None
        self._of: object = None
        self._kept = False

    def context(self, password: str) -> ssl.SSLContext:
        try:
            of = (password, *map(_stamp, (self._ca, self._certificate, self._key)))
            if self._made is None or of != self._of:
                self._made, self._of = self._make(password), of
                self._kept = False
        except BadFile as error:
            if self._made is None:
                raise
            if not self._kept:
                log.warning("%s; what they were before stays in use", error.message)
            self._kept = True
        return self._made

    def _make(self, password: str) -> ssl.SSLContext:
        for name, path in (("CAFILE", self._ca), ("CERTFILE", self._certificate), ("KEYFILE", self._key)):
            if path is not None:
                try:
                    read_file(path, 0)
                except OSError as error:
                    raise BadFile(f"ORDERS_KAFKA_SSL_{name}={path}: {error.strerror}") from None
        try:
            context = ssl.create_default_context(cafile=self._ca)
        except ssl.SSLError as error:
            raise BadFile(
                f"ORDERS_KAFKA_SSL_CAFILE={self._ca} holds no certificates ({error.reason})"
            ) from None
        if self._certificate is not None:
            try:
                # Without a function OpenSSL would ask the terminal for a password.
                context.load_cert_chain(self._certificate, self._key, password=lambda: password)
            except (ssl.SSLError, ValueError) as error:
                key = self._key or self._certificate
                raise BadFile(
                    f"ORDERS_KAFKA_SSL_CERTFILE={self._certificate} with its key in {key} can't be used"
                    f" ({_mistake(error, bool(password))})"
                ) from None
        return context


def _mistake(error: Exception, password: bool) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "the key is of another certificate"
    if reason in (None, "BAD_DECRYPT", "BAD_PASSWORD_READ"):
        return (
            "damaged, or the password of the key is wrong"
            if password
            else "damaged, or the key needs ORDERS_KAFKA_SSL_KEY_PASSWORD"
        )
    return str(reason)


def _stamp(path: Path | None) -> object:
    if path is None:
        return None
    try:
        status = path.stat()
    except OSError as error:
        return error.errno
    return status.st_mtime_ns, status.st_size, status.st_ino


@lru_cache(maxsize=4)
def _certificates(ca: Path | None, certificate: Path | None, key: Path | None) -> _Certificates:
    return _Certificates(ca, certificate, key)


class _Tokens:
    """What a command prints, as long as it may be used. For all clients: it takes its time."""

    def __init__(self, command: str) -> None:
        self._arguments = shlex.split(command)
        self._token = ""
        self._until = 0.0

    def forget(self) -> None:
        self._until = 0.0

    async def get(self) -> str:
        if time.time() >= self._until:
            # In a thread: a loop that isn't the main thread's may not be told when a process ends.
            printed = await asyncio.get_running_loop().run_in_executor(None, self._run)
            try:
                token, end = _parsed(printed)
            except ValueError as error:
                raise self._failed(f"printed no token ({error})") from None
            now = time.time()
            self._token, self._until = token, end - min(MARGIN, (end - now) / 10) if end else 0.0
            return token
        return self._token

    def _run(self) -> str:
        """Its output. Raises NoToken. Nothing that it prints is told: it may be secret."""
        try:
            process = subprocess.Popen(
                self._arguments,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise self._failed(f"can't be started ({error.strerror})") from None
        with process:
            try:
                printed, _ = process.communicate(timeout=COMMAND_SECONDS)
            except subprocess.TimeoutExpired:
                # With what it has started: that may hold the pipe, and be what hangs.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                raise self._failed(f"took longer than {COMMAND_SECONDS:g} s") from None
        if process.returncode:
            raise self._failed(f"ended with exit code {process.returncode}")
        return printed.decode("utf-8", "replace")

    @staticmethod
    def _failed(how: str) -> NoToken:
        return NoToken(
            f"ORDERS_KAFKA_OAUTH_TOKEN_COMMAND {how}", "run it by hand: what it prints isn't told here"
        )


@lru_cache(maxsize=4)
def _tokens(command: str) -> _Tokens:
    return _Tokens(command)


def _parsed(text: str) -> tuple[str, float]:
    """The token in a text, and when it ends by its own word, in seconds since 1970; 0: not known.
    Raises ValueError without repeating the text.
    """
    token, end = text.strip(), 0.0
    if token.startswith("{"):
        try:
            answer = json.loads(token)
        except (ValueError, RecursionError):
            raise ValueError("it looks like JSON, and isn't") from None
        token = str(answer.get("access_token") or "")
        seconds = answer.get("expires_in")
        if isinstance(seconds, int | float) and seconds > 0:
            end = time.time() + seconds
    if not token:
        raise ValueError("it is empty")
    if not _TOKEN.fullmatch(token):
        raise ValueError("it has characters that no token has")
    return token, _end_of(token) or end


def _end_of(token: str) -> float:
    parts = token.split(".")
    if len(parts) != 3:
        return 0.0
    try:
        claims = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
        return float(claims["exp"])
    except (binascii.Error, ValueError, KeyError, TypeError, RecursionError):
        return 0.0
