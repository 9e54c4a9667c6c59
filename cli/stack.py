"""`orders stack`: the local servers, started, asked and stopped."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from cli.terminal import Rows, Wide, messages, output
from cli.text import say
from contracts.printable import printable
from errors import OrdersError

if TYPE_CHECKING:
    from stack import Stack

app = typer.Typer(
    name="stack",
    help=(
        "Run Kafka, PostgreSQL and Valkey on this machine, from packages: no containers, no root.\n\nExample:"
        " [bold]orders stack up[/bold]"
    ),
    no_args_is_help=True,
    rich_markup_mode="rich",
)

Dir = Annotated[
    Path,
    typer.Option(
        "--dir", readable=False, help="Folder of the stack: configuration, data, logs.", show_default=True
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout and nothing else there.")]

DEFAULT = Path(".stack")


@app.command(epilog="Example: orders stack up --brokers 3 --replica --dir /tmp/three")
def up(
    dir: Dir = DEFAULT,
    brokers: Annotated[
        int | None, typer.Option(help="Kafka brokers, 1 or 3. Default: 1, or as many as --dir has.")
    ] = None,
    replica: Annotated[
        bool, typer.Option("--replica", help="Start a streaming replica of PostgreSQL too.")
    ] = False,
    secure: Annotated[
        bool,
        typer.Option(
            "--secure",
            help="TLS, logins and least rights on every server. For a new stack; an old one stays as it is.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Start the servers in the background and print the ORDERS_* values that lead to them.
    Harmless when they run already.

    With --secure the values lead to files with the secrets, which only you can read, and to a user with all
    roles; `orders stack env --user orders-worker` gives those of one role.
    """
    from operations import secured
    from stack import Stack

    with _shown("starting the servers") as progress:
        stack = Stack.start(dir, brokers, replica, users=secured.USERS if secure else (), progress=progress)
        if stack.users:
            progress("giving rights")
            asyncio.run(secured.allow(secured.settings_of(stack.admin), stack.users))
    if as_json:
        print(json.dumps(stack.env, indent=2))
        return
    _print_env(_in_force(stack.env, os.environ), export=False)
    if sys.stderr.isatty():
        use = "orders uses it in this folder; for other programs" if dir == DEFAULT else "For this shell"
        evaluated = f'eval "$(orders stack env{_dir_option(dir)})"'
        messages().print(Text.assemble(("up", "green"), f"  {use}: ", (printable(evaluated), "bold")))


@app.command(epilog="Example: orders stack down --dir /tmp/three")
def down(
    dir: Dir = DEFAULT,
    purge: Annotated[bool, typer.Option("--purge", help="Delete the data too.")] = False,
) -> None:
    """Stop the servers. Their data stays for the next `up`, unless --purge says otherwise."""
    stack = _opened(dir)
    with _shown("stopping the servers"):
        if purge:
            stack.purge()
        else:
            stack.stop()
    messages().print(
        Text.assemble(
            ("down", "green"), "  ", "The data is gone." if purge else f"The data stays in {printable(dir)}."
        )
    )


@app.command(epilog="Example: orders stack status --json")
def status(dir: Dir = DEFAULT, wide: Wide = False, as_json: Json = False) -> None:
    """Show which servers run, on which ports, and where their logs are. Exits 1 when one doesn't run."""
    stack = _opened(dir)
    servers = stack.status
    running = stack.running
    if as_json:
        names = ("name", "kind", "running", "pid", "port")
        rows = [{name: getattr(each, name) for name in names} | {"log": str(each.log)} for each in servers]
        print(json.dumps({"dir": str(stack.folder), "running": running, "servers": rows}, indent=2))
    else:
        table = Rows("server", "", "port", "pid", "log", wide=wide)
        for each in servers:
            table.add(
                each.name,
                ("runs", "green") if each.running else ("down", "red"),
                each.port,
                each.pid or "-",
                each.log,
            )
        output().print(table)
    if not running:
        raise typer.Exit(1)


@app.command(epilog='Example: eval "$(orders stack env)"')
def env(
    dir: Dir = DEFAULT,
    user: Annotated[
        str | None,
        typer.Option(
            help="Whose login, in a secure stack: orders-ROLE, or admin.", show_default="all roles together"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the ORDERS_* values as `export NAME=value` lines, for a shell to evaluate."""
    stack = _opened(dir)
    if not stack.running:
        raise OrdersError(
            f"the stack in {dir} does not run", f"start it with: orders stack up{_dir_option(dir)}"
        )
    values = stack.env if user is None else stack.env_of(user)
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        _print_env(values, export=True)


def _print_env(values: Mapping[str, str], *, export: bool) -> None:
    for name, value in values.items():
        say(f"{'export ' if export else ''}{name}={shlex.quote(value)}")


def _in_force(values: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The values, with the folder for data that a shell has exported: commands use that one. Pure."""
    exported = environment.get("ORDERS_DATA")
    return {**values, "ORDERS_DATA": exported} if exported else dict(values)


def _opened(dir: Path) -> Stack:
    from stack import (
        Stack,
    )  # here: the workers' image has neither these servers nor what finds their processes

    return Stack.open(dir)


def _dir_option(dir: Path) -> str:
    return "" if dir == DEFAULT else f" --dir {shlex.quote(str(dir))}"


@contextmanager
def _shown(what: str) -> Iterator[Callable[[str], None]]:
    """A spinner with the last message where a person looks; silence where nobody does."""
    console = messages()
    if not console.watched:
        yield lambda _: None
        return
    with console.status(what) as spinner:
        yield spinner.update
