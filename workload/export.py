"""Events as the files that another system would hand over: one line each, for `orders import`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Final, NamedTuple

import msgspec

from contracts.cloudevents import SourceEvent
from contracts.errors import SourceError
from contracts.strict_json import read_foreign

FILES: Final = {
    "order.created": "orders.ndjson",
    "order.paid": "payments.ndjson",
    "shipment.updated": "shipments.ndjson",
    "order.returned": "returns.ndjson",
}
"""Event type -> the file that its lines are in."""


class Exported(NamedTuple):
    """Lines by file, and how many orders without items were left out with all that happened to them."""

    lines: Counter[str]
    without_items: int


def export(events: Iterable[SourceEvent], folder: Path) -> Exported:
    """Write events to files below a folder, which is made. Blocks.

    Raises SourceError: one of the files is there, or can't be written.
    """
    lines: Counter[str] = Counter()
    left_out: set[bytes | None] = set()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            files: dict[str, IO[bytes]] = {}
            for topic, key, value, headers, _ in events:
                name = FILES[topic]
                attributes = dict(headers)
                data = read_foreign(msgspec.json.decode, value) or {}
                if topic == "order.created" and not data.get("items"):
                    left_out.add(key)
                if key in left_out:
                    continue
                if name not in files:
                    files[name] = stack.enter_context((folder / name).open("xb"))
                line = {
                    "id": (attributes["ce_id"] or b"").decode(),
                    "time": (attributes["ce_time"] or b"").decode(),
                }
                files[name].write(msgspec.json.encode(line | data) + b"\n")
                lines[name] += 1
    except FileExistsError as error:
        raise SourceError(f"{error.filename}: there is such a file", "name a folder without it") from None
    except OSError as error:
        raise SourceError(f"{folder}: {error.strerror}", "check the path") from error
    return Exported(lines, len(left_out))
