"""`orders import`: what it tells of another system's files, what it refuses and where, what it would send."""

from __future__ import annotations

import io
import json
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cli import importing
from cli.main import run
from cli.takeover_report import _ignored
from contracts import ids
from operations.submit.cutover import CutOver
from operations.submit.files import USUAL
from operations.submit.jobs import Job, prepare
from operations.takeover.plan import Plan
from operations.takeover.report import File, Report
from operations.takeover.sending import Outcome, Sent, job_of
from operations.takeover.sources import found
from settings import Settings
from tests.unit.builders import ANNA, BORIS, at, item_id
from tests.unit.takeover_files import (
    CANCELLATIONS,
    COLUMNS,
    LIVE_FROM,
    PAYMENTS,
    RETURNS,
    SCANS,
    order,
    order_id,
    other_id,
    payment,
    scan,
    write,
)

LATER = "2999-01-01T00:00:00Z"


pytestmark = pytest.mark.usefixtures("unnoted")


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[Plan]:
    """What was sent."""
    plans: list[Plan] = []

    async def send(settings: Settings, plan: Plan, *_: Any) -> tuple[list[Sent], Outcome]:
        plans.append(plan)
        return [], Outcome(plan.report.orders, 0, [], 0)

    monkeypatch.setattr(importing, "_run", send)
    return plans


def told(capfd: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> dict[str, Any]:
    """The JSON of a run that ends with `code`."""
    assert run(["import", *map(str, arguments), "--json"]) == code
    document: dict[str, Any] = json.loads(capfd.readouterr().out)
    return document


def refusals(capfd: pytest.CaptureFixture[str], *arguments: object) -> list[tuple[str, int, str]]:
    """File, line and detail of every refused line."""
    report = told(capfd, *arguments, "--live-from", LIVE_FROM, code=1)
    assert report["ready"] is False
    return [(Path(each["file"]).name, each["line"], each["detail"]) for each in report["refusals"]]


# -- the report ----------------------------------------------------------------------------------------------


def test_a_dry_run_tells_what_would_happen(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], sent: list[Plan]
) -> None:
    report = told(capfd, write(tmp_path), "--live-from", LIVE_FROM, "--refunds-as-computed", "--dry-run")
    assert report["ready"] is True
    assert [(Path(each["path"]).name, each["lines"]) for each in report["files"]] == [
        ("orders.csv", 4),
        ("payments.csv", 3),
        ("shipments.csv", 3),
        ("cancellations.csv", 1),
    ]
    assert report["by_status"] == {"pending": 1, "shipped": 1, "delivered": 1, "closed": 1}
    assert (report["orders"], report["open"]) == (4, 2)
    assert report["waits"]["payment"] == {"orders": 1, "overdue": 0}
    assert report["waits"]["deliver"]["orders"] == 1
    assert report["commands"] == {}
    assert report["notices"] > 0
    assert report["money"] == {"EUR": {"total": "120.00", "captured": "90.00", "refunded": "30.00"}}
    assert report["untold"] == [
        {
            "order_id": order_id(4),
            "file": str(tmp_path / "orders.csv"),
            "line": 8,
            "computed": "30.00",
            "currency": "EUR",
        }
    ]
    assert sent == []


