"""What the journal notes of an operation's words."""

from __future__ import annotations

import msgspec
import pytest

from operations.journal import MOST_CHARACTERS, without_secrets


@pytest.mark.parametrize(
    ("word", "noted"),
    [
        ("für", "für"),
        ("best\udce4ll.csv", "best\\udce4ll.csv"),
        ("--password=x", "--password=***"),
        ("postgresql://anna:x@host/db", "postgresql://***@host/db"),
        ("a" * 1000, "a" * (MOST_CHARACTERS - 1) + "…"),
    ],
)
def test_words_are_noted_without_secrets_whatever_their_bytes_are(word: str, noted: str) -> None:
    assert without_secrets(word) == noted
    assert msgspec.json.decode(msgspec.json.encode(noted)) == noted
