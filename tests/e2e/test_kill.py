"""kill -9 of one of two workers in the middle, and a worker that is stopped past its session: rows exact afterwards."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

from settings import Settings
from sources import generator
from sources.producer import send
from streams.lag import LagReader
from tests.waiting import eventually
from tests.workers import audit, processed, worker


async def _handled(settings: Settings) -> int:
    async with LagReader(settings) as reader:
        return sum(position.committed for position in (await reader.lag()).values())


async def test_kill_9_of_one_of_two_workers_loses_nothing(fresh: Settings, tmp_path: Path) -> None:
    history = list(generator.events(1500, 21, generator.Shares(duplicates=0.05, shuffle=0.2, poison=0.005)))
    with worker(tmp_path, "w1") as first, worker(tmp_path, "w2"):
        sending = asyncio.ensure_future(send(fresh, history))

        async def under_way() -> bool:
            return await _handled(fresh) > 500

        await eventually(under_way, "500 records are handled")
        first.kill()
        await sending
        processed()
        report = audit()
        assert report["counts"]["orders"] >= 1500
        with worker(tmp_path, "w1") as again:  # with the local state that the killed one left
            await send(fresh, generator.events(200, 22))
            processed()
            audit()
            assert again.terminate() == 0


async def test_a_worker_stopped_past_its_session_harms_nothing(fresh: Settings, tmp_path: Path) -> None:
    history = list(generator.events(1200, 23))
    with worker(tmp_path, "w1") as first, worker(tmp_path, "w2"):
        sending = asyncio.ensure_future(send(fresh, history))

        async def under_way() -> bool:
            return await _handled(fresh) > 500

        await eventually(under_way, "500 records are handled")
        first.process.send_signal(signal.SIGSTOP)
        try:
            await sending
            processed()  # by the other one alone: the session timeout has passed
        finally:
            first.process.send_signal(signal.SIGCONT)
        await send(fresh, generator.events(100, 24))
        processed()
        audit()
