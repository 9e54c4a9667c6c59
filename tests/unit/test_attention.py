"""What a person should look at: since when, what is told, what a state keeps (docs/rules.md, Attention).

tests/property/test_attention.py compares all of it with the order as of every time.
"""

from __future__ import annotations

from domain.attention import MOST_TOLD, _told, attention_rows, holding, kept, renew
from domain.rows import fact_times
from operations.changelog import same
from operations.history import project
from settings import Settings
from sinks.rows import RowBatch
from streams.folder import BatchFolder
from tables import codec
from tests.unit.builders import ANNA, ORDER, OrderBuilder, item_id, line, moment, quantities, raw


def events(builder: OrderBuilder) -> list[tuple[str, str, str, int]]:
    told = builder.published("order.attention")
    return [(each["kind"], each["state"], each["since"], each["version"]) for each in told]


def overpaid() -> OrderBuilder:
    """An order of 30.00, paid at 10:00, and once more, 5.00, at 12:00."""
    builder = OrderBuilder()
    builder.create(line(1, quantity=3), hour=9)
    builder.pay("30.00", 1, hour=10)
    builder.pay("5.00", 2, hour=12)
    return builder


def test_since_is_the_time_from_which_on_it_holds() -> None:
    builder = overpaid()
    assert events(builder) == [("overpaid", "raised", moment(12), 3)]
    builder.pay("5.00", 3, hour=11)  # comes late
    (row,) = attention_rows(ORDER, raw(ORDER), builder.order, *fact_times(builder.order))
    assert (row.since, row.created_at, row.updated_at, row.version) == (moment(11), moment(9), moment(12), 4)
    assert len(events(builder)) == 1, "the detail is the same"


def test_what_was_cleared_stays_as_what_was_seen() -> None:
    builder = OrderBuilder()
    builder.create(line(1, quantity=2), hour=1)
    builder.pay("5.00", 1, hour=2)
    builder.stock("rejected", hour=3, items={1: 1})
    assert events(builder)[-1] == ("refund_uncovered", "raised", moment(3), 3)
    builder.pay("10.00", 2, hour=4)
    builder.settle()
    kinds = [(kind, state) for kind, state, _, _ in events(builder)]
    assert kinds == [("refund_uncovered", "raised"), ("refund_uncovered", "cleared")]
    (seen,) = builder.order.attention
    assert seen.cleared_at is not None
    assert seen.cleared_at > seen.since
    (row,) = attention_rows(ORDER, raw(ORDER), builder.order, *fact_times(builder.order))
    assert row.cleared_at == moment(4)


def test_a_decision_counts_in_the_version() -> None:
    builder = overpaid()
    builder.cancel(hour=13)
    builder.stock("released", hour=14)
    builder.settle()
    (row,) = attention_rows(ORDER, raw(ORDER), builder.order, *fact_times(builder.order))
    assert len(builder.order.decisions) == 1
    assert row.version == builder.order.version + 1


def test_a_long_detail_is_kept_cut_and_told_whole() -> None:
    builder = OrderBuilder()
    many = dict.fromkeys(range(1, 9), 2)
    builder.create(*(line(n) for n in many))
    builder.send("shipment.updated", 3, **scan_of(many))
    details = holding(builder.order, raw(ORDER), None, None)
    (noted,) = [each for each in builder.order.attention if each.kind == "moved_though_gone"]
    whole = details["moved_though_gone"]
    assert all(item_id(n) in whole for n in many)
    assert len(noted.detail) < len(whole)
    assert noted.detail == kept(whole) != kept(whole + "!")
    (row,) = attention_rows(ORDER, raw(ORDER), builder.order, *fact_times(builder.order))
    assert row.detail == whole == builder.published("order.attention")[0]["detail"]


def scan_of(items: dict[int, int]) -> dict[str, object]:
    return {
        "shipment_id": "20000000-0000-4000-8000-000000000001",
        "status": "in_transit",
        "seller_id": ANNA,
        **quantities(items),
    }


def test_of_more_than_anybody_reads_only_how_many_more() -> None:
    details = {f"item {n:05d}" for n in range(MOST_TOLD + 2)}
    assert _told(details).endswith("item 00999; and 2 more")


def test_a_state_of_an_earlier_version_is_looked_at_when_rows_are_made_of_it() -> None:
    builder = overpaid()
    raw_state = codec.encode(builder.order)
    older = codec.decode(raw_state)
    older.attention, older.attended = [], 0
    rows = project(BatchFolder(Settings()), {raw(ORDER): codec.encode(older)}).rows
    assert [(row.kind, row.since) for row in rows.attention] == [("overpaid", moment(12))]
    assert same(older, builder.order), "what was noted is no part of what repair asks for"


def test_what_was_cleared_stays_when_it_is_looked_at_again() -> None:
    builder = OrderBuilder()
    builder.create(line(1, quantity=2), hour=1)
    builder.pay("5.00", 1, hour=2)
    builder.stock("rejected", hour=3, items={1: 1})
    builder.pay("10.00", 2, hour=4)
    builder.settle()
    before = codec.encode(builder.order)
    renew(builder.order, raw(ORDER))
    assert codec.encode(builder.order) == before
    batch = RowBatch(attention=attention_rows(ORDER, raw(ORDER), builder.order, *fact_times(builder.order)))
    assert len(batch.of({ORDER}).attention) == len(batch.last_of_each().attention) == 1
