"""One house style, held by machine: what a reader follows is there, functions are short, nothing private is
dead, words are the field's.
"""

from __future__ import annotations

import ast
import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import aiokafka
import faust
import mode
import pytest

from tests.mutants.planted import CONTROL, RESULTS, SIMULATION, mutants
from tests.parsed import ROOT, parsed
from tests.unit.recipes import PAGES as HOW_TO
from tests.unit.recipes import changes

WIDTH: Final = 100
"""Columns of a page."""
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in (
        "*.md",
        "*.py",
        "docs/**/*.md",
        *(f"{init.parent.name}/**/*.py" for init in ROOT.glob("*/__init__.py")),
    )
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


def test_every_decision_is_listed_under_its_title() -> None:
    folder = ROOT / "docs" / "decisions"
    listed = re.findall(
        r"^\| (\d+) \| \[(.*)\]\((.*)\) \|$", (folder / "README.md").read_text(), re.MULTILINE
    )
    pages = sorted(folder.glob("0*.md"))
    assert [f"# {number}. {title}" for number, title, _ in listed] == [
        page.read_text().splitlines()[0] for page in pages
    ]
    assert [name for *_, name in listed] == [page.name for page in pages]


def test_no_link_is_ever_added() -> None:
    """.venv may be one to another folder's: whoever merged it would lose the .venv that is there."""
    assert ".venv" in (ROOT / ".gitignore").read_text().splitlines()


def test_files_that_are_named_are_there() -> None:
    to_come = {
        (f"docs/how-to/{page}", change.path)
        for page in RECIPES
        for change in changes(page)
        if not change.before
    }
    dead = {
        (name, named)
        for name in FILES
        if name != "CHANGELOG.md"  # it tells of what was
        for named in NAMED.findall((ROOT / name).read_text())
        if "NAME" not in named and not any((at / named).exists() for at in (ROOT, (ROOT / name).parent))
    }
    assert dead == to_come, "only a recipe names files that are not there yet: those that it makes"


def test_planted_bugs_are_noticed_by_what_is_there() -> None:
    """Each has a line in results.json, and its catcher exists."""
    recorded = {each["name"] for each in json.loads(RESULTS.read_text())["mutants"]}
    assert recorded == {mutant.name for mutant in [CONTROL, *mutants()]}
    dead = set()
    for mutant in mutants():
        file, _, test = mutant.catcher.partition("::")
        if mutant.catcher == SIMULATION:
            continue
        text = (ROOT / file).read_text() if (ROOT / file).is_file() else ""
        if not re.search(rf"def {test}\(" if test else "def test_", text):
            dead.add((mutant.name, mutant.catcher))
    assert dead == set()


# -- what is made in one place -------------------------------------------------------------------------------

SOURCES = [name for name in FILES if name.endswith(".py") and not name.startswith("tests/")]
CLIENTS = {"AIOKafkaConsumer", "AIOKafkaProducer", "AIOKafkaAdminClient", "AIOKafkaClient", "Client"}
STORES = {"Options", "BlockBasedOptions", "PlainTableFactoryOptions", "CuckooTableOptions"}


def makers(names: set[str]) -> set[str]:
    """The sources that call one of these."""
    return {
        name
        for name in SOURCES
        for node in ast.walk(parsed(name))
        if isinstance(node, ast.Call)
        and (node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""))
        in names
    }


def test_kafka_clients_are_made_in_one_place() -> None:
    assert makers(CLIENTS) == {
        "wire/clients.py",
        "benchmarks/peers/clients/aiokafka_asyncpg.py",  # which shares no code with ours
    }, "how brokers are reached stands once"


def test_options_of_rocksdb_stand_once() -> None:
    assert makers(STORES) == {
        "streams/transport/table.py",
        "audit/stores.py",  # reads what workers wrote, and shares no code with them
    }


def prose(page: str) -> Iterator[str]:
    """Lines of a page that can be wrapped: not those of tables, headings, code
    (between fences, or indented).
    """
    text = re.sub(r"^ *(```+|~~~+).*?^ *\1 *$", "", page, flags=re.DOTALL | re.MULTILINE)
    for line in text.splitlines():
        if not re.match(r"    |\t| *[|#<]", line):
            yield re.sub(r"\]\([^)]*\)", "]", line)


@pytest.mark.parametrize("name", PAGES)
def test_pages_are_wrapped(name: str) -> None:
    """Links, and words that nearly fill a line, may reach beyond."""
    long = [line for line in prose((ROOT / name).read_text()) if len(line) > WIDTH]
    assert [line for line in long if max(map(len, line.split())) <= 80] == []


# -- code ----------------------------------------------------------------------------------------------------

HERE = Path(__file__).relative_to(ROOT).as_posix()
CODE = [name for name in FILES if name.endswith(".py")]
MOST_LINES: Final = 70

LIBRARIES: Final = (aiokafka, asyncio, faust, mode)
"""We override private names of these, which call them."""

BANNED: Final = {
    "survey": "view, order view",
    "Survey": "OrderView",
    "Sums": "RunningTotals",
    "manieth": "number of the attempt, version",
    "Patience": "DeadlinePolicy",
    "patience": "timeout, deadline policy, report interval",
    "Touched": "OrderInBatch",
    "breath": "turn, YIELD_EVERY",
    "refold": "replay, fold again",
    "refolds": "replays, folds again",
    "hungry": "unfilled",
    "handful": "chunk",
    "bazaar": "simulated services",
    "Bazaar": "Simulation",
    "Market": "Simulation",
}
"""A word -> what to say. Words that were once of this project alone."""

VAGUE: Final = {"anew", "found", "made", "told"}
"""Names that say that something was got, not what it is."""


