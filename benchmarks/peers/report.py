"""What a run measured, for people: a table of 80 columns, and a bar chart."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, Final

WIDTH: Final = 80
SERVERS: Final = ("client", "postgres", "kafka", "redis")
HEAD: Final = (
    f"{'':22} {'events/s':>8}  {'CPU us an event':^23}  {'ms at {rate}/s':^13}  exact",
    f"{'':22} {'':>8}  {'client':>6}{'pg':>5}{'kafka':>6}{'redis':>6}  {'p50':>6}{'p99':>7}  rows",
)

# -- table ---------------------------------------------------------------------------------------------------


def table(document: Mapping[str, Any]) -> str:
    """The table, what became of each after kill -9, and what each leaves out, in 80 columns. Pure."""
    rate = document["conditions"]["rate"]
    measured = [entry for entry in document["peers"] if "failed" not in entry]
    lines = [HEAD[0].replace("{rate}", str(rate)).rstrip(), HEAD[1].rstrip()]
    lines += [_line(entry) for entry in document["peers"]]
    if measured:
        lines += ["", "kill -9 of all its processes in the middle of a drain, and a start at once:"]
        lines += [
            _said(entry["name"], f"back after {entry['killed']['back_after_seconds']:.1f} s; {faults(entry)}")
            for entry in measured
        ]
    lines += ["", "What each leaves out:"]
    lines += [_said(entry["name"], entry["leaves_out"]) for entry in document["peers"]]
    return "\n".join(lines) + "\n"


def faults(entry: Mapping[str, Any]) -> str:
    """What was wrong after the kill, in words. Pure."""
    killed = entry["killed"]
    rows, derived = killed["rows"], killed["derived"]
    wrong = [f"{rows[name]:,} rows {name}" for name in ("missing", "doubled", "wrong") if rows[name]]
    said = [", ".join(wrong) or f"all {rows['rows']:,} rows right"]
    if derived is not None:
        said.append(f"of {derived['events']:,} derived events {derived['lost']:,} lost")
        said.append(f"{derived['doubled']:,} published again under their id")
        if derived.get("audit_broken"):
            said.append(f"the audit finds {derived['audit_broken']:,} things broken")
    return ", ".join(said)


def _line(entry: Mapping[str, Any]) -> str:
    name = f"{entry['name']:22}"
    if "failed" in entry:
        return textwrap.fill(f"{name} not measured: {entry['failed']}", WIDTH, subsequent_indent=" " * 23)
    cpu = entry["cpu_us_per_event"]
    spent = f"{cpu['client']:6.0f}{cpu['postgres']:5.0f}{cpu['kafka']:6.0f}{cpu['redis']:6.0f}"
    times = f"{entry['p50_ms']:6.1f}{entry['p99_ms']:7.1f}"
    return (
        f"{name} {entry['events_per_second']:>8,.0f}  {spent}  {times}  {'yes' if entry['exact'] else 'no'}"
    )


def _said(name: str, text: str) -> str:
    return textwrap.fill(f"{name:22} {text}", WIDTH, subsequent_indent=" " * 23)


# -- chart ---------------------------------------------------------------------------------------------------

CHART_WIDTH: Final = 760
LEFT: Final = 190
BAR_WIDTH: Final = 440
ROW: Final = 76
TOP: Final = 52
LINE: Final = 14
CHARACTERS: Final = 92
"""Of a small line beside the names: some 6 pixels each."""

STYLE: Final = """
  .ground { fill: #ffffff } .text { fill: #1f2328 } .small { fill: #59636e; font-size: 11px }
  .ours { fill: #0969da } .peer { fill: #8c959f } .title { font-weight: 600; font-size: 14px }
  text { font-family: system-ui, sans-serif; font-size: 13px }
  @media (prefers-color-scheme: dark) {
    .ground { fill: #0d1117 } .text { fill: #e6edf3 } .small { fill: #9198a1 }
    .ours { fill: #4493f8 } .peer { fill: #6e7681 }
  }
"""
"""It brings its own ground, so that it is readable in light and in dark, whatever is behind it."""


def chart(document: Mapping[str, Any]) -> str:
    """Events/s as bars, as an SVG document: each with its CPU an event and what it leaves out. Pure."""
    entries: Sequence[Mapping[str, Any]] = document["peers"]
    most = max((entry.get("events_per_second", 0.0) for entry in entries), default=0.0) or 1.0
    height = TOP + ROW * len(entries) + 34
    conditions = document["conditions"]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {CHART_WIDTH} {height}" role="img"'
        f' aria-label="Events a second of each peer">',
        f"<style>{STYLE}</style>",
        f'<rect class="ground" width="{CHART_WIDTH}" height="{height}" rx="6"/>',
        '<text class="text title" x="16" y="28">Events a second, drained from Kafka into exact tables</text>',
    ]
    for place, entry in enumerate(entries):
        parts += _bar(entry, TOP + ROW * place, most)
    events = conditions["workload"]["events"]
    below = f"{events:,} events, {conditions['cores']} cores with all servers on them"
    parts.append(f'<text class="small" x="16" y="{height - 12}">{escape(below)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _bar(entry: Mapping[str, Any], y: int, most: float) -> list[str]:
    name = f'<text class="text" x="16" y="{y + 13}">{escape(entry["name"])}</text>'
    if "failed" in entry:
        return [name, f'<text class="small" x="{LEFT}" y="{y + 13}">not measured</text>']
    speed = entry["events_per_second"]
    width = round(BAR_WIDTH * speed / most, 1)
    kind = "ours" if entry["leaves_out"] == "nothing" else "peer"
    cpu = sum(entry["cpu_us_per_event"][server] for server in SERVERS)
    below = textwrap.wrap(f"{cpu:.0f} us of CPU an event; leaves out: {entry['leaves_out']}", CHARACTERS)
    return [
        name,
        f'<rect class="{kind}" x="{LEFT}" y="{y}" width="{width}" height="18" rx="3"/>',
        f'<text class="text" x="{LEFT + width + 8}" y="{y + 14}">{speed:,.0f}</text>',
        *(
            f'<text class="small" x="{LEFT}" y="{y + 31 + LINE * number}">{escape(line)}</text>'
            for number, line in enumerate(below)
        ),
    ]
