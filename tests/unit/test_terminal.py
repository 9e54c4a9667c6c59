"""Any terminal: any width, any encoding, streams that are closed or full; and text from outside
that steers none of them.
"""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import main
from cli.main import SUBCOMMANDS
from cli.terminal import NARROWEST, Rows, Terminal, progress
from cli.text import encodable, one_line
from contracts.printable import printable
from settings import get_settings
from tests.workers import ORDERS

ROOT = Path(__file__).parent.parent.parent

ENVIRONMENTS = [
    pytest.param(
        encoding, {"COLUMNS": columns, **more}, id=f"{encoding}-{columns or 'unset'}-{'-'.join(more)}"
    )
    for encoding, columns, more in [
        ("ascii", "", {}),
        ("ascii", "40", {}),
        ("latin-1", "80", {}),
        ("utf-16", "80", {}),
        ("utf-8", "0", {"LINES": "0"}),
        ("utf-8", "1", {}),
        ("utf-8", "10", {"TERM": "dumb"}),
        ("utf-8", "40", {"NO_COLOR": "1"}),
        ("utf-8", "wide", {"TERMINAL_WIDTH": "0"}),
        ("ascii", "80", {"FORCE_COLOR": "1", "NO_COLOR": "1"}),
    ]
]

Printed = tuple[int, str, str]
Run = Callable[..., Printed]


def stream(encoding: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict", write_through=True)


def written(to: io.TextIOWrapper) -> str:
    assert isinstance(to.buffer, io.BytesIO)
    return to.buffer.getvalue().decode(to.encoding)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command line in this process on streams of an encoding, in an environment ->
    exit code, stdout, stderr.
    """

    def run(encoding: str, environment: dict[str, str], *args: str) -> Printed:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        get_settings.cache_clear()
        out, err = (stream(encoding) for _ in range(2))
        with redirect_stdout(out), redirect_stderr(err):
            code = main.run(list(args))
        get_settings.cache_clear()
        return code, written(out), written(err)

    return run


# -- text from outside ---------------------------------------------------------------------------------------


def harmful(text: str) -> list[str]:
    """Characters that steer a terminal, turn the writing round, or aren't seen."""
    return [
        char
        for char in text
        if unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
        or char in "\u034f\u115f\u3164\uffa0"
    ]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("größe 日本 😀", "größe 日本 😀"),
        ("[/b] [link=x]", "[/b] [link=x]"),
        ("\x1b[2J\x1b]8;;http://evil\x07", r"\x1b[2J\x1b]8;;http://evil\x07"),
        ("a\tb\r\nc\x7f\x9b1m", r"a\tb\r\nc\x7f\x9b1m"),
        ("\u202ea\u2066b\u200bc\u2028d\ufeff", r"\u202ea\u2066b\u200bc\u2028d\ufeff"),
        ("\udcff\ud800", r"\udcff\ud800"),
        ("\u3164\u115f\U000e0041", r"\u3164\u115f\U000e0041"),
        (b"x", "b'x'"),
        (None, "None"),
    ],
)
def test_what_would_steer_a_terminal_is_escaped(text: object, shown: str) -> None:
    assert printable(text) == shown


PRINTS = {
    "cli/bench.py": "text",  # JSON
    "cli/bulk.py": "ready_text(name)",  # a file of our own
    "cli/events.py": "json.dumps(reference(), indent=2) if as_json else markdown()",  # of our own code
    "cli/main.py": "ctx.get_help()",  # with its colours
    "cli/personal.py": "before",  # JSON
}
"""What is printed by itself though this page can't tell that it is harmless."""


