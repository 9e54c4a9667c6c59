"""A file that somebody hands over: copied first to where nobody changes it, unpacked, with a bound, and
looked at before it is believed.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import os
import stat
import tempfile
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from typing import IO, Any, Final, NamedTuple

from contracts.bulk import EVENT_BYTES
from contracts.errors import SourceError

ALWAYS: Final = 64 << 20
"""Bytes to which any gzip may unpack."""

_BLOCK: Final = 1 << 20
_GZIP: Final = b"\x1f\x8b"
_STRANGE: Final = (
    (b"PARE", "encrypted Parquet; decrypt it first"),
    (_GZIP, "gzip within gzip; unpack it once"),
    (b"PK\x03\x04", "a ZIP archive or an Excel workbook; save it as CSV"),
    (b"BZh", "bzip2; pack it with gzip or not at all"),
    (b"\xfd7zXZ\x00", "xz; pack it with gzip or not at all"),
    (b"\x28\xb5\x2f\xfd", "zstd; pack it with gzip or not at all"),
    (b"\xff\xfe", "UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16; save it as UTF-8"),
)
UTF16: Final = (b"\xff\xfe", b"\xfe\xff")
"""Byte order marks."""


class Bounds(NamedTuple):
    """What a file may come to. Beyond it nothing of the file is sent."""

    bytes: int = 4 << 30
    """Most bytes, unpacked."""
    ratio: int | None = 100
    """So many times its own size gzip may unpack to; None: `bytes` is enough. Text full of UUIDs has about
    10.
    """
    columns: int = 1000
    """Of CSV and Parquet."""
    memory: int = 1 << 30
    """Most bytes of memory that reading Parquet may take: ordinary files take a fifth of it."""
    event: int = EVENT_BYTES
    """Most bytes of JSON of one event: its part has to fit into its topic. A larger one is refused alone."""


USUAL: Final = Bounds()

LONGEST_NAME: Final = 200
"""Characters of a column's name."""


def require_columns(path: str, names: Sequence[str], bounds: Bounds) -> None:
    """Raise SourceError for more columns, or longer names, than a file of events has."""
    if len(names) > bounds.columns:
        raise SourceError(
            f"{path}: {len(names):,} columns, more than {bounds.columns:,}; nothing of it was sent",
            "leave out those that no event knows, or allow more: ORDERS_BULK_FILE_COLUMNS",
        )
    long = next((number for number, name in enumerate(names, 1) if len(name) > LONGEST_NAME), None)
    if long is not None:
        raise SourceError(
            f"{path}: the name of column {long} has more than {LONGEST_NAME} characters; nothing of it was"
            " sent"
        )


class Content(NamedTuple):
    """The unpacked content of a file, as a private copy, with its sha256 and that of the file."""

    file: io.BufferedReader
    digest: str
    packed: str


class _Packed(io.RawIOBase):
    """The rest of a file behind its first bytes, which were read already; counts what is taken."""

    def __init__(self, head: bytes, rest: IO[bytes]) -> None:
        self._head, self._rest, self.taken = head, rest, 0
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        block = self._head[: len(buffer)] if self._head else self._rest.read(len(buffer))
        self._head = self._head[len(block) :]
        buffer[: len(block)] = block
        self.taken += len(block)
        self.digest.update(block)
        return len(block)


def copied(path: str, stack: ExitStack, stdin: IO[bytes], bounds: Bounds, *, utf16: bool = False) -> Content:
    """Copy a file (`-`: stdin) into a nameless one below $TMPDIR, gunzipped, until `stack` is closed.
    `utf16`: the reader takes text in it, too.

    Blocks. Raises SourceError: it can't be read, changes meanwhile, is larger, is broken, is of a kind
    that nobody here reads, or there is no room for it.
    """
    try:
        source: Any = stdin if path == "-" else stack.enter_context(open(path, "rb"))  # noqa: SIM115
        before = _state(source)
        head = source.read(_BLOCK)
        packed = _Packed(head, source)
        copy = temporary(stack)
        digest = _copy(path, packed, copy, bounds, zipped=head.startswith(_GZIP), utf16=utf16)
        if _state(source) != before:
            raise SourceError(
                f"{path}: changed while it was read; nothing of it was sent",
                "send it again when it is complete",
            )
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise SourceError(
            f"{path}: gzip that is cut short or broken ({error}); nothing of it was sent"
        ) from error
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror or error}", "check the path") from error
    copy.seek(0)
    return Content(stack.enter_context(io.BufferedReader(copy)), digest, packed.digest.hexdigest())


def temporary(stack: ExitStack) -> io.FileIO:
    """A nameless file below $TMPDIR until `stack` is closed. Raises SourceError when there can't be one."""
    try:
        # Unbuffered: what doesn't fit is told where it is written, and not once more when the file is closed.
        return stack.enter_context(tempfile.TemporaryFile(buffering=0))
    except OSError as error:
        raise no_room(error) from error


def write(file: io.FileIO, data: bytes) -> None:
    """Write all of it to a file of `temporary`. Raises SourceError when it doesn't fit."""
    rest = memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError as error:
        raise no_room(error) from error


def no_room(error: Exception) -> SourceError:
    """Return the error to raise when a temporary file can't be written."""
    place = tempfile.tempdir or os.environ.get("TMPDIR") or "/tmp"
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "full" in str(error)
    why = "no room left for temporary files" if full else f"cannot write temporary files ({error})"
    return SourceError(f"{why} below {place}; nothing was sent", "make room or set TMPDIR")


def _copy(path: str, packed: _Packed, copy: io.FileIO, bounds: Bounds, *, zipped: bool, utf16: bool) -> str:
    reader = gzip.GzipFile(fileobj=packed) if zipped else io.BufferedReader(packed)
    # What isn't packed is summed up once.
    digest, total = hashlib.sha256() if zipped else packed.digest, 0
    while block := reader.read(_BLOCK):
        if not total:
            _require_data(path, block, utf16=utf16)
        total += len(block)
        if total > bounds.bytes:
            raise SourceError(
                f"{path}: more than {bounds.bytes:,} bytes, unpacked; nothing of it was sent",
                "--max-bytes (or ORDERS_BULK_FILE_BYTES) allows more",
            )
        if zipped and bounds.ratio is not None and total > max(ALWAYS, bounds.ratio * packed.taken):
            raise SourceError(
                f"{path}: gzip that unpacks to more than {bounds.ratio} times its size; nothing of it was"
                " sent",
                "--max-bytes (or ORDERS_BULK_FILE_RATIO) allows it",
            )
        if zipped:
            digest.update(block)
        write(copy, block)
    return digest.hexdigest()


def _require_data(path: str, head: bytes, *, utf16: bool) -> None:
    """Raise SourceError for content that is neither text nor Parquet."""
    if head.startswith(b"PAR1") or (utf16 and head.startswith(UTF16)):
        return
    format_name = next((what for magic, what in _STRANGE if head.startswith(magic)), None)
    if format_name is None and head[257:262] == b"ustar":
        format_name = "a tar archive; unpack it"
    if format_name is None and b"\0" in head[:4]:
        format_name = "it begins with NUL bytes, so it is no text in UTF-8"
    if format_name is not None:
        raise SourceError(f"{path}: {format_name}; nothing of it was sent")


def _state(source: Any) -> tuple[int, int] | None:
    """Return what changes of a regular file when somebody writes to it."""
    try:
        status = os.fstat(source.fileno())
    except (OSError, AttributeError):  # not a file of the system's
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
