"""Jobs for processes of their own, apart from their tests: such a process imports this file, and with those
it would import pytest.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading

from audit.log import LogUnavailable
from audit.processes import Say


async def say_some(say: Say) -> None:
    for number in range(3):
        say((os.getpid(), number, b"x" * 200_000))
        await asyncio.sleep(0)


async def say_and_wait(say: Say) -> None:
    say(os.getpid())
    await asyncio.Event().wait()


async def say_and_fail(say: Say) -> None:
    say(os.getpid())
    raise LogUnavailable("no Kafka", "start it")


async def die(say: Say) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def leave(say: Say) -> None:
    os._exit(3)


async def say_and_block(say: Say) -> None:
    say(os.getpid())
    threading.Event().wait()
