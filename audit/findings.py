"""What an audit says: findings, and the report that counts all of them and keeps the first ones."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

Severity = Literal["broken", "report"]
CHECKS = {
    "accounting": "every input offset is applied, duplicate or dead-lettered",
    "letters": "dead letters hold the raw record, its coordinates and a reason",
    "rows": "the rows equal an independent fold of the log",
    "derived": "derived events: one id one content, and the set the facts call for",
    "refunds": "0 <= refunds <= captured, and nothing due is undecided",
    "versions": "versions only grow",
    "changelog": "changelog = Postgres",
    "cache": "Redis = Postgres, where present",
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
    """The outcome of one audit. `lag` counts input records not yet committed; `seen_from` names input partitions whose start is gone."""

    group: str
    lag: int = 0
    settled: bool = True
    seen_from: dict[str, int] = field(default_factory=dict)
    missing_topics: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    anomalies: Counter[str] = field(default_factory=Counter)
    dead_letters: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)
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
