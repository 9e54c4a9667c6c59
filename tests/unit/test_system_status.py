"""What `orders status` makes of what brokers and workers say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from rich.console import Console

from cli.status import document, picture
from operations.status import DeadLetters, LaneStatus, Status, lane_status, latest
from streams.reports import SECONDS_GOOD, LaneReport, WorkerReport, decode

NOW = 1_800_000_000.0
MS = int(NOW * 1000)


def worker(name: str = "w1@a", at: int = MS, **fields: Any) -> WorkerReport:
    return WorkerReport(at, name, 1, "worker", **fields)


def status(*lanes: LaneStatus, workers: tuple[WorkerReport, ...] = (worker(),), **fields: Any) -> Status:
    servers = {"kafka": None, "postgres": None, "redis": None}
    usual: dict[str, Any] = {
        "at": NOW,
        "members": len(workers),
        "workers": list(workers),
        "lanes": list(lanes),
        "servers": servers,
        "dead_letters": DeadLetters(0, {}, {}),
        "jobs": [],
        "audit": None,
    }
    return Status(**(usual | fields))


def shown(given: Status, width: int = 80) -> str:
    console = Console(width=width, no_color=True)
    with console.capture() as captured:
        console.print(picture(given))
    return captured.get()


def test_of_each_worker_the_last_report_counts_if_it_is_young() -> None:
    old = worker("gone@a", MS - int(SECONDS_GOOD * 1000))
    first, last = worker("w1@a", MS - 4000), worker("w1@a", MS - 2000, stuck="x")
    other = worker("w0@a")
    assert latest([last, first, old, other], NOW) == [other, last]


@pytest.mark.parametrize(
    "value", [None, b"", b"{", b"[]", b"\xff", b'{"at": "now", "worker": "w", "pid": 1, "role": "worker"}']
)
def test_what_is_no_report_is_passed_over(value: bytes | None) -> None:
    assert decode(value) is None


@pytest.mark.parametrize(
    ("lane", "expected"),
    [
        (LaneReport("3"), LaneStatus(3, "w1@a", 7, None, None, None, None)),
        (LaneReport("3", oldest=MS - 5000), LaneStatus(3, "w1@a", 7, 5.0, None, None, None)),
        (LaneReport("3", oldest=MS + 5000), LaneStatus(3, "w1@a", 7, 0.0, None, None, None)),
        (
            LaneReport("3", still=2.0, waiting=1.5, why="OSError"),
            LaneStatus(3, "w1@a", 7, None, 1.5, 2.0, "OSError"),
        ),
        (LaneReport("3", rows_behind=2), LaneStatus(3, "w1@a", 7, None, None, None, None, rows_behind=2)),
        (LaneReport("13"), LaneStatus(3, None, 7, None, None, None, None)),
    ],
)
def test_a_lane_is_as_its_worker_says(lane: LaneReport, expected: LaneStatus) -> None:
    assert lane_status(3, 7, [worker(lanes=[lane])], NOW) == expected


def test_of_two_workers_that_say_they_have_a_lane_the_later_one_counts() -> None:
    both = [worker("a", MS, lanes=[LaneReport("0")]), worker("b", MS - 1, lanes=[LaneReport("0")])]
    for workers in (both, both[::-1]):
        assert lane_status(0, 0, workers, NOW).worker == "a"


@pytest.mark.parametrize(
    ("lane", "problem"),
    [
        (LaneStatus(0, "w", 9, 3.0, None, 3.0, None), None),
        (LaneStatus(0, None, 0, None, None, None, None), None),
        (LaneStatus(0, None, 1, None, None, None, None), "no worker has it"),
        (LaneStatus(0, "w", 1, 40.0, 12.4, 12.4, "OSError: no route"), "waits for 12 s: OSError: no route"),
        (LaneStatus(0, "w", 1, 40.0, None, 21.0, None), "stands still for 21 s"),
        (LaneStatus(0, "w", 1, 40.0, None, 1.0, None), "is behind by 40 s"),
        (
            LaneStatus(0, "w", 0, None, None, None, None, rows_behind=320),
            "has 320 orders with old rows in Postgres, or none: orders repair --rows",
        ),
    ],
)
def test_what_is_wrong_with_a_lane(lane: LaneStatus, problem: str | None) -> None:
    assert lane.problem == problem
    assert status(lane).problems == ([] if problem is None else [f"lane 0 {problem}"])


def test_what_the_last_audit_found_is_wrong_too() -> None:
    given = status(audit="2026-12-01T02:00:00+00:00", audit_broken=319)
    assert given.problems == ["the last audit found 319 differences: orders audit tells which"]
    assert "2026-12-01T02:00:00+00:00, 319 differences" in shown(given)


def test_what_is_wrong_is_said_first() -> None:
    given = status(
        LaneStatus(0, "w1@a", 5, 40.0, None, 1.0, None),
        workers=(
            worker(away={"postgres": 31.0, "redis": 11.0}, refused={"redis": "it is full: OOM"}),
            worker("w2@a", waits="lanes aren't open yet"),
        ),
        servers={"kafka": None, "postgres": "doesn't answer: TimeoutError", "redis": None},
        jobs=None,
    )
    assert shown(given).splitlines()[:5] == [
        "postgres doesn't answer: TimeoutError",
        "worker w1@a: postgres hasn't answered for 31 s",
        "worker w1@a: redis answers, but has refused to write for 11 s: it is full: OOM",
        "worker w2@a: lanes aren't open yet",
        "lane 0 is behind by 40 s",
    ]
    assert "no worker is running: start one with orders worker" in status(workers=()).problems


def test_idle_lanes_of_a_worker_are_one_line() -> None:
    idle = [LaneStatus(lane, "w1@a" if lane < 6 else "w2@a", 0, None, None, None, None) for lane in range(8)]
    idle[3] = idle[3]._replace(lag=12, oldest=0.4)
    lines = shown(status(*idle)).splitlines()
    assert lines[0] == "all is well"
    assert [line.split()[:3] for line in lines[-4:]] == [
        ["0-2", "w1@a", "0"],
        ["3", "w1@a", "12"],
        ["4-5", "w1@a", "0"],
        ["6-7", "w2@a", "0"],
    ]
    assert max(map(len, lines)) <= 80


def test_what_came_in_can_not_write_to_the_terminal() -> None:
    given = status(
        LaneStatus(0, "w\x1b[2J[red]", 1, 1.0, 2.0, 2.0, "\x1b]0;title\x07"),
        dead_letters=DeadLetters(1, {"\x1b[1m[bold]": 1}, {}),
    )
    assert "\x1b" not in shown(given)
    assert "[red]" in shown(given)
    assert "[bold]" in shown(given)


def test_a_flood_of_dead_letters_is_a_problem() -> None:
    few = status(LaneStatus(0, "w1@a", 0, None, None, None, None), dead_letters=DeadLetters(9, {"x": 9}, {}))
    assert few.problems == []
    many = few._replace(dead_letters=DeadLetters(3009, {"not_json": 3000, "x": 9}, {"not_json": 3000}))
    assert many.problems == [
        "3,000 records were refused within 10 min: not_json;"
        " orders dlq list --reason not_json --since 1h --by source --limit 5 says whose"
    ]


def test_the_document_is_json() -> None:
    job = {"job_id": "j", "kind": "orders", "parts": 2, "parts_done": 1, "created_at": object()}
    given = status(LaneStatus(0, "w1@a", 5, 40.0, None, 1.0, None), jobs=[job])
    said = json.loads(json.dumps(document(given)))
    assert said["problems"] == ["lane 0 is behind by 40 s"]
    assert said["lanes"][0]["problem"] == "is behind by 40 s"
    assert said["workers"][0]["worker"] == "w1@a"
    assert said["dead_letters"] == {"seconds": 3600.0, "total": 0, "reasons": {}, "flood": {}}
    assert said["at"] == "2027-01-15T08:00:00.000Z"
