"""A sample of the kill sweep: `make chaos FAULTS=sweep` does all of it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from random import Random

import pytest

from settings import Settings
from streams import topics
from tests.chaos.sweep.arena import Arena, arena
from tests.chaos.sweep.points import AFTER, BEFORE, points
from tests.chaos.sweep.scenes import SCENES
from tests.chaos.sweep.sweep import Kill, plan, reconnoitre, sweep
from tests.servers import admin

SEED = int(os.environ.get("CHAOS_SEED", "1"))
SAMPLE = 6
ALWAYS = (
    ("PostgresSink._write", "connection.fetchval", AFTER),  # the rows are there, the state is not
    ("LaneProducer.write_states", "self.send", AFTER),  # the changelog is ahead of the local store
    ("ConsumerThread.commit_finished", "_do_commit_offsets", AFTER),
)
"""Where most depends on the order of the steps: function, code, side."""


@pytest.fixture
async def here(settings: Settings, tmp_path: Path) -> AsyncIterator[Arena]:
    async with arena(dict(os.environ), tmp_path) as opened:
        yield opened
    await topics.delete_all(admin(settings))


async def test_a_worker_killed_at_an_await_leaves_nothing_wrong(here: Arena) -> None:
    passed = {"drain": await reconnoitre(here, SCENES["drain"])}
    kills, _ = plan(passed, SEED, points())
    sample = [
        kill
        for kill in kills
        if any(
            kill.point.where == where and text in kill.point.text and kill.side == side
            for where, text, side in ALWAYS
        )
    ]
    assert len(sample) == len(ALWAYS)
    sample += Random(SEED).sample([kill for kill in kills if kill not in sample], SAMPLE)
    results = await sweep(here, sample)
    assert [f"{result.kill}: {result.problem}" for result in results if result.problem] == []
    # One may miss its pass, which depends on how records fell into batches; not most of them.
    assert sum(result.died for result in results) >= len(sample) - 2


def test_each_side_of_a_point_is_killed_in_the_first_scene_that_surely_passes_it() -> None:
    known = points()
    first, second, third = known[0], known[1], known[2]
    passed = {
        "outage": {(first.key, BEFORE): 9, (third.key, BEFORE): 3, (third.key, AFTER): 4},
        "drain": {
            (first.key, BEFORE): 40,
            (first.key, AFTER): 1,
            (second.key, BEFORE): 2,
            (third.key, AFTER): 1,
        },
    }
    kills, unreached = plan(passed, 3, [first, second, third])
    assert [(kill.point, kill.side, kill.scene) for kill in kills] == [
        (first, BEFORE, "drain"),
        (first, AFTER, "drain"),
        (second, BEFORE, "drain"),
        (third, BEFORE, "outage"),
        (third, AFTER, "outage"),
    ]
    assert [kill.others for kill in kills] == [("outage",), (), (), (), ("drain",)]
    assert unreached == [f"after {second}"]
    assert all(1 <= kill.n <= 12 for kill in kills)
    assert plan(passed, 3, [first, second, third]) == (kills, unreached)
    assert str(Kill(first, BEFORE, "drain", 2)).startswith(f"before {first.file}:{first.line}")
