"""`orders db`: the Postgres side for operators."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Coroutine
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

import asyncpg
import typer

from cli.errors import UserError
from settings import get_settings
from sinks import ddl, regions
from sinks.migrate import SchemaMismatch

T = TypeVar("T")

app = typer.Typer(
    help="The Postgres tables: partitions, regions.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode="rich",
)
regions_app = typer.Typer(help="Partitions for single regions.", no_args_is_help=True, add_completion=False, rich_markup_mode="rich")
app.add_typer(regions_app, name="regions")

Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")]
Patience = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to keep asking for locks that others hold.")]


@regions_app.callback()
def _regions() -> None:
    """Partitions for single regions, in a database that is partitioned by region."""


@regions_app.command("add")
def add_command(
    names: Annotated[list[str], typer.Argument(metavar="REGION...", help="Regions as the orders have them.", show_default=False)],
    timeout: Patience = 60.0,
    as_json: Json = False,
) -> None:
    """Give regions partitions of their own, and move their rows there, while workers write.

    Workers wait while a region's rows move and then go on; readers wait for a moment at the end. Again is harmless.

    Example: [bold]orders db regions add SP RJ[/bold]
    """
    made = _run(regions.add(get_settings(), names, timeout, _say))
    if as_json:
        print(json.dumps({"regions": [asdict(each) for each in made]}))
        return
    for each in made:
        if not each.created:
            print(f"{_named(each.region)}: has its partitions already")
            continue
        rows = sum(each.moved.values())
        print(
            f"{_named(each.region)}: {rows:,} rows moved; writers waited {each.writers_waited:.2f} s, readers of the default partition"
            f" {each.readers_waited:.2f} s"
        )


@regions_app.command("list")
def list_command(as_json: Json = False) -> None:
    """Which regions have partitions of their own, and which lie in the default one, with their orders.

    Reads all of the default partition of orders_order.

    Example: [bold]orders db regions list[/bold]
    """
    found = _run(regions.listed(get_settings()))
    own = sorted(name for name, count in found.items() if count is None)
    default = {name: count for name, count in sorted(found.items(), key=lambda each: (-(each[1] or 0), each[0])) if count is not None}
    if as_json:
        print(json.dumps({"own_partitions": own, "in_default": default}))
        return
    print(f"partitions of their own: {', '.join(map(_named, own)) or 'none'}")
    print(f"in the default partition: {', '.join(f'{_named(name)} ({count:,} orders)' for name, count in default.items()) or 'none'}")


def _named(region: str) -> str:
    return region if region.isprintable() and region else repr(region)


def _say(line: str) -> None:
    typer.echo(line, err=True)


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run it; what a person can mend becomes a UserError."""
    try:
        return asyncio.run(work)
    except (SchemaMismatch, ddl.Busy) as error:
        raise UserError(str(error)) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise UserError(f"Postgres says: {error}; run it as the owner of the tables") from error
