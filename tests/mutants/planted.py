"""Plants one bug in a copy of the source tree, and runs what has to notice it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
PATCHES: Final = Path(__file__).parent
SIMULATION: Final = "simulation"
FIRST_SEED: Final = 1
COPIED: Final = (
    "audit",
    "cli",
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
)
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


CONTROL: Final = Mutant("(none)", "the source as it is: nothing may be noticed", SIMULATION, 400, None)


def mutants() -> list[Mutant]:
    """All planted bugs, by name."""
    return [_read(path) for path in sorted(PATCHES.glob("*.patch"))]


def _read(path: Path) -> Mutant:
    head = dict(re.findall(r"^([A-Z][a-z-]+): (.*)$", path.read_text().split("\n--- ")[0], re.MULTILINE))
    return Mutant(path.stem, head["What"], head["Caught-by"], int(head.get("Histories", 0)), path)


@contextmanager
def planted(mutant: Mutant) -> Iterator[Path]:
    """A copy of the source tree with the bug in it. Raises DoesNotApply."""
    with tempfile.TemporaryDirectory(prefix="orders-mutant-") as folder:
        root = Path(folder)
        for name in COPIED:
            # With what is compiled, but for what is being written: only the broken file is compiled again.
            shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("*.pyc.*"))
        for name in (
            "app.py",
            "errors.py",
            "settings.py",
            "pyproject.toml",
            "alembic.ini",
            "docker-compose.yml",
        ):
            shutil.copy(ROOT / name, root / name)
        if mutant.patch is not None:
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
        yield root


def recorded() -> dict[str, int]:
    """Name -> the seed at which the simulation caught it when results.json was
    written: the last that was tried.
    """
    told: dict[str, Any] = json.loads(RESULTS.read_text())
    caught = [each for each in told["mutants"] if each["caught"] and each["catcher"] == SIMULATION]
    return {each["name"]: FIRST_SEED + each["histories"] - 1 for each in caught}


def judge(mutant: Mutant, *, histories: int | None = None, likely: int | None = None) -> Verdict:
    """Plant the bug and look whether it is noticed. Blocks. Raises DoesNotApply.

    `histories`: instead of the mutant's own. `likely`: a seed of theirs that is tried before the others.
    """
    with planted(mutant) as root:
        started = time.monotonic()
        if mutant.catcher == SIMULATION:
            by, count = _simulate(root, histories or mutant.histories, likely)
        else:
            by, count = _test(root, mutant.catcher)
        seconds = time.monotonic() - started
    return Verdict(mutant.name, mutant.what, bool(by), mutant.catcher, by, count, round(seconds, 1))


def _run(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        timeout=LONGEST,
        check=False,
    )


def _simulate(root: Path, histories: int, likely: int | None) -> tuple[str, int]:
    if likely is not None and FIRST_SEED <= likely < FIRST_SEED + histories:
        by, count = _histories(root, likely, 1)
        if by:
            return by, count
    return _histories(root, FIRST_SEED, histories)


def _histories(root: Path, first: int, histories: int) -> tuple[str, int]:
    run = _run(
        root,
        "-m",
        "tests.simulation",
        "--histories",
        str(histories),
        "--seed",
        str(first),
        "--jobs",
        "1",
        "--json",
    )
    try:
        told: dict[str, Any] = json.loads(run.stdout)
    except ValueError:
        raise AssertionError(f"the simulation broke: {run.stderr.strip().splitlines()[-1:]}") from None
    failed = told["failed"]
    return (f"seed {failed[0]['seed']}: {failed[0]['problems'][0]}" if failed else ""), told["histories"]


def _test(root: Path, node: str) -> tuple[str, int]:
    run = _run(root, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", node)
    if run.returncode == 0:
        return "", 0
    if run.returncode != 1:
        raise AssertionError(f"pytest ended with {run.returncode}: {run.stdout[-2000:]}{run.stderr[-1000:]}")
    return node, 0
