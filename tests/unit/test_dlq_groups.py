"""The summary of `orders dlq list` shows so many groups, and says how many more there are."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from cli import dlq
from settings import Settings


def test_of_many_groups_the_largest_are_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dlq, "state_of", lambda *_: "new")
    letter: Any = type("Letter", (), {"id": "0:1", "reason": "x", "detail": "", "record": "r", "time": "now"})
    for many, capped in ((dlq.SHOWN_GROUPS, False), (dlq.SHOWN_GROUPS + 3, True)):
        groups = Counter({f"seller-{number}": number + 1 for number in range(many)})
        dlq._print_list(Settings(), [(letter, None)], groups, Counter(new=9), dlq.ByName.seller, wide=False)
        shown = capsys.readouterr().out
        assert ("and 3 more by seller" in shown) is capped
        assert ("seller-0 " in shown.replace("\n", " ")) is not capped
