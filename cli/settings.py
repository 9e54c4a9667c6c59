"""`orders settings`: every setting, what it is now, what it would be, and why."""

from __future__ import annotations

import json
import os
from typing import Annotated, Any

import typer

from contracts.printable import printable
from settings import Settings, get_settings


def settings_command(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array on stdout.")] = False,
) -> None:
    """List every setting: its environment variable, value, default and reason. Passwords in URLs aren't
    shown.

    Example: [bold]ORDERS_PARTITIONS=8 orders settings[/bold]
    """
    rows = table(get_settings())
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    from rich.padding import Padding
    from rich.text import Text

    from cli.terminal import output

    console = output()
    for row in rows:
        value, default = printable(_text(row["value"])), _text(row["default"])
        line = Text.assemble((row["name"], "bold"), " = ", (value, "bold green" if row["set"] else "green"))
        if value != default:
            line.append(f"   default {default}", "dim")
        console.print(line)
        console.print(Padding(Text(row["description"], "dim"), (0, 0, 0, 4), expand=False), soft_wrap=False)


def table(settings: Settings) -> list[dict[str, Any]]:
    """One entry a setting: name (the variable), value, default, set (whether the environment says so),
    description. Never blocks.
    """
    rows: list[dict[str, Any]] = []
    for field, info in Settings.model_fields.items():
        name = f"ORDERS_{field.upper()}"
        rows.append(
            {
                "name": name,
                "value": _plain(getattr(settings, field)),
                "default": _plain(info.default),
                "set": name in os.environ,
                "description": info.description,
            }
        )
    return rows


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, int | float) else str(value)


def _text(value: Any) -> str:
    return "-" if value is None else str(value)
