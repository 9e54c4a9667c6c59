"""Unpacking a batch within bounds: a megabyte of it can hold gigabytes."""

from __future__ import annotations

import mmap
import struct
import zlib
from typing import Final

import cramjam

BATCH_BYTES: Final = 64 << 20
"""Most bytes that a batch is unpacked to. What lies behind them in the same batch can't be had."""

NONE, GZIP, SNAPPY, LZ4, ZSTD = range(5)
CODEC_MASK: Final = 0x07
NAMES: Final = ("none", "gzip", "snappy", "lz4", "zstd")

_MOST: Final = {GZIP: 1_032, LZ4: 255, ZSTD: 40_000}
"""How many bytes one byte of each can become, at most (DEFLATE: 258 of 2 bits; LZ4: 255 of a length's byte; Zstandard: a block of 128 KiB
of 4 bytes). Snappy says beforehand what it will become, and may lie."""

_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_BYTES: Final = 16
_GZIP: Final = b"\x1f\x8b"


def within_bounds(size: int, codec: int) -> bool:
    """Whether so many packed bytes can't become more than BATCH_BYTES, whatever they are. Pure."""
    return codec == NONE or size * _MOST.get(codec, BATCH_BYTES) <= BATCH_BYTES


def unpack(packed: bytes | memoryview, codec: int) -> bytes:
    """What a batch's bytes hold, up to BATCH_BYTES of it, and as far as it can be unpacked: behind that there may be zeros, or nothing.
    Pure."""
    if codec == GZIP:
        return _gunzip(bytes(packed))
    if codec == SNAPPY:
        return _unsnap(bytes(packed))
    if codec in (LZ4, ZSTD):
        return _decompress(cramjam.lz4 if codec == LZ4 else cramjam.zstd, packed)
    return b"" if codec else bytes(packed)


def _decompress(library: object, packed: bytes | memoryview) -> bytes:
    with mmap.mmap(-1, BATCH_BYTES) as room:  # no page of it is there before something is written to it
        try:
            size = library.decompress_into(bytes(packed), room)  # type: ignore[attr-defined]
        except cramjam.DecompressionError:
            size = BATCH_BYTES  # more than fits, or broken further on: what came until then is in it
            while size and not any(room[size - mmap.PAGESIZE : size]):
                size -= mmap.PAGESIZE
        return room[:size]


def _gunzip(packed: bytes) -> bytes:
    parts: list[bytes] = []
    left = BATCH_BYTES
    while left and packed.startswith(_GZIP):
        member = zlib.decompressobj(wbits=31)
        try:
            parts.append(member.decompress(packed, left))
        except zlib.error:
            break
        left -= len(parts[-1])
        packed = member.unused_data
    return b"".join(parts)


def _unsnap(packed: bytes) -> bytes:
    if not packed.startswith(_XERIAL):
        return _unsnap_block(packed, BATCH_BYTES)
    parts: list[bytes] = []
    left, at = BATCH_BYTES, 0
    while left and at + 4 <= len(packed):
        if packed.startswith(_XERIAL, at):  # streams may follow one another
            at += _XERIAL_BYTES
            continue
        (size,) = struct.unpack_from(">i", packed, at)
        block = _unsnap_block(packed[at + 4 : at + 4 + size], left) if size > 0 else b""
        if not block:
            break
        parts.append(block)
        left -= len(block)
        at += 4 + size
    return b"".join(parts)


def _unsnap_block(packed: bytes, most: int) -> bytes:
    try:
        if cramjam.snappy.decompress_raw_len(packed) > most:
            return b""
        return bytes(cramjam.snappy.decompress_raw(packed))
    except cramjam.DecompressionError:
        return b""
