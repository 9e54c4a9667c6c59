"""The schedule: the same seed, the same faults; every kind before one comes again; nothing
overlaps what it must not.
"""

from __future__ import annotations

from itertools import islice

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.faults import CATALOGUE
from tests.chaos.schedule import Kind, Round, Step, once, rounds, within

KINDS = [each.kind for each in CATALOGUE.values()]
AREAS = {kind.name: kind for kind in KINDS}

seeds = st.integers(0, 2**32)


@given(seeds)
def test_the_same_seed_is_the_same_schedule(seed: int) -> None:
    assert list(islice(rounds(seed, KINDS), 30)) == list(islice(rounds(seed, KINDS), 30))


def test_another_seed_is_another_schedule() -> None:
    assert list(islice(rounds(1, KINDS), 30)) != list(islice(rounds(2, KINDS), 30))


@given(seeds)
def test_every_kind_comes_before_one_comes_again(seed: int) -> None:
    drawn = [step.kind for each in islice(rounds(seed, KINDS), 3 * len(KINDS)) for step in each.steps]
    for start in range(0, 2 * len(KINDS), len(KINDS)):
        assert sorted(drawn[start : start + len(KINDS)]) == sorted(AREAS)


@given(seeds)
def test_what_overlaps_may(seed: int) -> None:
    for each in islice(rounds(seed, KINDS), 40):
        kinds = [AREAS[step.kind] for step in each.steps]
        assert len({kind.area for kind in kinds}) == len(kinds)
        assert len(kinds) == 1 or not any(kind.alone for kind in kinds)
        assert len(kinds) == 1 or each.steps[1].after <= each.steps[0].end, (
            "the second begins while the first one lasts"
        )
        for step, kind in zip(each.steps, kinds, strict=True):
            assert kind.hold[0] - 0.01 <= step.hold <= kind.hold[1] + 0.01


@given(seeds)
def test_some_overlap_and_some_do_not(seed: int) -> None:
    assert {len(each.steps) for each in islice(rounds(seed, KINDS), 80)} == {1, 2}


@given(seeds, st.floats(10, 3600))
def test_rounds_fit_into_the_time(seed: int, seconds: float) -> None:
    chosen = list(within(rounds(seed, KINDS), seconds))
    assert chosen == list(islice(rounds(seed, KINDS), len(chosen)))
    assert len(chosen) == 1 or sum(each.seconds for each in chosen) <= seconds


@given(seeds)
def test_once_is_every_kind_and_no_round_more(seed: int) -> None:
    chosen = list(once(seed, KINDS))
    assert {step.kind for each in chosen for step in each.steps} == set(AREAS)
    assert {step.kind for each in chosen[:-1] for step in each.steps} != set(AREAS)


def test_one_kind_alone_is_repeated() -> None:
    kind = Kind("only", "worker", (1.0, 2.0))
    assert [step.kind for each in islice(rounds(3, [kind]), 4) for step in each.steps] == ["only"] * 4


def test_a_rounds_length_counts_its_last_heal() -> None:
    assert Round(0, (Step("a", 0.0, 5.0, 1), Step("b", 4.0, 8.0, 2)), 1.0).seconds == pytest.approx(
        12 + 10 + 1
    )
