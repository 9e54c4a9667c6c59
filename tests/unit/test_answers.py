"""What is told of a server that didn't do what it was asked."""

from __future__ import annotations

import ssl

import asyncpg
import pytest
from aiokafka.errors import KafkaConnectionError, TopicAuthorizationFailedError
from redis.exceptions import AuthenticationError, NoPermissionError
from redis.exceptions import ConnectionError as RedisConnectionError

from operations.answers import failed, refused
from wire import denied
from wire.refused import LoginRefused


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            asyncpg.InsufficientPrivilegeError("permission denied for table t"),
            "doesn't allow it: permission denied for table t; see orders grants postgres",
        ),
        (asyncpg.InvalidPasswordError("wrong\none"), "refuses the login: wrong one"),
        (AuthenticationError("WRONGPASS"), "refuses the login: WRONGPASS"),
        (
            NoPermissionError("no permissions to run the 'ping' command"),
            "doesn't allow it: no permissions to run the 'ping' command; see orders grants redis",
        ),
        (
            TopicAuthorizationFailedError({"orders.dlq"}),
            "doesn't allow the operation on Topic orders.dlq; see orders grants kafka",
        ),
        (
            LoginRefused("the broker refuses the login", "check it"),
            "can't be used: the broker refuses the lo",
        ),
    ],
)
def test_a_server_that_refuses_is_there(monkeypatch: pytest.MonkeyPatch, error: Exception, says: str) -> None:
    monkeypatch.setattr(denied, "_noted", {})  # of tests before this one
    assert failed(error) == refused(error)
    assert failed(error).startswith(says)


def test_a_certificate_that_is_not_trusted_is_found_behind_what_hides_it() -> None:
    untrusted = ssl.SSLCertVerificationError(1, "no")
    untrusted.verify_message = "self-signed certificate."
    hidden = RedisConnectionError("Error 1 connecting")
    hidden.__cause__ = untrusted
    for error in (untrusted, hidden):
        assert failed(error) == "has a certificate that isn't trusted: self-signed certificate"


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (TimeoutError(), "doesn't answer: TimeoutError"),
        (ConnectionRefusedError(111, "no"), "doesn't answer: ConnectionRefusedError: [Errno 111] no"),
        (RedisConnectionError("Error 111"), "doesn't answer: ConnectionError: Error 111"),
        (KafkaConnectionError("x"), "doesn't answer: KafkaConnectionError: "),
        (asyncpg.AdminShutdownError("going"), "doesn't answer: AdminShutdownError: going"),
    ],
)
def test_a_server_of_which_nothing_says_that_it_is_there(error: Exception, says: str) -> None:
    assert refused(error) is None
    assert failed(error).startswith(says)
