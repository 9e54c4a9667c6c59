"""Records as hostile or careless upstreams send them: valid events, changed in up to
five places on any level.

A record is made from two numbers alone, a seed and its place in that seed's row, so each can be made again.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Final, NamedTuple, TypeAlias, cast

import msgspec

from contracts import bulk
from contracts.errors import Refused
from contracts.incoming import BulkPart
from contracts.topics import BULK, INPUT
from domain import events
from tests.unit.builders import ORDER, VALID, created, line

DEEPEST: Final = 500


class Record(NamedTuple):
    """`made`: the changes, in words."""

    topic: str
    headers: list[tuple[str, bytes | None]]
    value: bytes | None
    made: str


class Token(bytes):
    """JSON as it stands, right or wrong."""


Name: TypeAlias = str | Token


class Members(list[tuple[Name, Any]]):
    """A JSON object: names in their order, and as often as they stand."""


def members(value: Any) -> Any:
    """Plain JSON values with objects as Members."""
    if isinstance(value, dict):
        return Members((name, members(inner)) for name, inner in value.items())
    return [members(inner) for inner in value] if isinstance(value, list) else value


def written(value: Any) -> bytes:
    """As JSON."""
    if isinstance(value, Token):
        return bytes(value)
    if isinstance(value, Members):
        return b"{" + b",".join(written(name) + b":" + written(inner) for name, inner in value) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(written, value)) + b"]"
    return msgspec.json.encode(value)


def records(seed: int, count: int, first: int = 0) -> Iterator[Record]:
    """`count` records of a seed's row from its `first` on."""
    for n in range(first, first + count):
        yield record(seed, n)


def record(seed: int, n: int) -> Record:
    """The n-th record of a seed's row."""
    dice = Random((seed << 40) + n)
    draft = Draft(dice.choice(INPUT), dice)
    for _ in range(dice.choice((0, 1, 1, 1, 1, 2, 2, 3, 5))):
        change = dice.choice(CHANGES)
        change(draft, dice)
        draft.made.append(change.__name__)
    return draft.record(dice)


# -- odd values ----------------------------------------------------------------------------------------------

