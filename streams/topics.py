"""The topics: which ones there are, how they are created, and what is wrong with those that exist.

Everything here asks the brokers and may block as long as they take, up to the named deadlines. Servers that
aren't there raise aiokafka.errors.KafkaConnectionError.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Container, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    KafkaTimeoutError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.metadata import MetadataRequest

from contracts import topics as names
from domain.limits import MESSAGE_BYTES
from errors import OrdersError
from settings import Settings
from wire import clients
from wire.metadata import require_visible

log = logging.getLogger(__name__)

HOUR_MS: Final = 3600 * 1000
WEEK_MS: Final = 7 * 24 * 3600 * 1000
MONTH_MS: Final = 30 * 24 * 3600 * 1000

SETTLE_SECONDS: Final = 30.0
"""How long a created topic may take to have leaders everywhere, or a deleted one to
be gone from every broker.
"""

Rule = Literal["exactly", "at least", "at most", "free"]


class TopicsMissing(OrdersError):
    """Topics that are needed don't exist. The message names the first."""

    remedy = "run orders init"


class TopicMismatch(OrdersError):
    """Topics exist that the pipeline must not run on. The message says which, what is and what should be."""


@dataclass(frozen=True, slots=True)
class TopicConfig:
    """One Kafka topic configuration: how it is set at creation, what an existing
    topic must fulfil, and why.
    """

    name: str
    value: str
    rule: Rule
    reason: str

    def accepts(self, actual: str) -> bool:
        """Tell whether an existing topic may have this value; an operator may change `free` ones."""
        if self.rule == "free":
            return True
        if self.rule == "exactly":
            return actual == self.value
        return int(actual) >= int(self.value) if self.rule == "at least" else int(actual) <= int(self.value)

    @property
    def wanted(self) -> str:
        """Describe the expected value."""
        return self.value if self.rule == "exactly" else f"{self.rule} {self.value}"


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic as `orders init` makes it."""

    name: str
    partitions: int
    replication: int
    configs: tuple[TopicConfig, ...]


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as the brokers have it. `configs` holds every configuration's effective value."""

    name: str
    partitions: int
    replication: int
    configs: Mapping[str, str]


_KEPT_FOR_EVER: Final = (
    TopicConfig(
        "cleanup.policy",
        "delete",
        "exactly",
        "Every record counts: compaction would drop all but the last of an order.",
    ),
    TopicConfig(
        "retention.ms",
        "-1",
        "exactly",
        "The log is the truth: tables and rows are rebuilt from it, however old an order is.",
    ),
    TopicConfig("retention.bytes", "-1", "exactly", "The same by size."),
    TopicConfig(
        "message.timestamp.type",
        "LogAppendTime",
        "free",
        "Deadlines go by the broker's clock; an event itself says when it happened.",
    ),
)

_DERIVED: Final = (
    TopicConfig(
        "cleanup.policy",
        "delete",
        "exactly",
        "Each is an event or a command of its own, none replaces another.",
    ),
    TopicConfig(
        "retention.ms",
        str(WEEK_MS),
        "free",
        "Time for a consumer that was down; a replay of the input makes them again.",
    ),
)

_DEAD_LETTERS: Final = (
    TopicConfig("cleanup.policy", "delete", "exactly", "Each dead letter stands for a record of its own."),
    TopicConfig(
        "retention.ms",
        str(MONTH_MS),
        "free",
        "Time for a person to look; the record itself stays in its input topic.",
    ),
)

_CLOCK: Final = (
    TopicConfig("cleanup.policy", "delete", "exactly", "Nobody reads these records."),
    TopicConfig("retention.ms", str(HOUR_MS), "free", "Nobody reads these records."),
    TopicConfig(
        "message.timestamp.type", "LogAppendTime", "exactly", "Its acknowledgements tell the brokers' time."
    ),
)

_WORKERS: Final = (
    TopicConfig("cleanup.policy", "delete", "exactly", "What was said minutes ago counts for nothing."),
    TopicConfig("retention.ms", str(HOUR_MS), "free", "What was said minutes ago counts for nothing."),
    TopicConfig("segment.bytes", str(1 << 20), "free", "Only whole segments are deleted."),
)

_REDRIVEN: Final = (
    TopicConfig(
        "cleanup.policy",
        "compact",
        "exactly",
        "The latest note of each dead letter, for ever: what went back doesn't go back again.",
    ),
)

_RESOLVED: Final = (
    TopicConfig("cleanup.policy", "compact", "exactly", "The latest word on each dead letter."),
)

_PARTITIONS: Final = (
    TopicConfig(
        "cleanup.policy",
        "compact",
        "exactly",
        "One note, for ever: without it the history before a change would not be found.",
    ),
)

