"""Every planted bug is noticed, by the simulation or by the test that its patch names;
the source as it is isn't.
"""

from __future__ import annotations

import itertools
import json
import os
import select
import subprocess
from collections.abc import Callable, Iterator
from difflib import unified_diff
from pathlib import Path

import pytest

from tests.mutants.forkserver import BROKE, ForkServer
from tests.mutants.planted import (
    CONTROL,
    LONGEST,
    DoesNotApply,
    Mutant,
    copied,
    judge,
    mutants,
    planted,
    recorded,
    run_tests,
)
from tests.stackfixture import RUNNING

ALL = {mutant.name: mutant for mutant in [CONTROL, *mutants()]}


@pytest.fixture(scope="session")
def server() -> Iterator[ForkServer]:
    with ForkServer() as running:
        yield running


@pytest.fixture(scope="session")
def tree() -> Iterator[Path]:
    with copied() as root:
        yield root


@pytest.mark.parametrize("name", ALL)
def test_a_planted_bug(
    name: str,
    server: ForkServer,
    tree: Path,
    request: pytest.FixtureRequest,
    record_property: Callable[[str, object], None],
) -> None:
    env = {}
    if ALL[name].catcher.startswith("tests/contract/"):  # on real servers: these here, not others
        stack = request.getfixturevalue("stack")
        env[RUNNING] = json.dumps({"env": stack.env, "admin": stack.admin})
    # The seed that caught it last comes first: the histories before it found nothing then.
    likely = recorded().get(name)
    verdict = judge(ALL[name], server, tree, likely=likely, env=env)
    if likely is not None and verdict.histories > 1:
        record_property(
            "note",
            f"{name}: seed {likely} of tests/mutants/results.json notices it no more, which cost"
            f" {verdict.histories} histories; make mutants writes the file anew",
        )
    if name == CONTROL.name:
        assert not verdict.caught, verdict.by
        assert verdict.histories == CONTROL.histories
    else:
        assert verdict.caught, (
            f"{verdict.what}: {verdict.catcher} notices nothing ({verdict.histories} histories)"
        )


def test_what_notices_them_passes_without_them(server: ForkServer, tree: Path) -> None:
    """Otherwise a test that can't even run would notice every bug. Of these, those that take no time."""
    quick = {mutant.catcher for mutant in ALL.values() if mutant.catcher.startswith("tests/unit/")}
    assert len(quick) > 10
    assert run_tests(server, tree, *sorted(quick)) == ""


def test_after_a_bug_the_tree_is_as_before(tmp_path: Path, server: ForkServer, tree: Path) -> None:
    """Each run sees its own bug, also where the file has the size and the time of that before."""
    file = tree / "errors.py"
    text, changed = file.read_text(), file.stat().st_mtime_ns

    def run() -> str:
        ended = server.run(tree, "errors", env=os.environ, longest=LONGEST)
        assert (ended.returncode, ended.stderr) == (0, "")
        return ended.stdout

    def run_with(line: str) -> str:
        lines = text.splitlines(keepends=True)
        patch = tmp_path / "planted.patch"
        patch.write_text("".join(unified_diff(lines, [*lines, f"{line}\n"], "a/errors.py", "b/errors.py")))
        with planted(Mutant("planted", "", "", 0, patch), tree):
            os.utime(file, ns=(0, 0))
            return run()

    assert [run_with('print("one")'), run_with('print("two")')] == ["one\n", "two\n"]
    assert (file.read_text(), file.stat().st_mtime_ns) == (text, changed)
    assert run() == ""


def test_a_run_that_breaks_off_is_an_error(tmp_path: Path, server: ForkServer) -> None:
    numbers = itertools.count()

    env = {**os.environ, "TOLD": "b"}

    def run(source: str) -> subprocess.CompletedProcess[str]:
        name = f"module{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        return server.run(tmp_path, name, "a", env=env, longest=LONGEST)

    whole = run("import os, sys; print(sys.argv[1], os.environ['TOLD'], os.getcwd()); sys.exit(1)")
    assert (whole.returncode, whole.stdout, whole.stderr) == (1, f"a b {tmp_path}\n", "")
    assert run("").returncode == 0
    for source, says in (
        ("1 / 0", "ZeroDivisionError"),
        ("import sys; sys.exit('one line')", "one line"),
        ("import missing", "missing"),
    ):
        broken = run(source)
        assert (broken.returncode, says in broken.stderr) == (BROKE, True)
    assert run("import os; os.kill(os.getpid(), 9)").returncode == -9
    for test, code in (
        ("def test(): pass", 0),
        ("def test(): assert False", 1),
        ("def test(missing): pass", BROKE),
        ("import missing", 2),
    ):
        name = f"test_{next(numbers)}.py"
        (tmp_path / name).write_text(test)
        ended = server.run(tmp_path, "pytest", name, env=env, longest=LONGEST)
        assert ended.returncode == code, ended.stdout
    (tmp_path / "json.py").touch()
    assert "loaded before the fork: ['json']" in run("").stderr


def test_a_run_that_hangs_is_killed_with_what_it_has_started(tmp_path: Path, server: ForkServer) -> None:
    """The pipe ends when nobody holds it any more."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "hangs.py").write_text("import os, signal; f = open('pipe', 'w'); os.fork(); signal.pause()")
    reading = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(subprocess.TimeoutExpired):
        server.run(tmp_path, "hangs", env=os.environ, longest=1.0)
    select.select([reading], [], [], 60)
    assert os.read(reading, 1) == b""
    os.close(reading)


def test_a_patch_that_does_not_apply_says_which(tmp_path: Path, server: ForkServer, tree: Path) -> None:
    patch = tmp_path / "outdated.patch"
    patch.write_text("--- a/app.py\n+++ b/app.py\n@@ -1,3 +1,3 @@\n one\n-two\n+three\n four\n")
    with pytest.raises(DoesNotApply, match=r"outdated\.patch does not apply any more"):
        judge(Mutant("outdated", "nothing", "simulation", 1, patch), server, tree)
