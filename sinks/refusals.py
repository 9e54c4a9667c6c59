"""What a server says that is there and refuses to write: it is full, read-only, or doesn't allow it."""

from __future__ import annotations

from functools import cache

import asyncpg

from errors import named
from wire import denied
from wire.refused import AccessRefused, chain


@cache
def _reasons() -> tuple[tuple[type[BaseException], str], ...]:
    from redis import (
        exceptions,
    )  # when it is needed: every command that only prints its help loads this module

    return (
        (exceptions.OutOfMemoryError, "it is full"),
        (exceptions.ReadOnlyError, "it is a replica"),
        (exceptions.NoPermissionError, "it doesn't allow it"),
        (exceptions.AuthenticationError, "it refuses the login"),
        (asyncpg.DiskFullError, "its disk is full"),
        (asyncpg.ReadOnlySQLTransactionError, "it is read-only, as a standby is"),
        (asyncpg.InsufficientPrivilegeError, "it doesn't allow it"),
        (asyncpg.InvalidAuthorizationSpecificationError, "it refuses the login"),
        (asyncpg.InsufficientResourcesError, "it has no room left"),
        (exceptions.ResponseError, ""),
    )


def refusal(error: BaseException) -> str | None:
    """Why a server that is there refuses to write, in one line; None: nothing says that it is there. Pure."""
    for kind, why in _reasons():
        if isinstance(error, kind):
            if str(error).startswith("MISCONF"):
                why = "its disk refuses its snapshots"
            return f"{why}: {named(error)}" if why else named(error)
    for cause in chain(error):
        if isinstance(cause, AccessRefused):
            return named(cause)
    lacking = denied.acl(error)
    return None if lacking is None else f"this client lacks the ACL {lacking}"


def told(server: str, seconds: float, why: str | None) -> str:
    """That a server refuses to write, by `refusal`, or that it hasn't answered. Pure."""
    if why is None:
        return f"{server} hasn't answered for {seconds:.0f} s"
    return f"{server} answers, but has refused to write for {seconds:.0f} s: {why}"
