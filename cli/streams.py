"""Standard input, output and error as a command needs them: there, whatever the caller
closed, and in any encoding.
"""

from __future__ import annotations

import io
import os
import sys
from typing import Any, Final, TextIO

from errors import OrdersError

_CLOSED: Final = {0: os.O_WRONLY, 1: os.O_RDONLY, 2: os.O_WRONLY}
"""How a closed descriptor is opened on the null device: the other way round, so that reading or writing it
fails. Errors go nowhere.
"""


class OutputLost(OSError):
    """Standard output took no more: its disk is full, or it was closed."""


class _ClosedInput(io.RawIOBase):
    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        raise OrdersError("standard input is closed", "name a file, or pipe one in")


class _Output(io.FileIO):
    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise OutputLost(error.errno, error.strerror) from None


class _Errors(io.FileIO):
    """Nobody is left to be told that an error message couldn't be written."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


def open_all() -> None:
    """Make the three streams usable, once, before anything is opened or printed.

    A descriptor that is closed is taken, or the next file or connection would get its number and what is
    printed. What the encoding lacks is written escaped instead of raising UnicodeEncodeError. Writing to
    standard output raises BrokenPipeError or OutputLost.
    """
    for number, flags in _CLOSED.items():
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # gets the lowest number that is free: this one
    if sys.stdin is None:
        sys.stdin = io.TextIOWrapper(io.BufferedReader(_ClosedInput()), encoding="utf-8")
    sys.stdout = _text(_Output(1, "wb", closefd=False), sys.stdout)
    sys.stderr = _text(_Errors(2, "wb", closefd=False), sys.stderr, always_lines=True)


def escape_unencodable() -> None:
    """Let the standard streams that are there write what their encoding lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors != "backslashreplace":
            stream.reconfigure(errors="backslashreplace")


def give_up_output() -> None:
    """Let what is still to be written to standard output go nowhere, so that the interpreter's own
    end doesn't fail with it.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def _text(raw: io.FileIO, former: TextIO | None, *, always_lines: bool = False) -> io.TextIOWrapper:
    encoding = "utf-8" if former is None else former.encoding
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=encoding,
        errors="backslashreplace",
        line_buffering=always_lines or raw.isatty(),
    )
