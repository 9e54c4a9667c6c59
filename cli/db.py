"""`orders db`: the Postgres side for operators."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import asdict
from enum import StrEnum
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.noting import Reason, noted
from cli.terminal import Rows, Wide, confirmed, interactive, output
from cli.text import say
from contracts.printable import printable
from errors import OrdersError
from settings import get_settings

if TYPE_CHECKING:
    from operations.postgres import locks, partitions, references


app = typer.Typer(
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="rich",
)
regions_app = typer.Typer(
    help=(
        "Give single regions partitions of their own, in a database that is partitioned by region.\n\n"
        "Example: [bold]orders db regions add SP RJ[/bold]"
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
)
app.add_typer(regions_app, name="regions")


class LinkKind(StrEnum):
    """The kind of table that is referred to."""

    users = "users"
    products = "products"
    warehouses = "warehouses"
    sellers = "sellers"


Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
LockTimeout = Annotated[
    float, typer.Option("--timeout", min=0, help="Seconds to try to get locks that others hold.")
]


@app.callback()
def db_command(ctx: typer.Context, wide: Wide = False, as_json: Json = False) -> None:
    """Without a command, show the size of the Postgres tables, partition by partition.

    Rows, dead rows and bloat are estimates from Postgres's statistics; nothing is scanned.

    Example: [bold]orders db --json[/bold]
    """
    if ctx.invoked_subcommand is not None:
        if wide:
            raise OrdersError(
                "--wide is for orders db alone", f"leave it out of orders db {ctx.invoked_subcommand}"
            )
        if as_json:
            raise OrdersError(
                f"--json belongs after {ctx.invoked_subcommand}",
                f"see orders db {ctx.invoked_subcommand} --help",
            )
        return
    from operations.postgres import partitions, references

    overview = asyncio.run(partitions.overview(get_settings()))
    links = asyncio.run(references.listed(get_settings()))
    if as_json:
        tables = [
            {"name": name, **_sums(parts), "partitions": [_plain(part) for part in parts]}
            for name, parts in _by_table(overview)
        ]
        document = {
            "partition_by": overview.layout.partition_by,
            "revision": overview.revision,
            "database_bytes": overview.database_bytes,
            "tables": tables,
            "references": [asdict(each) for each in links],
        }
        print(json.dumps(document))
        return
    console = output()
    how = "hash of user_id" if overview.layout.partition_by == "user_id" else "region"
    console.print(
        f"partitioned by {how}; revision {overview.revision}; the database takes"
        f" {_size(overview.database_bytes)}"
    )
    console.print(_table(overview, wide))
    for each in links:
        console.print(_link(each))
    console.print(
        "rows, dead ones and bloat are estimates; a dash: not analyzed or not vacuumed yet", style="dim"
    )


@app.command("locks")
def locks_command(as_json: Json = False) -> None:
    """Show which sessions hold locks for which others wait, workers among them. It waits for none itself.

    What such a session should do is end: by its owner, or by pg_terminate_backend, which undoes what it
    hasn't committed. That loses nothing of a worker: its batch is written again.

    Example: [bold]orders db locks[/bold]
    """
    from operations.postgres import locks

    holders = asyncio.run(locks.holders(get_settings()))
    if as_json:
        print(json.dumps({"holders": [asdict(each) for each in holders]}))
        return
    for each in holders:
        say(_holder(each))
    if not holders:
        say("no session waits for another one's lock")


@app.command("link")
def link_command(
    users: Annotated[
        str | None,
        typer.Option(metavar="TABLE", help="What orders_order.user_id refers to.", show_default=False),
    ] = None,
    products: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE", help="What orders_order_item.product_id refers to.", show_default=False
        ),
    ] = None,
    warehouses: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE", help="What warehouse_id of items and shipments refers to.", show_default=False
        ),
    ] = None,
    sellers: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE", help="What seller_id of items and shipments refers to.", show_default=False
        ),
    ] = None,
    enforced: Annotated[
        bool, typer.Option("--enforced", help="Check all rows, and refuse new ones without a target.")
    ] = False,
    timeout: LockTimeout = 60.0,
    why: Reason = None,
    as_json: Json = False,
) -> None:
    """Add foreign keys to the column id of other services' tables in this database. Running it again is
    harmless.

    A key is only declared, which costs nothing and promises nothing; or, with --enforced, it is looked up for
    each new row (some 4 us, docs/database.md), and a lane waits for a row that is missing. Exits 1 if rows
    break a key that is to be enforced, and says which; then it isn't enforced.

    Example: [bold]orders db link --users accounts_user --products products_product[/bold]
    """
    from operations.postgres import references

    tables = {"users": users, "products": products, "warehouses": warehouses, "sellers": sellers}
    targets = {kind: tables[kind] or "" for kind in references.KINDS if tables[kind] is not None}
    if not targets:
        raise OrdersError(
            "nothing to link",
            "give at least one of --users, --products, --warehouses, --sellers; see orders db link --help",
        )
    settings = get_settings()
    try:
        with noted(settings, "db link", why):
            done = asyncio.run(references.link(settings, targets, enforced, timeout, _say))
    except references.BrokenReferences as error:
        if as_json:
            print(json.dumps({"references": [], "broken": [asdict(each) for each in error.broken]}))
        else:
            for each in error.broken:
                what = (
                    f"{each.rows:,} rows whose {each.column} isn't in {each.to}, such as"
                    f" {', '.join(each.missing)}"
                )
                print(printable(f"{each.partition}: {what}"))
            print("nothing is enforced that wasn't before")
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps({"references": [asdict(each) for each in done], "broken": []}))
        return
    for one in done:
        print(f"{_link(one)}{'' if one.changed else ', as before'}")


@app.command("unlink")
def unlink_command(
    kinds: Annotated[
        list[LinkKind] | None,
        typer.Argument(
            metavar="KIND",
            help="Which references to remove. Default: all.",
            show_default=False,
        ),
    ] = None,
    timeout: LockTimeout = 60.0,
    why: Reason = None,
    as_json: Json = False,
) -> None:
    """Remove foreign keys to other services' tables: the kinds that are named, else all.

    Without names it asks first at a terminal.

    Example: [bold]orders db unlink users[/bold]
    """
    from operations.postgres import references

    if not kinds and not as_json and interactive():
        links = asyncio.run(references.listed(get_settings()))
        if links and not confirmed(f"{len(links)} foreign keys: take all of them away?"):
            print("nothing unlinked")
            raise typer.Exit(1)
    settings = get_settings()
    with noted(settings, "db unlink", why):
        gone = asyncio.run(
            references.unlink(settings, [kind.value for kind in kinds or LinkKind], timeout, _say)
        )
    if as_json:
        print(json.dumps({"unlinked": [asdict(each) for each in gone]}))
        return
    for each in gone:
        print(printable(f"{each.table}.{each.column} no longer refers to {each.to}"))
    if not gone:
        print("there was none")


def _link(link: references.Link) -> str:
    how = (
        "not enforced"
        if not link.enforced
        else "enforced"
        if link.valid
        else "enforced for new rows only: link it once more"
    )
    return printable(f"{link.table}.{link.column} refers to {link.to}: {how}")


def _holder(holder: locks.Holder) -> str:
    seen = [holder.user, holder.application, holder.client, holder.state]
    lasts = "" if holder.seconds is None else f", its transaction lasts {holder.seconds:,.0f} s"
    since = "" if holder.longest is None else f" for {holder.longest:,.0f} s"
    others = "1 session waits" if holder.waiting == 1 else f"{holder.waiting} sessions wait"
    return (
        f"{others}{since} for session {holder.pid} ({', '.join(each for each in seen if each)}{lasts});"
        f" to end it: SELECT pg_terminate_backend({holder.pid})"
    )


def _by_table(overview: partitions.Overview) -> list[tuple[str, list[partitions.Partition]]]:
    return [(name, list(parts)) for name, parts in groupby(overview.partitions, key=lambda part: part.table)]


def _sums(parts: list[partitions.Partition]) -> dict[str, int]:
    return {
        "rows": sum(part.rows for part in parts),
        "dead_rows": sum(part.dead_rows for part in parts),
        "table_bytes": sum(part.table_bytes for part in parts),
        "index_bytes": sum(part.index_bytes for part in parts),
        "bloat_bytes": sum(part.bloat_bytes or 0 for part in parts),
    }


def _plain(part: partitions.Partition) -> dict[str, Any]:
    at = part.vacuumed_at
    return {**asdict(part), "vacuumed_at": None if at is None else at.isoformat()}


def _table(overview: partitions.Overview, wide: bool) -> Rows:
    numbers = ("rows", "table", "indexes", "dead", "bloat", "vacuumed")
    table = Rows("partition", "holds", *numbers, prose={"holds"}, right=numbers, wide=wide)
    for name, parts in _by_table(overview):
        sums = _sums(parts)
        cells = (
            name,
            "",
            f"{sums['rows']:,}",
            _size(sums["table_bytes"]),
            _size(sums["index_bytes"]),
            f"{sums['dead_rows']:,}",
        )
        table.add(*((cell, "bold") for cell in (*cells, _size(sums["bloat_bytes"]), "")))
        for part in parts:
            bloat = "-" if part.bloat_bytes is None else _size(part.bloat_bytes)
            at = "-" if part.vacuumed_at is None else f"{part.vacuumed_at:%m-%d %H:%M}"
            shown = f"  {part.name.removeprefix(f'{name}_')}", _named(_holds(part.bound))
            table.add(
                *shown,
                f"{part.rows:,}",
                _size(part.table_bytes),
                _size(part.index_bytes),
                f"{part.dead_rows:,}",
                bloat,
                at,
            )
    return table


def _holds(bound: str) -> str:
    """A partition's bound, as short as it goes."""
    if bound == "DEFAULT":
        return "others"
    by_hash = re.fullmatch(r"FOR VALUES WITH \(modulus (\d+), remainder (\d+)\)", bound)
    return (
        f"{by_hash[2]}/{by_hash[1]}" if by_hash else bound.removeprefix("FOR VALUES IN (").removesuffix(")")
    )


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TB"


