"""The group's lock against a real coordinator: workers and the lock keep each other out,
and a lost lock is noticed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from aiokafka.protocol.group import LeaveGroupRequest

from operations.grouplock import GroupBusy, GroupLock
from settings import Settings
from streams.lag import LagReader
from streams.transport.delivery import Stale
from tests.waiting import eventually
from tests.workers import ORDERS, Worker, worker


async def test_workers_and_the_lock_keep_each_other_out(fresh: Settings, tmp_path: Path) -> None:
    with worker(tmp_path) as running:
        with pytest.raises(GroupBusy, match=f"group {fresh.group} has members"):
            async with GroupLock(fresh):
                pass
        assert running.terminate() == 0
    async with LagReader(fresh) as reader:
        before = await reader.lag()
    async with GroupLock(fresh) as lock:
        lock.check()
        with pytest.raises(GroupBusy):
            async with GroupLock(fresh):
                pass
        kept_out = Worker(tmp_path / "kept-out.log", (*ORDERS, "worker", "--name", "kept-out"))

        async def ended() -> bool:
            return kept_out.process.poll() is not None

        await eventually(ended, "the worker ends", 60)
        assert kept_out.process.returncode == 1
        said = (
            f"group {fresh.group} keeps workers out; start the worker again when orders repair or orders"
            " rebuild has ended"
        )
        assert said in kept_out.text()
        lock.check()
    async with LagReader(fresh) as reader:
        assert await reader.lag() == before, "the group's offsets stay as they are"
        assert await reader.members() == 0, "it has left"
    with worker(tmp_path, "again") as again:
        assert again.terminate() == 0


async def test_a_lost_lock_is_noticed(fresh: Settings) -> None:
    async with GroupLock(fresh) as lock:
        await lock._ask(
            LeaveGroupRequest(fresh.group, lock._member)
        )  # what the coordinator does to a member that it doesn't hear

        async def lost() -> bool:
            try:
                lock.check()
            except Stale:
                return True
            return False

        await eventually(lost, "the lock says that it is lost")
