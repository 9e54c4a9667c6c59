"""Every planted bug is noticed, by the simulation or by the test that its patch names;
the source as it is isn't.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.planted import CONTROL, DoesNotApply, Mutant, judge, mutants, recorded

ALL = {mutant.name: mutant for mutant in [CONTROL, *mutants()]}


@pytest.mark.parametrize("name", ALL)
def test_a_planted_bug(name: str) -> None:
    # The seed that caught it last comes first: the histories before it found nothing then.
    verdict = judge(ALL[name], likely=recorded().get(name))
    if name == CONTROL.name:
        assert not verdict.caught, verdict.by
        assert verdict.histories == CONTROL.histories
    else:
        assert verdict.caught, (
            f"{verdict.what}: {verdict.catcher} notices nothing ({verdict.histories} histories)"
        )


def test_a_patch_that_does_not_apply_says_which(tmp_path: Path) -> None:
    patch = tmp_path / "outdated.patch"
    patch.write_text("--- a/app.py\n+++ b/app.py\n@@ -1,3 +1,3 @@\n one\n-two\n+three\n four\n")
    with pytest.raises(DoesNotApply, match=r"outdated\.patch does not apply any more"):
        judge(Mutant("outdated", "nothing", "simulation", 1, patch))
