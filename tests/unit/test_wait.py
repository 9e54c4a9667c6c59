"""What `orders wait` waits for: what was sent before, and what it causes, however much is sent meanwhile."""

from __future__ import annotations

from operations.wait import Goal
from streams.lag import Lag, Position


def lag(
    created: tuple[int, int], decisions: tuple[int, int] = (0, 0), rekeyed: tuple[int, int] = (0, 0)
) -> Lag:
    return {
        ("order.created", 0): Position(*created),
        ("order.created", 1): Position(4, 4),
        ("orders.decisions", 0): Position(*decisions),
        ("orders.rekeyed", 0): Position(*rekeyed),
    }


def test_what_is_sent_meanwhile_is_not_waited_for() -> None:
    goal = Goal(lag((5, 10)))
    assert goal.left(lag((5, 10))) == {"order.created": 5}
    assert goal.left(lag((8, 20))) == {"order.created": 2}
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


def test_traffic_that_always_leaves_decisions_does_not_keep_it_for_ever() -> None:
    goal = Goal(lag((5, 10)))
    left = [goal.left(lag((10 + n, 20 + n), (3 * n, 3 * n + 3))) for n in range(Goal.CHAIN + 1)]
    assert left == [{"orders.decisions": 3}] * Goal.CHAIN + [{}]
