"""Random histories of failures, a bounded number of them; `make fuzz` runs as many as one likes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from streams.pipeline import Pipeline
from tests import forked
from tests.simulation.run import Summary, prepared, run_many, run_seed

ROOT = Path(__file__).parents[2]
HISTORIES = 500
FIRST_SEED = 1


def test_histories() -> None:
    summary = Summary()
    share = HISTORIES // (os.cpu_count() or 1)
    with ProcessPoolExecutor(mp_context=forked.server()) as pool:
        firsts = range(FIRST_SEED, FIRST_SEED + HISTORIES, share)
        for part in pool.map(
            run_many, firsts, [min(share, FIRST_SEED + HISTORIES - first) for first in firsts]
        ):
            summary.merge(part)
    problems = [
        f"{outcome.problems[0]}\n  .venv/bin/python -m tests.simulation --replay {outcome.seed}"
        for outcome in summary.failed
    ]
    assert problems == []
    assert summary.histories == HISTORIES
    # Not only fair weather: every fault, every mood, and what they lead to.
    assert set(summary.moods) == {"calm", "losses", "deaths", "zombies", "all"}
    assert {
        "before",
        "after",
        "slow",
        "refused",
        "late",
        "crash_out",
        "crash_wire",
        "crash_done",
        "stop_wire",
    } == set(summary.faults)
    assert summary.deaths > HISTORIES / 4
    assert summary.generations > HISTORIES
    assert summary.late > 0
    assert summary.passed > HISTORIES / 4


def test_a_seed_is_one_history_whatever_the_hash_seed() -> None:
    """This process has another one than the process that it starts."""
    hash_seed = "77" if os.environ.get("PYTHONHASHSEED") != "77" else "0"
    program = "from tests.simulation.test_simulation import digests\nprint(*digests())"
    ended = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ended.stdout.split() == digests()


def digests() -> list[str]:
    """Of the traces of some seeds."""
    with prepared():
        return [run_seed(seed, tracing=True).digest for seed in range(1, 16)]


def test_a_broken_pipeline_is_told_with_its_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    async def nothing(self: Any, batch: Any, work: Any) -> None:
        """The state is not written."""

    monkeypatch.setattr(Pipeline, "_write_states", nothing)
    with prepared():
        outcome = run_seed(1, tracing=True)
    assert any("no state holds" in problem for problem in outcome.problems)
    assert any("takes <LaneBatch" in line for line in outcome.trace)


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "import runpy; runpy.run_module('tests.simulation', run_name='__main__', alter_sys=True)"
    return forked.run((sys.executable, "-c", program, *arguments), cwd=ROOT)


def test_the_command_reports_as_json_and_replays_a_seed() -> None:
    done = command("--histories", "3", "--seed", "7", "--jobs", "1", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert (document["seed"], document["histories"], document["failed"]) == (7, 3, [])
    replay = command("--replay", "7")
    assert replay.returncode == 0
    assert "starts" in replay.stdout
    assert "seed 7: nothing is wrong" in replay.stdout


def test_a_wrong_flag_is_one_line_and_exit_code_2() -> None:
    done = command("--histories", "none")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
