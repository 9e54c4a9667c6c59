"""One reading of an event: what domain.events and audit.reference, which share no code,
make of the same odd records.

A table of what the contract says of each, and as many mutated records as fit into a few seconds;
tests.fuzz.reading takes more.
"""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from contracts import cloudevents
from contracts.errors import REASONS, Refused
from domain import events
from tests.fuzz import reading
from tests.fuzz.reading import auditors, pipelines
from tests.fuzz.records import DEEPEST, Record, record
from tests.property.examples import part
from tests.unit.builders import ORDER, VALID, attributes, created, line

Headers = list[tuple[str, bytes | None]]
Case = tuple[Headers, bytes | None, str]

TYPE = "payment.failed"
DATA = VALID[TYPE]
VALUE = json.dumps(DATA).encode()
HEADERS: Headers = [(f"ce_{name}", text.encode()) for name, text in attributes(TYPE).items()]
MARK: Headers = [("content-type", b"application/cloudevents+json")]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER_TRACE = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"

TRACES: tuple[Any, ...] = (
    TRACE,
    None,
    1,
    True,
    {"a": 1},
    [],
    "",
    "x" * 2_000,
    "ff" + TRACE[2:],
    TRACE + "-more",
    TRACE.upper(),
)

OF_A_RECORD = {
    *(
        "tombstone",
        "not_json",
        "not_cloudevent",
        "type_unknown",
        "type_wrong_topic",
        "version_unknown",
        "field_missing",
        "field_malformed",
    ),
    *("currency_unknown", "item_repeated", "total_mismatch"),
}
TAKEN = "taken in"


def headers(**changes: bytes | None) -> Headers:
    """Headers in the binary binding, some with another value, or none."""
    by_name: dict[str, bytes | None] = dict(HEADERS)
    return list((by_name | {f"ce_{name}": raw for name, raw in changes.items()}).items())


def without(name: str) -> Headers:
    return [header for header in HEADERS if header[0] != f"ce_{name}"]


def whole(data: Any = DATA, **changes: Any) -> bytes:
    """A structured event."""
    return json.dumps({**attributes(TYPE), "data": data, **changes}, ensure_ascii=False).encode()


def less(name: str, **changes: Any) -> bytes:
    """A structured event without one of its members."""
    return json.dumps(
        {key: value for key, value in json.loads(whole(**changes)).items() if key != name}
    ).encode()


def data(**changes: Any) -> bytes:
    return json.dumps(DATA | changes, ensure_ascii=False).encode()


def twice(name: str, first: str, last: str, value: bytes = VALUE) -> bytes:
    """A member in front, and once more at the end, as JSON."""
    return b'{"%b":%b,%b,"%b":%b}' % (
        name.encode(),
        first.encode(),
        value[1:-1],
        name.encode(),
        last.encode(),
    )


def deep(levels: int) -> bytes:
    """Data with an unknown field, so that arrays and objects lie in each other so deep."""
    return VALUE[:-1] + b',"extra":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


