"""Scopes: the words in which keys and tokens say what their holder may do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple
from uuid import UUID

from queries.visibility import Visibility

WORDS: Final = ("all", "tracking", "write", "operate", "view")
"""Scopes without an id. `all`: reads everything. `write`, `operate` and `view` read nothing over the API;
`view` and `operate` count in the console (console.access).
"""

_OF: Final = re.compile(
    r"(user|seller):([0-9A-Fa-f]{32}|[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12})", re.ASCII
)


class Scopes(NamedTuple):
    """What a caller may do: `names` as they are stored, ids in canonical text; `sees`: what it may read."""

    names: tuple[str, ...]
    sees: Visibility


def canonical(scope: str) -> str | None:
    """A scope as it is stored; None if there is no such scope."""
    if scope in WORDS:
        return scope
    match = _OF.fullmatch(scope)
    return None if match is None else f"{match[1]}:{UUID(match[2])}"


def scopes(names: Iterable[str]) -> Scopes:
    """Scopes of several names. Those that aren't scopes of this service are left out."""
    known = tuple(dict.fromkeys(name for name in map(canonical, names) if name is not None))

    def ids(kind: str) -> frozenset[UUID]:
        return frozenset(UUID(name.removeprefix(kind)) for name in known if name.startswith(kind))

    return Scopes(known, Visibility("all" in known, ids("user:"), ids("seller:"), "tracking" in known))


EVERYTHING: Final = scopes(["all"])
