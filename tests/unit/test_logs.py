"""What a worker logs while a server is away."""

from __future__ import annotations

import ast
import json
import logging
import re
from collections.abc import Iterator
from typing import Final

import pytest

from cli import logs
from settings import Settings
from streams import control
from streams.levels import Level
from streams.reports import name_of
from tests.stackfixture import ROOT

LOGGED_BY: Final = ("api", "app.py", "cli", "console", "operations", "queries", "sinks", "streams", "wire")
POSITIONAL: Final = re.compile(r"\b(?:lanes?|topic|partition|offset|order) %[sdr]|%s/%[sd]|%[.0-9]*[fg] s\b")
"""What a line has in its text alone."""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [1000.0]
    monkeypatch.setattr("cli.logs.time.monotonic", lambda: now[0])
    root = logging.getLogger()
    handlers, set_level = root.handlers, control.set_level
    levels = {each: each.level for each in (root, *map(logging.getLogger, logs.NOISY))}
    yield now
    root.handlers, control.set_level = handlers, set_level
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
    assert said.count("Unable to update metadata") == 0, "it tells of the same outage"
    assert said.count("lane 0 waits") == said.count("lane 1 waits") == 500, "our own lines are all there"
    assert said.count("Failed to restore the pool; retrying: ConnectionRefusedError: ") == 1
    assert "Traceback" not in said
    clock[0] += 60
    kafka.warning("Unable to update metadata from %s", [7])
    assert "from [7] (1,999 more such lines in 110 s)" in capsys.readouterr().err
    kafka.error("Unable connect to broker: SaslAuthenticationFailed")
    assert "SaslAuthenticationFailed" in capsys.readouterr().err, "who isn't let in is another matter"
    kafka.error("something else")
    assert "something else" in capsys.readouterr().err


def test_nothing_is_left_out_for_whoever_looks_for_a_fault(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(Settings.model_validate({"log_level": "debug"}), "w1")
    for _ in range(5):
        logging.getLogger("aiokafka.cluster").warning("Unable to update metadata")
    assert capsys.readouterr().err.count("Unable to update metadata") == 5


def test_what_a_line_names_is_a_field_of_its_own(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    logs.configure(Settings.model_validate({"log_format": "json"}), "w1")
    where = {"topic": "order.paid", "partition": 3, "offset": 7, "seconds": 1.23456, "lane": 3, "event": "no"}
    log = logging.getLogger("streams.x")
    log.warning("lane %(lane)d: %(topic)s/%(partition)d, %(offset)d after %(seconds).1f s", where)
    log.warning("%s of a library", "text")
    log.warning("%d %%")
    first, second, third = map(json.loads, capsys.readouterr().err.splitlines())
    named = {"topic": "order.paid", "partition": 3, "offset": 7, "seconds": 1.235, "lane": "3"}
    assert named.items() <= first.items()
    assert first["event"] == "lane 3: order.paid/3, 7 after 1.2 s"
    assert second["event"] == "text of a library"
    assert third["event"] == "%d %%"
    assert first.keys() - named.keys() == second.keys() == {"event", "level", "logger", "timestamp", "worker"}


def test_no_line_of_ours_has_a_lane_in_its_text_alone() -> None:
    positional = []
    for tree in LOGGED_BY:
        for path in [ROOT / tree] if tree.endswith(".py") else sorted((ROOT / tree).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("log."):
                    texts = [each.value for each in node.args if isinstance(each, ast.Constant)]
                    positional += [f"{path}: {text!r}" for text in texts if POSITIONAL.search(str(text))]
    assert positional == []


def test_the_level_changes_while_it_runs(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    settings = Settings.model_validate({"log_level": "warning", "log_format": "json"})
    logs.configure(settings, "w1")
    watched = control.OwnLevel(name_of(settings))

    def lines(*levels: Level) -> list[str]:
        """What is logged once these are set."""
        watched.take(levels)
        capsys.readouterr()
        logging.getLogger("streams.x").debug("ours")
        for _ in range(2):
            logging.getLogger("aiokafka.cluster").warning("theirs")
            logging.getLogger("aiokafka.cluster").debug("in detail")
        return [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]

    every = Level("*", "debug", "2026-01-01T00:00:00Z", "ops", None)
    own = Level(settings.data.name, "error", "2026-01-02T00:00:00Z", "ops", None)
    assert lines(Level("another", "debug", "", "", None)) == ["theirs"]
    assert lines(every) == ["ours", "theirs", "theirs"]
    assert lines(every, own) == [], "its own counts before that of all"
    clock[0] += 100
    assert lines() == ["theirs (1 more such lines in 100 s)"]