_LONG: Final = 1_000
TEXTS: Final[tuple[Any, ...]] = (
    "",
    " ",
    "plain",
    *(
        char * count
        for char in ("a", "é", "€", "😀", "e\u0301")
        for count in (_LONG // len(char), _LONG // len(char) + 1)
    ),
    *("é" * count for count in (500, 501, 600)),
    "\0",
    "a\0b",
    "\x7f",
    "\u2028",
    "\ufeff",
    "\uffff",
    "\U0010ffff",
    'quote " and \\ and / and \b\f\n\r\t',
    "[{" * 20,
    Token(rb'"\u0000"'),
    Token(rb'"\\u0000"'),
    Token(rb'"\u00e9\/"'),
    Token(rb'"\ud83d\ude00"'),
    Token(rb'"\uD83D\uDE00"'),
    Token(b'"' + rb"\ud83d\ude00" * _LONG + b'"'),
    Token(b'"' + rb"\ud83d\ude00" * (_LONG + 1) + b'"'),
    Token(rb'"\ud800"'),
    Token(rb'"\udc00"'),
    Token(rb'"\ud800\ud800"'),
    Token(rb'"\ude00\ud83d"'),
    Token(rb'"\ud83dx\ude00"'),
    Token(rb'"\\ud800"'),
    Token(rb'"\\\ud800"'),
    Token(rb'"\x41"'),
    Token(rb'"\u12"'),
    Token(b'"\xff"'),
    Token(b'"\xc0\x80"'),
    Token(b'"\xed\xa0\x80"'),
    Token(b'"\xf4\x90\x80\x80"'),
    Token(b'"a\tb"'),
    Token(b'"a\x00b"'),
    Token(b'"open'),
    Token(b"'single'"),
)
NUMBERS: Final[tuple[Any, ...]] = (
    *(0, 1, 2, -1, 100_000, 100_001, 2**53, 2**63, 2**64, 1.5),
    *map(
        Token,
        (
            b"-0",
            b"1.0",
            b"1e2",
            b"1E400",
            b"-1e-400",
            b"01",
            b"1.",
            b".5",
            b"+1",
            b"-",
            b"0x10",
            b"1_000",
            b"NaN",
            b"-Infinity",
        ),
    ),
    *map(
        Token,
        (
            b"9" * 99,
            b"9" * 100,
            b"-" + b"9" * 5_000,
            b"9" * 5_000,
            b"1" + b"0" * 30,
            b"0." + b"0" * 400 + b"1",
        ),
    ),
)
OTHERS: Final[tuple[Any, ...]] = (
    None,
    True,
    False,
    [],
    {},
    [[]],
    [None],
    {"a": 1},
    *map(
        Token,
        (
            b"",
            b"nul",
            b"True",
            b"[1,]",
            b'{"a":1,}',
            b'{"a"}',
            b"{1:2}",
            b"/* */ 1",
            b'{"a":1,"a":2}',
            b'{"\\ud800":1}',
        ),
    ),
    *(Token(b"[" * depth + b"]" * depth) for depth in range(DEEPEST - 5, DEEPEST + 3)),
    *(Token(b'{"a":' * depth + b"1" + b"}" * depth) for depth in range(DEEPEST - 5, DEEPEST + 3)),
    Token(b'["[",' * (DEEPEST // 2) + b'"]\\"["' + b"]" * (DEEPEST // 2)),
    Token(b"[" + b"[]," * 600 + b'"]]]]"]'),
    Token(b"[" * 5_000 + b"]" * 5_000),
    Token(b"[" * 5_000),
)
IDS: Final[tuple[Any, ...]] = (
    ORDER,
    ORDER.upper(),
    ORDER.replace("-", ""),
    ORDER.replace("-", "").upper(),
    ORDER.replace("-", "", 1),
    "00000000-0000-0000-0000-000000000000",
    "ffffffff-ffff-ffff-ffff-ffffffffffff",
    "{" + ORDER + "}",
    "urn:uuid:" + ORDER,
    ORDER + " ",
    ORDER + "\n",
    ORDER[:-1],
    ORDER[:-1] + "g",
    ORDER[:-1] + "１",
    ORDER.replace("-", "_"),
    "0a0a0a0a0000-4000-8000-0000-00000001",
    "-" * 36,
    Token(b'"' + "".join(f"\\u{ord(char):04x}" for char in ORDER).encode() + b'"'),
)
AMOUNTS: Final[tuple[Any, ...]] = (
    *(
        "0",
        "0.00",
        "1",
        "1.5",
        "10.00",
        "22.00",
        "00",
        "01.00",
        "1.",
        ".5",
        "1.000",
        "1.0000",
        "-1.00",
        "-0",
        "+1",
        "1e2",
        "1,00",
        "1_0",
    ),
    *(
        " 1.00",
        "1.00 ",
        "1.00\n",
        "١.00",
        "１.00",
        "1.０",
        "NaN",
        "Infinity",
        "0x1",
        "10000000000000.00",
        "10000000000000.01",
    ),
    *(
        "9" * 38,
        "9" * 39,
        "9" * 40,
        "9" * 1_000,
        "9" * 1_001,
        "0." + "0" * 38,
        "1." + "0" * 998,
        "1000000000000000",
        "1000000000000001",
    ),
)
CURRENCIES: Final = (
    "EUR",
    "JPY",
    "BHD",
    "CLF",
    "USD",
    "eur",
    "",
    "EURO",
    "XAU",
    "€",
    "EUR ",
    "EUR\0",
    "e" * 1_001,
)
TIMES: Final[tuple[Any, ...]] = (
    "2026-01-01T00:00:00Z",
    "2026-01-01t00:00:00z",
    "2026-01-01T00:00:00+00:00",
    "2026-01-01T00:00:00-00:00",
    "2026-01-01T23:59:59.999999999+23:59",
    "2026-01-01T00:00:00+24:00",
    "2026-01-01T00:00:00+00:60",
    "2026-01-01T00:00:00+0100",
    "2026-01-01T00:00:00+01",
    "2026-01-01T00:00:00 +01:00",
    "2026-01-01T00:00:00.Z",
    "2026-01-01T00:00:00.5Z",
    "2026-01-01T00:00:00,5Z",
    "2026-01-01T00:00:00." + "1" * 6 + "Z",
    "2026-01-01T00:00:00." + "9" * 7 + "Z",
    "2026-01-01T00:00:00." + "1" * 979 + "Z",
    "2026-01-01T00:00:00." + "1" * 980 + "Z",
    "2016-12-31T23:59:60Z",
    "2016-12-31T23:59:60.5z",
    "2017-01-01T00:59:60.999+01:00",
    "2016-12-31T23:59:61Z",
    "2026-03-01T10:00:60Z",
    "2016-12-31T23:60:00Z",
    "9999-12-31T23:59:60Z",
    "9999-12-31T23:59:59.999999Z",
    "9999-12-31T23:59:59-00:01",
    "0001-01-01T00:00:00Z",
    "0001-01-01T00:00:00+00:01",
    "0000-01-01T00:00:00Z",
    "2026-01-01T24:00:00Z",
    "2026-02-29T00:00:00Z",
    "2024-02-29T00:00:00Z",
    "2026-13-01T00:00:00Z",
    "2026-00-01T00:00:00Z",
    "2026-01-01 00:00:00Z",
    "2026-01-01T00:00:00",
    "2026-01-01T00:00Z",
    "2026-W01-1T00:00:00Z",
    "20260101T000000Z",
    "2026-001T00:00:00Z",
    "+2026-01-01T00:00:00Z",
    "２０２６-01-01T00:00:00Z",
    "2026-01-01T00:00:00²Z",
    "2026-01-01T00:00:00.²Z",
    "2026-01-01T00:00:00Z\n",
    " 2026-01-01T00:00:00Z",
    "2026-01-01T00:00:00Ź",
    "1767225600",
    "",
    "2026-01-05",
    "2026-02-30",
    "2026-1-5",
    "2026-01-05Z",
)
WORDS: Final = (
    "pending",
    "in_transit",
    "delivered",
    "returned",
    "requested",
    "processed",
    "rejected",
    "lost",
    "",
    "Pending",
    "q" * 3_000,
)
TRACES: Final[tuple[Any, ...]] = (
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
    "fe-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "00-00000000000000000000000000000000-b7ad6b7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
    "00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\n",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-more",
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331",
    "٠0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "",
    "nonsense",
)
SCHEMAS: Final[tuple[Any, ...]] = (
    *(
        "/v1",
        "urn:orders:x/v1",
        "https://example.org/é/v1",
        "v1",
        "/v2",
        "/v1/",
        "/V1",
        "/v01",
        "/v1\n",
        "",
        "/",
        "x" * 997 + "/v1",
        "x" * 998 + "/v1",
    ),
    *("é" * 997 + "/v1", "é" * 998 + "/v1", "/v1#/v2", "/v2#/v1"),
)
TYPES: Final = (
    *INPUT,
    *BULK,
    "refund.decided",
    "deadline.passed",
    "orders.decisions",
    "order.eaten",
    "ORDER.PAID",
    "order.paid ",
    "x" * 1_001,
)
VERSIONS: Final = ("1.0", "1", "0.3", "1.0.1", "2.0", "1.0 ", "", "１.0", "1" * 1_001)
CONTENT_TYPES: Final = (
    b"application/json",
    b"application/json; charset=utf-8",
    b"Application/JSON",
    b"text/plain",
    b"",
    b"\xff",
    b"application/cloudevents+json",
    b"Application/CloudEvents+JSON; charset=UTF-8",
    b" \tapplication/cloudevents+json ;charset=utf-16",
    b"application/cloudevents+json\x0b",
    b"\xc2\xa0application/cloudevents+json",
    b"\x1capplication/cloudevents+json",
    b"application/cloudevents+json;\xff",
    b"application/cloudevents+json,",
    b"application/cloudevents-batch+json",
    b"application/cloudevents+avro",
    b"application/cloudevents",
    b"applicat\xc4\xb1on/cloudevents+json",
)
OTHER_HEADERS: Final = (
    "ce_subject",
    "ce_tenant",
    "ce_",
    "ce_datacontenttype",
    "ce_data",
    "ce_data_base64",
    "CE_ID",
    "Ce_Type",
    "ce-id",
    "cloudEvents:id",
    "Content-Type",
    "content-type ",
    "traceparent",
    "tracestate",
    "rekeyed_topic",
    "rekeyed_offset",
    "dlq_reason",
    "redrive_of",
    "",
    "caf\udce9",
    "ce_\udcff",
    "\u2028",
)
BYTES: Final = (
    b"",
    b"x",
    b"\xff\xfe",
    b"Z\xfcrich",
    b"\x00",
    "é".encode(),
    b"1.0",
    b"x" * 70_000,
    b"\xed\xa0\x80",
)

_ODD: Final[dict[str, tuple[Any, ...]]] = {
    "quantity": NUMBERS,
    "restock": OTHERS,
    "status": WORDS,
    "currency": CURRENCIES,
    "price": AMOUNTS,
    "amount": AMOUNTS,
    "total_amount": AMOUNTS,
    "discount_amount": AMOUNTS,
    "shipping_amount": AMOUNTS,
    "time": TIMES,
    "processed_at": TIMES,
    "estimated_delivery": TIMES,
    "traceparent": TRACES,
    "dataschema": SCHEMAS,
    "type": TYPES,
    "specversion": VERSIONS,
}
ATTRIBUTES: Final = ("specversion", "id", "source", "type", "time", "dataschema", "traceparent")


def odd(name: str, dice: Random) -> Any:
    """A value for a member of this name: mostly of its kind."""
    if dice.random() < 0.25:
        return dice.choice(dice.choice((TEXTS, NUMBERS, OTHERS)))
    return dice.choice(_ODD.get(name) or (IDS if name.endswith("_id") else TEXTS))


def odd_bytes(name: str, dice: Random) -> bytes | None:
    """A value for a header."""
    if name == "content-type":
        return dice.choice(CONTENT_TYPES)
    if dice.random() < 0.3:
        return dice.choice(BYTES)
    text = dice.choice(_ODD.get(name.removeprefix("ce_"), TEXTS))
    return (
        bytes(text) if isinstance(text, Token) else text.encode() if isinstance(text, str) else written(text)
    )


# -- a record in parts ---------------------------------------------------------------------------------------


@dataclass(slots=True, init=False)
class Draft:
    """An event before it is written.
    `data` and `more`: members of the data, and of the envelope beside the attributes.
    """

    topic: str
    binding: str
    attributes: Members
    data: Any
    headers: list[tuple[str, bytes | None]]
    more: Members
    reshape: list[Callable[[bytes, Random], bytes | None]]
    made: list[str]

    def __init__(self, type_: str, dice: Random) -> None:
        self.topic = type_
        self.binding = dice.choice(
            ("binary", "binary", "binary", "structured", "structured", "unmarked", "beside", "base64", "bulk")
        )
        self.attributes = Members(
            {
                "specversion": "1.0",
                "id": "event-1",
                "source": "/fuzz",
                "type": type_,
                "time": "2026-01-01T00:00:00Z",
            }.items()
        )
        if dice.random() < 0.2:
            self.attributes.append(("traceparent", TRACES[0]))
        if dice.random() < 0.2:
            self.attributes.append(("dataschema", f"urn:orders:{type_}/v1"))
        whole = VALID[type_]
        if type_ == "order.created" and dice.random() < 0.3:
            whole = created(line(1), line(2, quantity=3, shipping_amount="0.50"), discount="0.01")
        self.data = members(whole)
        self.headers = []
        self.more = Members()
        self.reshape = []
        self.made = [self.binding]

    def parts(self) -> list[Members]:
        """Every object that may be changed: the envelope, the data, its items."""
        objects = [self.attributes, self.more]
        if isinstance(self.data, Members):
            objects += [self.data] * 5
            objects += [
                item
                for _, items in self.data
                if isinstance(items, list)
                for item in items
                if isinstance(item, Members)
            ]
        return objects

    def record(self, dice: Random) -> Record:
        headers, value = self._written(dice)
        reshaped: bytes | None = value
        for reshape in self.reshape:
            reshaped = None if reshaped is None else reshape(reshaped, dice)
        return Record(self.topic, headers + self.headers, reshaped, " ".join(self.made))

    def _written(self, dice: Random) -> tuple[list[tuple[str, bytes | None]], bytes]:
        data = written(self.data)
        if self.binding == "binary":
            headers = [
                (f"ce_{name}" if isinstance(name, str) else "ce_token", _header(text))
                for name, text in self.attributes
            ]
            return [*headers, ("content-type", b"application/json")], data
        if self.binding == "bulk":
            return self._unpacked(data)
        encoded = "data_base64" if self.binding == "base64" else "data"
        content: Any = base64.b64encode(data).decode() if self.binding == "base64" else Token(data)
        whole = written(Members([*self.attributes, *self.more, (encoded, content)]))
        if self.binding == "unmarked":
            return [("content-type", b"application/json")] if dice.random() < 0.5 else [], whole
        headers = [("content-type", b"application/cloudevents+json; charset=utf-8")]
        if self.binding == "beside":
            headers += [(f"ce_{name}", odd_bytes(name, dice)) for name in ATTRIBUTES if dice.random() < 0.4]
        return headers, whole

    def _unpacked(self, data: bytes) -> tuple[list[tuple[str, bytes | None]], bytes]:
        """As an event of a bulk part arrives; what can't be part of one, as binary."""
        attributes = {name: text for name, text in self.attributes if name in ("id", "time")}
        event = (
            data[:-1] + b"," + written(Members(attributes.items()))[1:]
            if attributes and data.endswith(b"}") and len(data) > 2
            else data
        )
        job = "00000000-0000-4000-8000-000000000001"
        headers = bulk.headers_of("order.bulk", "part-1", "2026-01-01T00:00:00Z", "/bulk")
        try:
            part = events.decode("order.bulk", headers, bulk.encode_part(job, 1, 1, [event]))
            (unpacked,) = bulk.unpack(part.type, cast(BulkPart, part.fact), part.traceparent)
        except (Refused, ValueError):
            return [("ce_specversion", b"1.0")], event
        headers = [
            (name, self.topic.encode() if name == "ce_type" else text) for name, text in unpacked.headers
        ]
        return list(headers), unpacked.value


def _header(value: Any) -> bytes | None:
    if value is None:
        return None
    return (
        bytes(value)
        if isinstance(value, Token)
        else value.encode()
        if isinstance(value, str)
        else written(value)
    )


# -- changes -------------------------------------------------------------------------------------------------


def other_value(draft: Draft, dice: Random) -> None:
    part = dice.choice(draft.parts())
    if part:
        at = dice.randrange(len(part))
        name = part[at][0]
        part[at] = name, odd(str(name), dice)


def other_attribute(draft: Draft, dice: Random) -> None:
    part = draft.attributes
    name = dice.choice(ATTRIBUTES)
    places = [at for at, (known, _) in enumerate(part) if known == name]
    if places:
        part[places[0]] = name, odd(name, dice)
    else:
        part.append((name, odd(name, dice)))


def without(draft: Draft, dice: Random) -> None:
    part = dice.choice(draft.parts())
    if part:
        part.pop(dice.randrange(len(part)))


def twice(draft: Draft, dice: Random) -> None:
    part = dice.choice(draft.parts())
    if part:
        name, value = dice.choice(part)
        part.insert(
            dice.randrange(len(part) + 1), (name, value if dice.random() < 0.2 else odd(str(name), dice))
        )


def unknown(draft: Draft, dice: Random) -> None:
    part = dice.choice(draft.parts())
    name: Name = dice.choice(
        (
            "extra",
            "subject",
            "datacontenttype",
            "data",
            "id",
            "",
            "order_ID",
            "é",
            Token(rb'"\ud83d\ude00"'),
            Token(rb'"\ud800"'),
        )
    )
    part.insert(dice.randrange(len(part) + 1), (name, odd("extra", dice)))


def escaped_name(draft: Draft, dice: Random) -> None:
    part = dice.choice(draft.parts())
    if part:
        at = dice.randrange(len(part))
        name, value = part[at]
        if isinstance(name, str) and name:
            part[at] = Token(b'"\\u%04x' % ord(name[0]) + written(name[1:])[1:]), value


def another_order(draft: Draft, dice: Random) -> None:
    dice.shuffle(dice.choice(draft.parts()))


def more_items(draft: Draft, dice: Random) -> None:
    if isinstance(draft.data, Members):
        for at, (name, items) in enumerate(draft.data):
            if name == "items" and isinstance(items, list) and items:
                again = dice.choice((0, 2, 2, 499, 500, 501, 1_000, 1_001))
                item = b"".join((written(items[0])[:-1], b"}"))
                draft.data[at] = name, [Token(item) for _ in range(again)]


def other_data(draft: Draft, dice: Random) -> None:
    draft.data = members(dice.choice(dice.choice((TEXTS, NUMBERS, OTHERS))))


def other_topic(draft: Draft, dice: Random) -> None:
    draft.topic = dice.choice(INPUT)


def header_again(draft: Draft, dice: Random) -> None:
    name = dice.choice((*(f"ce_{name}" for name in ATTRIBUTES), "content-type", "traceparent"))
    draft.headers.append((name, dice.choice((None, odd_bytes(name, dice)))))


def another_header(draft: Draft, dice: Random) -> None:
    draft.headers.append((dice.choice(OTHER_HEADERS), dice.choice((None, *BYTES))))


def null_header(draft: Draft, dice: Random) -> None:
    part = draft.attributes
    if part:
        at = dice.randrange(len(part))
        part[at] = part[at][0], None


def content_type(draft: Draft, dice: Random) -> None:
    draft.headers.append(("content-type", dice.choice((None, *CONTENT_TYPES))))


def other_bytes(draft: Draft, dice: Random) -> None:
    draft.reshape.append(dice.choice(_RESHAPES))


CHANGES: Final = (
    *(
        other_value,
        other_value,
        other_value,
        other_attribute,
        other_attribute,
        without,
        twice,
        twice,
        unknown,
        escaped_name,
    ),
    *(
        another_order,
        more_items,
        other_data,
        other_topic,
        header_again,
        another_header,
        null_header,
        content_type,
        other_bytes,
    ),
)


def _cut(value: bytes, dice: Random) -> bytes:
    return value[: dice.randrange(len(value) + 1)]


def _byte(value: bytes, dice: Random) -> bytes:
    at = dice.randrange(len(value) + 1)
    return value[:at] + dice.choice((b"", bytes([dice.randrange(256)]))) + value[at + 1 :]


def _inserted(value: bytes, dice: Random) -> bytes:
    at = dice.randrange(len(value) + 1)
    return (
        value[:at]
        + dice.choice(
            (
                b" ",
                b"\t\r\n",
                b"\x0c",
                b"\xa0",
                b"\xef\xbb\xbf",
                b"\x00",
                b",",
                b'"',
                b"\\",
                b"{",
                b"}",
                b"\xff",
            )
        )
        + value[at:]
    )


def _around(value: bytes, dice: Random) -> bytes:
    before, behind = dice.choice(
        (
            (b"\xef\xbb\xbf", b""),
            (b" \n", b"\r\t"),
            (b"", b"{}"),
            (b"", b"\x00"),
            (b"[", b"]"),
            (b"\x00\x00\x00\x00\x07", b""),
        )
    )
    return before + value + behind


def _encoded(value: bytes, dice: Random) -> bytes:
    return value.decode("utf-8", "replace").encode(
        dice.choice(("utf-16", "utf-16-le", "utf-32", "latin-1", "utf-8-sig")), "replace"
    )


def _nothing(value: bytes, dice: Random) -> bytes | None:
    return dice.choice((None, b"", b" ", b"null", b"{}", b"[]"))


_RESHAPES: Final[tuple[Callable[[bytes, Random], bytes | None], ...]] = (
    _cut,
    _byte,
    _byte,
    _byte,
    _inserted,
    _inserted,
    _around,
    _encoded,
    _nothing,
)
