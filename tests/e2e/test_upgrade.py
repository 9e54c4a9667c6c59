"""Workers of the version before and of this one in one group, forward and back, killed in the middle: each
goes on with what the other wrote.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

from contracts.cloudevents import SourceEvent
from domain.order import Created, Order, RefundDecision
from settings import Settings
from streams.lag import LagReader
from tests.e2e import previous
from tests.integration.test_repair import states_of
from tests.waiting import eventually
from tests.workers import Worker, audit, orders, processed, worker
from workload import generator
from workload.producer import send

CREATED, DECISIONS = map(Order.__struct_fields__.index, ("created", "decisions"))
CREATED_BEFORE = Created.__struct_fields__.index("prices_include_tax")
"""Elements of an order.created that the version before takes in."""
BEFORE = RefundDecision.__struct_fields__.index("tax")
"""Elements of a decision that the version before takes in: it knows no tax, nor what came later."""
SHARES = generator.Shares(duplicates=0.05, shuffle=0.2, poison=0.005)
CART = re.compile(rb', ?"cart_(id|created_at)": ?"[^"]*"')
HISTORY = [
    # Taxes, carts, promises, grants and orders of another system are sent when all workers know them.
    event._replace(value=event.value and CART.sub(b"", event.value))
    for event in generator.events(300, 91, SHARES, taxed=0, promised=0, granted=0, taken_over=0)
    if event.topic not in ("refund.granted", "promise.updated")
    and (event.value is None or b'"taxes"' not in event.value)
]


async def send_and_kill(settings: Settings, events: Sequence[SourceEvent], killed: Worker) -> None:
    """Send events, and kill one of two workers when it has handled some of them. The second half is sent
    after that, so that orders go on which it has begun, however fast it is.
    """

    def lane() -> int | None:
        opened = re.findall(r"lanes ([\d, ]+) open, generation", killed.text())
        return int(opened[-1]) if opened and opened[-1].isdigit() else None

    async def shared() -> bool:
        return lane() is not None

    await eventually(shared, "the lanes are shared out")
    mine = lane()
    half = len(events) // 2
    sending = asyncio.ensure_future(send(settings, events[:half]))

    async with LagReader(settings) as reader:

        async def handled() -> int:
            lag = await reader.lag()
            return sum(position.committed for (_, partition), position in lag.items() if partition == mine)

        before = await handled()

        async def under_way() -> bool:
            return await handled() > before + half // 4

        await eventually(under_way, "half of its events that were sent are handled")
        killed.kill()
    await sending
    await send(settings, events[half:])


@pytest.mark.previous
async def test_forward_and_back_in_one_group(fresh: Settings, tmp_path: Path) -> None:
    tree = previous.unpack(tmp_path / "before")

    def of_before(name: str) -> AbstractContextManager[Worker]:
        return worker(tmp_path, name, previous.orders(tree, "worker", "--name", name))

    thirds = [HISTORY[len(HISTORY) * i // 3 : len(HISTORY) * (i + 1) // 3] for i in range(3)]
    with of_before("w1") as old, worker(tmp_path, "w2") as new:
        # Forward: the old one is killed, and this version goes on with the local states that it left.
        await send_and_kill(fresh, thirds[0], old)
        with worker(tmp_path, "w1") as newer:
            # And back, the same way.
            await send_and_kill(fresh, thirds[1], new)
            with of_before("w2") as again:
                await send(fresh, thirds[2])
                processed()
                assert again.terminate() == 0
            # Tables that the version before doesn't know have none of its rows. Its auditor isn't asked: it
            # doesn't know what refund.request says now.
            repaired = orders("repair", "--rows")
            assert repaired.returncode == 0, repaired.stderr
            processed()
            assert newer.terminate() == 0
    # Nor does the version before tell of attention that it doesn't know of.
    made_up_for = orders("rebuild", "notices", "--send")
    assert made_up_for.returncode == 0, made_up_for.stderr
    report = audit()
    assert report["counts"]["orders"] >= 300
    # Each has gone on with states of the other one.
    followed = [
        (msgspec.msgpack.decode(earlier), msgspec.msgpack.decode(later))
        for states in (await states_of(fresh)).values()
        for earlier, later in pairwise(states)
    ]
    created = {
        (len(earlier[CREATED]), len(later[CREATED])) for earlier, later in followed if earlier[CREATED]
    }
    whole = len(Created.__struct_fields__)
    assert (CREATED_BEFORE, whole) in created
    decided = {
        (len(earlier[CREATED]), len(later[DECISIONS][-1]))
        for earlier, later in followed
        if earlier[CREATED] and len(later[DECISIONS]) > len(earlier[DECISIONS])
    }
    assert (whole, BEFORE) in decided
