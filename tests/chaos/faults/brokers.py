"""Brokers die, run out of disk, take less than they did."""

from __future__ import annotations

import asyncio
import resource
import signal
from collections.abc import AsyncIterator
from random import Random

from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from contracts.topics import LANE
from tests.chaos.faults.base import fault
from tests.chaos.world import World, until

DYNAMIC_TOPIC_CONFIG = 1
"""Source of a configuration entry that was set on the topic itself."""


@fault(
    "broker-leader-kill",
    "kafka",
    (3.0, 10.0),
    what="kill -9 of the broker that leads a partition of an input topic",
)
async def broker_leader_kill(world: World, random: Random) -> AsyncIterator[str]:
    topic, partition = random.choice(LANE), random.randrange(world.settings.partitions)
    node = await world.leader(topic, partition)
    await world.kill(f"kafka-{node}")
    yield f"kafka-{node}, leader of {topic}/{partition}"
    await world.revive(f"kafka-{node}")


@fault(
    "broker-controller-kill", "kafka", (3.0, 10.0), what="kill -9 of the broker that is the active controller"
)
async def broker_controller_kill(world: World, random: Random) -> AsyncIterator[str]:
    node = world.controller()
    await world.kill(f"kafka-{node}")
    yield f"kafka-{node}, active controller"
    await world.revive(f"kafka-{node}")


@fault(
    "brokers-two-kill",
    "kafka",
    (3.0, 10.0),
    what="kill -9 of two of three brokers: no quorum, too few in-sync replicas",
    alone=True,
)
async def brokers_two_kill(world: World, random: Random) -> AsyncIterator[str]:
    nodes = random.sample(range(1, world.shape.brokers + 1), 2)
    await asyncio.gather(*(world.kill(f"kafka-{node}") for node in nodes))
    yield ", ".join(f"kafka-{node}" for node in nodes)
    for node in nodes:  # one after the other: the folder's lock is held meanwhile
        await world.revive(f"kafka-{node}")


@fault(
    "broker-restart",
    "kafka",
    (0.5, 3.0),
    what="SIGTERM of a broker: it hands its partitions over and comes back",
)
async def broker_restart(world: World, random: Random) -> AsyncIterator[str]:
    node = random.randint(1, world.shape.brokers)
    await world.kill(f"kafka-{node}", signal.SIGTERM)
    yield f"kafka-{node}"
    await world.revive(f"kafka-{node}")


@fault(
    "broker-disk-full", "kafka", (3.0, 8.0), what="a broker's disk takes not one byte more: it ends itself"
)
async def broker_disk_full(world: World, random: Random) -> AsyncIterator[str]:
    """RLIMIT_FSIZE of the running broker is set to nothing: from then on the kernel refuses every write that
    makes a file longer (EFBIG), which Kafka treats like ENOSPC: the log folder is offline, and a broker whose
    only one that was ends itself. It needs neither root nor a file system of its own.
    """
    node = random.randint(1, world.shape.brokers)
    name = f"kafka-{node}"
    pid = await asyncio.to_thread(world.pid, name)
    assert pid is not None
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    yield name
    await until(lambda: not alive(pid), f"{name} has ended itself", 60)
    await world.revive(name)


@fault(
    "topic-small-messages",
    "kafka",
    (4.0, 10.0),
    what=(
        "max.message.bytes of a topic that workers write is far too small: they end with exit code 1 until it"
        " is raised"
    ),
    sees="MessageSizeTooLarge",
)
async def topic_small_messages(world: World, random: Random) -> AsyncIterator[str]:
    topic = random.choice(("suborder.updated", "order.status_changed", world.settings.changelog_topic))
    async with world.kafka() as admin:
        [answer] = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        # Altering replaces everything that was set before, so that all of it is said again.
        own = {entry[0]: entry[1] for entry in answer.resources[0][4] if entry[3] == DYNAMIC_TOPIC_CONFIG}
        await admin.alter_configs(
            [ConfigResource(ConfigResourceType.TOPIC, topic, configs=own | {"max.message.bytes": "100"})]
        )
    yield topic
    async with world.kafka() as admin:
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs=own)])


def alive(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
