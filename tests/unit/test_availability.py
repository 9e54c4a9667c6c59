"""Since when a server hasn't answered."""

from __future__ import annotations

import pytest

from sinks.availability import PATIENCE, Availability


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Refused(Exception):
    """A server that is there says no."""


def call(server: Availability, clock: Clock, seconds: float, error: BaseException) -> None:
    """A call that ends so after some seconds."""
    with server.asked():
        clock.now += seconds
        raise error


def test_it_is_away_from_the_first_of_the_calls_that_fail_in_a_row() -> None:
    clock = Clock()
    server = Availability((Refused,), clock)
    assert server.away() == 0
    for _ in range(3):
        with pytest.raises(ConnectionError):
            call(server, clock, 1, ConnectionError())
    assert server.away() == 3
    with server.asked():
        pass
    assert server.away() == 0


def test_a_refusal_is_an_answer() -> None:
    clock = Clock()
    server = Availability((Refused,), clock)
    with pytest.raises(ConnectionError):
        call(server, clock, 1, ConnectionError())
    assert server.away() == 1
    with pytest.raises(Refused):
        call(server, clock, 1, Refused())
    assert server.away() == 0


def test_a_call_without_an_answer_counts_once_it_takes_too_long() -> None:
    clock = Clock()
    server = Availability((), clock)
    with server.asked():
        clock.now += PATIENCE
        assert server.away() == 0
        clock.now += 1
        with server.asked():
            assert server.away() == PATIENCE + 1
        assert server.away() == PATIENCE + 1
    assert server.away() == 0


def test_a_call_that_its_caller_gives_up_says_nothing() -> None:
    clock = Clock()
    server = Availability((), clock)
    with pytest.raises(KeyboardInterrupt):
        call(server, clock, PATIENCE + 1, KeyboardInterrupt())
    assert server.away() == 0
