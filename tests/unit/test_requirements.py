"""docs/requirements.md names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "requirements.md"


def test_every_requirement_names_a_test_that_exists() -> None:
    rows = [
        line
        for line in PAGE.read_text().splitlines()
        if line.startswith("|") and "---" not in line and "Proven by" not in line
    ]
    assert len(rows) > 20
    for row in rows:
        named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", row)
        assert named, row
        for path, test in named:
            assert re.search(rf"def {test}\(", (ROOT / path).read_text()), f"{path}::{test}"
