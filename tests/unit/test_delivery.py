"""The error policy: which exceptions wait, which drop, which end the worker."""

from __future__ import annotations

import asyncio
import logging

import asyncpg
import pytest
from aiokafka import errors as kafka

from settings import Settings
from streams.transport.delivery import Delivery, GaveUp, Outcome, Stale, Verdict, judge
from streams.transport.errors import LeaseLost

BUSY = asyncpg.InterfaceError("cannot perform operation: another operation is in progress")

TEMPORARY = [
    kafka.KafkaConnectionError(),
    kafka.RequestTimedOutError(),
    kafka.NotEnoughReplicasError(),
    kafka.OutOfOrderSequenceNumber(),
    LeaseLost(),
    asyncpg.ConnectionDoesNotExistError(),
    asyncpg.SerializationError(),
    asyncpg.DeadlockDetectedError(),
    asyncpg.TooManyConnectionsError(),
    asyncpg.AdminShutdownError(),
    asyncpg.CannotConnectNowError(),
    asyncpg.ReadOnlySQLTransactionError(),
    asyncpg.QueryCanceledError(),
    asyncpg.ForeignKeyViolationError(),
    asyncpg.InvalidPasswordError(),
    asyncpg.InvalidAuthorizationSpecificationError(),
    asyncpg.InsufficientPrivilegeError(),
    asyncpg.ClientConfigurationError("sslrootcert names no file that can be read"),
    asyncpg.InterfaceError("connection is closed"),
    ConnectionRefusedError(),
    OSError(28, "No space left on device"),
    TimeoutError(),
    ExceptionGroup("both", [TimeoutError(), ConnectionResetError()]),
]
BUGS = [
    KeyError("x"),
    ValueError(),
    AssertionError(),
    asyncpg.UndefinedTableError(),
    asyncpg.CheckViolationError(),
    BUSY,
    kafka.MessageSizeTooLargeError(),
    kafka.IllegalStateError(),
    ExceptionGroup("both", [TimeoutError(), KeyError("x")]),
]


@pytest.mark.parametrize("exc", TEMPORARY, ids=repr)
def test_temporary(exc: BaseException) -> None:
    assert judge(exc) is Verdict.TEMPORARY


@pytest.mark.parametrize("exc", BUGS, ids=repr)
def test_bug(exc: BaseException) -> None:
    assert judge(exc) is Verdict.BUG


def test_stale() -> None:
    assert judge(Stale()) is Verdict.STALE
    assert judge(ExceptionGroup("both", [Stale(), TimeoutError()])) is Verdict.STALE
    assert judge(ExceptionGroup("both", [Stale(), KeyError()])) is Verdict.BUG


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def settings(**values: float) -> Settings:
    return Settings.model_validate({"retry_first": 0.5, "retry_longest": 4.0, "retry_limit": 100.0, **values})


def test_pauses_double_up_to_the_longest() -> None:
    delivery = Delivery(settings(), Clock())
    assert [delivery.failed("3", "away") for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 4.0, 4.0]
    assert delivery.retries == 6


def test_an_outage_is_logged_once_a_minute_whichever_lanes_wait(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    delivery = Delivery(settings(), clock)
    logged: list[int] = []
    with caplog.at_level(logging.INFO):
        for second in range(100):
            clock.now = 1000.0 + second
            before = len(caplog.records)
            for lane in ("3", "4", "5"):
                delivery.failed(lane, f"ConnectionRefusedError: port {4000 + second}")
            if len(caplog.records) > before:
                logged.append(second)
        assert logged == [0, 60]
        assert "lane 3 waits since" in caplog.text
        assert "(60.0 s, attempt 61; lanes that wait: 3): ConnectionRefusedError" in caplog.text
        delivery.failed("3", "the disk is full")
        assert "the disk is full" in caplog.text, "another reason is told at once"
        for lane in ("3", "4", "5"):
            delivery.recovered(lane)
        assert "lane 3 goes on after 99.0 s and 101 failed attempts" in caplog.text
        caplog.clear()
        delivery.failed("4", "ConnectionRefusedError: port 1")
    assert "lane 4 waits since" in caplog.text, "and the next outage"


def test_an_outage_is_visible_until_it_is_over() -> None:
    clock = Clock()
    delivery = Delivery(settings(), clock)
    delivery.failed("3", "first")
    clock.now += 5
    delivery.failed("3", "second")
    outage = delivery.outages["3"]
    assert (outage.since, outage.why, outage.failures) == (1000.0, "second", 2)
    delivery.recovered("3")
    assert delivery.outages == {}


def test_past_the_limit_it_gives_up() -> None:
    clock = Clock()
    delivery = Delivery(settings(), clock)
    delivery.failed("3", "away")
    clock.now += 100.0
    delivery.failed("3", "away")
    clock.now += 0.1
    with pytest.raises(GaveUp, match="lane 3 failed for 100 s"):
        delivery.failed("3", "away")


def test_an_outage_that_ended_does_not_count_for_the_next() -> None:
    clock = Clock()
    delivery = Delivery(settings(), clock)
    delivery.failed("3", "away")
    delivery.recovered("3")
    clock.now += 1000.0
    assert delivery.failed("3", "away") == 0.5


async def run(delivery: Delivery, *failures: BaseException) -> tuple[Outcome, int]:
    left = list(failures)
    calls = 0

    async def attempt() -> None:
        nonlocal calls
        calls += 1
        if left:
            raise left.pop(0)

    return await delivery.run("3", attempt, asyncio.Event()), calls


async def test_run_until_it_works() -> None:
    delivery = Delivery(settings(retry_first=0.001))
    assert await run(delivery, TimeoutError(), kafka.RequestTimedOutError()) == (Outcome.DONE, 3)
    assert delivery.outages == {}


async def test_run_drops_what_is_stale() -> None:
    assert await run(Delivery(settings(retry_first=0.001)), TimeoutError(), Stale()) == (Outcome.STALE, 2)


async def test_run_lets_a_bug_out_at_once() -> None:
    with pytest.raises(KeyError):
        await run(Delivery(settings()), KeyError("x"))


async def test_run_gives_up_with_the_cause() -> None:
    clock = Clock()
    delivery = Delivery(settings(retry_first=0.001, retry_limit=10.0), clock)

    async def attempt() -> None:
        clock.now += 6.0
        raise ConnectionRefusedError("away")

    with pytest.raises(GaveUp) as caught:
        await delivery.run("3", attempt, asyncio.Event())
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)


async def test_run_ends_when_the_lane_is_closing() -> None:
    delivery = Delivery(settings(retry_first=50.0, retry_longest=50.0))
    closing, tried = asyncio.Event(), asyncio.Event()

    async def attempt() -> None:
        tried.set()
        raise TimeoutError

    task = asyncio.create_task(delivery.run("3", attempt, closing))
    await asyncio.wait_for(tried.wait(), 5)
    closing.set()
    assert await asyncio.wait_for(task, 5) is Outcome.CLOSING
