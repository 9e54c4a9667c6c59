"""What a worker logs while a server is away."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from cli import logs
from settings import Settings


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr("cli.logs.time.monotonic", lambda: now[0])
    root = logging.getLogger()
    handlers = root.handlers
    levels = {each: each.level for each in (root, *map(logging.getLogger, logs.NOISY))}
    yield now
    root.handlers = handlers
    for each, level in levels.items():
        each.setLevel(level)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_a_library_says_the_same_once_a_minute(
    clock: list[float], capsys: pytest.CaptureFixture[str], log_format: str
) -> None:
    logs.configure(Settings.model_validate({"log_format": log_format}), "w1")
    kafka, ours = logging.getLogger("aiokafka.cluster"), logging.getLogger("streams.transport.delivery")
    pool = logging.getLogger("asyncpg.pool")
    for number in range(1000):
        clock[0] += 0.05
        kafka.error('Unable connect to "%s:%s": %s', "broker", 9092 + number, ConnectionRefusedError(111))
        kafka.warning("Unable to update metadata from %s", [number])
        ours.warning("lane %s waits", number % 2)
        try:
            raise ConnectionRefusedError(111, "Connect call failed")
        except ConnectionRefusedError:
            pool.warning("Failed to restore the pool; retrying", exc_info=True)
    said = capsys.readouterr().err
    assert said.count("Unable connect to") == 1
    assert said.count("Unable to update metadata") == 1
    assert said.count("lane 0 waits") == said.count("lane 1 waits") == 500, "our own lines are all there"
    assert said.count("Failed to restore the pool; retrying: ConnectionRefusedError: ") == 1
    assert "Traceback" not in said
    clock[0] += 60
    kafka.warning("Unable to update metadata from %s", [7])
    assert "from [7] (999 more such lines in 110 s)" in capsys.readouterr().err
    kafka.error("something else")
    assert "something else" in capsys.readouterr().err


def test_nothing_is_left_out_for_whoever_looks_for_a_fault(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(Settings.model_validate({"log_level": "debug"}), "w1")
    for _ in range(5):
        logging.getLogger("aiokafka.cluster").warning("Unable to update metadata")
    assert capsys.readouterr().err.count("Unable to update metadata") == 5
