from __future__ import annotations

import pytest

from tests.parsed import ROOT
from tests.source import HISTORIES, passes


@pytest.mark.compiled
def test_all_other_properties_from_the_source_of_the_rules() -> None:
    every = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tests" / "property").glob("test_*.py")}
    passes(sorted(every.difference(HISTORIES)))
