"""What every command that writes shares: it says why by --reason, and is noted in orders.operations."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cli.terminal import messages
from cli.text import one_line
from errors import OrdersError
from settings import Settings

if TYPE_CHECKING:
    from operations import journal


_HELP: Final = "Why this is done, for orders operations."

Reason = Annotated[str | None, typer.Option("--reason", "--why", help=_HELP, show_default=False)]
Why = Annotated[str | None, typer.Option("--why", help=_HELP, show_default=False)]
"""The same where --reason is something else: the reason code of dead letters."""

LINE: Final[ContextVar[tuple[str, ...]]] = ContextVar("line", default=())
"""The words of the command line that runs, without the program's name."""


@dataclass(slots=True)
class Noted:
    """How an operation goes. `failure`: to be set to an error that doesn't leave the block."""

    failure: BaseException | None = None


@contextmanager
def noted(settings: Settings, command: str, why: str | None, *, unless: bool = False) -> Iterator[Noted]:
    """Note in orders.operations that `command` (its words, as in `dlq redrive`) begins, and how it ended.

    Put it around what writes, behind what asks and checks. `unless`: nothing is written this time, so nothing
    is noted. Raises, before anything is done, what the brokers raise if the beginning can't be noted. If only
    the end can't, a line on standard error says so. Blocks.
    """
    result = Noted()
    if unless:
        yield result
        return
    from operations import journal  # what asks Kafka: orders --help needs none of it

    given = LINE.get()[len(command.split()) :]
    operation = asyncio.run(
        journal.begin(settings, command, by=journal.somebody(), arguments=_shown(given, why), why=why)
    )
    try:
        yield result
        if result.failure is not None:
            _end(settings, operation, "failed", journal.describe(result.failure))
            return
    except typer.Exit as ended:
        _end(settings, operation, "done", f"exit code {ended.exit_code}" if ended.exit_code else None)
        raise
    except (KeyboardInterrupt, typer.Abort):
        _end(settings, operation, "interrupted", None)
        raise
    except Exception as error:
        _end(settings, operation, "failed", journal.describe(error))
        raise
    _end(settings, operation, "done", None)


def _shown(words: tuple[str, ...], why: str | None) -> list[str]:
    """Arguments without --reason and its text, which have a place of their own."""
    if why is None:
        return list(words)
    shown: list[str] = []
    for word in words:
        if word == why and shown and shown[-1] in ("--reason", "--why"):
            shown.pop()
        elif word not in (f"--reason={why}", f"--why={why}"):
            shown.append(word)
    return shown


def _end(
    settings: Settings, operation: journal.Operation, outcome: journal.Outcome, detail: str | None
) -> None:
    from aiokafka.errors import KafkaError

    from operations import journal

    try:
        asyncio.run(journal.end(settings, operation, outcome, detail))
    except (KafkaError, OrdersError, OSError) as error:
        messages().print(
            f"orders: its end isn't noted in orders.operations ({one_line(error) or type(error).__name__});"
            " orders operations lists it without one",
            style="yellow",
        )
