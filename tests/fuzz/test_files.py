"""A fixed number of broken files; `python -m tests.fuzz.files` tries more."""

from __future__ import annotations

from tests.fuzz.files import check, files


def test_of_a_broken_file_no_order_is_sent_without_a_line_of_its_own() -> None:
    assert sum(check(file) for _, file in files(1000, 1)) > 1000
