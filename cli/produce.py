"""`orders generate` and `orders replay olist`: events into the input topics."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.noting import Reason, noted
from cli.terminal import Rows, output, progress
from contracts import times
from contracts.cloudevents import SourceEvent
from contracts.errors import Refused
from errors import OrdersError
from operations.servers import require
from settings import Settings, get_settings
from workload import generator, olist, producer
from workload.export import Exported
from workload.export import export as write_files

replay_app = typer.Typer(
    help=(
        "Send real orders, those of a public dataset, as events.\n\n"
        "Example: [bold]orders replay olist ./olist --rate 2000[/bold]"
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

Rate = Annotated[
    float | None,
    typer.Option(
        min=0.001, help="Events a second, evenly. Default: as fast as possible.", show_default=False
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]


@replay_app.callback()
def _replay() -> None:
    """Send real orders, those of a public dataset, as events."""


@replay_app.command("olist")
def replay_olist(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Folder with the files of the Brazilian E-Commerce Public Dataset."
        ),
    ],
    since: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only what happened from then on.", show_default=False)
    ] = None,
    until: Annotated[
        str | None, typer.Option(metavar="TIME", help="Only what happened before.", show_default=False)
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Send nothing, and write it there as files that orders import takes over.",
            show_default=False,
        ),
    ] = None,
    rate: Rate = None,
    why: Reason = None,
    as_json: Json = False,
) -> None:
    """Send the orders of Olist's public dataset, in the order of their times. Sent again they change nothing.

    Example: [bold]orders replay olist ./olist --rate 2000[/bold]

    Example: [bold]orders replay olist ./olist --until 2018-07-01T00:00:00Z --export ./old-shop[/bold]
    """
    events = olist.Events(folder, since=_moment(since, "--since"), until=_moment(until, "--until"))
    if export is not None:
        _report_export(write_files(events, export), export, as_json)
        return
    settings = get_settings()
    with noted(settings, "replay olist", why):
        sent = _send(settings, events, len(events), rate)
    _report(sent, as_json)


def _moment(text: str | None, option: str) -> int | None:
    """Return a time of the command line, microseconds. Raises OrdersError."""
    try:
        return None if text is None else times.parse(text, option)
    except Refused:
        raise OrdersError(
            f"{option}: {text!r} is not an RFC 3339 time with its offset",
            "give one such as 2018-07-01T00:00:00Z",
        ) from None


def _report_export(exported: Exported, folder: Path, as_json: bool) -> None:
    if as_json:
        document = {"folder": str(folder), "lines": exported.lines, "without_items": exported.without_items}
        print(json.dumps(document))
        return
    table = Rows("file", "lines", right={"lines"}, header=False)
    for name, count in sorted(exported.lines.items()):
        table.add(str(folder / name), f"{count:,}")
    console = output()
    console.print(table)
    if exported.without_items:
        console.print(f"left out: {exported.without_items:,} orders without items")


def generate_command(
    orders: Annotated[int, typer.Option(min=1, max=100_000_000, help="How many orders.")] = 1000,
    seed: Annotated[
        int | None,
        typer.Option(
            help="The same seed with the same --orders sends the same bytes; with another number, other"
            " content under the same ids. Without it they are new."
        ),
    ] = None,
    rate: Rate = None,
    duplicates: Annotated[
        float, typer.Option(min=0, max=1, help="Share of events that are sent twice.")
    ] = generator.Shares().duplicates,
    shuffle: Annotated[
        float, typer.Option(min=0, max=1, help="Share of events that are sent late.")
    ] = generator.Shares().shuffle,
    poison: Annotated[
        float,
        typer.Option(
            min=0, max=1, help="How many broken records are added for each event; all must be refused."
        ),
    ] = generator.Shares().poison,
    why: Reason = None,
    as_json: Json = False,
) -> None:
    """Send synthetic orders: several sellers, partial shipments, cancellations, returns,
    rejected stock, odd payments.

    Example: [bold]orders generate --orders 5000 --poison 0.01[/bold]
    """
    if seed is None:
        seed = secrets.randbelow(1_000_000_000)
    events = generator.events(orders, seed, generator.Shares(duplicates, shuffle, poison))
    settings = get_settings()
    with noted(settings, "generate", why):
        sent = _send(settings, events, None, rate)
    _report(sent, as_json, seed)


def _send(
    settings: Settings, events: Iterable[SourceEvent], count: int | None, rate: float | None
) -> producer.Sent:
    """With progress on stderr where a person looks."""

    async def run() -> producer.Sent:
        await require(settings)
        with progress("sent", count, rate=True) as bar:
            return await producer.send(settings, events, rate=rate, progress=bar.show)

    return asyncio.run(run())


def _report(sent: producer.Sent, as_json: bool, seed: int | None = None) -> None:
    if as_json:
        document: dict[str, Any] = {} if seed is None else {"seed": seed}
        document |= {
            "events": sent.records,
            "by_topic": dict(sorted(sent.by_topic.items())),
            "bytes": sent.bytes,
        }
        print(
            json.dumps(
                {
                    **document,
                    "seconds": round(sent.seconds, 3),
                    "events_per_second": round(sent.events_per_second, 1),
                }
            )
        )
        return
    table = Rows("topic", "events", right={"events"}, header=False)
    for topic in sorted(sent.by_topic, key=lambda name: -sent.by_topic[name]):
        table.add(topic, f"{sent.by_topic[topic]:,}")
    table.add(("sent", "bold"), (f"{sent.records:,}", "bold"))
    console = output()
    console.print(table)
    console.print(
        f"{sent.bytes / 1e6:,.1f} MB in {sent.seconds:.1f} s, {sent.events_per_second:,.0f} events/s"
        + ("" if seed is None else f" (seed {seed})")
    )
