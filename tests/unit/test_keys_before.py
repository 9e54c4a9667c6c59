"""JSON of rebuild, whatif, repair and audit: for one release the old keys say the same as the new ones."""

from __future__ import annotations

from collections import Counter

from audit.findings import Finding, Report
from cli.rebuild import document
from cli.whatif import KINDS, _document
from operations.differences import Differences
from operations.postgres.compare import COLUMNS, Difference
from operations.repair import RepairResult
from operations.whatif import Deadlines, EventDifference, Published, WhatIfResult

FINDING = Finding("rows", "broken", "o", "orders_order o region", "SP", "RJ")


def row(**values: str) -> tuple[str | None, ...]:
    return tuple(values.get(name) for name in COLUMNS["orders_order"])


def differences() -> Differences:
    result = Differences(compared=9, inconclusive=2, lag=5)
    result.add([Difference("orders_order", "a", "a", None, row(id="a"))], 10)
    result.add([Difference("orders_order", "b", "b", row(id="b"), None)], 10)
    result.add([Difference("orders_order", "c", "c", row(region="RJ"), row(region="SP"))], 10)
    return result


def test_differences_of_rows() -> None:
    answer = document(differences())
    assert (answer["unjudged"], answer["left"]) == (answer["inconclusive"], answer["lag"]) == (2, 5)
    table = answer["tables"]["orders_order"]
    assert (table["missing"], table["unexpected"], table["different"]) == (1, 1, 1)
    assert (table["extra"], table["changed"]) == (1, 1)
    (value,) = table["columns"]["region"]["values"]
    assert value == {"actual": "RJ", "expected": "SP", "live": "RJ", "anew": "SP", "rows": 1}
    assert [each["difference"] for each in answer["examples"]] == ["missing", "unexpected", "different"]
    assert [each["kind"] for each in answer["examples"]] == ["missing", "extra", "changed"]


def test_whatif() -> None:
    published = Published(inconclusive=3, incomplete={"order.paid": "order.paid/0 begins at 7"})
    published.add([EventDifference("t", kind, "id", "o", "pending", "shipped") for kind in KINDS], 10)
    deadlines = Deadlines(Counter(later=1), [("o", "later", 1, 2)])
    answer = _document(WhatIfResult(7, 1.0, Differences(), published, deadlines))
    assert answer["nothing"] is answer["same"] is False
    assert answer["published"]["differences"] == {
        "t": {"missing": 1, "unexpected": 1, "different": 1, "notice": 1}
    }
    assert answer["published"]["topics"] == {"t": {"would": 1, "was": 1, "other": 1, "told": 1}}
    assert answer["published"]["told"] == answer["published"]["notices"]
    assert answer["published"]["notices"]["t"] == [
        {"actual": "pending", "expected": "shipped", "live": "pending", "anew": "shipped", "count": 1}
    ]
    assert answer["published"]["unjudged"] == answer["published"]["inconclusive"] == 3
    assert answer["published"]["partly"] == answer["published"]["incomplete"] == published.incomplete
    assert [each["kind"] for each in answer["published"]["examples"]] == ["would", "was", "other", "told"]
    (example,) = answer["deadlines"]["examples"]
    assert (example["live"], example["anew"]) == (example["actual"], example["expected"]) == (1, 2)


def test_audit_and_repair() -> None:
    report = Report("g", inconclusive=Counter(rows=4))
    report.add(FINDING, 10)
    answer = report.document()
    assert answer["unjudged"] == answer["inconclusive"] == {"rows": 4}
    assert answer["findings"][0]["found"] == answer["findings"][0]["actual"] == "RJ"
    repaired = RepairResult(
        False, remaining=Counter(derived=1), findings=[FINDING], inconclusive=2
    ).document()
    assert repaired["left"] == repaired["remaining"] == {"derived": 1}
    assert repaired["unjudged"] == repaired["inconclusive"] == 2
    assert repaired["findings"][0]["found"] == "RJ"
