"""The network between a worker and the broker breaks: what is under way then, and
connections that are half open.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from stack import Stack, ports
from tests.chaos.proxy import Proxy
from tests.integration.counting import Counting, counting
from tests.stackfixture import place


@pytest.fixture(scope="module")
def detour(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stack, int]]:
    """A broker whose clients of a second listener are told a port where a proxy can listen."""
    folder = tmp_path_factory.mktemp("detour") / "stack"
    port = ports.choose(set())
    with place(folder):
        yield Stack.start(folder, advertise=[f"127.0.0.1:{port}"]), port


class Trap:
    """A proxy's wire that closes the network at the first request that holds a text, before it has passed."""

    def __init__(self, text: bytes) -> None:
        self.text = text
        self.armed = False
        self.proxy: Proxy | None = None

    def wire(self) -> Trap:
        return self

    def to_server(self, data: bytes) -> bytes:
        if self.armed and self.text in data:
            self.armed = False
            assert self.proxy is not None
            self.proxy.black_hole()
        return data

    def to_client(self, data: bytes) -> bytes:
        return data


@pytest.fixture
async def group(detour: tuple[Stack, int], tmp_path: Path) -> AsyncIterator[Counting]:
    async with counting(detour[0].env["ORDERS_KAFKA"], tmp_path) as group:
        yield group


async def test_a_write_that_the_network_held_back_does_not_arrive_after_the_session(
    group: Counting, detour: tuple[Stack, int]
) -> None:
    """Two workers; one is cut off while a changelog write of its is on the wire, and connected again
    when the other has gone on.
    """
    stack, port = detour
    trap = Trap(group.changelog.encode())
    proxy = trap.proxy = Proxy("kafka", trap.wire, port)
    await proxy.start(stack.detours[proxy.address])
    try:
        cut_off, other = group.start("1", ORDERS_KAFKA=proxy.address), group.start("2")
        await cut_off.logged(", generation")
        await other.logged("open, generation")
        async with group.fed():
            await group.written(200)
            before = len(other.text())
            trap.armed = True
            await other.logged("lanes 0, 1, 2, 3 open", after=before)
            await group.written(500)
            again = len(cut_off.text())
            await proxy.heal()
            await cut_off.logged("open, generation", after=again)
            await group.written(200)
        await group.drained()
        await group.verify()
    finally:
        await proxy.close()


async def test_half_open_connections_are_made_anew_within_a_session(
    group: Counting, detour: tuple[Stack, int]
) -> None:
    stack, port = detour
    proxy = Proxy("kafka", port=port)
    await proxy.start(stack.detours[proxy.address])
    try:
        worker = group.start("1", ORDERS_KAFKA=proxy.address)
        await worker.ready()
        await group.produce(200)
        await group.drained()
        proxy.half_open()
        await group.produce(200)
        await group.drained(25.0)  # a request's own timeout is 40 s
        await group.verify()
        assert await worker.stop() == 0
    finally:
        await proxy.close()
