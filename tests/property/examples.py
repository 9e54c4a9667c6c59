"""How many examples the property tests try.

`PROPERTY_SHARE=4` asks for a quarter of them: where they run a second time, with the rules from their source
(tests/source). That both forms of the rules are the same is the matter of test_forms.
"""

from __future__ import annotations

import os
from typing import Final

from hypothesis import settings

SHARE_VARIABLE: Final = "PROPERTY_SHARE"
_share = int(os.environ.get(SHARE_VARIABLE, "1"))


def part(number: int) -> int:
    """This many, or the share of them that is asked for; at least 1."""
    return max(1, number // _share)


def examples(number: int) -> settings:
    """Hypothesis's settings for so many examples, or a share of them; they may take as long as they like."""
    return settings(max_examples=part(number), deadline=None)
