"""The report of a run: one JSON document, one HTML page that needs nothing else, a
few lines on the terminal.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos import chart
from tests.chaos.run import LIMIT, ChaosResult
from tests.chaos.sweep.sweep import Result, Swept

_STYLE = Path(__file__).with_name("report.css").read_text()


@dataclass(frozen=True, slots=True)
class Summary:
    """Of one kind of fault: how often, and the seconds that recovering took, the worst last."""

    kind: str
    times: int
    recoveries: tuple[float, ...]
    failed: int

    @property
    def worst(self) -> float | None:
        """None where it was never recovered from."""
        return self.recoveries[-1] if self.recoveries else None

    @property
    def median(self) -> float | None:
        """The middle one."""
        return self.recoveries[len(self.recoveries) // 2] if self.recoveries else None


def summaries(outcome: ChaosResult) -> list[Summary]:
    """By kind, in alphabetical order."""
    kinds: defaultdict[str, list[float | None]] = defaultdict(list)
    for each in outcome.injections:
        kinds[each.kind].append(each.recovery)
    return [
        Summary(
            kind,
            len(recoveries),
            tuple(sorted(each for each in recoveries if each is not None)),
            recoveries.count(None),
        )
        for kind, recoveries in sorted(kinds.items())
    ]


def redelivered(outcome: ChaosResult) -> int | None:
    """Derived events that a consumer got once more under the same id. None without an audit."""
    counts = outcome.audit.get("counts")
    return None if counts is None else int(counts.get("derived_repetitions", 0))


def write(outcome: ChaosResult, folder: Path) -> dict[str, Any]:
    """Write report.json and report.html; returns the document."""
    document = outcome.document() | {"redelivered": redelivered(outcome)}
    (folder / "report.json").write_text(json.dumps(document, indent=2))
    (folder / "report.html").write_text(page(outcome))
    return document


def page(outcome: ChaosResult) -> str:
    """The HTML page. Pure."""
    parts = [
        *_verdict(outcome),
        _listed("What is wrong", outcome.problems),
        *_charts(outcome),
        *_faults(outcome),
        *_ended(outcome),
        _listed("Notes", outcome.notes),
        *_audit(outcome),
        f'<p class="soft">Again: <code>make chaos SEED={outcome.seed}'
        + (f" MINUTES={outcome.minutes:g}" if outcome.minutes is not None else "")
        + "</code></p>",
    ]
    return _whole(f"Chaos, seed {outcome.seed}", parts)


def _verdict(outcome: ChaosResult) -> list[str]:
    verdict = (
        '<span class="good">nothing lost, nothing done twice</span>'
        if outcome.good
        else '<span class="bad-text">FAILED</span>'
    )
    began = time.strftime("%Y-%m-%d %H:%M", time.localtime(outcome.began))
    size = "{brokers} brokers, {workers} workers, {rate:,.0f} events/s".format_map(outcome.shape)
    worst = max((each.worst for each in summaries(outcome) if each.worst is not None), default=None)
    tiles = [
        (f"{outcome.seconds / 60:.1f} min", "from start to audit"),
        (f"{outcome.sent:,}", "events sent"),
        (f"{len(outcome.injections)}", f"faults of {len(summaries(outcome))} kinds"),
        (_seconds(worst), f"longest recovery (limit {LIMIT:.0f} s)"),
        (_count(redelivered(outcome)), "derived events redelivered"),
        (f"{len(outcome.exits)}", "workers ended"),
        ("clean" if outcome.audit.get("clean") else "not clean", "audit"),
    ]
    return [
        f"<h1>Chaos, seed {outcome.seed}</h1>",
        f'<p class="verdict">{verdict}</p>',
        f'<p class="soft">{began}; {size}</p>',
        '<div class="tiles">'
        + "".join(
            f'<div><b>{escape(value)}</b><span class="soft">{escape(what)}</span></div>'
            for value, what in tiles
        ),
        "</div>",
    ]


def _charts(outcome: ChaosResult) -> list[str]:
    bars = _bars(outcome)
    samples = outcome.samples
    rss = {
        name: [(each.at, each.rss[name] / 2**20 if name in each.rss else None) for each in samples]
        for name in _workers(outcome)
    }
    return [
        "<h2>Faults</h2>",
        (
            '<p class="soft">A bar: from injection to heal. The pale tail: until all that had been sent by'
            " then was handled.</p>"
        ),
        chart.timeline(bars, outcome.seconds) if bars else "",
        "<h2>Lag, rate, memory</h2>",
        chart.lines(
            {"lag": [(each.at, each.lag) for each in samples]}, outcome.seconds, "lag, records", shade=bars
        ),
        chart.lines({"rate": _rate(outcome)}, outcome.seconds, "handled a second", shade=bars),
        chart.lines(rss, outcome.seconds, "MiB resident", shade=bars),
    ]


def _faults(outcome: ChaosResult) -> list[str]:
    return [
        "<h2>Recovery by kind</h2>",
        _table(
            ("fault", "times", "median", "worst", "not within the limit"),
            [
                (
                    each.kind,
                    str(each.times),
                    _seconds(each.median),
                    _seconds(each.worst),
                    str(each.failed or ""),
                )
                for each in summaries(outcome)
            ],
            numbers=(1, 2, 3, 4),
        ),
        "<h2>Every fault</h2>",
        _table(
            ("at", "fault", "what it hit", "held", "recovery", "what a worker said"),
            [
                (
                    _clock(each.injected),
                    each.kind,
                    each.hit,
                    _seconds(each.healed - each.injected),
                    _seconds(each.recovery),
                    each.said[:220],
                )
                for each in outcome.injections
            ],
            numbers=(3, 4),
            code=(5,),
        ),
    ]


def _ended(outcome: ChaosResult) -> list[str]:
    return [
        "<h2>Workers that ended</h2>",
        _table(
            ("at", "worker", "code", "asked by", "lived", "SIGTERM to exit"),
            [
                (
                    _clock(each.at),
                    each.worker,
                    str(each.code),
                    each.asked or "nobody",
                    _seconds(each.lived),
                    _seconds(each.seconds),
                )
                for each in outcome.exits
            ],
            numbers=(2, 4, 5),
        ),
    ]


def _audit(outcome: ChaosResult) -> list[str]:
    return [
        "<h2>Audit</h2>",
        _table(
            ("what", "count"),
            [(name, f"{count:,}") for name, count in sorted(outcome.audit.get("counts", {}).items())],
            numbers=(1,),
        ),
        _listed(
            "Findings",
            [
                json.dumps(each)
                for each in outcome.audit.get("findings", [])
                if each.get("severity") == "broken"
            ][:50],
        ),
    ]


def write_sweep(swept: Swept, folder: Path) -> dict[str, Any]:
    """Write report.json and report.html of a kill sweep; returns the document."""
    document = swept.document()
    (folder / "report.json").write_text(json.dumps(document, indent=2))
    verdict = (
        '<span class="good">clean after every kill</span>'
        if swept.good
        else '<span class="bad-text">FAILED</span>'
    )
    rows = [
        (str(each.kill.point), each.kill.side, each.kill.scene, str(each.kill.n), _kill_outcome(each))
        for each in swept.results
    ]
    parts = [
        f"<h1>Kill sweep, seed {swept.seed}</h1>",
        f'<p class="verdict">{verdict}</p>',
        f"<p>{document['points']} await points; killed {document['killed']} times, before or after one.</p>",
        _listed(
            "What is wrong",
            [*swept.stuck, *(f"{each.kill}: {each.problem}" for each in swept.results if each.problem)],
        ),
        _listed("Never passed by any scene", swept.unreached),
        _listed("Not passed this time", document["missed"]),
        "<h2>Every kill</h2>",
        _table(("point", "", "scene", "pass", "then"), rows, numbers=(3,), code=(0,)),
    ]
    (folder / "report.html").write_text(_whole(f"Kill sweep, seed {swept.seed}", parts))
    return document


def show_sweep(swept: Swept, console: Console) -> None:
    """For the terminal."""
    document = swept.document()
    console.print(
        f"{document['points']} await points, {document['killed']} kills, {len(document['problems'])} with a"
        " problem afterwards"
    )
    for heading, lines in (
        ("never passed by any scene", swept.unreached),
        ("not passed this time", document["missed"]),
    ):
        if lines:
            console.print(f"{heading}:")
            for line in lines:
                console.print(f"  {line}", markup=False)
    for line in swept.stuck:
        console.print(line, style="red", markup=False)
    for each in document["problems"]:
        console.print(f"{each['kill']}: {each['problem']}", style="red", markup=False)
    if swept.good:
        console.print("[bold green]clean[/] after every kill")


def _kill_outcome(result: Result) -> str:
    return result.problem or ("clean" if result.died else "not passed this time; clean")


def _whole(title: str, parts: Iterable[str]) -> str:
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def show(outcome: ChaosResult, console: Console) -> None:
    """For the terminal: recovery by kind, and what is wrong."""
    table = Table(box=None, pad_edge=False)
    for name in ("fault", "times", "median", "worst"):
        table.add_column(name, justify="left" if name == "fault" else "right")
    for each in summaries(outcome):
        table.add_row(
            each.kind,
            str(each.times),
            _seconds(each.median),
            f"[red]over {LIMIT:.0f} s[/]" if each.failed else _seconds(each.worst),
        )
    console.print(table)
    unasked = sum(each.asked is None for each in outcome.exits)
    console.print(
        f"{outcome.sent:,} events, {len(outcome.injections)} faults, {len(outcome.exits)} workers ended"
        f" ({unasked} by themselves), {_count(redelivered(outcome))} derived events redelivered, lag 0 after"
        f" {_seconds(outcome.drained)}"
    )
    for note in outcome.notes:
        console.print(f"  {note}", style="dim", markup=False)
    for problem in outcome.problems:
        console.print(problem, style="red", markup=False)
    if outcome.good:
        console.print("[bold green]clean[/]: nothing lost, nothing done twice")


def _bars(outcome: ChaosResult) -> list[chart.Bar]:
    heals: defaultdict[int, float] = defaultdict(float)
    for each in outcome.injections:
        heals[each.round] = max(heals[each.round], each.healed)
    return [
        chart.Bar(
            each.kind,
            each.injected,
            each.healed or each.injected,
            heals[each.round] + each.recovery if each.recovery is not None else None,
            f"{each.kind}: {each.hit}, recovered after {_seconds(each.recovery)}",
            bad=each.recovery is None,
        )
        for each in outcome.injections
    ]


def _rate(outcome: ChaosResult) -> list[chart.Point]:
    """Records handled a second, over five samples."""
    known = [(each.at, each.handled) for each in outcome.samples]
    points: list[chart.Point] = []
    for (before, less), (at, more) in zip(known, known[5:], strict=False):
        points.append(
            (at, None if less is None or more is None else max(0.0, (more - less) / max(0.001, at - before)))
        )
    return points


def _workers(outcome: ChaosResult) -> list[str]:
    return sorted({name for each in outcome.samples for name in each.rss})


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[int] = (), code: Sequence[int] = ()
) -> str:
    def cell(tag: str, number: int, text: str) -> str:
        inside = f"<code>{escape(text)}</code>" if number in code and tag == "td" and text else escape(text)
        return f"<{tag}{' class=n' if number in numbers else ''}>{inside}</{tag}>"

    lines = ["<tr>" + "".join(cell("th", number, head) for number, head in enumerate(heads)) + "</tr>"]
    lines += [
        "<tr>" + "".join(cell("td", number, text) for number, text in enumerate(row)) + "</tr>"
        for row in rows
    ]
    return f"<table>{''.join(lines)}</table>"


def _listed(heading: str, lines: Sequence[str]) -> str:
    return (
        f"<h2>{heading}</h2><ul>{''.join(f'<li>{escape(line)}</li>' for line in lines)}</ul>" if lines else ""
    )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _clock(at: float) -> str:
    return f"{int(at) // 60}:{int(at) % 60:02d}"
