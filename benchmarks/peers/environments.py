"""A virtual environment for each peer, made once from requirements that are pinned and checked by hash."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from errors import OrdersError

ROOT: Final = Path(__file__).parents[2]
REQUIREMENTS: Final = Path(__file__).with_name("requirements")
ENVIRONMENTS: Final = ROOT / "build" / "peers"
TAIL: Final = 300
"""Characters of pip's last words that are shown."""


class Unavailable(OrdersError):
    """Raised when a peer can't be run here: its libraries can't be installed."""

    remedy = "look whether they support this Python, and whether packages can be fetched"


def python_of(name: str, say: Callable[[str], None]) -> Path:
    """The interpreter of the environment of `requirements/NAME.txt`, which is made where there is none, or
    where those have changed.

    Blocks, the first time for a minute. Raises Unavailable.
    """
    requirements = REQUIREMENTS / f"{name}.txt"
    mark = hashlib.sha256(platform.python_version().encode() + requirements.read_bytes()).hexdigest()
    folder = ENVIRONMENTS / name
    python, stamp = folder / "bin" / "python", folder / ".installed"
    if not python.exists() or not stamp.exists() or stamp.read_text() != mark:
        say(f"{name}: making its environment in build/peers (once)")
        shutil.rmtree(folder, ignore_errors=True)
        _run(name, sys.executable, "-m", "venv", str(folder))
        pip = (str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check")
        _run(name, *pip, "--only-binary", ":all:", "--require-hashes", "--no-deps", "-r", str(requirements))
        stamp.write_text(mark)
    return python


def versions(name: str) -> dict[str, str]:
    """Library -> version, of what `requirements/NAME.in` names: the rest came with these."""
    wanted = {
        line.partition("[")[0].partition("=")[0].strip()
        for line in (REQUIREMENTS / f"{name}.in").read_text().splitlines()
    }
    lines = (line.split() for line in (REQUIREMENTS / f"{name}.txt").read_text().splitlines() if "==" in line)
    pinned = dict(words[0].split("==") for words in lines)
    return {library: version for library, version in sorted(pinned.items()) if library in wanted}


def _run(name: str, *command: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    except OSError as error:
        raise Unavailable(f"{name} has no environment: {error}") from None
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split())[-TAIL:]
        raise Unavailable(f"{name} has no environment: {said}")


def _environment() -> dict[str, str]:
    """Without what would lead to this project's own packages."""
    return {each: value for each, value in os.environ.items() if each not in ("PYTHONPATH", "PYTHONHOME")}
