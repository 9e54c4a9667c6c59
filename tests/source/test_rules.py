from __future__ import annotations

import pytest

from tests.source import passes

UNIT = [
    "codec",
    "columns",
    "deadlines",
    "decisions",
    "effects",
    "events",
    "fold",
    "folder",
    "ids",
    "limits",
    "money",
    "pipeline_bounds",
    "rows",
    "status",
    "times",
    "whatif",
]


@pytest.mark.compiled
def test_the_rules_from_their_source() -> None:
    passes(f"tests/unit/test_{name}.py" for name in UNIT)
