"""Which faults, when, for how long: decided from a seed before anything runs. Pure.

A run is a row of rounds. A round injects one fault, now and then a second one on top of it, holds and heals
each, and ends when what had been sent until the last heal is handled. Then a short calm, then the next round.
So two runs of a seed inject the same faults with the same parameters in the same order; only the moment at
which a round ends is the machine's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

OVERLAP = 0.25
"""Share of rounds with a second fault."""
CALM = (1.0, 4.0)
CATCHING_UP = 10.0
"""What a round is reckoned to need after its last heal, in seconds. What it may need is ten times as long."""


@dataclass(frozen=True, slots=True)
class Kind:
    """What the schedule has to know of a fault.
    Two of one area never overlap; `alone`: nothing overlaps it. `hold` in seconds.
    """

    name: str
    area: str
    hold: tuple[float, float]
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One fault of a round: injected `after` seconds of it, healed `hold` seconds later.
    `seed` is for what the fault itself chooses.
    """

    kind: str
    after: float
    hold: float
    seed: int

    @property
    def end(self) -> float:
        """Seconds into the round at which it is healed."""
        return self.after + self.hold


@dataclass(frozen=True, slots=True)
class Round:
    """See the module. `calm` seconds of rest follow it."""

    number: int
    steps: tuple[Step, ...]
    calm: float

    @property
    def seconds(self) -> float:
        """How long it is reckoned to take."""
        return max(step.end for step in self.steps) + CATCHING_UP + self.calm


def rounds(seed: int, kinds: Sequence[Kind]) -> Iterator[Round]:
    """Without end. Every kind comes before one comes again, in an order of the seed's."""
    random = Random(f"{seed}:schedule")
    deck: list[Kind] = []
    number = 0

    def draw(wanted: Mapping[str, Kind]) -> Kind | None:
        nonlocal deck
        if not deck:
            deck = random.sample(list(kinds), len(kinds))
        place = next((at for at, kind in enumerate(deck) if kind.name in wanted), None)
        return deck.pop(place) if place is not None else None

    every = {kind.name: kind for kind in kinds}
    while True:
        first = draw(every)
        assert first is not None, "a schedule needs a fault"
        steps = [_step(random, first, 0.0)]
        if not first.alone and random.random() < OVERLAP:
            beside = {
                name: kind for name, kind in every.items() if not kind.alone and kind.area != first.area
            }
            second = draw(beside)
            if second is not None:
                steps.append(_step(random, second, round(random.uniform(0.0, steps[0].hold), 2)))
        yield Round(number, tuple(steps), round(random.uniform(*CALM), 2))
        number += 1


def within(planned: Iterable[Round], seconds: float) -> Iterator[Round]:
    """As many rounds as are reckoned to fit into so many seconds, one at least."""
    left = seconds
    for each in planned:
        if each.number and each.seconds > left:
            return
        left -= each.seconds
        yield each


def once(seed: int, kinds: Sequence[Kind]) -> Iterator[Round]:
    """Rounds until every kind has come."""
    missing = {kind.name for kind in kinds}
    for each in rounds(seed, kinds):
        yield each
        missing -= {step.kind for step in each.steps}
        if not missing:
            return


def _step(random: Random, kind: Kind, after: float) -> Step:
    return Step(kind.name, after, round(random.uniform(*kind.hold), 2), random.randrange(1 << 31))
