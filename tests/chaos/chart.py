"""Drawings for the report: SVG as text, one time axis for all of a run's charts. Pure.

A plotting library would bring megabytes, or a script from elsewhere, for three kinds of marks; and none
draws faults above the lag.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

WIDTH = 1160
LEFT, RIGHT = 150, 16
ROW = 18

Point = tuple[float, float | None]
"""Seconds, value. None: not known, the line has a gap."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A stretch of time in a row; `tail` is where what came of it was over, `bad` if it never was."""

    row: str
    start: float
    end: float
    tail: float | None
    label: str
    bad: bool = False


def timeline(bars: Sequence[Bar], seconds: float) -> str:
    """One row for each name, in the order of its first bar."""
    rows = list(dict.fromkeys(bar.row for bar in bars))
    height = ROW * len(rows) + 28
    x = _scale(seconds)
    parts = [_frame(height), *_axis(seconds, ROW * len(rows) + 4)]
    for number, row in enumerate(rows):
        y = ROW * number
        parts.append(f'<text class="name" x="{LEFT - 8}" y="{y + 13}" text-anchor="end">{escape(row)}</text>')
        for bar in (each for each in bars if each.row == row):
            title = f"<title>{escape(bar.label)}</title>"
            if bar.tail is not None:
                parts.append(_rect("tail", x(bar.end), y + 6, x(bar.tail) - x(bar.end), ROW - 10, title))
            parts.append(
                _rect(
                    "bad" if bar.bad else "fault",
                    x(bar.start),
                    y + 3,
                    max(2.0, x(bar.end) - x(bar.start)),
                    ROW - 4,
                    title,
                )
            )
    return "".join([*parts, "</svg>"])


def lines(
    series: Mapping[str, Sequence[Point]],
    seconds: float,
    unit: str,
    *,
    height: int = 150,
    shade: Iterable[Bar] = (),
) -> str:
    """Curves over the same time axis, the faults as a shade behind them. `unit` names what is drawn."""
    top, bottom = 12, height - 24
    highest = max(
        (value for points in series.values() for _, value in points if value is not None), default=0.0
    )
    most, step = _round_up(highest)
    x = _scale(seconds)

    def y(value: float) -> float:
        return bottom - (bottom - top) * value / most

    parts = [_frame(height)]
    parts += [
        _rect("shade", x(bar.start), top, max(1.0, x(bar.end) - x(bar.start)), bottom - top) for bar in shade
    ]
    for number in range(round(most / step) + 1):
        value = number * step
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>'
        )
        parts.append(
            f'<text class="tick" x="{LEFT - 8}" y="{y(value) + 4:.1f}" text-anchor="end">{value:,.0f}</text>'
        )
    parts.append(f'<text class="name" x="8" y="{top + 4}">{escape(unit)}</text>')
    parts += _axis(seconds, bottom)
    for number, (name, points) in enumerate(series.items()):
        parts += [
            f'<polyline class="line c{number}" points="{stretch}"/>' for stretch in _stretches(points, x, y)
        ]
        if len(series) > 1:
            parts.append(
                f'<text class="key c{number}" x="8" y="{top + 22 + 15 * number}">{escape(name)}</text>'
            )
    return "".join([*parts, "</svg>"])


def _frame(height: int) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img" preserveAspectRatio="xMinYMin meet">'


def _scale(seconds: float) -> Callable[[float], float]:
    factor = (WIDTH - LEFT - RIGHT) / max(seconds, 1.0)
    return lambda at: LEFT + at * factor


def _axis(seconds: float, y: float) -> list[str]:
    minutes = seconds / 60
    step = next((each for each in (0.25, 0.5, 1, 2, 5, 10, 15, 30, 60) if minutes / each <= 12), 120)
    x = _scale(seconds)
    parts = [f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>']
    for number in range(int(minutes / step) + 1):
        at = number * step
        parts.append(
            f'<text class="tick" x="{x(at * 60):.1f}" y="{y + 16:.1f}" text-anchor="middle">{at:g} min</text>'
        )
    return parts


def _rect(kind: str, x: float, y: float, width: float, height: float, inside: str = "") -> str:
    return (
        f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(0.0, width):.1f}"'
        f' height="{height:.1f}">{inside}</rect>'
    )


def _stretches(
    points: Sequence[Point], x: Callable[[float], float], y: Callable[[float], float]
) -> list[str]:
    stretches: list[list[str]] = [[]]
    for at, value in points:
        if value is None:
            stretches.append([])
        else:
            stretches[-1].append(f"{x(at):.1f},{y(value):.1f}")
    return [" ".join(stretch) for stretch in stretches if stretch]


def _round_up(highest: float) -> tuple[float, float]:
    """The end of an axis and the step of its ticks, both round numbers."""
    if highest <= 0:
        return 1.0, 1.0
    power = 10 ** math.floor(math.log10(highest / 4)) if highest >= 4 else 1
    step = next(power * each for each in (1, 2, 5, 10) if power * each * 5 >= highest)
    return step * math.ceil(highest / step), step
