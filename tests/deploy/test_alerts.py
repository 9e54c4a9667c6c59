"""Prometheus takes the alerts and the dashboard's queries, and each alert fires in its case alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tests.deploy.promtool import promtool
from tests.stackfixture import ROOT

RULES: Final = ROOT / "deploy" / "prometheus" / "rules.yaml"
CASES: Final = RULES.with_name("rules.test.yaml")
DASHBOARD: Final = ROOT / "deploy" / "grafana" / "orders.json"


def alerts() -> list[str]:
    groups = yaml.safe_load(RULES.read_text())["groups"]
    return [rule["alert"] for group in groups for rule in group["rules"]]


def firing(cases: list[dict[str, Any]]) -> Iterator[str]:
    for case in cases:
        for expected in case.get("promql_expr_test", ()):
            for sample in expected["exp_samples"]:
                yield re.findall(r'alertname="(\w+)"', sample["labels"])[0]
        for expected in case.get("alert_rule_test", ()):
            if expected["exp_alerts"]:
                yield expected["alertname"]


@pytest.mark.promtool
def test_promtool_takes_the_rules() -> None:
    done = promtool("check", "rules", "--lint-fatal", RULES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.promtool
def test_each_alert_fires_in_its_case_and_is_silent_otherwise() -> None:
    done = promtool("test", "rules", CASES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.promtool
@pytest.mark.parametrize("alert", alerts())
def test_without_an_alert_its_case_fails(alert: str, tmp_path: Path) -> None:
    rules = yaml.safe_load(RULES.read_text())
    for group in rules["groups"]:
        group["rules"] = [rule for rule in group["rules"] if rule["alert"] != alert]
    (tmp_path / RULES.name).write_text(yaml.safe_dump(rules))
    cases = yaml.safe_load(CASES.read_text())
    cases["tests"] = [case for case in cases["tests"] if alert in firing([case])]
    (tmp_path / CASES.name).write_text(yaml.safe_dump(cases))
    done = promtool("test", "rules", tmp_path / CASES.name)
    assert done.returncode == 1
    assert alert in done.stdout + done.stderr


@pytest.mark.promtool
def test_promtool_takes_the_dashboards_queries(tmp_path: Path) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    queries = [target["expr"] for panel in panels for target in panel.get("targets", ())]
    records = [{"record": f"query_{number}", "expr": query} for number, query in enumerate(queries)]
    assert len(records) > 20
    file = tmp_path / "queries.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": records}]}))
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_case_and_one_case_is_a_healthy_hour() -> None:
    cases = yaml.safe_load(CASES.read_text())["tests"]
    assert set(firing(cases)) == set(alerts())
    [healthy] = [case for case in cases if case["name"].startswith("a healthy hour")]
    assert list(firing([healthy])) == []
    assert {each["eval_time"] for each in healthy["promql_expr_test"]} == {"10m", "30m", "60m"}
