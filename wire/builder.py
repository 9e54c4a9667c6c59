"""Writing headers whose names aren't UTF-8: what was read with such a name can be passed on as it came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from aiokafka.producer import message_accumulator
from aiokafka.record.default_records import DefaultRecordBatchBuilder, _DefaultRecordBatchBuilderPy

from wire.names import name_bytes

Headers = Sequence[tuple[str, bytes | None]]


class _Name(str):
    """A name whose bytes are those that it was read from."""

    __slots__ = ()

    def encode(self, encoding: str = "utf-8", errors: str = "surrogateescape") -> bytes:
        return name_bytes(str(self))


class SizeEstimate:
    """The size of a record at most, which the producer asks before it adds one."""

    @staticmethod
    def estimate_size_in_bytes(key: bytes | None, value: bytes | None, headers: Headers) -> int:
        """Bytes of a record in a batch of its own. Pure."""
        try:
            size: int = DefaultRecordBatchBuilder.estimate_size_in_bytes(key, value, headers)
        except UnicodeEncodeError:
            size = _DefaultRecordBatchBuilderPy.estimate_size_in_bytes(key, value, _named(headers))
        return size


class BatchBuilder(message_accumulator.BatchBuilder):  # type: ignore[misc]
    """aiokafka's, which goes over to its builder in Python for a batch that holds such a name: the
    one in C encodes strictly.
    """

    def __init__(
        self, batch_size: int, compression_type: int, *, is_transactional: bool = False, **serializers: Any
    ) -> None:
        self._builder: Any
        super().__init__(batch_size, compression_type, is_transactional=is_transactional, **serializers)
        self._slow = (compression_type, is_transactional, batch_size)

    def append(self, *, timestamp: int | None, key: Any, value: Any, headers: Headers = ()) -> Any:
        """Add a record. None: the batch is full, or can't hold this one beside what
        it has; it stays as it is.
        """
        if type(headers) is not list:
            headers = list(headers)
        try:
            return super().append(timestamp=timestamp, key=key, value=value, headers=headers)
        except UnicodeEncodeError:
            if self.record_count() and isinstance(self._builder, DefaultRecordBatchBuilder):
                self.close()
                return None
        compression, transactional, size = self._slow
        if isinstance(self._builder, DefaultRecordBatchBuilder):
            self._builder = _DefaultRecordBatchBuilderPy(2, compression, int(transactional), -1, -1, 0, size)
        return super().append(timestamp=timestamp, key=key, value=value, headers=_named(headers))

    def _set_producer_state(self, producer_id: int, producer_epoch: int, base_sequence: int) -> None:
        self._builder.set_producer_state(producer_id, producer_epoch, base_sequence)


def _named(headers: Headers) -> list[tuple[str, bytes | None]]:
    return [(_Name(name), value) for name, value in headers]
