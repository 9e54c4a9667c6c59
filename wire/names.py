"""Header names: text to a program, bytes to Kafka."""

from __future__ import annotations


def name_text(raw: bytes) -> str:
    """A header's name as text, from which name_bytes makes the same bytes again, UTF-8 or not. Pure."""
    return raw.decode("utf-8", "surrogateescape")


def name_bytes(name: str) -> bytes:
    """A header's name as it is in Kafka. Pure."""
    return name.encode("utf-8", "surrogateescape")
