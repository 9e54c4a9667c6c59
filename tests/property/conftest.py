"""What the property tests share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from domain import refunds


@pytest.fixture(scope="module", params=[1, 2, refunds.MOST_UNITS])
def most_units(request: pytest.FixtureRequest) -> Iterator[int]:
    """Units that one decision about units gone names at most: so few that a refund takes several,
    and as many as in earnest.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refunds, "MOST_UNITS", request.param)
        yield request.param
