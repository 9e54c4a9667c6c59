"""The files of a takeover: which there are, what each holds, and by which mapping it is read."""

from __future__ import annotations

import re
from collections.abc import Mapping as Names
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple

from errors import OrdersError
from operations.submit.mapping import FlatMapping, Mapping, load_for

KINDS: Final = ("orders", "payments", "shipments", "returns", "cancellations")
"""What a file holds. Its events are sent in this order."""

_NAMED: Final = re.compile(rf"({'|'.join(KINDS)})([-_. ].*)?\.(csv|ndjson|parquet)(\.gz)?")


class Source(NamedTuple):
    """A file to read, and by which mapping: None, if its columns are ours."""

    kind: str
    path: str
    mapping: Mapping | FlatMapping | None = None


def found(folder: Path | None, named: Names[str, Sequence[str]], mappings: Sequence[str]) -> list[Source]:
    """The files of a folder, by their names (`orders.csv`, `payments-2025.ndjson.gz`), and those named beside
    it by kind, in the order in which they are sent. `mappings`: of all kinds, or KIND=NAME. Blocks.

    Raises OrdersError: there is no such folder, none of its files is known, there are no orders, a file is
    there twice, or a mapping that can't be read or that says nothing about a kind.
    """
    paths = {kind: list(named.get(kind, ())) for kind in KINDS}
    if folder is not None:
        for kind, path in _in_folder(folder):
            paths[kind].append(path)
    if not paths["orders"]:
        where = f"{folder}: no orders" if folder is not None else "no orders"
        raise OrdersError(
            f"{where}, and nothing can be taken over without them",
            "name a folder with orders.csv (orders.ndjson, orders-2025.csv.gz, ...), or --orders FILE",
        )
    _require_once(paths)
    by = _mappings(mappings)
    loaded: dict[str, Mapping | FlatMapping | None] = {}
    for kind in KINDS:
        name = by.get(kind, by.get(""))
        loaded[kind] = load_for(kind, name) if name is not None and paths[kind] else None
    return [Source(kind, path, loaded[kind]) for kind in KINDS for path in paths[kind]]


def _in_folder(folder: Path) -> list[tuple[str, str]]:
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise OrdersError(
            f"{folder}: {error.strerror}", "name the folder with the other system's files"
        ) from None
    matches = [(match[1], str(folder / match[0])) for name in names if (match := _NAMED.fullmatch(name))]
    if not matches:
        raise OrdersError(
            f"{folder}: none of its files is named after what it holds",
            f"name them {', '.join(f'{kind}.csv' for kind in KINDS)}, or name each: --orders FILE",
        )
    return matches


def _require_once(paths: Names[str, Sequence[str]]) -> None:
    """Raise OrdersError for a file that is named twice for one kind. For two kinds it may be: a shop's export
    can hold both."""
    for kind, files in paths.items():
        seen: dict[Path, str] = {}
        for path in files:
            real = Path(path).resolve()
            if real in seen:
                raise OrdersError(f"{path} is named twice for {kind}", "name each file once")
            seen[real] = path


def _mappings(given: Sequence[str]) -> dict[str, str]:
    by: dict[str, str] = {}
    for each in given:
        kind, equals, name = each.partition("=")
        if not equals:
            kind, name = "", each
        elif kind not in KINDS:
            raise OrdersError(
                f"--mapping {each}: {kind!r} is none of {', '.join(KINDS)}",
                "say KIND=FILE, or a FILE for all",
            )
        if kind in by:
            raise OrdersError(f"--mapping {each}: a second mapping for the same files", "give one of them")
        by[kind] = name
    return by
