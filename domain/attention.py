"""What a person should look at: every kind of anomaly and lateness that holds of an order, with all that hold
of it in one text, and since when (docs/rules.md, Attention; docs/decisions/0064). Pure.

What holds follows from the facts, deadlines and decisions alone. `since` does too: the earliest time T among
theirs such that the kind holds of the order as of T (domain.asof) and of every later time. It is looked for
from the latest time backwards, so a kind that has just begun to hold costs one look at the order as it was
before. Where the last look is still good for all earlier times, nothing earlier is looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from operator import itemgetter
from typing import Final

from contracts import ids, times
from contracts.incoming import FACT_FIELDS
from domain.anomalies import found
from domain.effects import Writer
from domain.order import Attention, Created, Order, RefundDecision, SimpleFact
from domain.shapes import AttentionRow
from domain.status import OrderView
from domain.totals import RunningTotals

BETWEEN: Final = "; "
"""Between two that hold of one kind."""
MOST_TOLD: Final = 1_000
"""So many of one kind are told; of more, how many more there are. An order of a sound sender has no more."""
_KEPT: Final = 200
"""Characters of a detail that a state keeps whole."""
_SUM: Final = (1 << 62) - 1

Moment = tuple[int, str, SimpleFact | RefundDecision]
"""When a fact counts from, its field of the order, it."""


def attend(
    order: Order, created: Created, now: OrderView, writer: Writer, changed: int, totals: RunningTotals
) -> None:
    """Note what holds after an event, and tell what began to hold, holds in other words, or no longer does.

    `changed`: the event's time: as of earlier times the order is what it was.
    """
    details = holding(order, writer.order_id, now, totals)
    if not details and not order.attention:
        return
    began = _since(order, writer.order_id, details, changed, totals) if details else {}
    version = version_of(order)
    known = {each.kind: each for each in order.attention}
    for each in order.attention:
        if each.cleared_at is None and each.kind not in details:
            each.cleared_at = max(each.since, changed)
            writer.attention(created, each, each.detail, version)
    for kind, detail in details.items():
        noted, kept_ = known.get(kind), kept(detail)
        if noted is None:
            noted = Attention(kind, "", 0)
            order.attention.append(noted)
        is_new = noted.cleared_at is not None or noted.detail != kept_
        noted.detail, noted.since, noted.cleared_at = kept_, began[kind], None
        if is_new:
            writer.attention(created, noted, detail, version)
    order.attended = _sum_of_times(order, totals) if details else 0


def renew(order: Order, order_id: bytes) -> None:
    """Note what holds of an order, telling nobody. What was cleared stays: it is what was seen.

    For a state that an earlier version wrote, or that anybody may have: as attend() leaves it.
    """
    if order.created is None:
        return
    totals = RunningTotals(order)
    details = holding(order, order_id, None, totals)
    order.attended = 0
    began = _since(order, order_id, details, 0, totals) if details else {}
    cleared = [each for each in order.attention if each.cleared_at is not None and each.kind not in details]
    order.attention = cleared + [
        Attention(kind, kept(detail), began[kind]) for kind, detail in details.items()
    ]
    order.attended = _sum_of_times(order, totals) if details else 0


def holding(
    order: Order, order_id: bytes, now: OrderView | None, totals: RunningTotals | None
) -> dict[str, str]:
    """Kind -> detail, of what holds; kinds and what is said of each in alphabetical order. `now` and
    `totals`: as domain.anomalies.found() takes them.
    """
    some = found(order, order_id, now, totals)
    if not some:
        return {}
    by_kind: dict[str, set[str]] = {}
    for each in some:
        by_kind.setdefault(each.kind, set()).add(each.detail)
    return {kind: _told(by_kind[kind]) for kind in sorted(by_kind)}


def _told(details: set[str]) -> str:
    shown = sorted(details)
    if len(shown) > MOST_TOLD:
        shown = [*shown[:MOST_TOLD], f"and {len(shown) - MOST_TOLD} more"]
    return BETWEEN.join(shown)


def kept(detail: str) -> str:
    """A detail as a state keeps it, so that a state stays small: one that is too long cut, with a digest of
    the whole, by which it differs from others.
    """
    if len(detail) <= _KEPT:
        return detail
    digest = blake2b(detail.encode(), digest_size=8).hexdigest()
    return f"{detail[: _KEPT - 20]}... {digest}"


def version_of(order: Order) -> int:
    """The version of what is said of its attention: the order's, and its decisions."""
    return order.version + len(order.decisions)


def since_of(order: Order, order_id: bytes) -> dict[str, int]:
    """Kind -> since when, microseconds since 1970, of what holds. Looks at every time; never at what was
    noted.
    """
    details = holding(order, order_id, None, None)
    return _look_back(order, order_id, dict.fromkeys(details), 0) if details else {}


# -- since ---------------------------------------------------------------------------------------------------


