"""docs/how-to, taken apart: the diffs that stand in a recipe, and the source with them applied."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[2]
PAGES: Final = ROOT / "docs" / "how-to"

_BLOCK: Final = re.compile(r"^```diff (\S+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


class Change(NamedTuple):
    """Lines of a file, before and after. `before` empty: the file is new."""

    path: str
    before: str
    after: str


def changes(page: str) -> list[Change]:
    """What a recipe changes, in its order.
    A block is a diff of the file that its first line names; `@@` begins another place of it.
    """
    return [
        _change(path, part)
        for path, text in _BLOCK.findall((PAGES / page).read_text(encoding="utf-8"))
        for part in re.split(r"^@@\n", text, flags=re.MULTILINE)
    ]


def apply(page: str, root: Path) -> set[str]:
    """Apply a recipe to the source below `root`; returns the files that it changed.
    Lines that aren't there, or twice, are an error.
    """
    touched = set()
    for path, before, after in changes(page):
        file = root / path
        touched.add(path)
        if not before:
            assert not file.exists(), f"{page}: {path} is there already"
            file.write_text(after, encoding="utf-8")
            continue
        text = file.read_text(encoding="utf-8")
        assert f"\n{text}".count(f"\n{before}") == 1, f"{page}: not once in {path}:\n{before}"
        file.write_text(f"\n{text}".replace(f"\n{before}", f"\n{after}")[1:], encoding="utf-8")
    return touched


def _change(path: str, part: str) -> Change:
    lines = part.splitlines()
    assert all(line[:1] in ("", " ", "+", "-") for line in lines), f"{path}: no line of a diff: {part}"
    before, after = ("".join(f"{line[1:]}\n" for line in lines if line[:1] != left_out) for left_out in "+-")
    return Change(path, before, after)
