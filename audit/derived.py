"""Derived events of one order against what its facts call for.

Commands and suborder.created: one id has one content, and the set is complete. Labels, releases and
commits: they may differ with the order of arrival, so only what holds in any is asked. Notices: the
last one tells what is so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Any, Final

import msgspec

from audit.attention import TOPIC as ATTENTION
from audit.attention import event_name, malformed, misled
from audit.attention import version_of as attention_version
from audit.findings import Findings, plain
from audit.followed import LATE, Appended, late_id, surely_followed
from audit.promises import DELIVER, SHIP
from audit.reference import Fact, Reading, RecordId, Refused, time_of

SAME: Final = {
    "suborder.created": "suborder_id",
    "stock.reserve": "reservation_id",
    "payment.initiate": "payment_request_id",
    "stock.restock": "restock_id",
    "refund.request": "refund_id",
}
"""Derived events whose set and content don't depend on the order of arrival, and
the field that is their id.
"""
VARYING: Final = {
    "shipping.label.create": "label_request_id",
    "stock.release": "reservation_id",
    "stock.commit": "commit_id",
}
"""Those that may."""
NOTICES: Final = ("suborder.updated", LATE, "order.status_changed", ATTENTION)
TOLD: Final = ("suborder.created", "suborder.updated", "order.status_changed", ATTENTION)
"""What tells of an order, and asks nobody for anything: it leaves for history too. LATE doesn't: it follows
from a deadline.
"""
TAXES: Final = ("tax_amount", "shipping_tax_amount")
ALLOCATED: Final = ("lines", "shipping_amount", "allocations", "attempt")
"""What the first refund.request of a decision tells only if it has allocations."""
DERIVED: Final = (*SAME, *VARYING, *NOTICES)

_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode

RecordOf = Callable[[Fact], RecordId | None]


class Event:
    """A derived event. `event_id`, `cause`, `trace`, `history`: its CloudEvents attributes id, causeid,
    traceparent, history.
    """

    __slots__ = ("cause", "data", "event_id", "history", "offset", "partition", "trace", "type")

    def __init__(
        self,
        type_: str,
        partition: int,
        offset: int,
        event_id: str,
        cause: str,
        trace: str | None,
        value: bytes,
        history: str | None = None,
    ) -> None:
        """Raises ValueError when `value` is no JSON object."""
        self.type = type_
        self.partition = partition
        self.offset = offset
        self.event_id = event_id
        self.cause = cause
        self.trace = trace
        self.history = history
        try:
            self.data = _decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(str(error)) from None


class DerivedEvents:
    """All derived events of one order. `complete`: topics of which no record has been deleted."""

    def __init__(
        self,
        readings: Sequence[Reading],
        causes: Mapping[str, set[str | None]],
        record_id: RecordOf,
        findings: Findings,
        happened: Mapping[str, set[tuple[str, datetime]]] | None = None,
        appended: Appended = lambda fact: None,
        told_from: int | None = None,
    ) -> None:
        """`causes`: id of each of the order's events -> the traces that events of this id carry. `happened`:
        id of each that other services sent -> types and times of the events of this id. `appended`: when a
        fact came to the log. `told_from`: since when order.attention is written, ms since 1970; None: it
        isn't known.
        """
        self._readings = readings
        self._first = readings[0]
        self._causes = causes
        self._record_of = record_id
        self._appended = appended
        self._told_from = told_from
        self._findings = findings
        self._order_id = self._first.order_id
        self._happened = happened or {}
        self._expected = [reading.derived() for reading in readings]
        both = zip(readings, self._expected, strict=True)
        self._possible = [
            reading.possible() if reading.live.since else expected for reading, expected in both
        ]
        self._written = {
            (key[0], msgspec.json.encode(data)): key
            for possible in self._possible
            for key, data in possible.items()
            if key[0] != "suborder.created"  # which says more than it must
        }
        """(type, bytes) of what may be there -> what it is."""
        self._seen: set[tuple[str, str]] = set()
        self._last: dict[tuple[str, str], Event] = {}
        self.repetitions = 0

    def recall(self, seen: Iterable[tuple[str, str]], last: Iterable[Event]) -> None:
        """Take what was seen before: (type, id) of events that were right, and the last notices."""
        self._seen.update(seen)
        for event in last:
            of = {"order.status_changed": "order", ATTENTION: "kind"}.get(event.type, "seller_id")
            self._last[event.type, "" if of == "order" else str(event.data.get(of))] = event

    @property
    def seen(self) -> list[tuple[str, str]]:
        """(type, id) of the events that were taken, but for notices."""
        return sorted(self._seen)

    @property
    def last(self) -> list[Event]:
        """The last notice about the order, each of its suborders, and each kind of attention."""
        return list(self._last.values())

    # -- one after the other, in the order of their topics ---------------------------------------------------

    def take_written(
        self,
        type_: str,
        event_id: str,
        cause: str,
        trace: str | None,
        value: bytes,
        history: str | None = None,
    ) -> bool:
        """Take an event if it is, byte for byte, what the facts call for; False: it has to be looked at."""
        key = self._written.get((type_, value))
        if key is None or event_id != self._first.made_id(f"{type_}:{key[1]}"):
            return False
        if trace not in self._causes.get(cause, ()) or self._history_wrong(type_, cause, history):
            return False
        if key in self._seen:
            self.repetitions += 1
        self._seen.add(key)
        return True

    def take(self, event: Event) -> None:
        data, where = event.data, self._where(event)
        if data.get("order_id") != self._order_id:
            self._findings.broken(
                "derived", self._order_id, where, f"order_id {self._order_id}", data.get("order_id")
            )
            return
        self._look_at_cause(event, where)
        self._look_at_taxes(event, where)
        if wrong := self._history_wrong(event.type, event.cause, event.history):
            self._findings.at_rest("derived", self._order_id, where, *wrong)
        if event.type in SAME:
            self._take_same(event, where)
        elif event.type == "suborder.updated":
            self._take_notice(event, where, str(data.get("seller_id")))
        elif event.type == "order.status_changed":
            self._take_notice(event, where, "")
        elif event.type == LATE:
            self._take_late(event, where)
        elif event.type == ATTENTION:
            self._take_attention(event, where)
        else:
            self._take_varying(event, where)

    def _look_at_cause(self, event: Event, where: str) -> None:
        traces = self._causes.get(event.cause)
        if traces is None:
            self._findings.at_rest(
                "derived",
                self._order_id,
                where,
                "causeid of one of the order's events",
                event.cause or "none",
            )
        elif event.trace not in traces:
            self._findings.broken(
                "derived",
                self._order_id,
                where,
                f"traceparent {next(iter(traces)) or 'none'}",
                event.trace or "none",
            )

    def _look_at_taxes(self, event: Event, where: str) -> None:
        """An order without tax tells none, or 0."""
        if any(reading.created is None or reading.taxed for reading in self._readings):
            return
        items = event.data.get("items", event.data.get("lines"))
        for said in (event.data, *(items if isinstance(items, list) else ())):
            for name in TAXES:
                if isinstance(said, dict) and name in said and not _same(name, "0", said[name]):
                    self._findings.broken("derived", self._order_id, where, f"no {name}", said[name])

    def _history_wrong(self, type_: str, cause: str, history: str | None) -> tuple[str, str] | tuple[()]:
        """What is wrong, as (expected, actual), about an event of this attribute `history` that was made by
        the event of this id.
        """
        wrong: list[tuple[str, str] | tuple[()]] = [
            () if reading.created is None else self._history_apart(reading, type_, cause, history)
            for reading in self._readings
        ]
        return first_pair(wrong) if all(wrong) else ()

    def _history_apart(
        self, reading: Reading, type_: str, cause: str, history: str | None
    ) -> tuple[str, str] | tuple[()]:
        since, causes = reading.live.since, self._happened.get(cause, ())
        if since is None:
            return () if history is None else ("no attribute history", history)
        may_be_history = any(time < since for _, time in causes)
        may_be_live = not causes or any(time >= since for _, time in causes)
        # order.created makes what facts that had waited for it cause, too.
        first = any(kind == "order.created" for kind, _ in causes)
        if first and (
            reading.live_facts_may_have_waited or (type_ not in TOLD and reading.own_facts_may_have_waited)
        ):
            may_be_live = True
        if type_ not in TOLD:
            if history is not None:
                return "no attribute history: a command", history
            return () if may_be_live else ("no command: history made it", type_)
        if history is None:
            return () if may_be_live else ("attribute history true", "none")
        if history != "true" or not may_be_history:
            return f"attribute history {'true' if may_be_history else 'none'}", history
        return ()

    def _look_at_id(self, event: Event, where: str, name: str) -> None:
        event_id = self._first.made_id(f"{event.type}:{name}")
        if event.event_id != event_id:
            self._findings.broken("derived", self._order_id, where, f"id {event_id}", event.event_id)

    def _take_same(self, event: Event, where: str) -> None:
        made_id = event.data.get(SAME[event.type])
        key = (event.type, str(made_id))
        if event.type == "refund.request" and not _same_attempt(1, event.data.get("attempt", 1)):
            key = (event.type, f"{made_id}:{event.data['attempt']}")
        contents = [possible[key] for possible in self._possible if key in possible]
        if not contents:
            self._findings.at_rest(
                "derived", self._order_id, where, "no such event", f"{SAME[event.type]} {key[1]}"
            )
            return
        if key in self._seen:
            self.repetitions += 1
        self._seen.add(key)
        if event.type == "refund.request" and not any(name in event.data for name in ALLOCATED):
            # A worker of the version before, which folded the decision while both ran, knows none of them.
            contents = [
                {name: each for name, each in content.items() if name not in ALLOCATED}
                for content in contents
            ]
        apart = [difference(content, event.data) for content in contents]
        if all(apart):
            self._findings.broken(
                "derived", self._order_id, where, *first_pair(apart), self._fact_of(event.type)
            )
        elif event.type == "refund.request" and not any("allocations" in content for content in contents):
            for name in ALLOCATED:
                if name in event.data and not any(name in content for content in contents):
                    self._findings.broken("derived", self._order_id, where, f"no {name}", event.data[name])
        self._look_at_id(event, where, key[1])

    def _take_varying(self, event: Event, where: str) -> None:
        field = VARYING[event.type]
        contents = [content for reading in self._readings for content in self._allowed(reading, event)]
        made_id = event.data.get(field)
        if not contents:
            self._findings.at_rest("derived", self._order_id, where, "no such event", f"{field} {made_id}")
            return
        if (event.type, str(made_id)) in self._seen:
            self.repetitions += 1
        self._seen.add((event.type, str(made_id)))
        apart = [difference(content, event.data) or _beyond(content, event.data) for content in contents]
        if all(apart):
            self._findings.at_rest("derived", self._order_id, where, *first_pair(apart))
        self._look_at_id(event, where, str(made_id))

    @staticmethod
    def _allowed(reading: Reading, event: Event) -> list[dict[str, Any]]:
        """What such an event may say, its items apart where they may be fewer."""
        seller = event.data.get("seller_id")
        if reading.created is None:
            return []
        if event.type == "stock.commit":
            return reading.commits.get(str(event.data.get("shipment_id")), [])
        whose = {"order_id": reading.order_id, "seller_id": seller, "at_most": _lines_of(reading, seller)}
        if event.type == "stock.release":
            if seller not in reading.asked_back:
                return []
            whose["at_most"] = reading.releasable(str(seller))
            return [{"reservation_id": reading.made_id(f"reservation:{seller}"), **whose}]
        if seller not in reading.sellers or not reading.may_be_labelled:
            return []
        ids = {
            "label_request_id": reading.made_id(f"label:{seller}"),
            "suborder_id": reading.made_id(f"suborder:{seller}"),
        }
        return [{**ids, **whose}]

    def _take_notice(self, event: Event, where: str, seller: str) -> None:
        version = event.data.get("version")
        if self._first.created is None or (
            seller and not any(seller in reading.sellers for reading in self._readings)
        ):
            self._findings.at_rest("derived", self._order_id, where, "no such event", f"version {version}")
            return
        self._look_at_version(event, where, self._first.version)
        self._look_at_id(event, where, f"{version}:{seller}" if seller else str(version))
        if event.type == "order.status_changed":
            cause = event.data.get("cause")
            if not isinstance(cause, dict) or cause.get("id") != event.cause:
                self._findings.broken(
                    "derived", self._order_id, where, f"cause.id {event.cause}, as its causeid", cause
                )
        self._last[event.type, seller] = event

    def _look_at_version(self, event: Event, where: str, most: int) -> None:
        version = event.data.get("version")
        if type(version) is not int or version < 1:
            self._findings.broken("derived", self._order_id, where, "a version", version)
        elif version > most:
            self._findings.at_rest("derived", self._order_id, where, f"at most version {most}", version)

    def _take_late(self, event: Event, where: str) -> None:
        """That a seller is late follows of a deadline: it tells which, and of how many units at that time."""
        data = event.data
        what, seller, text = (str(data.get(name)) for name in ("what", "seller_id", "due"))
        try:
            due = time_of(text)
        except Refused:
            self._findings.broken("derived", self._order_id, where, "due, a time", data.get("due"))
            return
        known = [each for each in self._readings if each.created is not None and what in (SHIP, DELIVER)]
        readings = [each for each in known if due in each.promises.passed(what, seller)]
        if not readings:
            actual = f"what {what}, seller_id {seller}, due {text}"
            self._findings.at_rest("derived", self._order_id, where, "no such event", actual)
            return
        key = (LATE, late_id(what, seller, due))
        self.repetitions += key in self._seen
        self._seen.add(key)
        apart = difference({"suborder_id": self._first.made_id(f"suborder:{seller}")}, data)
        if apart:
            self._findings.broken("derived", self._order_id, where, *apart)
        most, units = max(each.most_late(what, seller, due) for each in readings), data.get("units")
        if type(units) is not int or not 0 < units <= most:
            expected = f"units of the seller that may be late, at most {most}"
            self._findings.at_rest("derived", self._order_id, where, expected, units)
        self._look_at_version(event, where, self._first.version)
        self._look_at_id(event, where, f"{what}:{seller}:{text}")

    def _take_attention(self, event: Event, where: str) -> None:
        """Which kinds once held depends on the order of arrival, so of all but the last of a kind it is only
        looked at what each says by itself.
        """
        if self._first.created is None:
            self._findings.at_rest("derived", self._order_id, where, "no such event", event_name(event.data))
            return
        wrong = malformed(event.data, self._readings)
        if wrong is not None:
            self._findings.broken("derived", self._order_id, where, *wrong)
            return
        self._look_at_version(event, where, attention_version(self._first))
        self._look_at_id(event, where, event_name(event.data))
        self._last[ATTENTION, event.data["kind"]] = event

    # -- all of them -----------------------------------------------------------------------------------------

    def finish(self, complete: set[str]) -> None:
        """Whether all that had to come has come, and what the last notices say.
        `complete`: topics of which nothing was deleted.
        """
        if any(reading.created is None for reading in self._readings):
            return
        both = zip(self._readings, self._expected, strict=True)
        certain = set.intersection(*(self._certain(reading, expected) for reading, expected in both))
        for type_, made_id in sorted(certain - self._seen):
            if type_ in complete:
                field = SAME.get(type_) or VARYING.get(type_, "deadline")
                self._findings.broken(
                    "derived", self._order_id, type_, f"{field} {made_id}", "none", self._fact_of(type_)
                )
        self._judge_status(complete)
        for seller in self._first.sellers:
            self._judge_suborder(seller, complete)
        self._judge_attention(complete)

    def _certain(self, reading: Reading, expected: Mapping[tuple[str, str], Any]) -> set[tuple[str, str]]:
        again = {f"{refund}:{attempt}" for refund, each in reading.retries.items() for attempt in each}
        certain = {key for key in expected if key[1] not in again}
        certain |= surely_followed(reading, self._appended)
        certain |= {
            ("shipping.label.create", reading.made_id(f"label:{seller}"))
            for seller in reading.surely_labelled()
        }
        certain |= {
            ("stock.release", reading.made_id(f"reservation:{seller}"))
            for seller in reading.surely_released()
        }
        certain |= {
            ("stock.commit", reading.made_id(f"commit:{shipment_id}"))
            for shipment_id in reading.surely_committed()
        }
        return certain

    def _judge_status(self, complete: set[str]) -> None:
        allowed = {reading.status() for reading in self._readings}
        last = self._last.get(("order.status_changed", ""))
        if last is None:
            if "pending" not in allowed and "order.status_changed" in complete:
                self._findings.broken(
                    "notices",
                    self._order_id,
                    "order.status_changed",
                    f"to {' or '.join(sorted(allowed))}",
                    "none",
                )
            return
        to = last.data.get("to")
        if to not in allowed:
            self._findings.at_rest(
                "notices", self._order_id, self._where(last), f"to {' or '.join(sorted(allowed))}", f"to {to}"
            )
            return
        users = {str(reading.known["user_id"]) for reading in self._readings}
        if last.data.get("user_id") not in users:
            expected = f"user_id {' or '.join(sorted(users))}"
            self._findings.broken(
                "notices", self._order_id, self._where(last), expected, last.data.get("user_id")
            )

    def _judge_suborder(self, seller: str, complete: set[str]) -> None:
        last = self._last.get(("suborder.updated", seller))
        apart = []
        for reading in self._readings:
            for suborder in reading.suborders:
                if suborder.seller_id == seller:
                    expected = reading.last_suborder(suborder)
                    if last is not None:
                        apart.append(difference(expected, last.data))
                    elif suborder.status == "pending" and suborder.live == suborder.ordered:
                        apart.append(())
                    else:
                        apart.append(
                            (f"status {suborder.status}, total_amount {expected['total_amount']}", "none")
                        )
        if apart and all(apart):
            if last is None:
                if "suborder.updated" in complete:
                    self._findings.broken(
                        "notices", self._order_id, f"suborder.updated of seller {seller}", *first_pair(apart)
                    )
            else:
                self._findings.at_rest("notices", self._order_id, self._where(last), *first_pair(apart))

    def _judge_attention(self, complete: set[str]) -> None:
        """What holds was raised, with what holds now; what doesn't was cleared, or never raised."""
        kinds = {kind for type_, kind in self._last if type_ == ATTENTION}
        for kind in sorted(kinds.union(*(reading.attention for reading in self._readings))):
            last = self._last.get((ATTENTION, kind))
            wrong = misled(kind, None if last is None else last.data, self._readings)
            if wrong is None:
                continue
            if last is not None:
                self._findings.at_rest("notices", self._order_id, self._where(last), *wrong)
            elif ATTENTION in complete:
                add = self._findings.broken if self._surely_told() else self._findings.note
                add("notices", self._order_id, f"{ATTENTION} {kind}", *wrong)

    def _surely_told(self) -> bool:
        """Whether something came about the order since order.attention is written: workers of before told
        none.
        """
        times = [time for fact in self._first.facts if (time := self._appended(fact)) is not None]
        return self._told_from is not None and max(times, default=-1) >= self._told_from

    # -- words -----------------------------------------------------------------------------------------------

    def _where(self, event: Event) -> str:
        return f"{event.type}/{event.partition}@{event.offset}"

    def _fact_of(self, type_: str) -> RecordId | None:
        fact_type = {"stock.restock": "order.returned", LATE: "deadline.passed"}.get(type_, "order.created")
        return next((self._record_of(fact) for fact in self._first.facts if fact.type == fact_type), None)


