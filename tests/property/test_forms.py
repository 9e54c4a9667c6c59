"""The compiled rules and their source come to the same, byte by byte."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import compiled
from tests.forms import digest
from tests.stackfixture import ROOT

SEEDS = range(40)


@pytest.mark.compiled
def test_both_forms_come_to_the_same() -> None:
    assert compiled.WHY_NOT is None
    command = [sys.executable, "-m", "tests.forms", str(SEEDS[0]), str(len(SEEDS))]
    environment = {**os.environ, compiled.SETTING: "off"}
    source = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    digests = [digest(seed) for seed in SEEDS]
    assert digests == source.stdout.split()
    assert len(set(digests)) == len(SEEDS)


@pytest.mark.compiled
@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        ("changed", "domain/fold.py has changed since it was compiled; python -m compiled compiles it again"),
        ("other", "compiled for cpython-310 on "),
        ("torn", "SHA256SUMS can't be read: "),
        ("gone", "not compiled; python -m compiled does it where there is a C compiler"),
    ],
)
def test_what_does_not_fit_its_source_is_not_run(tmp_path: Path, spoil: str, why: str) -> None:
    for name in ("compiled", "contracts", "domain", "sinks", "streams", "tables"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    shutil.copy(ROOT / "errors.py", tmp_path)
    manifest = tmp_path / "compiled" / "lib" / compiled.MANIFEST.name
    match spoil:
        case "changed":
            changed = tmp_path / "domain" / "fold.py"
            changed.write_text(f"{changed.read_text()}\n")
        case "other":
            manifest.write_text(manifest.read_text().replace(sys.implementation.cache_tag, "cpython-310"))
        case "torn":
            manifest.write_text(manifest.read_text().replace("  ", " "))
        case "gone":
            manifest.unlink()
    command = [sys.executable, "-c", "import compiled, domain.fold as m; print(m.__file__, compiled.form())"]
    environment = {name: value for name, value in os.environ.items() if name != compiled.SETTING}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{tmp_path}/domain/fold.py source (")
    assert why in done.stdout
