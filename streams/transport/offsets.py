"""What a group has committed, once every transaction that may still change it has ended.

A worker that died while it committed leaves offsets that are neither committed nor dropped yet.
aiokafka's own request (OffsetFetch up to version 3) gets the older ones then; version 7 (Kafka
2.5) can ask to be told so.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    KafkaError,
    NotCoordinatorForGroupError,
    for_code,
)
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)
from faust.types import TP

log = logging.getLogger(__name__)

UNSTABLE_OFFSET_COMMIT: Final = 88
"""A transaction that commits offsets of this partition hasn't ended."""
PAUSE: Final = 0.05


class Commit(NamedTuple):
    """What a group has committed of one partition."""

    offset: int
    metadata: str
    """What whoever committed it wrote beside it: anything."""


class _Response(Response):  # type: ignore[misc]
    API_KEY = 9
    API_VERSION = 7
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("offset", Int64),
                        ("leader_epoch", Int32),
                        ("metadata", CompactString("utf-8")),
                        ("error_code", Int16),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("error_code", Int16),
        ("tags", TaggedFields),
    )


class _RequestStruct(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 9
    API_VERSION = 7
    RESPONSE_TYPE = _Response
    SCHEMA = Schema(
        ("group", CompactString("utf-8")),
        (
            "topics",
            CompactArray(
                ("topic", CompactString("utf-8")),
                ("partitions", CompactArray(Int32)),
                ("tags", TaggedFields),
            ),
        ),
        ("require_stable", Boolean),
        ("tags", TaggedFields),
    )


class _Request(Request[_RequestStruct]):  # type: ignore[misc]
    API_KEY = 9

    def __init__(self, group: str, topics: Sequence[tuple[str, Sequence[int]]]) -> None:
        self._group = group
        self._topics: list[Any] = [(topic, list(partitions), {}) for topic, partitions in topics]

    def build(self, request_struct_class: type[_RequestStruct]) -> _RequestStruct:
        return request_struct_class(self._group, self._topics, True, {})


async def stable_offsets(coordinator: Any, tps: Sequence[TP]) -> dict[TP, int | None]:
    """The committed offset of each of `tps`, None where there is none. See stable_commits."""
    commits = await stable_commits(coordinator, tps)
    return {tp: None if commit is None else commit.offset for tp, commit in commits.items()}


async def stable_commits(coordinator: Any, tps: Sequence[TP]) -> dict[TP, Commit | None]:
    """What is committed of each of `tps`, None where nothing is.
    `coordinator`: of an aiokafka consumer, in whose loop this runs.

    Blocks while transactions that commit such offsets are open, and while no broker answers:
    bound it. Raises KafkaError.
    """
    by_topic: defaultdict[str, list[int]] = defaultdict(list)
    for tp in tps:
        by_topic[tp.topic].append(tp.partition)
    request = _Request(coordinator.group_id, list(by_topic.items()))
    while True:
        await coordinator.ensure_coordinator_known()
        try:
            return _commits(await coordinator._send_req(request), tps)
        except _Unstable as exc:
            log.info("waiting for the end of a transaction that commits offsets of %s", exc)
        except KafkaError as exc:
            if not exc.retriable:
                raise
            if isinstance(exc, (GroupCoordinatorNotAvailableError, NotCoordinatorForGroupError)):
                coordinator.coordinator_dead()
        await asyncio.sleep(PAUSE)


class _Unstable(Exception):
    """Of which partitions."""


def _commits(response: Any, tps: Sequence[TP]) -> dict[TP, Commit | None]:
    if response.error_code:
        raise for_code(response.error_code)
    commits: dict[TP, Commit | None] = dict.fromkeys(tps)
    unsettled: list[str] = []
    for topic, partitions, _ in response.topics:
        for partition, offset, _, metadata, code, _ in partitions:
            if code == UNSTABLE_OFFSET_COMMIT:
                unsettled.append(f"{topic}/{partition}")
            elif code:
                raise for_code(code)(f"committed offset of {topic}/{partition}")
            elif offset >= 0:
                commits[TP(topic, partition)] = Commit(offset, metadata or "")
    if unsettled:
        raise _Unstable(", ".join(unsettled))
    return commits
