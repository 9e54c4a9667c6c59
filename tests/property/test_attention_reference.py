"""What holds of an order, and since when, by the pipeline's rules and by the auditor's reading of them."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from random import Random

import pytest

from audit.attention import KINDS, moments_of, named_in, what_holds
from contracts import ids
from domain.anomalies import anomalies
from domain.asof import as_of
from domain.order import Order
from tables import codec
from tests.property.examples import part
from tests.property.records import dense
from tests.property.test_against_reference import Ours, Theirs

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def by_the_rules(order: Order, order_id: bytes) -> dict[str, str]:
    """Kind -> what its anomalies name."""
    details: dict[str, list[str]] = defaultdict(list)
    for text in anomalies(order, order_id):
        kind, _, detail = text.partition(": ")
        details[kind].append(detail)
    return {kind: named_in("; ".join(each)) for kind, each in details.items()}


@pytest.mark.parametrize("seed", range(part(3)))
def test_the_same_holds_since_the_same_moment(seed: int) -> None:
    rng = Random(seed)
    records = [each for n in range(60) for each in dense(n, rng, lapses=True)]
    rng.shuffle(records)
    ours = Ours(rng.randint(1, 4)).take_all(records)
    theirs = Theirs().take_all(records, ours.decided)
    seen: set[str] = set()
    for order_id, raw in ours.states.items():
        order, reading = codec.decode(raw), theirs.orders[ids.text(order_id)].reading()
        held = {kind: named_in(detail) for kind, detail in what_holds(reading).items()}
        assert held == by_the_rules(order, order_id)
        since: dict[str, datetime] = {}
        for moment in moments_of(reading) if held else ():
            then = as_of(order, order_id, (moment - EPOCH) // timedelta(microseconds=1))
            holds = by_the_rules(then, order_id)
            since = {kind: since.get(kind, moment) for kind in holds}
        assert {kind: each.since for kind, each in reading.attention.items()} == since
        seen |= held.keys()
    assert seen < set(KINDS)
    assert len(seen) > 8