CASES: dict[str, Case] = {
    # Which binding it is.
    "structured by its content-type": (MARK, whole(), TAKEN),
    "structured, in capitals with a parameter":
        ([("content-type", b" Application/CloudEvents+JSON ; charset=UTF-8")], whole(), TAKEN),
    "structured, a parameter that isn't text":
        ([("content-type", b"application/cloudevents+json;\xff")], whole(), TAKEN),
    "structured without a content-type": ([], whole(), TAKEN),
    "structured as application/json": ([("content-type", b"application/json")], whole(), TAKEN),
    "structured as text": ([("content-type", b"text/plain")], whole(), TAKEN),
    "structured, the content-type is null": ([("content-type", None)], whole(), TAKEN),
    "structured, the header is null": ([("ce_specversion", None)], whole(), TAKEN),
    "structured though its content-type names another format":
        ([("content-type", b"application/cloudevents+avro")], whole(), TAKEN),
    "structured by its content-type, a specversion as header beside":
        ([*MARK, ("ce_specversion", b"0.3")], whole(), TAKEN),
    "an object with a specversion under a header is data": (headers(), data(specversion="1.0"), TAKEN),
    "the specversion is no text": ([], whole(specversion=1.0), "not_cloudevent"),
    "the specversion is null": ([], whole(specversion=None), "not_cloudevent"),
    "the value is a list of events": ([], b"[%b]" % whole(), "not_cloudevent"),
    "a batch":
        ([("content-type", b"application/cloudevents-batch+json")], b"[%b]" % whole(), "not_cloudevent"),
    "another format":
        ([*headers(), ("content-type", b"application/cloudevents+avro")], VALUE, "not_cloudevent"),
    "a no-break space is no blank":
        ([("content-type", b"\xc2\xa0application/cloudevents+json")], less("specversion"), "not_cloudevent"),
    "neither headers nor an envelope": ([], VALUE, "not_cloudevent"),
    # Only the envelope of a structured event counts.
    "headers beside are ignored":
        ([*MARK, *headers(id=b"\xff", source=b"", type=b"x", time=b"x", dataschema=b"/v2")], whole(), TAKEN),
    "no time, but a header": ([*MARK, ("ce_time", b"2026-01-01T00:00:00Z")], less("time"), "field_missing"),
    "no source, but a header": ([*MARK, ("ce_source", b"/x")], less("source"), "not_cloudevent"),
    "no id, but a header": ([*MARK, ("ce_id", b"x")], less("id"), "not_cloudevent"),
    "no type, but a header": ([*MARK, ("ce_type", TYPE.encode())], less("type"), "not_cloudevent"),
    "no specversion, but a header":
        ([*MARK, ("ce_specversion", b"1.0")], less("specversion"), "not_cloudevent"),
    "no dataschema, but a header": ([*MARK, ("ce_dataschema", b"/v2")], whole(), TAKEN),
    # A header that is null isn't there.
    "the dataschema is null": (headers(dataschema=None), VALUE, TAKEN),
    "the subject is null": (headers(subject=None), VALUE, TAKEN),
    "the id is null": (headers(id=None), VALUE, "not_cloudevent"),
    "the time is null": (headers(time=None), VALUE, "field_missing"),
    "the time is null in the envelope": (MARK, whole(time=None), "field_missing"),
    "the dataschema is null in the envelope": (MARK, whole(dataschema=None), TAKEN),
    # Of several headers of one name the last that isn't null counts.
    "the last id counts": ([("ce_id", b""), *HEADERS], VALUE, TAKEN),
    "the last id is empty": ([*HEADERS, ("ce_id", b"")], VALUE, "not_cloudevent"),
    "a null behind the id": ([*HEADERS, ("ce_id", None)], VALUE, TAKEN),
    "the last version counts":
        ([*HEADERS, ("ce_dataschema", b"/v1"), ("ce_dataschema", b"/v2")], VALUE, "version_unknown"),
    # Attributes that nobody knows.
    "a subject in Latin-1": (headers(subject=b"Z\xfcrich"), VALUE, TAKEN),
    "an unknown attribute in Latin-1": (headers(tenant=b"Z\xfcrich"), VALUE, TAKEN),
    "an empty one": ([*HEADERS, ("ce_", b""), ("", b"")], VALUE, TAKEN),
    "a header's name that is no text": ([*HEADERS, ("ce_\udcff", b"\xff"), ("\udcff", None)], VALUE, TAKEN),
    "another case is another name":
        ([*HEADERS, ("CE_ID", b""), ("Content-Type", b"application/cloudevents+avro")], VALUE, TAKEN),
    "an unknown attribute of a structured event": (MARK, whole(subject={"a": [1]}, datacontenttype=7), TAKEN),
    "content in another media type is JSON all the same":
        ([*HEADERS, ("content-type", b"\xff")], VALUE, TAKEN),
    # Lengths are in characters.
    **{
        f"{name} of {count:,} {what}": case
        for name in ("id", "source", "type", "dataschema")
        for what, char in (("letters of two bytes", "é"), ("of four", "😀"), ("combining marks", "\u0301"))
        for count in (1_000, 1_001)
        for verdict in [
            "field_malformed" if count > 1_000
            else {"type": "type_unknown", "dataschema": "version_unknown"}.get(name, TAKEN)
        ]
        for case in [(headers(**{name: (char * count).encode()}), VALUE, verdict)]
    },
    "an id of 1,001 in the envelope": (MARK, whole(id="é" * 1_001), "field_malformed"),
    "a type of 1,001 in the envelope": (MARK, whole(type="é" * 1_001), "field_malformed"),
    "a source of 1,000 pairs of surrogates in the envelope":
        (MARK, json.dumps(json.loads(whole(source="😀" * 1_000))).encode(), TAKEN),
    "a reason of 1,000": (headers(), data(reason="😀" * 1_000), TAKEN),
    "a reason of 1,001": (headers(), data(reason="é" * 1_001), "field_malformed"),
    # What an attribute may be.
    "the id isn't UTF-8": (headers(id=b"\xff"), VALUE, "not_cloudevent"),
    "the dataschema isn't UTF-8": (headers(dataschema=b"\xff/v1"), VALUE, "not_cloudevent"),
    "the dataschema is empty": (headers(dataschema=b""), VALUE, "version_unknown"),
    "the dataschema is a number": (MARK, whole(dataschema=1), "not_cloudevent"),
    "the time isn't UTF-8": (headers(time=b"\xff"), VALUE, "field_malformed"),
    "the time is empty": (headers(time=b""), VALUE, "field_malformed"),
    "the time is a number": (MARK, whole(time=1_767_225_600), "field_malformed"),
    "the time has 1,001 characters":
        (headers(time=b"2026-01-01T00:00:00.%bZ" % (b"1" * 980)), VALUE, "field_malformed"),
    "a leap second": (headers(time=b"2016-12-31T23:59:60Z"), VALUE, TAKEN),
    "an internal type": (headers(type=b"refund.decided"), VALUE, "type_wrong_topic"),
    "data and data_base64": (MARK, whole(data_base64="bm8="), "not_cloudevent"),
    "data that is null, and data_base64": (MARK, whole(data=None, data_base64="bm8="), "not_cloudevent"),
    "data and data_base64 that is null": (MARK, whole(data_base64=None), TAKEN),
    "the attributes before both of the data":
        (MARK, whole(data_base64="bm8=", id=""), "not_cloudevent"),
    "the type before both of the data": (MARK, whole(data_base64="bm8=", type="order.eaten"), "type_unknown"),
    "data_base64 that is null": (MARK, less("data", data_base64=None), "field_missing"),
    "data_base64 that is a number": (MARK, whole(data_base64=1), "not_cloudevent"),
    "data_base64 of what isn't UTF-8": (
        MARK,
        less("data", data_base64=base64.b64encode(data(extra="é").decode().encode("latin-1")).decode()),
        "not_json",
    ),
    # A trace that isn't valid is dropped.
    **{f"traceparent {trace!r}"[:60]: (MARK, whole(traceparent=trace), TAKEN) for trace in TRACES},
    "a trace in Latin-1": (headers(traceparent=b"\xff"), VALUE, TAKEN),
    # JSON.
    "the first of two is malformed": (headers(), twice("reason", "5", '"r"'), "field_malformed"),
    "the last of two is malformed": (headers(), twice("reason", '"r"', "null"), "field_malformed"),
    "the last of two counts": (headers(), twice("reason", '"first"', '"last"'), TAKEN),
    "the first of two is too long":
        (headers(), twice("reason", '"%s"' % ("x" * 1_001), '"r"'), "field_malformed"),
    "the first of two is half a surrogate pair": (headers(), twice("extra", '"\\ud800"', "1"), "not_json"),
    "an attribute twice": (MARK, twice("id", '"first"', '"last"', whole()), TAKEN),
    "an attribute twice, the first malformed": (MARK, twice("id", "5", '"last"', whole()), "not_cloudevent"),
    "a name in escapes": (headers(), VALUE.replace(b'"reason"', b'"re\\u0061son"'), TAKEN),
    "a name twice, once in escapes": (headers(), twice("re\\u0061son", '"r"', "5"), "field_malformed"),
    f"{DEEPEST} deep": (headers(), deep(DEEPEST), TAKEN),
    f"{DEEPEST + 1} deep": (headers(), deep(DEEPEST + 1), "not_json"),
    "10,000 deep": (headers(), deep(10_000), "not_json"),
    "brackets in texts aren't deep": (headers(), data(extra=["[[[{\\\"[", '"[' * 900]), TAKEN),
    "many side by side aren't deep": (headers(), data(extra=[[], {}] * 900), TAKEN),
    f"{DEEPEST + 1} deep with the envelope":
        (MARK, b'{"data":%b,%b' % (deep(DEEPEST), less("data")[1:]), "not_json"),
    "an integer of 5,000 digits": (headers(), VALUE[:-1] + b',"extra":%b}' % (b"9" * 5_000), TAKEN),
    "a number beyond a float": (headers(), VALUE[:-1] + b',"extra":1e400}', TAKEN),
    "other bytes in what nobody looks at": (headers(), VALUE[:-1] + b',"extra":"\xff"}', "not_json"),
    "no value": (headers(), None, "tombstone"),
    # Of several faults the first.
    "no JSON before anything else": (without("id"), VALUE[:-1], "not_json"),
    "no JSON, which shows behind a malformed field": (headers(), data(order_id=5)[:-1], "not_json"),
    "no JSON, and no specversion": ([], b"hello", "not_json"),
    "the attributes before the data": (headers(type=b"order.eaten"), data(reason=5), "type_unknown"),
    "the attributes before missing data": (MARK, less("data", id=""), "not_cloudevent"),
    "the fields in their order: malformed first": (headers(), b'{"reason":5}', "field_malformed"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_what_the_contract_says(case: Case) -> None:
    given = Record(TYPE, case[0], case[1], "")
    pipeline, auditor = pipelines(given), auditors(given)
    assert pipeline == auditor
    assert pipeline[0] == case[2]


@pytest.mark.parametrize(
    ("given", "carried"),
    [
        ({"traceparent": TRACE}, TRACE),
        ({"traceparent": OTHER_TRACE.replace("1af", "0" * 3)}, OTHER_TRACE.replace("1af", "0" * 3)),
        ({"traceparent": {"a": 1}}, None),
        ({"traceparent": "00-" + "0" * 32 + TRACE[35:]}, None),
        ({"traceparent": TRACE[:36] + "0" * 16 + TRACE[52:]}, None),
        ({}, None),
    ],
)
@pytest.mark.parametrize("tracer", [None, b"nonsense", OTHER_TRACE.encode()])
def test_the_trace_that_goes_on(given: dict[str, Any], carried: str | None, tracer: bytes | None) -> None:
    """The event's, else that of the header which tracers add to any record."""
    for taken in (
        Record(
            TYPE,
            [*MARK, ("traceparent", tracer), ("ce_traceparent", OTHER_TRACE.encode())],
            whole(**given),
            "",
        ),
        Record(
            TYPE,
            [
                *headers(**{name: str(trace).encode() for name, trace in given.items()}),
                ("traceparent", tracer),
            ],
            VALUE,
            "",
        ),
    ):
        expected = carried or (OTHER_TRACE if tracer == OTHER_TRACE.encode() else None)
        assert pipelines(taken)[3] == auditors(taken)[3] == expected


@pytest.mark.parametrize("lines", [1, 499, 500, 501, 1_000])
def test_an_order_of_many_lines_may_hold_deep_fields(lines: int) -> None:
    """Its lines lie side by side, so they make nothing deeper."""
    plain = json.dumps(created(*(line(n) for n in range(lines))))[:-1].encode()
    binary: Headers = [(f"ce_{name}", text.encode()) for name, text in attributes("order.created").items()]
    for levels, verdict in ((1, TAKEN), (DEEPEST - 1, TAKEN), (DEEPEST, "not_json")):
        value = plain + b',"extra":' + b"[" * levels + b"]" * levels + b"}"
        given = Record("order.created", binary, value, "")
        assert pipelines(given)[0] == auditors(given)[0] == verdict


@pytest.mark.parametrize("seed", range(1, 1 + part(4)))
def test_mutated_records(seed: int) -> None:
    """tests.fuzz.reading --seed SEED --only N shows one of them again."""
    summary = reading.run(seed, 5_000)
    assert not summary.apart, "\n".join(map(str, summary.apart[:5]))
    # They say something: a good part is taken in, and of what a record by itself is refused for
    # each reason is among them.
    assert summary.verdicts["taken in"] > summary.records // 4
    assert set(summary.verdicts) >= OF_A_RECORD
    assert set(REASONS) >= OF_A_RECORD


def _bytes_for_characters(raw: bytes | None, name: str) -> str:
    if raw and len(raw) > 1_000:
        raise Refused("field_malformed", name)
    return _text(raw, name)


_text = cloudevents.text
PLANTED = {
    "bytes are counted": (events, "text", _bytes_for_characters),
    "the first of two headers counts": (cloudevents, "_last_of_each", lambda given: dict(reversed(given))),
    "a trace of another form is carried on": (
        events,
        "trace_of",
        lambda *given: next((raw.decode("latin-1") for raw in given if raw), None),
    ),
    "half of a document is JSON": (events, "refuse_no_json", lambda value: None),
}


@pytest.mark.source
@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED.keys())
def test_a_difference_is_noticed(planted: tuple[Any, str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(*planted)
    assert reading.run(1, 500).apart


def test_a_record_is_made_again_by_its_numbers() -> None:
    assert [record(7, n) for n in range(100)] == [record(7, n) for n in range(100)]
    assert ORDER.encode() in b"".join(record(7, n).value or b"" for n in range(100))
