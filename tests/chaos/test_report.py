"""The report says what happened, and is one page that needs nothing else."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tests.chaos import chart, report
from tests.chaos.run import ChaosResult, Injection, judged
from tests.chaos.watch import Sample
from tests.chaos.workers import Exit


def outcome(**changes: Any) -> ChaosResult:
    result = ChaosResult(
        7,
        1.0,
        began=1_800_000_000.0,
        seconds=60.0,
        shape={"brokers": 3, "workers": 3, "rate": 200.0},
        sent=12_000,
        drained=1.2,
    )
    result.injections = [
        Injection(0, "worker-kill", 1, "w2", 5.0, 8.0, 2.5),
        Injection(1, "worker-kill", 2, "w1", 20.0, 22.0, 4.5),
        Injection(1, "net-redis-cut", 3, "redis", 21.0, 30.0, 4.5, "w1: <redis.away>"),
    ]
    result.samples = [
        Sample(
            float(at),
            None if at == 10 else at * 3,
            None if at == 10 else at * 200,
            at * 200,
            {"w1": at << 20},
        )
        for at in range(60)
    ]
    result.exits = [Exit("w2", 41, 5.0, 5.0, -9, "SIGKILL"), Exit("w1", 42, 20.0, 20.0, 0, "SIGTERM", 0.4)]
    result.audit = {"clean": True, "counts": {"orders": 900, "derived_repetitions": 17}, "findings": []}
    for name, value in changes.items():
        setattr(result, name, value)
    return result


class Page(HTMLParser):
    """Text and tags; fails on a tag that isn't closed."""

    VOID = frozenset({"meta"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Nothing to close."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def test_the_page_tells_everything_and_needs_nothing() -> None:
    html = report.page(outcome(notes=["w3: <note>"]))
    page = Page(html)
    assert page.links == []
    assert "http" not in html
    for part in (
        "nothing lost, nothing done twice",
        "worker-kill",
        "net-redis-cut",
        "4.5 s",
        "w1: <redis.away>",
        "SIGTERM",
        "w3: <note>",
        "17",
    ):
        assert part in page.text, part
    assert html.count("<svg") == 4


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"problems": ["round 3: not handled"]}, id="a problem"),
        pytest.param(
            {"audit": {"clean": False, "findings": [{"severity": "broken", "check": "rows"}]}}, id="not clean"
        ),
        pytest.param({"audit": {}}, id="no audit"),
    ],
)
def test_a_bad_run_is_told_as_one(changes: dict[str, Any]) -> None:
    bad = outcome(**changes)
    assert not bad.good
    text = Page(report.page(bad)).text
    assert "FAILED" in text
    assert "nothing lost" not in text
    for problem in changes.get("problems", []):
        assert problem in text


def test_recoveries_by_kind() -> None:
    failed = outcome()
    failed.injections.append(Injection(2, "worker-kill", 4, "w3", 40.0, 41.0, None))
    kinds = {each.kind: each for each in report.summaries(failed)}
    assert kinds["worker-kill"] == report.Summary("worker-kill", 3, (2.5, 4.5), 1)
    assert (kinds["worker-kill"].median, kinds["worker-kill"].worst) == (4.5, 4.5)
    assert kinds["net-redis-cut"].failed == 0


def test_both_files_are_written(tmp_path: Path) -> None:
    document = report.write(outcome(), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text()) == document
    assert document["good"] is True
    assert document["redelivered"] == 17
    assert len(document["samples"]) == 60
    Page((tmp_path / "report.html").read_text())


def test_curves_have_a_gap_where_nothing_is_known() -> None:
    drawn = chart.lines({"lag": [(0.0, 1.0), (1.0, 2.0), (2.0, None), (3.0, 4.0)]}, 4.0, "records")
    assert [len(points.split()) for points in re.findall(r'points="([^"]*)"', drawn)] == [2, 1]


@pytest.mark.parametrize(
    ("highest", "end"), [(0, 1), (3, 3), (7, 8), (99, 100), (1234, 1500), (60_001, 80_000)]
)
def test_axes_end_on_round_numbers(highest: float, end: float) -> None:
    assert chart._round_up(highest)[0] == end


@pytest.mark.parametrize(
    ("gone", "wrong"),
    [
        pytest.param(Exit("w1", 1, 5.0, 5.0, -9, "SIGKILL"), False, id="killed"),
        pytest.param(Exit("w1", 1, 5.0, 5.0, 0, "SIGTERM", 2.0), False, id="asked to stop"),
        pytest.param(Exit("w1", 1, 5.0, 5.0, 1, None), False, id="could not go on"),
        pytest.param(Exit("w1", 1, 5.0, 5.0, 0, None), True, id="stopped for no reason"),
        pytest.param(Exit("w1", 1, 5.0, 5.0, 0, "SIGTERM", 31.0), True, id="stopped late"),
        pytest.param(Exit("w1", 1, 5.0, 5.0, 1, "SIGTERM", 2.0), False, id="failed while it stopped"),
    ],
)
def test_how_a_worker_may_end(gone: Exit, wrong: bool) -> None:
    assert bool(judged([gone], 30.0)) is wrong
