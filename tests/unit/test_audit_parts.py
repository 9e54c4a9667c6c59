"""The auditor's parts: it shares no code with what it checks; spill, index, lines of COPY, states, words."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID, uuid5

import msgspec
import pytest
from aiokafka.partitioner import murmur2
from hypothesis import given
from hypothesis import strategies as st

from audit import derived, followed, reference, spill, states
from audit import topics as audit_topics
from audit.findings import Finding, Findings, Report
from audit.index import Index, Letter
from audit.log import partition_of
from audit.reference import RecordId
from audit.spill import Spill
from audit.stores import comparable, line_of, row_of
from contracts import outgoing, topics
from domain.order import Order


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    opened = Index(tmp_path)
    yield opened
    opened.close()


def test_it_shares_no_code_with_the_pipeline() -> None:
    """import-linter sees import statements; this sees what is really loaded."""
    code = (
        "import pkgutil, importlib, sys, audit\nfor each in pkgutil.iter_modules(audit.__path__):"
        " importlib.import_module('audit.' + each.name)\nours = ('app', 'contracts', 'domain', 'faust',"
        " 'operations', 'queries', 'settings', 'sinks', 'streams', 'tables', 'uuid_utils')\nprint(sorted(name"
        " for name in sys.modules if name.split('.')[0] in ours))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    assert loaded.stdout.strip() == "[]"
    folder = Path(reference.__file__).parent
    assert [
        path.name
        for path in folder.glob("*.py")
        if "import_module" in path.read_text() or "__import__" in path.read_text()
    ] == []


def test_it_knows_the_topics_by_the_same_names() -> None:
    names = [name for name in vars(audit_topics) if name.isupper()]
    assert {
        "CHECKOUT",
        "CREATED",
        "INPUT",
        "DECISIONS",
        "REKEYED",
        "LANE",
        "DERIVED",
        "DLQ",
        "REDRIVEN",
        "PARTITIONS",
    } <= set(names)
    assert [getattr(audit_topics, name) for name in names] == [getattr(topics, name) for name in names]


def test_it_knows_the_elements_of_a_state_by_the_same_names() -> None:
    assert Order.__struct_fields__ == states.FIELDS


def test_it_judges_derived_events_as_their_specs_say() -> None:
    def ids_of(*varies: str) -> dict[str, str | None]:
        return {spec.type: spec.id_field for spec in outgoing.DERIVED if spec.varies in varies}

    assert ids_of("never", "decided") == derived.SAME
    assert ids_of("command") == {**derived.VARYING, followed.LATE: None}
    assert tuple(ids_of("notice")) == tuple(name for name in derived.NOTICES if name != followed.LATE)


@given(st.binary(max_size=60), st.integers(1, 1024))
def test_a_key_lies_where_kafka_puts_it(key: bytes, partitions: int) -> None:
    assert partition_of(key, partitions) == (murmur2(key) & 0x7FFFFFFF) % partitions


@given(st.uuids(), st.text())
def test_made_ids_are_those_of_the_rfc(namespace: UUID, name: str) -> None:
    if name.isascii() or not any(0xD800 <= ord(char) < 0xE000 for char in name):
        assert reference.uuid5(namespace.bytes, name) == str(uuid5(namespace, name))


# -- spill ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("buckets", "bucket_bytes", "buffer_bytes"), [(1, 1 << 30, 1 << 30), (3, 4000, 2000), (1, 500, 100)]
)
def test_every_key_comes_once_with_all_its_items_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buckets: int, bucket_bytes: int, buffer_bytes: int
) -> None:
    monkeypatch.setattr(spill, "BUCKET_BYTES", bucket_bytes)
    monkeypatch.setattr(spill, "BUFFER_BYTES", buffer_bytes)
    rng = random.Random(1)
    keys = [os.urandom(rng.randrange(40)) for _ in range(60)]
    put: dict[bytes, list[Any]] = {}
    whole = Spill(tmp_path, buckets)
    for number in range(600):
        key = rng.choice(keys)
        item = (key, number, None, "text", [("a", b"\xff"), ("b", None)])
        put.setdefault(key, []).append([key, number, None, "text", [["a", b"\xff"], ["b", None]]])
        whole.add(hash(key) % buckets, item, 60)
    got: dict[bytes, list[Any]] = {}
    groups = 0
    for bucket in range(buckets):
        for group in whole.groups(bucket):
            groups += 1
            assert not got.keys() & group.keys()
            got |= {key: [_plain(item) for item in items] for key, items in group.items()}
    whole.close()
    assert got == put
    if bucket_bytes < 5000:
        assert groups > 2 * buckets, "large buckets come in parts"
    assert list(tmp_path.iterdir()) == []


def _plain(item: Any) -> Any:
    return [_plain(each) for each in item] if isinstance(item, (list, tuple)) else item


def test_one_key_larger_than_a_bucket_still_comes_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spill, "BUCKET_BYTES", 100)
    whole = Spill(tmp_path, 1)
    for number in range(50):
        whole.add(0, (b"key", number), 50)
    (only,) = [group for group in whole.groups(0) if group]
    assert [item[1] for item in only[b"key"]] == list(range(50))
    whole.close()


# -- index and findings --------------------------------------------------------------------------------------


def test_letters_are_found_by_place_and_matched_once(index: Index) -> None:
    there, elsewhere = RecordId("order.paid", 1, 7), RecordId("order.paid", 1, 8)
    letters = [Letter(there, "not_json", "d", None, b"1", None, 0, at) for at in (3, 4)]
    letters.append(Letter(elsewhere, "tombstone", "d", b"k", b"2", None, 0, 5))
    index.add_letters(letters)
    assert index.letters_of([there, RecordId("order.paid", 2, 7)]) == letters[:2]
    assert list(index.unmatched_letters()) == letters[2:]
    index.add_copies([there, there])
    assert (index.has_copy(there), index.has_copy(elsewhere)) == (True, False)


def test_what_waits_is_judged_unless_its_order_moves(index: Index) -> None:
    heard: list[Finding] = []
    findings = Findings(Report("g"), index, 2, heard.append)
    for order_id in ("a", "b", "b", "c"):
        findings.at_rest("rows", order_id, "where", 1, 2)
    findings.note("letters", "x", "where", "e", "f")
    assert index.forget(["b", "nobody"]) == 2
    assert index.waiting_by_check() == {"rows": 2}
    findings.judge()
    findings.broken("cache", "d", "where", "e", "f", RecordId("t", 0, 1))
    assert [finding.order_id for finding in heard] == ["a", "c", "d"]
    assert findings.report.broken == {"rows": 2, "cache": 1}
    assert [finding.order_id for finding in findings.report.findings] == ["x", "a", "c"]
    assert heard[2].fact == "t/0@1"


def test_without_its_beginning_the_log_proves_less(index: Index) -> None:
    findings = Findings(Report("g"), index, 10)
    findings.truncated = True
    findings.broken("rows", "a", "where", 1, 2)
    findings.at_rest("changelog", "a", "where", 1, 2)
    findings.broken("letters", "a", "where", 1, 2, proven=True)
    findings.broken("versions", "a", "where", 1, 2)
    findings.judge()
    assert findings.report.broken == {"letters": 1, "versions": 1}
    assert findings.report.reported == {"rows": 1, "changelog": 1}


# -- rows ----------------------------------------------------------------------------------------------------

_ids = st.uuids().map(str)
_moments = st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.isoformat())
_texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@given(_ids, _ids, _texts, st.none() | _texts, _moments, st.none() | _moments, st.integers(0, 10**15))
def test_a_line_says_what_its_row_says(
    one: str, two: str, text: str, maybe: str | None, moment: str, due: str | None, minor: int
) -> None:
    money = f"{minor // 100}.{minor % 100:02d}"
    shipment = (one, two, one, text, two, None, maybe, maybe, "pending", due, moment, moment, 3)
    assert row_of("orders_shipment", line_of("orders_shipment", shipment)) == comparable(
        "orders_shipment", shipment
    )
    maybe_id = None if maybe is None else two
    order = (one, two, text, "pending", "EUR", money, "0.00", "0.01", maybe_id, due, moment, moment, 1)
    row = row_of("orders_order", line_of("orders_order", order))
    assert row == comparable("orders_order", order)
    assert row[5] == Decimal(money)
    assert row[7] == Decimal("0.01")
    assert row[10] == datetime.fromisoformat(moment)


# -- states --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 1, 127, 128, 255, 256, 65_535, 65_536, 2**32])
@pytest.mark.parametrize("length", [1, 15, 16, 70_000])
def test_a_version_is_the_first_element(version: int, length: int) -> None:
    assert states.version_of(msgspec.msgpack.encode([version, *[None] * (length - 1)])) == version


@pytest.mark.parametrize("raw", [b"", b"\x91", b"\xc0", b"\x91\xcf\x00", b'{"a":1}', b"\x91\xa1a"])
def test_bytes_that_are_no_state(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        states.version_of(raw)
    with pytest.raises(ValueError, match=r".+"):
        states.read_state(raw)


def test_a_state_may_have_more_elements_or_those_of_before() -> None:
    known: list[Any] = [0, None, [], [], [], [], [], [], [], [], [], 0, [], False, 0, *states.ADDED.values()]
    assert states.read_state(msgspec.msgpack.encode([*known, "later"])) == states.read_state(
        msgspec.msgpack.encode(known)
    )
    assert states.read_state(msgspec.msgpack.encode(known[: -len(states.ADDED)])) == states.read_state(
        msgspec.msgpack.encode(known)
    )
    with pytest.raises(ValueError, match="at least 15 elements"):
        states.read_state(msgspec.msgpack.encode(known[:14]))
    with pytest.raises(ValueError, match="payments"):
        states.read_state(msgspec.msgpack.encode([*known[:2], [{}], *known[3:]]))
    with pytest.raises(ValueError, match="scans is no list"):
        states.read_state(msgspec.msgpack.encode([*known[:3], 7, *known[4:]]))
    with pytest.raises(ValueError, match="format 3: this version knows 1 to 2"):
        states.read_state(msgspec.msgpack.encode([*known[:19], 3, "of another kind"]))
