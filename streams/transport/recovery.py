"""Recovery of the tables from their changelogs: Faust's sequence of steps, our way for the records.

Faust puts each changelog record through a queue as an event of its own.
Here a list goes into the store in one step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from faust.tables.manager import TableManager
from faust.tables.recovery import RebalanceAgain, Recovery, ServiceStopped
from faust.types import TP
from mode import Service

from streams.transport.errors import RecoveryStalled
from streams.transport.records import Record

log = logging.getLogger(__name__)

REPORT_INTERVAL = 5.0


class ListRecovery(Recovery):
    """Recovers active partitions from lists of records."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.progress_at = time.monotonic()
        self.recovered = 0

    def apply(self, tp: TP, records: Sequence[Record], to: int) -> None:
        """Take over [.., to) of a changelog; the next call for `tp` begins at `to`. Writes the local disk."""
        if tp not in self.active_tps:
            return
        self.tp_to_table[tp].store.recover(tp.partition, records, to)  # type: ignore[attr-defined]
        self.active_offsets[tp] = to - 1
        self._last_flush_at = self._active_events_received_at[tp] = self.progress_at = time.monotonic()
        self.recovered += len(records)
        if self.in_recovery and not self.need_recovery():
            self.signal_recovery_end.set()

    def standstill(self) -> str:
        """Where recovery stands, for a person.
        Not moving, it most likely waits for the end of a transaction.
        """
        places = ", ".join(
            f"{tp.topic}/{tp.partition} at {stats.offset + 1}"
            for tp, stats in sorted(self.active_stats().items())
        )
        return (
            f"recovery reads {places}; a transaction that nobody ends would hold it up there"
            " (docs/delivery.md, hanging transactions)"
        )

    def position(self, tp: TP) -> int:
        """The changelog offset to go on from."""
        return (self.active_offsets[tp] if self.active_offsets[tp] is not None else -1) + 1

    async def _build_highwaters(self, consumer: Any, tps: set[TP], destination: Any, title: str) -> None:
        await consumer.prepare_lanes()
        await super()._build_highwaters(consumer, tps, destination, title)

    def _set_recovery_started(self) -> None:
        self.signal_recovery_end.clear()
        self.progress_at = time.monotonic()
        super()._set_recovery_started()

    async def _wait(self, coro: Any, timeout: Any = None) -> None:
        # Faust takes a timeout for the end of the service, and recovery then never goes on.
        result = await self.wait_first(coro, self.signal_recovery_start, timeout=timeout)  # type: ignore[arg-type]
        signal: Any = self.signal_recovery_start
        if signal in result.done:
            raise RebalanceAgain
        if result.stopped:
            if self.should_stop or timeout is None:
                raise ServiceStopped
            raise RecoveryStalled(f"Kafka did not answer within {timeout} s while tables were recovered")

    @Service.task
    async def _slurp_changelogs(self) -> None:
        """Nothing comes through Faust's queue."""

    @Service.task
    async def _publish_stats(self) -> None:
        while not self.should_stop:
            await self.sleep(REPORT_INTERVAL)
            if self.in_recovery and (left := self.active_remaining_total()) > 0:
                log.info(
                    "recovering: %(read)d changelog records read, %(left)d to go",
                    {"read": self.recovered, "left": left},
                )
                if time.monotonic() - self.progress_at > 2 * REPORT_INTERVAL:
                    log.warning("no progress: %s", self.standstill())


class ListTableManager(TableManager):
    """Faust's table manager with ListRecovery."""

    @property
    def recovery(self) -> ListRecovery:
        """The recovery service."""
        if self._recovery is None:
            self._recovery = ListRecovery(self.app, self, beacon=self.beacon, loop=self.loop)
        assert isinstance(self._recovery, ListRecovery)
        return self._recovery

    async def on_start(self) -> None:
        """As Faust's, without its second of waiting for agents: there are none."""
        await self._update_channels()
        await self.recovery.start()
