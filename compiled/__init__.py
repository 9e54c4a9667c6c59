"""The rules and what folds batches, compiled from the same source where there is a C compiler.

`python -m compiled` compiles the modules of compiled.build into compiled/lib, which may be deleted at any
time. A package that has such modules takes them from there:

    __path__ = compiled.path(__name__, __path__)

Only as long as all of them were compiled by this Python from the source as it is now: otherwise all run from
their source, slower, and `form` says why. Needs nothing but the standard library.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import sysconfig
from collections.abc import MutableSequence
from pathlib import Path
from typing import Any, Final

NATIVE: Final = "orders_native"
"""The module that native.c becomes."""
SETTING: Final = "ORDERS_COMPILED"
"""Environment variable: `off` runs the source, though it may be compiled."""
LIBRARY: Final = Path(__file__).parent / "lib"
MANIFEST: Final = LIBRARY / "SHA256SUMS"
"""What it was compiled from, as sha256sum writes it: a line a file. First the Python for which."""
PYTHON: Final = f"{sys.implementation.cache_tag} on {sysconfig.get_platform()}"
ROOT: Final = Path(__file__).parent.parent


def digest(path: Path) -> str:
    """SHA-256 of a file, as hex. Reads it; raises OSError."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _why_not() -> str | None:
    """Why the compiled modules aren't taken; None if they are."""
    if os.environ.get(SETTING, "").lower() == "off":
        return f"{SETTING}=off"
    try:
        header, *lines = MANIFEST.read_text().splitlines()
        if header != f"# {PYTHON}":
            return f"compiled for {header[2:]}, and this is {PYTHON}"
        for line in lines:
            known, name = line.split("  ", 1)
            if digest(ROOT / name) != known:
                return f"{name} has changed since it was compiled; python -m compiled compiles it again"
    except FileNotFoundError:
        return "not compiled; python -m compiled does it where there is a C compiler"
    except (OSError, ValueError) as error:
        return f"{MANIFEST} can't be read: {error!r}"
    return None


WHY_NOT: Final = _why_not()
"""Why the source runs; None: the compiled modules run."""
if WHY_NOT is None:
    sys.path.append(str(LIBRARY))  # the library that all of them share
native: Final[Any] = None if WHY_NOT is not None else importlib.import_module(NATIVE)
"""The functions of native.c; None: there are none, and what they do is done in Python."""


def path(package: str, own: MutableSequence[str]) -> list[str]:
    """The folders in which a package looks for its modules: first that of the compiled ones, if they run."""
    return [*own] if WHY_NOT is not None else [str(LIBRARY.joinpath(*package.split("."))), *own]


def form() -> str:
    """What runs, for people: "compiled", or "source" and why."""
    return "compiled" if WHY_NOT is None else f"source ({WHY_NOT})"
