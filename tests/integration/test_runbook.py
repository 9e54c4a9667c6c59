"""The runbook's commands run on real servers, as they stand there."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from typing import Final

from settings import Settings
from tests.unit.test_runbook import PAGES, commands

STAYS: Final = re.compile(r"--watch|--follow|^orders (worker|api|console)\b")
"""Goes on until somebody ends it."""
NAMES_ONE: Final = re.compile(r"\bID\b|0:17|[0-9a-f]{8}-")
"""Is about an order or a letter that isn't here: it says so."""


async def test_each_command_runs(fresh: Settings, run_command: Callable[..., tuple[int, str]]) -> None:
    """In the pages' order, on empty topics and tables."""
    seen = dict.fromkeys(each for page in PAGES for each in commands(page) if each.startswith("orders "))
    wrong: dict[str, tuple[int, str]] = {}
    for command in seen:
        if STAYS.search(command):
            continue
        code, error = run_command(*shlex.split(command)[1:])
        if NAMES_ONE.search(command):
            as_said = code in (0, 2) and error.count("\n") <= 1
        else:
            # No worker is running; whoever works on the project may have a local stack.
            as_said = code in {"orders status": (1,), "orders stack status": (0, 1, 2)}.get(command, (0,))
        if not as_said or "Traceback" in error:
            wrong[command] = code, error
    assert wrong == {}
