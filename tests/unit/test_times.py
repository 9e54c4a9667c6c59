"""Times: RFC 3339 with offset, cut to microseconds."""

from __future__ import annotations

import pytest

from contracts import times
from contracts.errors import FIELD_MALFORMED, Refused

NEW_YEAR = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z."""


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        pytest.param("2026-01-01T00:00:00Z", NEW_YEAR, id="Z"),
        pytest.param("2026-01-01t00:00:00z", NEW_YEAR, id="lower case"),
        pytest.param("2026-01-01T01:30:00+01:30", NEW_YEAR, id="east"),
        pytest.param("2025-12-31T21:00:00-03:00", NEW_YEAR, id="west"),
        pytest.param("2026-01-01T00:00:00-00:00", NEW_YEAR, id="offset unknown"),
        pytest.param("2026-01-01T00:00:00.5Z", NEW_YEAR + 500_000, id="one digit"),
        pytest.param("2026-01-01T00:00:00.000001Z", NEW_YEAR + 1, id="microsecond"),
        pytest.param("2026-01-01T00:00:00.000001999Z", NEW_YEAR + 1, id="nanoseconds are cut, not rounded"),
        pytest.param("1969-12-31T23:59:59.999999Z", -1, id="before 1970"),
        pytest.param(
            "2025-12-31T23:59:60Z", NEW_YEAR - 1, id="a leap second is the last microsecond of its minute"
        ),
        pytest.param("2025-12-31T23:59:60.5Z", NEW_YEAR - 1, id="all of it"),
        pytest.param("2026-01-01T00:59:60+01:00", NEW_YEAR - 1, id="in its own offset"),
        pytest.param("2025-12-31T23:58:60Z", NEW_YEAR - 60_000_001, id="of any minute"),
        pytest.param("2026-01-01T00:00:00." + "0" * 979 + "Z", NEW_YEAR, id="1,000 characters"),
        pytest.param("0001-01-01T00:00:00Z", -62_135_596_800_000_000, id="the first"),
        pytest.param("9999-12-31T23:59:59.999999Z", 253_402_300_799_999_999, id="the last"),
    ],
)
def test_times(text: str, micros: int) -> None:
    assert times.parse(text, "$.time") == micros
    assert times.parse(times.text(micros), "$.time") == micros


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("2026-01-01T00:00:00", id="without offset"),
        pytest.param("2026-01-01", id="a date"),
        pytest.param("2026-01-01 00:00:00Z", id="a space for the T"),
        pytest.param("2026-01-01T00:00Z", id="without seconds"),
        pytest.param("2026-01-01T00:00:00+0100", id="offset without colon"),
        pytest.param("2026-01-01T00:00:00+01", id="offset without minutes"),
        pytest.param("2026-01-01T00:00:00.Z", id="point without digits"),
        pytest.param("2026-01-01T00:00:00,5Z", id="comma"),
        pytest.param("2026-02-30T00:00:00Z", id="no such day"),
        pytest.param("2026-13-01T00:00:00Z", id="no such month"),
        pytest.param("2026-01-01T25:00:00Z", id="no such hour"),
        pytest.param("2026-01-01T00:00:00+24:00", id="no such offset"),
        pytest.param("2025-12-31T23:59:61Z", id="no such second"),
        pytest.param("2025-12-31T23:60:00Z", id="no such minute"),
        pytest.param("2025-12-31T24:00:00Z", id="midnight as an end"),
        pytest.param("2026-01-01T00:00:00." + "0" * 980 + "Z", id="1,001 characters"),
        pytest.param("2026-W01-1T00:00:00Z", id="week date"),
        pytest.param("20260101T000000Z", id="basic form"),
        pytest.param("0000-01-01T00:00:00Z", id="year 0"),
        pytest.param("0001-01-01T00:00:00+00:01", id="before year 1 in UTC"),
        pytest.param("9999-12-31T23:59:59-00:01", id="after year 9999 in UTC"),
        pytest.param("２０２６-01-01T00:00:00Z", id="digits of another script"),
        pytest.param("2026-01-01T00:00:00Z\n", id="newline behind"),
        pytest.param("1767225600", id="seconds since 1970"),
        pytest.param("yesterday", id="a word"),
        pytest.param("", id="empty"),
    ],
)
def test_not_times(text: str) -> None:
    with pytest.raises(Refused) as refused:
        times.parse(text, "$.processed_at")
    assert refused.value.code == FIELD_MALFORMED
    assert refused.value.detail.startswith("$.processed_at: ")


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2026-01-01", NEW_YEAR),
        ("2026-01-01T01:00:00+01:00", NEW_YEAR),
        ("2026-01-02", NEW_YEAR + 86_400_000_000),
    ],
)
def test_days(text: str, micros: int) -> None:
    assert times.parse_day(text, "$.estimated_delivery") == micros


@pytest.mark.parametrize(
    "text", ["2026-02-30", "2026-1-1", "01.01.2026", "20260101", "", "2026-01-01T00:00:00"]
)
def test_not_days(text: str) -> None:
    with pytest.raises(Refused, match=r"\$\.estimated_delivery"):
        times.parse_day(text, "$.estimated_delivery")


@pytest.mark.parametrize(
    ("micros", "text"),
    [
        (NEW_YEAR, "2026-01-01T00:00:00+00:00"),
        (NEW_YEAR + 6, "2026-01-01T00:00:00.000006+00:00"),
        (-1, "1969-12-31T23:59:59.999999+00:00"),
    ],
)
def test_text(micros: int, text: str) -> None:
    assert times.text(micros) == text
