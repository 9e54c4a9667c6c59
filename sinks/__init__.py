"""Where the pipeline writes: PostgreSQL and Redis."""

from __future__ import annotations

import logging
import sys

import structlog

if not structlog.is_configured():  # a worker and the API say for themselves how they log (cli.logs)
    # By default structlog prints to stdout, where a command's JSON is and nothing else.
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO), logger_factory=structlog.PrintLoggerFactory(sys.stderr)
    )
