"""Every planted bug is noticed, by the simulation or by the test that its patch names; the source as it is isn't."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.mutants.planted import CONTROL, DoesNotApply, Mutant, Verdict, judge, mutants

ALL = {mutant.name: mutant for mutant in [CONTROL, *mutants()]}


@pytest.fixture(scope="module")
def judged(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Verdict]]]:
    """Those that this run asks for, planted side by side: one per processor."""
    mine = [item for item in request.session.items if isinstance(item, pytest.Function) and item.originalname == "test_a_planted_bug"]
    asked: list[str] = [str(item.callspec.params["name"]) for item in mine]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        yield {name: pool.submit(judge, ALL[name]) for name in asked}


@pytest.mark.parametrize("name", ALL)
def test_a_planted_bug(judged: dict[str, Future[Verdict]], name: str) -> None:
    verdict = judged[name].result()
    if name == CONTROL.name:
        assert not verdict.caught, verdict.by
        assert verdict.histories == CONTROL.histories
    else:
        assert verdict.caught, f"{verdict.what}: {verdict.catcher} notices nothing ({verdict.histories} histories)"


def test_a_patch_that_does_not_apply_says_which(tmp_path: Path) -> None:
    patch = tmp_path / "outdated.patch"
    patch.write_text("--- a/app.py\n+++ b/app.py\n@@ -1,3 +1,3 @@\n one\n-two\n+three\n four\n")
    with pytest.raises(DoesNotApply, match=r"outdated\.patch does not apply any more"):
        judge(Mutant("outdated", "nothing", "simulation", 1, patch))
