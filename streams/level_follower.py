"""Follows the log level in orders.control for a process that needs no Kafka: the API and the console."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Final

from aiokafka.conn import collect_hosts
from aiokafka.errors import KafkaError

from errors import OrdersError
from settings import Settings
from streams.control import FOLLOW_SECONDS, ControlReader, OwnLevel

log = logging.getLogger(__name__)

CONNECT_SECONDS: Final = 3.0
LONGEST_SECONDS: Final = 30.0
"""Seconds between two attempts to reach Kafka, at most."""


async def follow_level(settings: Settings, own: str) -> None:
    """Log from the level that is set for `own` (`api@host`), until cancelled. While Kafka can't be read the
    level stays as it was. Raises nothing for Kafka's sake.
    """
    level, pause = OwnLevel(own), FOLLOW_SECONDS
    while True:
        try:
            if await _there(settings):
                async with ControlReader(settings) as reader:
                    while True:
                        await reader.paused()
                        level.take(reader.levels)
                        pause = FOLLOW_SECONDS
                        await asyncio.sleep(FOLLOW_SECONDS)
        except (KafkaError, OrdersError, OSError) as error:
            log.debug("the log level can't be read: %r", error)
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_SECONDS)


async def _there(settings: Settings) -> bool:
    """Whether a broker takes a connection. Kafka's client would warn of each attempt, and who runs without
    Kafka needn't hear of it.
    """
    for host, port, _ in collect_hosts(settings.brokers):
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                _, writer = await asyncio.open_connection(host, port)
        except OSError:  # a timeout, too
            continue
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()
        return True
    return False
