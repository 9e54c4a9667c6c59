"""How a worker and the API log: the standard library's loggers, written by structlog, one
line an event, to stderr.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import structlog

from cli.terminal import messages
from cli.text import printable
from settings import Settings


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
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            structlog.processors.format_exc_info,
            *render,
        ],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())
    for noisy in ("aiokafka", "kafka", "faust", "mode"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def _harmless(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """What is logged came in part from outside.
    Lines after the first are indented, so none can be taken for a line of the log.
    """
    return {
        name: printable(value, lines=True).replace("\n", "\n    ") if isinstance(value, str) else value
        for name, value in event.items()
    }
