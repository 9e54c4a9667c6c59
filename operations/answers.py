"""What to tell a person of a server that was asked and didn't do it: words that follow the server's name."""

from __future__ import annotations

import ssl

import asyncpg
from redis.exceptions import AuthenticationError, NoPermissionError

from errors import OrdersError, named
from wire import denied
from wire.refused import chain


def failed(error: BaseException) -> str:
    """Why it didn't: what refused() says, or "doesn't answer: ...". In one line. Never blocks."""
    return refused(error) or f"doesn't answer: {named(error)}"


def refused(error: BaseException) -> str | None:
    """What a server that is there doesn't do, and where to look; None: nothing says that it is there.
    In one line. Never blocks.
    """
    if isinstance(error, OrdersError):
        return f"can't be used: {_line(error)}"
    if isinstance(error, asyncpg.ClientConfigurationError):
        return f"can't be used: {_line(error).partition(', got ')[0]}"  # what it got may be a secret
    if isinstance(error, asyncpg.InvalidAuthorizationSpecificationError | AuthenticationError):
        return f"refuses the login: {_line(error)}"
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        return f"doesn't allow it: {_line(error)}; see orders grants postgres"
    if isinstance(error, NoPermissionError):
        return f"doesn't allow it: {_line(error)}; see orders grants redis"
    for cause in chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"has a certificate that isn't trusted: {cause.verify_message.rstrip('.')}"
    lacking = denied.acl(error)
    return None if lacking is None else f"doesn't allow {lacking}; see orders grants kafka"


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())
