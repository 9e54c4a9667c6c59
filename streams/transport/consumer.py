"""The consumer: brings lists from the reader to the trackers, opens and closes lanes,
commits what is finished.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

from aiokafka.errors import ConsumerStoppedError, InconsistentGroupProtocolError
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from mode import Service

from streams.transport.cluster import mismatch
from streams.transport.consumer_app import ConsumerApp
from streams.transport.consumer_thread import ConsumerThread, Fetched, Start, beyond_end
from streams.transport.delivery import GaveUp, describe
from streams.transport.errors import (
    FailStop,
    GroupRefused,
    GroupShut,
    OffsetBeyondEnd,
    PartitionMismatch,
    Stalled,
)
from streams.transport.lane import Claim, Lane, LaneContext, LaneLook, LaneState
from streams.transport.offset_tracker import Offer, OffsetTracker
from streams.transport.ordinary import OrdinaryTopics
from streams.transport.records import place
from wire.denied import acl

log = logging.getLogger(__name__)

FETCH_TIMEOUT = 1.0
COMMIT_TIMEOUT = 5.0
CANCEL_TIMEOUT = 5.0
MEMBERSHIP = "all"
"""Name under which the log says that nothing can be read."""
WATCH_INTERVAL = 1.0


class Consumer(driver.Consumer):
    """Faust's consumer with our way for the records.
    Lives in the main thread; see ConsumerThread for the other half.

    An epoch is the time between an assignment and the next revocation.
    All lanes of an epoch have the same claim (assignment and generation).
    """

    _thread: ConsumerThread

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.lanes: dict[tuple[int, int], Lane] = {}
        self.trackers: dict[TP, tuple[Lane, OffsetTracker]] = {}
        self.rewinds = 0
        self.cancelled = 0
        self.finished_batches = 0
        self.finished_records = 0
        self._opening: dict[tuple[int, int], Lane] = {}
        """Lanes of this epoch whose state isn't recovered yet."""
        self._cursors: dict[TP, int] = {}
        self._epoch = 0
        self._assigned = False
        """False from a revocation to the next assignment: what is opened then nobody would close."""
        super().__init__(*args, **kwargs)
        self._more = asyncio.Event()
        self._committing = asyncio.Lock()
        self._closing = asyncio.Lock()
        self._unserved_since: float | None = None
        self._ordinary = OrdinaryTopics(self, self._thread, self.note_rewind)

    @property
    def _app(self) -> ConsumerApp:
        return cast(ConsumerApp, self.app)

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(
            self, loop=self.loop, thread_loop=self._app.new_event_loop(), beacon=self.beacon
        )

    def verify_event_path(self, now: float, tp: TP) -> None:
        """Faust's livelock detector reads counters of streams; there are none. `_watch` does its work."""

    # -- delivery --------------------------------------------------------------------------------------------

    def note_rewind(self, tp: TP, position: int, expected: int) -> None:
        """A list was lost between reader and tracker, and is read again."""
        self.rewinds += 1
        log.warning(
            "read again: %(topic)s/%(partition)d stands at %(position)d, expected %(offset)d",
            {"topic": tp.topic, "partition": tp.partition, "position": position, "offset": expected},
        )

    def _wanted(self) -> dict[TP, int]:
        wanted = {
            TP(tracker.topic, tracker.partition): tracker.next
            for lane in self.lanes.values()
            for tracker in lane.wanted()
        }
        wanted.update(self._cursors)
        return wanted

    def _fetch_more(self) -> None:
        """Something is wanted that the waiting fetch doesn't know of."""
        self._more.set()
        self._thread.kick()

    def held_changed(self) -> None:
        """Call when other partitions are held back than before."""
        for lane in self.lanes.values():
            lane.look_again()
        if self.lanes:  # others see it as they open
            self._fetch_more()

    def resume_flow(self) -> None:
        """Call when records may be delivered again."""
        super().resume_flow()
        self._fetch_more()

    async def _drain_messages(self, fetcher: Any) -> None:
        deliveries = [
            asyncio.ensure_future(self._drain_lanes(fetcher)),
            asyncio.ensure_future(self._ordinary.deliver(fetcher)),
        ]
        try:
            await asyncio.gather(*deliveries)
        except (ConsumerStoppedError, asyncio.CancelledError):
            if not self.app.should_stop:
                raise
        finally:
            for delivery in deliveries:
                delivery.cancel()

    async def _drain_lanes(self, fetcher: Any) -> None:
        limit = self._app.settings.batch_records
        while not (self._stopped.is_set() or fetcher._stopped.is_set()):
            wanted = self._wanted() if self.flow_active else {}
            if not wanted:
                self._more.clear()
                await self._more.wait()
                continue
            for fetched in await self._thread.in_thread(self._thread.fetch(wanted, FETCH_TIMEOUT, limit)):
                if fetched.tp in self.trackers:
                    await self._offer(fetched)
                elif fetched.tp in self._cursors:
                    await self._recover(fetched)

    async def _offer(self, fetched: Fetched) -> None:
        lane, tracker = self.trackers[fetched.tp]
        if lane.claim.assignment is not fetched.assignment:
            return  # read before a rebalance
        offer = tracker.offer(fetched.start, fetched.to, fetched.records)
        if offer is Offer.GAP:
            self.note_rewind(fetched.tp, fetched.start, tracker.next)
            await self._read_again(fetched, lane, tracker)
        elif offer is Offer.OVERLAP:
            await self._verify_bounds(fetched, lane, tracker)
        lane.wake()

    async def _read_again(self, fetched: Fetched, lane: Lane, tracker: OffsetTracker) -> None:
        await self._verify_bounds(fetched, lane, tracker)
        await self._thread.in_thread(self._thread.rewind(fetched.tp, tracker.next, fetched.assignment))

    async def _verify_bounds(self, fetched: Fetched, lane: Lane, tracker: OffsetTracker) -> None:
        """The reader stands where it should not: has the log itself changed?"""
        bounds = (await self._thread.in_thread(self._thread.bounds([fetched.tp])))[fetched.tp]
        if not lane.claim.current():
            return
        name = f"{tracker.topic}/{tracker.partition}"
        if bounds.high < tracker.done:
            raise OffsetBeyondEnd(beyond_end(name, tracker.done, bounds.high))
        if bounds.low > tracker.next:
            log.error(
                "records of %(topic)s/%(partition)s are lost: expected offset %(offset)d, the log now begins"
                " at %(begins)d. Going on there.",
                {**place(name), "offset": tracker.next, "begins": bounds.low},
            )
            tracker.skip(bounds.low)

    async def _recover(self, fetched: Fetched) -> None:
        expected = self._cursors[fetched.tp]
        if fetched.assignment is not self._thread.assignment_now():
            return
        if fetched.start > expected:
            self.note_rewind(fetched.tp, fetched.start, expected)
            await self._thread.in_thread(self._thread.rewind(fetched.tp, expected, fetched.assignment))
            return
        if fetched.to > expected:
            records = [record for record in fetched.records if record.offset >= expected]
            self._cursors[fetched.tp] = fetched.to
            self._app.recovery.apply(fetched.tp, records, fetched.to)
            await asyncio.sleep(0)

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Called by recovery: read changelogs from where their stores are.
        What was on its way from before is dropped.
        """
        for tp in partitions:
            self._cursors.pop(TP(*tp), None)
        epoch = self._epoch
        starts = {TP(*tp): self._app.recovery.position(TP(*tp)) for tp in partitions}
        await super().seek_wait(starts)
        if epoch == self._epoch:
            self._cursors.update(starts)
            self._fetch_more()

    # -- lanes -----------------------------------------------------------------------------------------------

    async def prepare_lanes(self) -> None:
        """Called before tables are recovered, once their partitions are known: make the lanes
        and start their producers.

        With transactions this shuts out whoever had the lanes before; only then are changelog and committed
        offsets as they will stay. Blocks until the brokers have done so. Raises FailStop, GaveUp.
        """
        thread, app = self._thread, self._app
        claimed = thread.claimed()
        if claimed is None or not self._assigned or app.should_stop:
            return
        assignment, generation = claimed
        if any(lane.claim.assignment is not assignment for lane in self._opening.values()):
            return  # an epoch that ends
        claim = Claim(assignment, generation, thread.current, thread.leased)
        context = LaneContext(
            app.delivery,
            app.limits,
            app.lane_producer,
            rested=self._fetch_more,
            ends=self._ends,
            stretches=app.stretches,
            held=app.held,
        )
        for topic, partition in sorted(assignment.tps):
            spec = app.specs_by_topic.get(topic)
            if spec is None:
                continue
            key = (app.specs.index(spec), partition)
            if key not in self._opening and key not in self.lanes:
                name = str(partition) if len(app.specs) == 1 else f"{spec.topics[0]}/{partition}"
                self._opening[key] = Lane(name, spec, partition, claim, context)
        await asyncio.gather(*(lane.prepare() for lane in self._opening.values()))

    async def perform_seek(self) -> None:
        """Called by Faust when the tables are recovered: open the trackers.
        From here on records are delivered.
        """
        await self._open_lanes()
        assignment = self._thread.assignment_now()
        if self._assigned and assignment is not None and assignment.active and not self.app.should_stop:
            self._ordinary.begin(
                [TP(*tp) for tp in assignment.tps if self._app.is_ordinary(tp.topic)], assignment
            )

    async def _open_lanes(self) -> None:
        epoch, thread = self._epoch, self._thread
        self._cursors.clear()
        assignment = thread.assignment_now()
        if not self._assigned or assignment is None or not assignment.active or self.app.should_stop:
            return
        specs = self._app.specs_by_topic
        tps = sorted(TP(*tp) for tp in assignment.tps if tp.topic in specs and TP(*tp) not in self.trackers)
        if not tps:
            return
        self._check_partitions()
        await self.prepare_lanes()  # done before, unless there are no tables
        opened = await thread.in_thread(thread.start_positions(tps, assignment))
        if opened is None or epoch != self._epoch:
            return
        generation, starts = opened
        lanes = self._opening.values()
        if lanes and all(lane.claim.current() and lane.claim.generation == generation for lane in lanes):
            self._open(starts)
            self._fetch_more()

    @property
    def standing(self) -> bool:
        """Whether the group has told which lanes are ours, which may be none, and all of these are open."""
        claimed = self._thread.claimed() if self._assigned else None
        if claimed is None:
            return False
        specs = self._app.specs_by_topic
        return all(TP(*tp) in self.trackers for tp in claimed[0].tps if tp.topic in specs)

    def look(self, now: float) -> list[LaneLook]:
        """How the open lanes do. `now`: by time.monotonic(). Never blocks."""
        return [lane.look(now, self._thread.end_of) for lane in self.lanes.values()]

    def standing_still(self, now: float, limit: float) -> list[LaneLook]:
        """Lanes whose batch hasn't got on for more than `limit` seconds though they wait for nothing.

        None while the brokers are away: that is not this worker's fault.
        """
        if not self._thread.leased():
            return []
        outages = self._app.delivery.outages
        return [
            look
            for look in self.look(now)
            if look.still is not None and look.still > limit and look.name not in outages
        ]

    def away(self) -> float:
        """Seconds since the coordinator last accepted a heartbeat, once the lease is over; otherwise 0.
        Before the first one 0, too.
        """
        unproven = self._thread.unproven()
        return 0.0 if self._thread.leased() or unproven == float("inf") else unproven

    def _open(self, starts: Mapping[TP, Start]) -> None:
        app = self._app
        order = {topic: number for number, topic in enumerate(app.specs_by_topic)}
        opening, self._opening = self._opening, {}
        self.lanes.update(opening)
        for tp in sorted(starts, key=lambda tp: (tp.partition, order[tp.topic])):
            lane = self.lanes[app.specs.index(app.specs_by_topic[tp.topic]), tp.partition]
            tracker = OffsetTracker(tp.topic, tp.partition, *starts[tp])
            lane.trackers.append(tracker)
            self.trackers[tp] = (lane, tracker)
        for lane in opening.values():
            tasks = lane.start()
            tasks.batches.add_done_callback(partial(self._lane_ended, lane))
            if tasks.beside is not None:
                tasks.beside.add_done_callback(self._beside_ended)
        log.info(
            "lanes %(lanes)s open, generation %(generation)d, at offsets %(offsets)s",
            {
                "lanes": ", ".join(lane.name for lane in opening.values()),
                "generation": next(iter(opening.values())).claim.generation,
                "offsets": ", ".join(
                    f"{tp.topic}/{tp.partition}: {start.offset}"
                    for tp, start in starts.items()
                    if start.offset
                ),
            },
        )

    async def _ends(self, tps: Sequence[TP]) -> dict[TP, int]:
        """Where logs end now. Raises KafkaError."""
        return {
            tp: bounds.high for tp, bounds in (await self._thread.in_thread(self._thread.bounds(tps))).items()
        }

    def _lane_ended(self, lane: Lane, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            if lane.state is not LaneState.CLOSED:
                self._crash(RuntimeError(f"lane {lane.name} was cancelled"))
        elif (exc := task.exception()) is not None:
            self._crash(exc)
        elif lane.producer.fenced and lane.state is not LaneState.CLOSED:
            log.warning(
                "lane %(lane)s: another worker has taken it over, or its transaction took too long; asking"
                " the group",
                {"lane": lane.name},
            )
            self._app.add_future(
                self._thread.in_thread(self._thread.rejoin(lane.claim.assignment, lane.claim.generation))
            )

    def _beside_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (exc := task.exception()) is not None:
            self._crash(exc)

    def _crash(self, exc: BaseException) -> None:
        self._app.add_future(self.app.crash(exc))

    async def close_lanes(self, why: str) -> None:
        """End the epoch: finish what is in the handlers' hands (bounded), commit, forget. Raises nothing."""
        self._assigned = False
        self._epoch += 1
        self._cursors.clear()
        async with self._closing:  # a rebalance and the worker's stop may come at once
            await self._close_lanes(why)
        self._ordinary.clear()

    async def _close_lanes(self, why: str) -> None:
        opening = list(self._opening.values())
        self._opening.clear()
        for lane in opening:
            lane.close()
        await asyncio.gather(*(lane.end() for lane in opening))
        lanes = list(self.lanes.values())
        if not lanes:
            return
        begun = time.monotonic()
        for lane in lanes:
            lane.close()
        tasks = [lane.tasks.batches for lane in lanes if lane.tasks is not None]
        unfinished: set[asyncio.Task[None]] = set()
        if tasks:  # none if the first one's state was found broken as it opened
            _, unfinished = await asyncio.wait(tasks, timeout=self._app.settings.drain_timeout)
        try:
            await asyncio.wait_for(self.force_commit(), COMMIT_TIMEOUT)
        except (Exception, asyncio.CancelledError) as exc:
            log.warning("the last commit did not work, some records will be read again: %r", exc)
        for lane in lanes:
            lane.revoke()
        for task in unfinished:
            task.cancel()
        self.cancelled += len(unfinished)
        await asyncio.gather(*(lane.end() for lane in lanes))
        if unfinished:
            _, deaf = await asyncio.wait(unfinished, timeout=CANCEL_TIMEOUT)
            log.error(
                "%d lanes did not finish in time and were cancelled (%d of them don't react)",
                len(unfinished),
                len(deaf),
            )
        self.finished_batches += sum(lane.progress.batches for lane in lanes)
        self.finished_records += sum(lane.progress.records for lane in lanes)
        self.lanes.clear()
        self.trackers.clear()
        log.info(
            "lanes closed (%(why)s) in %(seconds).2f s", {"why": why, "seconds": time.monotonic() - begun}
        )

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Close the lanes, and only then let Faust forget its offsets and close the stores."""
        await self.close_lanes("partitions revoked")
        await super().on_partitions_revoked(revoked)

    async def on_partitions_assigned(self, assigned: set[TP], generation_id: int = 0) -> None:
        """A new epoch. Recovery follows, then perform_seek."""
        self._assigned = True
        self._epoch += 1
        self._cursors.clear()
        await super().on_partitions_assigned(assigned, generation_id)

    # -- commits ---------------------------------------------------------------------------------------------

    async def committed(self, tps: Sequence[TP]) -> dict[TP, int | None]:
        """What the group has committed, once no transaction may still change it; None where nothing.
        Blocks. Raises KafkaError.
        """
        return await self._thread.in_thread(self._thread.committed(tps))

    async def wait_empty(self) -> None:
        """Nothing to wait for: lanes are closed before. Commit what is finished."""
        await self.force_commit()

    async def force_commit(self, topics: Any = None, start_new_transaction: bool = True) -> bool:
        """Commit what is finished. False if there was nothing, or it did not work."""
        committed = await self._commit_lanes()
        return (bool(self._ordinary) and await super().force_commit()) or committed

    async def _commit_offsets(self, offsets: Mapping[TP, int], start_new_transaction: bool = True) -> bool:
        """Called by Faust: commit what ordinary agents have acknowledged.
        Where Faust ends the worker, this tries again the next time.
        """
        await self.app.producer.flush()
        claimed = self._thread.claimed()
        committed = claimed is not None and await self._thread.in_thread(
            self._thread.commit_finished(*claimed, offsets, {}, {})
        )
        for tp, offset in offsets.items():
            if committed:
                self._committed_offset[tp] = offset
            else:
                self._acked[tp].append(offset - 1)
        return committed

    async def _commit_lanes(self) -> bool:
        """Commit `done` of every tracker that has moved, or has another note, and nothing else."""
        async with self._committing:
            moved = {
                tp: tracker
                for tp, (lane, tracker) in self.trackers.items()
                if tracker.uncommitted and not lane.commits
            }
            if not moved:
                return False
            claim = self.trackers[next(iter(moved))][0].claim
            offsets = {tp: tracker.done for tp, tracker in moved.items()}
            notes = {tp: tracker.note for tp, tracker in moved.items()}
            ends = {tp: self.trackers[tp][0].tracked_ends for tp in moved}
            committed = await self._thread.in_thread(
                self._thread.commit_finished(claim.assignment, claim.generation, offsets, notes, ends)
            )
            if committed:
                for tp, tracker in moved.items():
                    tracker.committed, tracker.noted = offsets[tp], notes[tp]
            return committed

    # -- fail-stop -------------------------------------------------------------------------------------------

    def _check_partitions(self) -> None:
        counts = self._thread.partition_counts(self._app.copartitioned)
        if len(set(counts.values())) > 1:
            raise PartitionMismatch(mismatch(counts))

    @Service.task
    async def _watch(self) -> None:
        """End the worker rather than let it hang or leave records out."""
        while not self.should_stop:
            await self.sleep(WATCH_INTERVAL)
            with contextlib.suppress(ConsumerStoppedError):
                try:
                    await self._check_membership()
                    self._check_partitions()
                    self._check_progress(time.monotonic())
                except (FailStop, GaveUp) as exc:
                    await self.app.crash(exc)
                    return

    async def _check_membership(self) -> None:
        # A worker that never got in reads nothing, so it would never be told.
        refusal = self._thread.refusal()
        if refusal is not None and acl(refusal) is not None:
            # An ACL that lacks is an outage, as for what lanes write: whoever adds it restarts nothing.
            self._app.delivery.failed(MEMBERSHIP, describe(refusal))
            await self._thread.in_thread(self._thread.join_again())
            return
        if refusal is None and self._thread.leased():
            self._app.delivery.recovered(MEMBERSHIP)
        if isinstance(refusal, InconsistentGroupProtocolError):
            raise GroupShut(f"group {self._app.settings.group} keeps workers out") from refusal
        if refusal is not None:
            raise GroupRefused(
                f"group {self._app.settings.group} doesn't let this worker in: {describe(refusal)}"
            ) from refusal

    def _check_progress(self, now: float) -> None:
        limit = self._app.settings.stall_timeout
        if not self._thread.leased():
            self._unserved_since = None
            return  # the broker is away: not this worker's fault
        for lane in self.lanes.values():
            fenced = now - lane.state_since if lane.state is LaneState.FENCED else 0.0
            if fenced > limit:
                raise Stalled(
                    f"lane {lane.name} was taken over {fenced:.0f} s ago, but the group has not said who"
                    " has it"
                )
        for look in self.standing_still(now, limit):
            raise Stalled(
                f"lane {look.name}: one batch has taken {look.still:.0f} s (the limit is {limit:.0f} s)"
            )
        assignment = self._thread.assignment_now()
        served = (
            bool(self.lanes)
            or assignment is None
            or not any(tp.topic in self._app.specs_by_topic for tp in assignment.tps)
        )
        if served:
            self._unserved_since = None
            return
        since = self._unserved_since = self._unserved_since or now
        where = ""
        if self.app.in_recovery:
            since = max(since, self._app.recovery.progress_at)
            where = f"; {self._app.recovery.standstill()}"
        if now - since > limit:
            raise Stalled(f"partitions are assigned, but no lane is open since {now - since:.0f} s{where}")
