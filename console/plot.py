"""Plots as inline SVG: coordinates only, so that a page needs no script and no style of its own. All pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

WIDTH: Final = 600
HEIGHT: Final = 120


class Plot(NamedTuple):
    """`taken_in`, `sent`: points of polylines. `most`: what the upper edge stands for, a second."""

    taken_in: str
    sent: str
    most: float


def plot(taken_in: Sequence[float], sent: Sequence[float]) -> Plot:
    """A plot of two series of the same length."""
    most = _round_up(max([*taken_in, *sent], default=0.0))
    return Plot(_line(taken_in, most), _line(sent, most), most)


def _line(values: Sequence[float], most: float) -> str:
    step = WIDTH / max(1, len(values) - 1)
    return " ".join(
        f"{n * step:.1f},{HEIGHT - min(1.0, value / most) * (HEIGHT - 4) - 2:.1f}"
        for n, value in enumerate(values)
    )


def _round_up(value: float) -> float:
    """The next of 1, 2, 5, 10, 20, ...: a person reads it at a glance, and the scale seldom changes."""
    scale = 1.0
    while True:
        for each in (1, 2, 5):
            if value <= each * scale:
                return each * scale
        scale *= 10
