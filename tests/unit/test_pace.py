"""The pace of bulk workers before made-up lanes, which do so much a second and commit now and then."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from streams.pace import LOOK, QUEUE, Pace, Seen
from streams.transport.waits import Totals, Waited

FLOOR = 250.0
CEILING = 1_000_000.0
BACKLOG = 5000
COMMIT = 0.7
STEP = 0.05

NOTHING = Totals(Waited(), Waited())


def pace(floor: float = FLOOR, ceiling: float = CEILING) -> Pace:
    return Pace(floor, ceiling, BACKLOG, COMMIT)


@dataclass
class Lanes:
    """Lanes, interactive traffic and bulk workers in steps of time."""

    capacity: float = 6000.0
    """Records a second."""
    interactive: float = 0.0
    must_wait: float = 0.01
    """Seconds that a record waits without any other."""
    slower: Callable[[float], float] = lambda share: 1 / (1 - min(0.9, share))
    """Times that, by the share of the capacity that is used."""
    tells: bool = True
    """Whether their workers are of a version that notes waits."""
    paces: list[Pace] = field(default_factory=lambda: [pace()])
    now: float = 0.0
    sent: float = 0.0
    queue: float = 0.0
    wait: float = 0.0
    rates: list[float] = field(default_factory=list)
    """Of the first worker, look by look."""

    def __post_init__(self) -> None:
        self._committed = self._at = self._done = 0.0
        self._under_way = deque([(0.0, 0.0, 0.0)] * round(self.must_wait / STEP))
        """What the lanes do in a step ends only after it must wait: records, interactive ones, the wait."""
        self._totals = self._note = NOTHING
        self._left = [0.0] * len(self.paces)
        self._steps = 0

    @property
    def lag(self) -> float:
        return self.sent - self._committed

    def run(self, seconds: float) -> Lanes:
        self.rates.clear()
        for _ in range(round(seconds / STEP)):
            self._step()
        return self

    def _step(self) -> None:
        self.now += STEP
        self._steps += 1
        came = self.interactive * STEP
        for n, each in enumerate(self.paces):
            self._left[n] += 0 if each.full else each.rate * STEP
            leaving = int(self._left[n])
            self._left[n] -= leaving
            each.sent += leaving
            came += leaving
        self.sent += came
        self.queue += came
        does = min(self.queue, self.capacity * STEP)
        self.queue -= does
        if self.capacity:
            share = does / STEP / self.capacity
            wait = self.must_wait * self.slower(share) + self.queue / self.capacity
            self._under_way.append((does, min(does, self.interactive * STEP), wait))
            does, awaited, self.wait = self._under_way.popleft()
            self._done += does
            self._totals = Totals(self._more(0, awaited), self._more(1, does - awaited))
        if self.now - self._at >= COMMIT and self.capacity:
            self._at, self._committed, self._note = self.now, self._done, self._totals
        notes = {"w": Totals(*(Waited(int(n), int(ms)) for n, ms in self._note))} if self.tells else {}
        for n, each in enumerate(self.paces):
            if self._steps % round(LOOK / STEP) == n:
                each.look(Seen(self.now, int(self._committed), int(self.lag), notes, each.sent))
                if n == 0:
                    self.rates.append(each.rate)

    def _more(self, which: int, records: float) -> Waited:
        before = self._totals[which]
        return Waited(before.records + records, before.ms + records * self.wait * 1000)  # type: ignore[arg-type]


@pytest.mark.parametrize("capacity", [1000.0, 6000.0, 20_000.0])
def test_alone_it_does_what_the_lanes_can(capacity: float) -> None:
    lanes = Lanes(capacity=capacity).run(15)
    before = lanes.sent
    lanes.run(60)
    assert lanes.sent - before == pytest.approx(capacity * 60, rel=0.05)
    assert lanes.queue < 1.5 * QUEUE * capacity


def test_alone_it_does_not_swing() -> None:
    lanes = Lanes().run(40)
    lanes.run(30)
    assert max(lanes.rates) < 1.25 * min(lanes.rates)
    assert lanes.queue > 0


def test_events_that_must_wait_long_anyway_do_not_hold_it_back() -> None:
    """A busy machine: more at once takes no longer."""
    lanes = Lanes(must_wait=QUEUE / 3, slower=lambda share: 1.0).run(60)
    assert min(Lanes.run(lanes, 20).rates) > 4000


def test_it_makes_room_for_interactive_events() -> None:
    """Within a few looks, and it takes what they leave: their wait stays near what it is without bulk."""
    lanes = Lanes().run(30)
    lanes.interactive = 500.0
    lanes.run(2.5)
    assert lanes.paces[0].rate == FLOOR
    lanes.run(30)
    without = 0.01 / (1 - 500 / 6000)
    rates, waits = [], []
    for _ in range(120):
        waits.append(lanes.run(0.5).wait)
        rates += lanes.rates
    assert sum(waits) / len(waits) < 1.2 * without
    assert max(waits) < 1.4 * without
    assert sum(rates) / len(rates) > 1.5 * FLOOR
    lanes.interactive = 0.0
    assert Lanes.run(lanes, 40).paces[0].rate > 4000


def test_where_interactive_events_leave_room_it_is_taken() -> None:
    lanes = Lanes(capacity=100_000.0, interactive=500.0).run(60)
    assert lanes.paces[0].rate > 4000
    assert lanes.wait < 1.3 * 0.01


def test_beside_events_that_wait_long_anyway_it_stays_at_the_floor() -> None:
    """They are behind what there is to do, so nothing is left."""
    lanes = Lanes(interactive=500.0, must_wait=0.5, slower=lambda share: 1.0).run(20)
    assert set(Lanes.run(lanes, 60).rates) == {FLOOR}


def test_a_few_events_a_minute_are_no_traffic() -> None:
    lanes = Lanes(interactive=0.5).run(40)
    assert lanes.paces[0].rate > 4000


def test_what_came_while_nobody_looked_counts_by_its_rate() -> None:
    for count, guarding in ((600, False), (6000, True)):
        each = pace()
        each.look(Seen(0.0, 0, 0, {"w": NOTHING}, 0))
        each.idle()
        each.look(Seen(3600.0, count, 0, {"w": Totals(Waited(count, count), Waited())}, 0))
        assert each.guarding is guarding


def test_before_lanes_that_do_nothing_it_stops_at_the_backlog() -> None:
    lanes = Lanes().run(30)
    lanes.capacity = 0
    lanes.run(10)
    assert lanes.paces[0].rate == FLOOR
    stopped = lanes.run(60).lag
    assert BACKLOG <= stopped < BACKLOG + 6000 * COMMIT + 6000 * 1.5
    assert lanes.run(60).lag == stopped
    assert lanes.paces[0].full
    lanes.capacity = 6000.0
    assert Lanes.run(lanes, 30).paces[0].rate > 4000


def test_it_does_not_go_on_because_the_backlog_may_be_large() -> None:
    lanes = Lanes(paces=[Pace(FLOOR, CEILING, 10**9, COMMIT)]).run(30)
    lanes.capacity = 0
    assert Lanes.run(lanes, 8).rates[-1] == FLOOR


def test_lanes_that_never_did_anything_get_the_backlog_at_the_floor() -> None:
    lanes = Lanes(capacity=0)
    lanes.run(10)
    assert lanes.lag == pytest.approx(10 * FLOOR, rel=0.1)
    assert BACKLOG <= lanes.run(60).lag < BACKLOG + FLOOR


def test_two_share_what_there_is() -> None:
    lanes = Lanes(paces=[pace(), pace()]).run(60)
    one, other = lanes.paces
    before = one.sent, other.sent
    lanes.run(30)
    shares = sorted((one.sent - before[0], other.sent - before[1]))
    assert sum(shares) == pytest.approx(6000 * 30, rel=0.05)
    assert shares[0] > shares[1] / 3
    assert lanes.queue < 3 * QUEUE * 6000


def test_nothing_leaves_before_the_first_look() -> None:
    each = pace()
    assert each.full
    each.look(Seen(0.0, 10, 0, {}, 0))
    assert not each.full


def test_a_group_that_cannot_be_seen_gets_the_backlog_at_the_floor() -> None:
    for each in (pace(), Lanes().run(30).paces[0]):
        each.blind()
        assert (each.rate, each.full) == (FLOOR, False)
        each.sent += 2 * BACKLOG
        assert each.full


def test_workers_that_do_not_tell_who_waits_get_the_floor() -> None:
    assert set(Lanes(tells=False).run(20).rates) == {FLOOR}


def test_after_a_rest_it_begins_at_the_floor() -> None:
    each = Lanes().run(30).paces[0]
    assert each.rate > 4000
    each.idle()
    assert each.rate == FLOOR


def test_with_a_ceiling_at_the_floor_the_pace_is_fixed() -> None:
    for ceiling in (FLOOR, 100.0):
        assert set(Lanes(paces=[pace(ceiling=ceiling)]).run(20).rates) == {ceiling}


def test_after_offsets_were_set_back_it_goes_by_the_new_ones() -> None:
    each = pace()
    for n, committed in enumerate((90_000, 95_000, *range(0, 20_000, 1000))):
        notes = {"w": Totals(Waited(), Waited(1000 * n, 1000 * n))}
        each.look(Seen(n * LOOK, committed, 0, notes, each.sent))
        each.sent += 1000
    assert each.rate > 2000
