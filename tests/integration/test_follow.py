"""An audit that follows tells what is planted while it runs, and that it is gone; killed, it goes on."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from audit.follow import Follower, Told
from settings import Settings
from stack import ports
from tests.forked import Forked
from tests.integration.audit_world import World, created, uid, world_on
from tests.integration.test_audit import again, ordinary
from tests.waiting import eventually
from tests.workers import ORDERS


@pytest.fixture
async def world(fresh: Settings) -> AsyncIterator[World]:
    async with world_on(fresh) as made_world:
        yield made_world


class Following:
    """A follower in this process: what it tells, by the name of the order."""

    def __init__(self, world: World) -> None:
        self.told: list[tuple[str, str, str]] = []
        self.rounds = 0
        self._world = world
        self._stop = asyncio.Event()
        target = world.target(checkpoints=world.settings.data / ".audit", data=None)
        self.said: list[str] = []
        self._follower = Follower(
            target, interval=0.1, rate=1000, tell=self._tell, say=self.said.append, after_round=self._count
        )
        self._running = asyncio.ensure_future(self._follower.run(self._stop))

    def _tell(self, news: Told) -> None:
        names = {uid(name): name for name in self._world.names}
        self.told.append((news.what, names[news.finding.order_id], news.finding.where.partition("@")[0]))

    def _count(self, follower: Follower) -> None:
        self.rounds += 1

    async def more(self, rounds: int) -> None:
        """Wait until so many rounds have begun and ended."""
        wanted = self.rounds + rounds + 1

        async def enough() -> bool:
            if self._running.done():
                self._running.result()
            return self.rounds >= wanted

        await eventually(enough, f"{rounds} more rounds")

    async def end(self) -> bool:
        self._stop.set()
        return await self._running


async def test_it_tells_what_is_planted_and_that_it_is_gone(world: World) -> None:
    world.name("quiet", "moving", "later")
    for name in ("quiet", "moving"):
        await ordinary(world, name)
    await world.write()
    await world.commit()
    following = Following(world)
    await following.more(1)
    assert following.said[0] == "there is no checkpoint yet: everything is audited first"

    # In the middle of its work a worker has written more than it has committed.
    await world.send("payment.failed", {"order_id": uid("moving"), "payment_id": uid("f"), "reason": "r"}, 9)
    async with world.database.transaction():
        await again(world, "moving")
    await following.more(2)
    assert following.told == []
    await world.commit()
    await following.more(1)
    assert following.told == []

    order, row = uid("quiet"), f"orders_order {uid('quiet')} currency"
    await world.database.execute("UPDATE orders_order SET currency = 'XXX' WHERE id = $1", order)
    await following.more(2)
    await world.database.execute("UPDATE orders_order SET currency = 'EUR' WHERE id = $1", order)
    await following.more(2)
    assert following.told == [("broken", "quiet", row), ("mended", "quiet", row)]

    ours = "application_name = 'orders-audit' AND datname = current_database()"
    await world.database.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {ours}")
    await following.more(2)
    assert [line.partition(":")[0] for line in following.said[-2:]] == ["Postgres", "the servers are back"]

    await world.send("order.created", created("later"))
    await world.write(frozenset({("stock.reserve", "later")}), frozenset({"later"}))
    await world.commit()
    await following.more(2)
    assert following.told[2:] == [("broken", "later", "stock.reserve")]
    for (type_, made_id), data in world.reading("later").derived().items():
        if type_ == "stock.reserve":
            await world.derive(type_, "later", data, made_id)
    await following.more(2)
    assert following.told[3:] == [("mended", "later", "stock.reserve")]
    await world.redis.set(f"order:{uid('later')}", "{}", ex=100)
    await following.more(2)
    assert following.told[-1] == ("broken", "later", f"order:{uid('later')}")
    assert not await following.end()


async def test_killed_it_goes_on_from_its_checkpoint(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.name("one", "two")
    for name in world.names:
        await ordinary(world, name)
    await world.write()
    await world.commit()
    port = ports.choose(set())
    monkeypatch.setenv("ORDERS_METRICS_PORT", str(port))

    def started(name: str) -> Forked:
        command = (*ORDERS, "audit", "--follow", "--json", "--interval", "0.5")
        return Forked(command, tmp_path / name, tmp_path / "err")

    async def lines(out: Forked, event: str) -> list[dict[str, Any]]:
        got: list[dict[str, Any]] = []

        async def there() -> bool:
            assert out.poll() is None, (tmp_path / "err").read_text()
            lines = [
                json.loads(line) for line in out.out.read_text().splitlines(keepends=True) if "\n" in line
            ]
            got[:] = [line for line in lines if line["event"] == event]
            return bool(got)

        await eventually(there, f"{event} is told")
        return got

    first = started("first")
    await lines(first, "notice")
    await world.database.execute("UPDATE orders_order SET currency = 'XXX' WHERE id = $1", uid("one"))
    (broken,) = await lines(first, "broken")
    assert (broken["check"], broken["order_id"], broken["actual"]) == ("rows", uid("one"), "XXX")
    first.kill()
    first.wait()
    await world.send("payment.failed", {"order_id": uid("two"), "payment_id": uid("f"), "reason": "r"}, 9)
    await again(world, "two")
    await world.commit()
    second = started("second")
    assert await lines(second, "broken") == [broken | {"at": (await lines(second, "broken"))[0]["at"]}]
    place = f'{{partition="{world.lane(uid("two"))}",topic="payment.failed"}}'
    metrics = ('orders_audit_broken{check="rows"} 1.0', f"orders_audit_position{place} 1.0")

    async def measured() -> bool:
        async with httpx.AsyncClient() as client:
            text = (await client.get(f"http://127.0.0.1:{port}/metrics")).text
        assert "orders_audit_age_seconds" in text
        return all(each in text for each in metrics)

    await eventually(measured, f"{metrics} are served")
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 1
    await world.database.execute("UPDATE orders_order SET currency = 'EUR' WHERE id = $1", uid("one"))
    third = started("third")
    (swept,) = await lines(third, "notice")
    assert swept["text"].startswith("every order was looked at within")
    third.send_signal(signal.SIGINT)
    assert third.wait(30) == 0
    assert "audited first" not in (tmp_path / "second").read_text() + (tmp_path / "third").read_text()
