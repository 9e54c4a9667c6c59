"""What the property tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import compiled
from domain import refunds

MOST_UNITS = [1, 2, refunds.MOST_UNITS] if compiled.WHY_NOT else [refunds.MOST_UNITS]
"""Compiled rules have the number in them. tests/source runs these tests with the rules from their source."""


@pytest.fixture(scope="module", params=MOST_UNITS)
def most_units(request: pytest.FixtureRequest) -> Iterator[int]:
    """Units that one decision about units gone names at most: so few that a refund takes several,
    and as many as in earnest.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refunds, "MOST_UNITS", request.param)
        yield request.param
