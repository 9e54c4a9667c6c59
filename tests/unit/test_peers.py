"""benchmarks.peers, as far as it needs no servers: the rows that are expected, how the peers merge theirs,
what is found wrong, the table and the chart.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from random import Random
from typing import Any
from xml.etree import ElementTree

import pytest
from msgspec import structs

from benchmarks.peers import __main__ as command
from benchmarks.peers import environments, expected, measure, report
from benchmarks.peers.catalogue import OURS, PEERS
from benchmarks.peers.clients import merge
from contracts import ids
from contracts.cloudevents import SourceEvent
from contracts.record_id import RecordId
from domain import rows
from domain.events import decode
from domain.fold import fold
from domain.order import Order
from workload.generator import workload

EVENTS = list(workload(300, seed=3, spread=40))
EXPECTED = expected.rows_of(EVENTS)

Values = dict[str, dict[str, Any]]


def shuffled(seed: int) -> list[SourceEvent]:
    events = EVENTS.copy()
    Random(seed).shuffle(events)
    return events


def value(column: str, each: Any) -> Any:
    """A column's value as expected.Row has it."""
    if each is not None and column in ("created_at", "updated_at", "processed_at", "estimated_delivery"):
        return expected.micros(each)
    if column in ("total_amount", "discount_amount", "price", "shipping_amount"):
        return f"{Decimal(each):.4f}"
    return each


def named(table: str) -> Values:
    """The expected rows of a table: id -> column -> value."""
    columns = expected.COLUMNS[table]
    return {id: dict(zip(columns, row, strict=True)) for id, row in EXPECTED[table].items()}


# -- the rows that are expected ------------------------------------------------------------------------------


def test_the_workload_has_what_the_fold_is_asked_for() -> None:
    statuses = {row["status"] for row in named("orders_order").values()}
    assert statuses == {"delivered", "returned"}
    assert {row["version"] for row in named("orders_order").values()} == {4, 5}
    assert (
        len(EXPECTED["orders_order_item"])
        > len(EXPECTED["orders_order"])
        > len(EXPECTED["orders_return"])
        > 0
    )


def test_the_pipelines_own_rules_come_to_the_same_rows() -> None:
    orders: dict[bytes, Order] = {}
    for event in shuffled(1):
        decoded = decode(event.topic, event.headers, event.value)
        fold(orders.setdefault(decoded.order_id, Order()), decoded, RecordId(event.topic, 0, 0))
    actual: dict[str, Values] = {table: {} for table in expected.COLUMNS}
    for raw_id, order in orders.items():
        id = ids.text(raw_id)
        of_tables: tuple[Iterable[Any], ...] = (
            [rows.order_row(id, order)],
            rows.item_rows(id, order),
            rows.shipment_rows(id, order),
            rows.return_rows(id, order),
        )
        for table, of_table in zip(expected.COLUMNS, of_tables, strict=True):
            for row in of_table:
                fields = structs.asdict(row)
                actual[table][fields["id"]] = {
                    column: value(column, fields[column]) for column in expected.COLUMNS[table]
                }
    assert actual == {table: named(table) for table in expected.COLUMNS}


@pytest.mark.parametrize(
    ("stages", "status"),
    [
        (["order.created"], "pending"),
        (["order.created", "order.paid"], "confirmed"),
        (["order.created", "shipment.updated"], "shipped"),
        (["order.paid", "shipment.updated"], None),
    ],
)
def test_status_on_the_way(stages: list[str], status: str | None) -> None:
    first = EVENTS[0].key
    by_topic = {event.topic: event for event in reversed(EVENTS) if event.key == first}
    row = expected.rows_of(by_topic[stage] for stage in stages)["orders_order"]
    assert [each[2] for each in row.values()] == ([] if status is None else [status])


def test_what_is_wrong_is_counted() -> None:
    wanted = {"a": (1, "x", "theirs"), "b": (2, "y", "theirs"), "c": (3, "z", "theirs")}
    right = [("a", (1, "x")), ("b", (2, "y")), ("c", (3, "z"))]
    assert expected.compare(wanted, right, 1) == {"missing": 0, "doubled": 0, "wrong": 0}
    assert expected.compare(wanted, right, 0)["wrong"] == 3
    bad = [("a", (1, "x")), ("a", (1, "x")), ("b", (2, "?")), ("d", (4, "w"))]
    assert expected.compare(wanted, bad, 1) == {"missing": 1, "doubled": 2, "wrong": 1}


# -- the peers -----------------------------------------------------------------------------------------------


def test_peers_merge_a_batch_to_the_rows_that_are_expected() -> None:
    """In any order. What the database does with two batches is the same, in SQL: the run itself proves it."""
    batch = merge.Batch()
    for event in shuffled(2):
        batch.add(event.topic, event.value or b"", dict(event.headers)["ce_time"].decode())
    for (table, columns), arrays in zip(merge.COLUMNS.items(), batch.columns(), strict=True):
        values = zip(*map(json.loads, arrays), strict=True)
        of_table = [dict(zip((column.name for column in columns), each, strict=True)) for each in values]
        wanted = named(table)
        assert [row["id"] for row in of_table] == sorted(wanted)
        for row in of_table:
            if "facts" in row:
                row["version"] = row["facts"].bit_count()
            for column in wanted[row["id"]].keys() & row.keys():
                assert value(column, row[column]) == wanted[row["id"]][column], (table, column)