_CONTROL: Final = (
    TopicConfig("cleanup.policy", "compact", "exactly", "What is paused stays so until somebody resumes it."),
)

_OPERATIONS: Final = (
    TopicConfig("cleanup.policy", "delete", "exactly", "Each note counts, none replaces another."),
    TopicConfig("retention.ms", "-1", "free", "Who did what is asked years later, too."),
)

_CHANGELOG: Final = (
    TopicConfig(
        "cleanup.policy",
        "compact",
        "exactly",
        "Each order's latest state, for ever; a recovering worker reads no older ones.",
    ),
    TopicConfig(
        "min.cleanable.dirty.ratio",
        "0.1",
        "free",
        "Compact early: what is not compacted is what a recovery reads for nothing.",
    ),
    TopicConfig(
        "segment.bytes",
        str(64 << 20),
        "free",
        "The active segment is never compacted, so keep it small beside the whole.",
    ),
)


def specs(settings: Settings, brokers: int) -> list[TopicSpec]:
    """Every topic of the pipeline for a cluster of so many brokers, input first. Pure."""
    replication = settings.replication if settings.replication is not None else min(3, brokers)

    def spec(name: str, configs: Sequence[TopicConfig]) -> TopicSpec:
        return TopicSpec(name, settings.partitions, replication, (*configs, _in_sync(replication)))

    limits = settings.limits
    written = TopicConfig(
        "max.message.bytes",
        str(limits.written),
        "at least",
        "What we write may hold a whole input record and our headers beside it.",
    )
    taken = TopicConfig(
        "max.message.bytes",
        str(limits.input),
        "at most",
        "1,000 items with long strings fit; any larger and its dead letter would not.",
    )
    return [
        *(spec(name, (*_KEPT_FOR_EVER, taken)) for name in names.INPUT),
        *(spec(name, (*_KEPT_FOR_EVER, written)) for name in names.INTERNAL),
        spec(settings.changelog_topic, (*_CHANGELOG, changelog_bytes(settings))),
        *(spec(name, (*_DERIVED, written)) for name in names.DERIVED),
        spec(names.DLQ, (*_DEAD_LETTERS, written)),
        spec(names.CLOCK, _CLOCK),
        spec(names.WORKERS, _WORKERS),
        spec(names.REDRIVEN, _REDRIVEN),
        spec(names.RESOLVED, _RESOLVED),
        spec(names.PARTITIONS, _PARTITIONS),
        spec(names.CONTROL, _CONTROL),
        spec(names.OPERATIONS, _OPERATIONS),
        *(spec(name, (*_KEPT_FOR_EVER, taken)) for name in names.BULK),
        spec(names.BULK_COMPLETED, (*_DERIVED, written)),
    ]


def changelog_bytes(settings: Settings) -> TopicConfig:
    """The changelog's max.message.bytes. Below the default it tells everybody what ORDERS_MESSAGE_BYTES is.
    Pure.
    """
    return TopicConfig(
        "max.message.bytes",
        str(settings.message_bytes),
        "at least" if settings.message_bytes == MESSAGE_BYTES else "exactly",
        "An order's state is one record, and so large it may be that takes in all it may.",
    )


async def ensure(settings: Settings) -> list[str]:
    """Create the missing topics, and return their names.

    When it returns, every broker knows a leader of every partition. Again is harmless, also at the same time
    elsewhere. Raises TopicMismatch, before anything is created, if a topic exists that the pipeline must not
    run on.
    """
    async with _admin(settings) as admin:
        brokers = await _broker_ids(admin)
        needed = specs(settings, len(brokers))
        if (settings.replication or 1) > len(brokers):
            raise TopicMismatch(
                f"ORDERS_REPLICATION is {settings.replication}, but {settings.kafka} has {len(brokers)}"
                " broker(s)",
                "lower it, unset it, or start more brokers",
            )
        existing = await _states(admin, [spec.name for spec in needed])
        check(settings, needed, existing)
        missing = [spec for spec in needed if spec.name not in existing]
        if not missing:
            return []
        created = await _create(admin, missing)
        await _settled(admin, {spec.name: spec.partitions for spec in missing})
        if len(created) < len(missing):  # somebody else made some meanwhile, perhaps otherwise
            check(settings, needed, await _states(admin, [spec.name for spec in needed]))
        return created


