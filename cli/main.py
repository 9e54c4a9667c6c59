"""The `orders` command: registers the subcommands and turns expected failures into one line and exit code 2."""

from __future__ import annotations

import sys

import typer
from pydantic import ValidationError

from cli.errors import UserError

app = typer.Typer(
    name="orders",
    help="An order service as a stream. Start with: orders stack up",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _register() -> None:
    """Import the command modules here, not at the top: a broken import of one must not break --help of another's module."""


def main() -> None:
    """Entry point. Exits 0 on success, 1 when a check fails, 2 when the user has to mend something."""
    _register()
    try:
        app()
    except UserError as error:
        print(f"orders: {error}", file=sys.stderr)
        sys.exit(2)
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(str(part) for part in problem["loc"]).upper()
            print(f"orders: ORDERS_{name}: {problem['msg']}", file=sys.stderr)
        sys.exit(2)
