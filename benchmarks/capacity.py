"""What so many events a second need, computed from measured costs: cores, workers, partitions, disks, memory.

    .venv/bin/python -m benchmarks.capacity
    .venv/bin/python -m benchmarks.capacity --rate 2500 --bench my-bench.json --sizes my-sizes.json

Nothing is measured here: `--bench` is a file of `orders bench`, `--sizes` one of benchmarks.sizes.
docs/scaling.md has the formulas, and says where they stop being true.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

RESULTS: Final = Path(__file__).parent / "results"
BENCH: Final = RESULTS / "2026-11-25-two-workers.json"
SIZES: Final = RESULTS / "2026-11-25-sizes.json"
RATES: Final = (1_000.0, 10_000.0, 100_000.0)
SERVERS: Final = ("worker", "kafka", "postgres", "redis")
DAY: Final = 86_400
MONTH: Final = 30 * DAY
DERIVED_DAYS: Final = 7
CACHE_SECONDS: Final = 1_800
"""Days that derived topics are kept, and the longest that an entry stays in Redis, as `orders init`
and the settings have them.
"""


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured costs: times in microseconds of CPU, sizes in bytes."""

    full: Mapping[str, float]
    small: Mapping[str, float]
    small_rate: float
    """Per event, by server, with full batches; and at a low rate, where batches are small."""
    worker_rate: float
    """Events a second of one worker."""
    events_per_order: float
    event: Mapping[str, float]
    order: Mapping[str, float]

    @classmethod
    def read(cls, bench: Mapping[str, Any], sizes: Mapping[str, Any]) -> Costs:
        """Read costs from a results file of each kind. Raises KeyError for what a file lacks."""
        return cls(
            full={name: bench["cpu_us_per_event"][name] for name in SERVERS},
            small={name: bench["latency_cpu_us_per_event"][name] for name in SERVERS},
            small_rate=bench["latency_rate"],
            worker_rate=bench["events_per_second"] / bench["conditions"]["workers"],
            events_per_order=sizes["conditions"]["events"] / sizes["conditions"]["orders"],
            event=sizes["bytes_per_event"],
            order=sizes["bytes_per_order"],
        )


@dataclass(frozen=True, slots=True)
class Need:
    """The needs of a rate: sizes in bytes, cores with headroom, disks without."""

    events_per_second: float
    orders_per_second: float
    worker_cores: float
    kafka_cores: float
    postgres_cores: float
    redis_cores: float
    workers: int
    partitions: int
    kafka_kept_per_day: float
    kafka_derived: float
    """Over all brokers. What is kept for ever grows by so much a day; derived topics hold a week."""
    kafka_written_per_second: float
    postgres_per_month: float
    wal_per_second: float
    """Without full pages."""
    redis: float
    """If each event is of another order."""
    local_state_per_month: float
    """Of all workers together."""
    postgres_connections: int
    """Of the workers, at ORDERS_POSTGRES_POOL connections each."""


def need(costs: Costs, rate: float, headroom: float = 2.0, replication: int = 3, pool: int = 4) -> Need:
    """What `rate` events a second need, if everything can take in `headroom` times as much. Pure.

    Raises ValueError for a rate or a headroom that makes no sense.
    """
    if rate <= 0 or headroom < 1 or replication < 1 or pool < 1:
        raise ValueError("rate has to be above 0; headroom, replication and pool at least 1")
    orders = rate / costs.events_per_order

    def cores(server: str) -> float:
        # Small batches cost more an event.
        # The more comes in, the larger they get, so that a server is at least as busy as at the low rate.
        return (
            headroom * max(rate * costs.full[server], min(rate, costs.small_rate) * costs.small[server]) / 1e6
        )

    workers = max(2, math.ceil(rate * headroom / costs.worker_rate))
    kafka_kept = costs.event["kafka_input"] + costs.event["kafka_internal"]
    return Need(
        events_per_second=rate,
        orders_per_second=orders,
        worker_cores=cores("worker"),
        kafka_cores=cores("kafka"),
        postgres_cores=cores("postgres"),
        redis_cores=cores("redis"),
        workers=workers,
        # Twice as many lanes as workers, so that they can be spread evenly, and workers added.
        partitions=1 << math.ceil(math.log2(2 * workers)),
        kafka_kept_per_day=rate * kafka_kept * replication * DAY,
        kafka_derived=rate * costs.event["kafka_derived"] * replication * DERIVED_DAYS * DAY,
        kafka_written_per_second=rate
        * (kafka_kept + costs.event["kafka_derived"] + costs.event["kafka_changelog"])
        * replication,
        postgres_per_month=orders * costs.order["postgres"] * MONTH,
        wal_per_second=rate * costs.event["wal"],
        redis=rate * CACHE_SECONDS * costs.order["redis"],
        local_state_per_month=orders * costs.order["local_state"] * MONTH,
        postgres_connections=workers * pool,
    )


