"""The run: one stack, the same records for each peer, one peer after the other.

For each: the records are put into its own topics and drained (events/s, CPU), its rows compared with those
expected; then 500 events a second for the latency; then records again, and kill -9 of all its processes in
the middle of their drain, a start at once, and another comparison.
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import asyncpg
import psutil
from aiokafka.admin import NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError

from benchmarks import run as bench
from benchmarks.peers import environments, expected
from benchmarks.peers.catalogue import PEERS, Peer
from benchmarks.peers.clients import merge
from contracts import topics
from contracts.cloudevents import SourceEvent
from settings import Settings
from stack import Stack
from wire import clients
from workload.generator import workload
from workload.producer import send

POLL_SECONDS: Final = 0.05
"""Looking at a peer's output costs it nothing."""
KILL_POLL_SECONDS: Final = 0.2
KILL_AT: Final = 0.4
"""Share of the records that are handled when everything is killed."""
QUIET_SECONDS: Final = 4.0
LONG_QUIET_SECONDS: Final = 30.0
"""Nothing is handled for so long before rows are compared, and before those that were wrong are called wrong:
a process may still be reading back its state.
"""
MOST_SECONDS: Final = 120.0
SPREAD: Final = 5 / 6
"""Orders between two events of one order, as a share of all: a batch rarely has an order twice, as in
`orders bench`.
"""


