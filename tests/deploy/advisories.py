"""`make advisories`: the packages of the workers' image against the advisories that OSV knows of.

    python -m tests.deploy.advisories             0: none, or the service can't be reached, as a line says
    python -m tests.deploy.advisories --strict    2 where the service can't be reached

1 where a package has an advisory. The packages are those of requirements-worker.txt; their names and versions
are all that is sent.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

REQUIREMENTS = Path(__file__).parents[2] / "requirements-worker.txt"
_AWAY = re.compile(r"(\w*(?:Connection|Timeout|HTTP|Service|Proxy|SSL)\w*Error|Timeout)\b|Could not connect")


def check(*options: str, strict: bool = False, requirements: Path = REQUIREMENTS) -> int:
    """Ask, print what is known, and return the exit code.

    Blocks for as long as the service takes, 15 s a package at most.
    """
    asking = ["--requirement", str(requirements), "--disable-pip", "--require-hashes", "--timeout", "15"]
    asking += ["--vulnerability-service", "osv", "--progress-spinner", "off", *options]
    done = subprocess.run(
        [sys.executable, "-m", "pip_audit", *asking], capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stderr.strip().splitlines() if not line.startswith("WARNING")] or [
        "nothing"
    ]
    if done.returncode == 0 and lines[-1].startswith("No known vulnerabilities"):
        print(f"no known advisory for the packages of {requirements.name}")
        return 0
    if any(re.match(r"Found \d+ known vulnerabilit", line) for line in lines):
        print(done.stdout, end="")
        return 1
    if _AWAY.search(lines[-1]):
        print(
            f"nothing was compared: the advisory service can't be reached from here ({lines[-1][:120]})",
            file=sys.stderr,
        )
        return 2 if strict else 0
    print(f"pip-audit ended with {done.returncode}: {lines[-1]}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--strict", action="store_true", help="exit 2 where the service can't be reached")
    sys.exit(check(strict=parser.parse_args().strict))
