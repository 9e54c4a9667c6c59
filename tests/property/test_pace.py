"""Whatever a bulk worker sees of the group: its pace stays within its bounds, and so does what it sends."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.pace import Pace, Seen
from streams.transport.waits import Totals, Waited

numbers = st.integers(0, 10**9)
totals = st.builds(Totals, *(2 * [st.builds(Waited, numbers, numbers)]))
looks = st.tuples(
    st.floats(0, 100), numbers, numbers, st.dictionaries(st.sampled_from("ab"), totals), st.booleans()
)


@given(st.floats(1, 10_000), st.floats(1, 10_000), st.integers(0, 10_000), st.lists(looks, max_size=30))
def test_between_floor_and_ceiling(
    floor: float, ceiling: float, backlog: int, seen: list[tuple[float, int, int, dict[str, Totals], bool]]
) -> None:
    pace, now = Pace(floor, ceiling, backlog, 0.7), 0.0
    for pause, committed, lag, waits, blind in seen:
        now += pause
        if blind:
            pace.blind()
        else:
            pace.look(Seen(now, committed, lag, waits, pace.sent))
        assert min(floor, ceiling) <= pace.rate <= ceiling
        pace.sent += 0 if pace.full else int(pace.rate)


@given(st.integers(0, 10_000), st.floats(1, 10_000))
def test_lanes_that_do_nothing_get_no_more_than_the_backlog(backlog: int, floor: float) -> None:
    pace, chunk = Pace(floor, 1e6, backlog, 0.7), 10
    for n in range(50):
        pace.look(Seen(n / 2, 7, pace.sent, {}, pace.sent))
        while not pace.full:
            pace.sent += chunk
    assert pace.sent <= backlog + chunk
