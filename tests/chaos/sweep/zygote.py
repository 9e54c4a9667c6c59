"""A process that has imported everything, hook included, and forks workers and commands: a start costs
milliseconds instead of seconds.

Reads requests from stdin, one JSON document a line, and writes a line for each child that has begun or ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import json
import os
import random
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class Child:
    """A forked process. `code` as subprocess gives it."""

    def __init__(self, log: Path, counts: Path) -> None:
        self.log = log
        self.pid: int | None = None
        self.code: int | None = None
        self.ended = asyncio.Event()
        self._counts = counts

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def send(self, number: signal.Signals) -> None:
        if self.pid is not None and not self.ended.is_set():
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def counts(self) -> dict[tuple[str, str], int]:
        """How often each point was passed; empty if it was killed."""
        if not self._counts.exists():
            return {}
        return {(point, side): count for point, side, count in json.loads(self._counts.read_text())}


class Zygote:
    """Starts children. An async context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._children: dict[int, Child] = {}
        self._by_pid: dict[int, Child] = {}
        self._number = 0
        self._process: asyncio.subprocess.Process | None = None
        self._reading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Zygote:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            __name__,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parents[3],
            env={name: value for name, value in os.environ.items() if not name.startswith("ORDERS_")},
        )
        self._reading = asyncio.create_task(self._read())
        return self

    async def __aexit__(self, *error: object) -> None:
        for child in self._children.values():
            child.send(signal.SIGKILL)
        process = self._process
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
        if self._reading is not None:
            await self._reading

    async def fork(
        self,
        arguments: Sequence[str],
        env: Mapping[str, str],
        *,
        armed: tuple[str, str, int] | None = None,
        tweaks: Sequence[str] = (),
        name: str = "orders",
    ) -> Child:
        """Run `orders ARGUMENTS` in a child. Returns when it runs."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._number += 1
        child = Child(
            self._folder / f"{self._number:04d}-{name}.log", self._folder / f"{self._number:04d}.counts"
        )
        self._children[self._number] = child
        request = {
            "number": self._number,
            "arguments": list(arguments),
            "env": dict(env),
            "armed": armed,
            "tweaks": list(tweaks),
            "log": str(child.log),
            "counts": str(child._counts),
        }
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        await self._process.stdin.drain()
        while child.pid is None:
            assert self._process.returncode is None, "the zygote has ended"
            await asyncio.sleep(0.002)
        return child

    async def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        while line := await self._process.stdout.readline():
            message: dict[str, Any] = json.loads(line)
            if "number" in message:
                child = self._children[message["number"]]
                child.pid = message["pid"]
                self._by_pid[message["pid"]] = child
            else:
                child = self._by_pid.pop(message["pid"])
                child.code = message["code"]
                child.ended.set()


# -- in the zygote and its children --------------------------------------------------------------------------


def serve() -> None:
    """Read requests until stdin ends."""
    from tests.chaos.sweep import hook

    hook.install()
    for name in (
        "app",
        "cli.audit",
        "cli.init",
        "cli.logs",
        "cli.worker",
        "operations.auditing",
        "prometheus_client",
        "streams.transport.worker",
        "uvloop",
    ):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pending = b""
    while True:
        readable, _, _ = select.select([0, woken], [], [])
        if woken in readable:
            os.read(woken, 4096)
        _reap()
        if 0 in readable:
            data = os.read(0, 1 << 20)
            if not data:
                return
            pending += data
            *lines, pending = pending.split(b"\n")
            for line in lines:
                request = json.loads(line)
                pid = os.fork()
                if pid == 0:
                    os.close(woken)
                    os.close(waker)
                    _child(request)
                _tell({"number": request["number"], "pid": pid})


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            _tell({"pid": pid, "code": os.waitstatus_to_exitcode(status)})


def _tell(document: dict[str, Any]) -> None:
    os.write(1, json.dumps(document).encode() + b"\n")


def _child(request: dict[str, Any]) -> None:
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for wanted, number in ((null, 0), (log, 1), (log, 2)):
            os.dup2(wanted, number)
        os.environ.clear()
        os.environ.update(request["env"])
        random.seed()
        code = _run(request)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _run(request: dict[str, Any]) -> int:
    from cli.main import run
    from tests.chaos.sweep import hook

    if request["armed"] is not None:
        point, side, number = request["armed"]
        hook.armed = (point, side, number)
    for tweak in request["tweaks"]:
        TWEAKS[tweak]()
    code = run(request["arguments"])
    Path(request["counts"]).write_text(
        json.dumps([[point, side, count] for (point, side), count in hook.counts.items()])
    )
    return code


# -- what a child may be told to do to itself, to come to places that are rarely reached ---------------------


def _lose_lists() -> None:
    """Some fetched lists are thrown away on their way, some come twice: as rebalances do it, but often."""
    from streams.transport.consumer import Consumer
    from streams.transport.consumer_thread import Fetched

    def losing(method: Any) -> Any:
        async def wrapped(self: Consumer, fetched: Fetched) -> None:
            drawn = random.random()
            if drawn >= 0.3:
                await method(self, fetched)
            if drawn >= 0.7:
                await method(self, fetched)

        return wrapped

    Consumer._offer = losing(Consumer._offer)  # type: ignore[method-assign]
    Consumer._recover = losing(Consumer._recover)  # type: ignore[method-assign]


def _blind() -> None:
    """The reader hardly ever looks whether a list was lost, so that the next list has to show it."""
    from streams.transport.consumer_thread import ConsumerThread

    look = ConsumerThread._look_for_lost

    def sometimes(self: ConsumerThread, *arguments: Any) -> None:
        if random.random() < 0.1:
            look(self, *arguments)

    ConsumerThread._look_for_lost = sometimes  # type: ignore[assignment, method-assign]


def _slow_produce() -> None:
    """The brokers take a second to answer a produce request."""
    from aiokafka.client import AIOKafkaClient
    from aiokafka.protocol.produce import ProduceRequest

    send = AIOKafkaClient.send

    async def slowly(self: AIOKafkaClient, node: int, request: Any, **options: Any) -> Any:
        if isinstance(request, ProduceRequest):
            await asyncio.sleep(1.0)
        return await send(self, node, request, **options)

    AIOKafkaClient.send = slowly


def _flaky_lease() -> None:
    """Now and then membership isn't proven."""
    from streams.transport.consumer_thread import ConsumerThread

    leased = ConsumerThread.leased
    ConsumerThread.leased = lambda self: leased(self) and random.random() > 0.1  # type: ignore[method-assign]


def _hasty_start() -> None:
    """The first producers take too long to start."""
    from streams.transport import producer

    timeouts = [0.0001, 0.0001, producer.START_TIMEOUT]
    wait_for = asyncio.wait_for

    class Asyncio:
        def __getattr__(self, name: str) -> Any:
            return getattr(asyncio, name)

        @staticmethod
        async def wait_for(awaitable: Any, timeout: float | None) -> Any:
            if timeout == producer.START_TIMEOUT:
                timeout = timeouts.pop(0) if len(timeouts) > 1 else timeouts[0]
            return await wait_for(awaitable, timeout)

    vars(producer)["asyncio"] = Asyncio()


def _often() -> None:
    """Reports of a recovery come at once."""
    from streams.transport import recovery

    recovery.REPORT_INTERVAL = 0.05


TWEAKS: dict[str, Callable[[], None]] = {
    "lose-lists": _lose_lists,
    "blind": _blind,
    "slow-produce": _slow_produce,
    "flaky-lease": _flaky_lease,
    "hasty-start": _hasty_start,
    "often": _often,
}

if __name__ == "__main__":
    serve()
