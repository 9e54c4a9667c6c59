"""What `orders wait` waits for: what was sent before, and what it causes, however much is sent meanwhile."""

from __future__ import annotations

from operations.wait import Goal
from streams.lag import Lag, Position

NONE = (0, 0)


def lag(
    paid: tuple[int, int],
    decisions: tuple[int, int] = NONE,
    rekeyed: tuple[int, int] = NONE,
    created: tuple[int, int] = (4, 4),
) -> Lag:
    return {
        ("order.paid", 0): Position(*paid),
        ("order.created", 1): Position(*created),
        ("orders.decisions", 0): Position(*decisions),
        ("orders.rekeyed", 0): Position(*rekeyed),
    }


def test_what_is_sent_meanwhile_is_not_waited_for() -> None:
    goal = Goal(lag((5, 10)))
    assert goal.left(lag((5, 10))) == {"order.paid": 5}
    assert goal.left(lag((8, 20))) == {"order.paid": 2}
    assert goal.left(lag((10, 30))) == {}


def test_what_was_in_the_internal_topics_counts_from_the_first() -> None:
    goal = Goal(lag((5, 5), (1, 3)))
    assert goal.left(lag((5, 5), (1, 3))) == {"orders.decisions": 2}
    assert goal.left(lag((5, 9), (3, 3))) == {}


def test_what_was_caused_is_waited_for_and_what_that_causes() -> None:
    goal = Goal(lag((5, 10)))
    assert goal.left(lag((10, 10), rekeyed=(0, 2))) == {"orders.rekeyed": 2}
    assert goal.left(lag((10, 10), (0, 1), (1, 2))) == {"orders.rekeyed": 1}
    assert goal.left(lag((10, 10), (0, 1), (2, 2))) == {"orders.decisions": 1}
    assert goal.left(lag((10, 12), (1, 1), (2, 2))) == {}


def test_an_order_that_a_checkout_causes_is_waited_for_once() -> None:
    goal = Goal(lag((5, 10)))
    assert goal.left(lag((10, 10), created=(4, 6))) == {"order.created": 2}
    assert goal.left(lag((10, 10), (0, 1), created=(6, 9))) == {"orders.decisions": 1}
    assert goal.left(lag((10, 10), (1, 1), created=(6, 9))) == {}


def test_decisions_are_followed_to_their_end_where_nobody_else_sends() -> None:
    goal = Goal(lag((10, 10)))
    for n in range(3 * Goal.CHAIN):
        assert goal.left(lag((10, 10), (n, n + 1))) == {"orders.decisions": 1}
    assert goal.left(lag((10, 10), (n + 1, n + 1))) == {}


def test_traffic_that_always_leaves_decisions_does_not_keep_it_for_ever() -> None:
    goal = Goal(lag((5, 10)))
    left = [goal.left(lag((10 + n, 20 + n), (3 * n, 3 * n + 3))) for n in range(Goal.CHAIN + 1)]
    assert left == [{"orders.decisions": 3}] * Goal.CHAIN + [{}]
