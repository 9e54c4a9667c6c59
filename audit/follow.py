"""An audit that never ends: it stays some seconds behind the workers, and tells what is broken when it is.

It goes on from a checkpoint, in rounds. A round is an incremental audit (audit.auditor) with two differences:
it reads the rows and cache entries of those orders only of which a record came, and it looks at some more
orders of which none came, to find what was changed in the stores by hand. Each round leaves a checkpoint, so
one that is killed goes on from there. An order that isn't clean comes again in each round, until it is.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, Literal, NamedTuple

from audit.auditor import Auditor, Progress, folder_of, lanes_of, scope_of, topics_of
from audit.checkpoint import Checkpoint, CheckpointUnusable
from audit.findings import CHECKS, Finding
from audit.log import LogUnavailable
from audit.round import Follow, Servers
from audit.scope import Target
from audit.stores import StoreUnavailable
from errors import OrdersError

MOST_BROKEN: Final = 1_000
"""Differences with which nothing new is read: they are to be mended first."""
_MOST_KEPT: Final = 10_000
"""Findings of one round."""
_MOST_LOOKS: Final = 50_000
"""Orders that one round looks at."""
_RETRY: Final = 2.0
"""Seconds between two attempts to reach servers that are away."""


class CannotFollow(OrdersError):
    """The audit can't leave checkpoints, without which it can't follow. The message says why."""

    remedy = "audit in one go: orders audit --full"


class Told(NamedTuple):
    """A finding that is new, or gone again."""

    what: Literal["broken", "mended"]
    finding: Finding


class Follower:
    """Follows until it is asked to stop. Used once. `at`: the time up to which everything that was committed
    is judged, in seconds since 1970; 0: nothing is yet. `positions`: input partition ("topic/number") ->
    offset up to which it is judged.
    """

    def __init__(
        self,
        target: Target,
        *,
        interval: float,
        rate: float,
        tell: Callable[[Told], None],
        say: Callable[[str], None],
        after_round: Callable[[Follower], None] = lambda follower: None,
        progress: Progress | None = None,
        full: bool = False,
    ) -> None:
        """`interval`: seconds from the beginning of a round to that of the next. `rate`: how many orders of
        which no record came are looked at in a second. `say` takes what a person should know, a line. `full`:
        begin with an audit of everything.
        """
        self._target = target
        self._interval = interval
        self._rate = rate
        self._tell = tell
        self._say = say
        self._after_round = after_round
        self._progress = progress
        self._full = full
        self._active: dict[tuple[str, str, str], Finding] = {}
        self._away = False
        self._began = 0.0
        self._swept = 0.0
        self.at = 0.0
        self.positions: dict[str, int] = {}
        self.seconds_of_all = 0.0
        """How long it took to look at all orders once; 0: not done yet."""

    @property
    def broken(self) -> Counter[str]:
        """How much is broken, by check."""
        counts = Counter(dict.fromkeys(CHECKS, 0))
        counts.update(check for check, *_ in self._active)
        return counts

    async def run(self, stop: asyncio.Event) -> bool:
        """Follow until `stop` is set. Returns whether nothing is broken then.

        Raises LogUnavailable and StoreUnavailable if servers aren't there at first (later they are waited
        for), CannotFollow, and what Auditor.run raises.
        """
        running, asked = asyncio.ensure_future(self._run()), asyncio.ensure_future(stop.wait())
        try:
            await asyncio.wait({running, asked}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            asked.cancel()
            while not running.done():
                running.cancel()  # again: asyncio.wait_for forgets one that comes with its answer
                await asyncio.wait({running}, timeout=1)
        if not running.cancelled():
            running.result()
        return not self._active

    async def _run(self) -> None:
        full = self._full
        while True:
            try:
                if full:
                    await self._audit()
                    full = False
                async with AsyncExitStack() as stack:
                    follow = await self._open(stack)
                    while True:
                        await self._round(follow)
            except CheckpointUnusable as error:
                self._say(f"{error.message}: everything is audited first")
                full = True
            except (LogUnavailable, StoreUnavailable) as error:
                if not self.at:
                    raise
                if not self._away:
                    self._say(f"{error.message}: waiting for it")
                self._away = True
                await asyncio.sleep(_RETRY)

    async def _audit(self) -> None:
        """Audit everything, and leave a checkpoint."""
        findings: list[Finding] = []
        began = time.time()
        auditor = Auditor(
            self._target,
            most_findings=_MOST_KEPT,
            progress=self._progress,
            on_finding=_collector(findings),
            full=True,
        )
        report = await auditor.run()
        self._take(findings, auditor)
        if not auditor.left:
            raise CannotFollow(report.notices[-1] if report.notices else "no checkpoint could be left")
        self._finish(auditor, began)

    async def _open(self, stack: AsyncExitStack) -> Follow:
        """Connect, and take the checkpoint. Raises CheckpointUnusable also where there is none."""
        target = self._target
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="orders-audit-")))
        servers = await Servers.open(target, folder, stack)
        counts, cluster = await servers.log.partitions(topics_of(target)), await servers.log.cluster()
        if not lanes_of(counts):
            raise LogUnavailable("Kafka has none of the input topics", "run orders init")
        place = folder_of(target, cluster)
        topic_ids = await servers.log.topic_ids(counts)
        checkpoint = Checkpoint(place, scope_of(target, cluster, counts, topic_ids))
        try:
            checkpoint.prepare()
        except BlockingIOError:
            raise CannotFollow(
                f"another audit is going on in {place}", "let it end first, or end it"
            ) from None
        except OSError as error:
            raise CannotFollow(
                f"{place}: {error.strerror}", "set ORDERS_DATA to a folder that can be written"
            ) from error
        stack.callback(checkpoint.close)
        if not checkpoint.load(lanes_of(counts)):
            raise CheckpointUnusable("there is no checkpoint yet")
        servers.checkpoint = checkpoint
        self._began = self._swept = time.monotonic()
        return Follow(servers, target.cache_stall)

    async def _round(self, follow: Follow) -> None:
        """One round, and the pause after it."""
        began, at = time.monotonic(), time.time()
        findings: list[Finding] = []
        follow.advance = len(self._active) < MOST_BROKEN
        follow.count = max(1, min(_MOST_LOOKS, int(self._rate * max(self._interval, began - self._began))))
        swept = follow.swept
        auditor = Auditor(
            self._target,
            most_findings=_MOST_KEPT,
            on_finding=_collector(findings),
            processes=1,
            follow=follow,
            progress=self._progress,
        )
        report = await auditor.run()
        if self._away:
            self._say("the servers are back")
            self._away = False
        self._take(findings, auditor)
        if not auditor.left:
            raise CannotFollow(report.notices[-1] if report.notices else "no checkpoint could be left")
        follow.servers.index.next_round()
        if follow.swept > swept:
            if not self.seconds_of_all:
                self._say(f"every order was looked at within {time.monotonic() - self._swept:.0f} s")
            self.seconds_of_all, self._swept = time.monotonic() - self._swept, time.monotonic()
        self._began = began
        self._finish(auditor, at if follow.advance else self.at or at)
        took = time.monotonic() - began
        await asyncio.sleep(max(self._interval - took, min(took, self._interval)))

    def _take(self, findings: Sequence[Finding], auditor: Auditor) -> None:
        """Tell what is new and what is gone."""
        now = {(each.check, each.order_id, each.where): each for each in findings}
        for place, finding in now.items():
            if place not in self._active:
                self._tell(Told("broken", finding))
        for place, finding in self._active.items():
            if place in now:
                continue
            if finding.order_id in auditor.inconclusive:
                now[place] = finding
            else:
                self._tell(Told("mended", finding))
        if len(now) >= MOST_BROKEN > len(self._active):
            self._say(f"{len(now):,} differences: nothing new is read until some are mended")
        self._active = now

    def _finish(self, auditor: Auditor, at: float) -> None:
        self.at, self.positions = at, auditor.positions
        self._after_round(self)


def _collector(findings: list[Finding]) -> Callable[[Finding], None]:
    def take(finding: Finding) -> None:
        if len(findings) < _MOST_KEPT:
            findings.append(finding)

    return take
