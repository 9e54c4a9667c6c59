"""The contract a second time: what a log of events means, written to be obviously right and nothing else.

The pipeline is checked against this module, so it shares no code with it: standard library only, one small
function per rule, no state kept that could be computed. Money is an integer of minor units, a time is an
aware datetime in UTC, an id is canonical UUID text.

    parse(topic, key, value, headers) -> Fact | Refusal   what one record says
    Order.add(fact)                                       facts of one order, by natural key
    Order.readings() -> [Reading]                         what they amount to: status, rows, refunds,
                                                          derived events

Nothing here blocks or does I/O.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import functools
import hashlib
import itertools
import json
import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from audit.attention import TABLE as ATTENTION
from audit.attention import Held, attention_of, attention_rows
from audit.currencies import MINOR_DIGITS
from audit.history import Elsewhere, Live, counted_as_paid, paid_back
from audit.promises import BY, DELIVER, FIELDS, SHIP, UNSHIPPED, Late, Promises, subject_of
from audit.refunds import Allocation, LeftOver, allocate, misallocated
from audit.rows import more_rows
from audit.rows import span as _span
from audit.topics import BULK, INPUT

NaturalKey = tuple[Hashable, ...]
Headers = Sequence[tuple[str, bytes | None]]

MOST_MINOR_UNITS: Final = 10**15
MOST_QUANTITY: Final = 100_000
MOST_ITEMS: Final = 1_000
MOST_TAXES: Final = 20
MOST_OF_A_CODE: Final = 32
"""Characters of a tax code."""
MOST_ATTEMPTS: Final = 100
"""To pay a refund."""
MOST_CHARACTERS: Final = 1_000
MOST_DEEP: Final = 500
"""Arrays and objects of a JSON document in each other."""
LARGEST_BATCH: Final = 24 << 20
"""Bytes of a batch that the changelog takes, unless a setting says less."""
FIRST_UNIT: Final = 0
"""Number of a line's first unit in refund.decided."""

