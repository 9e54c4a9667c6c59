"""The version before this one, from the project's history: a tree of its source, and workers of it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[2]
COMMIT: Final = "686c3f3442e777d6129cacba41c3a4efe5c3e529"
"""The last one before orders had tax. When a release is made, its commit comes here."""
_LEFT_OUT: Final = (":(exclude)tests", ":(exclude)docs", ":(exclude)benchmarks/results")


@cache
def problem() -> str | None:
    """Why it can't be had here; None if it can."""
    try:
        ended = subprocess.run(
            ["git", "cat-file", "-e", f"{COMMIT}^{{commit}}"], cwd=ROOT, capture_output=True, check=False
        )
    except OSError:
        return "there is no git"
    if ended.returncode == 0:
        return None
    return f"the history has no commit {COMMIT[:10]}, the version before; git fetch --unshallow brings it"


def unpack(folder: Path) -> Path:
    """Put its source into this folder, and return the folder."""
    archive = subprocess.run(
        ["git", "archive", COMMIT, ".", *_LEFT_OUT], cwd=ROOT, capture_output=True, check=True
    )
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["tar", "-x", "-C", str(folder)], input=archive.stdout, check=True)
    return folder


def orders(tree: Path, *arguments: str) -> Sequence[str]:
    """The command line of that version."""
    code = f"import os; os.chdir({str(tree)!r}); from cli.main import main; main()"
    return ("env", sys.executable, "-c", code, *arguments)
