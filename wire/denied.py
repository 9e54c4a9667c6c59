"""What brokers don't allow this program: the ACL that lacks, as an operator adds it.

A broker's error names at most a topic or a group, and most of aiokafka's errors not even that. The operation
follows from the request. So responses are looked at when they come, and who explains an error asks here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from aiokafka.errors import KafkaError

TOPIC, GROUP, CLUSTER, TRANSACTION = 29, 30, 31, 53
"""Kafka's error codes for resources that may not be used."""

_KINDS: Final = {TOPIC: "Topic", GROUP: "Group", CLUSTER: "Cluster", TRANSACTION: "TransactionalId"}
_OPERATIONS: Final[dict[str, dict[int, str]]] = {
    "Produce": {TOPIC: "Write", CLUSTER: "IdempotentWrite", TRANSACTION: "Write"},
    "Fetch": {TOPIC: "Read"},
    "Offset": {TOPIC: "Describe"},
    "Metadata": {TOPIC: "Describe"},
    "OffsetCommit": {TOPIC: "Read", GROUP: "Read"},
    "OffsetFetch": {TOPIC: "Describe", GROUP: "Describe"},
    "FindCoordinator": {GROUP: "Describe", TRANSACTION: "Describe"},
    "JoinGroup": {GROUP: "Read"},
    "SyncGroup": {GROUP: "Read"},
    "Heartbeat": {GROUP: "Read"},
    "LeaveGroup": {GROUP: "Read"},
    "DescribeGroups": {GROUP: "Describe"},
    "ListGroups": {CLUSTER: "Describe"},
    "DeleteGroups": {GROUP: "Delete"},
    "InitProducerId": {CLUSTER: "IdempotentWrite", TRANSACTION: "Write"},
    "AddPartitionsToTxn": {TOPIC: "Write", TRANSACTION: "Write"},
    "AddOffsetsToTxn": {GROUP: "Read", TRANSACTION: "Write"},
    "TxnOffsetCommit": {TOPIC: "Read", GROUP: "Read", TRANSACTION: "Write"},
    "EndTxn": {TRANSACTION: "Write"},
    "CreateTopics": {TOPIC: "Create", CLUSTER: "Create"},
    "DeleteTopics": {TOPIC: "Delete", CLUSTER: "Delete"},
    "CreatePartitions": {TOPIC: "Alter", CLUSTER: "Alter"},
    "DescribeConfigs": {TOPIC: "DescribeConfigs", CLUSTER: "DescribeConfigs"},
    "AlterConfigs": {TOPIC: "AlterConfigs", CLUSTER: "AlterConfigs"},
    "DeleteRecords": {TOPIC: "Delete"},
}
_NAMES: Final = ("topic", "topics", "name", "topic_name", "resource_name")
_MOST: Final = 1000


class Denied(NamedTuple):
    """An ACL that lacks, in the words of kafka-acls: Write, Topic, orders.dlq. `code`: Kafka's."""

    code: int
    operation: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.operation} on {self.kind} {self.name}"


_noted: dict[Denied, None] = {}
"""The latest last."""


def note(request: Any, response: Any) -> None:
    """Look through a response for what wasn't allowed. Never blocks, never raises."""
    name = type(request).__name__.partition("Request")[0]
    for code, topic in _hot(response) if name in ("Fetch", "Produce") else _codes(_plain(response), ""):
        operation = _OPERATIONS.get(name, {}).get(code)
        if operation is not None:
            found = Denied(code, operation, _KINDS[code], _resource(code, request, topic))
            _noted.pop(found, None)
            _noted[found] = None
    while len(_noted) > _MOST:
        del _noted[next(iter(_noted))]


def acl(error: BaseException) -> Denied | None:
    """The ACL that lacks, where the error is a broker's refusal of a resource; None if it isn't. Pure."""
    code = getattr(error, "errno", None)
    if not isinstance(error, KafkaError) or code not in _KINDS:
        return None
    same = [each for each in reversed(_noted) if each.code == code]
    told = {word for arg in error.args for word in ([arg] if isinstance(arg, str) else _words(arg))}
    for each in same:
        if each.name in told or any(each.name in re.findall(r"[\w.-]*\w", text) for text in told):
            return each
    if same:
        return same[0]
    return Denied(code, "the operation", _KINDS[code], ", ".join(sorted(map(str, told))) or "?")


def _words(arg: Any) -> list[str]:
    return [each for each in arg if isinstance(each, str)] if isinstance(arg, set | frozenset | list) else []


def _hot(response: Any) -> Iterator[tuple[int, str]]:
    for topic, partitions in getattr(response, "topics", None) or ():
        for partition in partitions:
            if partition[1] in _KINDS:
                yield partition[1], topic
                break


def _plain(response: Any) -> Any:
    to_object = getattr(response, "to_object", None)
    return to_object() if to_object is not None else None


def _codes(part: Any, name: str) -> Iterator[tuple[int, str]]:
    if isinstance(part, dict):
        name = next((part[key] for key in _NAMES if isinstance(part.get(key), str)), name)
        code = part.get("error_code")
        if code in _KINDS:
            yield code, name
        for each in part.values():
            if isinstance(each, dict | list | tuple):
                yield from _codes(each, name)
    elif isinstance(part, list | tuple):
        for each in part:
            if isinstance(each, dict):
                yield from _codes(each, name)


def _resource(code: int, request: Any, topic: str) -> str:
    if code == TOPIC:
        return topic or "?"
    if code == CLUSTER:
        return "kafka-cluster"
    names = ("_group", "_group_id", "_consumer_group") if code == GROUP else ("_transactional_id",)
    for each in (*names, "_coordinator_key"):
        found = getattr(request, each, None)
        if isinstance(found, str):
            return found
    return "?"
