"""docs/explanation/personal-data.md names every field that is personal, and every topic."""

from __future__ import annotations

import re
from typing import Annotated, Final, get_args, get_origin, get_type_hints

from contracts import incoming
from contracts import topics as names
from contracts.incoming import INPUT
from settings import Settings
from streams import topics
from tests.stackfixture import ROOT

PAGE: Final = (ROOT / "docs" / "explanation" / "personal-data.md").read_text()


_OF_A_FORM = (incoming.Money, incoming.Time, incoming.Day, incoming.Currency, incoming.TaxCode)


def most_characters(model: type) -> dict[str, int]:
    """Of each field of an event that is free text, how long it may be."""
    hints = get_type_hints(model, vars(incoming), include_extras=True)
    return {
        name: part.__metadata__[0].max_length
        for name, hint in hints.items()
        for part in ([hint] if get_origin(hint) is Annotated else get_args(hint))
        if get_origin(part) is Annotated and part.__origin__ is str and part not in _OF_A_FORM
    }


def personal(model: type) -> set[str]:
    """The user, and fields of free text."""
    return {"user_id"} & set(get_type_hints(model)) | set(most_characters(model))


def test_every_field_of_every_event() -> None:
    rows = re.findall(r"^\| `([\w.]+)` \|(.*)\|$", PAGE, re.MULTILINE)
    documented = {event: set(re.findall(r"`(\w+)`", cells)) for event, cells in rows}
    assert {spec.type: documented[spec.type] for spec in INPUT} == {
        spec.type: personal(spec.model) for spec in INPUT
    }
    assert personal(incoming.OrderReturned) == {"reason"}


def test_every_topic_that_is_kept() -> None:
    settings = Settings()
    named = {spec.name for spec in topics.specs(settings, 1) if f"`{spec.name}`" in PAGE}
    every = {spec.name for spec in topics.specs(settings, 1)}
    assert every - named == {settings.changelog_topic, *names.DERIVED} - named
    assert "`GROUP-state-changelog`" in PAGE
    forever = {
        spec.name
        for spec in topics.specs(settings, 1)
        if ("retention.ms", "-1") in {(config.name, config.value) for config in spec.configs}
    }
    assert forever == {*names.LANE, *names.BULK, names.OPERATIONS}
    assert (topics.WEEK_MS, topics.MONTH_MS) == (7 * 86_400_000, 30 * 86_400_000)
