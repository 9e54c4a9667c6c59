"""Syntax trees of the source, for tests that look at it: parsed once in each process of a run."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]


@cache
def parsed(name: str) -> ast.Module:
    """The tree of a file that is named by its path in the repository. Not to be changed."""
    return ast.parse((ROOT / name).read_text(encoding="utf-8"))
