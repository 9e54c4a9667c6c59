"""Parquet as rows: each value judged by itself, and the file read first by a process of its own.

A file of 3 kB may unpack to any size, and one that is broken can end the process that reads it: then it is
that one. `python -m operations.submit.parquet` is it.
"""

from __future__ import annotations

import io
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from contracts import errors
from contracts.bulk import EVENT_BYTES
from contracts.errors import Refused, SourceError
from operations.submit.files import Bounds, require_columns
from operations.submit.rows import Row, twice, uuid_of, without_order

_ROWS: Final = 256
"""Rows in memory at once."""
_ROW_BYTES: Final = 100
"""No event is smaller: so much a row counts at least."""
_REFUSED: Final = 3
"""Exit code of a process that has said why a file can't be read."""


class Parquet:
    """A file of Parquet: its `columns`, and its rows as often as they are asked for.
    Blocks; what it reads stays where it is.
    """

    def __init__(
        self,
        path: str,
        content: io.BufferedReader,
        fields: Collection[str],
        bounds: Bounds,
        *,
        tried: bool = False,
    ) -> None:
        """Reads the columns of these names once, in another process (unless `tried`).
        Raises SourceError when they can't be read.
        """
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ModuleNotFoundError:
            raise SourceError(
                f"{path}: Parquet needs pyarrow", "run pip install 'orders-stream[parquet]'"
            ) from None
        self._path, self._content, self._pa, self._pq, self._bounds = path, content, pa, pq, bounds
        if not tried:
            self._try(fields)
        self._file = self._guarded(self._opened)
        self.columns: list[str] = self._guarded(lambda: list(self._file.schema_arrow.names))
        require_columns(path, self.columns, bounds)
        repeated = twice(self.columns)
        if repeated is not None:
            raise SourceError(f"{path}: column {repeated!r} stands twice; nothing of it was sent")
        if self._guarded(lambda: self._file.metadata.num_rows) * _ROW_BYTES > bounds.bytes:
            raise self._too_much()

    def rows(self, allowed: Collection[str], item: Collection[str], flat: bool) -> Iterator[Row]:
        """Every row with the known columns, `items` with the fields of `item`; what is null is absent.
        `flat`: a row is an item.
        """
        file = self._guarded(self._opened)
        names = [name for name in self.columns if name in allowed]
        batches = self._guarded(lambda: file.iter_batches(batch_size=_ROWS, columns=names, use_threads=False))
        number = size = 0
        while (batch := self._guarded(lambda: next(batches, None), number)) is not None:
            columns = {name: self._values(batch.column(n)) for n, name in enumerate(batch.schema.names)}
            for nth in range(batch.num_rows):
                number += 1
                values = {
                    name: _plain(name, column[nth], item)
                    for name, column in columns.items()
                    if column[nth] is not None
                }
                row = _row(number, values, flat)
                size += max(_ROW_BYTES, _size(values))
                if size > self._bounds.bytes:
                    raise self._too_much()
                yield row

    def _opened(self) -> Any:
        self._content.seek(0)
        return self._pq.ParquetFile(self._content, pre_buffer=False, buffer_size=1 << 20)

    def _try(self, fields: Collection[str]) -> None:
        command = [
            sys.executable,
            "-P",
            "-m",
            "operations.submit.parquet",
            json.dumps([self._path, sorted(fields), self._bounds]),
        ]
        # Other allocators ask for more than they use.
        environment = {**os.environ, "ARROW_DEFAULTMEMORY_POOL": "system"}
        # The other process moves the place in the file, of which the buffer here knows nothing.
        file = self._content.fileno()
        place = os.lseek(file, 0, os.SEEK_CUR)
        done = subprocess.run(command, check=False, stdin=file, capture_output=True, env=environment)
        os.lseek(file, place, os.SEEK_SET)
        if done.returncode == _REFUSED:
            raise SourceError(*json.loads(done.stdout))
        if done.returncode:
            raise SourceError(
                f"{self._path}: cannot be read as Parquet (its reader has died of it); nothing of it was sent"
            )

    def _values(self, array: Any) -> list[Any]:
        """The values of a column; what Python can't have stays what it is."""
        pa = self._pa
        if pa.types.is_timestamp(array.type):
            # Python's times have no nanoseconds, nor has an event.
            array = array.cast(pa.timestamp("us", tz=None if array.type.tz is None else "UTC"), safe=False)
        try:
            values: list[Any] = array.to_pylist()
        except MemoryError:
            raise
        except Exception:  # one value is out of range: the others aren't
            values = [_one(each) for each in array]
        return values

    def _guarded(self, read: Callable[[], Any], number: int = 0) -> Any:
        """Return what the library returns. Whatever it raises on a broken file is raised as SourceError."""
        try:
            return read()
        except MemoryError as error:
            raise _too_large(self._path) from error
        except Exception as error:
            after = f" after row {number:,}" if number else ""
            first = (str(error).splitlines() or [type(error).__name__])[0][:300]
            raise SourceError(
                f"{self._path}: cannot be read as Parquet{after} ({first}); nothing of it was sent"
            ) from error

    def _too_much(self) -> SourceError:
        return SourceError(
            f"{self._path}: more than {self._bounds.bytes:,} bytes, unpacked; nothing of it was sent",
            "--max-bytes (or ORDERS_BULK_FILE_BYTES) allows more",
        )


