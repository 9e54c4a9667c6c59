"""A lane's note goes beside an offset and is found there, whatever else lies there."""

from __future__ import annotations

import pytest

from streams.transport.lane_notes import ends_of, note_of, with_ends, with_note
from streams.transport.waits import Waits, read_notes


def test_a_note_is_found_beside_the_waits() -> None:
    waits = Waits()
    waits.add(3, 1, 0.25)
    noted = with_note(waits.note(), "behind")
    assert note_of(noted) == "behind"
    assert read_notes([noted]) == read_notes([waits.note()]) != {}
    assert with_note(waits.note(), "") == waits.note()
    assert note_of(waits.note()) == ""


@pytest.mark.parametrize(
    "other",
    [
        "",
        "; lane behind",
        "behind",
        "waits ; lane ",
        "waits 0 1; lane \ufffd",
        "waits 0; lane a\n",
        "é" * 4096,
    ],
)
def test_what_is_no_note_is_none(other: str) -> None:
    assert note_of(other) == ""


@pytest.mark.parametrize("word", ["Behind", "a b", "a" * 33, "1"])
def test_a_note_is_a_short_word(word: str) -> None:
    with pytest.raises(ValueError, match="can't be a lane's note"):
        with_note("", word)


def test_ends_are_found_beside_the_waits() -> None:
    waits = Waits()
    waits.add(3, 1, 0.25)
    noted = with_ends(waits.note(), (0, 17, 1 << 62))
    assert ends_of(noted) == (0, 17, 1 << 62)
    assert note_of(noted) == ""
    assert read_notes([noted]) == read_notes([waits.note()])
    assert with_ends(waits.note(), ()) == waits.note()
    for other in ("", waits.note(), with_note(waits.note(), "behind"), "waits 0; ends ", "waits 0; ends x"):
        assert ends_of(other) == ()
