"""`orders dlq`: the records that were refused, why, their bytes as they came; and
their way back after a fix.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from textwrap import indent
from typing import Annotated, Any, Final, get_args

import typer
from aiokafka.errors import KafkaError

from cli.noting import Why, noted
from cli.operations import moment
from cli.terminal import Rows, Wide, confirmed, interactive, output, progress
from cli.text import say, second
from contracts.errors import REASONS
from contracts.printable import printable
from contracts.topics import BULK, LANE
from errors import OrdersError
from operations.dead_letters import DeadLetter, Filter, Found, Redriven, State, find, newest_of, state_of
from operations.journal import somebody
from operations.redrive import RedriveResult, Selection, redrive
from operations.resolve import reopen, resolve
from settings import Settings, get_settings

app = typer.Typer(
    help=(
        "List dead letters, and send them back after a fix.\n\n"
        "Example: [bold]orders dlq redrive --reason version_unknown --dry-run[/bold]"
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

SHOWN_CHARACTERS: Final = 4000
STATES: Final[tuple[State, ...]] = get_args(State)
SHOWN_IDS: Final = 20
SHOWN_GROUPS: Final = 20
MOST_EDITED: Final = 256 << 10
"""Bytes of a value that is sent in place of a letter's: the note of the redrive holds both."""


@app.callback()
def _dlq() -> None:
    """Dead letters: what was refused and why, and its way back."""


Code = Annotated[
    str | None, typer.Option("--reason", "--code", help="Only this reason code.", show_default=False)
]
CodeOnly = Annotated[str | None, typer.Option("--code", help="Only this reason code.", show_default=False)]
Topic = Annotated[str | None, typer.Option(help="Only records of this topic.", show_default=False)]
_SPAN_HELP: Final = "RFC 3339, or a span before now such as 7d, 12h, 30m."
Since = Annotated[
    str | None, typer.Option(help=f"Only refused then or later: {_SPAN_HELP}", show_default=False)
]
Until = Annotated[
    str | None, typer.Option(help=f"Only refused before then: {_SPAN_HELP}", show_default=False)
]
Source = Annotated[str | None, typer.Option(help="Only from this ce_source.", show_default=False)]
Seller = Annotated[
    str | None, typer.Option(help="Only events that name this seller's id.", show_default=False)
]
Order = Annotated[str | None, typer.Option(help="Only of this order's id.", show_default=False)]
Holding = Annotated[
    str | None,
    typer.Option("--text", help="Only with this text in detail, key, value or a header.", show_default=False),
]


class ByName(StrEnum):
    """What letters are grouped by."""

    reason = "reason"
    source = "source"
    topic = "topic"
    hour = "hour"
    seller = "seller"


