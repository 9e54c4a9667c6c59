"""Servers and tools of the local stack as processes: how they end, and what is told of those that don't."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from stack import __main__, jars, kafka, processes
from stack.errors import StackError

LASTS = 120
"""Seconds that a process lasts if nobody ends it: no test waits for that."""


def test_who_has_ended_is_gone_though_nobody_asks_for_its_exit_code() -> None:
    """As where a container's first process isn't an init."""
    script = f"sleep {LASTS} & echo $!; exec sleep {LASTS}"
    with subprocess.Popen(["sh", "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            orphan = psutil.Process(int(parent.stdout.readline()))
            assert not processes.gone(orphan, 0.1)
            orphan.kill()
            assert processes.gone(orphan, LASTS / 2)
            assert orphan.status() == psutil.STATUS_ZOMBIE
        finally:
            parent.kill()


def test_a_child_is_gone_and_asked_for_its_exit_code(tmp_path: Path) -> None:
    child = processes.spawn(["sleep", str(LASTS)], log=tmp_path / "log", cwd=tmp_path)
    child.terminate()
    assert processes.gone(psutil.Process(child.pid), LASTS / 2)
    assert child.returncode == -15


def test_a_tool_that_doesnt_end_is_said_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "START_TIMEOUT", 0.1)
    with pytest.raises(StackError, match=r"^making it was not done after 0 s; try again") as error:
        processes.run(["sleep", str(LASTS)], what="making it", cwd=tmp_path)
    assert error.value.__suppress_context__


def test_why_kafkas_classes_could_not_be_made_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise StackError("making it failed", "see the last lines", log="    no room")

    monkeypatch.setattr(jars, "class_path", lambda _: "")
    monkeypatch.setattr(kafka, "make_class_cache", fail)
    monkeypatch.setattr(sys, "argv", ["stack"])
    __main__.main()
    assert capsys.readouterr().err == (
        "Kafka will start more slowly: making it failed; see the last lines\n    no room\n"
    )
