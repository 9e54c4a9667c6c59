"""Compiles the modules that every event goes through, with mypyc.

What can't be compiled stays apart from them: msgspec's structs (domain.order, domain.shapes,
contracts.incoming, outgoing and envelope), whose class keywords mypyc would drop.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Final

from compiled import LIBRARY, MANIFEST, NATIVE, PYTHON, ROOT, digest

MODULES: Final = (
    "contracts/cloudevents.py",
    "contracts/ids.py",
    "contracts/money.py",
    "contracts/strict_json.py",
    "contracts/times.py",
    "domain/allocations.py",
    "domain/anomalies.py",
    "domain/attention.py",
    "domain/deadlines.py",
    "domain/effects.py",
    "domain/events.py",
    "domain/fold.py",
    "domain/lapses.py",
    "domain/limits.py",
    "domain/paid_back.py",
    "domain/parts.py",
    "domain/promises.py",
    "domain/refunds.py",
    "domain/rows.py",
    "domain/status.py",
    "domain/taken_over.py",
    "domain/tax.py",
    "domain/totals.py",
    "streams/dead_letters.py",
    "streams/folder.py",
    "tables/codec.py",
)
"""What is compiled, together: calls between them are calls in C. Beside them native.c."""
_BESIDE: Final = (
    "compiled/__init__.py",
    "compiled/native.c",
    "errors.py",
    "sinks/__init__.py",
    "sinks/rows.py",
    "streams/__init__.py",
    "streams/dead_letters.py",
    "streams/folder.py",
    "streams/partitioner.py",
)
_TYPES: Final = """\
[mypy]
explicit_package_bases = True
namespace_packages = True
mypy_path = .
[mypy-streams.transport,streams.transport.*,settings,wire]
ignore_missing_imports = True
"""
"""What isn't there is what would take most of the time, with all that it imports: nothing of it is compiled,
and `make types` checks how it is used.
"""


class CannotCompile(Exception):
    """There is no C compiler, no mypyc, or one of them failed. The message says which."""


def build(into: Path = LIBRARY) -> None:
    """Compile MODULES into a folder, in place of what was compiled there before.

    Takes about a minute of CPU. Raises CannotCompile; then nothing is there, and the source runs.
    """
    whole = into.with_name(f"{into.name}.{os.getpid()}")
    shutil.rmtree(into, ignore_errors=True)
    compiler = (os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]
    if shutil.which(compiler) is None:
        raise CannotCompile(f"there is no C compiler ({compiler})")
    if not Path(sysconfig.get_paths()["include"], "Python.h").exists():
        raise CannotCompile("Python's headers (Python.h) aren't there")
    before = {name: digest(ROOT / name) for name in _sources()}
    with tempfile.TemporaryDirectory(prefix="orders-compile-") as folder:
        work = Path(folder)
        for name in _sources():
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, work / name)
        (work / "types.ini").write_text(_TYPES)
        (work / "setup.py").write_text(_setup())
        command = [sys.executable, "setup.py", "-q", "build_ext", "--build-lib", "lib", "--parallel", "2"]
        try:
            subprocess.run(command, cwd=work, check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            tail = "\n".join((error.stdout + error.stderr).strip().splitlines()[-5:])
            raise CannotCompile(f"mypyc or {compiler} failed:\n{tail}") from None
        lines = [f"# {PYTHON}", *(f"{known}  {name}" for name, known in before.items())]
        (work / "lib" / MANIFEST.name).write_text("\n".join(lines) + "\n")
        # Whole or not at all: a program that starts now finds the one or the other.
        shutil.move(work / "lib", whole)
    try:
        whole.rename(into)
    except OSError as error:
        shutil.rmtree(whole, ignore_errors=True)
        raise CannotCompile(f"{into}: {error.strerror}; is it compiled by another program, too?") from None


def _sources() -> list[str]:
    """All that is read for it: what is compiled, and what that relies on for its types and constants."""
    whole = [
        path for name in ("contracts", "domain", "tables") for path in sorted((ROOT / name).glob("*.py"))
    ]
    single = [ROOT / name for name in _BESIDE]
    return [str(path.relative_to(ROOT)) for path in (*whole, *single)]


def _setup() -> str:
    arguments = ["--config-file", "types.ini", *MODULES]
    return (
        "from mypyc.build import mypycify\nfrom setuptools import Extension, setup\n"
        f"rules = mypycify({arguments!r}, opt_level='2', debug_level='0', group_name='orders_stream')\n"
        f"native = Extension({NATIVE!r}, ['compiled/native.c'])\n"
        "setup(name='orders', packages=[], ext_modules=[*rules, native])\n"
    )