def test_the_statement_has_a_parameter_for_each_column() -> None:
    count = sum(map(len, merge.COLUMNS.values()))
    assert re.findall(r"\$(\d+)::text::json", merge.statement("s")) == [f"{n}" for n in range(1, count + 1)]
    assert sum(map(len, merge.Batch().columns())) == count
    assert merge.statement("s", "%s").count("%s") == count


def test_each_peer_has_its_program_and_pinned_packages() -> None:
    assert PEERS[0].name == OURS
    assert len({peer.schema for peer in PEERS}) == len({peer.prefix for peer in PEERS}) == len(PEERS)
    clients = environments.ROOT / "benchmarks" / "peers" / "clients"
    for peer in PEERS[1:]:
        assert (clients / f"{peer.module}.py").is_file()
        assert environments.versions(peer.environment)
        text = (environments.REQUIREMENTS / f"{peer.environment}.txt").read_text()
        pins = re.split(r"^(?=[a-z])", text, flags=re.MULTILINE)[1:]
        assert all(re.match(r"[a-z0-9-]+==\S+ ", pin) and "--hash=sha256:" in pin for pin in pins)
        assert "://" not in text


# -- what people see -----------------------------------------------------------------------------------------


def entry(name: str, speed: float, **more: Any) -> dict[str, Any]:
    rows_ = {"rows": 1_234_567, "missing": 0, "doubled": 0, "wrong": 0}
    return {
        "name": name,
        "leaves_out": "state & <everything> else that is worth a sentence which has to be wrapped",
        "events_per_second": speed,
        "cpu_us_per_event": {"client": 101.4, "postgres": 17.0, "kafka": 9.5, "redis": 0.0},
        "p50_ms": 5.04,
        "p99_ms": 1015.0,
        "exact": True,
        "rows": rows_,
        "killed": {"back_after_seconds": 1.25, "rows": rows_, "derived": None},
        **more,
    }


def document(*entries: dict[str, Any]) -> dict[str, Any]:
    return {
        "peers": list(entries),
        "conditions": {"rate": 500, "cores": 2, "workload": {"events": 245_000}},
    }


def test_the_table_fits_a_terminal_and_tells_what_went_wrong() -> None:
    rows_ = {"rows": 9, "missing": 1, "doubled": 0, "wrong": 2}
    derived = {"events": 40, "doubled": 3, "lost": 0, "audit_broken": 0}
    killed = {"back_after_seconds": 2.0, "rows": rows_, "derived": derived}
    table = report.table(
        document(
            entry("orders-stream", 123_456.7),
            entry("aiokafka-asyncpg-event", 9.0, exact=False, killed=killed),
            {
                "name": "bytewax",
                "leaves_out": "much",
                "failed": "bytewax has no environment: " + "no wheel " * 20,
            },
        )
    )
    lines = table.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[2].split() == ["orders-stream", "123,457", "101", "17", "10", "0", "5.0", "1015.0", "yes"]
    assert lines[3].endswith("  no")
    words = " ".join(table.split())
    assert (
        "1 rows missing, 2 rows wrong, of 40 derived events 0 lost, 3 published again under their id" in words
    )
    assert "bytewax not measured: bytewax has no environment" in words


def test_the_chart_is_a_picture_for_light_and_dark() -> None:
    chart = report.chart(
        document(entry("a & b", 200.0), entry("slow", 50.0), {**entry("c", 0.0), "failed": "x"})
    )
    root = ElementTree.fromstring(chart)
    bars = [each for each in root if each.get("class") in ("ours", "peer")]
    assert [float(bar.get("width", 0)) for bar in bars] == [report.BAR_WIDTH, report.BAR_WIDTH / 4]
    said = [each.text for each in root if each.tag.endswith("text")]
    assert {"a & b", "200", "slow", "50", "not measured"} <= set(said)
    light, dark = chart.split("@media (prefers-color-scheme: dark)")
    for name in ("ground", "text", "small", "ours", "peer"):
        assert f".{name} {{ fill:" in light
        assert f".{name} {{ fill:" in dark


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only", "bytewax,nobody"], "there is no 'nobody'"),
        (["--orders", "10"], "at least 2000"),
        (["--out", "/nowhere/peers.json"], "there is no folder /nowhere"),
    ],
)
def test_options_that_make_no_sense(
    options: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        command.main(options)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_only_a_full_run_is_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def measured(plan: measure.Plan) -> dict[str, Any]:
        return document(*(entry(peer.name, 1000.0) for peer in plan.peers))

    monkeypatch.setattr(measure, "run", measured)
    monkeypatch.setattr(command, "RESULTS", tmp_path / "results")
    (tmp_path / "results").mkdir()
    command.main(["--orders", "5000", "--json"])
    command.main(["--only", "bytewax"])
    assert list((tmp_path / "results").iterdir()) == []
    command.main(["--only", "bytewax", "--out", f"{tmp_path}/mine.json"])
    assert (tmp_path / "mine.svg").read_text().startswith("<svg ")
    capsys.readouterr()
    command.main(["--json"])
    printed = json.loads(capsys.readouterr().out)
    assert [peer["name"] for peer in printed["peers"]] == [peer.name for peer in PEERS]
    [chart, kept] = sorted((tmp_path / "results").iterdir(), key=lambda path: path.suffix, reverse=True)
    assert json.loads(kept.read_text()) == printed
    assert chart.name.endswith("-peers.svg")
