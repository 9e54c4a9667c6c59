"""`orders rebuild`: rebuild rows, states and cache from the log beside the pipeline, compare them, and switch
to them."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from cli.noting import Reason, noted
from cli.terminal import Rows, Terminal, Wide, confirmed, interactive, output, progress
from cli.text import say
from contracts.printable import printable
from operations.postgres import SHADOW
from settings import get_settings

if TYPE_CHECKING:
    from operations.differences import Differences
    from operations.notices import NoticesResult
    from operations.postgres.compare import Difference


app = typer.Typer(
    help=(
        "Rebuild rows, states and cache from the log, beside the pipeline.\n\n"
        "Run start, then diff; stop all workers, run switch, and drop in the end. docs/rebuild.md has the"
        " steps.\n\n"
        "Example: [bold]orders rebuild start && orders rebuild diff[/bold]"
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)

Schema = Annotated[str, typer.Option(metavar="NAME", help="Name of the shadow schema.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Examples = Annotated[
    int,
    typer.Option("--examples", min=0, max=10_000, help="How many differences are shown; all are counted."),
]


@app.callback()
def _rebuild() -> None:
    """Rebuild rows, states and cache from the log, beside the pipeline."""


@app.command("start")
def start_command(schema: Schema = SHADOW, why: Reason = None, as_json: Json = False) -> None:
    """Replay the log into a shadow schema, up to what the group has committed.

    Workers may run; nothing live is written.

    Run it again to catch up, or after it was killed: it goes on from where it was. It starts over, and says
    why, if the rules or the tables have changed.

    Example: [bold]orders rebuild start && orders rebuild diff[/bold]
    """
    from operations import rebuild

    settings = get_settings()
    with noted(settings, "rebuild start", why), progress(quiet=as_json, rate=True) as bar:
        records, seconds = asyncio.run(rebuild.start(settings, schema, bar.show, bar.step, bar.say))
    if as_json:
        print(json.dumps({"schema": schema, "records": records, "seconds": round(seconds, 3)}))
    else:
        rate = records / max(seconds, 0.001)
        print(f"{printable(schema)} is caught up: {records:,} records in {seconds:.1f} s ({rate:,.0f}/s)")


@app.command("diff")
def diff_command(schema: Schema = SHADOW, examples: Examples = 10, as_json: Json = False) -> None:
    """Compare the shadow's rows with the live ones.

    Workers may run; what they change meanwhile is no difference.

    Exits 1 if there are differences.

    Example: [bold]orders rebuild diff --json[/bold]
    """
    from operations import rebuild

    with progress(quiet=as_json, rate=True) as bar:
        differences = asyncio.run(rebuild.diff(get_settings(), schema, examples, bar.show, bar.step))
    if as_json:
        print(json.dumps(document(differences)))
    else:
        show(differences, output())
    if differences.orders:
        raise typer.Exit(1)


@app.command("switch")
def switch_command(
    schema: Schema = SHADOW,
    cache: Annotated[
        bool,
        typer.Option(
            "--cache/--no-cache", help="Renew Redis too; it must be there. --no-cache leaves it out."
        ),
    ] = True,
    timeout: Annotated[
        float, typer.Option("--timeout", min=0, help="Seconds to try to get locks that others hold.")
    ] = 60.0,
    why: Reason = None,
    as_json: Json = False,
) -> None:
    """Replace the live rows, states and cache entries with the shadow's.

    Stop all workers first. It publishes nothing.

    What was live stays in a schema orders_before_N until orders rebuild drop. If it is killed, run it again.

    Example: [bold]orders rebuild switch && orders audit[/bold]
    """
    from operations import rebuild

    settings = get_settings()
    with noted(settings, "rebuild switch", why), progress(quiet=as_json, rate=True) as bar:
        done = asyncio.run(rebuild.switch(settings, schema, cache, timeout, bar.show, bar.step))
    if as_json:
        print(json.dumps({**asdict(done), "gone": done.deleted}))
        return
    print(
        f"the rebuilt rows are live ({done.records:,} records caught up), {done.states:,} states written"
        + (f" ({done.deleted:,} of them deleted)" if done.deleted else "")
        + f", {done.entries:,} cache entries renewed"
    )
    say(f"what was live is in schema {done.before}; orders rebuild drop deletes it")


@app.command("status")
def status_command(wide: Wide = False, as_json: Json = False) -> None:
    """List the schemas of rebuilds: the shadow with its lag, and what was live before each switch.

    Example: [bold]orders rebuild status[/bold]
    """
    from operations import rebuild

    rows = asyncio.run(rebuild.status(get_settings()))
    if as_json:
        print(json.dumps({"schemas": [{**row, "left": row["lag"]} for row in rows]}))
        return
    if not rows:
        print("there is none: orders rebuild start begins one")
        return
    table = Rows(
        "schema", "", "begun", "records to go", "rows", prose={"rows"}, right={"records to go"}, wide=wide
    )
    for row in rows:
        lag = "" if row["lag"] is None else f"{row['lag']:,}"
        counted = "  ".join(
            f"{name.removeprefix('orders_')} {count:,}" for name, count in row["rows"].items()
        )
        table.add(row["schema"], row["state"], row["started_at"][:19], lag, counted)
    output().print(table)


@app.command("drop")
def drop_command(
    schemas: Annotated[
        list[str] | None,
        typer.Argument(metavar="SCHEMA", help="Schemas to delete. Default: all.", show_default=False),
    ] = None,
    why: Reason = None,
    as_json: Json = False,
) -> None:
    """Delete schemas of rebuilds: the shadow, and what was live before each switch. The live tables stay.

    Without names it deletes all of them; at a terminal it asks first.

    Example: [bold]orders rebuild drop orders_before_1[/bold]
    """
    from operations import rebuild

    if not schemas and not as_json and interactive():
        names = [row["schema"] for row in asyncio.run(rebuild.status(get_settings()))]
        if names and not confirmed(f"{', '.join(map(printable, names))}: drop all of them?"):
            print("nothing dropped")
            raise typer.Exit(1)
    settings = get_settings()
    with noted(settings, "rebuild drop", why):
        dropped = asyncio.run(rebuild.drop_all(settings, schemas or []))
    if as_json:
        print(json.dumps({"dropped": dropped}))
    else:
        for name in dropped:
            say(f"dropped {name}")
        if not dropped:
            say("there is nothing to drop")


@app.command("notices")
def notices_command(
    send: Annotated[
        bool,
        typer.Option("--send/--dry-run", help="--send publishes what is missing, --dry-run only lists it."),
    ] = False,
    examples: Examples = 10,
    why: Reason = None,
    as_json: Json = False,
) -> None:
    """List the last notices that readers of suborder.updated, order.status_changed and order.attention should
    have got and didn't, for instance after a wrong deploy; --send publishes them.

    The last notice about each order and suborder is compared with what its state amounts to. Run it once the
    audit finds states and rows right. Before --send stop all workers; what was sent isn't sent again.

    Exits 0 when nothing is missing any more, 1 when something is, 2 when it couldn't run.

    Example: [bold]orders rebuild notices --dry-run; orders rebuild notices --send[/bold]
    """
    from operations import notices

    settings = get_settings()
    with noted(settings, "rebuild notices", why, unless=not send), progress(quiet=as_json) as bar:
        work = notices.notices(settings, send=send, examples=examples, progress=bar.show, say=bar.step)
        result = asyncio.run(work)
    if as_json:
        print(json.dumps({"dry_run": not send, **result.document()}))
    else:
        show_notices(result, output())
    if result.unsound or result.missing.total() > result.sent:
        raise typer.Exit(1)


def show_notices(result: NoticesResult, console: Terminal) -> None:
    """Print what readers should have been told, for a person."""
    summary = f"of {result.orders:,} readers should have been told something"
    console.print(f"{result.compared:,} orders compared; {summary}")
    for topic, count in sorted(result.missing.items()):
        console.print(
            Text.assemble((topic, "bold"), f": {count:,} {'missing' if not result.sent else 'sent'}")
        )
    order_id = ""
    for each in result.examples:
        whose = f" {each.seller_id}" if each.seller_id else ""
        if each.order_id != order_id:
            order_id = each.order_id
            console.print(printable(f"order {order_id}"))
        same = each.expected.startswith(f"{each.actual},")
        change = each.expected if same else f"{each.actual} -> {each.expected}"
        console.print(printable(f"  {each.topic}{whose} {change}"))
    if result.missing.total() > len(result.examples):
        console.print(f"and {result.missing.total() - len(result.examples):,} more; --examples shows more")
    if result.unsound:
        why = "their states aren't what the log says: orders repair first"
        console.print(f"{result.unsound:,} orders left out, {why}", style="yellow")
        console.print(f"  {', '.join(result.unsound_ids)}")
    if result.inconclusive or result.lag:
        why = f"{result.lag:,} records wait, and no worker takes them in" if result.lag else "they changed"
        console.print(f"{result.inconclusive:,} orders couldn't be compared: {why}", style="yellow")
    if not result.orders:
        console.print("nothing is missing", style="bold green")


# -- what is shared with whatif ------------------------------------------------------------------------------


def document(differences: Differences) -> dict[str, Any]:
    """Return the JSON document, with the keys of the release before beside the new ones."""
    return {
        "same": not differences.orders,
        "compared": differences.compared,
        "orders": differences.orders,
        "inconclusive": differences.inconclusive,
        "unjudged": differences.inconclusive,
        "lag": differences.lag,
        "left": differences.lag,
        "tables": {
            table: {
                "missing": changes.missing,
                "unexpected": changes.unexpected,
                "extra": changes.unexpected,
                "different": changes.different,
                "changed": changes.different,
                "columns": {
                    column: {
                        "rows": count,
                        "values": [
                            {**sides(actual, expected), "rows": number}
                            for (actual, expected), number in changes.values[column].most_common()
                        ],
                    }
                    for column, count in changes.columns.most_common()
                },
            }
            for table, changes in differences.tables.items()
            if changes.rows
        },
        "examples": [_example(each) for each in differences.examples],
    }


def sides(actual: object, expected: object) -> dict[str, object]:
    """Return both sides of a difference, under the keys of the release before too."""
    return {"actual": actual, "expected": expected, "live": actual, "anew": expected}


def _example(each: Difference) -> dict[str, Any]:
    difference = "missing" if each.actual is None else "unexpected" if each.expected is None else "different"
    kind = {"unexpected": "extra", "different": "changed"}.get(difference, difference)  # the release before
    columns = {name: sides(actual, expected) for name, actual, expected in each.columns()}
    return {
        "table": each.table,
        "id": each.id,
        "order_id": each.order_id,
        "difference": difference,
        "kind": kind,
        "columns": columns,
    }


SHOWN_VALUES = 5


def show(differences: Differences, console: Terminal) -> None:
    """Print the rows that differ, for a person."""
    console.print(f"{differences.compared:,} orders compared, {differences.orders:,} differ")
    for table, changes in differences.tables.items():
        if not changes.rows:
            continue
        counts = (
            f": {changes.different:,} rows differ, {changes.missing:,} are missing, {changes.unexpected:,}"
            " unexpected"
        )
        console.print(Text.assemble((table, "bold"), counts))
        for column, count in changes.columns.most_common():
            values = changes.values[column].most_common(SHOWN_VALUES)
            pairs = ", ".join(f"{actual} -> {expected}: {number:,}" for (actual, expected), number in values)
            more = ", ..." if len(changes.values[column]) > SHOWN_VALUES else ""
            console.print(printable(f"  {column} {count:,}   {pairs}{more}"))
    for each in differences.examples:
        what = "missing" if each.actual is None else "unexpected" if each.expected is None else ""
        what = what or ", ".join(
            f"{name} {actual} -> {expected}" for name, actual, expected in each.columns()
        )
        console.print(printable(f"  order {each.order_id}  {each.table} {each.id}  {what}"))
    if differences.rows > len(differences.examples):
        console.print(f"and {differences.rows - len(differences.examples):,} more; --examples shows more")
    if differences.inconclusive:
        why = (
            f"{differences.lag:,} records wait, and no worker takes them in"
            if differences.lag
            else "they kept changing"
        )
        console.print(f"{differences.inconclusive:,} orders couldn't be compared: {why}", style="yellow")
    if not differences.orders:
        console.print("no difference", style="bold green")
