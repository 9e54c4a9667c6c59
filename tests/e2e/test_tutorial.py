"""docs/tutorial.md does what it says: its blocks, run as one shell script on servers of their own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.stackfixture import purge

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.md"


def script() -> str:
    """All blocks in their order. The first failing command ends it."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", TUTORIAL.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) > 8
    return "set -euxo pipefail\ntrap 'kill ${WORKER:-} 2>/dev/null || true' EXIT\n" + "\n".join(blocks)


def test_the_tutorial_runs_as_it_stands(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORDERS_")}
    environment |= {
        "TUTORIAL": str(tmp_path),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    try:
        done = subprocess.run(
            ["bash", "-c", script()],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
            stdin=subprocess.DEVNULL,
        )
    finally:
        purge(tmp_path / "stack")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "50 checkouts" in done.stdout
