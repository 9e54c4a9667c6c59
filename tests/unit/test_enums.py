"""Numbers of a state and their words: the words are those of the contract, and no number
ever changes its meaning.
"""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest

from domain import enums
from domain.enums import ClosedBecause, Numbered, OrderStatus, SuborderStatus

KINDS = [
    kind
    for kind in vars(enums).values()
    if isinstance(kind, type) and issubclass(kind, Numbered) and kind is not Numbered
]

NUMBERS = {
    "OrderStatus": "pending confirmed shipped delivered returned",
    "SuborderStatus": "pending confirmed shipped delivered returned closed",
    "Rank": "pending in_transit delivered returned",
    "ReturnStatus": "requested processed rejected",
    "StockAnswer": "reserved rejected released",
    "RefundCause": "return stock closed grant",
    "DeadlineKind": ("payment stock release label refund ship unshipped deliver return refund_retry"),
    "ClosedBecause": (
        "not_closed cancelled payment_overdue stock_released stock_rejected stock_unanswered not_shipped"
    ),
}
"""Words by their numbers, from 0 on.
States in changelogs hold these: one may be added at the end, and that is all.
"""


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_number_changes_its_meaning(kind: type[Numbered]) -> None:
    assert {int(each): each.text for each in kind} == dict(enumerate(NUMBERS[kind.__name__].split()))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_its_words_are_those_of_the_contract(kind: type[Numbered]) -> None:
    words = [each.text for each in kind if each is not ClosedBecause.NOT_CLOSED]
    assert tuple(words) == get_args(get_type_hints(kind)["text"])


def test_a_sellers_part_has_the_statuses_of_an_order_with_their_numbers() -> None:
    assert [(int(each), each.text) for each in SuborderStatus][:-1] == [
        (int(each), each.text) for each in OrderStatus
    ]
