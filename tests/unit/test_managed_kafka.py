"""docs/how-to/managed-kafka.md against what the code asks of Kafka."""

from __future__ import annotations

import re
from pathlib import Path

from contracts.topics import PARTITIONS
from operations.grants import acls
from operations.roles import ROLES
from settings import Settings
from streams import topics

PAGES = Path(__file__).parents[2] / "docs" / "how-to"
PAGE = (PAGES / "managed-kafka.md").read_text()


def rows(section: str) -> list[list[str]]:
    """The cells of the tables of a section."""
    [text] = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", PAGE, flags=re.MULTILINE | re.DOTALL)
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[1:]]


def test_the_topics_are_those_of_orders_init() -> None:
    documented: dict[str, tuple[set[str], set[str]]] = {}
    for names, must, should in rows("Topics without the right to create them"):
        for name in re.findall(r"`([^`]+)`", names):
            assert name not in documented
            documented[name] = (set(must.split(", ")), set(re.findall(r"`([^`]+)`", should)))
    wanted = {}
    for spec in topics.specs(Settings(), 3):
        *configs, in_sync = spec.configs
        assert (in_sync.name, in_sync.value) == ("min.insync.replicas", "2")
        wanted[spec.name] = (
            {
                f"`{each.name}={each.value}`" + ("" if each.rule == "exactly" else f" {each.rule}")
                for each in configs
                if each.rule != "free"
            },
            {f"{each.name}={each.value}" for each in configs if each.rule == "free"},
        )
    assert documented == wanted
    assert PARTITIONS in documented


def test_every_right_has_its_actions() -> None:
    documented = {cells[0] for cells in rows("Amazon MSK: the rights")}
    once = Settings(delivery="exactly_once")
    assert documented == {f"{acl.operation}, {acl.kind}" for role in ROLES for acl in acls(once, role)}


def test_the_settings_exist() -> None:
    for page in ("managed-kafka.md", "connect-kafka.md"):
        named = set(re.findall(r"\bORDERS_[A-Z_]*[A-Z]\b", (PAGES / page).read_text()))
        assert {
            name.removeprefix("ORDERS_").lower() for name in named
        } - Settings.model_fields.keys() == set()