def check(settings: Settings, needed: Sequence[TopicSpec], existing: Mapping[str, TopicState]) -> None:
    """Raise TopicMismatch when an existing topic differs in what correctness rests on.
    Missing topics are no mismatch. Pure.
    """
    problems: list[tuple[str, str]] = []
    uneven: dict[int, list[str]] = {}
    for spec in needed:
        state = existing.get(spec.name)
        if state is None:
            continue
        if state.partitions != spec.partitions:
            uneven.setdefault(state.partitions, []).append(spec.name)
        problems.extend(_differences(settings, spec, state))
    # Usually all of them for one reason, a changed setting: said once.
    for count, topics in uneven.items():
        subject = (
            f"topic {topics[0]} has" if len(topics) == 1 else f"{len(topics)} topics ({topics[0]}, ...) have"
        )
        remedy = (
            f"set ORDERS_PARTITIONS={count} to keep them"
            if len(uneven) == 1
            else "delete those that differ and run orders init again"
        )
        what = f"{subject} {count} partition(s), not {settings.partitions} as ORDERS_PARTITIONS says"
        problems.append((f"{what}: an order's events would be split over lanes", remedy))
    if problems:
        whats, remedies = zip(*problems[:3], strict=True)
        more = (f"and {len(problems) - 3} more",) if len(problems) > 3 else ()
        raise TopicMismatch("; ".join((*whats, *more)), "; ".join(dict.fromkeys(remedies)))


async def describe(settings: Settings, names: Collection[str] = ()) -> dict[str, TopicState]:
    """The pipeline's topics as they are, or those named of them, by name; what doesn't exist is left out.
    Raises TopicAuthorizationFailedError if one may be there, but may not be seen.
    """
    async with _admin(settings) as admin:
        needed = names or [spec.name for spec in specs(settings, 1)]
        states = await _states(admin, needed)
        await require_visible(admin._client, [name for name in needed if name not in states])
        return states


def require(settings: Settings, names: Iterable[str], existing: Container[str]) -> None:
    """Raise TopicsMissing unless all these topics exist. Pure."""
    missing = [name for name in names if name not in existing]
    if missing:
        others = f" (nor do {len(missing) - 1} others)" if len(missing) > 1 else ""
        raise TopicsMissing(f"topic {missing[0]} doesn't exist on Kafka at {settings.kafka}{others}")


async def missing(settings: Settings) -> list[str]:
    """The pipeline's topics that don't exist, in their order: what a worker would wait for in vain.
    Raises TopicAuthorizationFailedError if one may be there, but may not be seen.
    """
    async with _admin(settings) as admin:
        existing = await _partition_counts(admin)
        lacking = [spec.name for spec in specs(settings, 1) if spec.name not in existing]
        await require_visible(admin._client, lacking)
        return lacking


async def require_all(settings: Settings) -> None:
    """Raise TopicsMissing unless all the pipeline's topics exist, and TopicMismatch if the changelog doesn't
    take the batches that ORDERS_MESSAGE_BYTES says. A program that may not see its configuration goes by the
    setting.
    """
    lacking = await missing(settings)
    require(settings, lacking, ())
    async with _admin(settings) as admin:
        try:
            states = await _states(admin, [settings.changelog_topic])
        except (TopicAuthorizationFailedError, ClusterAuthorizationFailedError) as error:
            log.debug("how large batches the changelog takes is not told: %r", error)
            return
    config, state = changelog_bytes(settings), states.get(settings.changelog_topic)
    actual = None if state is None else state.configs.get(config.name)
    if actual is not None and not config.accepts(actual):
        raise TopicMismatch(
            f"{settings.changelog_topic} has {config.name}={actual}, ORDERS_MESSAGE_BYTES is {config.value}:"
            " orders would hold more or less than for other programs of this system",
            f"set ORDERS_MESSAGE_BYTES={actual} here, if that is what the others have"
            " (docs/how-to/managed-kafka.md)",
        )


async def grow(settings: Settings, names: Sequence[str], partitions: int) -> list[str]:
    """Give the topics that have fewer this many partitions, and return their names. Again is harmless.

    Blocks until every broker knows. Raises KafkaError if the brokers refuse.
    """
    async with _admin(settings) as admin:
        counts = await _partition_counts(admin)
        small = [name for name in names if 0 < counts.get(name, 0) < partitions]
        if small:
            await admin.create_partitions({name: NewPartitions(partitions) for name in small})
            await _settled(admin, dict.fromkeys(small, partitions))
        return small


async def delete_all(settings: Settings, only: Collection[str] | None = None) -> list[str]:
    """Delete the pipeline's topics with all they hold, and return their names. For tests and demos.
    `only`: of them those with these names.

    When it returns no broker lists them any more, so they can be created again at once. Raises
    KafkaTimeoutError after SETTLE_SECONDS.
    """
    async with _admin(settings) as admin:
        existing = await _partition_counts(admin)
        doomed = [
            spec.name
            for spec in specs(settings, 1)
            if spec.name in existing and (only is None or spec.name in only)
        ]
        if not doomed:
            return []
        response = await admin.delete_topics(doomed)
        for name, code in response.topic_error_codes:
            if code and code != UnknownTopicOrPartitionError.errno:
                raise for_code(code)(f"cannot delete topic {name}")
        await _settled(admin, dict.fromkeys(doomed, 0))
        return doomed


