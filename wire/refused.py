"""Why a broker that is there doesn't let a client in.

aiokafka logs that and raises that no broker could be reached, which sends the reader the wrong way. So each
connection says why it was refused, and wire.client passes it on.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from typing import Any, Final

from aiokafka.errors import (
    IllegalSaslStateError,
    KafkaConnectionError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)

from errors import OrdersError

_EXPIRED: Final = 10
_NOT_YET: Final = 9
_OTHER_NAME: Final = frozenset({62, 64})
"""Verify codes of OpenSSL (X509_V_ERR_...)."""

_LOGIN: Final = (SaslAuthenticationFailed, UnsupportedSaslMechanismError, IllegalSaslStateError)


class AccessRefused(KafkaConnectionError, OrdersError):  # type: ignore[misc]
    """A broker is there, and no connection to it can be used. To a program that runs, an outage like another:
    who mends it needn't restart anything.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        OrdersError.__init__(self, message, remedy)

    def __str__(self) -> str:
        return OrdersError.__str__(self)


class LoginRefused(AccessRefused):
    """The broker refuses the login."""


class NotTrusted(AccessRefused):
    """The broker's certificate isn't trusted."""


class CertificateRefused(AccessRefused):
    """The broker wants a certificate of this client, or another one."""

    remedy = (
        "set ORDERS_KAFKA_SSL_CERTFILE and ORDERS_KAFKA_SSL_KEYFILE to a certificate, not expired, of an"
        " authority that the brokers trust"
    )


class OtherProtocol(AccessRefused):
    """The broker's listener expects something else than this client sends."""

    remedy = "set ORDERS_KAFKA_SECURITY_PROTOCOL to what this listener speaks, or ORDERS_KAFKA to another one"


class NoToken(AccessRefused):
    """There is no token to log in with."""


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those that caused it, the nearest first. Pure."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def refusal(error: BaseException, where: str, protocol: str, login: str) -> AccessRefused | None:
    """Why the broker at `where` (host:port) doesn't let us in; None if the error doesn't say so. Pure.

    `protocol`: PLAINTEXT and so on. `login`: what was tried, for a person.
    """
    for cause in chain(error):
        if isinstance(cause, AccessRefused):
            return cause
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _not_trusted(cause, where)
        if isinstance(cause, ssl.SSLError):
            return _tls(cause, where)
        if isinstance(cause, _LOGIN):
            return _login(cause, where, login)
        if isinstance(cause, EOFError | ConnectionError):
            if isinstance(cause, ConnectionRefusedError):
                return None
            return _hung_up(where, protocol)
    return None


def _not_trusted(error: ssl.SSLCertVerificationError, where: str) -> AccessRefused:
    message = f"the certificate of the broker at {where} isn't trusted: {error.verify_message.rstrip('.')}"
    if error.verify_code == _EXPIRED:
        return NotTrusted(message, "have the broker's certificate renewed")
    if error.verify_code == _NOT_YET:
        return NotTrusted(message, "check this machine's clock, and when the broker's certificate begins")
    if error.verify_code in _OTHER_NAME:
        return NotTrusted(
            message,
            "reach the brokers by a name that is in their certificates (ORDERS_KAFKA, and the brokers'"
            " advertised.listeners)",
        )
    return NotTrusted(
        message, "set ORDERS_KAFKA_SSL_CAFILE to the certificate of the authority that signs the brokers'"
    )


def _tls(error: ssl.SSLError, where: str) -> AccessRefused:
    reason = (error.reason or "").replace("_", " ").lower()
    if "CERTIFICATE" in (error.reason or "") or "UNKNOWN_CA" in (error.reason or ""):
        return CertificateRefused(f"the broker at {where} refuses this client's certificate ({reason})")
    return OtherProtocol(f"no TLS with the broker at {where} ({reason or type(error).__name__})")


def _login(error: Any, where: str, login: str) -> AccessRefused:
    said = " ".join(str(arg) for arg in error.args if isinstance(arg, str)) or type(error).__name__
    message = f"the broker at {where} refuses the login {login}: {' '.join(said.split()).rstrip('.')}"
    if isinstance(error, UnsupportedSaslMechanismError):
        return LoginRefused(message, "set ORDERS_KAFKA_SASL_MECHANISM to one that it has")
    if login.endswith("OAUTHBEARER"):
        return LoginRefused(message, "check who issues the token, for whom it is, and until when")
    return LoginRefused(
        message, "check ORDERS_KAFKA_SASL_USERNAME and ORDERS_KAFKA_SASL_PASSWORD (or its file)"
    )


def _hung_up(where: str, protocol: str) -> AccessRefused | None:
    return OtherProtocol(
        f"the broker at {where} ends each connection at once: it is starting or stopping, or its listener"
        f" doesn't speak {protocol}"
    )
