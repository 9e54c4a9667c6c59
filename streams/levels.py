"""Log levels that were set at run time, as the topic orders.control says (docs/decisions/0069)."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final, Literal, NamedTuple, get_args

import msgspec

from contracts.strict_json import read_foreign

LogLevel = Literal["debug", "info", "warning", "error"]
LEVELS: Final[tuple[LogLevel, ...]] = get_args(LogLevel)
ALL: Final = "*"
"""All processes: workers, APIs, consoles."""
_KEY: Final = "log-level:"


class LevelNote(msgspec.Struct, omit_defaults=True):
    """Value of a record of orders.control. Its key is log-level:WORKER; a record without a value ends it."""

    since: str
    """RFC 3339 in UTC."""
    by: str
    level: LogLevel
    why: str | None = None


class Level(NamedTuple):
    """A level that was set."""

    worker: str
    """`w1@host`, `w1` on any host, or ALL. An API is called api, a console console."""
    level: LogLevel
    since: str
    by: str
    why: str | None


_decode: Final = msgspec.json.Decoder(LevelNote).decode
encode: Final = msgspec.json.Encoder().encode


def key_of(worker: str) -> bytes:
    """Key of a level in orders.control. Pure."""
    return f"{_KEY}{worker}".encode()


class Levels:
    """What is set by the records that were applied so far. Pure."""

    def __init__(self) -> None:
        self._by_worker: dict[str, Level] = {}

    def apply(self, key: bytes | None, value: bytes | None) -> None:
        """Take in one record. What is no level is left out: anybody may write there."""
        text = (key or b"").decode("utf-8", "replace")
        worker = text.removeprefix(_KEY)
        if worker in ("", text):
            return
        note = None if value is None else read_foreign(_decode, value)
        if note is not None:
            self._by_worker[worker] = Level(worker, note.level, note.since, note.by, note.why)
        elif value is None:
            self._by_worker.pop(worker, None)

    @property
    def now(self) -> tuple[Level, ...]:
        """What is set, the oldest first."""
        return tuple(sorted(self._by_worker.values(), key=lambda each: each.since))


def level_of(levels: Collection[Level], own: str) -> Level | None:
    """The level for whoever is called so (w1@host): by that, else by the part before the @, else for all;
    None: none is set. Pure.
    """
    by_worker = {each.worker: each for each in levels}
    return by_worker.get(own) or by_worker.get(own.partition("@")[0]) or by_worker.get(ALL)