def _in_sync(replication: int) -> TopicConfig:
    return TopicConfig(
        "min.insync.replicas",
        str(max(1, replication - 1)),
        "at least",
        "An acknowledged write survives the loss of any one broker, and one broker less still takes writes.",
    )


def _differences(settings: Settings, spec: TopicSpec, state: TopicState) -> list[tuple[str, str]]:
    """Return what is wrong with a topic, each with its remedy."""
    differences: list[tuple[str, str]] = []
    if settings.replication is not None and state.replication < settings.replication:
        differences.append(
            (
                f"topic {spec.name} has {state.replication} replica(s), not {settings.replication}",
                "reassign its partitions with kafka-reassign-partitions, or lower ORDERS_REPLICATION",
            )
        )
    # An existing topic is held to what its own number of replicas can promise: a
    # cluster may have grown since.
    configs = (*spec.configs[:-1], _in_sync(state.replication))
    for config in configs:
        actual = state.configs.get(config.name)
        if actual is not None and not config.accepts(actual):
            differences.append(
                (
                    (
                        f"topic {spec.name} has {config.name}={actual}, not {config.wanted}"
                        f" ({config.reason.rstrip('.')})"
                    ),
                    (
                        "set it with kafka-configs --alter --entity-type topics "
                        f"--entity-name {spec.name} --add-config {config.name}={config.value}"
                    ),
                )
            )
    return differences


@asynccontextmanager
async def _admin(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = clients.admin(settings, "orders-admin", request_timeout_ms=30_000)
    try:
        await admin.start()
        yield admin
    finally:
        await admin.close()


async def _broker_ids(admin: AIOKafkaAdminClient) -> list[int]:
    cluster = await admin.describe_cluster()
    return sorted(broker["node_id"] for broker in cluster["brokers"])


async def _partition_counts(admin: AIOKafkaAdminClient, broker: int | None = None) -> dict[str, int]:
    """Topic -> partitions with a leader, in one broker's eyes (any one's without a number)."""
    # Asked for all topics: asking for one by name would create it where the brokers create topics on sight.
    response = await admin._send_request(MetadataRequest(None, allow_auto_topic_creation=False), broker)
    counts: dict[str, int] = {}
    for topic in response.to_object()["topics"]:
        if not topic["error_code"]:
            counts[topic["topic"]] = sum(partition["leader"] >= 0 for partition in topic["partitions"])
    return counts


async def _states(admin: AIOKafkaAdminClient, names: Collection[str]) -> dict[str, TopicState]:
    described: dict[str, Any] = {
        topic["topic"]: topic for topic in await admin.describe_topics() if not topic["error_code"]
    }
    present = [name for name in names if name in described]
    if not present:
        return {}
    configs: dict[str, dict[str, str]] = {}
    for response in await admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, name) for name in present]
    ):
        for resource in response.resources:
            code, message, _, name, entries = resource[:5]
            if code:
                raise for_code(code)(f"cannot read the configuration of topic {name}: {message}")
            configs[name] = {entry[0]: entry[1] for entry in entries if entry[1] is not None}
    states: dict[str, TopicState] = {}
    for name in present:
        partitions = described[name]["partitions"]
        replication = min((len(partition["replicas"]) for partition in partitions), default=0)
        states[name] = TopicState(name, len(partitions), replication, configs[name])
    return states


async def _create(admin: AIOKafkaAdminClient, needed: Sequence[TopicSpec]) -> list[str]:
    request = [
        NewTopic(
            spec.name,
            spec.partitions,
            spec.replication,
            topic_configs={config.name: config.value for config in spec.configs},
        )
        for spec in needed
    ]
    response = await admin.create_topics(request)
    created: list[str] = []
    for name, code, *rest in response.topic_errors:
        if not code:
            created.append(name)
        elif code != TopicAlreadyExistsError.errno:
            raise for_code(code)(f"cannot create topic {name}: {rest[0] if rest else ''}")
    return created


async def _settled(admin: AIOKafkaAdminClient, expected: Mapping[str, int]) -> None:
    """Wait until every broker sees each topic with so many led partitions (0: not at all)."""
    # A request goes to whichever broker: one that hasn't heard yet would answer as before.
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        counts = [await _partition_counts(admin, broker) for broker in await _broker_ids(admin)]
        waiting = sorted(
            name for name, count in expected.items() if any(seen.get(name, 0) != count for seen in counts)
        )
        if not waiting:
            return
        if time.monotonic() > deadline:
            others = f" and {len(waiting) - 1} more" if len(waiting) > 1 else ""
            raise KafkaTimeoutError(
                f"after {SETTLE_SECONDS:.0f} s the brokers don't agree about topic {waiting[0]}{others}"
            )
        await asyncio.sleep(0.05)
