"""What the overview and the page of lanes show of a look at everything. Pure."""

from __future__ import annotations

from typing import Any

from console.live import Glance
from console.plot import HEIGHT, WIDTH, plot


def overview_of(glance: Glance) -> dict[str, Any]:
    """The values of the templates overview and lanes."""
    status, flow = glance.status, glance.flow
    return {
        "status": status,
        "lost": glance.lost,
        "problems": [] if status is None or glance.lost is not None else status.problems,
        "flow": flow,
        "plot": plot([each.taken_in for each in flow or ()], [each.sent for each in flow or ()]),
        "plot_size": (WIDTH, HEIGHT),
        "lag": 0 if status is None else sum(lane.lag for lane in status.lanes),
        "most_lag": max([1, *(lane.lag for lane in (() if status is None else status.lanes))]),
    }
