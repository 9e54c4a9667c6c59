"""What an audit says: findings, and the report that counts all of them and keeps the first ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from audit.index import Index, Pending
from audit.reference import RecordId

Severity = Literal["broken", "report"]
CHECKS = {
    "accounting": "every input offset is applied, duplicate, passed on or dead-lettered",
    "letters": "dead letters hold the raw record, its coordinates and a reason",
    "rows": "the rows equal an independent fold of the log",
    "derived": "derived events: one id one content, the set the facts call for, each with its cause",
    "notices": "the last notice of an order, each suborder and each kind of attention tells what is so",
    "refunds": "0 <= refunds <= captured, each unit paid for once, nothing due is undecided",
    "versions": "versions only grow",
    "changelog": "the changelog's states equal the fold",
    "tables": "workers' local tables = changelog, where present",
    "cache": "Redis = the fold, where present",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong ("broken") or worth knowing ("report").

    `fact` names the record in the log that proves it, where there is one.
    """

    check: str
    severity: Severity
    order_id: str
    where: str
    expected: str
    actual: str
    fact: str = ""

    def document(self) -> dict[str, str]:
        """Return the finding as JSON, with the key of the release before (`found`) beside the new one
        (`actual`)."""
        return {**asdict(self), "found": self.actual}


@dataclass(slots=True)
class Report:
    """The result of one audit.

    `lag` counts the input records that weren't committed when the audit began; `settled` is true if there
    were none and none came in meanwhile. `inconclusive` counts, by check, the differences of orders with
    uncommitted records: whether something is broken shows once these are handled. `seen_from` names the input
    partitions whose first records are gone. `compared` names the stores that were compared. `trusted` says
    what was taken over from an earlier audit: `since` (when that began), `records`, `orders`.
    """

    group: str
    lag: int = 0
    settled: bool = True
    seconds: float = 0.0
    seen_from: dict[str, int] = field(default_factory=dict)
    missing_topics: list[str] = field(default_factory=list)
    compared: list[str] = field(default_factory=list)
    trusted: dict[str, Any] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    checked: Counter[str] = field(default_factory=Counter)
    anomalies: Counter[str] = field(default_factory=Counter)
    dead_letters: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    reported: Counter[str] = field(default_factory=Counter)
    inconclusive: Counter[str] = field(default_factory=Counter)
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

    def take_over(self, lane: Report, most: int) -> None:
        """Add what a lane's report says, as if it had been found here. The lane's keeps as many findings."""
        left = {"broken": most - self.broken.total(), "report": most - self.reported.total()}
        for finding in lane.findings:
            if left[finding.severity] > 0:
                left[finding.severity] -= 1
                self.findings.append(finding)
        for name in ("counts", "checked", "anomalies", "dead_letters", "broken", "reported"):
            getattr(self, name).update(getattr(lane, name))
        self.notices += lane.notices
        self.compared += [store for store in lane.compared if store not in self.compared]

    def document(self) -> dict[str, Any]:
        """Return the report as one JSON document, with the keys of the release before beside the new ones."""
        # asdict of the whole report would take a Counter's items for elements to count.
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        findings = [finding.document() for finding in self.findings]
        return {"clean": self.clean, **plain, "unjudged": plain["inconclusive"], "findings": findings}


class Findings:
    """Collects what the checks find.

    A difference that may pass (`at_rest`) waits in the index until it is known which orders are at rest.
    `truncated` means that the lane's first records are gone, so that nothing that rests on all facts of an
    order is proven.
    """

    def __init__(
        self, report: Report, index: Index, most: int, on_finding: Callable[[Finding], None] | None = None
    ) -> None:
        """`on_finding` is called with every broken finding, also with those that the report only counts."""
        self.report = report
        self.truncated = False
        self._index = index
        self._most = most
        self._on_finding = on_finding

    def broken(
        self,
        check: str,
        order_id: str,
        where: str,
        expected: object,
        actual: object,
        fact: RecordId | None = None,
        *,
        proven: bool = False,
    ) -> Finding:
        """`proven`: also when the log's beginning is gone. Returns what was found."""
        severity = self._severity(check, proven)
        finding = Finding(check, severity, order_id, where, plain(expected), plain(actual), str(fact or ""))
        self._add(finding)
        return finding

    def at_rest(
        self,
        check: str,
        order_id: str,
        where: str,
        expected: object,
        actual: object,
        fact: RecordId | None = None,
    ) -> None:
        """Broken, unless a record about the order isn't committed yet."""
        severity = self._severity(check, False)
        self._index.wait(
            Pending(order_id, check, severity, where, plain(expected), plain(actual), str(fact or ""))
        )

    def note(
        self,
        check: str,
        order_id: str,
        where: str,
        expected: object,
        actual: object,
        fact: RecordId | None = None,
    ) -> None:
        """Worth knowing, not broken."""
        self._add(Finding(check, "report", order_id, where, plain(expected), plain(actual), str(fact or "")))

    def repeat(self, finding: Finding) -> None:
        """What an earlier audit found, and what is so for ever."""
        self._add(finding)

    def judge(self) -> None:
        """What still waits in the index is true."""
        for order_id, check, severity, *rest in self._index.pending():
            self._add(Finding(check, "broken" if severity == "broken" else "report", order_id, *rest))

    def _severity(self, check: str, proven: bool) -> Severity:
        return (
            "report"
            if self.truncated and not proven and check not in ("accounting", "versions")
            else "broken"
        )

    def _add(self, finding: Finding) -> None:
        self.report.add(finding, self._most)
        if self._on_finding is not None and finding.severity == "broken":
            self._on_finding(finding)


def plain(value: object) -> str:
    """A value for a person, cut to what fits in a line or two."""
    text = value if isinstance(value, str) else str(value)
    return text if len(text) <= 200 else text[:200] + "..."