def size(count: float) -> str:
    """Bytes for people: two significant digits or the whole number, decimal units."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.2g} {unit}" if count < 10 else f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.2g} PB" if count < 10 else f"{count:,.0f} PB"


def table(needs: Sequence[Need]) -> str:
    """A Markdown table, a column a rate."""
    rows = [
        ("events/s", [f"{each.events_per_second:,.0f}" for each in needs]),
        ("---", ["---"] * len(needs)),
        ("orders/s", [f"{each.orders_per_second:,.0f}" for each in needs]),
        ("cores for workers", [f"{each.worker_cores:.1f}" for each in needs]),
        ("cores for Kafka (one replica)", [f"{each.kafka_cores:.1f}" for each in needs]),
        ("cores for PostgreSQL", [f"{each.postgres_cores:.1f}" for each in needs]),
        ("cores for Redis", [f"{each.redis_cores:.1f}" for each in needs]),
        ("workers", [f"{each.workers}" for each in needs]),
        ("partitions of each topic", [f"{each.partitions}" for each in needs]),
        ("connections to PostgreSQL", [f"{each.postgres_connections}" for each in needs]),
        ("Kafka, kept for ever, a day", [size(each.kafka_kept_per_day) for each in needs]),
        ("Kafka, derived topics, in all", [size(each.kafka_derived) for each in needs]),
        ("Kafka, written a second", [size(each.kafka_written_per_second) for each in needs]),
        ("PostgreSQL a month", [size(each.postgres_per_month) for each in needs]),
        ("WAL a second, without full pages", [size(each.wal_per_second) for each in needs]),
        ("Redis at most", [size(each.redis) for each in needs]),
        ("local state a month, all workers", [size(each.local_state_per_month) for each in needs]),
    ]
    return "\n".join(f"| {' | '.join([name, *cells])} |" for name, cells in rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command. Exits with 2 and one line for flags and files that make no sense."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--rate",
        type=float,
        action="append",
        help="events a second; again for more columns (default: 1000, 10000, 100000)",
    )
    parser.add_argument(
        "--headroom", type=float, default=2.0, help="times the rate that everything can take in (default: 2)"
    )
    parser.add_argument(
        "--replication", type=int, default=3, help="replicas of each Kafka topic (default: 3)"
    )
    parser.add_argument("--pool", type=int, default=4, help="ORDERS_POSTGRES_POOL (default: 4)")
    parser.add_argument(
        "--bench", type=Path, default=BENCH, help=f"a file of `orders bench` (default: {BENCH.name})"
    )
    parser.add_argument(
        "--sizes", type=Path, default=SIZES, help=f"a file of benchmarks.sizes (default: {SIZES.name})"
    )
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    try:
        costs = Costs.read(json.loads(options.bench.read_text()), json.loads(options.sizes.read_text()))
        needs = [
            need(costs, rate, options.headroom, options.replication, options.pool)
            for rate in options.rate or RATES
        ]
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except KeyError as error:
        parser.error(
            f"{options.bench} or {options.sizes} has no {error}: give files of `orders bench` and of"
            " benchmarks.sizes"
        )
    if options.json:
        sys.stdout.write(
            json.dumps({"costs": asdict(costs), "needs": [asdict(each) for each in needs]}, indent=2) + "\n"
        )
    else:
        sys.stdout.write(table(needs) + "\n")


if __name__ == "__main__":
    main()
