"""Bytewax with its recovery store: a Kafka source of all topics, and a sink that upserts by psycopg.

Settings that were chosen: one process with one worker (two workers of one process share an interpreter; a
cluster of two processes took twice the CPU, wasn't faster beside the servers on two cores, and had three
times the p99); batches of up to 2,000 records a partition; fetches of up to 4 MiB; a snapshot each second, as
more of them cost and fewer mean more to do again after a crash; psycopg's C implementation, a prepared
statement, autocommit (one statement is one transaction). The rows are merged by the database, so the stream
needs no key.

What Bytewax promises by its recovery store is that a sink sees everything since the last snapshot again, so
that an upsert is exact.
"""

from __future__ import annotations

import os
import time
from datetime import timedelta
from itertools import chain
from pathlib import Path
from typing import Any, Final

import bytewax.operators as op
import psycopg
from bytewax.connectors.kafka import KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.outputs import DynamicSink, StatelessSinkPartition
from bytewax.recovery import RecoveryConfig, init_db_dir
from bytewax.run import cli_main

from benchmarks.peers.clients import merge

MOST_RECORDS: Final = 2000
SNAPSHOT: Final = timedelta(seconds=1)
LIBRDKAFKA: Final = {
    "fetch.message.max.bytes": f"{4 << 20}",
    "fetch.wait.max.ms": "100",
    # Bytewax has each consumer tell how it is as JSON each second, for a metric.
    "statistics.interval.ms": "0",
}


class Tables(DynamicSink[Any]):  # type: ignore[misc]
    """Where rows are merged."""

    def build(self, step_id: str, worker_index: int, worker_count: int) -> _Writer:
        """Open the connection of one worker. Blocks. Raises psycopg.OperationalError."""
        return _Writer()


class _Writer(StatelessSinkPartition[Any]):  # type: ignore[misc]
    def __init__(self) -> None:
        self._topics = {os.environ["PEER_PREFIX"] + topic: topic for topic in merge.TOPICS}
        self._statement = merge.statement(os.environ["PEER_SCHEMA"], "%s")
        self._connection = psycopg.connect(
            os.environ["PEER_POSTGRES"], autocommit=True, options="-c jit=off -c timezone=UTC"
        )

    def write_batch(self, items: list[Any]) -> None:
        batch = merge.Batch()
        for message in items:
            time_ = dict(message.headers)["ce_time"].decode()
            batch.add(self._topics[message.topic], message.value, time_)
        parameters = list(chain.from_iterable(batch.columns()))
        self._connection.execute(self._statement, parameters, prepare=True)
        print(len(items), time.time(), flush=True)

    def close(self) -> None:
        self._connection.close()


def build() -> Dataflow:
    """The flow, as the environment says. Raises KeyError where that says too little."""
    prefix = os.environ["PEER_PREFIX"]
    source = KafkaSource(
        os.environ["PEER_KAFKA"].split(","),
        [prefix + topic for topic in merge.TOPICS],
        batch_size=MOST_RECORDS,
        add_config=LIBRDKAFKA,
    )
    flow = Dataflow("peer")
    messages: op.KeyedStream[KafkaSourceMessage[Any, Any]] = op.input("events", flow, source)
    op.output("tables", messages, Tables())
    return flow


def run() -> None:
    """Run until the process is ended."""
    store = Path(os.environ["PEER_DATA"]) / "recovery"
    if not store.exists():
        store.mkdir(parents=True)
        init_db_dir(store, 1)
    cli_main(build(), workers_per_process=1, epoch_interval=SNAPSHOT, recovery_config=RecoveryConfig(store))


if __name__ == "__main__":
    run()
