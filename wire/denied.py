"""What brokers don't allow this program: the ACL that lacks, as an operator adds it.

A broker's error names at most a topic or a group, and most of aiokafka's errors not even that. The operation
follows from the request. So responses are looked at when they come, and who explains an error asks here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

from aiokafka.errors import KafkaError
from aiokafka.protocol.types import Array, Schema

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
        text = f"{self.operation} on {self.kind} {self.name}"
        # Brokers since Kafka 2.8 (KIP-679): whoever may write to no topic at all is told this one.
        return f"{text}, which Write on any topic gives" if self.operation == "IdempotentWrite" else text


_noted: dict[Denied, None] = {}
"""The latest last."""


def note(request: Any, response: Any) -> None:
    """Look through a response for what wasn't allowed. Never blocks, never raises."""
    name = type(request).__name__.partition("Request")[0]
    for code, topic in _hot(response) if name in ("Fetch", "Produce") else _of(response):
        operation = _OPERATIONS.get(name, {}).get(code)
        if operation is not None:
            denied = Denied(code, operation, _KINDS[code], _resource(code, request, topic))
            _noted.pop(denied, None)
            _noted[denied] = None
    while len(_noted) > _MOST:
        del _noted[next(iter(_noted))]


def acl(error: BaseException) -> Denied | None:
    """The ACL that lacks, where the error is a broker's refusal of a resource; None if it isn't. Pure."""
    code = getattr(error, "errno", None)
    if not isinstance(error, KafkaError) or code not in _KINDS:
        return None
    same = [each for each in reversed(_noted) if each.code == code]
    words = {word for arg in error.args for word in ([arg] if isinstance(arg, str) else _words(arg))}
    for each in same:
        if each.name in words or any(each.name in re.findall(r"[\w.-]*\w", text) for text in words):
            return each
    if same:
        return same[0]
    return Denied(code, "the operation", _KINDS[code], ", ".join(sorted(map(str, words))) or "?")


def _words(arg: Any) -> list[str]:
    return [each for each in arg if isinstance(each, str)] if isinstance(arg, set | frozenset | list) else []


def _hot(response: Any) -> Iterator[tuple[int, str]]:
    for topic, partitions in getattr(response, "topics", None) or ():
        for partition in partitions:
            if partition[1] in _KINDS:
                yield partition[1], topic
                break


class _Shape(NamedTuple):
    """Where a part of a response has a code and a name, and the parts below it that may."""

    code: int | None
    name: int | None
    parts: list[tuple[int, bool, _Shape]]
    """Where it stands, whether it is a list of such parts, and its own shape."""


@cache
def _shape(schema: Schema) -> _Shape | None:
    """None: no code anywhere in it."""
    names = list(schema.names)
    parts: list[tuple[int, bool, _Shape]] = []
    for number, field in enumerate(schema.fields):
        many = isinstance(field, Array)
        below = field.array_of if isinstance(field, Array) else field
        shape = _shape(below) if isinstance(below, Schema) else None
        if shape is not None:
            parts.append((number, many, shape))
    code = names.index("error_code") if "error_code" in names else None
    named = next((names.index(name) for name in _NAMES if name in names), None)
    return _Shape(code, named, parts) if code is not None or parts else None


def _of(response: Any) -> Iterator[tuple[int, str]]:
    schema = getattr(response, "SCHEMA", None)
    shape = _shape(schema) if isinstance(schema, Schema) else None
    if shape is not None:
        yield from _codes(shape, [response.get_item(name) for name in response.SCHEMA.names], "")


def _codes(shape: _Shape, values: Sequence[Any], name: str) -> Iterator[tuple[int, str]]:
    if shape.name is not None and isinstance(values[shape.name], str):
        name = values[shape.name]
    if shape.code is not None and values[shape.code] in _KINDS:
        yield values[shape.code], name
    for number, many, below in shape.parts:
        for each in (values[number] or ()) if many else [values[number]]:
            yield from _codes(below, each, name)


def _resource(code: int, request: Any, topic: str) -> str:
    if code == TOPIC:
        return topic or "?"
    if code == CLUSTER:
        return "kafka-cluster"
    names = ("_group", "_group_id", "_consumer_group") if code == GROUP else ("_transactional_id",)
    for each in (*names, "_coordinator_key"):
        name = getattr(request, each, None)
        if isinstance(name, str):
            return name
    return "?"
