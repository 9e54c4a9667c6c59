from __future__ import annotations

import pytest

from tests.source import HISTORIES, passes


@pytest.mark.compiled
def test_histories_from_the_source_of_the_rules() -> None:
    passes(HISTORIES)
