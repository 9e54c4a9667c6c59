"""The recipes of docs/how-to fit the code, and the one for an event is followed: what it says
is all that an event needs.
"""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from msgspec import structs

from domain.order import Order
from tables import codec
from tests.unit.builders import ANNA, BORIS, OrderBuilder, line
from tests.unit.recipes import PAGES, ROOT, apply
from tests.unit.test_tidy import MOST_LINES, functions

RECIPES = sorted(path.name for path in PAGES.glob("add-*.md"))

CHECK = r"""
import io, json, sys
from contextlib import redirect_stdout
from pathlib import Path

import contracts
assert Path(contracts.__file__).parents[1] == Path.cwd()

from audit import reference, states
from cli.events import events_command
from domain import events
from domain.explain import explain
from contracts.record_id import RecordId
from domain.fold import fold
from domain.order import Order
from reference.examples import examples
from tables import codec

TYPE = "order.note_added"
sent, _ = examples()
told = sent[TYPE]

def record(type_, data, time):
    attributes = {"specversion": "1.0", "id": time, "source": "/tests", "type": type_, "time": time}
    return [(f"ce_{name}", text.encode()) for name, text in attributes.items()], json.dumps(data).encode()

def take(order, type_, data, time):
    headers, value = record(type_, data, time)
    return fold(order, events.decode(type_, headers, value), RecordId(type_, 0, 0))

order = Order()
assert take(order, TYPE, told, "2026-03-01T12:00:00Z").changed
assert not take(order, TYPE, told, "2026-03-01T13:00:00Z").changed
assert take(order, TYPE, {**told, "text": "another"}, "2026-03-01T13:00:00Z").refused[0] == "key_conflict"
take(order, "order.created", sent["order.created"], "2026-03-01T10:00:00Z")
assert order.version == 2

facts = explain(bytes.fromhex(told["order_id"].replace("-", "")), order)["facts"]
lines = [line for line in facts if line["type"] == TYPE]
assert len(lines) == 1 and told["note_id"] in lines[0]["what"], lines

page = io.StringIO()
with redirect_stdout(page):
    events_command()
assert f"### {TYPE}" in page.getvalue() and told["text"] in page.getvalue()

other = reference.Order(told["order_id"])
for type_, time in ((TYPE, "2026-03-01T12:00:00Z"), ("order.created", "2026-03-01T10:00:00Z")):
    headers, value = record(type_, sent[type_], time)
    other.add(reference.parse(type_, told["order_id"].encode(), value, headers))
(reading,) = other.readings()
state = codec.encode(order)
assert states.differences(reading, states.read_state(state), lambda fact: None, []) == []

before = [bytes.fromhex(text) for text in sys.argv[1:]]
print(*(raw.hex() for raw in [*(codec.encode(codec.decode(raw)) for raw in before), state]))
"""
"""Run in a copy of the source with the recipe applied.
Prints states: those of its arguments, written again, and one with a note.
"""


def copy_of_the_source(folder: Path) -> Path:
    """All that the pipeline is made of, without tests."""
    for room in ROOT.glob("*/__init__.py"):
        if room.parent.name != "tests":
            shutil.copytree(
                room.parent, folder / room.parent.name, ignore=shutil.ignore_patterns("__pycache__")
            )
    for name in ("app.py", "errors.py", "settings.py"):
        shutil.copy(ROOT / name, folder)
    shutil.copytree(
        ROOT / "tests" / "contract",
        folder / "tests" / "contract",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    return folder


def test_there_are_recipes() -> None:
    expected = [
        "add-a-column.md",
        "add-a-derived-event.md",
        "add-a-setting.md",
        "add-a-sink.md",
        "add-an-agent.md",
        "add-an-event.md",
    ]
    assert expected == RECIPES


@pytest.mark.parametrize("page", RECIPES)
def test_its_diffs_fit_the_code(page: str, tmp_path: Path) -> None:
    source = copy_of_the_source(tmp_path)
    for path in apply(page, source):
        tree = ast.parse((source / path).read_text(), path)
        lengths = {f"{path}::{name}": lines for name, lines in functions(tree, "")}
        assert {name for name, lines in lengths.items() if lines > MOST_LINES} == set()


@pytest.mark.parametrize(
    ("page", "most"), [("add-an-event.md", 5), ("add-a-derived-event.md", 3), ("add-a-setting.md", 2)]
)
def test_it_touches_few_files_beside_the_auditors(page: str, most: int, tmp_path: Path) -> None:
    assert (
        len([path for path in apply(page, copy_of_the_source(tmp_path)) if not path.startswith("audit/")])
        <= most
    )


def built_orders() -> list[OrderBuilder]:
    paid = OrderBuilder()
    paid.create(line(1), line(2, BORIS))
    paid.pay("20.00")
    paid.scan("delivered")
    paid.give_back("processed")
    waiting = OrderBuilder()
    waiting.stock("rejected", ANNA)
    return [OrderBuilder(), paid.settle(), waiting]


def test_an_event_added_by_its_recipe_works(tmp_path: Path) -> None:
    apply("add-an-event.md", copy_of_the_source(tmp_path))
    before = [codec.encode(builder.order) for builder in built_orders()]
    run = subprocess.run(
        [sys.executable, "-c", CHECK, *(raw.hex() for raw in before)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    *after, with_a_note = (bytes.fromhex(text) for text in run.stdout.split())
    elements = len(Order.__struct_fields__)
    for old, new in zip(before, after, strict=True):
        # An array of one element more: each of those of before has its bytes, the new one is an empty list.
        assert (old[:3], new[:3]) == (
            b"\xdc" + elements.to_bytes(2, "big"),
            b"\xdc" + (elements + 1).to_bytes(2, "big"),
        )
        assert new[3:] == old[3:] + b"\x90"
        # What is made by the recipe is a later version, beside which this one may run.
        assert structs.astuple(codec.decode(new)) == structs.astuple(codec.decode(old))
        assert codec.encode(codec.decode(new)) == new
    assert codec.decode(with_a_note).version == 2
    assert len(msgspec.msgpack.decode(with_a_note)[-1]) == 1
    assert codec.is_state(b"x" * codec.KEY_BYTES, with_a_note)
    assert codec.encode(codec.decode(with_a_note)) == with_a_note


def test_the_first_page_of_the_documentation_leads_to_every_other() -> None:
    docs = ROOT / "docs"
    named = set(re.findall(r"\]\(([^)#]+)\)", (docs / "README.md").read_text(encoding="utf-8")))
    assert all((docs / path).exists() for path in named)
    pages = {
        str(path.relative_to(docs))
        for path in docs.rglob("*.md")
        if path.parent.name not in ("decisions", "runbook")
    }
    assert pages - named == {"README.md"}
    assert "](docs/README.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
