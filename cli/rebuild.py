"""`orders rebuild`: rows, states and cache made anew from the log beside the pipeline, compared, and switched to when asked."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.text import Text

from cli.terminal import Rows, Terminal, Wide, confirmed, interactive, output, progress
from cli.text import printable
from operations import rebuild
from operations.differences import Differences
from operations.postgres.compare import Difference
from operations.postgres.shadow import DEFAULT
from settings import get_settings

app = typer.Typer(
    help="Rows, states and cache anew from the log, beside the pipeline.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

Schema = Annotated[str, typer.Option(metavar="NAME", help="The shadow schema.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Examples = Annotated[int, typer.Option("--examples", min=0, max=10_000, help="Differences that are shown; all are counted.")]


@app.callback()
def _rebuild() -> None:
    """Rows, states and cache anew from the log, beside the pipeline."""


@app.command("start")
def start_command(schema: Schema = DEFAULT, as_json: Json = False) -> None:
    """Fold all of the log into a shadow schema, up to what the group has committed. Workers may run; nothing live is written.

    Again, it goes on from where it is, also after it was killed. It begins again, and says why, if the rules or the tables have changed.

    Example: [bold]orders rebuild start && orders rebuild diff[/bold]
    """
    with progress(quiet=as_json, rate=True) as bar:
        records, seconds = asyncio.run(rebuild.start(get_settings(), schema, bar.show, bar.step, bar.say))
    if as_json:
        print(json.dumps({"schema": schema, "records": records, "seconds": round(seconds, 3)}))
    else:
        rate = records / max(seconds, 0.001)
        print(f"{printable(schema)} is caught up: {records:,} records in {seconds:.1f} s ({rate:,.0f}/s)")


@app.command("diff")
def diff_command(schema: Schema = DEFAULT, examples: Examples = 10, as_json: Json = False) -> None:
    """The shadow's rows against the live ones, while workers run: what they move on meanwhile is no difference.

    Exits 1 if there are differences.

    Example: [bold]orders rebuild diff --json[/bold]
    """
    with progress(quiet=as_json, rate=True) as bar:
        found = asyncio.run(rebuild.diff(get_settings(), schema, examples, bar.show, bar.step))
    if as_json:
        print(json.dumps(document(found)))
    else:
        show(found, output())
    if found.orders:
        raise typer.Exit(1)


@app.command("switch")
def switch_command(
    schema: Schema = DEFAULT,
    cache: Annotated[bool, typer.Option("--cache/--no-cache", help="Renew Redis too. Without --no-cache it must be there.")] = True,
    timeout: Annotated[float, typer.Option("--timeout", min=0, help="Seconds to keep asking for locks that others hold.")] = 60.0,
    as_json: Json = False,
) -> None:
    """Put the shadow's rows, states and cache entries in the place of the live ones. Stop all workers first; it publishes nothing.

    What was live is kept in a schema orders_before_N until orders rebuild drop. Killed at any moment, run it again.

    Example: [bold]orders rebuild switch && orders audit[/bold]
    """
    with progress(quiet=as_json, rate=True) as bar:
        done = asyncio.run(rebuild.switch(get_settings(), schema, cache, timeout, bar.show, bar.step))
    if as_json:
        print(json.dumps(asdict(done)))
        return
    print(
        f"the rebuilt rows are live ({done.records:,} records caught up), {done.states:,} states written"
        + (f" ({done.gone:,} of them taken away)" if done.gone else "")
        + f", {done.entries:,} cache entries renewed"
    )
    print(f"what was live is in schema {done.before}; orders rebuild drop takes it away")


@app.command("status")
def status_command(wide: Wide = False, as_json: Json = False) -> None:
    """Which schemas of rebuilds there are, how far the one is that is being filled, and what was live before.

    Example: [bold]orders rebuild status[/bold]
    """
    rows = asyncio.run(rebuild.status(get_settings()))
    if as_json:
        print(json.dumps({"schemas": rows}))
        return
    if not rows:
        print("there is none: orders rebuild start begins one")
        return
    table = Rows("schema", "", "begun", "records to go", "rows", prose={"rows"}, right={"records to go"}, wide=wide)
    for row in rows:
        left = "" if row["left"] is None else f"{row['left']:,}"
        counted = "  ".join(f"{name.removeprefix('orders_')} {count:,}" for name, count in row["rows"].items())
        table.add(row["schema"], row["state"], row["started_at"][:19], left, counted)
    output().print(table)


@app.command("drop")
def drop_command(
    schemas: Annotated[list[str] | None, typer.Argument(metavar="[SCHEMA]...", help="These only.", show_default=False)] = None,
    as_json: Json = False,
) -> None:
    """Take schemas of rebuilds away: the shadow, and what was live before. All of them, unless named (a person at a
    terminal is asked). The live tables stay.

    Example: [bold]orders rebuild drop orders_before_1[/bold]
    """
    if not schemas and not as_json and interactive():
        there = [row["schema"] for row in asyncio.run(rebuild.status(get_settings()))]
        if there and not confirmed(f"{', '.join(map(printable, there))}: drop all of them?"):
            print("nothing dropped")
            raise typer.Exit(1)
    gone = asyncio.run(rebuild.drop_all(get_settings(), schemas or []))
    if as_json:
        print(json.dumps({"dropped": gone}))
    else:
        print("\n".join(f"dropped {name}" for name in gone) or "there is nothing to drop")


# -- what is shared with whatif ------------------------------------------------------------------------------------


def document(found: Differences) -> dict[str, Any]:
    """As one JSON document."""
    return {
        "same": not found.orders,
        "compared": found.compared,
        "orders": found.orders,
        "unjudged": found.unjudged,
        "left": found.left,
        "tables": {
            table: {
                "missing": changes.missing,
                "extra": changes.extra,
                "changed": changes.changed,
                "columns": {
                    column: {
                        "rows": count,
                        "values": [
                            {"live": live, "anew": anew, "rows": number} for (live, anew), number in changes.values[column].most_common()
                        ],
                    }
                    for column, count in changes.columns.most_common()
                },
            }
            for table, changes in found.tables.items()
            if changes.rows
        },
        "examples": [_example(each) for each in found.examples],
    }


def _example(each: Difference) -> dict[str, Any]:
    kind = "missing" if each.live is None else "extra" if each.anew is None else "changed"
    columns = {name: {"live": live, "anew": anew} for name, live, anew in each.columns()}
    return {"table": each.table, "id": each.id, "order_id": each.order_id, "kind": kind, "columns": columns}


SHOWN_VALUES = 5


def show(found: Differences, console: Terminal) -> None:
    """Rows that differ, for a person."""
    console.print(f"{found.compared:,} orders compared, {found.orders:,} differ")
    for table, changes in found.tables.items():
        if not changes.rows:
            continue
        counts = f": {changes.changed:,} rows change, {changes.missing:,} are missing, {changes.extra:,} too many"
        console.print(Text.assemble((table, "bold"), counts))
        for column, count in changes.columns.most_common():
            values = changes.values[column].most_common(SHOWN_VALUES)
            told = ", ".join(f"{live} -> {anew}: {number:,}" for (live, anew), number in values)
            more = ", ..." if len(changes.values[column]) > SHOWN_VALUES else ""
            console.print(printable(f"  {column} {count:,}   {told}{more}"))
    for each in found.examples:
        what = "missing" if each.live is None else "too many" if each.anew is None else ""
        what = what or ", ".join(f"{name} {live} -> {anew}" for name, live, anew in each.columns())
        console.print(printable(f"  order {each.order_id}  {each.table} {each.id}  {what}"))
    if found.rows > len(found.examples):
        console.print(f"and {found.rows - len(found.examples):,} more; --examples shows more")
    if found.unjudged:
        why = f"{found.left:,} records wait, and no worker takes them in" if found.left else "they went on moving"
        console.print(f"{found.unjudged:,} orders were not judged: {why}", style="yellow")
    if not found.orders:
        console.print("no difference", style="bold green")
