"""An event loop whose time is virtual and whose processes can die, be stopped and be woken.

Time jumps from timer to timer, so a minute of heartbeats costs milliseconds. A callback belongs to the
process in whose context it was scheduled (a context variable, which tasks inherit). Of a dead process
nothing runs any more, not even a `finally`: as after kill -9. Of a stopped one everything is held back
until it is woken: as with SIGSTOP.

Nothing here depends on the machine: the same program runs the same way every time, whatever its hash seed.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
from asyncio import events
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar

T = TypeVar("T")

MOST_STEPS = 30_000
"""Callbacks after which a run counts as endless: five times what the longest of 4,500 histories takes."""
CLOSINGS = 10
"""How often a coroutine that waits while it is closed is closed again."""


class Process:
    """What dies and stops as a whole. The world itself (None) never does."""

    __slots__ = ("alive", "held", "name", "stopped")

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True
        self.stopped = False
        self.held: list[VirtualHandle] = []

    def __repr__(self) -> str:
        return f"<{self.name}>"


OWNER: ContextVar[Process | None] = ContextVar("owner", default=None)


class Deadlock(AssertionError):
    """Nothing is scheduled, and what was waited for has not come."""


class Endless(AssertionError):
    """Something goes round in circles."""


class VirtualHandle:
    """A callback that waits for its turn."""

    __slots__ = ("_at", "args", "callback", "cancelled_", "context")

    def __init__(
        self, at: float, callback: Callable[..., object], args: tuple[Any, ...], context: Context
    ) -> None:
        self._at = at
        self.callback = callback
        self.args = args
        self.context = context
        self.cancelled_ = False

    def cancel(self) -> None:
        self.cancelled_ = True

    def cancelled(self) -> bool:
        return self.cancelled_

    def when(self) -> float:
        return self._at


class VirtualTask(asyncio.Task[T]):
    """A task whose place in a set doesn't depend on where it lies in memory."""

    _numbers = itertools.count()

    def __init__(self, coro: Coroutine[Any, Any, T], **options: Any) -> None:
        self._number = next(VirtualTask._numbers)
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self._number


class VirtualLoop(asyncio.AbstractEventLoop):
    """See the module. Only what asyncio's own primitives need: no sockets, threads,
    signals or child processes.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._ready: deque[VirtualHandle] = deque()
        self._timers: list[tuple[float, int, VirtualHandle]] = []
        self._serial = 0
        self.steps = 0
        self._tasks: list[asyncio.Task[Any]] = []
        self._running = False
        self._closed = False
        self.errors: list[dict[str, Any]] = []
        """What tasks and callbacks raised and nobody looked at."""

    # -- what asyncio calls ----------------------------------------------------------------------------------

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> Any:  # type: ignore[override]
        handle = VirtualHandle(self.now, callback, args, copy_context() if context is None else context)
        self._ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        handle = VirtualHandle(when, callback, args, copy_context() if context is None else context)
        self._serial += 1
        heapq.heappush(self._timers, (when, self._serial, handle))
        return handle

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(
        self, coro: Any, *, name: object = None, context: Context | None = None, **options: Any
    ) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = VirtualTask(coro, loop=self, name=name, context=context)
        self._tasks.append(task)
        return task

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return self._running

    def is_closed(self) -> bool:
        return self._closed

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    # -- running ---------------------------------------------------------------------------------------------

    def run(self, over: Callable[[], bool], deadline: float = float("inf")) -> bool:
        """Run until `over`, asked after every callback, or until the virtual time `deadline`:
        False then. Raises Deadlock.
        """
        with self.entered():
            ready, timers = self._ready, self._timers
            last = self.steps + MOST_STEPS
            while not over():
                self.steps += 1
                if self.steps > last:
                    raise Endless(f"{MOST_STEPS:,} callbacks, the last at {self.now:.3f} s, and no end")
                while not ready:
                    if not timers:
                        raise Deadlock(f"at {self.now:.3f} s nothing is scheduled any more")
                    when, _, handle = heapq.heappop(timers)
                    if when > deadline:
                        heapq.heappush(timers, (when, 0, handle))
                        return False
                    if not handle.cancelled_:
                        self.now = max(self.now, when)
                        ready.append(handle)
                self._step(ready.popleft())
            return True

    def _step(self, handle: VirtualHandle) -> None:
        if handle.cancelled_:
            return
        owner = handle.context.get(OWNER)
        if owner is not None:
            if not owner.alive:
                return
            if owner.stopped:
                owner.held.append(handle)
                return
        try:
            handle.context.run(handle.callback, *handle.args)
        except Killed:
            pass
        except Exception as exc:
            self.call_exception_handler({"message": "a callback raised", "exception": exc})

    def wake(self, process: Process) -> None:
        """Run what was held back while `process` was stopped."""
        process.stopped = False
        self._ready.extend(process.held)
        process.held = []

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """As if inside of this loop: tasks and timers can be made, nothing runs."""
        self._running = True
        events._set_running_loop(self)
        try:
            yield
        finally:
            events._set_running_loop(None)
            self._running = False

    def end(self) -> None:
        """Close what has not ended, so that the garbage collector neither runs nor reports any of it."""
        with self.entered():
            for task in self._tasks:
                if task.done():
                    if not task.cancelled():
                        task.exception()
                    continue
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                coroutine = task.get_coro()
                for _ in range(CLOSINGS):
                    try:
                        coroutine.close()  # type: ignore[union-attr, unused-ignore]
                        break
                    except BaseException:  # it awaits something in its `finally`
                        continue
        self._closed = True


class Killed(BaseException):
    """Raised where a process dies in the middle of a call that doesn't wait.
    Ends the callback; nothing of the process runs after it.
    """
