"""The pace of a bulk worker: what interactive traffic leaves of the lanes (docs/decisions/0047).
Pure: it is told what was seen of the group, and when.

While nothing interactive comes, the rate is what lets each event wait QUEUE seconds in the lanes: nobody
minds, and the lanes' batches are as large as they have to be.

While something interactive comes, the rate follows how long it waits in the lanes. At the floor is learned
how long that is with hardly any bulk; then the rate goes up while the wait stays near that, and down when it
doesn't.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Final, NamedTuple

from streams.transport.waits import Totals, Waited

LOOK: Final = 0.5
"""Seconds between two looks at the group while events are sent. What a look tells moves with the commits."""

QUEUE: Final = 2.0
"""Seconds that an event waits in the lanes while nothing interactive comes."""
HORIZON: Final = 4.0
"""Seconds in which a wait that is too long or too short would become right. A look tells of what was sent a
second ago, so that less would swing.
"""
LEAST_CHANGE: Final = 0.5
MOST_CHANGE: Final = 1.5
"""Times what was sent before, within which the rate stays for that."""
START: Final = 2.0
"""Times what was sent before, while events wait less than a quarter of QUEUE and the rate is below half of
what the lanes did when events last waited longer.
"""
SPAN: Final = 2.0
"""Seconds over which is measured what is sent and done, or three commits: each of them is a leap."""

PRESENCE: Final = 10.0
LEAST_RATE: Final = 1.0
"""Interactive traffic is at least so many records a second, over so many seconds."""
LEARNING: Final = 3.0
JUDGING: Final = 1.0
SAMPLES: Final = 50
"""Seconds and records of which a mean wait is taken, at least: at the floor, and above it."""
NEAR: Final = 1.07
TOLERANCE: Final = 1.15
FAR: Final = 2.0
"""Times the wait at the floor: up to which the rate goes up, above which it goes down, and above which it
becomes the floor. Less than the 1.3 that is promised of the 99th percentile, since the rate goes on until a
longer wait is noticed.
"""
LONGEST: Final = 0.5
"""Seconds of interactive records' wait above which they leave nothing, whatever it is at the floor."""
UP: Final = 1.2
DOWN: Final = 0.7
RELEARN: Final = 60.0
"""Seconds after which the wait at the floor is learned again: traffic and machines change."""


class Seen(NamedTuple):
    """What a look has seen of the group, at a moment of a monotonic clock in seconds."""

    at: float
    committed: int
    """Sum of the committed offsets."""
    lag: int
    """Records that aren't committed."""
    waits: Mapping[str, Totals]
    """How long records have waited, by worker: interactive ones (awaited), and the others."""
    sent: int
    """Pace.sent before the look."""