def test_a_person_reads_it_in_80_columns(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    sent: list[Plan],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    write(Path("shop"), payments=PAYMENTS + payment(1, amount="31.00"))
    assert run(["import", "shop", "--live-from", LIVE_FROM, "--dry-run"]) == 1
    out = capfd.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    for piece in (
        "shop/orders.csv",
        r"delivered +1",
        r"commands +none",
        rf"overpaid +1 +order {order_id(1)}",
        "1 orders don't say what was paid back",
        "--refunds-as-computed",
    ):
        assert re.search(piece, out), piece
    assert sent == []


def test_history_of_every_kind_asks_nobody_for_anything(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of lines paid twice, shipped though called off, returned, given back in part."""
    cancelled = (
        "order_id,time,reason,seller_id,items\n"
        f"{order_id(2)},{at(6)},late,{BORIS},\n"
        f'{order_id(3)},{at(6)},gone,,"[{{""item_id"": ""{item_id(2)}"", ""quantity"": 1}}]"\n'
        f"{order_id(4)},{at(6)},no more,,\n"
    )
    folder = write(
        tmp_path,
        payments=PAYMENTS
        + "".join(payment(n, payment_id=n * 2 + twice) for n in (1, 2, 3, 4) for twice in (0, 1)),
        shipments=SCANS
        + "".join(
            scan(n, seller, status)
            for n, status in ((1, "delivered"), (2, "returned"), (4, "delivered"))
            for seller in (ANNA, BORIS)
        ),
        returns=RETURNS,
        cancellations=cancelled,
    )
    report = told(capfd, folder, "--live-from", LIVE_FROM, "--refunds-as-computed", "--dry-run")
    assert report["commands"] == {}
    assert report["orders"] == 4
    assert report["anomalies"]["overpaid"] == 4
    assert report["anomalies"]["moved_though_gone"] >= 2
    assert {each["order_id"] for each in report["untold"]} == {order_id(n) for n in (1, 2, 3, 4)}


# -- what was paid back --------------------------------------------------------------------------------------


def test_it_asks_for_what_was_paid_back_order_by_order(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], sent: list[Plan]
) -> None:
    folder = write(tmp_path, returns=RETURNS, cancellations="")
    report = told(capfd, folder, "--live-from", LIVE_FROM, code=1)
    assert [(each["line"], each["computed"]) for each in report["untold"]] == [(2, "10.00")]
    assert sent == []
    (tmp_path / "orders.csv").write_text(
        f"{COLUMNS},refunded_amount\n" + order(1, columns=",9.00") + order(2, columns=",")
    )
    (tmp_path / "payments.csv").write_text(PAYMENTS + payment(1))
    report = told(capfd, folder, "--live-from", LIVE_FROM)
    assert (report["refunds_untold"], report["money"]["EUR"]["refunded"]) == (0, "9.00")
    assert len(sent) == 1


def jobs(plan: Plan, settings: Settings) -> list[tuple[Job, list[dict[str, Any]]]]:
    with ExitStack() as stack:
        plan.read(stack, stdin=io.BytesIO(), bounds=USUAL)
        sends: list[Any] = []
        for file, source in enumerate(plan.sources):
            if source.kind == "cancellations":
                continue
            job = job_of(plan, file, stack)
            read = []
            for offset, length in job.parts:
                job.spool.seek(offset)
                read += json.loads(b"[" + job.spool.read(length) + b"]")
            sends.append((job, read))
        return sends


def plan_of(folder: Path, *, until: bool = False, computed: bool = False) -> Plan:
    settings = Settings()
    cut_over = CutOver.of(settings, LIVE_FROM)
    sources = found(folder, {}, ())
    return Plan(settings, sources, cut_over, until_live_from=until, refunds_computed=computed)


def test_what_is_sent_is_what_bulk_submit_would_send_and_computed_refunds(tmp_path: Path) -> None:
    settings = Settings()
    folder = write(tmp_path, returns=RETURNS)
    plain = jobs(plan_of(folder), settings)
    with ExitStack() as stack:
        cut = CutOver.of(settings, LIVE_FROM)
        by_bulk = prepare(str(folder / "orders.csv"), "orders", stack, stdin=io.BytesIO(), cut_over=cut)
    assert plain[0][0].id == by_bulk.id
    assert all("live_from" in each and "refunded_amount" not in each for each in plain[0][1])
    computed = jobs(plan_of(folder, computed=True), settings)
    assert [each.get("refunded_amount") for each in computed[0][1]] == ["10.00", None, None, "30.00"]
    assert computed[0][0].id != plain[0][0].id, "other content is another job"
    assert [job.id for job, _ in computed[1:]] == [job.id for job, _ in plain[1:]]
    assert [job.id for job, _ in jobs(plan_of(folder, computed=True), settings)] == [
        job.id for job, _ in computed
    ], "the same files are the same jobs"


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "file", "line", "what"),
    [
        (
            {"orders": COLUMNS + "\n" + order(1, total="30.01") + order(2) + order(3) + order(4)},
            "orders.csv",
            2,
            "total_amount",
        ),
        (
            {"payments": PAYMENTS + payment(1, amount="-30.00")},
            "payments.csv",
            2,
            "$.amount",
        ),
        (
            {"payments": PAYMENTS + payment(1) + payment(1)},
            "payments.csv",
            3,
            "a payment of this id is in",
        ),
        (
            {"payments": PAYMENTS + payment(1) + payment(7)},
            "payments.csv",
            3,
            "no file has this order",
        ),
        (
            {"payments": PAYMENTS + payment(1, 20)},
            "payments.csv",
            2,
            "not before live_from",
        ),
        (
            {"payments": f"{PAYMENTS}{order_id(1)},03/04/2025,{other_id(1)},1.00,EUR\n"},
            "payments.csv",
            2,
            "$.time",
        ),
        (
            {"payments": PAYMENTS + payment(1).replace("EUR", "USD")},
            "payments.csv",
            2,
            "not the order's",
        ),
        (
            {"shipments": SCANS + scan(1, other_id(1))},
            "shipments.csv",
            2,
            "not a seller of the order",
        ),
        ({"returns": RETURNS.replace(item_id(2), item_id(9))}, "returns.csv", 2, "not an item of the order"),
        (
            {"cancellations": f"{CANCELLATIONS}{order_id(9)},{at(3)},x\n"},
            "cancellations.csv",
            2,
            "no file has this order",
        ),
        (
            {"cancellations": f"{CANCELLATIONS}{order_id(1)},{at(3)},\n"},
            "cancellations.csv",
            2,
            "$.reason: missing",
        ),
    ],
)
def test_a_refused_line_is_told_and_nothing_is_sent(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    sent: list[Plan],
    files: dict[str, str],
    file: str,
    line: int,
    what: str,
) -> None:
    refused = refusals(capfd, write(tmp_path, **files), "--refunds-as-computed")
    assert [each[:2] for each in refused] == [(file, line)] or file == "orders.csv"
    assert any(each[:2] == (file, line) and what in each[2] for each in refused), refused
    assert sent == []


def test_every_refused_line_is_in_the_report(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], sent: list[Plan]
) -> None:
    folder = write(tmp_path / "shop", payments=PAYMENTS + payment(8) + payment(9))
    report = tmp_path / "refused.ndjson"
    assert run(["import", str(folder), "--live-from", LIVE_FROM, "--report", str(report)]) == 1
    assert [json.loads(each)["line"] for each in report.read_text().splitlines()] == [2, 3]
    capfd.readouterr()
    assert run(["import", str(folder), "--live-from", LIVE_FROM, "--report", str(folder / "orders.csv")]) == 2
    assert "would overwrite what is read" in capfd.readouterr().err
    assert (folder / "orders.csv").read_text().startswith(COLUMNS)


def test_an_order_that_two_files_have_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write(tmp_path)
    (tmp_path / "orders-2025.csv").write_text(COLUMNS + "\n" + order(3))
    [(file, line, detail)] = refusals(capfd, tmp_path, "--refunds-as-computed")
    # Sent first is what the folder lists first.
    assert (file, line) == ("orders.csv", 6)
    assert "orders-2025.csv, line 2, too" in detail


def test_what_is_live_is_left_out_if_that_is_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], sent: list[Plan]
) -> None:
    folder = write(
        tmp_path,
        orders=COLUMNS + "\n" + order(1) + order(2).replace(at(1), at(21)),
        payments=PAYMENTS + payment(1) + payment(1, 20, payment_id=9) + payment(2, 22) + payment(8, 23),
        shipments="",
        cancellations="",
    )
    live = refusals(capfd, folder)
    assert [each[:2] for each in live] == [
        ("payments.csv", 3),
        ("orders.csv", 4),
        ("payments.csv", 4),
        ("payments.csv", 5),
    ]
    assert sent == []
    report = told(capfd, folder, "--live-from", LIVE_FROM, "--until-live-from")
    assert [each["left_out"] for each in report["files"]] == [1, 3]
    assert (report["orders"], report["money"]["EUR"]["captured"]) == (1, "30.00")
    sends = jobs(plan_of(folder, until=True), Settings())
    assert [[each["order_id"] for each in events] for _, events in sends] == [[order_id(1)], [order_id(1)]]


@pytest.mark.parametrize(
    ("live_from", "what"),
    [
        (LATER, "still to come"),
        ("yesterday", "not an RFC 3339 time"),
        ("2026-01-01T10:00:00", "not an RFC 3339"),
    ],
)
def test_a_cut_over_that_cannot_be_meant(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], live_from: str, what: str
) -> None:
    assert run(["import", str(write(tmp_path)), "--live-from", live_from]) == 2
    assert what in capfd.readouterr().err


def test_orders_without_a_cut_over_are_refused_each(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    own = [order(n, columns=f",{text}") for n, text in ((1, at(10)), (2, ""), (3, LATER))]
    orders = f"{COLUMNS},live_from\n" + "".join(own)
    folder = write(tmp_path, orders=orders, payments="", shipments="", cancellations="")
    report = told(capfd, folder, code=1)
    assert [(each["line"], each["detail"][:30]) for each in report["refusals"]] == [
        (4, "$.live_from: missing; --live-f"),
        (6, "$.live_from: it is still to co"),
    ]


def test_files_that_cannot_be_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "shop")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "export.csv").touch()
    (folder / "returns.csv").mkdir()
    utf16 = tmp_path / "utf16.csv"
    utf16.write_bytes((folder / "orders.csv").read_text().encode("utf-16"))
    for arguments, what in (
        ((folder,), "returns.csv: Is a directory"),
        ((tmp_path / "gone",), "gone: No such file or directory"),
        ((tmp_path / "empty",), "none of its files is named after what it holds"),
        (("--payments", folder / "payments.csv"), "no orders, and nothing can be taken over"),
        (("--orders", tmp_path / "gone.csv"), "gone.csv: No such file or directory"),
        (("--orders", utf16), "UTF-16; save it as UTF-8"),
        (("--orders", folder / "payments.csv"), "no column user_id"),
        (("--orders", folder / "orders.csv", "--orders", folder / "orders.csv"), "is named twice for orders"),
        (
            ("--orders", folder / "orders.csv", "--mapping", "goods=x.toml"),
            "'goods' is none of orders, payments",
        ),
        (("--orders", folder / "orders.csv", "--mapping", "x.toml"), "x.toml: No such file"),
    ):
        assert run(["import", *map(str, arguments), "--live-from", LIVE_FROM]) == 2, arguments
        error = capfd.readouterr().err
        assert what in error
        assert error.count("\n") == 1


def test_cancellations_become_two_kinds_of_events(tmp_path: Path) -> None:
    plan = plan_of(write(tmp_path))
    with ExitStack() as stack:
        plan.read(stack, stdin=io.BytesIO(), bounds=USUAL)
        direct = [(topic, ids.text(raw), json.loads(value)) for topic, raw, value in plan.store.direct()]
    assert [topic for topic, _, _ in direct] == ["order.cancel_requested", "stock.released", "stock.released"]
    assert {raw for _, raw, _ in direct} == {order_id(4)}
    assert [value.get("seller_id") for _, _, value in direct] == [None, ANNA, BORIS]
    ours = ids.uuid5_text(bytes.fromhex(order_id(4).replace("-", "")), f"reservation:{ANNA}")
    assert direct[1][2]["reservation_id"] != ours, "that one is for what we reserve"


def test_a_file_that_is_read_for_several_kinds_has_one_list_of_columns_that_nobody_reads() -> None:
    """A column that one of them reads isn't ignored."""
    read = [
        ("x.csv", "orders", ["Paid at", "Notes", "Tags"]),
        ("x.csv", "payments", ["Total", "Notes", "Tags"]),
    ]
    other = ("y.csv", "returns", ["Total"])
    files = [File(path, kind, 1, 0, 0, ignored) for path, kind, ignored in (*read, other)]
    assert _ignored(Report(files=files)) == {"x.csv": ["Notes", "Tags"], "y.csv": ["Total"]}
