"""What a person should look at, read a second time from the contract: which kinds of anomaly and lateness
hold of an order, since when, the rows of orders_attention that must be there, and what order.attention tells.

A kind holds since the moment from which on the order's facts, decisions and deadlines, up to any later
moment, make it hold. So the order is folded anew for its moments, the latest first, until the kind doesn't
hold; only where something holds. A detail is words for a person: of two details it is compared what they
name, which is ids, times and numbers. Nothing here blocks or does I/O.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, TypeAlias

# That of audit.reference, which imports this module.
Reading: TypeAlias = Any
Row = tuple[Any, ...]

TABLE: Final = "orders_attention"
TOPIC: Final = "order.attention"
RAISED, CLEARED = STATES = ("raised", "cleared")
KINDS: Final = (
    "overpaid",
    "over_returned",
    "moved_though_gone",
    "reservation_unknown",
    "refund_failed",
    "refund_paid_twice",
    "refund_unknown",
    "refund_uncovered",
    "refund_above_captured",
    "refund_contradicted",
    "release_unanswered",
    "label_unscanned",
    "refund_unconfirmed",
    "late_to_ship",
    "late_to_deliver",
    "return_overdue",
    "came_back",
    "refunded_above_history",
)
SEPARATOR: Final = "; "
"""Between what a detail says of two subjects."""
MOST_FACTS: Final = 200_000
"""So many facts are read again to find out since when something holds of one order."""

_ANOMALIES: Final = {
    "captured_above_total": ("overpaid", "captured above the order's total"),
    "returned_above_quantity": ("over_returned", "item {}: more units returned than there are"),
    "in_transit_above_stock": ("moved_though_gone", "item {}: more units in transit than are not gone"),
    "refund_failed": ("refund_failed", "refund {}"),
    "refund_not_covered": ("refund_uncovered", "{}: captured money does not cover this refund"),
    "decision_contradicted": ("refund_contradicted", "{}: a later fact contradicts its decision"),
    "release_unanswered": ("release_unanswered", "seller {}: the stock was asked back in vain"),
    "label_unscanned": ("label_unscanned", "seller {}: no parcel in transit"),
    "refund_unconfirmed": ("refund_unconfirmed", "refund {}"),
    "refunded_above_history": (
        "refunded_above_history",
        "another system paid back more than it captured",
    ),
    "return_overdue": ("return_overdue", "return {}: neither processed nor rejected"),
}
"""Code of the reference -> the kind, and what its detail says with that of the reference."""


# -- what holds ----------------------------------------------------------------------------------------------


def what_holds(reading: Reading) -> dict[str, str]:
    """Kind -> detail, of each kind that holds by these facts and decisions; none before order.created."""
    if reading.created is None:
        return {}
    held: dict[str, set[str]] = {}
    for kind, said in _said(reading):
        held.setdefault(kind, set()).add(said)
    return {kind: SEPARATOR.join(sorted(held[kind])) for kind in KINDS if kind in held}


def _said(reading: Reading) -> Iterator[tuple[str, str]]:
    """(kind, what its detail says of one subject)."""
    for anomaly in reading.anomalies():
        if anomaly.code in _ANOMALIES:
            kind, words = _ANOMALIES[anomaly.code]
            yield kind, words.format(anomaly.detail)
    for fact in reading.accepted:
        if fact.type.startswith("stock.") and not reading.live.is_history(fact):
            seller, named = fact.content["seller_id"], fact.content["reservation_id"]
            if named != reading.made_id(f"reservation:{seller}"):
                yield "reservation_unknown", f"seller {seller}: reservation {named} is not ours"
    for late in reading.late:
        words = f"seller {late.seller_id}: {late.units} units, due {late.due.isoformat()}"
        yield f"late_to_{late.what}", words
    yield from _came_back(reading)
    yield from _about_refunds(reading)


def _came_back(reading: Reading) -> Iterator[tuple[str, str]]:
    """Units that parcels brought back, of a line no more than it has, and that no processed return names."""
    brought: Counter[str] = Counter()
    for scan in reading.parcels.values():
        if scan.content["status"] == "returned":
            brought.update(_named(reading, scan))
    for line in reading.lines:
        count = min(line.quantity, brought[line.item_id]) - line.processed
        if count > 0:
            yield "came_back", f"item {line.item_id}: {count} came back, and no processed return names them"


def _named(reading: Reading, scan: Any) -> dict[str, int]:
    """item_id -> units in a parcel: those that it names, or all of its seller's."""
    if "items" in scan.content:
        return {item["item_id"]: item["quantity"] for item in scan.content["items"]}
    seller = scan.content["seller_id"]
    own = (item for item in reading.items.values() if item["seller_id"] == seller)
    return {item["item_id"]: item["quantity"] for item in own}


def _about_refunds(reading: Reading) -> Iterator[tuple[str, str]]:
    if reading.refunded > reading.captured:
        yield "refund_above_captured", "decided above what was captured"
    ours = {reading.made_id(f"refund:{decision.n}") for decision in reading.decisions}
    replies = [
        fact
        for fact in reading.accepted
        if fact.type in ("refund.completed", "refund.failed") and not reading.live.is_history(fact)
    ]
    for refund_id in {fact.content["refund_id"] for fact in replies} - ours:
        yield "refund_unknown", f"refund {refund_id} is not ours"
    completed = Counter(fact.content["refund_id"] for fact in replies if fact.type == "refund.completed")
    for refund_id, count in completed.items():
        if count > 1:
            yield "refund_paid_twice", f"refund {refund_id}: {count} attempts were paid out"


