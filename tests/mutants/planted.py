"""Plants one bug in a copy of the source tree, and runs what has to notice it."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.mutants.forkserver import ForkServer

ROOT: Final = Path(__file__).parents[2]
PATCHES: Final = Path(__file__).parent
SIMULATION: Final = "simulation"
FIRST_SEED: Final = 1
COPIED: Final = (
    "audit",
    "cli",
    "compiled",
    "domain",
    "examples",
    "migrations",
    "queries",
    "sinks",
    "contracts",
    "operations",
    "reference",
    "workload",
    "stack",
    "streams",
    "tables",
    "tests",
    "wire",
    "app.py",
    "errors.py",
    "settings.py",
    "pyproject.toml",
    "alembic.ini",
    "docker-compose.yml",
)
LEFT_OUT: Final = shutil.ignore_patterns("*.patch", "*.pyc.*", "lib")
"""Planted bugs, what is being compiled just now, and the compiled modules: a bug is in the source."""
RESULTS: Final = PATCHES / "results.json"
LONGEST: Final = 1800.0
"""Seconds after which a run counts as hung."""


class DoesNotApply(Exception):
    """The source has changed where this bug was planted: the patch has to be made anew."""


@dataclass(frozen=True, slots=True)
class Mutant:
    """A planted bug. `catcher` is the simulation or a pytest node; `histories`: how
    many it has to be caught in.
    """

    name: str
    what: str
    catcher: str
    histories: int
    patch: Path | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one. `by` says what was noticed; `histories` and `seconds`:
    after how many and how long.
    """

    name: str
    what: str
    caught: bool
    catcher: str
    by: str
    histories: int
    seconds: float


CONTROL: Final = Mutant("(none)", "the source as it is: nothing may be noticed", SIMULATION, 40, None)
"""A run like theirs. That the source survives far more histories is shown by tests/simulation."""


def mutants() -> list[Mutant]:
    """All planted bugs, by name."""
    return [_read(path) for path in sorted(PATCHES.glob("*.patch"))]


def _read(path: Path) -> Mutant:
    head = dict(re.findall(r"^([A-Z][a-z-]+): (.*)$", path.read_text().split("\n--- ")[0], re.MULTILINE))
    return Mutant(path.stem, head["What"], head["Caught-by"], int(head.get("Histories", 0)), path)


def _copy(source: str | Path, target: str | Path) -> None:
    # Never a second name of the same file, though that costs a tenth: a test that writes to its copy would
    # change the source. With the time that what is compiled was compiled for: then only the broken file is
    # compiled again.
    shutil.copyfile(source, target)
    changed = os.stat(source).st_mtime_ns
    os.utime(target, ns=(changed, changed))


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the source tree, in which bugs are planted one after the other. To make it takes as long as
    the run of a bug that is noticed at once.
    """
    with tempfile.TemporaryDirectory(prefix="orders-mutant-") as folder:
        root = Path(folder)
        for name in COPIED:
            if (ROOT / name).is_dir():
                shutil.copytree(ROOT / name, root / name, ignore=LEFT_OUT, copy_function=_copy)
            else:
                _copy(ROOT / name, root / name)
        yield root


@contextmanager
def planted(mutant: Mutant, root: Path) -> Iterator[None]:
    """Meanwhile the bug is in this copy of the source tree, which then is as before. Raises DoesNotApply."""
    if mutant.patch is None:
        yield
        return
    broken = re.findall(r"^(?:--- a|\+\+\+ b)/(.+)$", mutant.patch.read_text(), re.MULTILINE)
    applied = subprocess.run(
        ["git", "apply", "--unsafe-paths", f"--directory={root}", str(mutant.patch)],
        cwd=root,
        capture_output=True,
        text=True,
    )
    if applied.returncode:
        raise DoesNotApply(
            f"{mutant.patch.name} does not apply any more, make it anew: {applied.stderr.strip()}"
        )
    try:
        _forget_compiled(root, broken)
        yield
    finally:
        for name in broken:
            _copy(ROOT / name, root / name)
        _forget_compiled(root, broken)


def _forget_compiled(root: Path, names: Iterable[str]) -> None:
    """Python takes what it compiled from a file of the same size and second for what it would compile now."""
    for name in names:
        Path(importlib.util.cache_from_source(str(root / name))).unlink(missing_ok=True)


def recorded() -> dict[str, int]:
    """Name -> the seed at which the simulation caught it when results.json was
    written: the last that was tried.
    """
    results: dict[str, Any] = json.loads(RESULTS.read_text())
    caught = [each for each in results["mutants"] if each["caught"] and each["catcher"] == SIMULATION]
    return {each["name"]: FIRST_SEED + each["histories"] - 1 for each in caught}


def judge(
    mutant: Mutant,
    server: ForkServer,
    root: Path,
    *,
    histories: int | None = None,
    likely: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Verdict:
    """Plant the bug in a copy of the source tree and look whether it is noticed. Blocks. Raises DoesNotApply.

    `histories`: instead of the mutant's own. `likely`: a seed of theirs that is tried before the others.
    `env`: what a test that has to notice it finds in its environment besides ours.
    """
    with planted(mutant, root):
        started = time.monotonic()
        if mutant.catcher == SIMULATION:
            by, count = _simulate(server, root, histories or mutant.histories, likely)
        else:
            by, count = run_tests(server, root, mutant.catcher, env=env), 0
        seconds = time.monotonic() - started
    return Verdict(mutant.name, mutant.what, bool(by), mutant.catcher, by, count, round(seconds, 1))


def _run(
    server: ForkServer, root: Path, module: str, *arguments: str, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """0 is "nothing is wrong" and 1 is "something is", of pytest as of the simulation. Anything else is an
    error, not a bug that was noticed.
    """
    whole = {**os.environ, "PYTHONPATH": str(root), **(env or {})}
    run = server.run(root, module, *arguments, env=whole, longest=LONGEST)
    assert run.returncode in (0, 1), (
        f"{module} ended with {run.returncode}: {run.stdout[-2000:]}{run.stderr[-1000:]}"
    )
    return run


def _simulate(server: ForkServer, root: Path, histories: int, likely: int | None) -> tuple[str, int]:
    if likely is not None and FIRST_SEED <= likely < FIRST_SEED + histories:
        by, count = _histories(server, root, likely, 1)
        if by:
            return by, count
    return _histories(server, root, FIRST_SEED, histories)


def _histories(server: ForkServer, root: Path, first: int, histories: int) -> tuple[str, int]:
    numbers = ("--histories", str(histories), "--seed", str(first))
    run = _run(server, root, "tests.simulation", *numbers, "--jobs", "1", "--json")
    try:
        report: dict[str, Any] = json.loads(run.stdout)
    except ValueError:
        raise AssertionError(f"the simulation broke: {run.stderr.strip().splitlines()[-1:]}") from None
    failed = report["failed"]
    return (f"seed {failed[0]['seed']}: {failed[0]['problems'][0]}" if failed else ""), report["histories"]


def run_tests(server: ForkServer, root: Path, *nodes: str, env: Mapping[str, str] | None = None) -> str:
    """Run tests of this tree until one fails. Returns the nodes then, and nothing if none does. Blocks."""
    # --basetemp: what they write goes away with the copy.
    options = ("-q", "-x", "--assert=plain", "-p", "no:cacheprovider", f"--basetemp={root / 'tmp'}")
    return " ".join(nodes) if _run(server, root, "pytest", *options, *nodes, env=env).returncode else ""
