"""All faults, by name. Each is a coroutine that injects, yields what it hit, and heals."""

from __future__ import annotations

from tests.chaos.faults import brokers, local, network, postgres, redis, traffic, workers
from tests.chaos.faults.base import CATALOGUE, Fault

__all__ = [
    "CATALOGUE",
    "READS_THE_WIRE",
    "Fault",
    "brokers",
    "local",
    "network",
    "postgres",
    "redis",
    "traffic",
    "workers",
]

READS_THE_WIRE = frozenset({"postgres-reply-lost"})
"""Left out on a secure stack: nobody between can read what TLS carries."""