# -- since when ----------------------------------------------------------------------------------------------


class Held(NamedTuple):
    """A kind that holds. `exact`: since then; else since then or earlier: there are too many moments to look
    at each of them.
    """

    detail: str
    since: datetime
    exact: bool


def attention_of(reading: Reading) -> dict[str, Held]:
    """Kind -> what holds of an order, and since when."""
    details = what_holds(reading)
    if not details:
        return {}
    since: dict[str, datetime] = {}
    moments = moments_of(reading)
    open_, earliest = set(details), moments[-1]
    read = 0
    for time in reversed(moments[:-1]):
        read += len(reading.facts)
        if read > MOST_FACTS:
            break
        holds = what_holds(as_of(reading, time))
        since |= dict.fromkeys(open_ - holds.keys(), earliest)
        open_ &= holds.keys()
        if not open_:
            break
        earliest = time
    exact = earliest == moments[0]
    return {
        kind: Held(detail, since.get(kind, earliest), kind in since or exact)
        for kind, detail in details.items()
    }


def moments_of(reading: Reading) -> list[datetime]:
    """Times at which an order became another one, from its order.created on, each once, the earliest first:
    those of its facts and deadlines, and of its decisions.
    """
    times = {fact.time for fact in reading.facts} | set(_decided_at(reading))
    return sorted(time for time in times if time >= reading.created.time)


def as_of(reading: Reading, time: datetime) -> Reading:
    """The order by its facts, decisions and deadlines with an event time up to `time`."""
    decided = zip(reading.decisions, _decided_at(reading), strict=True)
    return type(reading)(
        reading.order_id,
        [fact for fact in reading.facts if fact.time <= time],
        {decision.n: decision for decision, at in decided if at <= time},
    )


def _decided_at(reading: Reading) -> list[datetime]:
    """From when on each decision counts: one doesn't before those with lower numbers do."""
    times: list[datetime] = []
    for decision in reading.decisions:
        assert decision.time is not None
        times.append(max(decision.time, times[-1]) if times else decision.time)
    return times


# -- rows ----------------------------------------------------------------------------------------------------


def version_of(reading: Reading) -> int:
    """Of an order's attention: its facts and its decisions count."""
    return int(reading.version) + len(reading.decisions)


def attention_rows(reading: Reading) -> list[Row]:
    """Rows of orders_attention that must be there, open, in column order (audit.stores.COLUMNS), by kind."""
    held = reading.attention
    if not held:
        return []
    times = [fact.time for fact in reading.accepted] + [decision.time for decision in reading.decisions]
    stamps = (min(times).isoformat(), max(times).isoformat(), version_of(reading))
    return [
        (kind, *reading.whose, each.detail, each.since.isoformat(), None, *stamps)
        for kind, each in sorted(held.items())
    ]


def no_later(reading: Reading) -> frozenset[str]:
    """Kinds whose row may say an earlier `since` than the one that must be there."""
    return frozenset(kind for kind, each in reading.attention.items() if not each.exact)


_ID: Final = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}[0-9:.]*(?:Z|[+-][0-9]{2}:[0-9]{2})")
_NUMBER: Final = re.compile("[0-9]+")


def named_in(detail: str) -> str:
    """What a detail names: each id once, times in UTC and numbers each time, sorted."""
    ids = set(_ID.findall(detail))
    rest = _ID.sub(" ", detail)
    times, numbers = [], _NUMBER.findall(_TIME.sub(" ", rest))
    for text in _TIME.findall(rest):
        try:
            times.append(datetime.fromisoformat(text).astimezone(UTC).isoformat())
        except (ValueError, OverflowError):
            times.append(text)
    return " ".join([*sorted(ids), *sorted(times), *sorted(numbers, key=int)])


# -- events --------------------------------------------------------------------------------------------------


def event_name(data: Mapping[str, Any]) -> str:
    """What the id of an order.attention is made of, beside its type."""
    return ":".join(str(data.get(name)) for name in ("kind", "state", "version"))


def malformed(data: Mapping[str, Any], readings: Sequence[Reading]) -> tuple[str, str] | None:
    """What is wrong about an order.attention by itself, as (expected, actual); None: nothing."""
    users = sorted({str(reading.known["user_id"]) for reading in readings if reading.created is not None})
    for name, allowed in (("kind", KINDS), ("state", STATES), ("user_id", users)):
        if data.get(name) not in allowed:
            return f"{name} {' or '.join(allowed)}", str(data.get(name))
    if data["state"] == RAISED:
        since = data.get("since")
        if not isinstance(since, str) or _TIME.fullmatch(since) is None:
            return "since, a time", str(since)
        if not isinstance(data.get("detail"), str):
            return "detail, a text", str(data.get("detail"))
    return None


def misled(kind: str, last: Mapping[str, Any] | None, readings: Sequence[Reading]) -> tuple[str, str] | None:
    """What the last order.attention of a kind says that isn't so, as (expected, actual); None: nothing.
    `last` None: there is none.
    """
    said = None if last is None or last.get("state") != RAISED else str(last.get("detail"))
    held = [reading.attention.get(kind) for reading in readings]
    details = [None if each is None else each.detail for each in held]
    if any(_same(detail, said) for detail in details):
        return None
    state = "none" if last is None else str(last.get("state"))
    return _in_words(details[0], CLEARED), _in_words(said, state)


def _same(detail: str | None, said: str | None) -> bool:
    if detail is None or said is None:
        return detail is said
    return named_in(detail) == named_in(said)


def _in_words(detail: str | None, without: str) -> str:
    return without if detail is None else f"{RAISED}: {detail}"
