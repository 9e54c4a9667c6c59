"""docs/rules.md names functions and tests that are there."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.unit.test_tidy import FILES

ROOT = Path(__file__).parents[2]
RULES = re.split(r"^### ", (ROOT / "docs" / "rules.md").read_text(), flags=re.M)[1:]
NAMED = re.compile(r"`([\w/]+\.py)::([\w.]+)`")


@cache
def functions(path: str) -> set[str]:
    """Functions of a module, and methods of its classes as Class.method."""
    names: set[str] = set()
    for node in ast.parse((ROOT / path).read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            names.add(node.name)
        elif isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{each.name}"
                for each in node.body
                if isinstance(each, (ast.FunctionDef, ast.AsyncFunctionDef))
            }
    return names


def test_there_are_rules() -> None:
    assert len(RULES) > 40


@pytest.mark.parametrize("rule", RULES, ids=[rule.partition("\n")[0] for rule in RULES])
def test_every_rule_has_an_example_a_function_and_a_test_that_exist(rule: str) -> None:
    assert re.search(r"^Example\b", rule, flags=re.M)
    held, _, proven = rule.partition("\nFunction: ")[2].partition("\nTest: ")
    in_code, in_tests = NAMED.findall(held), NAMED.findall(proven)
    assert in_code
    assert in_tests
    assert all(path.startswith("tests/") and name.startswith("test_") for path, name in in_tests)
    missing = [f"{path}::{name}" for path, name in in_code + in_tests if name not in functions(path)]
    assert missing == []


def test_no_rule_is_cited_from_a_document_that_is_not_here() -> None:
    cited = re.compile(r"contracts:?\s+section")
    assert [name for name in FILES if cited.search((ROOT / name).read_text())] == []
