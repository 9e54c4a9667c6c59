"""benchmarks.capacity: its arithmetic, by hand, and that docs/scaling.md shows what it prints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import capacity

ROOT = Path(__file__).parents[2]

BENCH: dict[str, Any] = {
    "cpu_us_per_event": {"worker": 100.0, "kafka": 10.0, "postgres": 20.0, "redis": 5.0},
    "latency_cpu_us_per_event": {"worker": 1000.0, "kafka": 500.0, "postgres": 200.0, "redis": 50.0},
    "latency_rate": 500,
    "events_per_second": 16_000.0,
    "conditions": {"workers": 2},
}
SIZES: dict[str, Any] = {
    "bytes_per_event": {
        "kafka_input": 400,
        "kafka_derived": 2000,
        "kafka_changelog": 200,
        "kafka_internal": 100,
        "wal": 600,
    },
    "bytes_per_order": {"postgres": 2000, "redis": 1000, "local_state": 200},
    "conditions": {"orders": 100, "events": 400},
}
COSTS = capacity.Costs.read(BENCH, SIZES)


def test_by_hand() -> None:
    assert capacity.need(COSTS, 10_000, headroom=3, replication=2, pool=5) == capacity.Need(
        events_per_second=10_000,
        orders_per_second=2_500,
        worker_cores=3.0,  # 3 * 10,000 * 100 us
        kafka_cores=0.75,  # 3 * 500 * 500 us: more than 3 * 10,000 * 10 us
        postgres_cores=0.6,
        redis_cores=0.15,
        workers=4,  # 3 * 10,000 of 8,000 each
        partitions=8,
        kafka_kept_per_day=10_000 * 500 * 2 * 86_400,
        kafka_derived=10_000 * 2000 * 2 * 7 * 86_400,
        kafka_written_per_second=10_000 * 2700 * 2,
        postgres_per_month=2_500 * 2000 * 30 * 86_400,
        wal_per_second=6_000_000,
        redis=10_000 * 1_800 * 1000,
        local_state_per_month=2_500 * 200 * 30 * 86_400,
        postgres_connections=20,
    )


@pytest.mark.parametrize(
    ("rate", "cores"), [(100, 0.1), (500, 0.5), (1_000, 0.5), (5_000, 0.5), (5_001, 0.5001), (50_000, 5.0)]
)
def test_small_batches_cost_more_until_the_rate_makes_them_large(rate: float, cores: float) -> None:
    assert capacity.need(COSTS, rate, headroom=1).worker_cores == pytest.approx(cores)


@pytest.mark.parametrize(
    ("rate", "workers", "partitions"),
    [(1, 2, 4), (8_000, 2, 4), (8_001, 3, 8), (16_000, 4, 8), (16_001, 5, 16), (100_000, 25, 64)],
)
def test_never_less_than_two_workers_and_lanes_for_twice_as_many(
    rate: float, workers: int, partitions: int
) -> None:
    needed = capacity.need(COSTS, rate, headroom=2)
    assert (needed.workers, needed.partitions) == (workers, partitions)


@pytest.mark.parametrize(
    "given",
    [
        {"rate": 0},
        {"rate": -1},
        {"rate": 1, "headroom": 0.9},
        {"rate": 1, "replication": 0},
        {"rate": 1, "pool": 0},
    ],
)
def test_what_makes_no_sense(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        capacity.need(COSTS, **given)


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_300, "1.3 kB"),
        (127e9, "127 GB"),
        (1.31e12, "1.3 TB"),
        (131e12, "131 TB"),
        (2.5e15, "2.5 PB"),
    ],
)
def test_bytes_for_people(count: float, text: str) -> None:
    assert capacity.size(count) == text


def test_the_page_shows_what_it_prints(capsys: pytest.CaptureFixture[str]) -> None:
    capacity.main([])
    assert capsys.readouterr().out in (ROOT / "docs" / "scaling.md").read_text()


def test_own_measurements_and_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bench, sizes = tmp_path / "bench.json", tmp_path / "sizes.json"
    bench.write_text(json.dumps(BENCH))
    sizes.write_text(json.dumps(SIZES))
    capacity.main(["--rate", "10000", "--rate", "1", "--bench", str(bench), "--sizes", str(sizes), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert [each["workers"] for each in document["needs"]] == [3, 2]
    assert document["costs"]["worker_rate"] == 8_000


@pytest.mark.parametrize(
    "arguments", [["--rate", "0"], ["--bench", "nowhere.json"], ["--bench", str(capacity.SIZES)]]
)
def test_one_line_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        capacity.main(arguments)
    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err.splitlines()[-1]
