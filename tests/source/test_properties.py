from __future__ import annotations

import pytest

from tests.parsed import ROOT
from tests.source import passes


@pytest.mark.compiled
def test_the_properties_from_the_source_of_the_rules() -> None:
    passes(
        sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "property").glob("test_*.py"))
    )
