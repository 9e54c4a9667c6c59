"""`orders bulk submit` beside its file: no report overwrites what is read, text of a file is text, the
summary comes in any case.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from cli import bulk
from cli.main import run
from contracts.printable import printable
from operations.submit.jobs import Job
from settings import Settings
from tests.unit.builders import at
from tests.unit.test_sources_bulk import GIFT, GOOD, HEADER, PAID, SCAN

BAD = HEADER + PAID + "\n" + GIFT.replace("gift,", "")


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of one order that is refused, in the folder where the command runs."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "orders.csv"
    path.write_text(BAD)
    return path


def submit(*args: str, kind: str = "orders") -> int:
    return run(["bulk", "submit", kind, *args])


def piped(monkeypatch: pytest.MonkeyPatch, stdin: Any) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stdin))


@pytest.mark.parametrize("report", ["orders.csv", "./orders.csv", "symbolic", "hard"])
def test_a_report_never_overwrites_what_is_read(
    file: Path, report: str, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("symbolic").symlink_to(file)
    os.link(file, "hard")
    assert submit("orders.csv", "--dry-run", "--report", report) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert file.read_text() == BAD


def test_nor_does_it_what_comes_through_stdin(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with file.open("rb") as redirected:
        piped(monkeypatch, redirected)
        assert submit("-", "--dry-run", "--report", "orders.csv") == 2
    piped(monkeypatch, io.BytesIO(BAD.encode()))
    reader, writer = os.pipe()
    os.write(writer, BAD.encode())
    os.close(writer)
    with open(reader, "rb") as pipe:
        piped(monkeypatch, pipe)
        assert submit("-", "--dry-run", "--report", "orders.csv") == 2
    assert file.read_text() == BAD


@pytest.mark.parametrize(("report", "number"), [("/dev/stdout", 1), ("/dev/stderr", 2), ("log", 1)])
def test_nor_does_it_what_the_command_prints_to(
    file: Path, report: str, number: int, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("log").write_text("older\n")
    kept = os.dup(number)
    with open("log", "ab") as log:
        os.dup2(log.fileno(), number)
        try:
            code = submit("orders.csv", "--dry-run", "--report", report)
        finally:
            os.dup2(kept, number)
            os.close(kept)
    assert code == 2
    assert Path("log").read_text().startswith("older\n")
    assert "is where this command prints to" in Path("log").read_text() + capfd.readouterr().err


def test_a_pipe_is_not_its_own_report(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Opened for writing as well, it never ends."""
    os.mkfifo("pipe")
    assert submit("pipe", "--dry-run", "--report", "pipe") == 2
    reader, writer = os.pipe()
    os.close(writer)
    with open(reader, "rb") as pipe:
        piped(monkeypatch, pipe)
        assert submit("-", "--dry-run", "--report", f"/dev/fd/{reader}") == 2
    assert capfd.readouterr().err.count("would overwrite what is read") == 2


def test_a_report_holds_every_refused_line_and_nothing_older(file: Path) -> None:
    report = Path("refused.ndjson")
    report.write_text("older\n" * 1000)
    assert submit("orders.csv", "--dry-run", "--report", str(report)) == 1
    assert [json.loads(line)["line"] for line in report.read_text().splitlines()] == [2]
    report.write_text("older\n")
    file.write_text("no header\n")
    assert submit("orders.csv", "--dry-run", "--report", str(report)) == 2
    assert report.read_text() == "older\n"


@pytest.mark.parametrize(("report", "code"), [(".", 2), ("none/refused", 2), ("/dev/full", 1)])
def test_a_report_that_cannot_be_written_is_one_line(
    file: Path, report: str, code: int, capfd: pytest.CaptureFixture[str]
) -> None:
    assert submit("orders.csv", "--dry-run", "--report", report) == code
    out, err = capfd.readouterr()
    assert err.startswith(f"orders: --report {report}: ")
    assert err.count("\n") == 1
    assert ("1 refused" in out) == (code == 1)


@pytest.mark.parametrize(
    "text", ["[/b]", "[bold]delivered", "[link=http://x]y[/link]", "\x1b[31mred", "a\u202eb", "[/", "\\[x]"]
)
def test_text_of_a_file_is_neither_markup_nor_steers_the_terminal(
    file: Path, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    file.write_text(f"{HEADER.rstrip()},{text}\n{PAID},x\n")
    assert submit("orders.csv", "--dry-run") == 0
    shown = capfd.readouterr().out
    assert printable(text) in shown
    file.write_text(json.dumps({**SCAN, "time": at(1), "status": text}))
    assert submit("orders.csv", "--dry-run", kind="shipments") == 1
    refused = capfd.readouterr().out
    word = text.replace("\\", "\\\\")  # as it stands in the JSON that is refused
    assert f"Invalid enum value '{printable(word)}'" in refused
    assert not {"\x1b", "\u202e"} & set(shown + refused)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(("parts", "code"), [(0, 2), (2, 1)])
@pytest.mark.usefixtures("unnoted")
def test_the_summary_comes_when_sending_fails(
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    parts: int,
    code: int,
    as_json: bool,
) -> None:
    async def failing(settings: Settings, job: Job, again: bool, progress: Any) -> int:
        for part in range(parts):
            progress(part + 1)
        raise FileNotFoundError(2, "gone", "there")

    file.write_text(HEADER + GOOD)
    monkeypatch.setattr(bulk, "_send", failing)
    assert submit("orders.csv", "--as-new", *(["--json"] if as_json else [])) == code
    out, err = capfd.readouterr()
    assert err == "orders: there: gone; check the path\n"
    if as_json:
        assert json.loads(out)["parts_sent_now"] == parts
        assert json.loads(out)["failed"]
    else:
        assert f"{parts} of 1 parts sent now as job " in out
