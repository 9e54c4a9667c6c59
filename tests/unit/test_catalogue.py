"""Every event has all that belongs to it: what a new one still lacks is named here
(docs/how-to/add-an-event.md).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest

from contracts import incoming, outgoing, topics
from contracts.catalogue import DerivedSpec, EventSpec, Model, Varies
from contracts.record_id import RecordId
from domain import events
from domain.explain import explain
from domain.fold import fold
from domain.order import Created, Fact, Order, RefundDecision, SimpleFact, type_of
from domain.shapes import Event
from reference.examples import examples

PAGE = (Path(__file__).parents[2] / "docs" / "events.md").read_text(encoding="utf-8")
SENT, PUBLISHED = examples()
READ = [*incoming.INPUT, *incoming.OWN]
FACTS = [spec for spec in READ if spec.facts is not None]
each_read = pytest.mark.parametrize("spec", READ, ids=lambda spec: spec.type)
each_fact = pytest.mark.parametrize("spec", FACTS, ids=lambda spec: spec.type)
each_derived = pytest.mark.parametrize("spec", outgoing.DERIVED, ids=lambda spec: spec.type)


def example(spec: EventSpec) -> Event:
    data = SENT.get(spec.type) or PUBLISHED[spec.type]
    attributes = {
        "specversion": "1.0",
        "id": "1",
        "source": "/tests",
        "type": spec.type,
        "time": "2026-03-01T12:00:00Z",
    }
    headers = [(f"ce_{name}", text.encode()) for name, text in attributes.items()]
    return events.decode(spec.topic or spec.type, headers, json.dumps(data).encode())


def is_described(model: Model) -> bool:
    return bool((model.__dict__.get("__doc__") or "").strip())


def test_no_type_stands_twice() -> None:
    assert len(incoming.EVENTS) == len([*READ, *incoming.BULK])
    assert len(outgoing.SPECS) == len(outgoing.DERIVED)
    assert not incoming.EVENTS.keys() & outgoing.SPECS.keys()


def test_an_order_has_a_list_for_every_kind_of_fact_and_only_for_these() -> None:
    kinds = {
        get_args(hint)[0]: name
        for name, hint in get_type_hints(Order).items()
        if getattr(hint, "__origin__", None) is list
    }
    lists = {name for kind, name in kinds.items() if kind in get_args(SimpleFact)}
    assert lists == set(incoming.FACT_FIELDS) == {spec.facts for spec in FACTS} | {incoming.LAPSES}
    assert {kind for kind, name in kinds.items() if name in lists} == set(get_args(SimpleFact))
    assert set(get_args(Fact)) == {*get_args(SimpleFact), Created, RefundDecision}


# -- what comes in -------------------------------------------------------------------------------------------


@each_read
def test_its_struct_is_read_and_described(spec: EventSpec) -> None:
    assert spec.model is events.READS[spec.type, 1][0]
    assert is_described(spec.model), (
        f"{spec.model.__name__} needs a docstring of its own: it stands in docs/events.md"
    )


@each_read
def test_its_natural_key_and_its_sender_are_said(spec: EventSpec) -> None:
    assert spec.natural_key
    assert bool(spec.sender) == (spec in incoming.INPUT)


@each_read
def test_it_has_an_example_in_the_reference(spec: EventSpec) -> None:
    assert spec.type in (SENT if spec in incoming.INPUT else PUBLISHED)


@each_read
def test_it_has_a_section_in_the_page_of_events(spec: EventSpec) -> None:
    assert f"\n### {spec.type}\n" in PAGE or f"\n`{spec.type}`: " in PAGE, "run make docs"


@each_read
def test_it_becomes_a_fact_of_its_type(spec: EventSpec) -> None:
    fact = example(spec).fact
    if isinstance(fact, Created):
        assert spec.type in (topics.CREATED, topics.CHECKOUT)
    else:
        assert type_of(fact) == spec.type


@each_fact
def test_its_fact_lies_in_its_field_of_the_order(spec: EventSpec) -> None:
    assert spec.facts is not None
    assert get_args(get_type_hints(Order)[spec.facts]) == (type(example(spec).fact),)
    assert msgspec.structs.fields(Order)[Order.__struct_fields__.index(spec.facts)].required is False


@each_fact
def test_one_order_takes_in_a_limited_size_of_it(spec: EventSpec) -> None:
    assert spec.most_bytes


@each_read
def test_it_has_a_line_in_the_explanation_of_its_order(spec: EventSpec) -> None:
    taken, event = Order(), example(spec)
    fold(taken, event, RecordId(spec.type, 0, 0))
    if taken.created is None:
        fold(
            taken,
            msgspec.structs.replace(example(incoming.EVENTS[topics.CREATED]), order_id=event.order_id),
            None,
        )
    facts: list[dict[str, Any]] = explain(event.order_id, taken)["facts"]
    type_ = topics.CREATED if spec.type == topics.CHECKOUT else spec.type
    assert all(line["what"] for line in facts if line["type"] == type_)
    assert type_ in {line["type"] for line in facts}


# -- what leaves ---------------------------------------------------------------------------------------------


@each_derived
def test_what_leaves_has_a_struct_an_id_and_a_reason(spec: DerivedSpec) -> None:
    assert is_described(spec.model), (
        f"{spec.model.__name__} needs a docstring of its own: it stands in docs/events.md"
    )
    assert spec.when
    assert spec.id_name
    assert spec.id_field is None or spec.id_field in spec.model.__struct_encode_fields__
    assert spec.varies in get_args(Varies)
    assert (spec.id_field is None) == (spec.varies == "notice" or spec.type == "suborder.late"), (
        "a notice has no id of its own, and what tells of a deadline has that one's; everything else has"
    )


@each_derived
def test_what_leaves_has_an_example_and_a_section(spec: DerivedSpec) -> None:
    assert spec.type in PUBLISHED, "nothing in the order of reference/examples.py makes it leave"
    assert f"\n### {spec.type}\n" in PAGE, "run make docs"
