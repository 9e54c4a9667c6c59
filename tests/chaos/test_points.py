"""The await points of the sweep: all are found, and the rewritten code does what the code does."""

from __future__ import annotations

import ast
import asyncio
from collections.abc import AsyncIterator, Generator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.chaos.sweep import hook
from tests.chaos.sweep.points import AFTER, BEFORE, MODULES, OF_NO_WORKER, ROOT, find, points

SOURCE = """
class Thing:
    async def run(self, source, lock, log):
        async with lock as held, lock:
            log.append(held)
        async for item in source():
            log.append(await self.twice(item))
        return [await self.twice(item) async for item in source()]

    async def twice(self, item):
        return await asleep(item) + await asleep(item)
"""


@pytest.fixture(autouse=True)
def unarmed() -> Iterator[None]:
    yield
    hook.counts.clear()
    hook.armed = None


def run(code: ast.Module) -> tuple[Any, list[Any]]:
    class Asleep:  # not a coroutine: one that is never awaited is a warning
        def __init__(self, item: int) -> None:
            self.item = item

        def __await__(self) -> Generator[Any, None, int]:
            yield from asyncio.sleep(0).__await__()
            return self.item

    async def source() -> AsyncIterator[int]:
        for item in (1, 2, 3):
            yield item

    @asynccontextmanager
    async def lock() -> AsyncIterator[str]:
        yield "held"

    class Lock:
        def __init__(self) -> None:
            self.inside: list[Any] = []

        async def __aenter__(self) -> str:
            self.inside.append(lock())
            return str(await self.inside[-1].__aenter__())

        async def __aexit__(self, *error: Any) -> None:
            await self.inside.pop().__aexit__(*error)

    names: dict[str, Any] = {"asleep": Asleep, hook.NAME: hook}
    exec(compile(code, "thing.py", "exec"), names)
    log: list[Any] = []
    return asyncio.run(names["Thing"]().run(source, Lock(), log)), log


def test_every_kind_of_point_is_found() -> None:
    in_source = find("thing.py", SOURCE)
    assert [(point.line, point.kind, point.where) for point in in_source] == [
        (4, "enter", "Thing.run"),
        (4, "exit", "Thing.run"),
        (4, "enter", "Thing.run"),
        (4, "exit", "Thing.run"),
        (6, "next", "Thing.run"),
        (7, "await", "Thing.run"),
        (8, "await", "Thing.run"),
        (8, "next", "Thing.run"),
        (11, "await", "Thing.twice"),
        (11, "await", "Thing.twice"),
    ]
    assert len({point.key for point in in_source}) == len(in_source)


def test_the_rewritten_code_does_the_same_and_passes_every_point() -> None:
    plain = run(ast.parse(SOURCE))
    assert plain == ([2, 4, 6], ["held", 2, 4, 6])
    assert run(hook.rewritten("thing.py", SOURCE)) == plain
    passed = {point for point, _ in hook.counts}
    assert passed == {point.key for point in find("thing.py", SOURCE)}
    inner = [point.key for point in find("thing.py", SOURCE) if point.line == 11]
    assert [hook.counts[key, side] for key in inner for side in (BEFORE, AFTER)] == [6] * 4


@pytest.mark.parametrize("side", [BEFORE, AFTER])
def test_it_dies_at_the_right_pass(side: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Died(Exception):
        pass

    def kill(*_: int) -> None:
        raise Died

    monkeypatch.setattr("os.kill", kill)
    point = next(point.key for point in find("thing.py", SOURCE) if point.line == 11)
    hook.armed = (point, side, 2)
    with pytest.raises(Died):
        run(hook.rewritten("thing.py", SOURCE))
    assert hook.counts[point, side] == 2
    assert hook.counts[point, AFTER] == (1 if side == BEFORE else 2)


def test_every_await_of_the_path_is_a_point() -> None:
    """Counted in another way: an await is an Await node, wherever it is."""
    for module in MODULES:
        file = module.replace(".", "/") + ".py"
        source = (ROOT / file).read_text()
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Await)]
        assert len([point for point in find(file, source) if point.kind == "await"]) == len(nodes), module
        left_out = {point.where for point in find(file, source)} - {
            point.where for point in points((module,))
        }
        assert left_out <= set(OF_NO_WORKER)
    assert len(points()) > 80


def test_what_is_left_out_is_there() -> None:
    files = [module.replace(".", "/") + ".py" for module in MODULES]
    everywhere = {point.where for file in files for point in find(file, (ROOT / file).read_text())}
    assert set(OF_NO_WORKER) <= everywhere


def test_early_imports_are_refused() -> None:
    import streams.transport.delivery

    assert streams.transport.delivery.__name__ in MODULES
    with pytest.raises(RuntimeError, match=r"streams\.transport\.delivery"):
        hook.install()
