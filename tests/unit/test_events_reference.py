"""docs/events.md is what the code says, and the examples in it are events that the pipeline takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cli.events import events_command
from contracts import errors, incoming, outgoing, topics
from domain import events
from reference.events import reference
from reference.page import markdown

PAGE = Path(__file__).parents[2] / "docs" / "events.md"
FOUND = reference()


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    component: dict[str, Any] = FOUND["components"][schema["$ref"].rpartition("/")[2]]
    return component


def test_the_page_is_what_the_code_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == markdown(), (
        "docs/events.md is not what the code says: run make docs"
    )


def test_every_topic_is_told() -> None:
    assert [event["topic"] for event in FOUND["in"]] == list(topics.INPUT)
    assert [event["topic"] for event in FOUND["out"]] == list(topics.DERIVED)
    page = markdown()
    assert [event["topic"] for event in FOUND["bulk"]] == [*topics.BULK, topics.BULK_COMPLETED]
    for name in (
        *topics.INPUT,
        *topics.DERIVED,
        *topics.BULK,
        topics.BULK_COMPLETED,
        *topics.INTERNAL,
        topics.REDRIVEN,
        topics.OPERATIONS,
        topics.CONTROL,
        topics.RESOLVED,
        topics.DLQ,
    ):
        assert f"\n### {name}\n" in page


def test_every_reason_code_is_told() -> None:
    page = markdown()
    assert all(f"| `{code}` | " in page for code in errors.REASONS)


def test_every_field_is_told() -> None:
    page = markdown()
    for data in (*incoming.DATA.values(), *outgoing.DATA.values()):
        for name in data.__struct_encode_fields__:
            assert f"| `{name}` |" in page


@pytest.mark.parametrize("event", [*FOUND["in"], *FOUND["bulk"][:-1]], ids=lambda event: event["topic"])
def test_examples_in_are_accepted(event: dict[str, Any]) -> None:
    attributes = {
        "specversion": "1.0",
        "id": "1",
        "source": "/tests",
        "type": event["topic"],
        "time": "2026-01-01T00:00:00Z",
    }
    headers = [(f"ce_{name}", text.encode()) for name, text in attributes.items()]
    assert (
        events.decode(event["topic"], headers, json.dumps(event["example"]).encode()).type == event["topic"]
    )


@pytest.mark.parametrize(
    "event",
    [*FOUND["in"], *FOUND["internal"], *FOUND["out"], *FOUND["bulk"]],
    ids=lambda event: event["topic"],
)
def test_examples_have_the_fields_of_their_schema(event: dict[str, Any]) -> None:
    schema = resolved(event["data"])
    assert set(schema["required"]) <= set(event["example"]) <= set(schema["properties"])


def test_the_command_prints_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    events_command()
    assert capsys.readouterr().out == markdown()


def test_the_command_prints_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    events_command(as_json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(json.dumps(reference()))


def test_every_reference_in_a_schema_is_there() -> None:
    text = json.dumps(FOUND)
    named = {part.partition('"')[0] for part in text.split('"#/components/')[1:]}
    assert named <= set(FOUND["components"])
    assert named
