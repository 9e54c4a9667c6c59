"""What the transport is told by the program that uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

from wire.clients import KafkaSettings


class TransportSettings(KafkaSettings, Protocol):
    """Settings of the transport. Seconds where nothing else is said."""

    @property
    def brokers(self) -> list[str]:
        """Each host:port."""

    @property
    def group(self) -> str:
        """Consumer group, and the prefix of the changelogs' names."""

    @property
    def data(self) -> Path:
        """Folder below which this worker's local state lies."""

    @property
    def partitions(self) -> int:
        """Of every topic that a lane reads: the lanes."""

    @property
    def delivery(self) -> Literal["at_least_once", "exactly_once"]:
        """What readers of what is written get after a crash."""

    @property
    def transaction_timeout(self) -> float:
        """After it the brokers take back a transaction that nobody ended."""

    @property
    def batch_records(self) -> int:
        """Records that a lane takes at once."""

    @property
    def pending_records(self) -> int:
        """Records of a partition that are held before its fetching rests."""

    @property
    def pending_bytes(self) -> int:
        """The same in bytes."""

    @property
    def commit_interval(self) -> float:
        """Between two commits of offsets."""

    @property
    def producer_linger_ms(self) -> int:
        """Milliseconds that a producer waits for more."""

    @property
    def most_written_bytes(self) -> int:
        """The smallest max.message.bytes of the topics that lanes write."""

    @property
    def session_timeout(self) -> float:
        """Without a heartbeat, until the brokers give a worker's partitions away."""

    @property
    def heartbeat_interval(self) -> float:
        """Between two heartbeats."""

    @property
    def retry_first(self) -> float:
        """Before the first retry; each later pause is twice as long."""

    @property
    def retry_longest(self) -> float:
        """The longest pause between two retries."""

    @property
    def retry_limit(self) -> float:
        """After it a batch that keeps failing ends the worker."""

    @property
    def drain_timeout(self) -> float:
        """How long a stop or a rebalance waits for batches in flight."""

    @property
    def stall_timeout(self) -> float:
        """Without progress, until the worker ends itself."""
