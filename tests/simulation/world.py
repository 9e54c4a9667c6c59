"""One simulated history: servers, workers, what upstream sends, and what goes wrong, all by a seed.

A world lives through two parts. In the first, events arrive and the plan's disasters happen. Then everything
heals (what is on its way still arrives, who was stopped still wakes), healthy workers drain the log, and
tests.simulation.verify looks at what is left.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID

from aiokafka.structs import TopicPartition

from contracts.topics import CLOCK, CREATED, DECISIONS, DERIVED, DLQ, REKEYED
from settings import Settings
from streams.cache import CHECK_INTERVAL
from streams.folder import HELD_BYTES
from streams.retraction import NOTICE_TOPICS
from streams.transport.delivery import GaveUp
from tables import codec
from tables.codec import version_of
from tests.simulation.accounts import Accounts
from tests.simulation.clients import BROKER, Leaving
from tests.simulation.histories import Arrival, history, topics_of
from tests.simulation.kafka import Broker, Group, Record, Sent
from tests.simulation.loop import Deadlock, Endless, Process, VirtualLoop
from tests.simulation.network import Faults, Network, quiet
from tests.simulation.stores import POSTGRES, REDIS, Files, Keys, Tables
from tests.simulation.worker import Worker

SETTINGS = Settings.model_construct(
    **{name: each.default for name, each in Settings.model_fields.items()}
    | {"data": Path("unused"), "redis_timeout": 0.5, "history_age": 1e9}
)
START = 1_777_593_600.0
"""The machines' clocks at the beginning, seconds since 1970: after all that these histories tell, as a
live_from is.
"""
SESSION = SETTINGS.session_timeout
DRAINED = 400.0
"""Seconds after which a world that has healed must be at rest: far above every timeout in it."""
PATIENT = 60.0
"""Seconds of retries that nothing in a plan calls for: a worker that gives up
after more has hung by itself.
"""
SOON = 60_000
"""Milliseconds: a world rests when nothing is due within them.
Far above every deadline, so all have passed.
"""
LOOK = 0.5
"""Seconds between two looks whether it is."""

ANSWERS = ("payment", "stock", "release", "label", "refund")
"""What is waited for: all but the first are asked for again."""

ENDS = ("ship_within", "ship_cancel_after", "deliver_within", "return_within", "refund_retry_after")
"""Settings of what else is waited for."""

CHANCES: Mapping[str, Mapping[str, float]] = {
    "calm": {},
    "losses": {"before": 0.06, "after": 0.06, "slow": 0.06, "refused": 0.04},
    "deaths": {"crash_out": 0.03, "crash_wire": 0.03, "crash_done": 0.06},
    "zombies": {"stop_wire": 0.04, "late": 0.06, "crash_wire": 0.03},
    "all": {
        "before": 0.03,
        "after": 0.03,
        "refused": 0.02,
        "slow": 0.03,
        "late": 0.03,
        "crash_out": 0.02,
        "crash_wire": 0.02,
        "crash_done": 0.04,
        "stop_wire": 0.03,
    },
}
"""Moods of a history -> chance of each fault of a call."""


ACTIONS: Mapping[str, tuple[str, ...]] = {
    "calm": ("rejoin", "compact", "clock", "term"),
    "losses": (
        "rejoin",
        "compact",
        "clock",
        "kafka down",
        "postgres down",
        "redis down",
        "redis flush",
        "redis keep",
        "redis older",
    ),
    "deaths": ("kill", "kill", "term", "compact", "compact", "rejoin", "keep"),
    "zombies": ("stop", "stop", "stop long", "kill", "compact", "rejoin"),
    "all": (
        *("kill", "kill", "stop", "stop long", "term", "rejoin", "compact", "keep", "clock"),
        *("kafka down", "postgres down", "redis down", "redis flush", "redis keep", "redis older"),
    ),
}
"""Moods -> what may be done to the world at some moment."""


def _deadlines(rng: Random) -> dict[str, Any]:
    """Deadlines of seconds, some of them off; in some histories all are: then a world rests sooner. In some
    none is: then every order ends, or somebody is told.
    """
    kind = rng.random()
    choices = (0.0,) if kind < 0.3 else (0.0, 0.5, 2.0, 5.0) if kind < 0.7 else (0.5, 2.0, 5.0)
    policy: dict[str, Any] = {f"{name}_deadline": rng.choice(choices) for name in ANSWERS}
    policy |= {f"{name}_asks": rng.choice((1, 2, 3)) for name in ANSWERS[1:]}
    policy |= {name: rng.choice(choices) for name in ENDS}
    return policy | {"refund_attempts": rng.choice((1, 2, 3))}


@dataclass(slots=True)
class Violation:
    """Something that must never happen, seen while it happened."""

    at: float
    what: str


@dataclass(slots=True)
class Plan:
    """What a seed means, before it begins."""

    mood: str
    partitions: int
    workers: int
    arrivals: list[Arrival]
    actions: list[tuple[float, str]] = field(default_factory=list)


class World:
    """See the module. Made and run once."""

    def __init__(self, seed: int, *, tracing: bool = False) -> None:
        self.seed = seed
        self.rng = rng = Random(seed)
        self.loop = VirtualLoop()  # type: ignore[abstract]
        self.lines: list[str] = []
        self.trace: Callable[..., None] = self._trace if tracing else quiet
        self.plan = self._make_plan()
        plan = self.plan
        faults = Faults(CHANCES[plan.mood], rng.randint(1, 6))
        self.network = Network(
            rng,
            faults,
            self,
            usual=rng.choice((0.002, 0.01, 0.05)),
            late=rng.choice((1.0, 2 * SESSION, 4 * SESSION)),
        )
        self.network.trace = self.trace
        self.settings = SETTINGS.model_copy(
            update={
                "partitions": plan.partitions,
                "batch_records": rng.choice((1, 2, 4, 8, 2000)),
                "retry_limit": rng.choice((20.0, 300.0)),
                **_deadlines(Random(f"deadlines {seed}")),
            }
        )
        waits = (*(f"{name}_deadline" for name in ANSWERS), *ENDS)
        self.patient = any(getattr(self.settings, name) for name in waits)
        """Something is waited for."""
        self.batch_limit = rng.choice((1, 3, 1 << 30))
        self.fetch_limit = rng.choice((1, 3, 500))
        self.held_bytes = rng.choice((2_000, HELD_BYTES, HELD_BYTES))
        self.lost_lists = 0.0 if plan.mood == "calm" else rng.choice((0.0, 0.0, 0.3))
        self.lane_topics = (*topics_of(plan.arrivals), DECISIONS, REKEYED)
        self.broker = Broker()
        self.broker.create(
            (*self.lane_topics, *DERIVED, DLQ, CLOCK, self.settings.changelog_topic), plan.partitions
        )
        self.group = Group(
            self._assign, SESSION, self.settings.drain_timeout + 20, self._later, self.loop.time
        )
        self.group.on_commit = self._committing
        self.group.on_generation = self._new_generation
        self.tables = Tables()
        self.keys = Keys()
        self.disks = [Files() for _ in range(plan.workers)]
        self.workers: list[Worker] = []
        self.running: dict[int, Worker] = {}
        self.accounts = Accounts(self.settings.changelog_topic, plan.partitions)
        self.violations: list[Violation] = []
        self.late: list[tuple[TopicPartition, Sequence[Sent]]] = []
        """What a worker had sent before a successor opened, and landed after that."""
        self.told_late: set[str] = set()
        """Orders of which a notice landed late: it may be the last one."""
        self.hidden: set[str] = set()
        """Orders of which a state landed late that may hide what the successor wrote
        (docs/delivery.md, "Not promised").
        """
        self.deaths = 0
        self.generations: list[tuple[float, int]] = []
        self.openings: dict[int, list[tuple[float, int]]] = {}
        """Partition -> (when, generation) of the lanes that opened."""
        self.recoveries: dict[int, list[tuple[float, int]]] = {}
        """The same of the changelog's ends that were read before."""
        self._clock_jump = 0.0
        self.clock_went_back = False
        self._pending = 0
        self._over = False
        self._redis_older_at = -1e9

    # -- the plan --------------------------------------------------------------------------------------------

    def _make_plan(self) -> Plan:
        rng = self.rng
        mood = rng.choice(("calm", "losses", "deaths", "deaths", "zombies", "all", "all"))
        partitions = rng.choice((1, 1, 2, 3))
        workers = rng.choice((1, 2, 2, 3)) if partitions > 1 else rng.choice((1, 2))
        plan = Plan(mood, partitions, workers, history(self.seed, rng, partitions))
        span = plan.arrivals[-1].at + 1.0
        choice = ACTIONS[mood]
        for _ in range(rng.choice((0, 1, 2, 3))):
            plan.actions.append((rng.random() * (span + 2.0), rng.choice(choice)))
        plan.actions.sort()
        return plan

    def _assign(self, members: Sequence[str]) -> dict[str, Iterable[TopicPartition]]:
        """All topics of a partition number to one member, as Faust's assignor does it;
        by turns in another order.
        """
        turn = self.group.generation % max(1, len(members))
        order = [*members[turn:], *members[:turn]]
        topics = (*self.lane_topics, self.settings.changelog_topic)
        return {
            member: [
                TopicPartition(topic, number)
                for number in range(place, self.plan.partitions, len(order))
                for topic in topics
            ]
            for place, member in enumerate(order)
        }

    # -- running ---------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Live through it. Raises AssertionError if the world doesn't come to rest; `violations` tells
        what was seen on the way.
        """
        plan = self.plan
        self.trace(
            None,
            f"seed {self.seed}: {plan.mood}, {plan.partitions} partitions, {plan.workers} workers,"
            f" {len(plan.arrivals)} records",
        )
        early = self.rng.random() < 0.3  # the log is there before the workers
        begin = 2.0 if early else 0.0
        for number in range(plan.workers):
            self._planned(begin + self.rng.random() * 0.5, self.start, number)
        for arrival in plan.arrivals:
            self._planned(arrival.at, self.arrive, arrival)
        for at, action in plan.actions:
            self._planned(begin + at, self._act, action)
        healed = begin + max(plan.arrivals[-1].at, plan.actions[-1][0] if plan.actions else 0.0) + 1.5
        if self.patient:
            # Most deadlines pass when everything has arrived: then things go wrong as well.
            self._planned(begin + plan.arrivals[-1].at, self._more_faults)
            healed += 6.0
        self._planned(healed, self._heal)
        deadline = healed + DRAINED
        try:
            if not self.loop.run(lambda: self._over, deadline):
                raise AssertionError(f"not at rest {DRAINED:.0f} s after everything healed: {self._unrest()}")
        except (Deadlock, Endless) as error:
            raise AssertionError(f"{error}: {self._unrest()}") from error

    def close(self) -> None:
        """Give back what the event loop holds."""
        self.loop.end()

    def _later(self, delay: float, callback: Callable[..., object], *args: Any) -> None:
        self.loop.call_later(delay, callback, *args, context=self.network.world)

    def _planned(self, delay: float, callback: Callable[..., object], *args: Any) -> None:
        """Something that must have happened before the world may rest."""
        self._pending += 1
        self._later(delay, self._do_planned, callback, args)

    def _do_planned(self, callback: Callable[..., object], args: tuple[Any, ...]) -> None:
        self._pending -= 1
        callback(*args)

    def arrive(self, arrival: Arrival) -> None:
        """Upstream appends a record."""
        tp = TopicPartition(arrival.topic, arrival.partition)
        offset = self.broker.logs[tp].append(
            [Sent(arrival.key, arrival.value, arrival.headers)], self.milliseconds()
        )
        self.accounts.arrived(tp, offset, arrival)
        if self.trace is not quiet:
            self.trace(
                None,
                f"{tp.topic}/{tp.partition}@{offset} arrives, key {arrival.key!r}:"
                f" {self.accounts.line_of(arrival)}",
            )

    def milliseconds(self) -> int:
        """The brokers' time."""
        return int(self.wall_clock() * 1000)

    def wall_clock(self) -> float:
        """See Servers."""
        return START + self.loop.now + self._clock_jump

    # -- disasters -------------------------------------------------------------------------------------------

    def start(self, number: int) -> None:
        """Start a worker on a disk, unless one runs there."""
        if number in self.running:
            return
        worker = Worker(f"w{number}", len(self.workers), self, self.disks[number])
        self.workers.append(worker)
        self.running[number] = worker
        self.trace(worker.process, "starts")
        worker.start()

    def _act(self, action: str) -> None:
        rng = self.rng
        alive = [worker for worker in self.running.values() if not worker.process.stopped]
        self.trace(None, f"-- {action}")
        match action:
            case "compact":
                for number in range(self.plan.partitions):
                    log = self.broker.logs[TopicPartition(self.settings.changelog_topic, number)]
                    log.compact()
                    # Of an order whose older state landed last, the newer one is gone now.
                    self._hide(
                        record for record in log.records if not _not_older(record, self.accounts.states)
                    )
            case "clock":
                jump = rng.choice((-86_400.0, -3.0, 3.0, 86_400.0))
                self._clock_jump += jump
                self.clock_went_back |= jump < 0
            case "kafka down" | "postgres down" | "redis down":
                server = {"kafka down": BROKER, "postgres down": POSTGRES, "redis down": REDIS}[action]
                self.network.down.add(server)
                self._planned(rng.choice((0.2, 2.0, 9.0)), self._up, server)
            case "redis flush":
                self.keys.flush()
            case "redis keep":
                self.keys.keep()
            case "redis older":
                self.keys.lose()
                self._redis_older_at = self.loop.now
            case "keep":
                rng.choice(self.disks).keep()
            case _ if not alive:
                return
            case "kill":
                self.kill(rng.choice(alive).process, "SIGKILL")
            case "stop":
                self.stop(rng.choice(alive).process, "SIGSTOP")
            case "stop long":
                self.stop(rng.choice(alive).process, "SIGSTOP", 2.5 * SESSION)
            case "term":
                rng.choice(alive).stop()
            case "rejoin":
                rng.choice(alive).rejoin()

    def _more_faults(self) -> None:
        faults = self.network.faults
        faults.left = max(faults.left, self.rng.randint(1, 4))

    def _up(self, server: str) -> None:
        self.network.down.discard(server)
        self.trace(None, f"-- {server} is back")

    def _number(self, process: Process) -> int | None:
        return next((number for number, worker in self.running.items() if worker.process is process), None)

    def kill(self, process: Process, why: str) -> None:
        """See Nemesis. Somebody starts it again, on the disk that it left, an older one or none."""
        if not process.alive:
            return
        self.trace(process, f"dies: {why}")
        process.alive = False
        process.stopped = False
        process.held = []
        self.deaths += 1
        self._gone(process)

    def _gone(self, process: Process) -> None:
        number = self._number(process)
        if number is None:
            return
        worker = self.running.pop(number)
        worker.forget()
        disk = self.disks[number]
        dice = self.rng.random()
        if dice < 0.2:
            self.trace(process, "its disk comes back empty")
            disk.delete()
        elif dice < 0.35:
            self.trace(process, "its disk comes back as it was a while ago")
            disk.lose()
        self._planned(self.rng.choice((0.1, 1.0, SESSION + 2.0)), self.start, number)

    def stop(self, process: Process, why: str, seconds: float | None = None) -> None:
        """See Nemesis: SIGSTOP, and SIGCONT a while later."""
        if process.stopped or not process.alive:
            return
        lasting = seconds or self.rng.choice((0.3, 0.9 * SESSION, 1.1 * SESSION, 1.5 * SESSION, 3 * SESSION))
        self.trace(process, f"stands still for {lasting:.1f} s: {why}")
        process.stopped = True
        self._planned(lasting, self._wake, process)

    def _wake(self, process: Process) -> None:
        if process.alive and process.stopped:
            self.trace(process, "wakes")
            self.loop.wake(process)

    # -- what the servers and workers tell -------------------------------------------------------------------

    def recovering(self, partition: int, generation: int) -> None:
        """See Servers."""
        self.recoveries.setdefault(partition, []).append((self.loop.now, generation))

    def opened(self, worker: Worker) -> None:
        """See Servers."""
        assert worker.app is not None
        for lane in worker.app.consumer.lanes.values():
            generation = lane.claim.generation
            self.openings.setdefault(lane.partition, []).append((self.loop.now, generation))
        self.trace(
            worker.process,
            f"opens lanes {', '.join(lane.name for lane in worker.app.consumer.lanes.values())}",
        )

    def landed(
        self, worker: Worker, leaving: Leaving, tp: TopicPartition, offset: int, records: Sequence[Sent]
    ) -> None:
        """See Servers."""
        if self.trace is not quiet:
            self.trace(
                worker.process,
                f"{tp.topic}/{tp.partition}@{offset} has {len(records)} more",
                *self.accounts.read(tp, records),
            )
        known = {
            record.key: self.accounts.states.get(record.key) for record in records if record.key is not None
        }
        self.accounts.written(tp, offset, records)
        began, opened = (
            min(
                (at for at, generation in of.get(tp.partition, ()) if generation > leaving.stamp),
                default=None,
            )
            for of in (self.recoveries, self.openings)
        )
        if began is None or tp.topic in (REKEYED, CREATED):
            return
        if opened is not None and leaving.at > opened:
            self.violate(
                f"{worker.process.name} wrote to {tp.topic}/{tp.partition} at {leaving.at:.3f}, its successor"
                f" opened at {opened:.3f}"
            )
        else:
            self.trace(worker.process, "   (late: a successor has opened, or knows up to where it reads)")
            self.late.append((tp, records))
            if tp.topic in NOTICE_TOPICS:
                self.told_late.update(record.key.decode() for record in records if record.key is not None)
            if tp.topic == self.settings.changelog_topic:
                self._hide(record for record in records if _not_older(record, known))

    def ended(self, worker: Worker, failure: BaseException | None) -> None:
        """See Servers."""
        self.trace(worker.process, "ends" if failure is None else f"ends: {failure!r}")
        gave_up = isinstance(failure, GaveUp) and self.settings.retry_limit > PATIENT
        if gave_up or not worker.expected():
            self.violate(f"{worker.process.name} crashed: {_told(failure)}")
        worker.process.alive = False
        self._gone(worker.process)

    def _hide(self, records: Iterable[Sent | Record]) -> None:
        self.hidden.update(str(UUID(bytes=record.key)) for record in records if record.key is not None)

    def violate(self, what: str) -> None:
        """Something happened that must not."""
        self.trace(None, f"!! {what}")
        self.violations.append(Violation(self.loop.now, what))

    def _committing(self, member: str, offsets: Mapping[TopicPartition, int]) -> None:
        owned = self.group.assignment.get(member, frozenset())
        for tp, offset in offsets.items():
            before = self.group.offsets.get(tp, 0)
            self.trace(None, f"{tp.topic}/{tp.partition}: {member} commits {offset}")
            if offset < before:
                self.violate(f"{tp.topic}/{tp.partition}: {offset} was committed after {before}")
            if tp not in owned:
                self.violate(f"{tp.topic}/{tp.partition}: committed by a member that doesn't own it")
            for missing in self.accounts.unaccounted(
                self.broker.logs[tp].records, before, offset, self.hidden
            ):
                self.violate(f"{tp.topic}/{tp.partition}: {offset} was committed, but {missing}")

    def _new_generation(self) -> None:
        self.trace(None, f"-- generation {self.group.generation}")

    # -- the end ---------------------------------------------------------------------------------------------

    def _heal(self) -> None:
        self.trace(None, "-- everything heals")
        self.network.faults.left = 0
        self.lost_lists = 0.0
        if not self.running:
            self.start(0)
        self._later(LOOK, self._look)

    def _look(self) -> None:
        if self._at_rest():
            self._over = True
        else:
            self._later(LOOK, self._look)

    def _at_rest(self) -> bool:
        if self.loop.now < self._redis_older_at + 2 * CHECK_INTERVAL:
            return False  # a lane without work looks only now and then
        if self._pending or self.network.under_way or self.network.down or self.group.preparing:
            return False
        if not self._drained() or self._due():
            return False
        served: list[int] = []
        for worker in self.running.values():
            app = worker.app
            if app is None or worker.process.stopped or app.pipeline.cache.behind:
                return False
            # Who was left out of the group must have noticed.
            if app.client._coordinator.generation != self.group.generation:
                return False
            for lane in app.consumer.lanes.values():
                served.append(lane.partition)
                if lane.busy or lane.intake.pending_records:
                    return False
        return sorted(served) == list(range(self.plan.partitions))

    def _drained(self) -> bool:
        offsets = self.group.offsets
        for topic in self.lane_topics:
            for number in range(self.plan.partitions):
                tp = TopicPartition(topic, number)
                if self.broker.logs[tp].end != offsets.get(tp, 0):
                    return False
        return True

    def _due(self) -> list[str]:
        """Orders of which something is due, or will be soon."""
        soon = self.milliseconds() + SOON
        states = self.accounts.states.items()
        return [
            name
            for key, raw in states
            if 0 < codec.due_of(raw) <= soon and (name := str(UUID(bytes=key))) not in self.hidden
        ]

    def _unrest(self) -> str:
        lags = [
            f"{topic}/{number} at {self.group.offsets.get(tp, 0)} of {self.broker.logs[tp].end}"
            for topic in self.lane_topics
            for number in range(self.plan.partitions)
            if self.broker.logs[tp := TopicPartition(topic, number)].end != self.group.offsets.get(tp, 0)
        ]
        pending = (
            f"{self._pending} planned, {self.network.under_way} under way, {sorted(self.network.down)} down"
        )
        lags += [f"order {order_id} due" for order_id in self._due()]
        return (
            f"{', '.join(lags) or 'no lag'}; {pending};"
            f" {sorted(worker.process.name for worker in self.running.values())} run"
        )

    def _trace(self, process: Process | None, *what: object) -> None:
        for each in what:
            self.lines.append(f"{self.loop.now:9.3f}  {'' if process is None else process.name:6} {each}")


def _not_older(record: Sent | Record, known: Mapping[Any, bytes | None]) -> bool:
    """Whether a state is of no lower version than the known one of its order."""
    old = known.get(record.key)
    return old is None or record.value is None or version_of(record.value) >= version_of(old)


def _told(failure: BaseException | None) -> str:
    """An exception and where it was raised."""
    if failure is None:
        return "nothing"
    frames = traceback.extract_tb(failure.__traceback__)[-4:]
    return (
        f"{failure!r}"
        f" ({', '.join(f'{Path(frame.filename).name}:{frame.lineno} {frame.name}' for frame in frames)})"
    )
