"""Ids: our fast uuid5 and text form are those of the standard library."""

from __future__ import annotations

from uuid import NAMESPACE_DNS, UUID, uuid5

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contracts import ids


@given(st.uuids(), st.text(st.characters(codec="utf-8")))
def test_uuid5_is_the_standard_librarys(namespace: UUID, name: str) -> None:
    expected = uuid5(namespace, name)
    assert ids.uuid5(namespace.bytes, name) == expected.bytes
    assert ids.uuid5_text(namespace.bytes, name) == str(expected)


@given(st.uuids())
def test_text_is_canonical(id: UUID) -> None:
    assert ids.text(id.bytes) == str(id)


@pytest.mark.parametrize(
    "name", ["python.org", "payment", "suborder:aaaaaaaa-0000-4000-8000-000000000001", "refund:0", "", "ö"]
)
def test_known_names(name: str) -> None:
    ours = UUID(ids.uuid5_text(NAMESPACE_DNS.bytes, name))
    assert ours == uuid5(NAMESPACE_DNS, name)
    assert ours.version == 5
