"""An order's state as it lies in the changelog: a second reading of its bytes, and what they must be.

A state is one MessagePack array (docs/audit.md lists its elements); ids are 16 bytes, times
microseconds since 1970 UTC, money is in minor units. More elements may follow those that are known
here. Nothing here blocks.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

import msgspec

from audit.promises import subject_of
from audit.reference import DEADLINES, RANKS, STAGES, Decision, Fact, Reading, RecordId, uuid_bytes, uuid_text

NEWEST_FORMAT: Final = 2
ADDED: Final[dict[str, Any]] = {
    "deadlines": [],
    "appended": 0,
    "labelled_at": 0,
    "due": 0,
    "format": 1,
    "grants": [],
    "promises": [],
    "lapses": [],
    "left": [],
    # What was told: what holds is in the rows and follows from the facts.
    "attention": [],
    "attended": 0,
}
"""Elements that came later, in their order, and what a state from before them says.
A new one is added at the end.
"""
FIELDS: Final = (
    "version",
    "created",
    "payments",
    "scans",
    "stock",
    "returns",
    "cancellations",
    "failures",
    "refunds",
    "decisions",
    "waiting",
    "status",
    "suborders",
    "labelled",
    "proposed",
    *ADDED,
)
_FACTS: Final = (
    *("payments", "scans", "stock", "returns", "cancellations", "failures", "refunds", "deadlines"),
    "grants",
    "promises",
    "lapses",
)
_SIZES: Final = {
    "payments": 6,
    "scans": 11,
    "stock": 7,
    "returns": 9,
    "cancellations": 4,
    "failures": 4,
    "refunds": 5,
    "deadlines": 6,
    "promises": 5,
    "lapses": 6,
    "decisions": 7,
    "waiting": 3,
    "suborders": 9,
    "grants": 8,
    "attention": 4,
}
"""How many elements count of each array in these lists. Behind them may be the broker's time of a
fact's record (whichever came first), and what later versions added.
"""
_CREATED: Final = 7
_ITEM: Final = 8
_LATER: Final[dict[str, tuple[tuple[int, Any], ...]]] = {
    "refunds": ((5, 1),),
    "lapses": ((7, None),),
    "decisions": ((8, None), (9, None)),
    "suborders": ((9, 0), (10, False)),
    "created": ((7, None), (8, None), (9, None), (11, None), (12, None)),
    "items": ((8, None), (9, None), (10, None), (11, None)),
}
"""Elements of these arrays that came later: where each is, and what an array without it says."""
_CLOSED: Final = (
    "",
    "cancelled",
    "payment_overdue",
    "stock_released",
    "stock_rejected",
    "stock_unanswered",
)
_NOT_SHIPPED: Final = "not_shipped"
"""Said beside stock_released, by the last element of a suborder: earlier versions know no number for it."""
_FIRST_LAPSE: Final = DEADLINES.index("ship")
"""Deadlines from here on have a list of their own."""
_STATUS: Final = ("pending", "confirmed", "shipped", "delivered", "returned", "closed")
_REPLIES: Final = ("stock.reserved", "stock.rejected", "stock.released")
_CAUSES: Final = ("return", "stock", "closed", "grant")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)

Values = tuple[Any, ...]
State = dict[str, Any]
"""Field -> value; lists of facts as sets of tuples, since their order tells nothing."""


class Difference(NamedTuple):
    field: str
    expected: str
    found: str
    fact: RecordId | None


def version_of(raw: bytes) -> int:
    """The first element of a MessagePack array, an unsigned integer. Raises ValueError."""
    try:
        head = raw[0]
        at = 1 if 0x90 <= head <= 0x9F else {0xDC: 3, 0xDD: 5}[head]
        kind = raw[at]
        if kind < 0x80:
            return kind
        width = {0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}[kind]
        value: int = struct.unpack_from(width, raw, at + 1)[0]
    except (IndexError, KeyError, struct.error) as error:
        raise ValueError("no MessagePack array that begins with an integer") from error
    return value


def read_state(raw: bytes) -> State:
    """Raises ValueError for bytes that are no state."""
    try:
        decoded = msgspec.msgpack.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(str(error)) from None
    least = len(FIELDS) - len(ADDED)
    if not isinstance(decoded, list) or len(decoded) < least:
        raise ValueError(f"no array of at least {least} elements")
    decoded += list(ADDED.values())[len(decoded) - least :]
    state = {name: _tuples(value) for name, value in zip(FIELDS, decoded, strict=False)}
    if state["format"] not in range(1, NEWEST_FORMAT + 1):
        raise ValueError(f"format {state['format']!r}: this version knows 1 to {NEWEST_FORMAT}")
    for name, size in _SIZES.items():
        state[name] = _cut(state[name], size, _LATER.get(name, ()))
    if isinstance(state["created"], tuple):
        (created,) = _cut((state["created"],), _CREATED, _LATER["created"])
        before, items, later = created[: _CREATED - 1], created[_CREATED - 1], created[_CREATED:]
        state["created"] = (*before, _cut(items, _ITEM, _LATER["items"]), *later)
    for name in _FACTS:
        if not isinstance(state[name], tuple):
            raise ValueError(f"{name} is no list")
        try:
            state[name] = set(state[name])
        except TypeError:  # a map, which no state has
            raise ValueError(f"{name} holds something else than facts") from None
    return state


def state_of(reading: Reading) -> State:
    """What a state must be, but for `waiting`, `labelled` and `proposed`, which
    depend on the order of arrival.
    """
    state: State = {"version": reading.version, "created": None, **{name: set() for name in _FACTS}}
    for fact in reading.facts:
        if fact is reading.created:
            state["created"] = _created(fact)
        else:
            field, values = _simple(fact, fact.key in reading.refused)
            state[field].add(values)
    state["decisions"] = tuple(_decision(decision) for decision in reading.decisions)
    state["status"] = 0
    state["suborders"] = ()
    if reading.created is not None:
        state["status"] = _STATUS.index(reading.status())
        state["suborders"] = tuple(
            (
                _STATUS.index(each.status),
                *(each.live.items, each.live.shipping, each.live.discount),
                *each.units,
                _CLOSED.index("stock_released" if why == _NOT_SHIPPED else why),
                each.live.tax,
                why == _NOT_SHIPPED,
            )
            for each, why in ((each, reading.why_closed(each)) for each in reading.suborders)
        )
    return state


def differences(
    reading: Reading,
    actual: State,
    record_ids: Callable[[Fact], RecordId | None],
    origins: Iterable[RecordId],
) -> list[Difference]:
    """Where a state isn't what it must be. `origins`: where the order's records lie."""
    expected = state_of(reading)
    expected["decisions"] = _forgotten(expected["decisions"], actual["decisions"])
    differing = [name for name in expected if expected[name] != actual[name]]
    result = []
    for name in differing:
        if name in _FACTS:
            missing, extra = expected[name] - actual[name], actual[name] - expected[name]
            facts = [
                fact
                for fact in reading.facts
                if fact is not reading.created and _simple(fact, fact.key in reading.refused)[1] in missing
            ]
            record_id = record_ids(facts[0]) if facts else None
            result.append(
                Difference(
                    name, _readable(sorted(missing, key=repr)), _readable(sorted(extra, key=repr)), record_id
                )
            )
        else:
            result.append(Difference(name, _readable(expected[name]), _readable(actual[name]), None))
    waiting = len(reading.facts) if reading.created is None else 0
    if len(actual["waiting"]) != waiting:
        result.append(Difference("waiting", f"{waiting} facts", f"{len(actual['waiting'])}", None))
    elif waiting:
        expected_waiting = {tuple(record_id) for record_id in origins}
        strange = [origin for _, _, origin in actual["waiting"] if tuple(origin) not in expected_waiting]
        if strange:
            result.append(
                Difference("waiting", "coordinates of the order's records", _readable(strange[0]), None)
            )
    if actual["proposed"] < len(reading.decisions):
        result.append(
            Difference("proposed", f"at least {len(reading.decisions)}", str(actual["proposed"]), None)
        )
    if not actual["labelled"] and expected["status"] > 0 and not _may_be_unlabelled(reading):
        result.append(Difference("labelled", "true: the order is confirmed or further", "false", None))
    return result


def _forgotten(expected: Values, actual: Values) -> Values:
    """The decisions, without the allocations that the state doesn't hold: a worker of the version before,
    which folded the decision while both ran, drops them.
    """
    if len(expected) != len(actual):
        return expected
    return tuple(
        (*decision[:-1], None) if held[-1:] == (None,) else decision
        for decision, held in zip(expected, actual, strict=True)
    )


def _may_be_unlabelled(reading: Reading) -> bool:
    """Whether history may have brought the order to its status, without labels of ours."""
    return reading.created is not None and (
        reading.live.is_history(reading.created) or reading.live.tells(reading.accepted)
    )


def _created(fact: Fact) -> Values:
    content = fact.content
    items = tuple(
        (
            uuid_bytes(item["item_id"]),
            uuid_bytes(item["product_id"]),
            uuid_bytes(item["seller_id"]),
            _id(item.get("warehouse_id")),
            item["sku"],
            item["quantity"],
            item["price"],
            item.get("shipping_amount"),
            _taxes(item.get("taxes")),
            _taxes(item.get("shipping_taxes")),
            _us(item.get("ship_by")),
            _us(item.get("deliver_by")),
        )
        for item in content["items"]
    )
    user, amounts = uuid_bytes(content["user_id"]), (content["total_amount"], content.get("discount_amount"))
    whose = (user, content.get("region"), content["currency"])
    cart = (_id(content.get("cart_id")), _us(content.get("cart_created_at")))
    elsewhere = (_us(content.get("live_from")), content.get("refunded_amount"))
    later = (content.get("prices_include_tax"), *cart, *elsewhere)
    return (_us(fact.time), *whose, *amounts, items, *later)


def _simple(fact: Fact, refused: bool) -> tuple[str, Values]:
    """(field, values) of a fact other than order.created."""
    content, time = fact.content, _us(fact.time)
    match fact.type:
        case "order.paid":
            money = (content["amount"], content["currency"], content.get("method"))
            return "payments", (time, uuid_bytes(content["payment_id"]), *money, refused)
        case "payment.failed":
            return "failures", (time, uuid_bytes(content["payment_id"]), fact.reason, refused)
        case "shipment.updated":
            return "scans", (
                time,
                uuid_bytes(content["shipment_id"]),
                RANKS[content["status"]],
                uuid_bytes(content["seller_id"]),
                _id(content.get("warehouse_id")),
                content.get("carrier"),
                content.get("tracking_number"),
                _us(content.get("estimated_delivery")),
                content.get("location"),
                _quantities(content.get("items")),
                refused,
            )
        case "order.returned":
            stage = (
                uuid_bytes(content["return_id"]),
                STAGES.index(content["status"]),
                uuid_bytes(content["item_id"]),
            )
            return "returns", (
                time,
                *stage,
                content.get("quantity"),
                fact.reason,
                _us(content.get("processed_at")),
                content.get("restock"),
                refused,
            )
        case "order.cancel_requested":
            return "cancellations", (time, _id(content.get("seller_id")), fact.reason, refused)
        case "refund.completed" | "refund.failed":
            failed, attempt = fact.type == "refund.failed", content["attempt"]
            return "refunds", (
                *(time, uuid_bytes(content["refund_id"]), failed, fact.reason, refused),
                attempt,
            )
        case "refund.granted":
            return "grants", (
                time,
                uuid_bytes(content["grant_id"]),
                *(content["amount"], content["currency"], fact.reason),
                *(_id(content.get("seller_id")), _id(content.get("item_id"))),
                refused,
            )
        case "promise.updated":
            by = (_us(content.get("ship_by")), _us(content.get("deliver_by")))
            return "promises", (time, uuid_bytes(content["seller_id"]), *by, refused)
        case "deadline.passed":
            return _passed(content, time, refused)
    reply = (
        _REPLIES.index(fact.type),
        uuid_bytes(content["seller_id"]),
        uuid_bytes(content["reservation_id"]),
    )
    return "stock", (time, *reply, _quantities(content.get("items")), fact.reason, refused)


def _passed(content: Mapping[str, Any], time: int | None, refused: bool) -> tuple[str, Values]:
    number = DEADLINES.index(content["deadline"])
    passed = (time, number, _id(subject_of(content)), content["attempt"], content["final"], refused)
    return ("deadlines", passed) if number < _FIRST_LAPSE else ("lapses", (*passed, _us(content.get("due"))))


def _decision(decision: Decision) -> Values:
    spans: list[list[Any]] = []
    for item_id, number in decision.units:
        if spans and spans[-1][0] == item_id and spans[-1][1] + spans[-1][2] == number:
            spans[-1][2] += 1
        else:
            spans.append([item_id, number, 1])
    units = tuple((uuid_bytes(item_id), first, count) for item_id, first, count in spans)
    cause = (_CAUSES.index(decision.cause), uuid_bytes(decision.cause_id))
    return (
        _us(decision.time),
        decision.n,
        decision.amount,
        *cause,
        units,
        tuple(map(uuid_bytes, decision.shipping)),
        decision.tax_amount,
        None
        if decision.allocations is None
        else tuple((uuid_bytes(payment_id), part) for payment_id, part in decision.allocations),
    )


def _id(text: str | None) -> bytes | None:
    return None if text is None else uuid_bytes(text)


def _us(time: datetime | None) -> int | None:
    return None if time is None else (time - _EPOCH) // _MICROSECOND


def _quantities(items: Iterable[Mapping[str, Any]] | None) -> Values | None:
    return None if items is None else tuple((uuid_bytes(item["item_id"]), item["quantity"]) for item in items)


def _taxes(taxes: Iterable[Mapping[str, Any]] | None) -> Values | None:
    return None if taxes is None else tuple((tax["code"], tax["amount"]) for tax in taxes)


def _cut(arrays: Any, size: int, later: Iterable[tuple[int, Any]] = ()) -> Any:
    """The first elements of each array in a list, and those that came later; what is no such list stays what
    it is.
    """
    if isinstance(arrays, tuple) and all(isinstance(each, tuple) for each in arrays):
        return tuple(
            each[:size] + tuple(each[at] if at < len(each) else absent for at, absent in later)
            for each in arrays
        )
    return arrays


def _tuples(value: Any) -> Any:
    if type(value) is not list:
        return value
    return tuple([_tuples(each) if type(each) is list else each for each in value])


def _readable(value: Any) -> str:
    """Ids as text."""
    if isinstance(value, bytes):
        return uuid_text(value.hex()) if len(value) == 16 else repr(value)
    if isinstance(value, (tuple, list, set)):
        return "(" + ", ".join(map(_readable, value)) + ")" if value else "none"
    return str(value)
