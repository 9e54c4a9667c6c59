"""docs/reference/metrics.md is what the code says."""

from __future__ import annotations

from pathlib import Path

from reference.metrics import metrics_page

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "metrics.md"


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == metrics_page(), (
        "docs/reference/metrics.md is not what the code says: run make docs"
    )
