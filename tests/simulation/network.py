"""The way between a client and a server, where everything goes wrong: delays, losses, and deaths
at every point of a call.

A request takes its way in world time: once sent it arrives, whatever becomes of its sender.
What can happen to one:

    before      an error, and nothing was done
    after       it was done, and the sender is told an error (a lost acknowledgement)
    slow        it takes longer than usual
    refused     the brokers know the producer no more: an error that no repetition cures (of a produce
                request; otherwise as `before`)
    late        it takes so long that its sender may have given up, died, or lost its right to it
    crash_out   the sender dies right before it sends
    crash_wire  the sender dies right after it sent: the request is on its way
    crash_done  the sender dies when it was done, before it hears so
    stop_wire   the sender is stopped (SIGSTOP) right after it sent, perhaps for longer than its session
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextvars import Context
from dataclasses import dataclass, field
from random import Random
from typing import Any, Protocol, TypeVar

from aiokafka.errors import OutOfOrderSequenceNumber

from tests.simulation.loop import OWNER, Process

T = TypeVar("T")

Trace = Callable[..., None]

WRITES = frozenset(("produce", "rows", "cache", "commit"))
RARER = 0.3
"""How much rarer a fault is for a call that writes nothing."""


class Nemesis(Protocol):
    """What the network asks to be done to a process."""

    def kill(self, process: Process, why: str) -> None:
        """The process is gone at once."""

    def stop(self, process: Process, why: str) -> None:
        """The process stands still for a while."""


def quiet(*what: object) -> None:
    """A trace that nobody reads."""


@dataclass(slots=True)
class Faults:
    """How likely each fault is for each call, and how many there may be altogether."""

    chances: Mapping[str, float] = field(default_factory=dict)
    left: int = 0


class Network:
    """Carries requests. Times in seconds. Of two requests the later one may arrive first."""

    def __init__(
        self,
        rng: Random,
        faults: Faults,
        nemesis: Nemesis | None = None,
        *,
        usual: float = 0.0,
        late: float = 0.0,
    ) -> None:
        """`usual`: the longest usual way; `late`: the longest way of a late request."""
        self.rng = rng
        self.faults = faults
        self.nemesis = nemesis
        self.usual = usual
        self.late = late
        self.down: set[str] = set()
        """Servers that can't be reached."""
        self.under_way = 0
        self.trace: Trace = quiet
        self.counts: dict[str, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self.world: Context = Context()
        """What happens in nobody's name runs in this."""

    def way(self) -> float:
        """How long a usual way takes."""
        return self.rng.random() * self.usual

    def after(self, delay: float, callback: Callable[..., object], *args: Any) -> None:
        """Call `callback` in the world's name: it happens whatever becomes of whoever asked."""
        self._event_loop().call_later(delay, callback, *args, context=self.world)

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        loop = self._loop
        if loop is None:
            loop = self._loop = asyncio.get_running_loop()
        return loop

    async def request(
        self,
        server: str,
        kind: str,
        apply: Callable[[], T],
        error: Callable[[], BaseException] = ConnectionError,
        timeout: float | None = None,
    ) -> T:
        """Have `apply` called at the server; its result or what it raised.
        Raises `error` for a fault, TimeoutError after `timeout`.
        """
        fault = self._fault(1.0 if kind in WRITES else RARER)
        process = OWNER.get()
        answer: asyncio.Future[T] = self._event_loop().create_future()
        if fault:
            self.trace(process, f"{kind} meets {fault}")
        if fault == "crash_out":
            self._kill(process, f"before {kind}")
            return await answer
        if fault in ("before", "refused") or server in self.down:
            await asyncio.sleep(self.way())
            raise OutOfOrderSequenceNumber() if fault == "refused" and kind == "produce" else error()
        there = self.way()
        if fault == "slow":
            there += self.rng.random()
        elif fault in ("late", "crash_wire", "stop_wire"):
            there += self.rng.random() * self.late
        self.under_way += 1
        self.after(there, self._arrive, answer, server, kind, apply, error, fault, process)
        if fault == "crash_wire":
            self._kill(process, f"after it sent {kind}")
        elif fault == "stop_wire" and process is not None and self.nemesis is not None:
            self.nemesis.stop(process, f"after it sent {kind}")
        if timeout is None:
            return await answer
        async with asyncio.timeout(timeout):
            return await answer

    def _arrive(
        self,
        answer: asyncio.Future[T],
        server: str,
        kind: str,
        apply: Callable[[], T],
        error: Callable[[], BaseException],
        fault: str | None,
        process: Process | None,
    ) -> None:
        self.under_way -= 1
        outcome: BaseException | None = None
        result: Any = None
        if server in self.down:
            outcome = error()
        else:
            try:
                result = apply()
            except Exception as exc:
                outcome = exc
        if fault == "crash_done" and process is not None and process.alive:
            self._kill(process, f"when {kind} was done")
            return
        if fault == "after":
            outcome = error()
        self.after(self.way(), _tell, answer, result, outcome)

    def _fault(self, share: float) -> str | None:
        faults = self.faults
        if faults.left <= 0:
            return None
        dice = self.rng.random()
        for name, chance in faults.chances.items():
            dice -= chance * share
            if dice < 0:
                faults.left -= 1
                self.counts[name] = self.counts.get(name, 0) + 1
                return name
        return None

    def local(self) -> str | None:
        """A fault of a call that doesn't wait: crash_out (before it) or crash_done (after it)."""
        fault = self._fault(1.0)
        return fault if fault in ("crash_out", "crash_done") else None

    def die(self, kind: str) -> None:
        """The process that is at work dies in the middle of such a call. The caller has to raise Killed."""
        self._kill(OWNER.get(), f"at {kind}")

    def _kill(self, process: Process | None, why: str) -> None:
        if process is not None and self.nemesis is not None:
            self.nemesis.kill(process, why)


def _tell(answer: asyncio.Future[Any], result: Any, outcome: BaseException | None) -> None:
    if answer.done():
        return
    if outcome is None:
        answer.set_result(result)
    else:
        answer.set_exception(outcome)
        answer.exception()  # whoever asked may be gone


def calm() -> Network:
    """A network without a fault or a delay, for any event loop."""
    return Network(Random(0), Faults())