@app.command("list")
def list_command(
    code: Code = None,
    topic: Topic = None,
    state: Annotated[
        str | None,
        typer.Option(help="Only new, redriven, parked, final or resolved ones.", show_default=False),
    ] = None,
    since: Since = None,
    until: Until = None,
    source: Source = None,
    seller: Seller = None,
    order: Order = None,
    text: Holding = None,
    by: Annotated[ByName, typer.Option(help="What the summary counts by.")] = ByName.reason,
    limit: Annotated[
        int, typer.Option(min=1, help="How many are shown, the newest; the summary counts all.")
    ] = 50,
    wide: Wide = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """List the dead letters, the newest last, with what became of each, and a summary.

    new: not redriven since it was refused. redriven: its record went back to its topic. parked: redriven
    ORDERS_REDRIVE_LIMIT times and refused each time. final: no fix can help it. resolved: somebody said that
    it needs nothing more.

    Example: [bold]orders dlq list --reason total_mismatch --since 2h --by source --limit 10[/bold]
    """
    if state is not None and state not in STATES:
        raise OrdersError(f"no state {state!r}", f"one of {', '.join(STATES)}")
    wanted = _filter(code, topic, since, until, source, seller, order, text)._replace(state=state)
    settings = get_settings()
    newest, groups, states = asyncio.run(newest_of(settings, wanted, limit, by.value))
    if as_json:
        rows = [_summary(settings, letter, note) for letter, note in newest]
        counts = {
            "total": states.total(),
            f"by_{by.value}": dict(groups.most_common()),
            "by_state": {name: states[name] for name in STATES},
        }
        print(json.dumps({**counts, "dead_letters": rows}))
        return
    if not states:
        output().print("no dead letters")
        return
    _print_list(settings, newest, groups, states, by, wide=wide)


def _print_list(
    settings: Settings,
    newest: Sequence[Found],
    groups: Counter[str],
    states: Counter[str],
    by: ByName,
    *,
    wide: bool,
) -> None:
    """For a person."""
    console = output()
    table = Rows("at", "reason", "detail", "record", "time", "state", prose={"detail"}, wide=wide)
    for letter, note in newest:
        table.add(
            letter.id,
            letter.reason,
            letter.detail,
            str(letter.record),
            second(letter.time),
            state_of(settings, letter, note),
        )
    console.print(table)
    console.print()
    summary = Rows(
        "letters", by.value, "meaning", prose={"meaning"}, right={"letters"}, header=False, wide=wide
    )
    for name, count in groups.most_common(SHOWN_GROUPS):
        meaning = REASONS.get(name, "an unknown reason") if by is ByName.reason else ""
        summary.add(f"{count:,}", name or "unknown", meaning)
    console.print(summary)
    if len(groups) > SHOWN_GROUPS:
        more = len(groups) - SHOWN_GROUPS
        console.print(f"and {more:,} more by {by.value}, each with as few or fewer; all with --json")
    by_state = ", ".join(f"{states[name]:,} {name}" for name in STATES)
    console.print(
        f"{states.total():,} in all: {by_state}; one whole with: orders dlq show {newest[-1][0].id}",
        style="bold",
    )


def _filter(
    code: str | None,
    topic: str | None,
    since: str | None,
    until: str | None,
    source: str | None,
    seller: str | None,
    order: str | None,
    text: str | None,
) -> Filter:
    """Raises OrdersError for what there is not."""
    _check_reasons([] if code is None else [code])
    _check_topics([] if topic is None else [topic])
    return Filter(
        reason=code,
        topic=topic,
        since=None if since is None else moment(since, "--since"),
        until=None if until is None else moment(until, "--until"),
        source=source,
        seller=seller,
        order=order,
        text=text,
    )


@app.command("resolve")
def resolve_command(
    why: Annotated[
        str, typer.Option("--reason", "--why", help="Why they need nothing more.", show_default=False)
    ],
    ids: Annotated[
        list[str] | None,
        typer.Argument(metavar="PARTITION:OFFSET", help="Letters in orders.dlq.", show_default=False),
    ] = None,
    code: CodeOnly = None,
    topic: Topic = None,
    since: Since = None,
    until: Until = None,
    source: Source = None,
    seller: Seller = None,
    order: Order = None,
    text: Holding = None,
    undo: Annotated[bool, typer.Option("--undo", help="Take it back: they are new again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Note that dead letters need nothing more, and why: no redrive takes them any longer.

    Choose them by their ids, or by what orders dlq list --code, --topic, --since ... lists. Their bytes stay
    for as long as the topic keeps them.

    Example: [bold]orders dlq resolve --code total_mismatch --source /shop/12 --reason "sent anew"[/bold]
    """
    wanted = _filter(code, topic, since, until, source, seller, order, text)
    if not ids and (undo or wanted == Filter()):
        raise OrdersError(
            "nothing says which dead letters",
            "give their PARTITION:OFFSET, or filters such as --code and --topic",
        )
    chosen = _ids(",".join(ids)) if ids else None
    settings = get_settings()
    if undo:
        with noted(settings, "dlq resolve", why):
            count = asyncio.run(reopen(settings, chosen or frozenset()))
        print(json.dumps({"reopened": count}) if as_json else f"{count:,} are no longer resolved")
        return
    with noted(settings, "dlq resolve", why):
        result = asyncio.run(resolve(settings, chosen, wanted, by=somebody(), why=why))
    if as_json:
        print(json.dumps({"resolved": result.resolved, "stay": dict(result.states)}))
        return
    say(f"{result.resolved:,} resolved")
    stay = ", ".join(f"{count:,} {state}" for state, count in result.states.items())
    if stay:
        say(f"the others: {stay}")


@app.command("show")
def show_command(
    coordinates: Annotated[
        str,
        typer.Argument(
            help="PARTITION:OFFSET in orders.dlq, or TOPIC:PARTITION:OFFSET of the refused record."
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON document on stdout, bytes in base64.")
    ] = False,
) -> None:
    """Show one dead letter: its reason, its headers, and its bytes as they came.

    Example: [bold]orders dlq show 0:17[/bold]
    """
    parts = coordinates.rsplit(":", 2)
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdigit() for part in parts[-2:]):
        raise OrdersError(
            f"{coordinates!r} is neither PARTITION:OFFSET nor TOPIC:PARTITION:OFFSET",
            "orders dlq list has them",
        )
    partition, offset = int(parts[-2]), int(parts[-1])
    settings = get_settings()
    letter, note = asyncio.run(find(settings, parts[0] if len(parts) == 3 else None, partition, offset))
    if as_json:
        headers = [[name, _base64(value)] for name, value in letter.headers]
        print(
            json.dumps(
                {
                    **_summary(settings, letter, note),
                    "key": _base64(letter.key),
                    "value": _base64(letter.value),
                    "headers": headers,
                }
            )
        )
        return
    from rich.text import Text

    console = output()

    def line(name: str, text: str, style: str = "") -> None:
        console.print(Text.assemble((f"{name:<12}", "bold"), (printable(text), style)))

    line("reason", f"{letter.reason}: {REASONS.get(letter.reason, 'an unknown reason')}", "red")
    line("detail", letter.detail)
    line("record", str(letter.record))
    line("refused at", letter.time)
    line("dead letter", letter.id)
    line("redrive", _became(settings, letter, note))
    if note is not None:
        line("redriven as", f"{note.to} by {note.by}")
        if note.after is not None:
            line("edited", f"sent as: {_decoded(base64.b64decode(note.after))[:SHOWN_CHARACTERS]}")
    if letter.resolved is not None:
        line("resolved", f"{second(letter.resolved.at)} by {letter.resolved.by}: {letter.resolved.why}")
    line("key", "none" if letter.key is None else _decoded(letter.key))
    for name, value in letter.headers:
        line("header", f"{name}: {'none' if value is None else _decoded(value)}")
    if letter.value is None:
        line("value", "none (a tombstone)")
        return
    line("value", f"{len(letter.value):,} bytes")
    shown = pretty(letter.value)
    # Set in, so that no line of a value can be taken for one of ours.
    console.print(indent(printable(shown[:SHOWN_CHARACTERS], lines=True), "  "))
    if len(shown) > SHOWN_CHARACTERS:
        console.print(
            f"... {len(shown) - SHOWN_CHARACTERS:,} characters more; --json has all bytes", style="dim"
        )


@app.command("redrive")
def redrive_command(
    reason: Annotated[
        list[str] | None,
        typer.Option(
            "--reason", "--code", help="Only this reason code; may be repeated.", show_default=False
        ),
    ] = None,
    topic: Annotated[
        list[str] | None,
        typer.Option(help="Only records of this topic; may be repeated.", show_default=False),
    ] = None,
    ids: Annotated[
        str | None, typer.Option(help="Only these: PARTITION:OFFSET,... in orders.dlq.", show_default=False)
    ] = None,
    since: Since = None,
    until: Until = None,
    source: Source = None,
    seller: Seller = None,
    order: Order = None,
    text: Holding = None,
    everything: Annotated[bool, typer.Option("--all", help="Every dead letter that can go back.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say how many would be sent, and change nothing.")
    ] = False,
    most: Annotated[
        int | None, typer.Option("--max", min=1, help="Send at most so many letters.", show_default=False)
    ] = None,
    edit: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Send this file's bytes as the one letter's value.", show_default=False
        ),
    ] = None,
    why: Why = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """Send dead letters' records back to their topics, after a fix of the rules or of what was wrong
    upstream.

    Choose the letters with --reason, --topic, --ids, --max, or by what orders dlq list takes (--since,
    --source, --seller ...); --all sends every one. Without a choice it asks at a terminal, and exits 2
    elsewhere. It may be run again at any time, also after a kill -9: what went
    back isn't sent again. A letter that was redriven ORDERS_REDRIVE_LIMIT times and refused each time is
    parked. docs/dlq.md says for each reason when a redrive helps. Exits 1 if a letter named by --ids stays,
    or one is too large for its topic.

    Example: [bold]orders dlq redrive --reason version_unknown --dry-run[/bold]
    """
    wanted = _filter(None, None, since, until, source, seller, order, text)
    selection = _selection(reason or [], topic or [], ids, most, wanted)
    chosen = selection != Selection(most=most)
    if everything and chosen:
        raise OrdersError("--all contradicts what else chooses among them", "leave one away")
    edited = None if edit is None else _edited(edit, selection)
    if not (everything or chosen or most or dry_run):
        _ask(selection, may_ask=not as_json)
    settings = get_settings()
    with noted(settings, "dlq redrive", why, unless=dry_run):
        outcome = _redrive(settings, selection, dry_run=dry_run, quiet=as_json, edit=edited)
        if as_json:
            print(json.dumps(_redrive_document(outcome, dry_run)))
        else:
            _print_redrive(outcome, dry_run)
        if outcome.too_large or (ids and (outcome.states["parked"] or outcome.states["final"])):
            raise typer.Exit(1)


def _selection(
    reasons: list[str], topics: list[str], ids: str | None, most: int | None, wanted: Filter
) -> Selection:
    """Raises OrdersError for what there is not."""
    _check_reasons(reasons)
    _check_topics(topics)
    return Selection(frozenset(reasons) or None, frozenset(topics) or None, _ids(ids), most, filter=wanted)


def _redrive_document(outcome: RedriveResult, dry_run: bool) -> dict[str, Any]:
    """For --json."""
    return {
        "dry_run": dry_run,
        "sent": 0 if dry_run else outcome.sent,
        "would_send": outcome.sent if dry_run else 0,
        "by_reason": dict(outcome.by_reason.most_common()),
        **_staying(outcome),
        "too_large": outcome.too_large,
    }


def _print_redrive(outcome: RedriveResult, dry_run: bool) -> None:
    """For a person."""
    verb = "would go back" if dry_run else "sent back"
    reasons = _by_reason(outcome)
    say(f"{outcome.sent:,} {verb}{f' ({reasons})' if reasons else ''}")
    stay = ", ".join(f"{count:,} {state}" for state, count in _staying(outcome).items() if count)
    if stay:
        say(f"the others: {stay}; orders dlq list --state STATE has them")
    if outcome.too_large:
        unlisted = len(outcome.too_large) - SHOWN_IDS
        more = f" and {unlisted:,} more" if unlisted > 0 else ""
        say(
            "too large for their topics (max.message.bytes), so they stay:"
            f" {', '.join(outcome.too_large[:SHOWN_IDS])}{more}"
        )


def _staying(outcome: RedriveResult) -> dict[str, int]:
    """Letters in each of the states that a redrive passes over."""
    return {state: outcome.states[state] for state in STATES if state != "new"}


def _by_reason(outcome: RedriveResult) -> str:
    return ", ".join(f"{printable(code)} {count:,}" for code, count in outcome.by_reason.most_common())


def _ask(selection: Selection, *, may_ask: bool) -> None:
    """Returns if everything is to be sent. Raises OrdersError where nobody can be asked, typer.Exit on no."""
    if not (may_ask and interactive()):
        raise OrdersError(
            "nothing says which dead letters",
            "--all for every one, or --reason, --topic, --seller, ...; --dry-run tells how many would go",
        )
    would = _redrive(get_settings(), selection, dry_run=True, quiet=False)
    if not would.sent:
        return
    if not confirmed(
        f"{would.sent:,} dead letters would go back to their topics ({_by_reason(would)}). Send all of them?"
    ):
        print("nothing sent")
        raise typer.Exit(1)


def _edited(file: Path, selection: Selection) -> bytes:
    """What is in a file, for one letter. Raises OrdersError."""
    if selection.ids is None or len(selection.ids) != 1:
        raise OrdersError("--edit gives one letter another value", "name that one by --ids PARTITION:OFFSET")
    try:
        value = file.read_bytes()
    except OSError as error:
        raise OrdersError(f"--edit {file}: {error.strerror}", "check the path") from None
    if not 0 < len(value) <= MOST_EDITED:
        raise OrdersError(
            f"--edit {file}: {len(value):,} bytes", f"1 to {MOST_EDITED:,} fit; have the sender send it anew"
        )
    return value


def _redrive(
    settings: Settings, selection: Selection, *, dry_run: bool, quiet: bool, edit: bytes | None = None
) -> RedriveResult:
    """With progress on stderr where a person looks."""
    by = somebody()
    with progress("dead letters", quiet=quiet) as bar:

        async def run() -> RedriveResult:
            asyncio.get_running_loop().set_exception_handler(_told_once)
            return await redrive(settings, selection, by=by, dry_run=dry_run, edit=edit, progress=bar.show)

        return asyncio.run(run())


def _told_once(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """A transaction's failure reaches whoever waits for it; aiokafka has futures
    beside that nobody waits for.
    """
    if not isinstance(context.get("exception"), KafkaError):
        loop.default_exception_handler(context)


def _became(settings: Settings, letter: DeadLetter, note: Redriven | None) -> str:
    """Describe what became of a letter."""
    state: str = state_of(settings, letter, note)
    if note is not None:
        return f"redriven {note.at[:19]}"
    if state == "final":
        state = f"final: {letter.stays}"
    times = "once" if letter.redrives == 1 else f"{letter.redrives:,} times"
    return f"{state}, redriven {times} before" if letter.redrives else state


def _check_reasons(reasons: Sequence[str]) -> None:
    for code in reasons:
        if code not in REASONS:
            raise OrdersError(f"no reason code {code!r}", f"one of {', '.join(REASONS)}")


def _check_topics(names: Sequence[str]) -> None:
    for name in names:
        if name not in (*LANE, *BULK):
            raise OrdersError(
                f"no dead letter comes from a topic {name!r}", f"one of {', '.join((*LANE, *BULK))}"
            )


def _ids(text: str | None) -> frozenset[tuple[int, int]] | None:
    if text is None:
        return None
    ids: set[tuple[int, int]] = set()
    for each in text.split(","):
        partition, _, offset = each.strip().partition(":")
        if not all(part.isascii() and part.isdigit() and len(part) < 19 for part in (partition, offset)):
            raise OrdersError(f"--ids {each.strip()!r} is not PARTITION:OFFSET", "orders dlq list has them")
        ids.add((int(partition), int(offset)))
    return frozenset(ids)


def pretty(value: bytes) -> str:
    """A value as text for a person: indented when that loses nothing of its JSON, otherwise as it
    came, what isn't text escaped.
    """
    try:
        return json.dumps(lossless(value), indent=2, allow_nan=False)
    except ValueError:
        return printable(_decoded(value), lines=True)


def lossless(value: bytes) -> Any:
    """Parse JSON of which nothing is lost. Raises ValueError for any other value."""
    try:
        return json.loads(
            value,
            object_pairs_hook=_unique,
            parse_constant=_refuse,
            parse_float=_same_float,
            parse_int=_same_int,
        )
    except RecursionError:
        raise ValueError("nested too deep") from None


def _summary(settings: Settings, letter: DeadLetter, note: Redriven | None) -> dict[str, Any]:
    return {
        "partition": letter.partition,
        "offset": letter.offset,
        "reason": letter.reason,
        "detail": letter.detail,
        "time": letter.time,
        "origin": {
            "topic": letter.record.topic,
            "partition": letter.record.partition,
            "offset": letter.record.offset,
        },
        "state": state_of(settings, letter, note),
        "redrives_before": letter.redrives,
        "redriven": None if note is None else _redriven(note),
        "resolved": None
        if letter.resolved is None
        else {"at": letter.resolved.at, "by": letter.resolved.by, "why": letter.resolved.why},
    }


def _redriven(note: Redriven) -> dict[str, Any]:
    to = {"topic": note.to.topic, "partition": note.to.partition, "offset": note.to.offset}
    edited = {} if note.after is None else {"before": note.before, "after": note.after}
    return {"at": note.at, "by": note.by, "count": note.count, "to": to, **edited}


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _decoded(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("a name stands twice")
    return members


def _refuse(token: str) -> Any:
    raise ValueError(f"{token} is not JSON")


def _same_float(text: str) -> float:
    number = float(text)
    if repr(number) != text:
        raise ValueError(f"{text} would print otherwise")
    return number


def _same_int(text: str) -> int:
    number = int(text)
    if str(number) != text:
        raise ValueError(f"{text} would print otherwise")
    return number