def _sum_of_times(order: Order, totals: RunningTotals) -> int:
    """What tells the facts and decisions of an order from others of the same number, nearly always."""
    created = 1 if order.created is None else order.created.time
    return (created + totals.moments()[0]) & _SUM or 1


def _since(
    order: Order, order_id: bytes, kinds: Mapping[str, str], changed: int, totals: RunningTotals
) -> dict[str, int]:
    known: dict[str, int | None] = dict.fromkeys(kinds)
    # A version that doesn't know of attention may have taken in facts meanwhile: then what was noted isn't
    # good.
    if order.attended and (order.attended + changed) & _SUM == _sum_of_times(order, totals):
        for each in order.attention:
            if each.cleared_at is None and each.kind in known:
                known[each.kind] = each.since
        stay = {kind: since for kind, since in known.items() if since is not None and since <= changed}
        latest = max(order.created.time, totals.moments()[1]) if order.created is not None else changed
        if len(stay) == len(known) and latest <= changed:
            return stay  # as nearly always: as of all times before this event nothing is otherwise
    return _look_back(order, order_id, known, changed)


def _look_back(
    order: Order, order_id: bytes, kinds: Mapping[str, int | None], changed: int
) -> dict[str, int]:
    """Kind -> since when, of kinds that hold now. `kinds`: since when each held before the last event, as far
    as that is known; `changed`: as of times before it the order is what it was.
    """
    created = order.created
    assert created is not None
    moments = sorted({time for time, _, _ in _moments(order) if time > created.time})
    moments.insert(0, created.time)
    began = dict.fromkeys(kinds, moments[-1])
    left = dict(kinds)
    end, size = len(moments) - 1, 1
    while left and end > 0:
        before = moments[end - 1]
        for kind, since in list(left.items()):
            if since is not None and since <= before < changed:
                began[kind] = since
                del left[kind]
        if not left:
            break
        start = max(0, end - size)
        held = _as_of_each(order, order_id, moments[start:end])
        for at in range(end - 1, start - 1, -1):
            for kind in list(left):
                if kind in held[at - start]:
                    began[kind] = moments[at]
                else:
                    del left[kind]
        # Further and further back at once: a long history is then looked through a few times, not once for
        # each of its times.
        end, size = start, 2 * size
    return began


def _moments(order: Order) -> list[Moment]:
    """Everything that counts from some time on: facts, and decisions once those before them do."""
    every: list[Moment] = []
    for field in FACT_FIELDS:
        for fact in getattr(order, field):
            every.append((fact.time, field, fact))
    counts = -(1 << 63)
    for decision in order.decisions:
        counts = max(counts, decision.time)
        every.append((counts, "", decision))
    return every


_time: Final = itemgetter(0)


def _as_of_each(order: Order, order_id: bytes, moments: Sequence[int]) -> list[set[str]]:
    """The kinds that hold as of each of these times, in ascending order, none before order.created's."""
    then = Order(created=order.created)
    later: list[Moment] = []
    for moment in _moments(order):
        if moment[0] > moments[0]:
            later.append(moment)
        elif isinstance(fact := moment[2], RefundDecision):
            then.decisions.append(fact)
        else:
            getattr(then, moment[1]).append(fact)
    later.sort(key=_time)
    totals = RunningTotals(then)
    held: list[set[str]] = []
    at = 0
    for time in moments:
        while at < len(later) and later[at][0] <= time:
            _, field, fact = later[at]
            if isinstance(fact, RefundDecision):
                totals.decide(fact)
            else:
                totals.add(field, getattr(then, field), fact)
            at += 1
        held.append({each.kind for each in found(then, order_id, None, totals)})
    return held


# -- rows ----------------------------------------------------------------------------------------------------


def attention_rows(order_id: str, raw_id: bytes, order: Order, first: int, last: int) -> list[AttentionRow]:
    """Rows of orders_attention, of what holds and of what did. `first` and `last`: the times of the order's
    facts.
    """
    created = order.created
    assert created is not None
    for decision in order.decisions:
        first, last = min(first, decision.time), max(last, decision.time)
    # What a state keeps is cut where it is long.
    cut = any(each.cleared_at is None and len(each.detail) >= _KEPT for each in order.attention)
    whole = holding(order, raw_id, None, None) if cut else {}
    user_id, region = ids.text(created.user_id), created.region or ""
    first_text, last_text, version = times.text(first), times.text(last), version_of(order)
    return [
        AttentionRow(
            order_id=order_id,
            user_id=user_id,
            region=region,
            kind=each.kind,
            detail=each.detail if each.cleared_at is not None else whole.get(each.kind, each.detail),
            since=times.text(each.since),
            cleared_at=None if each.cleared_at is None else times.text(each.cleared_at),
            created_at=first_text,
            updated_at=last_text,
            version=version,
        )
        for each in order.attention
    ]
