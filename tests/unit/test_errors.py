"""Every error that a person can meet has a message and a remedy that fit one
line, and one place prints it.
"""

from __future__ import annotations

import ast
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from cli import main
from errors import OrdersError
from streams.remedies import REMEDIES
from streams.transport.errors import FailStop

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path
    for init in ROOT.glob("*/__init__.py")
    if init.parent.name != "tests"
    for path in init.parent.rglob("*.py")
)
TREES = {
    path.relative_to(ROOT).as_posix(): ast.parse(path.read_text())
    for path in (ROOT / "app.py", ROOT / "errors.py", *FILES)
}
CLASSES = [node for tree in TREES.values() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
NAMED_IN_CLI = {
    "cli/bulk.py": {"OtherJob"},
    "cli/db.py": {"BrokenReferences"},
    "cli/local.py": {"StackError"},
    "cli/worker.py": {"OrdersError"},
}
"""A job that isn't ours ends before its report is printed, rows that break a reference are listed and end
with exit code 1, a stack that can't be read isn't used, and a bulk worker logs why it ends. Everything
else goes to cli/main.py.
"""


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _remedies() -> dict[str, str]:
    """Class below OrdersError -> the remedy that it has as an attribute, or its base has; "" where
    each error brings its own.
    """
    remedies = {"OrdersError": ""}
    for _ in CLASSES:  # until nothing is added, whatever the order of the files
        before = len(remedies)
        for node in CLASSES:
            base = next((_name(each) for each in node.bases if _name(each) in remedies), None)
            if base is not None and node.name not in remedies:
                own = [
                    each.value
                    for each in node.body
                    if isinstance(each, ast.Assign) and _name(each.targets[0]) == "remedy"
                ]
                remedies[node.name] = ast.literal_eval(own[0]) if own else remedies[base]
        if len(remedies) == before:
            break
    return remedies


ERRORS = _remedies()


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


def _made() -> Iterator[tuple[str, Made]]:
    for name, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _name(node.func) in ERRORS:
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


MADE = dict(_made())


def test_there_are_some() -> None:
    assert len(ERRORS) > 40
    assert len(MADE) > 120


@pytest.mark.parametrize("where", MADE)
def test_an_error_has_a_message_and_a_remedy(where: str) -> None:
    kind, message, remedy = MADE[where]
    remedy = ERRORS[kind] if remedy is None else remedy
    assert message
    assert remedy, f"{kind} has no remedy of its own, so it is given here"
    for text in (message, remedy):
        assert text == text.strip()
        assert "\n" not in text
        assert text[-1] not in ".;:,"
        assert "`" not in text


@pytest.mark.parametrize("text", [*filter(None, ERRORS.values()), *REMEDIES.values()])
def test_a_remedy_fits_behind_a_message(text: str) -> None:
    assert text == text.strip()
    assert text[-1] not in ".;:,"
    assert text[0].islower() or text.startswith("-")


def test_whatever_ends_a_worker_has_a_remedy() -> None:
    def below(kind: type[FailStop]) -> Iterator[type[FailStop]]:
        for each in kind.__subclasses__():
            yield from (each, *below(each))

    # Of a refused transaction each error has another one.
    assert {kind.__name__ for kind in below(FailStop) if not kind.remedy} == {"TransactionsRefused"}


def test_commands_leave_errors_to_one_place() -> None:
    caught: dict[str, set[str]] = {}
    for name, tree in TREES.items():
        if not name.startswith("cli/"):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler) and node.type is not None:
                kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                caught.setdefault(name, set()).update(_name(each) for each in kinds if _name(each) in ERRORS)
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
