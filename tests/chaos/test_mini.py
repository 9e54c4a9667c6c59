"""The whole harness once, short: the faults that matter most, one after the other, then the
one that can't be undone; and the one that needs three brokers.

`make chaos` is the long way. A failure's logs are in pytest's folder of the test.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stack import Stack, StackError
from tests.chaos.faults import CATALOGUE, READS_THE_WIRE
from tests.chaos.report import write
from tests.chaos.run import arena, play
from tests.chaos.scenarios import SCENARIOS, bulk_and_readers
from tests.chaos.schedule import once
from tests.chaos.world import Shape, World
from tests.servers import SECURE, url
from tests.stackfixture import Servers, place
from tests.waiting import eventually

MANUAL = Path(__file__).parents[2] / "docs" / "chaos.md"
SEED = int(os.environ.get("CHAOS_SEED", "1"))
FAULTS = (
    "worker-zombie",
    "postgres-reply-lost",
    "net-postgres-cut",
    "net-redis-reset",
    "state-corrupt",
)
FEW_LANES = {"ORDERS_PARTITIONS": "2"}


async def test_nothing_is_lost_and_nothing_done_twice(tmp_path: Path) -> None:
    """The faults, a job beside readers who remember versions with faults of its own, and more partitions."""
    said: list[str] = []
    faults = [name for name in FAULTS if not (SECURE and name in READS_THE_WIRE)]
    settings = {"ORDERS_BULK_RATE": "500", **FEW_LANES}
    shape = Shape(brokers=1, workers=2, rate=60.0, settings=settings)
    with place(tmp_path / "stack"):
        async with arena(tmp_path, SEED, shape, say=said.append) as (here, outcome):
            for each in once(SEED, [CATALOGUE[name].kind for name in faults]):
                await play(here, each, outcome, said.append)
            # Without a pause two readers take a processor for themselves.
            await bulk_and_readers(here, outcome, said.append, lines=6_000, readers=2, pause=0.02)
            await SCENARIOS["partitions-added"].act(here, outcome, said.append)
    write(outcome, tmp_path)
    assert outcome.problems == [], said
    assert outcome.good, outcome.audit
    others = {"replica-kill", "redis-flushall", "worker-kill", "partitions-added"}
    assert {injection.kind for injection in outcome.injections} == {*faults, *others}
    assert outcome.audit["counts"]["orders"] > 3_500


async def test_three_brokers_and_a_replica_lose_a_leader_beside_another_stack(
    tmp_path: Path, stack: Servers
) -> None:
    said: list[str] = []
    shape = Shape(brokers=3, workers=2, rate=60.0, settings=FEW_LANES)
    with place(tmp_path / "stack", brokers=3):
        async with arena(tmp_path, SEED, shape, say=said.append) as (here, outcome):
            await _three_brokers_and_a_replica(here, stack)
            for each in once(SEED, [CATALOGUE["broker-leader-kill"].kind]):
                await play(here, each, outcome, said.append)
    write(outcome, tmp_path)
    assert outcome.problems == [], said
    assert outcome.good, outcome.audit
    assert {injection.kind for injection in outcome.injections} == {"broker-leader-kill"}
    assert outcome.audit["counts"]["orders"] > 100
    async with here.sql(url(stack.env, "POSTGRES")) as session:
        assert await session.fetchval("select 1") == 1, "the other stack was not touched"


async def _three_brokers_and_a_replica(here: World, other: Servers) -> None:
    kinds = {kind: len(pids) for kind, pids in here.stack.pids.items() if kind != "tls"}
    assert kinds == {"kafka": 3, "postgres": 2, "redis": 1}
    assert set(here.settings.brokers).isdisjoint(other.env["ORDERS_KAFKA"].split(","))
    async with here.kafka() as admin:

        async def copied_everywhere() -> bool:
            [described] = await admin.describe_topics(["order.created"])
            return [len(partition["isr"]) for partition in described["partitions"]] == [3, 3]

        await eventually(copied_everywhere, "two partitions have three replicas in sync each")
    async with here.sql(url(here.stack.env, "POSTGRES_REPLICA")) as session:
        assert await session.fetchval("select pg_is_in_recovery()") is True
        assert await session.fetchval("show fsync") == "on"
    with pytest.raises(StackError, match=r"3 broker\(s\), which cannot be changed"):
        Stack.start(here.stack.folder, brokers=1)


def test_the_manual_has_every_fault_once() -> None:
    listed: list[str] = []
    for line in MANUAL.read_text().splitlines():
        first = line.split("|")[1] if line.startswith("| ") else ""
        for name in first.split(","):
            # "net-redis-cut, -reset" is short for two of a family.
            listed.append(
                "-".join([*listed[-1].split("-")[:2], name.strip(" -")])
                if name.strip().startswith("-")
                else name.strip()
            )
    assert sorted(name for name in listed if name not in ("", "fault")) == sorted([*CATALOGUE, *SCENARIOS])


def test_a_fault_is_told_in_a_line() -> None:
    lines = {name: fault.what for name, fault in CATALOGUE.items()} | {
        name: scenario.what for name, scenario in SCENARIOS.items()
    }
    assert {
        name: what for name, what in lines.items() if not 5 < len(what) <= 130 or what.endswith(".")
    } == {}
