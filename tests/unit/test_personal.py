"""docs/explanation/personal-data.md names every field that is personal, and every topic."""

from __future__ import annotations

import re
from typing import Final, get_args, get_type_hints

from contracts import incoming
from contracts import topics as names
from contracts.incoming import INPUT, Text
from settings import Settings
from streams import topics
from tests.stackfixture import ROOT

PAGE: Final = (ROOT / "docs" / "explanation" / "personal-data.md").read_text()


def personal(model: type) -> set[str]:
    """The user, and fields of free text."""
    hints = get_type_hints(model, vars(incoming), include_extras=True)
    return {name for name, hint in hints.items() if name == "user_id" or Text in (hint, *get_args(hint))}


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