def _same_attempt(expected: int, actual: Any) -> bool:
    return type(actual) is int and actual == expected


def _lines_of(reading: Reading, seller: Any) -> dict[str, int]:
    return {line.item_id: line.quantity for line in reading.lines if line.seller_id == seller}


def _beyond(content: Mapping[str, Any], actual: Mapping[str, Any]) -> tuple[str, str] | tuple[()]:
    """An item that isn't the seller's, or more of it than there is."""
    if "at_most" not in content:
        return ()
    items = actual.get("items")
    if not isinstance(items, list) or not items:
        return "items", str(items)
    for item in items:
        most = content["at_most"].get(item.get("item_id")) if isinstance(item, dict) else None
        if most is None or type(item.get("quantity")) is not int or not 0 < item["quantity"] <= most:
            return (
                (
                    f"items of the seller, of {item.get('item_id') if isinstance(item, dict) else item} at"
                    f" most {most or 0}"
                ),
                str(item),
            )
    return ()


def difference(expected: Mapping[str, Any], actual: Mapping[str, Any]) -> tuple[str, str] | tuple[()]:
    """The first field that differs, as (expected, found); nothing if all expected fields are
    there. More fields may be.
    """
    for name, value in expected.items():
        is_there = actual.get(name)
        if (type(is_there) is type(value) and is_there == value) or name == "at_most":
            continue
        if name not in actual:
            return f"{name} {plain(value)}", f"no {name}"
        if not _same(name, value, is_there):
            return f"{name} {plain(value)}", f"{name} {plain(is_there)}"
    return ()


