"""How a worker and the API log: the standard library's loggers, written by structlog, one
line an event, to stderr.
"""

from __future__ import annotations

import logging
import re
import sys
import time
from typing import Any, Final

import structlog

from cli.terminal import messages
from cli.text import one_line
from contracts.printable import printable
from errors import named
from settings import Settings
from streams import control

LIBRARIES: Final = ("aiokafka", "asyncpg", "kafka", "mode.timers", "opentelemetry", "redis")
"""Loggers of clients of servers."""
NOISY: Final = ("aiokafka", "alembic", "kafka", "faust", "mode")
"""Loggers of which lines count from a warning on."""
EVERY: Final = 60.0
"""Seconds."""
_MOST: Final = 1000
"""Messages that are remembered."""


def configure(settings: Settings, worker: str) -> None:
    """Send everything that is logged to stderr, in the format and from the level that the settings say.
    Every line names the worker.
    """
    render: list[structlog.typing.Processor] = (
        [structlog.processors.JSONRenderer()]
        if settings.log_format == "json"
        else [_harmless, structlog.dev.ConsoleRenderer(colors=messages().color_system is not None)]
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            lambda _, __, event: {**event, "worker": worker},
            _fields if settings.log_format == "json" else _no_fields,
        ],
        # What a line names (`%(lane)s`) is a field of its own.
        pass_foreign_args=True,
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            *render,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    logging.getLogger().handlers = [handler]
    of_libraries = OfLibraries()

    def set_level(level: str | None) -> bool:
        level = level or settings.log_level
        if level == "debug":
            handler.removeFilter(of_libraries)
        else:
            handler.addFilter(of_libraries)
        root = logging.getLogger()
        before = root.level
        root.setLevel(level.upper())
        for noisy in NOISY:
            logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))
        return root.level != before

    set_level(None)
    control.set_level = set_level


def _fields(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What a line names as fields. A lane is a text in all of them, since not all have a number."""
    values = event.pop("positional_args", None)
    for name, value in values.items() if isinstance(values, dict) else ():
        known = isinstance(value, bool | int | str | None) and name != "lane"
        event.setdefault(
            name, round(value, 3) if isinstance(value, float) else value if known else str(value)
        )
    return event


def _no_fields(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    event.pop("positional_args", None)
    return event


_AWAY: Final = re.compile(
    r"Connection(?:Error| refused| reset| at \S+ closed)|NodeNotReady"
    r"|Unable (?:connect to|to update metadata)|coordinator dead|Coordinator Request failed"
)
_REFUSED: Final = re.compile(r"sasl|ssl|certificate|auth", re.IGNORECASE)


def _is_away(text: str) -> bool:
    return _AWAY.search(text) is not None and _REFUSED.search(text) is None


class OfLibraries(logging.Filter):
    """Lets a library say the same once in EVERY seconds: while a server is away, its client tells each
    attempt of each of its connections, and the lines that matter would drown. No tracebacks: it is no defect.

    The same is what differs in numbers and arguments only, and all that aiokafka says of a broker that is
    away: its parts all tell of it in words of their own. The next line that is let through says how many
    weren't.
    """

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[tuple[str, str], tuple[float, int]] = {}
        """Logger and message -> when it was let through last, and how many weren't since."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not record.name.startswith(LIBRARIES) or record.levelno < logging.WARNING:
            return True
        now = time.monotonic()
        key = record.name, re.sub(r"[0-9]+", "0", str(record.msg))
        if record.name.startswith("aiokafka") and _is_away(record.getMessage()):
            key = "aiokafka", "away"
        when, left_out = self._said.get(key, (now - EVERY, 0))
        if now - when < EVERY:
            self._said[key] = when, left_out + 1
            return False
        if len(self._said) >= _MOST:
            self._said.clear()
        self._said[key] = now, 0
        more = f" ({left_out:,} more such lines in {now - when:.0f} s)" if left_out else ""
        if record.exc_info is not None and record.exc_info[1] is not None:
            more = f": {one_line(named(record.exc_info[1]))}{more}"
        record.msg, record.args = f"{record.getMessage()}{more}", None
        record.exc_info = record.exc_text = None
        return True


def _harmless(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What is logged came in part from outside.
    Lines after the first are indented, so none can be taken for a line of the log.
    """
    return {
        name: printable(value, lines=True).replace("\n", "\n    ") if isinstance(value, str) else value
        for name, value in event.items()
    }
