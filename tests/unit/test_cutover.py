"""Files of old orders: refused, unless it's said until when another system handled them, or that they are
new.
"""

from __future__ import annotations

import gzip
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cli import bulk as command
from cli.main import run
from operations.submit.cutover import CutOver
from settings import Settings
from tests.unit.builders import ORDER, STRANGER, at, created, line, moment
from tests.unit.test_sources_bulk import FIRST, HEADER, OTHER, SECOND, taken

pytestmark = pytest.mark.usefixtures("unnoted")
TOLD = "would be charged again"
"""What the line says."""
LATER = "2999-01-01T00:00:00Z"


@pytest.fixture
def sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The jobs that were sent; the file orders.csv holds two old orders."""
    monkeypatch.chdir(tmp_path)
    Path("orders.csv").write_text(HEADER + FIRST + SECOND + OTHER)
    jobs: list[Any] = []

    async def send(settings: Settings, job: Any, again: bool, progress: Any) -> int:
        jobs.append(job)
        return 0

    monkeypatch.setattr(command, "_send", send)
    return jobs


def submit(*more: str, kind: str = "orders") -> int:
    return run(["bulk", "submit", kind, *more])


def test_a_file_of_old_orders_is_refused(sent: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert submit("orders.csv") == 2
    line_of_error = capfd.readouterr().err
    assert line_of_error.count("\n") == 1
    assert "orders.csv: 2 orders were placed more than 1:00:00 ago (ORDERS_HISTORY_AGE)" in line_of_error
    assert TOLD in line_of_error
    assert "--live-from TIME" in line_of_error
    assert "--as-new" in line_of_error
    assert sent == []


def test_a_dry_run_only_tells_it(sent: list[Any], capfd: pytest.CaptureFixture[str]) -> None:
    assert submit("orders.csv", "--dry-run") == 0
    assert TOLD in capfd.readouterr().out.replace("\n", " ")
    assert submit("orders.csv", "--dry-run", "--json") == 0
    assert json.loads(capfd.readouterr().out)["old_orders"] == 2
    assert submit("orders.csv", "--dry-run", "--as-new") == 0
    assert TOLD not in capfd.readouterr().out.replace("\n", " ")


@pytest.mark.parametrize("flags", [("--as-new",), ("--live-from", at(6))])
def test_the_flags_let_it_pass(sent: list[Any], flags: tuple[str, ...]) -> None:
    assert submit("orders.csv", *flags) == 0
    assert [job.accepted for job in sent] == [2]


@pytest.mark.parametrize(
    ("flags", "kind", "why"),
    [
        (("--live-from", "yesterday"), "orders", "not an RFC 3339 time"),
        (("--live-from", LATER), "orders", "still to come"),
        (("--live-from", at(6), "--as-new"), "orders", "contradict"),
        (("--live-from", at(6)), "returns", "are for files of orders"),
        (("--as-new",), "payments", "are for files of orders"),
    ],
)
def test_flags_that_cannot_be_meant(
    sent: list[Any], flags: tuple[str, ...], kind: str, why: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert submit("orders.csv", *flags, kind=kind) == 2
    assert why in capfd.readouterr().err
    assert sent == []


def test_young_orders_need_no_flag(sent: list[Any]) -> None:
    now = datetime.now(UTC).isoformat()
    Path("orders.csv").write_text(HEADER + (FIRST + SECOND + OTHER).replace(at(1), now))
    assert submit("orders.csv") == 0
    assert [job.old for job in sent] == [0]


def test_scans_may_be_old(sent: list[Any]) -> None:
    Path("scans.csv").write_text(
        f"order_id,time,shipment_id,seller_id,status\n{ORDER},{at(1)},{ORDER},{ORDER},delivered\n"
    )
    assert submit("scans.csv", kind="shipments") == 0
    assert [job.accepted for job in sent] == [1]


# -- what is sent --------------------------------------------------------------------------------------------

CUT = CutOver.of(Settings(), at(6))


def ndjson(*values: Any) -> bytes:
    return "".join(f"{json.dumps(value)}\n" for value in values).encode()


def test_orders_without_one_get_it() -> None:
    own = created(line(1), time=at(1), live_from=at(4))
    none = created(line(1), time=at(1), order_id=STRANGER, refunded_amount="1.00")
    for content in (ndjson(own, none), gzip.compress(ndjson(own, none))):
        job, parts, refused = taken(content, cut_over=CUT)
        assert refused == []
        assert [each["live_from"] for each in parts[0]] == [at(4), moment(6)]
        assert job.old == 0
    _, parts, _ = taken((HEADER + FIRST + SECOND).encode(), cut_over=CUT)
    assert [each["live_from"] for each in parts[0]] == [moment(6)]


def test_a_line_is_still_judged_as_it_came() -> None:
    """Of a member that stands twice each must be well formed; and an empty object is one."""
    twice = json.dumps(created(line(1), time=at(1))).replace('"currency"', '"currency": 5, "currency"')
    _, parts, refused = taken(f"{twice}\n{{}}\n".encode(), cut_over=CUT)
    assert [(each.line, each.reason) for each in refused] == [(1, "field_malformed"), (2, "field_missing")]
    assert parts == []


def test_old_are_orders_that_nobody_is_said_to_have_handled() -> None:
    old = created(line(1), time=at(1))
    theirs = created(line(1), time=at(1), order_id=STRANGER, live_from=at(4))
    assert taken(ndjson(old, theirs), cut_over=CutOver.of(Settings(), None))[0].old == 1
    assert taken(ndjson(old, theirs))[0].old == 0, "who doesn't ask"


def test_live_from_another_time_the_same_file_is_another_job() -> None:
    content = ndjson(created(line(1), time=at(1)))
    jobs = {
        taken(content, cut_over=CutOver.of(Settings(), live_from))[0].id
        for live_from in (None, at(6), at(7), "2026-01-01T07:00:00+01:00")
    }
    assert len(jobs) == 3, "the last one is the second once more"
    assert taken(content)[0].id in jobs