def first_pair(differences: Sequence[tuple[str, str] | tuple[()]]) -> tuple[str, str]:
    """The first of several differences, none of them empty."""
    expected, actual = next(each for each in differences if each)
    return expected, actual


def _same(name: str, expected: Any, actual: Any) -> bool:
    if name in ("lines", "allocations"):
        return (
            isinstance(actual, list)
            and len(actual) == len(expected)
            and all(isinstance(each, dict) for each in actual)
            and not any(map(difference, expected, actual))
        )
    if name in ("items", "suborders", "shipments"):
        id_ = {"items": "item_id", "suborders": "suborder_id", "shipments": "shipment_id"}[name]
        if not isinstance(actual, list) or len(actual) != len(expected):
            return False
        by_id = {item.get(id_): item for item in actual if isinstance(item, dict)}
        return all(item[id_] in by_id and not difference(item, by_id[item[id_]]) for item in expected)
    if not isinstance(actual, str):
        return False
    try:
        if name == "amount" or name.endswith("_amount"):
            return Decimal(expected) == Decimal(actual)
        return (name.endswith("_at") or name == "estimated_delivery") and datetime.fromisoformat(
            expected
        ) == datetime.fromisoformat(actual)
    except (InvalidOperation, ValueError, TypeError):
        return False
