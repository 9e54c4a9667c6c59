"""Where a worker can be interrupted: every await of the modules on a batch's path.
Pure, but for reading the source.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[3]

MODULES: Final = (
    "streams.pipeline",
    "streams.cache",
    "streams.transport.delivery",
    "streams.transport.lane",
    "streams.transport.batch",
    "streams.transport.changelog",
    "streams.transport.producer",
    "streams.transport.consumer",
    "streams.transport.consumer_thread",
    "streams.transport.recovery",
    "streams.transport.table",
    "sinks.postgres",
    "sinks.redis",
)
"""A batch's steps, commits, recovery, rebalances."""

OF_NO_WORKER: Final = {
    "PostgresSink.replace": "orders repair and orders rebuild; killed in tests of their own",
    "RedisSink.write": "orders repair; a lane calls put",
    "Consumer.committed": "Faust's interface; the consumer asks the thread",
}
"""Functions of these modules that no batch passes -> who does."""

BEFORE, AFTER = "before", "after"


@dataclass(frozen=True, slots=True, order=True)
class Point:
    """One await. `kind`: await, enter or exit (of an async with), next (of an async for).
    `where` is the function, `text` the code.
    """

    file: str
    line: int
    column: int
    kind: str
    where: str
    text: str

    @property
    def key(self) -> str:
        """Tells it from all others; the hook's name for it."""
        return f"{self.file}:{self.line}:{self.column}:{self.kind}"

    def __str__(self) -> str:
        return f"{self.file}:{self.line} {self.where} ({self.kind}): {self.text}"


def points(modules: tuple[str, ...] = MODULES) -> list[Point]:
    """All that a worker passes, in the order of the code. Reads the source."""
    every_point: list[Point] = []
    for module in modules:
        file = module.replace(".", "/") + ".py"
        every_point += [
            point for point in find(file, (ROOT / file).read_text()) if point.where not in OF_NO_WORKER
        ]
    return every_point


def find(file: str, source: str) -> list[Point]:
    """The points of one file. Pure."""
    in_file: list[Point] = []
    lines = source.splitlines()

    def walk(node: ast.AST, where: str) -> None:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            where = f"{where}.{node.name}" if where else node.name
        for kind, place in places(node):
            text = lines[node.lineno - 1].strip() if hasattr(node, "lineno") else ast.unparse(node)
            in_file.append(Point(file, place.lineno, place.col_offset, kind, where, text))
        for child in ast.iter_child_nodes(node):
            walk(child, where)

    walk(ast.parse(source), "")
    return sorted(in_file)


def places(node: ast.AST) -> list[tuple[str, ast.expr]]:
    """What a node waits for: kind, and the expression that names the place."""
    if isinstance(node, ast.Await):
        return [("await", node)]
    if isinstance(node, ast.AsyncWith):
        return [(kind, item.context_expr) for item in node.items for kind in ("enter", "exit")]
    if isinstance(node, ast.AsyncFor | ast.comprehension) and (
        isinstance(node, ast.AsyncFor) or node.is_async
    ):
        return [("next", node.iter)]
    return []
