"""Alerts, dashboard and runbook name metrics, pages and commands that there are."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from typing import Any, Final

import pytest
import typer
import yaml
from prometheus_client.metrics import MetricWrapperBase

from cli import main
from contracts.errors import REASONS
from reference.dashboard import dashboard_file
from streams import metrics
from tests.stackfixture import ROOT

RULES: Final = ROOT / "deploy" / "prometheus" / "rules.yaml"
DASHBOARD: Final = ROOT / "deploy" / "grafana" / "orders.json"
RUNBOOK: Final = ROOT / "docs" / "runbook"
INDEX: Final = "README.md"
PAGES: Final = sorted(path.name for path in RUNBOOK.glob("*.md"))
SECTIONS: Final = ["What it means", "Look", "Do", "It is over when"]
PROGRAMS: Final = {"orders", "curl", "kubectl", "systemctl", "journalctl"}
"""What a command of the runbook may begin with."""
METRIC: Final = re.compile(r"\b(?:orders|process|python)_[a-z_]+\b")
OF_THE_CLIENT: Final = ("process_", "python_")


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def served() -> set[str]:
    """Names of all series that workers and audit serve, of ours."""
    names = set()
    for each in vars(metrics).values():
        if isinstance(each, MetricWrapperBase):
            ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(
                str(each._type), ("",)
            )
            names |= {each._name + end for end in ends}
    return names


def unknown(text: str) -> set[str]:
    return {
        name for name in METRIC.findall(text) if not name.startswith(OF_THE_CLIENT) and name not in served()
    }


# -- metrics -------------------------------------------------------------------------------------------------


def test_alerts_and_dashboard_name_metrics_that_are_served() -> None:
    assert {rule["alert"]: names for rule in rules() if (names := unknown(rule["expr"]))} == {}
    panels = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in panels["panels"] for target in panel.get("targets", ())]
    queries += [variable["query"] for variable in panels["templating"]["list"]]
    assert {query for query in queries if unknown(query)} == set()


@pytest.mark.parametrize("page", PAGES)
def test_pages_name_metrics_that_are_served(page: str) -> None:
    assert unknown((RUNBOOK / page).read_text()) == set()


def test_the_dashboard_is_what_the_code_says() -> None:
    assert DASHBOARD.read_text() == dashboard_file(), "deploy/grafana/orders.json: run make docs"


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    text = DASHBOARD.read_text() + RULES.read_text()
    unseen = {
        each._name
        for each in vars(metrics).values()
        if isinstance(each, MetricWrapperBase) and each._name not in text
    }
    assert unseen == {"orders_last_batch_timestamp_seconds", "orders_audit_position"}


def test_dead_letters_are_counted_from_zero() -> None:
    """The first scrape after a flood sees an increase."""
    [family] = metrics.DEAD_LETTERS.collect()
    assert {sample.labels["reason"] for sample in family.samples if sample.name.endswith("_total")} >= set(
        REASONS
    )


# -- pages ---------------------------------------------------------------------------------------------------


def test_every_alert_says_what_it_is() -> None:
    for rule in rules():
        assert rule["alert"].startswith("Orders")
        assert rule["labels"]["severity"] in ("critical", "warning"), rule["alert"]
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}, rule["alert"]


def test_every_alert_has_a_page_and_every_page_an_alert() -> None:
    pages = {rule["annotations"]["runbook_url"]: f"# {rule['alert']}" for rule in rules()}
    assert len(pages) == len(rules())
    assert pages == {
        f"docs/runbook/{page}": (RUNBOOK / page).read_text().partition("\n")[0]
        for page in PAGES
        if page != INDEX
    }


def test_the_index_lists_every_alert_with_its_severity() -> None:
    listed = re.findall(r"^\| \[(\w+)\]\(([\w-]+\.md)\) \| (\w+) \|", (RUNBOOK / INDEX).read_text(), re.M)
    assert sorted(listed) == sorted(
        (rule["alert"], rule["annotations"]["runbook_url"].rpartition("/")[2], rule["labels"]["severity"])
        for rule in rules()
    )


@pytest.mark.parametrize("page", [page for page in PAGES if page != INDEX])
def test_a_page_says_what_it_means_where_to_look_what_to_do_and_when_it_is_over(page: str) -> None:
    assert re.findall(r"^## (.*)", (RUNBOOK / page).read_text(), re.M) == SECTIONS


# -- commands ------------------------------------------------------------------------------------------------


def commands(page: str) -> Iterator[str]:
    """Each command of a page: indented, or in backticks where it begins with orders."""
    for line in (RUNBOOK / page).read_text().splitlines():
        if re.match(r" {4,}[a-z]+ ", line):
            named = [line.partition(" #")[0].strip()]
        else:
            named = re.findall(r"`(orders [^`]+)`", line)
        for each in named:
            yield from each.split(" && ")


def parse(words: list[str]) -> None:
    """Raises typer's TyperException where the command or an option isn't there."""
    command: Any = typer.main.get_command(main.app)
    name, *rest = words
    while isinstance(command, typer.core.TyperGroup) and rest and not rest[0].startswith("-"):
        subcommand = command.get_command(None, rest[0])  # type: ignore[arg-type]
        if subcommand is None:
            raise LookupError(f"no command {rest[0]}")
        name, *rest = rest
        command = subcommand
    command.make_context(name, rest)


@pytest.mark.parametrize("page", PAGES)
def test_every_command_is_there_with_its_options(page: str) -> None:
    named = [shlex.split(command) for command in commands(page)]
    assert named
    for words in named:
        assert words[0] in PROGRAMS, words
        if words[0] == "orders":
            parse(words)


@pytest.mark.parametrize("command", ["orders stattus", "orders status --wach", "orders dlq lst"])
def test_a_command_that_isnt_there_is_noticed(command: str) -> None:
    with pytest.raises((LookupError, typer.exceptions.TyperException)):
        parse(command.split())
