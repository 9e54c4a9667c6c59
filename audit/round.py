"""What one round of an audit that follows has from the rounds before: connections, and where it stands."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiokafka import TopicPartition

from audit.checkpoint import Checkpoint, LaneCheckpoint
from audit.findings import Finding
from audit.index import Index
from audit.log import Log
from audit.orders import OrderReader
from audit.scope import Target
from audit.stores import Cache, Rows

_STEP: Final = 2_000
_MOST_SUSPECTS: Final = 500
"""Of a round: where a whole table is wrong, some of it is told at a time."""


@dataclass(slots=True)
class Servers:
    """What an audit reads from, and what it has read of dead letters, copies and redrives: `read` says up to
    where, by partition, and `lasting` what is broken in these. `checkpoint`: None, if the audit makes one of
    its own.
    """

    log: Log
    rows: Rows
    cache: Cache | None
    index: Index
    checkpoint: Checkpoint | None = None
    read: dict[TopicPartition, int] = field(default_factory=dict)
    lasting: list[Finding] = field(default_factory=list)

    @classmethod
    async def open(cls, target: Target, folder: Path, stack: AsyncExitStack) -> Servers:
        """Connect; `stack` closes what is opened. Raises LogUnavailable, StoreUnavailable."""
        log = await stack.enter_async_context(Log(target.kafka))
        rows = await stack.enter_async_context(Rows.open(target.postgres))
        cache = None
        if target.redis:
            cache = Cache(target.redis)
            stack.push_async_callback(cache.close)
        index = Index(folder)
        stack.callback(index.close)
        return cls(log, rows, cache, index)


@dataclass(slots=True)
class Follow:
    """Where an audit that follows stands. `count`: how many orders of which no record came this round looks
    at, by their ids after `after`. Unless `advance`, it reads nothing new, and judges only what waits.
    """

    servers: Servers
    cache_stall: float
    count: int = 0
    advance: bool = True
    after: bytes = b""
    swept: int = 0
    """How often all orders were looked at."""
    _behind: dict[int, tuple[int, float]] = field(default_factory=dict)

    def behind(self, lags: Mapping[int, int]) -> set[int]:
        """Lanes whose cache isn't compared, of those that are behind by so many records of the changelog: not
        those for which nothing came for `cache_stall` seconds, since nobody refreshes them.
        """
        now, before = time.monotonic(), self._behind
        self._behind = {
            lane: before[lane] if lane in before and before[lane][0] <= lag else (lag, now)
            for lane, lag in lags.items()
        }
        return {lane for lane, (_, since) in self._behind.items() if now - since < self.cache_stall}

    async def look(self, reader: OrderReader, checkpoint: Checkpoint, lanes: int) -> None:
        """Look at the next `count` orders. Raises StoreUnavailable, CheckpointUnusable."""
        opened: list[LaneCheckpoint] = []
        try:
            for number in range(lanes):
                lane = checkpoint.lane(number)
                assert lane is not None
                opened.append(lane)
            left = self.count
            while left > 0 and sum(map(len, reader.suspects.values())) < _MOST_SUSPECTS:
                self.after = await reader.look(opened, self.after, min(left, _STEP))
                left -= _STEP
                if not self.after:
                    self.swept += 1
                    return
        finally:
            for lane in opened:
                lane.close()
