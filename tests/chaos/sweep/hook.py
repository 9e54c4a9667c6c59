"""The import hook: the modules of `points`, each await surrounded by two calls that count,
and kill when it is time.

Nothing of it is in the production code: the source is rewritten while it is imported, in
processes of the sweep only.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from types import CodeType, ModuleType
from typing import Any

from tests.chaos.sweep.points import AFTER, BEFORE, MODULES, places

NAME = "__sweep__"

counts: Counter[tuple[str, str]] = Counter()
"""(point, before or after) -> how often it was passed."""
armed: tuple[str, str, int] | None = None
"""Die at this point, before or after it, when it is passed the n-th time."""


def passed(point: str, side: str) -> None:
    """Count, and die if it is time."""
    key = (point, side)
    counts[key] += 1
    if armed is not None and armed[0] == point and armed[1] == side and counts[key] >= armed[2]:
        os.kill(os.getpid(), signal.SIGKILL)


def before(point: str, awaitable: Any) -> Any:
    passed(point, BEFORE)
    return awaitable


def after(point: str, value: Any) -> Any:
    passed(point, AFTER)
    return value


class Guarded:
    """An async context manager whose entering and leaving are two points."""

    def __init__(self, point: str, managed: Any) -> None:
        self._point = point
        self._managed = managed

    async def __aenter__(self) -> Any:
        passed(f"{self._point}:enter", BEFORE)
        entered = await self._managed.__aenter__()
        return after(f"{self._point}:enter", entered)

    async def __aexit__(self, *error: Any) -> Any:
        passed(f"{self._point}:exit", BEFORE)
        handled = await self._managed.__aexit__(*error)
        return after(f"{self._point}:exit", handled)


class Iterated:
    """An async iterator whose every step is a point."""

    def __init__(self, point: str, iterable: Any) -> None:
        self._point = f"{point}:next"
        self._iterator = aiter(iterable)

    def __aiter__(self) -> Iterated:
        return self

    async def __anext__(self) -> Any:
        passed(self._point, BEFORE)
        return after(self._point, await anext(self._iterator))


class Rewriter(ast.NodeTransformer):
    """await X -> after(point, await before(point, X)), and the like for async with and async for."""

    def __init__(self, file: str) -> None:
        self._file = file

    def visit_Await(self, node: ast.Await) -> ast.AST:
        [(kind, place)] = places(node)
        point = f"{self._at(place)}:{kind}"
        self.generic_visit(node)
        return _call("after", point, ast.Await(_call("before", point, node.value)), node)

    def visit_AsyncWith(self, node: ast.AsyncWith) -> ast.AST:
        at = [self._at(item.context_expr) for item in node.items]
        self.generic_visit(node)
        for point, item in zip(at, node.items, strict=True):
            item.context_expr = _call("Guarded", point, item.context_expr, item.context_expr)
        return node

    def visit_AsyncFor(self, node: ast.AsyncFor) -> ast.AST:
        return self._iterated(node)

    def visit_comprehension(self, node: ast.comprehension) -> ast.AST:
        return self._iterated(node) if node.is_async else self.generic_visit(node)

    def _iterated(self, node: ast.AsyncFor | ast.comprehension) -> ast.AST:
        point = self._at(node.iter)
        self.generic_visit(node)
        node.iter = _call("Iterated", point, node.iter, node.iter)
        return node

    def _at(self, place: ast.expr) -> str:
        return f"{self._file}:{place.lineno}:{place.col_offset}"


def _call(function: str, point: str, argument: ast.expr, place: ast.expr | None = None) -> ast.expr:
    call = ast.Call(
        ast.Attribute(ast.Name(NAME, ast.Load()), function, ast.Load()), [ast.Constant(point), argument], []
    )
    return ast.copy_location(call, place) if place is not None else call


def rewritten(file: str, source: str | bytes) -> ast.Module:
    """The module's tree with its points in it. Pure."""
    tree: ast.Module = ast.fix_missing_locations(Rewriter(file).visit(ast.parse(source)))
    return tree


class Loader(importlib.machinery.SourceFileLoader):
    """Compiles the rewritten source. Never from, nor into, a cache."""

    def get_code(self, fullname: str) -> CodeType:
        file = fullname.replace(".", "/") + ".py"
        path = self.get_filename(fullname)
        code: CodeType = compile(rewritten(file, self.get_data(path)), path, "exec", dont_inherit=True)
        return code

    def exec_module(self, module: ModuleType) -> None:
        module.__dict__[NAME] = sys.modules[__name__]
        super().exec_module(module)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of `points` as usual, and gives them our loader."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in MODULES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin is not None:
            spec.loader = Loader(name, spec.origin)
        return spec


def install() -> None:
    """From now on. Raises RuntimeError if one of the modules is imported already."""
    early = [name for name in MODULES if name in sys.modules]
    if early:
        raise RuntimeError(f"imported before the hook: {early}")
    sys.meta_path.insert(0, Finder())