class Pace:
    """How many events a second may be sent, and whether any. Wants to be told of each look and each event."""

    def __init__(self, floor: float, ceiling: float, backlog: int, commit_interval: float) -> None:
        """`floor`, `ceiling`: events a second. `backlog`: records that may lie before lanes that do nothing.
        `commit_interval`: seconds between two commits of a lane.
        """
        self.sent = 0
        """Events so far."""
        self.rate = self._floor = min(floor, ceiling)
        """Events a second from now on."""
        self.wait = 0.0
        """Seconds that events have waited in the lanes lately: interactive ones, if there are any."""
        self._ceiling = ceiling
        self._backlog = backlog
        self._commit_interval = commit_interval
        self._span = max(SPAN, 3 * commit_interval)
        self._last: Seen | None = None
        self._commits: deque[tuple[float, int]] = deque()
        """When the committed offsets had moved, and their sum."""
        self._sends: deque[tuple[float, int]] = deque()
        self._waits: deque[Waited] = deque(maxlen=1 + round(2 * commit_interval / LOOK))
        """Of the others, in the looks of the last two commits."""
        self._settle = 2 * commit_interval + LOOK
        """Seconds for which waits still tell of the rate before."""
        self._reached = math.inf
        """Records a second that the lanes did when events last waited too long."""
        self._interactive: deque[tuple[float, float, int]] = deque()
        """Begin and end of the time between two looks, and interactive records in it."""
        self._guard: _Guard | None = None

    @property
    def full(self) -> bool:
        """Whether nothing may be sent, because too much is before the lanes or nothing is known of them."""
        if (last := self._last) is None:
            return True
        most = self._backlog + self._done_per_second(last.at) * self._commit_interval
        return last.lag + self.sent - last.sent > most

    @property
    def guarding(self) -> bool:
        """Whether interactive traffic bounds the rate by its waits."""
        return self._guard is not None

    def idle(self) -> None:
        """Nothing is sent any more, and nobody looks: begin again at the floor."""
        self.rate = self._floor
        self._guard = None
        self._reached = math.inf

    def blind(self) -> None:
        """The group can't be seen: the floor, until as much is before the lanes as may be."""
        self.idle()
        for seen in (self._commits, self._sends, self._waits, self._interactive):
            seen.clear()
        if self._last is None:
            self._last = Seen(0.0, 0, 0, {}, self.sent)
        self._last = self._last._replace(waits={})

    def look(self, seen: Seen) -> None:
        """Set the rate by what was seen."""
        last, self._last = self._last or seen, seen
        self._measure(seen)
        awaited, others = _added(last.waits, seen.waits)
        if awaited.records:
            self.wait = awaited.ms / awaited.records / 1000
        self._waits.append(others)
        self._watch_presence(last.at, seen.at, awaited.records)
        if self._guard is None:
            rate = self._alone(seen)
        else:
            most = START * max(self._floor, self._done_per_second(seen.at))
            rate = self._guard.look(seen.at, awaited, most)
        self.rate = min(self._ceiling, max(self._floor, rate))

    def _measure(self, seen: Seen) -> None:
        if self._commits and seen.committed < self._commits[-1][1]:
            self._commits.clear()  # offsets were set back
        if not self._commits or seen.committed > self._commits[-1][1]:
            self._commits.append((seen.at, seen.committed))
        self._sends.append((seen.at, self.sent))
        for moments in (self._commits, self._sends):
            while len(moments) > 2 and moments[1][0] <= seen.at - self._span:
                moments.popleft()

    def _done_per_second(self, now: float) -> float:
        """Records a second that the lanes do, from commit to commit. 0 while that isn't known."""
        if len(self._commits) < 2:
            return 0.0
        (begin, before), (end, done) = self._commits[0], self._commits[-1]
        return (done - before) / max(end - begin, now - 1.5 * self._commit_interval - begin, LOOK / 2)

    def _alone(self, seen: Seen) -> float:
        """The rate that makes events wait QUEUE seconds. It goes by what this worker has sent, so that
        several of them share what there is.
        """
        begin, before = self._sends[0]
        done = max(self._floor, self._done_per_second(seen.at))
        mine = max(self._floor, (self.sent - before) / max(seen.at - begin, LOOK / 2))
        if not (records := sum(waited.records for waited in self._waits)):
            return mine * LEAST_CHANGE  # the lanes do nothing, or don't tell
        self.wait = wait = sum(waited.ms for waited in self._waits) / records / 1000
        # Neither is below what the queue is: the one tells of events that are through by now, the other one
        # has what isn't committed yet.
        queue = min(wait, seen.lag / done)
        if queue > QUEUE:
            self._reached = max(mine, done)
        mine = min(mine, done)  # what is beyond it is in the queue now
        if queue < QUEUE / 4 and mine < self._reached / START:
            return mine * START
        return mine * min(MOST_CHANGE, max(LEAST_CHANGE, 1 + (QUEUE - queue) / HORIZON))

    def _watch_presence(self, begin: float, end: float, records: int) -> None:
        """Begin to guard, or end it. What came while nobody looked counts by its rate."""
        self._interactive.append((begin, end, records))
        while self._interactive[0][1] <= end - PRESENCE:
            self._interactive.popleft()
        present = sum(
            count * min(1.0, PRESENCE / max(until - since, LOOK)) for since, until, count in self._interactive
        )
        if present < PRESENCE * LEAST_RATE:
            self._guard = None
        elif self._guard is None:
            self._guard = _Guard(end, self._floor, self._settle)


class _Guard:
    """The rate beside interactive traffic, from when that began."""

    def __init__(self, now: float, floor: float, settle: float) -> None:
        """`settle`: seconds for which waits still tell of the rate before."""
        self._floor = floor
        self._settle = settle
        self._next = floor * UP
        """What to go on with once the wait at the floor is known."""
        self._base = 0.0
        """The wait at the floor, milliseconds."""
        self._learned = now
        self._change(now + settle, floor)

    def _change(self, judge_from: float, rate: float) -> None:
        self.rate = rate
        self._from = judge_from
        self._records = self._ms = 0

    def look(self, now: float, added: Waited, most: float) -> float:
        """The rate after these records have waited. `most`: a higher one would have no effect to judge."""
        if now < self._from:
            return self.rate
        self._records += added.records
        self._ms += added.ms
        learning = self.rate == self._floor
        if now - self._from < (LEARNING if learning else JUDGING) or self._records < SAMPLES:
            return self.rate
        wait = self._ms / self._records
        if learning:
            self._base, self._learned = wait, now
            self._change(now + self._settle, self._next if wait < LONGEST * 1000 else self.rate)
        elif wait > min(self._base * TOLERANCE, LONGEST * 1000):
            self._next = self._floor * UP
            down = 0.0 if wait > self._base * FAR else self.rate * DOWN
            self._change(now + self._settle, max(self._floor, down))
        elif now - self._learned > RELEARN:
            self._next = max(self._next, self.rate * DOWN)
            self._change(now + self._settle, self._floor)
        else:
            up = UP if wait < self._base * NEAR else 1.0
            self._base = min(self._base, (3 * self._base + wait) / 4)
            self._change(now, max(self._floor, min(most, self.rate * up)))
        return self.rate


def _added(before: Mapping[str, Totals], now: Mapping[str, Totals]) -> Totals:
    """What the workers that both looks saw have added between them. Pure."""
    both = [(before[name], now[name]) for name in now if name in before]

    def grown(which: int) -> Waited:
        return Waited(
            sum(max(0, late[which].records - early[which].records) for early, late in both),
            sum(max(0, late[which].ms - early[which].ms) for early, late in both),
        )

    return Totals(grown(0), grown(1))