def _too_large(path: str) -> SourceError:
    return SourceError(
        f"{path}: {_ROWS} rows of it take too much memory; nothing of it was sent",
        "send it in parts, or allow more: ORDERS_BULK_FILE_MEMORY",
    )


def _row(number: int, values: dict[str, Any], flat: bool) -> Row:
    refused = next(_refusals(values), None)
    if refused is None and _size(values) > EVENT_BYTES:
        refused = Refused(errors.RECORD_TOO_LARGE, f"above {EVENT_BYTES:,} bytes as JSON")
    order = uuid_of(values.get("order_id")) if flat else None
    if flat and order is None and refused is None:
        refused = without_order(values.get("order_id"))
    return Row(number, values, refused, None, order)


def _refusals(value: Any) -> Iterator[Refused]:
    if isinstance(value, Refused):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _refusals(each)


def _size(value: Any) -> int:
    """Characters of all texts in it."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict | list):
        return sum(map(_size, value.values() if isinstance(value, dict) else value))
    return 0


def _one(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except MemoryError:
        raise
    except Exception:
        return scalar


def _plain(name: str, value: Any, item: Collection[str]) -> Any:
    """A value of Parquet as the field of this name has it in JSON; a Refused in the place of
    one that no event can have.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, dict):
        return {
            key: _plain(key, each, item) for key, each in value.items() if each is not None and key in item
        }
    if isinstance(value, list):
        return [_plain(name, each, item) for each in value]
    if isinstance(value, Decimal | float) and name == "quantity" and value % 1 == 0:
        return int(value)
    if isinstance(value, Decimal):
        text = f"{value:f}"
        # A column has one scale, currencies have different ones: zeros at the end say nothing.
        return text.rstrip("0").rstrip(".") if "." in text else text
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        return (
            str(UUID(bytes=value))
            if len(value) == 16 and name.endswith("_id")
            else value.decode("utf-8", "surrogateescape")
        )
    return Refused(
        errors.FIELD_MALFORMED,
        f"$.{name}: {'a float' if isinstance(value, float) else 'of a type that no event has'}",
    )


def main() -> None:
    """Read the file on stdin to its end, in so much memory as there may be; why that
    can't be is said on stdout.
    """
    path, fields, given = json.loads(sys.argv[1])
    bounds = Bounds(*given)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_DATA, (bounds.memory, bounds.memory))
    try:
        with open(0, "rb") as content:
            content.seek(0)
            for _ in Parquet(path, content, fields, bounds, tried=True).rows(fields, fields, False):
                pass
    except SourceError as error:
        why = error
    except MemoryError:
        why = _too_large(path)
    else:
        return
    print(json.dumps([why.message, why.remedy]), flush=True)
    os._exit(_REFUSED)


if __name__ == "__main__":
    main()