PENDING, IN_TRANSIT, DELIVERED, RETURNED = range(4)
RANKS: Final = {"pending": PENDING, "in_transit": IN_TRANSIT, "delivered": DELIVERED, "returned": RETURNED}
STAGES: Final = ("requested", "processed", "rejected")
LATE: Final = timedelta(days=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


# -- records -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a record or a fact can't be taken in: a stable code, and where in the record."""

    code: str
    detail: str


class Refused(Exception):
    """Raised inside this module on the way to a Refusal."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(code, detail)
        self.refusal = Refusal(code, detail)


class Fact(NamedTuple):
    """One event, normalised. `content` holds its known data fields as sent, without the reason; two facts of
    one key must agree in it.
    """

    type: str
    order_id: str
    time: datetime
    key: NaturalKey
    content: Mapping[str, Any]
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """A refund.decided record. `amount` and `tax_amount` in minor units, None: it says nothing of tax;
    `time` its event's. `allocations`: the payments that it goes back to, None: it doesn't say.
    """

    order_id: str
    n: int
    amount: int
    cause: str
    cause_id: str
    units: tuple[tuple[str, int], ...]
    shipping: tuple[str, ...]
    tax_amount: int | None = None
    time: datetime | None = field(default=None, compare=False)
    allocations: tuple[Allocation, ...] | None = None


@dataclass(frozen=True, slots=True)
class Room:
    """How much an order and a record may hold, where the changelog takes batches of so many bytes."""

    batch: int = LARGEST_BATCH

    @property
    def passed_on(self) -> int:
        """Bytes of a record, uncompressed, with 10 more for each header: a larger one is neither re-keyed
        nor held by its dead letter.
        """
        return min(8 << 20, self.batch) // 8 * 7

    def facts(self, type_: str) -> int:
        """Bytes of the facts of one event type that one order takes in, as `size` counts them."""
        if type_ == "promise.updated":
            return self.batch // 192
        if type_ == "refund.granted":
            return self.batch // 96
        share = {"shipment.updated": 2, "deadline.passed": 2, "refund.decided": 11}.get(type_, 1)
        return share * self.batch // 24

    def begins(self, created: Fact) -> bool:
        """Whether an order may begin with this order.created or checkout."""
        lines = created.content["items"]
        codes = [tax["code"] for line in lines for tax in _taxes_of(line)]
        texts = [created.content.get("region", ""), *(line["sku"] for line in lines), *codes]
        characters = sum(len(text.encode()) for text in texts)
        counted = 512 * len(lines) + 64 * len(codes) + 6 * characters
        if "prices_include_tax" in created.content and counted > self.passed_on:
            return False
        counted = 3_200 * len(lines) + 24 * sum(line["quantity"] for line in lines) + 64 * len(codes)
        return self.batch >= LARGEST_BATCH or counted + 3 * characters <= self.batch // 3


ROOM: Final = Room()
"""Where no setting says less."""


class Event(NamedTuple):
    """A CloudEvent out of its binding. `traceparent` None: it has none of the W3C's form."""

    id: str
    type: str
    time: str | None
    data: Any
    traceparent: str | None


class Parsed(NamedTuple):
    """What a record says, and how derived events refer to it: by the event's id, carrying on its trace."""

    outcome: Fact | Refusal
    event_id: str
    traceparent: str | None


def parse(
    topic: str, key: bytes | None, value: bytes | None, headers: Headers, taken: int | None = None
) -> Fact | Refusal:
    """What a record of an input topic says. `taken`: when Kafka took it, ms; None or 0: not
    known.
    The key is not judged: a record under another key than its order's is re-keyed, not refused.
    """
    del key
    return read(topic, value, headers, taken).outcome


def read(topic: str, value: bytes | None, headers: Headers, taken: int | None = None) -> Parsed:
    """The same, with what derived events carry on of it (empty where it is refused)."""
    try:
        envelope = Envelope(value, headers)
        event_id, type_ = envelope.names()
        if type_ not in (*INPUT, *BULK, "refund.decided", "deadline.passed"):
            raise Refused("type_unknown", type_[:100])
        if type_ != topic:
            raise Refused("type_wrong_topic", f"{type_} on {topic}")
        fact = _fact(type_, _happened(envelope), envelope.data(), taken)
        return Parsed(fact, event_id, envelope.traceparent())
    except Refused as refused:
        return Parsed(refused.refusal, "", None)


def _happened(envelope: Envelope) -> datetime:
    """When it happened, of an event whose version is known."""
    schema = envelope.text("dataschema")
    if schema is not None and len(schema) > MOST_CHARACTERS:
        raise Refused("field_malformed", "dataschema")
    if schema is not None and not schema.endswith("/v1"):
        raise Refused("version_unknown", "dataschema")
    time = envelope.time()
    if time is None:
        raise Refused("field_missing", "time")
    return _time(time, "time")


def normalised(type_: str, value: bytes | None) -> Fact | Refusal:
    """The fact in a dead letter that holds a normalised one: {"type", "time", "data"} as JSON."""
    try:
        document = _json(value or b"")
        if not isinstance(document, dict) or document.get("type") != type_:
            raise Refused("field_malformed", "type")
        return _fact(type_, _time(document.get("time"), "time"), document.get("data"))
    except Refused as refused:
        return refused.refusal


def parse_decision(value: bytes | None, headers: Headers) -> Decision | Fact | Refusal:
    """What a record of orders.decisions says: a refund, or a deadline that has passed, which is a fact.
    Another type is a Refusal.
    """
    try:
        envelope = Envelope(value, headers)
        _, type_ = envelope.names()
        if type_ not in ("refund.decided", "deadline.passed"):
            raise Refused("type_unknown", type_[:100])
        time = _happened(envelope)
        if type_ == "refund.decided":
            optional = {"tax_amount": _whole(0), "allocations": _decided_allocations}
            decided = _fields(envelope.data(), _DECISION_FIELDS, optional)
            for name in ("amount", "tax_amount"):
                if decided.get(name, 0) >= 1 << 64:
                    raise Refused("field_malformed", name)
            parts = decided.get("allocations")
            if parts is not None and (
                sum(part for _, part in parts) != decided["amount"]
                or len({payment for payment, _ in parts}) < len(parts)
            ):
                raise Refused("field_malformed", "allocations")
            return Decision(**decided, time=time)
        content = _fields(envelope.data(), *_DEADLINE_FIELDS)
        needed = (_WHOSE[content["deadline"]], "due" if content["deadline"] in BY else None)
        for needs in needed:
            if needs is not None and needs not in content:
                raise Refused("field_missing", needs)
        content = {
            name: each for name, each in content.items() if name not in _DEADLINE_FIELDS[1] or name in needed
        }
        return Fact(type_, content["order_id"], time, natural_key(type_, time, content), content)
    except Refused as refused:
        return refused.refusal


def _whole(least: int, most: int | None = None) -> Reader:
    def read(value: Any, path: str) -> int:
        if type(value) is not int or value < least or (most is not None and value > most):
            raise Refused("field_malformed", path)
        return value

    return read


def _decided_units(value: Any, path: str) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise Refused("field_malformed", path)
    number = _whole(FIRST_UNIT, FIRST_UNIT + MOST_QUANTITY - 1)
    return tuple((_uuid(item, path), number(unit, path)) for item, unit in value)


def _decided_allocations(value: Any, path: str) -> tuple[Allocation, ...]:
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise Refused("field_malformed", path)
    amount = _whole(1, (1 << 64) - 1)
    return tuple((_uuid(payment, path), amount(part, path)) for payment, part in value)


def _decided_lines(value: Any, path: str) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise Refused("field_malformed", path)
    return tuple(_uuid(item, path) for item in value)


def unwrap(value: bytes | None, headers: Headers) -> Event:
    """Take a CloudEvents 1.0 event out of either Kafka binding.
    Raises Refused: tombstone, not_json, not_cloudevent, field_...
    """
    envelope = Envelope(value, headers)
    return Event(*envelope.names(), envelope.time(), envelope.data(), envelope.traceparent())


class Envelope:
    """A CloudEvents 1.0 event in either Kafka binding.
    What it says is looked at when it is asked for: of several faults the first is told.

    Raises Refused: tombstone; not_json; not_cloudevent, field_malformed for an envelope that can't be one
    whatever its attributes say.
    """

    __slots__ = ("_document", "_headers", "_structured")

    def __init__(self, value: bytes | None, headers: Headers) -> None:
        if value is None:
            raise Refused("tombstone", "no value")
        self._document = document = _json(value)
        # A header without a value is none. Of several with one name the last counts.
        self._headers: dict[str, Any] = dict(headers)
        if None in self._headers.values():
            self._headers = {name: raw for name, raw in headers if raw is not None}
        media_type = self._headers.get("content-type", b"")
        if media_type != b"application/json":
            media_type = media_type.split(b";")[0].strip(b" \t\r\n\v\f").lower()
        marked = (
            "ce_specversion" not in self._headers
            and isinstance(document, dict)
            and isinstance(document.get("specversion"), str)
        )
        self._structured = marked or media_type == b"application/cloudevents+json"
        if not self._structured and media_type.startswith(b"application/cloudevents"):
            raise Refused("not_cloudevent", f"content-type {media_type.decode('ascii', 'backslashreplace')}")
        if self._structured:
            if not isinstance(document, dict):
                raise Refused("not_cloudevent", "not an object")
            for name, text in _members(document):
                if name in _ATTRIBUTES and not (text is None or isinstance(text, str)):
                    raise Refused("field_malformed" if name == "time" else "not_cloudevent", name)

    def text(self, name: str) -> str | None:
        """An attribute; None if it is absent (or null, which is the same).
        Raises Refused if it isn't text.
        """
        if self._structured:
            text: str | None = self._document.get(name)
            return text
        raw = self._headers.get(f"ce_{name}")
        try:
            return None if raw is None else raw.decode("utf-8")
        except UnicodeDecodeError:
            raise Refused("not_cloudevent", name) from None

    def names(self) -> tuple[str, str]:
        """Its id and its type. Raises Refused for these, for specversion and for source."""
        if self.text("specversion") != "1.0":
            raise Refused("not_cloudevent", "specversion")
        names = []
        for name in ("id", "source", "type"):
            text = self.text(name)
            if not text:
                raise Refused("not_cloudevent", name)
            if len(text) > MOST_CHARACTERS:
                raise Refused("field_malformed", name)
            names.append(text)
        return names[0], names[2]

    def time(self) -> str | None:
        """Its time as written."""
        if self._structured:
            return self.text("time")
        raw = self._headers.get("ce_time")
        return None if raw is None else raw.decode("utf-8", "replace")

    def data(self) -> Any:
        """Its data as a JSON document. Raises Refused."""
        if not self._structured:
            return self._document
        encoded = self._document.get("data_base64")
        if "data" in self._document:
            if encoded is not None:
                raise Refused("not_cloudevent", "data_base64")
            return self._document["data"]
        if encoded is None:
            raise Refused("field_missing", "data")
        try:
            data = base64.b64decode(encoded, validate=True)
        except (binascii.Error, ValueError):
            raise Refused("not_cloudevent", "data_base64") from None
        return _json(data)

    def traceparent(self) -> str | None:
        """Its trace or, where it has none of the W3C's form, that of a tracer's own header."""
        own = self._document.get("traceparent") if self._structured else self._headers.get("ce_traceparent")
        for trace in (own, self._headers.get("traceparent")):
            text = trace.decode("utf-8", "replace") if isinstance(trace, bytes) else trace
            match = _TRACEPARENT.fullmatch(text) if isinstance(text, str) else None
            if match is not None and match[1] != "ff" and match[2].strip("0") and match[3].strip("0"):
                return match[0]
        return None


_ATTRIBUTES: Final = ("specversion", "id", "source", "type", "time", "dataschema", "data_base64")
"""Members of a structured event that are text.
Its data may be anything until it is looked at, its traceparent always.
"""


class _HugeInteger:
    """A JSON integer too long to be worth converting: no field may hold it."""


class _Twice(dict[str, Any]):
    """A JSON object in which a name stands twice: its last value counts.
    `pairs`: all that the document says.
    """

    pairs: list[tuple[str, Any]]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        members = _Twice(members)
        members.pairs = pairs
    return members


def _members(document: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Names and values of a JSON object in the order of the document, those that stand twice too."""
    return document.pairs if isinstance(document, _Twice) else document.items()


def _refuse_constant(name: str) -> Any:
    raise ValueError(name)


def _integer(digits: str) -> Any:
    return int(digits) if len(digits) < 100 else _HugeInteger()


_TRACEPARENT: Final = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}", re.ASCII)
_JSON_STRING: Final = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_ESCAPE: Final = re.compile(
    r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?P<lone>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
_plain: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_refuse_constant).raw_decode
_patient: Final = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_refuse_constant, parse_int=_integer
).decode


def _json(value: bytes) -> Any:
    try:
        text = value.decode("utf-8")
        _refuse_deep(text)
        try:
            document, end = _plain(text)
        except ValueError:
            end = -1
        if end != len(text):
            # White space around it, or an integer of thousands of digits, which Python refuses to convert;
            # whatever else is wrong fails again.
            document = _patient(text)
    except ValueError as error:
        raise Refused("not_json", str(error)[:200].encode("ascii", "backslashreplace").decode()) from None
    if "\\u" in text and any(escape["lone"] for escape in _ESCAPE.finditer(text)):
        raise Refused("not_json", "half of a surrogate pair")
    return document


def _refuse_deep(text: str) -> None:
    if len(text) <= 2 * MOST_DEEP or text.count("[") + text.count("{") <= MOST_DEEP:
        return
    depth = 0
    for char in _JSON_STRING.sub("", text):
        if char in "[{":
            depth += 1
            if depth > MOST_DEEP:
                raise Refused("not_json", "nested too deeply")
        elif char in "]}":
            depth -= 1


# -- fields --------------------------------------------------------------------------------------------------

Reader = Callable[[Any, str], Any]
_CANONICAL: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)
_UUID: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)
_MONEY: Final = re.compile(r"(0|[1-9][0-9]*)(?:\.([0-9]+))?")
_DATE: Final = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
_USUAL_TIME: Final = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{3}|\.[0-9]{6})?Z", re.ASCII
)
_TIME: Final = re.compile(
    r"([0-9]{4})-([0-9]{2})-([0-9]{2})[Tt]([0-9]{2}):([0-9]{2}):([0-9]{2})(?:\.([0-9]+))?(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))"
)


def _text(value: Any, path: str) -> str:
    if not isinstance(value, str) or len(value) > MOST_CHARACTERS:
        raise Refused("field_malformed", path)
    return value


def _tax_code(value: Any, path: str) -> str:
    if not 1 <= len(_text(value, path)) <= MOST_OF_A_CODE:
        raise Refused("field_malformed", path)
    return str(value)


def _uuid(value: Any, path: str) -> str:
    if not isinstance(value, str):
        raise Refused("field_malformed", path)
    if _CANONICAL.fullmatch(value):
        return value
    if not _UUID.fullmatch(value):
        raise Refused("field_malformed", path)
    return uuid_text(value.replace("-", "").lower())


def uuid_text(digits: str) -> str:
    """32 hexadecimal digits -> canonical UUID text."""
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def uuid_bytes(text: str) -> bytes:
    """Canonical UUID text -> 16 bytes."""
    return bytes.fromhex(text.replace("-", ""))


def is_canonical(key: bytes | None) -> bool:
    """Whether a record's key is a UUID in canonical text form."""
    return key is not None and len(key) == 36 and _CANONICAL_KEY.fullmatch(key) is not None


_CANONICAL_KEY: Final = re.compile(_CANONICAL.pattern.encode())


def uuid5(namespace: bytes, name: str) -> str:
    """RFC 9562, version 5: `name` in the namespace of a UUID's 16 bytes, as canonical text."""
    digest = bytearray(hashlib.sha1(namespace + name.encode(), usedforsecurity=False).digest()[:16])
    digest[6] = digest[6] & 0x0F | 0x50
    digest[8] = digest[8] & 0x3F | 0x80
    return uuid_text(digest.hex())


def _time(value: Any, path: str) -> datetime:
    if isinstance(value, str) and _USUAL_TIME.fullmatch(value):
        try:
            return datetime.fromisoformat(value)
        except ValueError:  # a leap second, or no date
            pass
    match = _TIME.fullmatch(value) if isinstance(value, str) and len(value) <= MOST_CHARACTERS else None
    if match is None:
        raise Refused("field_malformed", path)
    year, month, day, hour, minute, second, fraction, sign, offset_hours, offset_minutes = match.groups()
    microseconds = int(((fraction or "") + "000000")[:6])
    if second == "60":  # a leap second
        second, microseconds = "59", 999_999
    offset = timedelta()
    if sign is not None:
        if int(offset_hours) > 23 or int(offset_minutes) > 59:
            raise Refused("field_malformed", path)
        offset = timedelta(hours=int(offset_hours), minutes=int(offset_minutes)) * (-1 if sign == "-" else 1)
    try:
        return (
            datetime(int(year), int(month), int(day), int(hour), int(minute), int(second), microseconds, UTC)
            - offset
        )
    except (ValueError, OverflowError):
        raise Refused("field_malformed", path) from None


def time_of(text: str) -> datetime:
    """RFC 3339 with an offset -> a time in UTC. Raises Refused."""
    return _time(text, "time")


def _date_or_time(value: Any, path: str) -> datetime:
    match = _DATE.fullmatch(value) if isinstance(value, str) else None
    return _time(value if match is None else f"{value}T00:00:00Z", path)


def _quantity(value: Any, path: str) -> int:
    if type(value) is not int or not 1 <= value <= MOST_QUANTITY:
        raise Refused("field_malformed", path)
    return value


def _boolean(value: Any, path: str) -> bool:
    if not isinstance(value, bool):
        raise Refused("field_malformed", path)
    return value


def _one_of(*words: str) -> Reader:
    def read(value: Any, path: str) -> str:
        if not isinstance(value, str) or value not in words:
            raise Refused("field_malformed", path)
        return value

    return read


def money(text: str, currency: str) -> int:
    """Decimal text in major units as minor units. Raises ValueError when it is no money in this currency."""
    digits = MINOR_DIGITS[currency]
    match = _MONEY.fullmatch(text) if len(text) <= MOST_CHARACTERS else None
    if match is None or len(match[2] or "") > digits:
        raise ValueError(f"{text[:40]!r} is no amount in {currency}")
    minor = int(match[1] + (match[2] or "").ljust(digits, "0"))
    if minor > MOST_MINOR_UNITS:
        raise ValueError(f"{text[:40]!r} is too much")
    return minor


def money_text(minor: int, currency: str) -> str:
    """Minor units as decimal text in major units, with all of the currency's digits."""
    digits = MINOR_DIGITS[currency]
    whole, rest = divmod(minor, 10**digits)
    return f"{whole}.{rest:0{digits}d}" if digits else str(whole)


def _money(text: str, currency: str, path: str) -> int:
    try:
        return money(text, currency)
    except ValueError:
        raise Refused("field_malformed", path) from None


def _fields(
    data: Any, required: Mapping[str, Reader], optional: Mapping[str, Reader], path: str = ""
) -> dict[str, Any]:
    """The known fields of an object, each of the right form: an absent optional one stays
    absent, null is malformed.

    Unknown ones are ignored. Of a name that stands twice the last value counts, and each must have the form.
    """
    if not isinstance(data, dict):
        raise Refused("field_malformed", path.removesuffix(".") or "data")
    fields = {}
    for name, value in _members(data):
        read = required.get(name) or optional.get(name)
        if read is not None:
            fields[name] = read(value, path + name)
    for name in required:
        if name not in fields:
            raise Refused("field_missing", path + name)
    return fields


def _items(
    required: Mapping[str, Reader], optional: Mapping[str, Reader], least: int = 0, most: int = MOST_ITEMS
) -> Reader:
    def read(value: Any, path: str) -> tuple[dict[str, Any], ...]:
        if not isinstance(value, list):
            raise Refused("field_malformed", path)
        items = tuple(
            _fields(item, required, optional, f"{path}[{number}].") for number, item in enumerate(value)
        )
        if not least <= len(items) <= most:
            raise Refused("field_malformed", path)
        return items

    return read


_SOME_ITEMS: Final = _items({"item_id": _uuid, "quantity": _quantity}, {})
DEADLINES: Final = (
    *("payment", "stock", "release", "label", "refund"),
    *("ship", "unshipped", "deliver", "return", "refund_retry"),
)
_DEADLINE_FIELDS: Final[tuple[dict[str, Reader], dict[str, Reader]]] = (
    {"order_id": _uuid, "deadline": _one_of(*DEADLINES), "attempt": _quantity, "final": _boolean},
    {"seller_id": _uuid, "refund_id": _uuid, "return_id": _uuid, "due": _time},
)
_WHOSE: Final = {
    "payment": None,
    "stock": "seller_id",
    "release": "seller_id",
    "label": "seller_id",
    "refund": "refund_id",
    **dict.fromkeys(BY, "seller_id"),
    "return": "return_id",
    "refund_retry": "refund_id",
}
_DECISION_FIELDS: Final[dict[str, Reader]] = {
    "order_id": _uuid,
    "n": _whole(0),
    "amount": _whole(1),
    "cause": _one_of("return", "stock", "closed", "grant"),
    "cause_id": _uuid,
    "units": _decided_units,
    "shipping": _decided_lines,
}
_TAXES: Final = _items({"code": _tax_code, "amount": _text}, {}, most=MOST_TAXES)
_LINES: Final = _items(
    {
        "item_id": _uuid,
        "product_id": _uuid,
        "seller_id": _uuid,
        "sku": _text,
        "quantity": _quantity,
        "price": _text,
    },
    {
        "warehouse_id": _uuid,
        "shipping_amount": _text,
        "taxes": _TAXES,
        "shipping_taxes": _TAXES,
        "ship_by": _text,
        "deliver_by": _text,
    },
    least=1,
)
_PLACED: Final[dict[str, Reader]] = {
    "user_id": _uuid,
    "currency": _text,
    "total_amount": _text,
    "items": _LINES,
}
_PLACED_TOO: Final[dict[str, Reader]] = {
    "region": _text,
    "discount_amount": _text,
    "prices_include_tax": _boolean,
    "cart_id": _uuid,
    "cart_created_at": _text,
    "live_from": _time,
    "refunded_amount": _text,
}
_REPLIED: Final[dict[str, Reader]] = {"reason": _text, "attempt": _whole(1, MOST_ATTEMPTS)}
_FIELDS: Final[dict[str, tuple[dict[str, Reader], dict[str, Reader]]]] = {
    "checkout.completed": ({"checkout_id": _uuid, **_PLACED}, _PLACED_TOO),
    "order.created": ({"order_id": _uuid, **_PLACED}, _PLACED_TOO),
    "order.paid": (
        {"order_id": _uuid, "payment_id": _uuid, "amount": _text, "currency": _text},
        {"method": _text},
    ),
    "payment.failed": ({"order_id": _uuid, "payment_id": _uuid, "reason": _text}, {}),
    "stock.reserved": ({"order_id": _uuid, "seller_id": _uuid, "reservation_id": _uuid}, {}),
    "stock.rejected": (
        {"order_id": _uuid, "seller_id": _uuid, "reservation_id": _uuid},
        {"reason": _text, "items": _SOME_ITEMS},
    ),
    "stock.released": (
        {"order_id": _uuid, "seller_id": _uuid, "reservation_id": _uuid},
        {"reason": _text, "items": _SOME_ITEMS},
    ),
    "order.cancel_requested": ({"order_id": _uuid, "reason": _text}, {"seller_id": _uuid}),
    "promise.updated": (
        {"order_id": _uuid, "seller_id": _uuid},
        {"ship_by": _text, "deliver_by": _text},
    ),
    "shipment.updated": (
        {"order_id": _uuid, "shipment_id": _uuid, "seller_id": _uuid, "status": _one_of(*RANKS)},
        {
            "warehouse_id": _uuid,
            "carrier": _text,
            "tracking_number": _text,
            "estimated_delivery": _text,
            "location": _text,
            "items": _SOME_ITEMS,
        },
    ),
    "order.returned": (
        {
            "order_id": _uuid,
            "return_id": _uuid,
            "item_id": _uuid,
            "reason": _text,
            "status": _one_of(*STAGES),
        },
        {"quantity": _quantity, "processed_at": _text, "restock": _boolean},
    ),
    "refund.completed": ({"order_id": _uuid, "refund_id": _uuid}, _REPLIED),
    "refund.failed": ({"order_id": _uuid, "refund_id": _uuid}, _REPLIED),
    "refund.granted": (
        {"order_id": _uuid, "grant_id": _uuid, "amount": _text, "currency": _text, "reason": _text},
        {"seller_id": _uuid, "item_id": _uuid},
    ),
}
"""Type -> its required and its optional fields, with the form of each: what can be said
of it without the others.
"""


def _fact(type_: str, time: datetime, data: Any, taken: int | None = None) -> Fact:
    content = _fields(data, *_FIELDS[type_])
    _refuse_nul(content)
    if type_ == "checkout.completed":
        # What it becomes, but for its type: a fact of the order that follows from the checkout's id.
        content["order_id"] = uuid5(uuid_bytes(content.pop("checkout_id")), "order")
    if "currency" in content and content["currency"] not in MINOR_DIGITS:
        raise Refused("currency_unknown", "currency")
    if type_ in ("order.created", "checkout.completed"):
        content = _created(content, taken or 0)
    elif type_ in ("order.paid", "refund.granted"):
        content["amount"] = _money(content["amount"], content["currency"], "amount")
        if content["amount"] == 0:
            raise Refused("field_malformed", "amount")
    else:
        if "estimated_delivery" in content:
            content["estimated_delivery"] = _date_or_time(content["estimated_delivery"], "estimated_delivery")
        for name in ("processed_at", *FIELDS):
            if name in content:
                content[name] = _time(content[name], name)
        if type_ in ("refund.completed", "refund.failed"):
            content.setdefault("attempt", 1)
        _refuse_repeated(content.get("items", ()))
    reason = content.pop("reason", None)
    return Fact(type_, content["order_id"], time, natural_key(type_, time, content), content, reason)


def _created(content: Mapping[str, Any], taken: int) -> dict[str, Any]:
    currency = content["currency"]
    items = tuple(
        _priced(item, currency, f"items[{number}].") for number, item in enumerate(content["items"])
    )
    _refuse_repeated(items)
    amounts = {
        name: _money(content[name], currency, name)
        for name in ("total_amount", "discount_amount", "refunded_amount")
        if name in content
    }
    times = {name: _time(content[name], name) for name in ("cart_created_at",) if name in content}
    if "refunded_amount" in content and "live_from" not in content:
        raise Refused("field_malformed", "refunded_amount")
    if taken > 0 and (content.get("live_from", _EPOCH) - _EPOCH) // _MILLISECOND > taken:
        raise Refused("field_malformed", "live_from")
    taxes = sum(tax["amount"] for line in items for tax in _taxes_of(line))
    if "prices_include_tax" not in content and any(_taxes_of(line) for line in items):
        raise Refused("field_malformed", "prices_include_tax")
    goods = sum(line["price"] * line["quantity"] for line in items)
    shipping = sum(line.get("shipping_amount", 0) for line in items)
    discount = amounts.get("discount_amount", 0)
    if discount > goods:
        raise Refused("discount_too_large", "discount_amount")
    included = content.get("prices_include_tax", False)
    if amounts["total_amount"] != goods + shipping - discount + (0 if included else taxes):
        raise Refused("total_mismatch", "total_amount")
    if included:
        _refuse_large_taxes(items, discount)
    return {**content, **amounts, **times, "items": items}


def _priced(item: Mapping[str, Any], currency: str, path: str) -> dict[str, Any]:
    priced = dict(item)
    for name in ("price", "shipping_amount"):
        if name in item:
            priced[name] = _money(item[name], currency, path + name)
    for name in ("taxes", "shipping_taxes"):
        if name in item:
            priced[name] = tuple(
                {**tax, "amount": _money(tax["amount"], currency, f"{path}{name}[{number}].amount")}
                for number, tax in enumerate(item[name])
            )
            if len({tax["code"] for tax in item[name]}) < len(item[name]):
                raise Refused("field_malformed", path + name)
    for name in FIELDS:
        if name in item:
            priced[name] = _time(item[name], path + name)
    return priced


def _taxes_of(line: Mapping[str, Any]) -> tuple[Mapping[str, Any], ...]:
    """All taxes of a line, its shipping's too."""
    return (*line.get("taxes", ()), *line.get("shipping_taxes", ()))


def _refuse_large_taxes(items: Sequence[Mapping[str, Any]], discount: int) -> None:
    """Taxes that are in the prices are a part of what is paid."""
    discounts = discount_shares(items, discount)
    for number, line in enumerate(items):
        goods = line["price"] * line["quantity"] - discounts[line["item_id"]]
        for name, most in (("taxes", goods), ("shipping_taxes", line.get("shipping_amount", 0))):
            if sum(tax["amount"] for tax in line.get(name, ())) > most:
                raise Refused("tax_too_large", f"items[{number}].{name}")


def discount_shares(items: Iterable[Mapping[str, Any]], discount: int) -> dict[str, int]:
    """item_id -> its line's share of an order's discount, by price * quantity, ties by item_id."""
    lines = sorted(items, key=lambda item: item["item_id"])
    parts = [0] * len(lines)
    if discount:
        parts = shares(discount, [line["price"] * line["quantity"] for line in lines])
    return {line["item_id"]: part for line, part in zip(lines, parts, strict=True)}


def _refuse_repeated(items: Sequence[Mapping[str, Any]]) -> None:
    if len({item["item_id"] for item in items}) < len(items):
        raise Refused("item_repeated", "items")


def _refuse_nul(content: Mapping[str, Any], path: str = "") -> None:
    """U+0000 is in no text: PostgreSQL can't hold it."""
    for name, value in content.items():
        if isinstance(value, str) and "\0" in value:
            raise Refused("field_malformed", path + name)
        if isinstance(value, tuple):
            for number, item in enumerate(value):
                _refuse_nul(item, f"{path}{name}[{number}].")


def natural_key(type_: str, time: datetime, content: Mapping[str, Any]) -> NaturalKey:
    """What makes two events the same fact, within one order."""
    if type_ in ("order.created", "checkout.completed"):
        return ("created",)
    if type_ == "deadline.passed":
        which = content["due"] if content["deadline"] in BY else content["attempt"]
        return (type_, content["deadline"], subject_of(content), which)
    if type_ in ("order.paid", "payment.failed"):
        return (type_, content["payment_id"])
    if type_.startswith("stock."):
        items = content.get("items")
        return (
            type_,
            content["seller_id"],
            None if items is None else tuple((item["item_id"], item["quantity"]) for item in items),
        )
    if type_ == "order.cancel_requested":
        return ("cancelled", content.get("seller_id"))
    if type_ == "promise.updated":
        return ("promise", content["seller_id"], time)
    if type_ == "shipment.updated":
        return ("scan", content["shipment_id"], content["status"], time)
    if type_ == "order.returned":
        return ("return", content["return_id"], content["status"])
    if type_ == "refund.granted":
        return (type_, content["grant_id"])
    return (type_, content["refund_id"], content["attempt"])


def size(fact: Fact) -> int:
    """What a fact counts in its order: 80 bytes, its free texts in UTF-8, 24 bytes
    for each entry of its items.
    """
    texts = [
        fact.reason or "",
        *(fact.content.get(name, "") for name in ("method", "carrier", "tracking_number", "location")),
    ]
    return 80 + sum(len(text.encode()) for text in texts) + 24 * len(fact.content.get("items", ()))


def _size_of_decision(decision: Decision) -> int:
    """64 bytes, 24 for each run of units of one line, 24 for each line's shipping, 8 for its tax, 24 for
    each payment that it goes back to.
    """
    units = decision.units
    runs = sum(
        1 for before, unit in zip((None, *units), units, strict=False) if before != (unit[0], unit[1] - 1)
    )
    entries = runs + len(decision.shipping) + len(decision.allocations or ())
    return 64 + 24 * entries + (0 if decision.tax_amount is None else 8)


# -- one order -----------------------------------------------------------------------------------------------


class RecordId(NamedTuple):
    """Where a record is in the log."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}@{self.offset}"


@dataclass(slots=True)
class Candidate:
    """One content of a natural key, with the earliest time (and that time's reason) of its
    repetitions, their latest time and where they lie.
    """

    fact: Fact
    records: list[RecordId] = field(default_factory=list)
    latest: datetime | None = None


class Order:
    """The facts of one order by natural key. Facts must be added in the order of the log, topic by topic.

    Of several contents of one key the first in the log stays. A re-keyed copy lies in another topic than
    its direct rivals: between the first direct content and the first re-keyed one the log does not tell, so
    each is a reading of its own.
    """

    __slots__ = ("_first", "_room", "_sizes", "candidates", "decisions", "order_id")

    def __init__(self, order_id: str, room: Room = ROOM) -> None:
        self.order_id = order_id
        self._room = room
        self.candidates: dict[NaturalKey, list[Candidate]] = {}
        self.decisions: dict[int, Decision] = {}
        self._first: dict[tuple[NaturalKey, bool], Candidate] = {}
        self._sizes: dict[str, int] = {}

    @property
    def version(self) -> int:
        """Distinct natural keys taken in, refused ones included."""
        return len(self.candidates)

    def add(
        self, fact: Fact, record: RecordId | None = None, *, rekeyed: bool = False
    ) -> Candidate | Refusal:
        """Take in one fact; the same again only lowers its time.
        Returns the content it belongs to, or why it isn't taken in.
        """
        rivals = self.candidates.get(fact.key, [])
        candidate = next((each for each in rivals if each.fact.content == fact.content), None)
        earlier = (
            fact
            if candidate is None
            else min(candidate.fact, fact, key=lambda each: (each.time, each.reason or ""))
        )
        # Of conflicting contents only the first is kept, so only it counts.
        if fact.type != "order.created" and (not rivals or candidate is rivals[0]):
            size_now = (
                self._sizes.get(fact.type, 0)
                + size(earlier)
                - (0 if candidate is None else size(candidate.fact))
            )
            if size_now > max(self._sizes.get(fact.type, 0), self._room.facts(fact.type)):
                return Refusal("order_too_large", fact.type)
            self._sizes[fact.type] = size_now
        if candidate is None:
            candidate = Candidate(fact)
            self.candidates.setdefault(fact.key, []).append(candidate)
        candidate.fact = earlier
        candidate.latest = max(fact.time, candidate.latest or fact.time)
        if record is not None:
            candidate.records.append(record)
        self._first.setdefault((fact.key, rekeyed), candidate)
        return candidate

    def decide(self, decision: Decision) -> bool:
        """Take in a decision: the first with each number counts, and a number counts when it is the next.
        True if it was taken.
        """
        size_now = self._sizes.get("refund.decided", 0) + _size_of_decision(decision)
        if decision.n != len(self.decisions) or size_now > self._room.facts("refund.decided"):
            return False
        self._sizes["refund.decided"] = size_now
        self.decisions[decision.n] = decision
        return True

    def winners(self, key: NaturalKey) -> list[Candidate]:
        """The contents of a key that may have been the first: one, or two where the log doesn't tell."""
        firsts = [self._first[key, rekeyed] for rekeyed in (False, True) if (key, rekeyed) in self._first]
        return firsts if len(firsts) == 1 or firsts[0] is not firsts[1] else firsts[:1]

    def readings(self, most: int = 1_024) -> list[Reading]:
        """Every reading the log allows, nearly always one; no more than `most`."""
        choices = [self.winners(key) for key in self.candidates]
        picks = itertools.islice(itertools.product(*choices), most)
        return [
            Reading(
                self.order_id,
                [candidate.fact for candidate in pick],
                self.decisions,
                {each.fact.key: each.latest for each in pick if each.latest not in (None, each.fact.time)},
            )
            for pick in picks
        ]

    def reading(self) -> Reading:
        """The first reading (the only one of an order that nobody re-keyed)."""
        return self.readings(1)[0]


class Unit(NamedTuple):
    """One piece of a line, minor units. `net` = price less its share of the discount, `tax` = its share of
    the line's taxes, `cost` = what it is paid back with: net, and tax where prices don't include it.
    """

    number: int
    rank: int
    live: bool
    net: int
    tax: int
    cost: int


class Line(NamedTuple):
    """A line of the order.

    Its units are numbered from the highest rank down and differ only by where they stand in that row, so a
    few counts tell them all: `at_least[rank]` units at a rank or above (returns included), the first
    `live_count` ones live, the first `dearer_discounts` ones with a discount of `discount` + 1, the others
    of `discount` minor units. Of the taxes each unit has `tax`, and for each of `dearer_taxes` (one a code)
    so many of the first ones one minor unit more.
    """

    item: Mapping[str, Any]
    item_id: str
    seller_id: str
    quantity: int
    price: int
    shipping: int
    """Minor units, of the whole line."""
    at_least: tuple[int, int, int, int]
    live_count: int
    gone: int
    in_parcels: int
    processed: int
    """Units that processed returns name, perhaps more than there are; in_parcels likewise."""
    discount: int
    dearer_discounts: int
    tax: int
    dearer_taxes: tuple[int, ...]
    shipping_tax: int
    """Minor units, of the whole line."""
    on_top: bool
    """Prices don't include tax."""

    def discount_of(self, count: int) -> int:
        """Discount of the first `count` units, minor units."""
        return count * self.discount + min(count, self.dearer_discounts)

    def net(self, count: int) -> int:
        """Price less discount of the first `count` units, minor units."""
        return count * self.price - self.discount_of(count)

    def tax_of(self, count: int) -> int:
        """Tax of the first `count` units, minor units."""
        return count * self.tax + sum(min(count, dearer) for dearer in self.dearer_taxes)

    def cost(self, count: int) -> int:
        """What the first `count` units are paid back with, minor units."""
        return self.net(count) + (self.tax_of(count) if self.on_top else 0)

    @property
    def shipping_cost(self) -> int:
        """What the line's shipping is paid back with, minor units."""
        return self.shipping + (self.shipping_tax if self.on_top else 0)

    def awaited(self, what: str) -> int:
        """Live units that aren't in transit yet (SHIP), or are and aren't delivered (DELIVER)."""
        moving = min(self.live_count, self.at_least[IN_TRANSIT])
        if what == SHIP:
            return self.live_count - moving
        return moving - min(self.live_count, self.at_least[DELIVERED])

    def unit(self, number: int) -> Unit:
        """The unit at a place of the row, 0 first."""
        rank = max(rank for rank in range(4) if number < self.at_least[rank])
        net, tax = self.net(number + 1) - self.net(number), self.tax_of(number + 1) - self.tax_of(number)
        live = number < self.live_count
        return Unit(FIRST_UNIT + number, rank, live, net, tax, net + (tax if self.on_top else 0))

    @property
    def units(self) -> tuple[Unit, ...]:
        """All units; a line may have 100,000."""
        return tuple(self.unit(number) for number in range(self.quantity))


class Amounts(NamedTuple):
    """Minor units. `tax`: of goods and shipping; `total` includes it, whether or not prices do."""

    items: int
    shipping: int
    discount: int
    tax: int
    total: int


class Suborder(NamedTuple):
    """A seller's part: amounts as ordered, and over its live units (with the
    shipping of lines that have one).

    `status` is the order's rule over the seller's units, or closed when none is live.
    `units`: live ones, and live ones at a rank or above.
    """

    suborder_id: str
    seller_id: str
    status: str
    lines: tuple[Line, ...]
    ordered: Amounts
    live: Amounts
    units: tuple[int, int, int, int]


class Owed(NamedTuple):
    """A refund that is due. `covered`: the captured money, less what was decided, is enough. `amount` is less
    than what it names costs where it is what is left (audit.refunds).
    """

    amount: int
    cause: str
    cause_id: str
    units: tuple[tuple[str, int], ...]
    shipping: tuple[str, ...]
    covered: bool


class _Unpaid(NamedTuple):
    """What no decision paid for by name, and what those of cause closed paid so far. Minor units.

    `cost` and `tax`: of the units and shipping that none of them names. `closed`: amounts of the closed
    refunds, `closed_tax`: the tax that they told.
    """

    cost: int
    tax: int
    closed: int
    closed_tax: int

    def tax_of(self, amount: int) -> int:
        """Tax in a closed refund of so much: of the tax that is left the part that closed refunds, with this
        one, are of the cost that is left, less what was told.
        """
        closed = self.closed + amount
        part = self.tax if closed >= self.cost else self.tax * closed // self.cost
        # Less was left than had been told: units went, came back and were paid for by name meanwhile.
        return max(0, part - self.closed_tax)


class Anomaly(NamedTuple):
    code: str
    detail: str


def shares(amount: int, weights: Sequence[int]) -> list[int]:
    """Split an amount by weights with the largest remainder; ties to the earlier.
    All weights 0 takes amount 0.
    """
    total = sum(weights)
    if total == 0:
        if amount:
            raise ValueError("nothing to split by")
        return [0] * len(weights)
    parts = [amount * weight // total for weight in weights]
    by_remainder = sorted(range(len(weights)), key=lambda index: (-(amount * weights[index] % total), index))
    for index in by_remainder[: amount - sum(parts)]:
        parts[index] += 1
    return parts


class Reading:
    """What one choice of facts (one of each natural key) amounts to, computed from the accepted ones.

    While order.created is unknown all facts wait.
    """

    def __init__(
        self,
        order_id: str,
        facts: Iterable[Fact],
        decisions: Mapping[int, Decision],
        latest: Mapping[NaturalKey, datetime] | None = None,
    ) -> None:
        """`latest`: the latest time of the facts whose repetitions say several."""
        self.order_id = order_id
        self.namespace = uuid_bytes(order_id)
        self._made: dict[str, str] = {}
        self.facts = list(facts)
        self.decisions = [decisions[n] for n in sorted(decisions)]
        self.version = len(self.facts)
        self.created = next((fact for fact in self.facts if fact.type == "order.created"), None)
        since = None if self.created is None else self.created.content.get("live_from")
        self.live = Live(since, latest or {})
        """Which of its facts are history."""
        known = [] if self.created is None else self.created.content["items"]
        self.items: dict[str, Mapping[str, Any]] = {item["item_id"]: item for item in known}
        self.sellers = sorted({item["seller_id"] for item in known})
        self.refused: dict[NaturalKey, Refusal] = {}
        self.accepted: list[Fact] = []
        self._by_type: dict[str, list[Fact]] = {}
        for fact in self.facts:
            refusal = self._judge(fact)
            if refusal is None:
                self.accepted.append(fact)
                self._by_type.setdefault(fact.type, []).append(fact)
            else:
                self.refused[fact.key] = refusal
        self.parcels = self._winning_scans()
        self.returns = self._winning_stages()
        self.lines: list[Line] = self._lines() if self.created else []
        self.promises = Promises(self.items, self.accepted)

    # .. facts
    # ....................................................................................................

    @property
    def known(self) -> Mapping[str, Any]:
        """The content of order.created. Raises LookupError while it is unknown."""
        if self.created is None:
            raise LookupError(f"order.created of {self.order_id} is unknown")
        return self.created.content

    @property
    def currency(self) -> str:
        return str(self.known["currency"])

    @property
    def whose(self) -> tuple[str, str, str]:
        """What every row but that of the order itself has behind its id: order_id, user_id, region."""
        return self.order_id, self.known["user_id"], self.known.get("region", "")

    def in_text(self, minor: int) -> str:
        """An amount in the order's currency, as money_text writes it."""
        return money_text(minor, self.currency)

    def _of(self, type_: str) -> Sequence[Fact]:
        return self._by_type.get(type_, ())

    def _judge(self, fact: Fact) -> Refusal | None:
        """Whether this order has what the fact names: currency, seller, items."""
        if self.created is None:
            return None
        content = fact.content
        if fact.type in ("order.paid", "refund.granted") and content["currency"] != self.currency:
            return Refusal("order_currency", "currency")
        if fact.type == "order.returned":
            return None if content["item_id"] in self.items else Refusal("order_item", "item_id")
        if fact.type in ("order.created", "deadline.passed"):
            return None
        seller = content.get("seller_id")
        if seller is not None and seller not in self.sellers:
            return Refusal("order_seller", "seller_id")
        if fact.type == "refund.granted" and "item_id" in content:
            if content["item_id"] not in self.items:
                return Refusal("order_item", "item_id")
            if seller is not None and self.items[content["item_id"]]["seller_id"] != seller:
                return Refusal("order_seller", "item_id")
        for number, item in enumerate(content.get("items", ())):
            if item["item_id"] not in self.items:
                return Refusal("order_item", f"items[{number}].item_id")
            if self.items[item["item_id"]]["seller_id"] != seller:
                return Refusal("order_seller", f"items[{number}].item_id")
        return None

    # .. units
    # ....................................................................................................

    def _winning_scans(self) -> dict[str, Fact]:
        """shipment_id -> its winning scan: the highest rank, then the latest time."""
        winning: dict[str, Fact] = {}
        for scan in self._of("shipment.updated"):
            best = winning.get(scan.content["shipment_id"])
            if best is None or _weight(scan) > _weight(best):
                winning[scan.content["shipment_id"]] = scan
        return winning

    def _winning_stages(self) -> dict[str, Fact]:
        """return_id -> its winning stage: the earlier of processed and rejected, at equal times
        processed, else requested.
        """
        winning: dict[str, Fact] = {}
        for stage in self._of("order.returned"):
            best = winning.get(stage.content["return_id"])
            if best is None or _finality(stage) < _finality(best):
                winning[stage.content["return_id"]] = stage
        return winning

    def _named(self, fact: Fact) -> dict[str, int]:
        """item_id -> units that a parcel or a stock reply means: its items, or all the seller's."""
        if "items" in fact.content:
            return {item["item_id"]: item["quantity"] for item in fact.content["items"]}
        return {
            item_id: item["quantity"]
            for item_id, item in self.items.items()
            if item["seller_id"] == fact.content["seller_id"]
        }

    def _lines(self) -> list[Line]:
        ids = sorted(self.items)
        discounts = discount_shares(self.items.values(), self.known.get("discount_amount", 0))
        # Units of each line at a rank or above by what parcels say, and those that are gone:
        # not limited to the line yet.
        parcels = {item_id: [0, 0, 0, 0] for item_id in ids}
        for scan in self.parcels.values():
            rank = RANKS[scan.content["status"]]
            if rank > PENDING:
                for item_id, count in self._named(scan).items():
                    for reached in range(IN_TRANSIT, rank + 1):
                        parcels[item_id][reached] += count
        gone = dict.fromkeys(ids, 0)
        for reply in (*self._of("stock.rejected"), *self._of("stock.released")):
            for item_id, count in self._named(reply).items():
                gone[item_id] += min(count, self.items[item_id]["quantity"])
        for item_id, item in self.items.items():
            if item["seller_id"] in self.given_up:
                gone[item_id] += item["quantity"]
        processed = dict.fromkeys(ids, 0)
        for stage in self.returns.values():
            if stage.content["status"] == "processed":
                quantity = self.items[stage.content["item_id"]]["quantity"]
                processed[stage.content["item_id"]] += stage.content.get("quantity", quantity)
        return [
            self._line(
                self.items[item_id], discounts[item_id], parcels[item_id], gone[item_id], processed[item_id]
            )
            for item_id in ids
        ]

    def _line(
        self, item: Mapping[str, Any], line_discount: int, parcels: Sequence[int], gone: int, processed: int
    ) -> Line:
        quantity = item["quantity"]
        in_transit, delivered, returned = (
            min(quantity, parcels[rank]) for rank in (IN_TRANSIT, DELIVERED, RETURNED)
        )
        gone = min(quantity, gone)
        live = max(quantity - gone, in_transit)
        # A processed return turns the highest unit that isn't returned yet, so the returned ones
        # stay the first in the row.
        returned = min(quantity, returned + processed)
        at_least = (quantity, max(in_transit, returned), max(delivered, returned), returned)
        # Units of one price have one weight: the largest remainder gives each the same, and
        # one more to the first ones.
        discount, dearer = divmod(line_discount, quantity)
        taxes = [divmod(tax["amount"], quantity) for tax in item.get("taxes", ())]
        return Line(
            item,
            item["item_id"],
            item["seller_id"],
            quantity,
            item["price"],
            item.get("shipping_amount", 0),
            at_least,
            live,
            gone,
            parcels[IN_TRANSIT],
            processed,
            discount,
            dearer,
            tax=sum(each for each, _ in taxes),
            dearer_taxes=tuple(rest for _, rest in taxes if rest),
            shipping_tax=sum(tax["amount"] for tax in item.get("shipping_taxes", ())),
            on_top=not self.known.get("prices_include_tax", True),
        )

    # .. status
    # ...................................................................................................

    @property
    def captured(self) -> int:
        return sum(fact.content["amount"] for fact in self._of("order.paid"))

    @property
    def live_total(self) -> int:
        """Minor units: what the live units cost with the shipping of their lines; the
        whole order when none is live.
        """
        if not any(line.live_count for line in self.lines):
            return int(self.known["total_amount"])
        return sum(line.cost(line.live_count) + line.shipping_cost for line in self.lines if line.live_count)

    @functools.cached_property
    def taxed(self) -> bool:
        """Whether order.created has a tax, of an amount of 0 perhaps."""
        return any(_taxes_of(item) for item in self.items.values())

    def status(self) -> str:
        """Raises LookupError while order.created is unknown."""
        return self._status(self.lines, self.captured >= self.live_total)

    @staticmethod
    def _status(lines: Iterable[Line], confirmed: bool) -> str:
        """The highest status that holds; the last three need a live unit."""
        living = [line for line in lines if line.live_count]
        if living and all(line.at_least[RETURNED] >= line.live_count for line in living):
            return "returned"
        if living and all(line.at_least[DELIVERED] >= line.live_count for line in living):
            return "delivered"
        if any(line.at_least[IN_TRANSIT] for line in living):
            return "shipped"
        return "confirmed" if confirmed else "pending"

    @functools.cached_property
    def suborders(self) -> list[Suborder]:
        """One per seller, by seller_id."""
        confirmed = self.captured >= self.live_total
        result = []
        for seller in self.sellers:
            lines = tuple(line for line in self.lines if line.seller_id == seller)
            living = [line for line in lines if line.live_count]
            result.append(
                Suborder(
                    suborder_id=self.made_id(f"suborder:{seller}"),
                    seller_id=seller,
                    status=self._status(lines, confirmed) if living else "closed",
                    lines=lines,
                    ordered=_amounts_of([(line, line.quantity) for line in lines]),
                    live=_amounts_of([(line, line.live_count) for line in living]),
                    units=(
                        sum(line.live_count for line in living),
                        sum(min(line.live_count, line.at_least[IN_TRANSIT]) for line in living),
                        sum(min(line.live_count, line.at_least[DELIVERED]) for line in living),
                        sum(min(line.live_count, line.at_least[RETURNED]) for line in living),
                    ),
                )
            )
        return result

    # .. rows
    # .....................................................................................................

    def rows(self) -> dict[str, list[tuple[Any, ...]]]:
        """Table -> rows that must be there, in column order, ids, money and times as text; none while
        order.created is unknown.
        """
        return self._rows

    @functools.cached_property
    def _rows(self) -> dict[str, list[tuple[Any, ...]]]:
        rows: dict[str, list[tuple[Any, ...]]] = {
            "orders_order": [],
            "orders_order_item": [],
            "orders_shipment": [],
            "orders_return": [],
            "orders_suborder": [],
            "orders_payment": [],
            "orders_refund": [],
            ATTENTION: [],
        }
        if self.created is None:
            return rows
        known, currency = self.known, self.currency
        whose = self.whose
        times = [fact.time for fact in self.accepted]
        amounts = (
            money_text(known["total_amount"], currency),
            money_text(known.get("discount_amount", 0), currency),
            money_text(sum(line.tax_of(line.quantity) + line.shipping_tax for line in self.lines), currency),
        )
        began = known.get("cart_created_at")
        cart = (known.get("cart_id"), None if began is None else began.isoformat())
        rows["orders_order"].append(
            (*whose, self.status(), currency, *amounts, *cart, *_span(times), self.version)
        )
        for line in self.lines:
            item = line.item
            goods = (
                item["product_id"],
                item["seller_id"],
                item.get("warehouse_id"),
                item["sku"],
                item["quantity"],
            )
            prices = [
                money_text(amount, currency)
                for amount in (item["price"], line.shipping, line.tax_of(line.quantity), line.shipping_tax)
            ]
            rows["orders_order_item"].append(
                (line.item_id, *whose, *goods, *prices, *_span([self.created.time]), 1)
            )
        scans, stages = (
            self._keys_of("shipment.updated", "shipment_id"),
            self._keys_of("order.returned", "return_id"),
        )
        for shipment_id, scan in sorted(self.parcels.items()):
            rows["orders_shipment"].append((shipment_id, *whose, *self._parcel(scan, scans[shipment_id])))
        for return_id, stage in sorted(self.returns.items()):
            rows["orders_return"].append((return_id, *whose, *self._return(stage, stages[return_id])))
        rows |= more_rows(self)
        rows[ATTENTION] = attention_rows(self)
        return rows

    def _parcel(self, scan: Fact, scans: list[Fact]) -> tuple[Any, ...]:
        """What the row of a parcel says, by the scan that counts and all of its scans."""
        content, due = scan.content, scan.content.get("estimated_delivery")
        return (
            content["seller_id"],
            content.get("warehouse_id"),
            content.get("carrier"),
            content.get("tracking_number"),
            content["status"],
            None if due is None else due.isoformat(),
            *_span([fact.time for fact in scans if fact.key not in self.refused]),
            len(scans),
        )

    def _return(self, stage: Fact, stages: list[Fact]) -> tuple[Any, ...]:
        """What the row of a return says, by the stage that counts and all of its stages."""
        content = stage.content
        return (
            content["item_id"],
            content.get("quantity", self.items[content["item_id"]]["quantity"]),
            stage.reason,
            content["status"],
            content.get("processed_at", stage.time).isoformat() if content["status"] == "processed" else None,
            *_span([fact.time for fact in stages if fact.key not in self.refused]),
            len(stages),
        )

    def _keys_of(self, type_: str, field_: str) -> dict[str, list[Fact]]:
        """Facts of a type, refused ones too, by one of their fields."""
        by_key: dict[str, list[Fact]] = {}
        for fact in self.facts:
            if fact.type == type_:
                by_key.setdefault(fact.content[field_], []).append(fact)
        return by_key

    # .. refunds
    # ..................................................................................................

    @property
    def refunded(self) -> int:
        """Minor units of all decisions."""
        return sum(decision.amount for decision in self.decisions)

    @functools.cached_property
    def grants(self) -> dict[str, int]:
        """grant_id -> its amount, by (time, grant_id), those of history too."""
        facts = sorted(self._of("refund.granted"), key=lambda fact: (fact.time, fact.content["grant_id"]))
        return {fact.content["grant_id"]: fact.content["amount"] for fact in facts}

    @functools.cached_property
    def payments(self) -> dict[str, int]:
        """payment_id -> what it captured, by (time, payment_id)."""
        facts = sorted(self._of("order.paid"), key=lambda fact: (fact.time, fact.content["payment_id"]))
        return {fact.content["payment_id"]: fact.content["amount"] for fact in facts}

    @functools.cached_property
    def captured_by_history(self) -> int:
        """Minor units of payments that are history."""
        return sum(fact.content["amount"] for fact in self._of("order.paid") if self.live.is_history(fact))

    @functools.cached_property
    def elsewhere(self) -> Elsewhere:
        """What another system's returns, and what was rejected and released there, count as paid for."""
        if self.live.since is None:
            return Elsewhere()
        returned, gone = dict.fromkeys(self.items, 0), dict.fromkeys(self.items, 0)
        ours = {decision.cause_id for decision in self.decisions if decision.cause == "return"}
        for return_id, stage in self.returns.items():
            # One that we paid for, before it turned out to be history, named its units.
            if (
                stage.content["status"] == "processed"
                and self.live.is_history(stage)
                and return_id not in ours
            ):
                item_id = stage.content["item_id"]
                returned[item_id] += stage.content.get("quantity", self.items[item_id]["quantity"])
        for reply in (*self._of("stock.rejected"), *self._of("stock.released")):
            if self.live.is_history(reply):
                for item_id, count in self._named(reply).items():
                    gone[item_id] += min(count, self.items[item_id]["quantity"])
        paid_shipping = {item_id for decision in self.decisions for item_id in decision.shipping}
        units: set[tuple[str, int]] = set()
        shipping: set[str] = set()
        cost = tax = 0
        for line in self.lines:
            if not returned[line.item_id] and not gone[line.item_id]:
                continue
            decided = {
                number - FIRST_UNIT
                for decision in self.decisions
                for item_id, number in decision.units
                if item_id == line.item_id
            }
            for place in counted_as_paid(
                line.quantity, line.live_count, decided, returned[line.item_id], gone[line.item_id]
            ):
                unit = line.unit(place)
                units.add((line.item_id, unit.number))
                cost, tax = cost + unit.cost, tax + unit.tax
            if gone[line.item_id] >= line.quantity and line.item_id not in paid_shipping:
                shipping.add(line.item_id)
                cost, tax = cost + line.shipping_cost, tax + line.shipping_tax
        return Elsewhere(frozenset(units), frozenset(shipping), cost, tax)

    @property
    def paid_back_elsewhere(self) -> int:
        """Minor units that another system paid back, by what is known."""
        if self.live.since is None:
            return 0
        total, cost = self.known["total_amount"], self.elsewhere.cost
        return paid_back(self.known.get("refunded_amount"), self.captured_by_history, total, cost)

    @property
    def most_paid_back_elsewhere(self) -> int:
        """The most that may have counted as that at any time, whatever was known then."""
        if self.live.since is None:
            return 0
        most: int = self.known.get("refunded_amount", self.captured_by_history)
        return most

    @property
    def tells_what_is_paid_elsewhere(self) -> bool:
        """Whether history names units: which of them count as paid for depended on what was known."""
        return any(
            self.live.is_history(fact)
            for type_ in ("order.returned", "stock.rejected", "stock.released")
            for fact in self._of(type_)
        )

    @property
    def _closing(self) -> list[Fact]:
        """Of an order without live units some of these, or a final deadline, must be ours: else the other
        system has seen to it.
        """
        return [*self._of("order.paid"), *self._of("stock.rejected"), *self._of("stock.released")]

    def may_be_decided(self, decision: Decision) -> bool:
        """Whether what a decision is about may not have been history when it was decided."""
        if self.live.since is None:
            return True
        cause_id = decision.cause_id
        about: Sequence[Fact] = self._closing
        if decision.cause == "return":
            processed = [fact for fact in self._of("order.returned") if fact.content["status"] == "processed"]
            about = [fact for fact in processed if fact.content["return_id"] == cause_id]
        elif decision.cause == "grant":
            about = [fact for fact in self._of("refund.granted") if fact.content["grant_id"] == cause_id]
        elif decision.cause == "stock":
            about = [fact for fact in about if fact.content.get("seller_id") == cause_id]
        ours = bool(self.given_up) if decision.cause == "closed" else cause_id in self.given_up
        return ours or not about or any(map(self.live.may_have_been_live, about))

    def allocate(self, amount: int) -> tuple[Allocation, ...]:
        """Which payments the next decision, of this amount, goes back to."""
        taken, untied = self._taken_before(len(self.decisions))
        untied += self.paid_back_elsewhere
        return allocate(amount, list(self.payments.items()), taken, untied)

    def misallocated(self, n: int) -> tuple[str, str] | None:
        """What is wrong about a decision's allocations in any order of arrival, as (expected, actual)."""
        decision = self.decisions[n]
        if decision.allocations is None:
            return None
        taken, untied = self._taken_before(n)
        untied += self.most_paid_back_elsewhere
        return misallocated(decision.amount, decision.allocations, self.payments, taken, untied)

    def _taken_before(self, n: int) -> tuple[dict[str, int], int]:
        """payment_id -> what the first n decisions took of it, and what those without allocations pay."""
        taken: dict[str, int] = {}
        untied = 0
        for decision in self.decisions[:n]:
            if decision.allocations is None:
                untied += decision.amount
            for payment_id, part in decision.allocations or ():
                taken[payment_id] = taken.get(payment_id, 0) + part
        return taken, untied

    def _goodwill_before(self, n: int) -> int:
        """Minor units of grants among the first n decisions."""
        return sum(decision.amount for decision in self.decisions[:n] if decision.cause == "grant")

    @property
    def _money_left(self) -> LeftOver:
        elsewhere = self.paid_back_elsewhere
        goodwill = self._goodwill_before(len(self.decisions)) + elsewhere
        return LeftOver(self.captured, self.known["total_amount"], self.refunded + elsewhere, goodwill)

    def may_pay(self, decision: Decision) -> bool:
        """Whether a decision's amount may be what it names costs, or what was left of the captured money.

        Raises LookupError as pays_for does.
        """
        cost = self.pays_for(decision)
        if cost is None or decision.cause == "grant":
            return cost in (None, decision.amount)
        elsewhere = self.most_paid_back_elsewhere
        refunded = sum(each.amount for each in self.decisions[: decision.n]) + elsewhere
        goodwill = self._goodwill_before(decision.n) + elsewhere
        return LeftOver.may_pay(decision.amount, cost, self.known["total_amount"], refunded, goodwill)

    def _grants_owed(self, remaining: int) -> Iterator[Owed]:
        """Grants that aren't decided, but for those of history. `remaining`: minor units."""
        paid = {decision.cause_id for decision in self.decisions if decision.cause == "grant"}
        paid |= {
            fact.content["grant_id"] for fact in self._of("refund.granted") if self.live.is_history(fact)
        }
        for grant_id, amount in self.grants.items():
            if grant_id not in paid:
                yield Owed(amount, "grant", grant_id, (), (), remaining >= amount)

    def owed(self) -> list[Owed]:
        """Refunds due and not decided, each looked at by itself; one that captured money
        doesn't cover is not `covered`.
        """
        money = self._money_left
        remaining = money.captured - money.refunded
        if not any(line.live_count for line in self.lines):
            ours = self.given_up or not all(map(self.live.is_history, self._closing))
            due_now = remaining > 0 and ours
            return [Owed(remaining, "closed", self.order_id, (), (), True)] if due_now else []
        paid_units = {unit for decision in self.decisions for unit in decision.units} | self.elsewhere.units
        paid_shipping = {item_id for decision in self.decisions for item_id in decision.shipping}
        paid_shipping |= self.elsewhere.shipping
        paid_returns = {decision.cause_id for decision in self.decisions if decision.cause == "return"}
        lines = {line.item_id: line for line in self.lines}

        def unpaid(line: Line, numbers: Iterable[int]) -> Iterator[tuple[str, Unit]]:
            units = ((line.item_id, line.unit(number)) for number in numbers)
            return ((item_id, unit) for item_id, unit in units if (item_id, unit.number) not in paid_units)

        @functools.cache  # for a line of many units and many returns
        def unpaid_of(item_id: str, worth_something: bool) -> list[tuple[str, Unit]]:
            line = lines[item_id]
            units = unpaid(line, range(line.quantity))
            return [pair for pair in units if pair[1].cost or not worth_something]

        def due(
            cause: str, cause_id: str, units: Iterable[tuple[str, Unit]], shipping: Sequence[Line]
        ) -> Owed:
            units = list(units)
            amount = sum(unit.cost for _, unit in units) + sum(line.shipping_cost for line in shipping)
            numbers = tuple((item_id, unit.number) for item_id, unit in units)
            ships = tuple(line.item_id for line in shipping)
            payable = money.payable(amount)
            return Owed(
                amount if payable is None else payable, cause, cause_id, numbers, ships, payable is not None
            )

        result = []
        for return_id, stage in sorted(self.returns.items()):
            if (
                stage.content["status"] == "processed"
                and return_id not in paid_returns
                and not self.live.is_history(stage)
            ):
                line = lines[stage.content["item_id"]]
                count = stage.content.get("quantity", line.quantity)
                lowest = unpaid_of(line.item_id, False)[:count]
                if not any(unit.cost for _, unit in lowest):
                    lowest = unpaid_of(line.item_id, True)[:count]
                result.append(due("return", return_id, lowest, []))
        for seller in self.sellers:
            own = [line for line in self.lines if line.seller_id == seller]
            dead = [pair for line in own for pair in unpaid(line, range(line.live_count, line.quantity))]
            if dead:
                result.append(
                    due(
                        "stock",
                        seller,
                        dead,
                        [line for line in own if not line.live_count and line.item_id not in paid_shipping],
                    )
                )
        result += self._grants_owed(remaining)
        return [owed for owed in result if owed.amount > 0]

    # .. anomalies
    # ................................................................................................

    def anomalies(self) -> list[Anomaly]:
        """What is odd but never refused. Waiting facts are told by `waiting`."""
        if self.created is None:
            return []
        codes = []
        if self.captured > self.known["total_amount"]:
            codes.append(
                Anomaly(
                    "captured_above_total",
                    money_text(self.captured - self.known["total_amount"], self.currency),
                )
            )
        above = self.known.get("refunded_amount", 0) - self.captured_by_history
        if above > 0:
            codes.append(Anomaly("refunded_above_history", money_text(above, self.currency)))
        for line in self.lines:
            quantity = line.item["quantity"]
            if line.processed > quantity:
                codes.append(Anomaly("returned_above_quantity", line.item_id))
            if line.in_parcels > quantity - line.gone:
                codes.append(Anomaly("in_transit_above_stock", line.item_id))
        for fact in self.accepted:
            if self.live.is_history(fact):
                continue  # its reservations and refunds aren't ours
            if fact.type.startswith("stock.") and fact.content["reservation_id"] != self.made_id(
                f"reservation:{fact.content['seller_id']}"
            ):
                codes.append(Anomaly("reservation_unknown", fact.content["reservation_id"]))
        failed = self._refunds_failed - self._refunds_said("refund.completed")
        codes += [Anomaly("refund_failed", refund_id) for refund_id in sorted(failed)]
        codes += self._silences()
        codes += [
            Anomaly(f"late_to_{late.what}", f"{late.seller_id} since {late.due.isoformat()}")
            for late in self.late
        ]
        codes += [
            Anomaly("refund_not_covered", f"{owed.cause} {owed.cause_id}")
            for owed in self.owed()
            if not owed.covered
        ]
        codes += [
            Anomaly("decision_contradicted", f"refund {decision.n}")
            for decision in self.decisions
            if self._contradicted(decision)
        ]
        return codes

    def _silences(self) -> list[Anomaly]:
        """What was asked for in vain until nobody asked any longer."""
        given_up = [fact.content for fact in self._of("deadline.passed") if fact.content["final"]]
        scanned = {scan.content["seller_id"] for scan in self._moving()}
        replied = self._refunds_said("refund.completed") | self._refunds_failed
        waiting = {
            line.seller_id
            for line in self.lines
            if line.live_count > min(line.at_least[IN_TRANSIT], line.live_count)
        }
        alive = {line.seller_id for line in self.lines if line.live_count}
        silent = set()
        for content in given_up:
            seller, refund = content.get("seller_id"), content.get("refund_id")
            if content["deadline"] == "release" and seller in waiting:
                silent.add(Anomaly("release_unanswered", str(seller)))
            if content["deadline"] == "label" and seller in alive and seller not in scanned:
                silent.add(Anomaly("label_unscanned", str(seller)))
            if content["deadline"] == "refund" and refund not in replied:
                silent.add(Anomaly("refund_unconfirmed", str(refund)))
        silent |= {Anomaly("return_overdue", return_id) for return_id in self.overdue_returns}
        return sorted(silent)

    def _refunds_said(self, type_: str) -> set[str]:
        """Refunds of which the payment service said this, of one attempt at least."""
        return {fact.content["refund_id"] for fact in self._of(type_)}

    @property
    def _refunds_failed(self) -> set[str]:
        """Refunds of which an attempt failed; what failed in history isn't one of ours."""
        failed = self._of("refund.failed")
        return {fact.content["refund_id"] for fact in failed if not self.live.is_history(fact)}

    # .. promises
    # .................................................................................................

    @functools.cached_property
    def late(self) -> list[Late]:
        """What should have been shipped or delivered, by seller, whatever else has become of the order."""
        if self.created is None or not self.promises.any_passed:
            return []
        dues: dict[tuple[str, str], list[tuple[datetime, int]]] = {}
        for line in self.lines:
            for what in (SHIP, DELIVER):
                due, units = self.promises.first_past(what, line.item), line.awaited(what)
                if due is not None and units:
                    dues.setdefault((line.seller_id, what), []).append((due, units))
        return [
            Late(what, seller, min(due for due, _ in each), sum(units for _, units in each))
            for (seller, what), each in sorted(dues.items())
        ]

    def late_since(self, seller_id: str) -> datetime | None:
        """Since when a seller is late to ship or to deliver; None: it isn't."""
        return min((late.due for late in self.late if late.seller_id == seller_id), default=None)

    def promised(self, what: str, seller_id: str) -> datetime | None:
        """The earliest promise in force for a seller's lines (SHIP or DELIVER); None: there is none."""
        own = (item for item in self.items.values() if item["seller_id"] == seller_id)
        each = (self.promises.in_force(what, item) for item in own)
        return min((by for by in each if by is not None), default=None)

    def most_late(self, what: str, seller_id: str, due: datetime) -> int:
        """Units of a seller that a deadline could be about in some order of arrival."""
        own = [line for line in self.lines if line.seller_id == seller_id]
        return sum(line.quantity for line in own if self.promises.may_be_past(what, line.item, due))

    @functools.cached_property
    def overdue_returns(self) -> list[str]:
        """Returns that were requested, and not judged in time nor since."""
        passed = {
            fact.content["return_id"]
            for fact in self._of("deadline.passed")
            if fact.content["deadline"] == "return"
        }
        return sorted(
            return_id
            for return_id, stage in self.returns.items()
            if return_id in passed and stage.content["status"] == "requested"
        )

    def _contradicted(self, decision: Decision) -> bool:
        if decision.cause == "return":
            stage = self.returns.get(decision.cause_id)
            return stage is None or stage.content["status"] != "processed"
        if decision.cause == "closed":
            return any(line.live_count for line in self.lines)
        live = {line.item_id: line.live_count for line in self.lines}
        return any(number - FIRST_UNIT < live.get(item_id, 0) for item_id, number in decision.units)

    @functools.cached_property
    def attention(self) -> dict[str, Held]:
        """Kind -> what a person should look at, and since when it holds."""
        return attention_of(self)

    def waiting(self) -> list[Fact]:
        """Facts whose order.created is unknown."""
        return self.facts if self.created is None else []

    # .. derived events
    # ...........................................................................................

    def made_id(self, name: str) -> str:
        """An id that the pipeline makes: uuid5 in the namespace of the order."""
        made_id = self._made.get(name)
        if made_id is None:
            made_id = self._made[name] = uuid5(self.namespace, name)
        return made_id

    def event_id(self, type_: str, made_id: str) -> str:
        """ce_id of a derived event."""
        return self.made_id(f"{type_}:{made_id}")

    def derived(self) -> dict[tuple[str, str], dict[str, Any]]:
        """(type, id) -> data of every derived event that is the same in any order of arrival, and of
        refund.request for each decision.
        """
        return self._derived(self.live.is_surely_live)

    def possible(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The same with those of facts that are history and may not have been when they came."""
        return self._derived(self.live.may_have_been_live)

    def _derived(self, is_live: Callable[[Fact], bool]) -> dict[tuple[str, str], dict[str, Any]]:
        """`is_live`: whether a fact causes commands."""
        if self.created is None:
            return {}
        begun = is_live(self.created)
        events: dict[tuple[str, str], dict[str, Any]] = {}
        known, currency = self.known, self.currency
        for suborder in self.suborders:
            items = [item for item in known["items"] if item["seller_id"] == suborder.seller_id]
            lines = {line.item_id: line for line in suborder.lines}
            events["suborder.created", suborder.suborder_id] = {
                "suborder_id": suborder.suborder_id,
                "order_id": self.order_id,
                "seller_id": suborder.seller_id,
                "status": "pending",
                "items": [self._ordered(lines[item["item_id"]]) for item in items],
                **self._amounts(suborder.ordered),
                "version": 1,
            }
            reservation_id = self.made_id(f"reservation:{suborder.seller_id}")
            if begun:
                events["stock.reserve", reservation_id] = {
                    "reservation_id": reservation_id,
                    "order_id": self.order_id,
                    "seller_id": suborder.seller_id,
                    "items": [self._item_data(item, item["quantity"]) for item in items],
                }
        if known["total_amount"] and begun:
            payment_request_id = self.made_id("payment")
            events["payment.initiate", payment_request_id] = {
                "payment_request_id": payment_request_id,
                "order_id": self.order_id,
                "user_id": known["user_id"],
                "amount": money_text(known["total_amount"], currency),
                "currency": currency,
            }
        for stage in self._of("order.returned"):
            content = stage.content
            if content["status"] != "processed" or not content.get("restock", True) or not is_live(stage):
                continue
            item = self.items[content["item_id"]]
            restock_id = self.made_id(f"restock:{content['return_id']}")
            events["stock.restock", restock_id] = {
                "restock_id": restock_id,
                "order_id": self.order_id,
                "seller_id": item["seller_id"],
                "return_id": content["return_id"],
                "item_id": content["item_id"],
                "product_id": item["product_id"],
                "sku": item["sku"],
                "quantity": min(item["quantity"], content.get("quantity", item["quantity"])),
            }
        for decision in self.decisions:
            refund_id = self.made_id(f"refund:{decision.n}")
            asked = {"refund_id": refund_id, **self._asked(decision)}
            events["refund.request", refund_id] = asked
            for attempt in self.retries.get(refund_id, ()):
                events["refund.request", f"{refund_id}:{attempt}"] = {**asked, "attempt": attempt}
        return events

    @functools.cached_property
    def retries(self) -> dict[str, dict[int, Fact]]:
        """Refund -> its attempts from the second on, each with the deadline that had it asked for: that of
        the attempt before.
        """
        retries: dict[str, dict[int, Fact]] = {}
        for fact in self._of("deadline.passed"):
            if fact.content["deadline"] == "refund_retry":
                retries.setdefault(fact.content["refund_id"], {})[fact.content["attempt"] + 1] = fact
        return retries

    def _asked(self, decision: Decision) -> dict[str, Any]:
        """What refund.request tells of a decision beside its id."""
        asked = {
            "order_id": self.order_id,
            "amount": money_text(decision.amount, self.currency),
            "currency": self.currency,
            "cause": decision.cause,
            "cause_id": decision.cause_id,
            **self._tax(decision.tax_amount or 0),
        }
        if decision.allocations is None:  # what it asked for stays as it was
            return asked
        with contextlib.suppress(LookupError):  # of what it names the order may have nothing
            asked |= self._paid_for(decision)
        allocations = [
            {"payment_id": payment_id, "amount": money_text(part, self.currency)}
            for payment_id, part in decision.allocations
        ]
        return {**asked, "allocations": allocations, "attempt": 1}

    def _paid_for(self, decision: Decision) -> dict[str, Any]:
        """The lines and the shipping that a decision names, as refund.request tells them. Raises LookupError
        as pays_for does.
        """
        lines = {line.item_id: line for line in self.lines}
        named: dict[str, list[Unit]] = {}
        for item_id, number in decision.units:
            place = self._place(lines[item_id], number)
            named.setdefault(item_id, []).append(lines[item_id].unit(place))
        shipping = sum(lines[item_id].shipping_cost for item_id in decision.shipping)
        return {
            "lines": [
                {
                    "item_id": item_id,
                    "quantity": len(units),
                    "amount": money_text(sum(unit.cost for unit in units), self.currency),
                    **self._tax(sum(unit.tax for unit in units)),
                }
                for item_id, units in named.items()
            ],
            "shipping_amount": money_text(shipping, self.currency),
        }

    @staticmethod
    def _place(line: Line, number: int) -> int:
        """Where a unit of refund.decided stands in its line. Raises LookupError if the line has none such."""
        if not 0 <= number - FIRST_UNIT < line.quantity:
            raise LookupError(f"unit {number} of {line.item_id}")
        return number - FIRST_UNIT

    def _tax(self, amount: int, name: str = "tax_amount") -> dict[str, str]:
        """The field that tells a tax; of an order that has none nothing has to."""
        return {name: money_text(amount, self.currency)} if self.taxed else {}

    def _ordered(self, line: Line) -> dict[str, Any]:
        """What an item of suborder.created tells."""
        whole = line.quantity
        return {"item_id": line.item_id, "quantity": whole, **self._taxes(line, whole)}

    def _taxes(self, line: Line, count: int) -> dict[str, str]:
        """What an item of a suborder tells of the taxes of a line's first units and, if there are any, of
        its shipping.
        """
        return {
            **self._tax(line.tax_of(count)),
            **self._tax(line.shipping_tax if count else 0, "shipping_tax_amount"),
        }

    def _amounts(self, amounts: Amounts) -> dict[str, str]:
        currency = self.currency
        return {
            "items_amount": money_text(amounts.items, currency),
            "shipping_amount": money_text(amounts.shipping, currency),
            "discount_amount": money_text(amounts.discount, currency),
            "total_amount": money_text(amounts.total, currency),
            **self._tax(amounts.tax),
        }

    def last_suborder(self, suborder: Suborder) -> dict[str, Any]:
        """Data that the last event about a suborder tells, but for its version and, of its items, all but
        the taxes.
        """
        items = [{"item_id": line.item_id, **self._taxes(line, line.live_count)} for line in suborder.lines]
        return {
            "suborder_id": suborder.suborder_id,
            "order_id": self.order_id,
            "seller_id": suborder.seller_id,
            "status": suborder.status,
            **({"closed_because": self.why_closed(suborder)} if suborder.status == "closed" else {}),
            **self._amounts(suborder.live),
            **({"items": items} if self.taxed else {}),
        }

    def why_closed(self, suborder: Suborder) -> str:
        """Why none of a seller's units is live, by what the inventory said and what it had been
        asked for; empty if some is.
        """
        if suborder.status != "closed":
            return ""
        seller = suborder.seller_id
        said = {
            fact.type
            for kind in ("stock.released", "stock.rejected")
            for fact in self._of(kind)
            if fact.content["seller_id"] == seller
        }
        if "stock.released" in said:
            if seller in self.cancelled:
                return "cancelled"
            if any(fact.content["deadline"] == "payment" for fact in self._of("deadline.passed")):
                return "payment_overdue"
            return "not_shipped" if seller in self.promises.unshipped else "stock_released"
        return "stock_rejected" if "stock.rejected" in said else "stock_unanswered"

    @functools.cached_property
    def commits(self) -> dict[str, list[dict[str, Any]]]:
        """shipment_id -> the data that its stock.commit may have, for every parcel ever
        scanned in transit or further by a scan that is no history.

        Which scan came first depends on the order of arrival, and the parcel's items are those of that scan,
        of a line no more than it has.
        """
        if self.created is None:
            return {}
        commits: dict[str, list[dict[str, Any]]] = {}
        for scan in self._of("shipment.updated"):
            if RANKS[scan.content["status"]] >= IN_TRANSIT and self.live.may_have_been_live(scan):
                shipment_id, seller_id = scan.content["shipment_id"], scan.content["seller_id"]
                commits.setdefault(shipment_id, []).append(
                    {
                        "commit_id": self.made_id(f"commit:{shipment_id}"),
                        "shipment_id": shipment_id,
                        "reservation_id": self.made_id(f"reservation:{seller_id}"),
                        "order_id": self.order_id,
                        "seller_id": seller_id,
                        "items": [
                            self._item_data(self.items[item_id], min(count, self.items[item_id]["quantity"]))
                            for item_id, count in self._named(scan).items()
                        ],
                    }
                )
        return commits

    def surely_committed(self) -> set[str]:
        """Parcels whose stock.commit is due in any order of arrival: history doesn't know of them."""
        moved = self._moving()
        known = {scan.content["shipment_id"] for scan in moved if self.live.is_history(scan)}
        return {scan.content["shipment_id"] for scan in moved} - known

    @functools.cached_property
    def cancelled(self) -> set[str]:
        """Sellers whose units a cancellation asks back."""
        return self._cancelled(lambda fact: True)

    def _cancelled(self, counts: Callable[[Fact], bool]) -> set[str]:
        """The same by some of the cancellations."""
        asked = [fact.content.get("seller_id") for fact in self._of("order.cancel_requested") if counts(fact)]
        return set(self.sellers) if None in asked else {seller for seller in asked if seller is not None}

    @functools.cached_property
    def given_up(self) -> set[str]:
        """Sellers whose stock was asked for until nobody asked any longer: it counts as rejected."""
        passed = [fact.content for fact in self._of("deadline.passed")]
        return {
            content["seller_id"] for content in passed if content["deadline"] == "stock" and content["final"]
        }

    @functools.cached_property
    def asked_back(self) -> set[str]:
        """Sellers whose stock may have been asked back, all of it or what wasn't shipped in time."""
        return self._asked_back_whole | (self.promises.unshipped & set(self.sellers))

    def releasable(self, seller_id: str) -> dict[str, int]:
        """item_id -> units of a seller in `asked_back` that may have been asked back."""
        own = [line for line in self.lines if line.seller_id == seller_id]
        if seller_id not in self._asked_back_whole:
            until = self.promises.asked_until(seller_id)
            own = [line for line in own if self.promises.may_be_past(UNSHIPPED, line.item, until)]
        return {line.item_id: line.quantity for line in own}

    @functools.cached_property
    def _asked_back_whole(self) -> set[str]:
        """Sellers whose stock may have been asked back: by a cancellation, for want of money, because it
        came too late, or once more.
        """
        passed = [fact.content for fact in self._of("deadline.passed")]
        if any(content["deadline"] == "payment" for content in passed):
            return set(self.sellers)
        reserved = {fact.content["seller_id"] for fact in self._of("stock.reserved")}
        again = {
            content["seller_id"]
            for content in passed
            if content["deadline"] == "release" and not content["final"]
        }
        cancelled = self._cancelled(self.live.may_have_been_live)
        return cancelled | (self.given_up & reserved) | again

    def surely_released(self) -> set[str]:
        """Sellers of `cancelled` for whom a stock.release is due in any order of arrival: some unit never
        moved, came back or was gone.
        """
        cancelled = self._cancelled(self.live.is_surely_live)
        if not cancelled:
            return set()
        moved = {item_id for scan in self._moving() for item_id in self._named(scan)}
        moved |= {stage.content["item_id"] for stage in self._of("order.returned")}
        return {
            line.seller_id for line in self.lines if line.item_id not in moved and line.gone < line.quantity
        } & cancelled

    def surely_labelled(self) -> set[str]:
        """Sellers for whom a label is due in any order of arrival: the order is confirmed or further, units
        not gone, no parcel moved. Where history may have brought it there none has to be; of an order that
        is history itself only a payment brings it there.
        """
        if self.created is None or self.status() == "pending" or self.live.tells(self.accepted):
            return set()
        if self.live.is_history(self.created) and (
            not 0 < self.live_total <= self.captured or any(line.gone for line in self.lines)
        ):
            return set()
        moved = {scan.content["seller_id"] for scan in self._moving()}
        return {line.seller_id for line in self.lines if line.gone < line.quantity} - moved

    @property
    def may_be_labelled(self) -> bool:
        """Whether labels may have left: of an order that is history they do by a payment that isn't."""
        if self.created is None or self.live.may_have_been_live(self.created):
            return self.created is not None
        return any(map(self.live.may_have_been_live, self._of("order.paid")))

    @functools.cached_property
    def live_facts_may_have_waited(self) -> bool:
        """Whether facts that aren't history may have been there before order.created."""
        return any(
            self.live.may_have_been_live(fact)
            for fact in self.accepted
            if fact.type not in ("order.created", "deadline.passed")
        )

    @property
    def own_facts_may_have_waited(self) -> bool:
        """The same of deadlines and decisions, which never are history."""
        return bool(self.decisions or self._of("deadline.passed"))

    def unexpected_deadlines(self) -> list[Fact]:
        """Deadlines that no order of arrival lets pass: of an order that is history nobody waits for stock,
        nor for labels that may not have left; a refund that failed in history alone isn't asked for again.
        """
        if self.created is None or self.live.since is None:
            return []
        never: set[str] = set()
        if not self.live.may_have_been_live(self.created):
            never = {"stock"} if self.may_be_labelled else {"stock", "label"}
        failed = [fact for fact in self._of("refund.failed") if self.live.may_have_been_live(fact)]
        retried = {fact.content["refund_id"] for fact in failed}
        passed = self._of("deadline.passed")
        return [
            fact
            for fact in passed
            if fact.content["deadline"] in never
            or (fact.content["deadline"] == "refund_retry" and fact.content["refund_id"] not in retried)
        ]

    def _moving(self) -> list[Fact]:
        return [scan for scan in self._of("shipment.updated") if RANKS[scan.content["status"]] >= IN_TRANSIT]

    def pays_for(self, decision: Decision) -> int | None:
        """Minor units that the units and shipping named by a decision cost, or the amount of its grant; None
        for cause closed, which names none.

        Raises LookupError for an item or a grant that the order doesn't have, or a unit that its line doesn't
        have.
        """
        if decision.cause == "grant":
            return self.grants[decision.cause_id]
        return None if decision.cause == "closed" else self._named_by(decision)[0]

    def tax_of(self, decision: Decision) -> int:
        """Minor units of tax in a decision, one of the order's or the next: that of the units and shipping
        that it names. Of cause closed, see _Unpaid.

        Of a decision of the order that is what it would be if history had named no units.

        Raises LookupError as pays_for does.
        """
        if decision.cause == "closed":
            unpaid = self._unpaid[decision.n]
            if decision.n == len(self.decisions):
                unpaid = unpaid._replace(
                    cost=unpaid.cost - self.elsewhere.cost, tax=unpaid.tax - self.elsewhere.tax
                )
            return unpaid.tax_of(decision.amount)
        return self._named_by(decision)[1]

    def _named_by(self, decision: Decision) -> tuple[int, int]:
        """Cost and tax of the units and shipping that a decision names."""
        lines = {line.item_id: line for line in self.lines}
        cost = sum(lines[item_id].shipping_cost for item_id in decision.shipping)
        tax = sum(lines[item_id].shipping_tax for item_id in decision.shipping)
        for item_id, number in decision.units:
            line = lines[item_id]
            place = self._place(line, number)
            cost += line.cost(place + 1) - line.cost(place)
            tax += line.tax_of(place + 1) - line.tax_of(place)
        return cost, tax

    @functools.cached_property
    def _unpaid(self) -> list[_Unpaid]:
        """What is left before each decision, and after all of them. One that names what the order doesn't
        have pays for nothing.
        """
        cost = sum(line.cost(line.quantity) + line.shipping_cost for line in self.lines)
        tax = sum(line.tax_of(line.quantity) + line.shipping_tax for line in self.lines)
        left = [_Unpaid(cost, tax, 0, 0)]
        for decision in self.decisions:
            cost, tax, closed, closed_tax = left[-1]
            if decision.cause == "closed":
                closed, closed_tax = closed + decision.amount, closed_tax + (decision.tax_amount or 0)
            else:
                with contextlib.suppress(LookupError):
                    named_cost, named_tax = self._named_by(decision)
                    cost, tax = cost - named_cost, tax - named_tax
            left.append(_Unpaid(cost, tax, closed, closed_tax))
        return left

    @staticmethod
    def _item_data(item: Mapping[str, Any], quantity: int) -> dict[str, Any]:
        fields = {
            "item_id": item["item_id"],
            "product_id": item["product_id"],
            "sku": item["sku"],
            "quantity": quantity,
        }
        if "warehouse_id" in item:
            fields["warehouse_id"] = item["warehouse_id"]
        return fields


def _amounts_of(counts: Iterable[tuple[Line, int]]) -> Amounts:
    """Of the first units of some lines, so many of each, with the whole shipping of these lines."""
    counts = list(counts)
    return Amounts(
        items=sum(line.price * count for line, count in counts),
        shipping=sum(line.shipping for line, _ in counts),
        discount=sum(line.discount_of(count) for line, count in counts),
        tax=sum(line.tax_of(count) + line.shipping_tax for line, count in counts),
        total=sum(line.cost(count) + line.shipping_cost for line, count in counts),
    )


def _weight(scan: Fact) -> tuple[int, datetime]:
    return RANKS[scan.content["status"]], scan.time


def _finality(stage: Fact) -> tuple[bool, datetime, bool]:
    """The lowest wins."""
    status = stage.content["status"]
    return status == "requested", stage.time, status == "rejected"
