"""The whole harness once, short: the faults that matter most, one after the other, then the
one that can't be undone.

`make chaos` is the long way. A failure's logs are in pytest's folder of the test.
"""

from __future__ import annotations

import os
from pathlib import Path

from tests.chaos.faults import CATALOGUE
from tests.chaos.report import write
from tests.chaos.run import arena, play
from tests.chaos.scenarios import SCENARIOS, bulk_and_readers
from tests.chaos.schedule import once
from tests.chaos.world import Shape
from tests.servers import SECURE

MANUAL = Path(__file__).parents[2] / "docs" / "chaos.md"
SEED = int(os.environ.get("CHAOS_SEED", "1"))
FAULTS = (
    "worker-kill",
    "worker-zombie",
    "broker-leader-kill",
    "postgres-reply-lost",
    "net-postgres-cut",
    "net-redis-reset",
    "state-corrupt",
)


async def test_nothing_is_lost_and_nothing_done_twice(tmp_path: Path) -> None:
    said: list[str] = []
    # Of a connection with TLS nobody between can lose a certain answer.
    faults = [name for name in FAULTS if not (SECURE and name == "postgres-reply-lost")]
    planned = once(SEED, [CATALOGUE[name].kind for name in faults])
    async with arena(tmp_path, SEED, Shape(replica=False, workers=2, rate=60.0), say=said.append) as (
        here,
        outcome,
    ):
        for each in planned:
            await play(here, each, outcome, said.append)
        await SCENARIOS["partitions-added"].act(here, outcome, said.append)
    write(outcome, tmp_path)
    assert outcome.problems == [], said
    assert outcome.good, outcome.audit
    assert {injection.kind for injection in outcome.injections} == {*faults, "partitions-added"}
    assert outcome.audit["counts"]["orders"] > 500


async def test_a_job_beside_readers_who_remember_versions(tmp_path: Path) -> None:
    said: list[str] = []
    shape = Shape(brokers=1, workers=2, rate=100.0, settings={"ORDERS_BULK_RATE": "500"})
    async with arena(tmp_path, SEED, shape, say=said.append) as (here, outcome):
        await bulk_and_readers(here, outcome, said.append, lines=6_000, readers=2)
    write(outcome, tmp_path)
    assert outcome.problems == [], said
    assert outcome.good, outcome.audit
    assert {injection.kind for injection in outcome.injections} == {
        "replica-kill",
        "redis-flushall",
        "worker-kill",
    }


def test_the_manual_has_every_fault_once() -> None:
    told: list[str] = []
    for line in MANUAL.read_text().splitlines():
        first = line.split("|")[1] if line.startswith("| ") else ""
        for name in first.split(","):
            # "net-redis-cut, -reset" is short for two of a family.
            told.append(
                "-".join([*told[-1].split("-")[:2], name.strip(" -")])
                if name.strip().startswith("-")
                else name.strip()
            )
    assert sorted(name for name in told if name not in ("", "fault")) == sorted([*CATALOGUE, *SCENARIOS])


def test_a_fault_is_told_in_a_line() -> None:
    told = {name: fault.what for name, fault in CATALOGUE.items()} | {
        name: scenario.what for name, scenario in SCENARIOS.items()
    }
    assert {name: what for name, what in told.items() if not 5 < len(what) <= 130 or what.endswith(".")} == {}
