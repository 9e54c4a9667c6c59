"""The suites of what is compiled hold for its source as well: all other tests of such a run have the rules
compiled. They are in files of their own, as each file runs in one process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable

import compiled
from tests.parsed import ROOT
from tests.property.examples import SHARE_VARIABLE

SHARE = 4
"""A quarter of the property tests' examples: the other form of the rules has had all of them."""


def passes(paths: Iterable[str]) -> None:
    """Run these test files with the rules from their source. Fails the test unless all pass."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", *paths],
        cwd=ROOT,
        env=own | {compiled.SETTING: "off", SHARE_VARIABLE: str(SHARE)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-6000:] + ended.stderr[-2000:]