def functions(node: ast.AST, within: str) -> Iterator[tuple[str, int]]:
    """Name, with the classes and functions around it, and length of each function, without its decorators."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue
        inner = within
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            inner = f"{within}.{child.name}" if within else child.name
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield inner, (child.end_lineno or 0) - child.lineno + 1
        yield from functions(child, inner)


def test_functions_fit_on_a_screen() -> None:
    lengths = {
        f"{name}::{function}": lines for name in CODE for function, lines in functions(parsed(name), "")
    }
    assert {name: lines for name, lines in lengths.items() if lines > MOST_LINES} == {}


def uses(name: str) -> Iterator[str]:
    """Every name that a file reads or calls, also in texts (getattr, monkeypatch, programs of tests)."""
    for node in ast.walk(parsed(name)):
        if isinstance(node, ast.Name | ast.Attribute) and not isinstance(node.ctx, ast.Store):
            yield node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.alias):
            yield node.name
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\b_\w+", node.value)


def private(name: str) -> Iterator[str]:
    """Private names that a file gives. A decorator may use what it is given, so what has one is left out."""
    for node in ast.walk(parsed(name)):
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef() if not node.decorator_list:
                given = node.name
            case ast.Name(ctx=ast.Store()):
                given = node.id
            case ast.Attribute(ctx=ast.Store()):
                given = node.attr
            case _:
                continue
        if re.fullmatch(r"_[A-Za-z]\w*(?<!__)", given):
            yield given


def test_no_private_name_is_dead() -> None:
    """Nor kept alive by tests alone."""
    source = [name for name in CODE if not name.startswith("tests/")]
    used = Counter(use for name in source for use in uses(name))
    tested = used + Counter(use for name in CODE if name not in (*source, HERE) for use in uses(name))
    dead = {(name, given) for name in source for given in private(name) if not used[given]}
    dead |= {(name, given) for name in CODE for given in private(name) if not tested[given]}
    theirs = {
        name
        for library in LIBRARIES
        for file in Path(str(library.__file__)).parent.rglob("*.py")
        for name in re.findall(r"\b_\w+", file.read_text())
    }
    assert {each for each in dead if each[1] not in theirs} == set()


@pytest.mark.parametrize("word", BANNED)
def test_words_are_the_fields(word: str) -> None:
    banned = re.compile(rf"(?<![A-Za-z]){re.escape(word)}(?![a-z])")
    said = [
        name
        for name in FILES
        if name not in (HERE, "CHANGELOG.md") and banned.search((ROOT / name).read_text())
    ]
    assert said == [], f"say {BANNED[word]}"


def locals_of(name: str) -> Iterator[str]:
    """Names that a file binds: variables, parameters, and what loops and patterns give. Fields of classes are
    left out.
    """
    fields = set()
    for node in ast.walk(parsed(name)):
        match node:
            case ast.ClassDef():
                fields |= {id(each.target) for each in node.body if isinstance(each, ast.AnnAssign)}
            case ast.Name(ctx=ast.Store()) if id(node) not in fields:
                yield node.id
            case ast.arg():
                yield node.arg
            case ast.ExceptHandler(name=str(given)) | ast.MatchAs(name=str(given)):
                yield given


def test_locals_are_named_by_what_they_hold() -> None:
    assert {name: vague for name in CODE if (vague := VAGUE.intersection(locals_of(name)))} == {}


def test_what_a_name_means_stands_in_a_docstring_below_it() -> None:
    """Not in a comment `#:` above it."""
    assert [name for name in CODE if re.search(r"^ *#[:] |  #[:] ", (ROOT / name).read_text(), re.M)] == []


def test_there_is_one_logger() -> None:
    """The standard library's, called log; cli/logs.py alone formats its lines, with structlog."""
    other = [
        name
        for name in CODE
        if name != "cli/logs.py"
        and re.search(r"^\s*(import|from) structlog", (ROOT / name).read_text(), re.M)
    ]
    assert other == []
    named = {
        (name, line)
        for name in CODE
        for line in re.findall(r"^\w+ = logging\.getLogger\(.*", (ROOT / name).read_text(), re.M)
        if line != "log = logging.getLogger(__name__)"
    }
    assert named == set()


def test_json_that_anybody_may_have_written_is_read_where_its_depth_ends_no_program() -> None:
    own = {
        "stack/state.py": "our own file",
        "reference/compatibility.py": "a published schema of ours",
        "reference/examples.py": "what our own functions made",
        "workload/poison.py": "an event that our generator made",
        "operations/submit/parquet.py": "its own arguments",
        "operations/submit/mapped.py": "what it has encoded itself",
        "operations/notices.py": "what it has encoded itself",
        "operations/whatif.py": "what it has encoded itself",
        "operations/replay.py": "what it has encoded itself",
        "tables/codec.py": "what it has encoded itself",
        "audit/stores.py": "the answer of our own script in Redis",
    }
    bare = set()
    for name in (
        name for name in FILES if name.endswith(".py") and not name.startswith(("tests/", "benchmarks/"))
    ):
        tree = parsed(name)
        guarded = {
            id(node)
            for block in ast.walk(tree)
            if isinstance(block, ast.Try)
            and any("RecursionError" in ast.unparse(handler.type or block) for handler in block.handlers)
            for statement in block.body
            for node in ast.walk(statement)
        }
        readers = ("json.loads", "msgspec.json.decode", "msgspec.msgpack.decode")
        calls = (
            node
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and ast.unparse(node.func) in readers
        )
        if any(id(call) not in guarded for call in calls):
            bare.add(name)
    assert bare - own.keys() == set(), "use contracts.strict_json.read_foreign, or audit.foreign.read_json"
    assert own.keys() - bare == set(), "no longer needed here"
