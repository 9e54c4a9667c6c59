"""What import-linter can't see: modules at the top, and circles of imports."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
FILES = {
    path: ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for room in ROOMS
    for path in (ROOT / room).rglob("*.py")
}
MODULES = {name.removesuffix(".__init__"): path for path, name in FILES.items()}
MODULES |= {name: ROOT / f"{name}.py" for name in ("app", "errors", "settings")}


def imported(path: Path) -> set[str]:
    """Modules of ours that a file imports, also for types. Imports inside of functions are left out."""
    modules: set[str] = set()
    waiting: list[ast.stmt] = list(ast.parse(path.read_text()).body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.If, ast.Try)):
            waiting += node.body
        elif isinstance(node, ast.Import):
            modules.update(each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            modules.update(
                f"{module}.{each.name}" if f"{module}.{each.name}" in MODULES else module
                for each in node.names
            )
    return modules & MODULES.keys()


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("app", {"contracts", "settings", "sinks", "streams", "tables"}),
        ("settings", {"domain", "errors"}),
        ("errors", set()),
    ],
)
def test_a_module_at_the_top_keeps_to_its_floor(module: str, allowed: set[str]) -> None:
    rooms = {name.partition(".")[0] for name in imported(MODULES[module])}
    assert rooms <= allowed


def test_no_files_import_each_other_in_a_circle() -> None:
    left = {name: imported(path) - {name} for name, path in MODULES.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert left == {}
