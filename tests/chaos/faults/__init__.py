"""All faults, by name. Each is a coroutine that injects, yields what it hit, and heals."""

from __future__ import annotations

from tests.chaos.faults import brokers, local, network, postgres, redis, traffic, workers
from tests.chaos.faults.base import CATALOGUE, Fault

__all__ = ["CATALOGUE", "Fault", "brokers", "local", "network", "postgres", "redis", "traffic", "workers"]
