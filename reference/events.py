"""The reference of every event in and out, made from the code that reads and writes them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec

from contracts import incoming, outgoing, topics
from contracts.bulk import BulkCompletedV2
from contracts.errors import REASONS
from reference.examples import bulk_examples, examples

Json = dict[str, Any]

VARIES: Final = {
    "never": "The set of these is the same in any order of arrival, and one id has one content.",
    "decided": "One id has one content.",
    "notice": "Which of these leave may differ with the order of arrival; the last one of an order does not.",
    "command": "Whether and with which units it leaves may differ with the order of arrival.",
}

DLQ_HEADERS: Final = (
    ("dlq_topic", "topic of the refused record"),
    ("dlq_partition", "its partition"),
    ("dlq_offset", "its offset"),
    ("dlq_reason", "a reason code (below)"),
    ("dlq_detail", "where and what, without any free text of the record"),
    ("dlq_time", "when it was refused"),
)


def reference() -> Json:
    """Everything that the Markdown says, with a JSON Schema of each event's data; `$ref`s point into
    `components`. Never blocks.
    """
    models: dict[str, type[msgspec.Struct]] = {
        **incoming.DATA,
        **outgoing.DATA,
        topics.BULK_COMPLETED: BulkCompletedV2,
    }
    schemas, components = schemas_of(models.values(), "#/components/{name}")
    schema_of = dict(zip(models, schemas, strict=True))
    sent, published = examples()
    return {
        "in": [
            {
                "topic": spec.type,
                "sender": spec.sender,
                "meaning": meaning(spec.model),
                "key": (
                    f"{'checkout_id' if spec.type == topics.CHECKOUT else 'order_id'} in canonical text form"
                ),
                "natural_key": spec.natural_key,
                "data": schema_of[spec.type],
                "example": sent[spec.type],
            }
            for spec in incoming.INPUT
        ],
        "internal": [
            {
                "topic": spec.topic,
                "type": spec.type,
                "meaning": meaning(spec.model),
                "natural_key": spec.natural_key,
                "data": schema_of[spec.type],
                "example": published[spec.type],
            }
            for spec in incoming.OWN
        ],
        "out": [
            {
                "topic": spec.type,
                "meaning": meaning(spec.model),
                "when": spec.when,
                "key": "order_id in canonical text form",
                "id": None if spec.id_field is None else {"field": spec.id_field, "name": spec.id_name},
                "ce_id": f"{spec.type}:{spec.id_name if spec.id_field is None else spec.id_field.upper()}",
                "same_in_any_order": VARIES[spec.varies],
                "data": schema_of[spec.type],
                "example": published[spec.type],
            }
            for spec in outgoing.DERIVED
        ],
        "bulk": [
            {
                "topic": topic,
                "meaning": meaning(models[topic]),
                "key": "job_id in canonical text form",
                "data": schema_of[topic],
                "example": example,
            }
            for topic, example in bulk_examples(sent).items()
        ],
        "dead_letters": {"topic": topics.DLQ, "headers": dict(DLQ_HEADERS), "reasons": dict(REASONS)},
        "components": components,
    }


def schemas_of(
    models: Iterable[type[msgspec.Struct]], references: str
) -> tuple[tuple[Json, ...], dict[str, Json]]:
    """JSON Schemas of models, and of all structs in them by name.
    A docstring is one line there, however it is wrapped here. Pure.
    """
    schemas, components = msgspec.json.schema_components(models, ref_template=references)
    for component in components.values():
        if "description" in component:
            component["description"] = " ".join(component["description"].split())
    return schemas, components


def meaning(data: type[msgspec.Struct]) -> str:
    """Return what an event means, from the docstring of its model. Pure."""
    return " ".join((data.__doc__ or "").split())
