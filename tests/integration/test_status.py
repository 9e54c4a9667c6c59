"""`orders status` against real servers: without a worker, with one, and while Postgres is away."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from operations.status import FLOOD
from settings import Settings
from tests.waiting import until
from tests.workers import orders, processed, worker
from workload import generator
from workload.poison import POISONS
from workload.producer import send


def status() -> dict[str, object]:
    ended = orders("status", "--json")
    said: dict[str, object] = json.loads(ended.stdout)
    assert ended.returncode == (1 if said["problems"] else 0), ended.stderr
    return said


async def test_it_tells_what_is_wrong_and_that_nothing_is(fresh: Settings, tmp_path: Path) -> None:
    events = list(generator.events(40, 81, generator.Shares(poison=0.2)))
    await send(fresh, events)
    alone = status()
    lanes = range(fresh.partitions)
    assert alone["problems"] == [
        "no worker is running: start one with orders worker",
        *(f"lane {lane} no worker has it" for lane in lanes),
    ]
    with worker(tmp_path) as running:
        processed()
        until(lambda: not status()["problems"], "all is well")
        well = status()
        assert [each["worker"].partition("@")[0] for each in well["lanes"]] == ["w"] * len(lanes)  # type: ignore[attr-defined]
        assert well["last_audit"] is None
        assert orders("audit", "--json").returncode == 0
        assert status()["last_audit"] is not None
        letters = well["dead_letters"]
        assert letters["total"] == sum(letters["reasons"].values()) > 0  # type: ignore[index]
        assert letters["flood"] == {}  # type: ignore[index]
        await send(fresh, [POISONS["truncated_json"].make(Random(1)) for _ in range(FLOOD + 1)])
        until(lambda: "not_json; orders dlq list" in str(status()["problems"]), "a flood is told")
        assert running.terminate() == 0
    until(
        lambda: "no worker is running: start one with orders worker" in str(status()["problems"]), "it left"
    )
