"""A server that refuses to write isn't one that is silent."""

from __future__ import annotations

import asyncpg
import pytest
from redis import exceptions as redis

from sinks.availability import Availability
from sinks.refusals import refusal, told
from wire.refused import LoginRefused


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (redis.OutOfMemoryError("OOM"), "it is full: OutOfMemoryError: OOM"),
        (redis.ReadOnlyError("READONLY"), "it is a replica: ReadOnlyError: READONLY"),
        (redis.NoPermissionError("this user"), "it doesn't allow it: NoPermissionError: this user"),
        (redis.ResponseError("MISCONF x"), "its disk refuses its snapshots: ResponseError: MISCONF x"),
        (redis.ConnectionError("no route"), None),
        (redis.BusyLoadingError("LOADING"), None),
        (asyncpg.DiskFullError("x"), "its disk is full: DiskFullError: x"),
        (
            asyncpg.ReadOnlySQLTransactionError("x"),
            "it is read-only, as a standby is: ReadOnlySQLTransactionError: x",
        ),
        (asyncpg.TooManyConnectionsError("x"), "it has no room left: TooManyConnectionsError: x"),
        (asyncpg.CannotConnectNowError("starting up"), None),
        (LoginRefused("no", "set it"), "LoginRefused: no; set it"),
        (OSError("no route"), None),
        (TimeoutError(), None),
    ],
)
def test_what_a_server_refuses_is_told(error: Exception, expected: str | None) -> None:
    assert refusal(error) == expected
    server = Availability()
    with pytest.raises(type(error)), server.asked():
        raise error
    assert server.refusal == expected
    with server.asked():
        pass
    assert server.refusal is None


def test_who_refuses_is_not_told_to_be_silent() -> None:
    assert told("redis", 11.2, None) == "redis hasn't answered for 11 s"
    refuses = told("redis", 11.2, "it is full: OOM")
    assert refuses == "redis answers, but has refused to write for 11 s: it is full: OOM"
