"""Prometheus and Alertmanager on a running pipeline: each alert fires for its cause, and none without one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import pytest
import yaml

from settings import Settings
from tests.alerts.monitoring import RULES, scaled
from tests.alerts.scene import NOT_TRIED, SHORT, STEPS, alerts_of, chosen, lanes_open, scene
from tests.stackfixture import ROOT

DIVISOR: Final = float(os.environ.get("ALERTS_DIVISOR", "1"))


def alerts() -> list[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"]]


@pytest.mark.monitoring
async def test_alerts_fire_for_their_causes_and_none_without_one(fresh: Settings, tmp_path: Path) -> None:
    """A dead letter, a pause, an outage of Postgres, a killed worker. The rest: make alerts."""
    steps = {name: (act, fires) for name, (act, fires) in STEPS.items() if act in SHORT}
    async with scene(fresh, tmp_path, 4, audit=False) as on:
        for act in SHORT:
            await act(on)
    assert on.fired == alerts_of(steps)


@pytest.mark.monitoring
@pytest.mark.long
@pytest.mark.timeout(3600)
async def test_every_alert_fires_for_its_cause(fresh: Settings, tmp_path: Path) -> None:
    """Or those alone that ALERTS_OF names."""
    steps = chosen(os.environ.get("ALERTS_OF", ""))
    audit = any(alert.startswith("OrdersAudit") for alert in alerts_of(steps))
    async with scene(fresh, tmp_path, DIVISOR, audit=audit) as on:
        await lanes_open(on)
        for act, _ in steps.values():
            await act(on)
    assert on.fired == alerts_of(steps)


def test_steps_are_chosen_by_their_alerts() -> None:
    assert chosen("") == STEPS
    assert list(chosen("OrdersNoWorker, OrdersAuditBroken")) == ["rows_deleted_by_hand", "all_workers_killed"]
    with pytest.raises(ValueError, match="no step provokes OrdersNoWorkers; known: OrdersAuditBroken, "):
        chosen("OrdersNoWorkers")


def test_each_alert_has_a_step_or_a_reason_why_not() -> None:
    assert sorted([*alerts_of(STEPS), *NOT_TRIED]) == sorted(alerts())
    manual = (ROOT / "docs" / "testing.md").read_text()
    assert [alert for alert in NOT_TRIED if alert not in manual] == []


def test_only_durations_are_scaled() -> None:
    before = yaml.safe_load(RULES.read_text())
    after = scaled(before, 4)
    assert scaled(before, 1) != before
    for group, shortened in zip(before["groups"], after["groups"], strict=True):
        for rule, scaled_rule in zip(group["rules"], shortened["rules"], strict=True):
            assert re.sub(r"\d", "", rule["expr"]).translate(UNITS) == re.sub(
                r"[\d.]", "", scaled_rule["expr"]
            ).translate(UNITS), rule["alert"]
            assert rule["labels"] == scaled_rule["labels"]
            assert ("for" in rule) == ("for" in scaled_rule)
    [away] = [
        rule for group in after["groups"] for rule in group["rules"] if rule["alert"] == "OrdersServerAway"
    ]
    assert away["expr"].endswith(") > 15")


UNITS: Final = str.maketrans({"m": "s", "d": "s", ".": None})
"""What is between a duration in minutes or days and one in seconds."""
