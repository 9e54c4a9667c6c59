"""docs/how-to/send-events.md, taken apart: the programs, events and configurations that stand in
it are what the tests run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid5

PAGE: Final = Path(__file__).parents[2] / "docs" / "how-to" / "send-events.md"

_BLOCK: Final = re.compile(r"^```\w+ (\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
FILES: Final[dict[str, str]] = dict(_BLOCK.findall(PAGE.read_text(encoding="utf-8")))
"""File name -> text of every block that has a name."""

EVENTS: Final[list[dict[str, Any]]] = json.loads(FILES["events.json"])


def write(folder: Path) -> None:
    """Write every file of the page into the folder."""
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")


def order(name: str) -> list[dict[str, Any]]:
    """The page's events as those of another order: every id, and the tracking number, is one of its own.
    The same name, the same ids.
    """
    text = re.sub(
        r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        lambda match: str(uuid5(UUID(match[0]), name)),
        FILES["events.json"],
    )
    events: list[dict[str, Any]] = json.loads(text.replace("CV-20260302-1", f"CV-{name}"))
    return events
