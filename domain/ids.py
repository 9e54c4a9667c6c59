"""Ids: 16 raw bytes inside, canonical text outside. What we make is uuid5 in the namespace of the order's own UUID."""

from __future__ import annotations

from functools import lru_cache
from hashlib import sha1

_VARIANT = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


@lru_cache(maxsize=16384)  # one event writes the ids of its order, seller and item several times
def text(raw: bytes) -> str:
    """16 bytes -> canonical text form (lower case, with dashes)."""
    digits = raw.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def uuid5(namespace: bytes, name: str) -> bytes:
    """RFC 9562 version 5 UUID of `name` in `namespace` (16 bytes), as 16 bytes. Much faster than uuid.uuid5, equal to it (tested)."""
    digest = bytearray(sha1(namespace + name.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return bytes(digest)


def uuid5_text(namespace: bytes, name: str) -> str:
    """As uuid5, in canonical text form."""
    digits = sha1(namespace + name.encode(), usedforsecurity=False).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-5{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:32]}"
