"""Unpacking a batch within bounds: a megabyte of it can hold gigabytes."""

from __future__ import annotations

import mmap
import struct
import threading
import zlib
from typing import Any, Final

import cramjam

BATCH_BYTES: Final = 64 << 20
"""Most bytes that a batch is unpacked to. What lies behind them in the same batch can't be had."""

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
CODEC_MASK: Final = 0x07
NAMES: Final = ("none", "gzip", "snappy", "lz4", "zstd")

_OLD_MOST: Final = {GZIP: 1_032, SNAPPY: 64, LZ4: 255}
"""How many bytes one byte of each can become, at most (DEFLATE: 258 of 2 bits; Snappy: 64 of 2 bytes;
LZ4: 255 of a length's byte).
"""
_USUAL: Final = 1 << 20
"""A batch that a client writes becomes no more than this, as a rule."""

_rooms: Final = threading.local()

_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_BYTES: Final = 16
_GZIP: Final = b"\x1f\x8b"
_EMPTY_PAGE: Final = bytes(mmap.PAGESIZE)


def at_most(size: int, codec: int) -> int:
    """Return how many bytes packed bytes of an old format unpack to at most. Pure."""
    return size * _OLD_MOST.get(codec, 1)


def unpack(packed: bytes | memoryview, codec: int) -> bytes:
    """What a batch's bytes hold, up to BATCH_BYTES of it, and as far as it can be unpacked: behind that there
    may be zeros, or nothing.
    """
    if codec == GZIP:
        return _gunzip(bytes(packed))
    if codec == SNAPPY:
        return _unsnap(bytes(packed))
    if codec in (LZ4, ZSTD):
        return _decompress(cramjam.lz4 if codec == LZ4 else cramjam.zstd, bytes(packed))
    return b"" if codec else bytes(packed)


def _decompress(library: Any, packed: bytes) -> bytes:
    room: bytearray | None = getattr(_rooms, "room", None)
    if room is None:
        room = _rooms.room = bytearray(_USUAL)
    try:
        return bytes(memoryview(room)[: library.decompress_into(packed, room)])
    except cramjam.DecompressionError:
        pass  # more than usual, or broken somewhere
    with mmap.mmap(-1, BATCH_BYTES) as buffer:  # no page of it is there before something is written to it
        try:
            size: int = library.decompress_into(packed, buffer)
        except cramjam.DecompressionError:
            # More than fits, or broken further on: what came until then is in it, and zeros follow.
            size = BATCH_BYTES
            while size and buffer[size - mmap.PAGESIZE : size] == _EMPTY_PAGE:
                size -= mmap.PAGESIZE
        return buffer[:size]


def _gunzip(packed: bytes) -> bytes:
    parts: list[bytes] = []
    remaining = BATCH_BYTES
    while remaining and packed.startswith(_GZIP):
        member = zlib.decompressobj(wbits=31)
        try:
            parts.append(member.decompress(packed, remaining))
        except zlib.error:
            break
        remaining -= len(parts[-1])
        packed = member.unused_data
    return b"".join(parts)


def _unsnap(packed: bytes) -> bytes:
    if not packed.startswith(_XERIAL):
        return _unsnap_block(packed, BATCH_BYTES)
    parts: list[bytes] = []
    remaining, at = BATCH_BYTES, 0
    while remaining and at + 4 <= len(packed):
        if packed.startswith(_XERIAL, at):  # streams may follow one another
            at += _XERIAL_BYTES
            continue
        (size,) = struct.unpack_from(">i", packed, at)
        block = _unsnap_block(packed[at + 4 : at + 4 + size], remaining) if size > 0 else b""
        if not block:
            break
        parts.append(block)
        remaining -= len(block)
        at += 4 + size
    return b"".join(parts)


def _unsnap_block(packed: bytes, most: int) -> bytes:
    try:
        if cramjam.snappy.decompress_raw_len(packed) > most:
            return b""
        return bytes(cramjam.snappy.decompress_raw(packed))
    except cramjam.DecompressionError:
        return b""
