"""How long a simulation waits for orders to end."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from settings import Settings
from workload import simulation
from workload.services import Behaviour
from workload.simulation import Simulation


@pytest.mark.parametrize(("apart", "ended"), [(8.0, 5), (11.0, 0)])
async def test_who_is_slow_is_waited_for_and_who_stands_still_is_not(
    monkeypatch: pytest.MonkeyPatch, apart: float, ended: int
) -> None:
    """An order ends each `apart` seconds; with nothing in 10 s what is left counts as hanging."""
    run = Simulation(Settings(), Behaviour())
    run._open = {str(n) for n in range(5)}
    run.result.checkouts = 5
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        while len(run._open) > 5 - int(now / apart):
            run._open.pop()

    async def at_rest(*clients: Any) -> bool:
        return not run._open

    monkeypatch.setattr("workload.simulation.time.monotonic", lambda: now)
    monkeypatch.setattr("workload.simulation.asyncio.sleep", sleep)
    monkeypatch.setattr(simulation, "LagReader", lambda settings: nullcontext())
    monkeypatch.setattr(run, "_unfinished", lambda: bool(run._open))
    monkeypatch.setattr(run, "_is_at_rest", at_rest)
    nobody: Any = None
    await run._until_ended([], 10.0, nobody, nobody)
    assert 5 - len(run._open) == ended
