"""What an audit says: findings, and the report that counts all of them and keeps the first ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from audit.index import Index, Pending
from audit.reference import Place

Severity = Literal["broken", "report"]
CHECKS = {
    "accounting": "every input offset is applied, duplicate, passed on or dead-lettered",
    "letters": "dead letters hold the raw record, its coordinates and a reason",
    "rows": "the rows equal an independent fold of the log",
    "derived": "derived events: one id one content, the set the facts call for, each with its cause",
    "notices": "the last notice of an order and of each suborder tells what it is",
    "refunds": "0 <= refunds <= captured, each unit paid for once, nothing due is undecided",
    "versions": "versions only grow",
    "changelog": "the changelog's states equal the fold",
    "tables": "workers' local tables = changelog, where present",
    "cache": "Redis = the fold, where present",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong (broken) or worth knowing (report). `fact` names the record in the log that says so, where there is one."""

    check: str
    severity: Severity
    order_id: str
    where: str
    expected: str
    found: str
    fact: str = ""


@dataclass(slots=True)
class Report:
    """The outcome of one audit.

    `lag` counts input records not yet committed when it began; `settled`: it was 0, and nothing came in meanwhile. `unjudged` counts, by
    check, differences of orders that records not committed yet are about: whether they are broken shows when those are handled.
    `seen_from` names input partitions whose start is gone. `compared` names the stores that were looked at.
    """

    group: str
    lag: int = 0
    settled: bool = True
    seconds: float = 0.0
    seen_from: dict[str, int] = field(default_factory=dict)
    missing_topics: list[str] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    anomalies: Counter[str] = field(default_factory=Counter)
    dead_letters: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)
    unjudged: Counter[str] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        """Nothing is broken."""
        return not self.broken

    def add(self, finding: Finding, most: int) -> None:
        """Count a finding, and keep it while fewer than `most` of its severity are kept."""
        counter = self.broken if finding.severity == "broken" else self.reported
        counter[finding.check] += 1
        if counter.total() <= most:
            self.findings.append(finding)

    def document(self) -> dict[str, Any]:
        """The report as one JSON document."""
        # Not asdict of the whole: it takes a Counter's items for elements to count.
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        return {"clean": self.clean, **plain, "findings": [asdict(finding) for finding in self.findings]}


class Findings:
    """Where checks tell what they find.

    What may only be on its way (`at_rest`) waits in the index until it is known which orders are at rest. `truncated`: the beginning of
    the lane's log is gone, so that what rests on all of an order's facts is no proof.
    """

    def __init__(self, report: Report, index: Index, most: int, hear: Callable[[Finding], None] | None = None) -> None:
        """`hear` is told every broken finding, also those that the report only counts."""
        self.report = report
        self.truncated = False
        self._index = index
        self._most = most
        self._hear = hear

    def broken(
        self, check: str, order_id: str, where: str, expected: object, found: object, fact: Place | None = None, *, proven: bool = False
    ) -> None:
        """`proven`: also when the log's beginning is gone."""
        self._add(Finding(check, self._severity(check, proven), order_id, where, plain(expected), plain(found), str(fact or "")))

    def at_rest(self, check: str, order_id: str, where: str, expected: object, found: object, fact: Place | None = None) -> None:
        """Broken, unless a record about the order isn't committed yet."""
        severity = self._severity(check, False)
        self._index.wait(Pending(order_id, check, severity, where, plain(expected), plain(found), str(fact or "")))

    def note(self, check: str, order_id: str, where: str, expected: object, found: object, fact: Place | None = None) -> None:
        """Worth knowing, not broken."""
        self._add(Finding(check, "report", order_id, where, plain(expected), plain(found), str(fact or "")))

    def judge(self) -> None:
        """What still waits in the index is true."""
        for order_id, check, severity, *rest in self._index.pending():
            self._add(Finding(check, "broken" if severity == "broken" else "report", order_id, *rest))

    def _severity(self, check: str, proven: bool) -> Severity:
        return "report" if self.truncated and not proven and check not in ("accounting", "versions") else "broken"

    def _add(self, finding: Finding) -> None:
        self.report.add(finding, self._most)
        if self._hear is not None and finding.severity == "broken":
            self._hear(finding)


def plain(value: object) -> str:
    """A value for a person, cut to what fits in a line or two."""
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= 200 else text[:200] + "..."
