"""A connection to a broker that says so when it is closed.

Under uvloop, a write to a connection that has just been closed raises RuntimeError, where asyncio's own loop
raises nothing. aiokafka expects OSError: the task that keeps its metadata ends with anything else, without a
word, and the client never again learns who leads a partition.
"""

from __future__ import annotations

from typing import Any

from aiokafka import conn
from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaConnectionError


class Connection(conn.AIOKafkaConnection):  # type: ignore[misc]
    """aiokafka's, of which a write to a closed transport is a broken connection."""

    def send(self, request: Any, expect_response: bool = True) -> Any:
        """Write a request; returns what its response is awaited by.
        Raises KafkaConnectionError. Never blocks.
        """
        try:
            return super().send(request, expect_response)
        except RuntimeError as error:
            raise self._broken(error) from error

    def _send_sasl_token(self, payload: bytes, expect_response: bool = True) -> Any:
        try:
            return super()._send_sasl_token(payload, expect_response)
        except RuntimeError as error:
            raise self._broken(error) from error

    def _broken(self, error: RuntimeError) -> Exception:
        if self._writer is not None and not self._writer.is_closing():
            return error
        self.close(reason=CloseReason.CONNECTION_BROKEN)
        broken: Exception = KafkaConnectionError(f"Connection at {self._host}:{self._port} broken: {error}")
        return broken
