"""What a reader follows is there: links of pages, and files that pages and docstrings name."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.unit.recipes import PAGES as HOW_TO
from tests.unit.recipes import changes

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.md", "*.py", "docs/**/*.md", *(f"{init.parent.name}/**/*.py" for init in ROOT.glob("*/__init__.py")))
    for path in ROOT.glob(pattern)
)
PAGES = [name for name in FILES if name.endswith(".md")]
RECIPES = sorted(path.name for path in HOW_TO.glob("add-*.md"))
LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
ROOMS = sorted({name.partition("/")[0] for name in FILES if "/" in name})
NAMED = re.compile(rf"(?<![\w/.-])((?:{'|'.join(ROOMS)})(?:/[\w.-]+)+\.(?:py|md|json|toml|sql|patch))\b")


def test_it_looks_at_something() -> None:
    assert len(PAGES) > 30
    assert len(FILES) > 300


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    page = ROOT / name
    assert [link for link in LINK.findall(page.read_text()) if not (page.parent / link).exists()] == []


def test_files_that_are_named_are_there() -> None:
    made = {(f"docs/how-to/{page}", change.path) for page in RECIPES for change in changes(page) if not change.before}
    dead = {
        (name, named)
        for name in FILES
        if name != "CHANGELOG.md"  # it tells of what was
        for named in NAMED.findall((ROOT / name).read_text())
        if "NAME" not in named and not (ROOT / named).exists()
    }
    assert dead == made, "only a recipe names files that are not there yet: those that it makes"


def test_json_that_anybody_may_have_written_is_read_where_its_depth_ends_no_program() -> None:
    own = {
        "stack/state.py": "our own file",
        "reference/compatibility.py": "a published schema of ours",
        "reference/examples.py": "what our own functions made",
        "workload/poison.py": "an event that our generator made",
        "operations/submit/parquet.py": "its own arguments",
        "operations/whatif.py": "what it has encoded itself",
        "operations/replay.py": "what it has encoded itself",
        "audit/stores.py": "the answer of our own script in Redis",
    }
    bare = set()
    for name in (name for name in FILES if name.endswith(".py") and not name.startswith(("tests/", "benchmarks/"))):
        tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
        guarded = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.Try) and any("RecursionError" in ast.unparse(handler.type or block) for handler in block.handlers)
            for statement in block.body
            for node in ast.walk(statement)
        }
        readers = ("json.loads", "msgspec.json.decode", "msgspec.msgpack.decode")
        calls = (node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) in readers)
        if any(id(call) not in guarded for call in calls):
            bare.add(name)
    assert bare - own.keys() == set(), "use contracts.strict_json.read_foreign, or audit.foreign.read_json"
    assert own.keys() - bare == set(), "no longer needed here"
