"""Kafka, PostgreSQL and Valkey on this machine, from packages: no containers, no root,
nothing installed system-wide.

    with Stack.start(Path(".stack")) as stack:
        os.environ.update(stack.env)

The same servers as in production, on 127.0.0.1 and free ports; their data stays in the folder between runs.
"""

from __future__ import annotations

from stack.errors import StackError
from stack.lifecycle import ServerStatus, Stack

__all__ = ["ServerStatus", "Stack", "StackError"]
