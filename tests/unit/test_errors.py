"""Every error that a person can meet has a message and a remedy that fit one
line, and one place prints it.
"""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from functools import cache
from typing import NamedTuple

import pytest
from aiokafka import errors as kafka
from sqlalchemy.exc import DBAPIError

from cli import main
from errors import OrdersError, named
from streams.remedies import REMEDIES
from streams.transport import delivery
from streams.transport.errors import FailStop, LeaseLost
from tests.parsed import ROOT, parsed

NAMED_IN_CLI = {
    "cli/bulk.py": {"OtherJob"},
    "cli/db.py": {"BrokenReferences"},
    "cli/local.py": {"StackError"},
    "cli/noting.py": {"OrdersError"},
    "cli/worker.py": {"OrdersError"},
}
"""A job that isn't ours ends before its report is printed, rows that break a reference are listed and end
with exit code 1, a stack that can't be read isn't used, who looks for a cart or for
what needs attention is told where it is looked for, an operation ends though its end can't be noted,
and a bulk worker logs why it ends. Everything else goes to cli/main.py.
"""


@cache
def trees() -> dict[str, ast.Module]:
    """File -> what it says. Read when a test asks: each of the processes that tests run in imports this."""
    packages = [init.parent for init in ROOT.glob("*/__init__.py") if init.parent.name != "tests"]
    files = sorted(path for package in packages for path in package.rglob("*.py"))
    names = ("app.py", "errors.py", *(path.relative_to(ROOT).as_posix() for path in files))
    return {name: parsed(name) for name in names}


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@cache
def remedies() -> dict[str, str]:
    """Class below OrdersError -> the remedy that it has as an attribute, or its base has; "" where
    each error brings its own.
    """
    known = {"OrdersError": ""}
    classes = [node for tree in trees().values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    for _ in classes:  # until nothing is added, whatever the order of the files
        before = len(known)
        for node in classes:
            base = next((_name(each) for each in node.bases if _name(each) in known), None)
            if base is not None and node.name not in known:
                own = [
                    each.value
                    for each in node.body
                    if isinstance(each, ast.Assign) and _name(each.targets[0]) == "remedy"
                ]
                known[node.name] = ast.literal_eval(own[0]) if own else known[base]
        if len(known) == before:
            break
    return known


class Made(NamedTuple):
    """An error that is made somewhere: the texts are those of the source, what is put in at run time is …"""

    kind: str
    message: str | None
    remedy: str | None


def _text(node: ast.expr) -> str | None:
    """A text of the source; None for what only the run knows."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(each.value) if isinstance(each, ast.Constant) else "…" for each in node.values)
    if isinstance(node, ast.BinOp):
        return (_text(node.left) or "…") + (_text(node.right) or "…")
    return None


def errors_made() -> Iterator[tuple[str, Made]]:
    """Yield each place where an error is made, with the error."""
    errors = remedies()
    for name, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _name(node.func) in errors:
                arguments = node.args
                if (
                    any(isinstance(each, ast.Starred) for each in arguments)
                    or _name(node.func) == "BrokenReferences"
                ):
                    # Its texts were made by another process, or it makes its own of what it is given.
                    continue
                message = _text(arguments[0]) or "…"
                remedy = (_text(arguments[1]) or "…") if len(arguments) > 1 else None
                yield f"{name}:{node.lineno}", Made(_name(node.func), message, remedy)


def is_phrase(text: str) -> bool:
    """Whether it can stand before and behind a semicolon, in one line."""
    return (
        bool(text)
        and text == text.strip()
        and "\n" not in text
        and text[-1] not in ".;:,"
        and "`" not in text
    )


def test_an_error_has_a_message_and_a_remedy() -> None:
    errors, places = remedies(), dict(errors_made())
    assert len(errors) > 40
    assert len(places) > 120
    bad = {}
    for where, (kind, message, remedy) in places.items():
        texts = (message or "", errors[kind] if remedy is None else remedy)
        if not all(map(is_phrase, texts)):
            bad[where] = texts
    assert bad == {}


def test_a_remedy_fits_behind_a_message() -> None:
    texts = [*filter(None, remedies().values()), *REMEDIES.values()]
    begun = [text for text in texts if not (text[0].islower() or text.startswith("-"))]
    assert [text for text in texts if not is_phrase(text)] + begun == []


def test_whatever_ends_a_worker_has_a_remedy() -> None:
    def below(kind: type[FailStop]) -> Iterator[type[FailStop]]:
        for each in kind.__subclasses__():
            yield from (each, *below(each))

    # Of a refused transaction each error has another one.
    assert {kind.__name__ for kind in below(FailStop) if not kind.remedy} == {"TransactionsRefused"}


def test_commands_leave_errors_to_one_place() -> None:
    caught: dict[str, set[str]] = {}
    for name, tree in trees().items():
        if not name.startswith("cli/"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and node.type is not None:
                kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                caught.setdefault(name, set()).update(
                    _name(each) for each in kinds if _name(each) in remedies()
                )
    assert {name: kinds for name, kinds in caught.items() if kinds} == NAMED_IN_CLI


def test_it_is_told_as_one_line_with_the_log_below(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise OrdersError("it is\nbroken", "mend it", log="    one\n    two\n")

    monkeypatch.setattr("cli.settings.table", broken)
    assert main.run(["settings"]) == 2
    assert capsys.readouterr() == ("", "orders: it is broken; mend it\norders:     one\norders:     two\n")


def test_it_comes_whole_out_of_another_process() -> None:
    error = pickle.loads(pickle.dumps(OrdersError("it is broken", "mend it", log="why")))
    assert (str(error), error.message, error.remedy, error.log) == (
        "it is broken; mend it",
        "it is broken",
        "mend it",
        "why",
    )


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (LeaseLost("lane 3: no heartbeat"), "LeaseLost: lane 3: no heartbeat"),
        (LeaseLost(), "LeaseLost"),
        (kafka.UnknownMemberIdError(), "[Error 25] UnknownMemberIdError"),
        (kafka.UnknownMemberIdError("it left"), "[Error 25] UnknownMemberIdError: it left"),
        (OSError("two\nlines"), "OSError: two lines"),
        (TimeoutError(), "TimeoutError"),
        (DBAPIError("SELECT $1", ("anna@example.org",), OSError("gone")), "OSError: gone"),
    ],
)
def test_an_error_says_its_class_once(error: Exception, line: str) -> None:
    assert named(error) == line
    assert delivery.describe(error) == line