def test_the_command_line_prints_by_one_function() -> None:
    """By a console, which lets nothing harmful through, or by say(); print() is for JSON and fixed words."""
    printed: dict[str, str] = {}
    for path in sorted((ROOT / "cli").glob("*.py")):
        if path.name in ("text.py", "terminal.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            assert called not in ("Console", "Text.from_markup", "Text.from_ansi", "rich.print"), path
            if called in ("print", "typer.echo", "sys.stdout.write", "sys.stderr.write") and not all(
                map(_plain, node.args)
            ):
                printed.setdefault(f"cli/{path.name}", ast.unparse(node.args[0]))
    assert printed == PRINTS


def _plain(node: ast.expr) -> bool:
    """Whether a printed expression can hold nothing harmful: constants, JSON, numbers, what was escaped."""
    match node:
        case ast.Constant():
            return True
        case ast.JoinedStr():
            return all(map(_plain, node.values))
        case ast.IfExp():
            return _plain(node.body) and _plain(node.orelse)
        case ast.BoolOp():
            return all(map(_plain, node.values))
        case ast.BinOp():
            return _plain(node.left) and _plain(node.right)
        case ast.FormattedValue():
            spec = "" if node.format_spec is None else ast.unparse(node.format_spec)
            return _plain(node.value) or "," in spec or "." in spec  # of numbers
        case ast.Call(func=ast.Attribute(attr="join"), args=[ast.Call() as joined]):
            return ast.unparse(joined.func) == "map" and ast.unparse(joined.args[0]) in SAFE
        case ast.Call(func=ast.Attribute(attr="join"), args=[ast.GeneratorExp(elt=each)]):
            return _plain(each)
        case ast.Call():
            return ast.unparse(node.func) in SAFE
    return False


SAFE = ("json.dumps", "jsonlib.dumps", "printable", "one_line", "_named", "_link")
"""_named and _link are cli.db's, and escape."""


@given(st.text())
def test_nothing_harmful_is_left_of_any_text(text: str) -> None:
    shown = printable(text)
    assert not harmful(shown)
    assert printable(shown) == shown
    assert harmful(printable(text, lines=True)) == ["\n"] * text.count("\n")
    assert "\n" not in one_line(text)
    encodable(shown, "ascii").encode("ascii")


@given(st.text(), st.sampled_from(["ascii", "latin-1", "utf-8", "utf-16"]))
def test_a_console_lets_nothing_harmful_through_whoever_forgot_it(text: str, encoding: str) -> None:
    file = stream(encoding)
    Terminal(file=file).print(text)
    assert not harmful(written(file).replace("\n", ""))


# -- tables --------------------------------------------------------------------------------------------------

IDS = [
    "3fa85f64-5717-4562-b3fc-2c963f66afa6",
    "order.created:11:123456",
    "2026-11-28T20:55:57Z",
    "total_mismatch",
]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("columns", [0, 1, 10, 40, 41, 79, 80, 100, 120, 200])
def test_a_table_fits_and_cuts_nothing_that_is_needed_again(
    columns: int, encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    table = Rows(
        "order",
        "record",
        "time",
        "reason",
        "detail",
        "count",
        title="Größe",
        prose={"detail"},
        right={"count"},
    )
    table.add(*IDS, "a text [/b] that is\x1b[2J rather long, größer than a cell 日本 " * 3, 12)
    table.add(*IDS, "", ("7", "red"))
    file = stream(encoding)
    Terminal(file=file).print(table)
    out = written(file)
    assert [out.count(each) for each in IDS] == [2, 2, 2, 2]
    assert "[/b]" in out
    assert r"\x1b[2J" in out
    assert "…" not in out
    if columns:
        assert all(len(line) <= max(columns, NARROWEST) for line in out.splitlines())
    else:
        assert len(out.splitlines()) == 4, "what is no terminal needs no wrapping"


def test_a_wide_table_has_one_line_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    table = Rows("order", "record", "time", "reason", "detail", prose={"detail"}, wide=True)
    table.add(*IDS, "a text that is rather long " * 9)
    file = stream("utf-8")
    Terminal(file=file).print(table)
    heading, row = written(file).splitlines()
    assert row.split()[:4] == list(IDS)
    assert row.endswith("rather long")
    assert heading.index("detail") == row.index("a text")


# -- progress ------------------------------------------------------------------------------------------------


class Screen(io.StringIO):
    """What a person looks at."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def test_progress_says_what_and_how_much_and_more_than_one_line_of_it() -> None:
    screen = Screen()
    with progress("read", console=Terminal(file=screen), transient=False) as bar:
        bar.show(7, 10)
        other = bar.another("sent", 5)
        other.show(2)
        bar.work("counted", 3, 4)
        bar.say("one of them is \x1b[2J odd")
        other.step("checked")
        other.show(1, 8)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue()).replace("\r", "\n")
    assert "one of them is \\x1b[2J odd\n" in shown
    counted, checked = shown.split("\n")[-3:-1]
    assert re.match(r"counted .* 3/4 ", counted)
    assert re.match(r"checked .* 1/8 ", checked)


def test_progress_is_silent_where_nobody_looks() -> None:
    file, screen = stream("utf-8"), Screen()
    for console, quiet in ((Terminal(file=file), False), (Terminal(file=screen), True)):
        with progress("read", 10, quiet=quiet, console=console) as bar:
            bar.show(10)
            bar.another("sent").step("checked")
    assert (written(file), screen.getvalue()) == ("", "")


# -- the command line ----------------------------------------------------------------------------------------

HELP = [
    (),
    *((sub.name,) for sub in SUBCOMMANDS),
    ("dlq", "list"),
    ("dlq", "redrive"),
    ("bulk", "submit"),
    ("db", "regions", "add"),
    ("rebuild", "drop"),
]


@pytest.mark.parametrize(("encoding", "environment"), ENVIRONMENTS)
def test_help_is_there_in_every_environment(run: Run, encoding: str, environment: dict[str, str]) -> None:
    for command in HELP:
        code, out, err = run(encoding, environment, *command, "--help")
        assert (code, err) == (0, ""), command
        name = " ".join(("orders", *command))
        assert " ".join(f"Usage: {name}".split()) in " ".join(re.sub(r"\x1b\[[0-9;]*m", "", out).split()), (
            command
        )
        if "FORCE_COLOR" not in environment:
            assert not harmful(out.replace("\n", "")), command


@pytest.mark.parametrize(("encoding", "environment"), ENVIRONMENTS)
@pytest.mark.parametrize("command", [("settings",), ("settings", "--json"), ("events",)])
def test_what_needs_no_server_prints_in_every_environment(
    run: Run, encoding: str, environment: dict[str, str], command: tuple[str, ...]
) -> None:
    code, out, err = run(encoding, environment | {"ORDERS_GROUP": "größe\x1b[2J[/b]"}, *command)
    assert (code, err) == (0, "")
    assert "settings" not in command or all(
        f"ORDERS_{name.upper()}" in out for name in type(get_settings()).model_fields
    )
    assert "\x1b[2J" not in out
    assert not harmful(re.sub(r"\x1b\[[0-9;]*m", "", out).replace("\n", ""))


@pytest.mark.parametrize(
    "args",
    [
        ("fro\x1b[2Jb",),
        ("show", "\u202e[/b]\x1b]0;x\x07"),
        ("dlq", "show", "\x9b1m:2"),
        ("dlq", "list", "--reason", "\x1b[/b]\n"),
        ("settings", "--\x1b"),
        ("bulk", "status", "\udcff"),
        ("repair", "--ids", "@/nowhere/\x1b[2J"),
        ("replay", "olist", "/nowhere/\x1b[2J\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_an_argument_steers_no_terminal(run: Run, encoding: str, args: tuple[str, ...]) -> None:
    code, out, err = run(encoding, {}, *args)
    assert (code, out) == (2, "")
    assert err.startswith("orders: ")
    assert not harmful(err.replace("\n", ""))
    assert err.count("\n") == 1


def test_a_log_line_steers_no_terminal_and_forges_no_other(tmp_path: Path) -> None:
    program = """
import logging
from cli import streams
streams.open_all()
from cli.logs import configure
from settings import Settings
configure(Settings(), "w")
text = "gr\\u00f6\\u00dfe \\x1b[2J\\u202e[/b]\\n2026-01-01T00:00:00.000000Z [error    ] forged"
logging.getLogger("x").warning("carrier %s", text)
"""
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONPATH": os.getcwd()}
    done = subprocess.run((sys.executable, "-c", program), capture_output=True, env=environment)
    assert (done.returncode, done.stdout) == (0, b"")
    lines = done.stderr.decode("ascii").splitlines()
    assert r"carrier gr\xf6\xdfe \x1b[2J\u202e[/b]" in lines[0]
    assert [line for line in lines if line.startswith("2026")] == lines[:1]


# -- streams -------------------------------------------------------------------------------------------------


def shell(line: str, **environment: str) -> Printed:
    """A line of shell with `orders` in it, in a process of its own -> exit code, stdout, stderr."""
    quoted = " ".join(f"'{word}'" for word in ORDERS)
    with_orders = f'orders() {{ {quoted} "$@"; }}; {line}'
    done = subprocess.run(
        ("bash", "-c", with_orders), capture_output=True, env={**os.environ, **environment}, timeout=60
    )
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (
            "orders settings >&-",
            1,
            "orders: standard output can't be written (Bad file descriptor); what was printed isn't whole\n",
        ),
        (
            "orders settings --json >/dev/full",
            1,
            (
                "orders: standard output can't be written (No space left on device); what was printed isn't"
                " whole\n"
            ),
        ),
        (
            "orders --help >/dev/full",
            1,
            (
                "orders: standard output can't be written (No space left on device); what was printed isn't"
                " whole\n"
            ),
        ),
        ("orders settings <&- >&- 2>&-", 1, ""),
        ("orders frob <&- >&- 2>&-", 2, ""),
        ("orders settings 2>/dev/full >/dev/null", 0, ""),
        # More than a pipe holds, so that the writer is still at it when the reader goes.
        ("orders events --asyncapi | head -1 >/dev/null; exit ${PIPESTATUS[0]}", 1, ""),
        ("orders events --asyncapi | true; exit ${PIPESTATUS[0]}", 1, ""),
        (
            "orders bulk submit orders - <&-",
            2,
            "orders: standard input is closed; name a file, or pipe one in\n",
        ),
    ],
)
def test_streams_that_are_closed_or_full(line: str, code: int, said: str) -> None:
    assert shell(line) == (code, "", said)


def test_what_an_encoding_lacks_is_escaped(tmp_path: Path) -> None:
    for environment in (
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ):
        code, out, err = shell("orders settings", ORDERS_GROUP="größe", **environment)
        assert (code, err) == (0, "")
        assert r"ORDERS_GROUP = gr\xf6\xdfe" in out or r"ORDERS_GROUP = gr\udcc3" in out
