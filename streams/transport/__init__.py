"""Batch transport for Faust: Kafka's records in batches, nothing acknowledged before
it is done, nothing lost.

What holds:

- A handler gets a partition's records in order and without a hole, and again if it did not return.
- Only offsets below the lowest unfinished batch are committed.
- A worker that lost its partitions writes nothing any more.
- The changelog has a state before the local store has it.
"""

from __future__ import annotations

from streams.transport.agents import Batches
from streams.transport.app import BatchApp, TransportStats
from streams.transport.batch import LaneBatch, OpenLane
from streams.transport.cluster import prepare_data_folder
from streams.transport.delivery import Stale
from streams.transport.errors import (
    FailStop,
    FolderInUse,
    LeaseLost,
    OffsetBeyondEnd,
    PartitionMismatch,
    UnknownTopics,
)
from streams.transport.records import Moved, OutRecord, Record, Slice
from streams.transport.table import StateTable
from streams.transport.worker import run_worker

__all__ = [
    "BatchApp",
    "Batches",
    "FailStop",
    "FolderInUse",
    "LaneBatch",
    "LeaseLost",
    "Moved",
    "OffsetBeyondEnd",
    "OpenLane",
    "OutRecord",
    "PartitionMismatch",
    "Record",
    "Slice",
    "Stale",
    "StateTable",
    "TransportStats",
    "UnknownTopics",
    "prepare_data_folder",
    "run_worker",
]
