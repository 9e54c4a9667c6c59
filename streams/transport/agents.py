"""Faust agents for whole batches: a channel that brings each lane's batch to an actor, and the
outcome back to the lane.

    lane ── BatchEvent ──► BatchChannel ──► one of the agent's actors:   async for batch in batches: ...
      ▲                                            │
      └── asks for the next batch: it is done ─────┤
          raises, or ends before it asks: failed ──┘

Faust acknowledges an agent's event whether the agent's body succeeded or not, and restarts an actor that
raised, with the next event. Here a batch is done when the actor asks for the next one, and at no other
moment; what the body raises goes to the lane, whose delivery policy says whether the same batch comes again.

Records of ordinary agents come one by one, with Faust's own semantics: see ordinary.py.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, Self, cast

import faust
from faust.channels import Channel
from faust.events import Event
from faust.types import TP, Message
from mode.supervisors import OneForOneSupervisor

from streams.transport.batch import LaneBatch

Batches = AsyncIterator[LaneBatch]
"""What an agent of lanes iterates over."""
AgentFunction = Callable[[Any], Any]


class BatchEvent(Event):
    """A batch on its way through an agent. Only the lane acknowledges it."""

    def __init__(self, app: Any, batch: LaneBatch) -> None:
        tp = TP("", batch.partition)
        message = Message(
            *tp, -1, timestamp=0.0, timestamp_type=0, headers=None, key=None, value=None, checksum=None, tp=tp
        )
        super().__init__(app, None, cast(Any, batch), None, message)
        self.batch = batch
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Set when the batch is done; holds what the agent's body raised otherwise."""
        self.body: asyncio.Task[None] | None = None
        """The call of the agent's function that has the batch in its hands."""

    def ack(self) -> bool:
        """Do nothing: the lane acknowledges (see the module's docstring)."""
        return False

    def finish(self) -> None:
        """The batch is done. Pure."""
        if not self.done.done():
            self.done.set_result(None)

    def fail(self, exc: BaseException) -> None:
        """The batch is not done, for this reason. Pure."""
        if not self.done.done():
            self.done.set_exception(exc)


class BatchChannel(Channel[LaneBatch]):
    """An in-memory Faust channel of batches. Made by BatchApp.batches."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self._events: asyncio.Queue[BatchEvent] = asyncio.Queue()
        # Faust's own queue is emptied at each rebalance: lanes have taken back their batches by then.

    async def handle(self, batch: LaneBatch) -> None:
        """Give a batch to the agent and wait until it is done. Raises what the agent's body raises.
        Cancelled, it ends the body first.
        """
        event = BatchEvent(self.app, batch)
        self._events.put_nowait(event)
        try:
            await event.done
        except asyncio.CancelledError:
            event.done.cancel()
            if event.body is not None:
                event.body.cancel()
                await asyncio.wait({event.body})
            raise

    async def next(self) -> BatchEvent:
        """The next event that a lane still waits for. Blocks until there is one."""
        while True:
            event = await self._events.get()
            if not event.done.done():
                return event

    def clone(self, *, is_iterator: bool | None = None, **kwargs: Any) -> Self:
        """All actors take from the same queue."""
        return self

    def __aiter__(self) -> Self:
        return self

    async def put(self, value: Any) -> NoReturn:
        """Refuse. Raises TypeError: agent.send, cast and ask have no batch."""
        raise TypeError("batches come from lanes only")

    def _throw(self, exc: BaseException) -> None:
        """Do nothing: Faust asks actors to stop in this way, and then cancels them, which is enough."""


class BatchStream(faust.Stream[LaneBatch]):
    """One actor's batches."""

    def __init__(self, channel: BatchChannel, **options: Any) -> None:
        super().__init__(cast(Any, channel), **options)
        self._batches = channel
        self._taken: BatchEvent | None = None

    def __aiter__(self) -> AsyncIterator[LaneBatch]:
        return self._iterate()

    async def _iterate(self) -> AsyncIterator[LaneBatch]:
        body = asyncio.current_task()
        while True:
            if self._taken is not None:
                self._taken.finish()
                self._taken = None
            event = self._taken = await self._batches.next()
            event.body = body
            self._set_current_event(event)
            yield event.batch

    def add_processor(self, processor: Any) -> NoReturn:
        """Refuse. Raises TypeError: a batch goes to its agent as it is."""
        raise TypeError("a stream of batches has no processors; iterate over it: async for batch in batches")

    async def run(self, function: AgentFunction, name: str) -> None:
        """Call an agent's function with this stream, again and again: what it raises belongs to the batch in
        its hands. Never returns.

        If it raises without a batch, the next batch fails with that, and its lane's delivery policy says how
        long to try.
        """
        while True:
            body = asyncio.ensure_future(_consume(function, self))
            try:
                await asyncio.wait({body})
            finally:
                if not body.done():
                    body.cancel()
                    await asyncio.wait({body})
                exc = _failure(body, name)
                event, self._taken = self._taken, None
                if event is not None:
                    event.fail(exc)
            if event is None and not body.cancelled():
                (await self._batches.next()).fail(exc)


async def _consume(function: AgentFunction, stream: BatchStream) -> None:
    result = function(stream)
    if inspect.isawaitable(result):
        await result
    else:
        async for _ in result:
            pass


def _failure(body: asyncio.Task[None], name: str) -> BaseException:
    if body.cancelled():
        return RuntimeError(f"agent {name} was stopped with a batch in its hands")
    return body.exception() or RuntimeError(f"agent {name} returned: it has to go on asking for batches")


def actor(function: AgentFunction) -> Callable[[Any], Awaitable[None]]:
    """An agent's function as Faust calls it, once for each actor. Pure."""

    @functools.wraps(function)
    async def run(stream: Any) -> None:
        await stream.run(function, function.__name__)

    return run


class PatientSupervisor(OneForOneSupervisor):
    """Restarts an ordinary agent that raised, at once, at most 100 times a second.

    Faust's own supervisor ends the worker at the 101st time in a second, and takes five seconds to notice an
    agent that raises while another is being restarted.
    """

    def __init__(self, *services: Any, **options: Any) -> None:
        super().__init__(*services, **{**options, "raises": None})

    async def start_services(self, services: list[Any]) -> None:
        """As Faust's, and replace an actor that died before it was started."""
        await super().start_services(services)
        await self.restart_services(services)

    async def restart_services(self, services: list[Any]) -> None:
        """Replace every dead actor until none is left. Blocks meanwhile, as Faust's does."""
        while dead := [service for service in self._services if not self.service_operational(service)]:
            await super().restart_services(dead)
            await asyncio.sleep(0)
