"""Text that anybody may have written to a topic or a cache, read as JSON."""

from __future__ import annotations

import json
from typing import Any


def read_json(value: bytes | str | None) -> Any:
    """The JSON value. Raises ValueError for what is none, and for one that is nested
    too deeply to be read. Pure.
    """
    try:
        return json.loads(value or b"")
    except RecursionError:
        raise ValueError("nested too deeply") from None
