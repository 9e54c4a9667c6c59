"""The contracts for machines: what is committed is what the code says, and nothing that was published
breaks under its version.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest

from cli.events import events_command
from contracts import outgoing, topics
from contracts.errors import Refused
from domain import events
from domain.order import PaymentFailure
from errors import OrdersError
from reference import compatibility
from reference.compatibility import Breaking, Way, asyncapi, breaking, schemas, way_of, write
from reference.events import reference
from tests.unit.builders import ORDER, payment, record

FOLDER = Path(__file__).parents[2] / "contracts"
PUBLISHED = sorted((FOLDER / "schemas").glob("*.json"))


def test_what_is_committed_is_what_the_code_says() -> None:
    message = "contracts/ is not what the code says: run make docs"
    assert {path.name: json.loads(path.read_text()) for path in PUBLISHED} == schemas(), message
    assert json.loads((FOLDER / "asyncapi.json").read_text()) == asyncapi(), message


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_nothing_published_breaks(path: Path) -> None:
    assert (
        breaking(json.loads(path.read_text()), schemas()[path.name], way_of(path.name.rsplit(".v", 1)[0]))
        == []
    )


def test_every_public_event_has_a_schema_and_a_channel() -> None:
    public = {*topics.INPUT, *topics.DERIVED, *topics.BULK, topics.BULK_COMPLETED}
    assert {name.rsplit(".v", 1)[0] for name in schemas()} == public == set(asyncapi()["channels"])


def test_every_reference_of_the_asyncapi_document_leads_somewhere() -> None:
    document = asyncapi()
    text = json.dumps(document)
    for ref in {part.partition('"')[0] for part in text.split('"$ref": "#/')[1:]}:
        node: Any = document
        for step in ref.split("/"):
            node = node[step]
        assert node


# -- what breaks a promise -----------------------------------------------------------------------------------

OLD = schemas()["suborder.updated.v1.json"]


def changed(**steps: Any) -> dict[str, Any]:
    """OLD with values replaced: a__b=... is OLD["a"]["b"]; ... itself removes."""
    new = copy.deepcopy(OLD)
    for steps_to, value in steps.items():
        *path, last = steps_to.split("__")
        target: Any = new
        for step in path:
            target = target[step]
        if value is ...:
            del target[last]
        else:
            target[last] = value
    return new


@pytest.mark.parametrize(
    ("new", "out", "into"),
    [
        (changed(), "", ""),
        (changed(description="said better"), "", ""),
        (changed(properties__note={"type": "string"}), "", ""),
        (changed(properties__units=...), "$.units is gone", "$.units is gone"),
        (changed(required=OLD["required"][1:]), "$.suborder_id is no longer always there", ""),
        (changed(required=[*OLD["required"], "closed_because"]), "", "$.closed_because is required now"),
        (
            changed(properties__version={"type": "string"}),
            "$.version is of another type",
            "$.version is of another type",
        ),
        (
            changed(properties__status={"type": "string"}),
            "$.status is of another type",
            "$.status is of another type",
        ),
        (
            changed(properties__status__enum=["closed"]),
            "$.status has lost confirmed",
            "$.status has lost confirmed",
        ),
        (
            changed(properties__closed_because__enum=[*OLD["properties"]["closed_because"]["enum"], "moon"]),
            "has got moon",
            "",
        ),
        (
            changed(properties__version={"type": "integer", "maximum": 9}),
            "",
            "$.version: maximum was open, is 9",
        ),
        (
            changed(properties__version={"type": "integer", "minimum": 1}),
            "",
            "$.version: minimum was open, is 1",
        ),
        (
            changed(properties__order_id={"type": "string", "format": "uuid"}),
            "",
            "$.order_id: format was open, is uuid",
        ),
        (
            changed(**{"$defs__SuborderItem__properties__sku": ...}),
            "$.items[].sku is gone",
            "$.items[].sku is gone",
        ),
        (
            changed(**{"$defs__SuborderUnits__required": []}),
            "$.units.delivered is no longer always there",
            "",
        ),
    ],
)
def test_a_change_is_judged_for_readers_and_for_writers(new: dict[str, Any], out: str, into: str) -> None:
    ways: dict[Way, str] = {"out": out, "in": into}
    for way, expected in ways.items():
        breaks = "; ".join(breaking(OLD, new, way))
        assert (expected in breaks) if expected else breaks == "", way


def test_a_bound_that_goes_breaks_readers() -> None:
    bounded = changed(properties__version={"type": "integer", "maximum": 9})
    assert breaking(bounded, OLD, "out") == ["$.version: maximum was 9, is open"]
    assert breaking(bounded, OLD, "in") == []


def test_a_breaking_schema_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(write(tmp_path)) == len(schemas()) + 1
    assert write(tmp_path) == []
    before = {path: path.read_text() for path in tmp_path.rglob("*.json")}
    monkeypatch.setattr(
        compatibility, "schemas", lambda: {"suborder.updated.v1.json": changed(properties__units=...)}
    )
    with pytest.raises(
        Breaking,
        match=r"suborder\.updated\.v1\.json, which is published: \$\.units is gone.*raise the version",
    ):
        write(tmp_path)
    assert {path: path.read_text() for path in tmp_path.rglob("*.json")} == before


def test_a_new_version_is_published_beside_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path)
    monkeypatch.setattr(outgoing, "VERSION", 2)
    write(tmp_path)
    assert {"suborder.updated.v1.json", "suborder.updated.v2.json"} <= {
        path.name for path in (tmp_path / "schemas").iterdir()
    }


def test_both_versions_of_an_event_are_read_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    class PaymentFailedV2(msgspec.Struct):
        order_id: UUID
        payment_id: UUID
        code: int

    def second(data: PaymentFailedV2, time: int) -> PaymentFailure:
        return PaymentFailure(time, data.payment_id.bytes, f"code {data.code}")

    old = {"order_id": ORDER, "payment_id": payment(1), "reason": "declined"}
    new = {"order_id": ORDER, "payment_id": payment(1), "code": 51}
    with pytest.raises(Refused, match="version_unknown"):
        events.decode("payment.failed", *record("payment.failed", new, dataschema="urn:x/v2"))
    monkeypatch.setitem(
        events._DECODE, ("payment.failed", b"/v2"), (msgspec.json.Decoder(PaymentFailedV2).decode, second)
    )
    facts = [
        events.decode("payment.failed", *record("payment.failed", data, dataschema=f"urn:x/v{version}")).fact
        for data, version in ((old, 1), (new, 2), (old, 1))
    ]
    assert [fact.reason for fact in facts if isinstance(fact, PaymentFailure)] == [
        "declined",
        "code 51",
        "declined",
    ]


# -- the command ---------------------------------------------------------------------------------------------


def test_the_command_prints_and_writes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    events_command(as_asyncapi=True)
    assert json.loads(capsys.readouterr().out) == asyncapi()
    events_command(write=tmp_path)
    assert str(tmp_path / "asyncapi.json") in capsys.readouterr().out
    events_command(write=tmp_path)
    assert capsys.readouterr().out == "nothing has changed\n"
    with pytest.raises(OrdersError, match="one of them at a time"):
        events_command(as_json=True, as_asyncapi=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OrdersError, match="--write"):
        events_command(write=tmp_path / "file")


def test_examples_have_the_fields_of_their_schema() -> None:
    for event in (*reference()["in"], *reference()["out"], *reference()["bulk"]):
        schema = schemas()[f"{event['topic']}.v1.json"]
        assert set(schema["required"]) <= set(event["example"]) <= set(schema["properties"])