@dataclass
class Plan:
    """What to measure: so many orders are drained, half as many in the drain that is killed; `rate` events a
    second are sent for `seconds`.
    """

    orders: int = 60_000
    rate: int = 500
    seconds: int = 20
    seed: int = 1
    peers: Sequence[Peer] = PEERS
    say: Callable[[str], None] = field(default=lambda message: None)

    def drained(self) -> Iterator[SourceEvent]:
        """Events of the first drain."""
        return workload(self.orders, self.seed, self._spread(self.orders))

    def paced(self) -> Iterator[SourceEvent]:
        """Events for the latency. An order's lie a second apart, so that the last is a batch of its own."""
        orders = int(self.rate * self.seconds / bench.EVENTS_PER_ORDER) + 1
        return workload(orders, self.seed + 1, max(1, int(self.rate / bench.EVENTS_PER_ORDER)))

    def killed(self) -> Iterator[SourceEvent]:
        """Events of the drain in which everything is killed."""
        return workload(self.orders // 2, self.seed + 2, self._spread(self.orders // 2))

    def _spread(self, orders: int) -> int:
        return max(1, int(orders * SPREAD))


def run(plan: Plan) -> dict[str, Any]:
    """Measure all, and return one JSON object: {"peers": [...], "conditions": {...}}. Blocks for minutes.

    A peer that can't be run has an entry that says why. Raises StackError, or CalledProcessError when our
    own commands fail.
    """
    pythons = {peer.name: _python(peer, plan.say) for peer in plan.peers}
    with tempfile.TemporaryDirectory(prefix="orders-peers-") as folder:
        stack = Stack.start(Path(folder) / "stack")
        try:
            asyncio.run(bench.track_commits(stack.env))
            stack.stop()
            stack = Stack.start(Path(folder) / "stack")
            bench.orders(stack.env, "init")
            run_ = _Run(plan, stack, Path(folder))
            entries = [run_.measure(peer, pythons[peer.name]) for peer in plan.peers]
        finally:
            stack.purge()
    conditions = {
        "workload": {"orders": plan.orders, "events": run_.events, "seed": plan.seed},
        "rate": plan.rate,
        "seconds": plan.seconds,
        "kafka_partitions": run_.settings.partitions,
        "load_average_at_the_end": round(os.getloadavg()[0], 2),
        **bench.machine(),
    }
    return {"peers": entries, "conditions": conditions}


def _python(peer: Peer, say: Callable[[str], None]) -> Path | environments.Unavailable:
    """Before anything is measured, since it takes time and the machine."""
    if not peer.module:
        return Path(sys.executable)
    try:
        return environments.python_of(peer.environment, say)
    except environments.Unavailable as error:
        return error


class PeerProcess:
    """One process of a peer, and the lines that it prints: a batch each, how many records and when."""

    def __init__(self, command: Sequence[str], env: dict[str, str], log: Path) -> None:
        self._log = log
        self._read = 0
        self._totals = {"records": 0.0, "finished": 0.0}
        with log.open("w") as out, log.with_suffix(".err").open("w") as err:
            self.process = psutil.Popen(command, env=env, stdout=out, stderr=err)

    def cpu_seconds(self) -> float:
        """Seconds of CPU since its start; 0 once it has ended."""
        try:
            times = self.process.cpu_times()
        except psutil.NoSuchProcess:
            return 0.0
        return float(times.user + times.system)

    def metrics(self) -> dict[str, float]:
        """Records handled, and when its last batch was finished. Raises BenchFailed if it has ended."""
        if self.process.poll() is not None:
            raise bench.BenchFailed(
                f"a peer ended with exit code {self.process.returncode}",
                "see the last lines of its log",
                log=self._log.with_suffix(".err").read_text()[-2000:],
            )
        return self.seen()

    def seen(self) -> dict[str, float]:
        """The same of a process that may have ended."""
        with self._log.open() as file:
            file.seek(self._read)
            text = file.read()
        whole = text[: text.rfind("\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            count, when = line.split()
            self._totals["records"] += int(count)
            self._totals["finished"] = float(when)
        return dict(self._totals) if self._totals["records"] else {}

    def stop(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(20)
            except psutil.TimeoutExpired:
                self.process.kill()
                self.process.wait(20)


Processes = list[PeerProcess] | list[bench.Worker]


class _Run:
    def __init__(self, plan: Plan, stack: Stack, folder: Path) -> None:
        self.plan = plan
        self.stack = stack
        self.folder = folder
        self.settings = Settings.model_validate(
            {name.removeprefix("ORDERS_").lower(): value for name, value in stack.env.items()}
        )
        self.postgres = self.settings.postgres.get_secret_value()
        self.events = 0
        self._starts = 0

    def measure(self, peer: Peer, python: Path | environments.Unavailable) -> dict[str, Any]:
        """One entry of the document. `python`: the interpreter of its environment, or why there is none."""
        entry: dict[str, Any] = {
            "name": peer.name,
            "leaves_out": peer.leaves_out,
            "processes": peer.processes,
        }
        try:
            if isinstance(python, environments.Unavailable):
                raise python
            if peer.module:
                entry["libraries"] = environments.versions(peer.environment)
                asyncio.run(self._prepare(peer))
            entry |= self._measure(peer, python)
        except (environments.Unavailable, bench.BenchFailed) as error:
            said = (error.log or self._said(peer)).splitlines()
            entry["failed"] = " ".join((f"{error}", *[line for line in said if "Error" in line][-1:]))
            self._say(peer, entry["failed"])
        asyncio.run(self._clear(peer))
        return entry

    def _said(self, peer: Peer) -> str:
        """The errors that its processes printed."""
        return "".join(path.read_text() for path in sorted(self.folder.glob(f"{peer.name}-*.err")))

    def _say(self, peer: Peer, message: str) -> None:
        self.plan.say(f"{peer.name}: {message}")

    def _measure(self, peer: Peer, python: Path) -> dict[str, Any]:
        plan = self.plan
        if peer.module and peer.grouped:
            self._form(peer, python)
        self._say(peer, f"putting in the events of {plan.orders:,} orders")
        self.events = total = self._send(peer, plan.drained())
        with self._processes(peer, python) as processes:
            poll = POLL_SECONDS if peer.module else bench.POLL_SECONDS
            drained = bench.drain(self.stack, processes, total, poll)
            self._say(peer, f"{drained['events_per_second']:,.0f} events/s; comparing its rows")
            rows = self._check(peer, processes, self._rows_drained)
            self._say(peer, f"{_faults(rows)}; {plan.rate} events/s for {plan.seconds} s")
            waits = asyncio.run(self._latency(peer))
        killed = self._killed(peer, python)
        cpu = drained["cpu_us_per_event"]
        return {
            "events_per_second": drained["events_per_second"],
            "events": total,
            "seconds": drained["seconds"],
            "cpu_us_per_event": {"client": cpu.pop("worker"), **cpu},
            **waits,
            "exact": not _any(rows),
            "rows": rows,
            "killed": killed,
        }

    # -- what it works on ------------------------------------------------------------------------------------

    async def _prepare(self, peer: Peer) -> None:
        names = [peer.prefix + topic for topic in (*merge.TOPICS, "order.changed")]
        admin = clients.admin(self.settings, "orders-bench")
        await admin.start()
        try:
            await admin.create_topics([NewTopic(name, self.settings.partitions, 1) for name in names])
            while not all(map(_has_leaders, await admin.describe_topics(names))):  # noqa: ASYNC110
                await asyncio.sleep(POLL_SECONDS)
        finally:
            await admin.close()
        connection = await asyncpg.connect(self.postgres)
        try:
            for statement in merge.definitions(peer.schema):
                await connection.execute(statement)
        finally:
            await connection.close()

    async def _clear(self, peer: Peer) -> None:
        """Leave nothing that vacuum would work on while the next one is measured."""
        connection = await asyncpg.connect(self.postgres)
        try:
            await connection.execute(f"DROP SCHEMA IF EXISTS {peer.schema} CASCADE")
        finally:
            await connection.close()

    def _send(self, peer: Peer, events: Iterator[SourceEvent], rate: float | None = None) -> int:
        return asyncio.run(send(self.settings, self._addressed(peer, events), rate=rate)).records

    def _addressed(self, peer: Peer, events: Iterator[SourceEvent]) -> Iterator[SourceEvent]:
        return (event._replace(topic=peer.prefix + event.topic) for event in events)

    @cached_property
    def _rows_drained(self) -> expected.Rows:
        return expected.rows_of(self.plan.drained())

    @cached_property
    def _rows_of_all(self) -> expected.Rows:
        later = (expected.rows_of(events) for events in (self.plan.paced(), self.plan.killed()))
        return expected.joined((self._rows_drained, *later))

    def _check(self, peer: Peer, processes: Processes, wanted: expected.Rows) -> dict[str, int]:
        """What is wrong with its rows once it has nothing more to do."""
        for seconds in (QUIET_SECONDS, LONG_QUIET_SECONDS):
            self._quiet(processes, seconds)
            rows = asyncio.run(
                expected.check(self.postgres, peer.schema, wanted, all_columns=not peer.module)
            )
            if not _any(rows):
                break
        return rows

    # -- processes -------------------------------------------------------------------------------------------

    @contextmanager
    def _processes(self, peer: Peer, python: Path) -> Iterator[Processes]:
        processes = self._start(peer, python)
        try:
            yield processes
        finally:
            for process in processes:
                process.stop()

    def _start(self, peer: Peer, python: Path) -> Processes:
        self._starts += 1
        logs = [self.folder / f"{peer.name}-{self._starts}-{n}.log" for n in range(peer.processes)]
        if not peer.module:
            return [bench.Worker(f"w{n}", dict(self.stack.env), log) for n, log in enumerate(logs)]
        command = (str(python), "-m", f"benchmarks.peers.clients.{peer.module}")
        env = {
            **os.environ,
            "PYTHONPATH": str(environments.ROOT),
            "PEER_KAFKA": self.stack.env["ORDERS_KAFKA"],
            "PEER_POSTGRES": self.postgres,
            "PEER_PREFIX": peer.prefix,
            "PEER_SCHEMA": peer.schema,
            "PEER_DATA": str(self.folder / peer.name),
            "PEER_EVENT": "1" if peer.event else "",
        }
        return [PeerProcess(command, {**env, "PEER_NUMBER": f"{n}"}, log) for n, log in enumerate(logs)]

    def _form(self, peer: Peer, python: Path) -> None:
        """Let its processes know of each other before there is anything to read: else who starts first would
        have all of it, lose half in the middle, and what it was at would be done again.
        """
        with self._processes(peer, python) as processes:
            _until(lambda: asyncio.run(self._members(peer)), lambda count: count == peer.processes)
            self._quiet(processes)

    async def _members(self, peer: Peer) -> int:
        """Members of its consumer group; 0 while they are about to agree."""
        admin = clients.admin(self.settings, "orders-bench")
        await admin.start()
        try:
            [response] = await admin.describe_consumer_groups([f"{peer.prefix}peer"])
            [group] = response.to_object()["groups"]
            return len(group["members"]) if group["state"] == "Stable" else 0
        except GroupCoordinatorNotAvailableError:  # the first group of these brokers
            return 0
        finally:
            await admin.close()

    # -- latency ---------------------------------------------------------------------------------------------

    async def _latency(self, peer: Peer) -> dict[str, Any]:
        await bench.settle(self.postgres)
        sent_at: dict[str, float] = {}

        def stamped() -> Iterator[SourceEvent]:
            for event in self._addressed(peer, self.plan.paced()):
                assert event.key is not None
                sent_at[event.key.decode()] = time.time()
                yield event

        await send(self.settings, stamped(), rate=self.plan.rate)
        waits = await bench.commit_waits(self.postgres, f"{peer.schema}.orders_order", sent_at)
        cuts = statistics.quantiles(waits, n=1000)
        self._say(peer, f"p50 {cuts[499]:.1f} ms, p99 {cuts[989]:.1f} ms")
        return {"p50_ms": round(cuts[499], 1), "p99_ms": round(cuts[989], 1), "latency_samples": len(waits)}

    # -- the kill --------------------------------------------------------------------------------------------

    def _killed(self, peer: Peer, python: Path) -> dict[str, Any]:
        """Kill all processes in the middle of a drain, start them again, and see what became of it."""
        published = self._derived_topics(peer)
        before = asyncio.run(self._ends(published))
        total = self._send(peer, self.plan.killed())
        with self._processes(peer, python) as processes:
            handled = _until(lambda: _handled(processes), lambda count: count >= total * KILL_AT)
            for process in processes:
                process.process.kill()
            killed_at = time.time()
            for process in processes:
                process.process.wait(20)
        self._say(peer, f"kill -9 after {handled:,.0f} of {total:,} events")
        with self._processes(peer, python) as processes:
            _until(lambda: _handled(processes), bool)
            # The clock of the process, so that the interval of the questions doesn't matter.
            back = bench.merged(process.metrics() for process in processes)["finished"] - killed_at
            rows = self._check(peer, processes, self._rows_of_all)
        derived = asyncio.run(self._derived(peer, before)) if published else None
        self._say(peer, f"back after {back:.1f} s; {_faults(rows, derived)}")
        return {
            "back_after_seconds": round(back, 2),
            "handled_before": int(handled),
            "rows": rows,
            "derived": derived,
        }

    def _quiet(self, processes: Processes, seconds: float = QUIET_SECONDS) -> None:
        """Wait until nothing more is handled for so long."""
        seen, since = -1.0, time.monotonic()
        while time.monotonic() - since < seconds:
            count = _handled(processes)
            if count != seen:
                seen, since = count, time.monotonic()
            time.sleep(KILL_POLL_SECONDS)

    def _derived_topics(self, peer: Peer) -> list[str]:
        if not peer.module:
            return list(topics.DERIVED)
        return [f"{peer.prefix}order.changed"] if peer.event else []

    async def _ends(self, names: Sequence[str]) -> dict[Any, int]:
        if not names:
            return {}
        async with clients.consumer(self.settings, "orders-bench", *names) as consumer:
            ends: dict[Any, int] = await consumer.end_offsets(consumer.assignment())
            return ends

    async def _derived(self, peer: Peer, before: dict[Any, int]) -> dict[str, int]:
        """Events published since then: how many, how many of them again under an id that was there, and how
        many of those that are called for aren't there. The auditor says so of ours.
        """
        ids: Counter[bytes] = Counter()
        async with clients.consumer(self.settings, "orders-bench") as consumer:
            consumer.assign(list(before))
            for partition, offset in before.items():
                consumer.seek(partition, offset)
            ends = await consumer.end_offsets(list(before))
            while any([await consumer.position(each) < ends[each] for each in ends]):
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    ids.update(dict(record.headers)["ce_id"] for record in records)
        counts = {"events": ids.total(), "doubled": ids.total() - len(ids)}
        if not peer.module:
            broken = self._audit()
            return {**counts, "lost": broken.get("derived", 0), "audit_broken": sum(broken.values())}
        wanted = {dict(event.headers)["ce_id"] + b"/changed" for event in self.plan.killed()}
        return {**counts, "lost": len(wanted - ids.keys())}

    def _audit(self) -> dict[str, int]:
        """Check -> how much `orders audit` finds broken, all stores and derived events compared."""
        command = (sys.executable, "-c", "from cli.main import main; main()", "audit", "--json")
        done = subprocess.run(
            command, env={**os.environ, **self.stack.env}, capture_output=True, text=True, check=False
        )
        if done.returncode not in (0, 1):
            raise bench.BenchFailed("orders audit could not run", log=done.stderr)
        broken: dict[str, int] = json.loads(done.stdout)["broken"]
        return broken


def _has_leaders(topic: dict[str, Any]) -> bool:
    partitions = topic["partitions"]
    return bool(partitions) and all(each["leader"] >= 0 and not each["error_code"] for each in partitions)


def _handled(processes: Processes) -> float:
    return bench.merged(process.metrics() for process in processes).get("records", 0.0)


def _until(look: Callable[[], float], enough: Callable[[float], bool]) -> float:
    """Look until it is enough, and return what was seen. Raises BenchFailed after two minutes."""
    deadline = time.monotonic() + MOST_SECONDS
    while not enough(count := look()):
        if time.monotonic() > deadline:
            raise bench.BenchFailed(f"it stands still at {count:,.0f} records")
        time.sleep(POLL_SECONDS)
    return count


def _any(rows: dict[str, int]) -> int:
    return rows["missing"] + rows["doubled"] + rows["wrong"]


def _faults(rows: dict[str, int], derived: dict[str, int] | None = None) -> str:
    """What is wrong, in words."""
    faults = [f"{rows[name]:,} rows {name}" for name in ("missing", "doubled", "wrong") if rows[name]]
    for name in ("lost", "doubled") if derived else ():
        if derived and derived[name]:
            faults.append(f"{derived[name]:,} derived events {name}")
    return ", ".join(faults) or f"all {rows['rows']:,} rows right"