@regions_app.callback()
def _regions() -> None:
    """Give single regions partitions of their own, in a database that is partitioned by region."""


@regions_app.command("add")
def add_command(
    names: Annotated[
        list[str],
        typer.Argument(metavar="REGION", help="Regions, written as in the orders.", show_default=False),
    ],
    timeout: LockTimeout = 60.0,
    why: Reason = None,
    as_json: Json = False,
) -> None:
    """Give regions partitions of their own, and move their rows there, while workers write.

    Workers wait while a region's rows move and then go on; readers wait for a moment at
    the end. Running it again is harmless.

    Example: [bold]orders db regions add SP RJ[/bold]
    """
    from operations.postgres import regions

    settings = get_settings()
    with noted(settings, "db regions add", why):
        added = asyncio.run(regions.add(settings, names, timeout, _say))
    if as_json:
        print(json.dumps({"regions": [asdict(each) for each in added]}))
        return
    for each in added:
        if not each.created:
            print(f"{_named(each.region)}: has its partitions already")
            continue
        rows = sum(each.moved.values())
        print(
            f"{_named(each.region)}: {rows:,} rows moved; writers waited {each.writers_waited:.2f} s, readers"
            f" of the default partition {each.readers_waited:.2f} s"
        )


@regions_app.command("list")
def list_command(as_json: Json = False) -> None:
    """List the regions with partitions of their own, and those in the default one with the number of their
    orders.

    It reads all of the default partition of orders_order.

    Example: [bold]orders db regions list[/bold]
    """
    from operations.postgres import regions

    listed = asyncio.run(regions.listed(get_settings()))
    own = sorted(name for name, count in listed.items() if count is None)
    default = {
        name: count
        for name, count in sorted(listed.items(), key=lambda each: (-(each[1] or 0), each[0]))
        if count is not None
    }
    if as_json:
        print(json.dumps({"own_partitions": own, "in_default": default}))
        return
    print(f"partitions of their own: {', '.join(map(_named, own)) or 'none'}")
    print(
        "in the default partition:"
        f" {', '.join(f'{_named(name)} ({count:,} orders)' for name, count in default.items()) or 'none'}"
    )


def _named(region: str) -> str:
    return printable(region) if region else repr(region)


def _say(line: str) -> None:
    typer.echo(printable(line), err=True)
