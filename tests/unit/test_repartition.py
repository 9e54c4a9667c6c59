"""Which numbers of partitions may follow each other, and where the history of a lane's orders lies then."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from operations.repartition import CannotGrow, check
from streams.lanes import Lanes, sources
from streams.partitioner import partition_of


@given(st.uuids(), st.integers(1, 6), st.lists(st.integers(2, 4), max_size=4))
def test_a_lane_knows_every_partition_that_its_orders_were_in(
    order_id: UUID, first: int, factors: list[int]
) -> None:
    counts = [first]
    for factor in factors:
        counts.append(counts[-1] * factor)
    key = str(order_id).encode()
    *before, now = (partition_of(key, count) for count in counts)
    partitions = sources(partition_of(key, counts[-1]), counts[:-1])
    assert partitions == list(dict.fromkeys([*before, now]))


@pytest.mark.parametrize(
    ("counts", "known", "to", "old"),
    [
        ({"a": 12, "b": 12}, Lanes(12), 24, 12),
        ({"a": 12, "b": 12}, Lanes(12), 36, 12),
        ({"a": 13, "b": 13}, Lanes(12), 24, 12),  # partitions that no order's lane is
        ({"a": 24, "b": 24}, Lanes(12), 24, 12),
        ({"a": 12, "b": 12}, Lanes(24, [12]), 24, 12),  # cut short
        ({"a": 24, "b": 12}, Lanes(24, [12]), 24, 12),
        ({"a": 24, "b": 24}, Lanes(24, [12]), 24, 24),  # done
        ({"a": 24, "b": 24}, Lanes(24, [12]), 48, 24),
        ({"a": 48, "b": 24}, Lanes(48, [12, 24]), 48, 24),
        ({"a": 12, "b": 12}, Lanes(12), 12, 12),
    ],
)
def test_more_partitions(counts: dict[str, int], known: Lanes, to: int, old: int) -> None:
    assert check(list(counts), counts, known, to) == old


@pytest.mark.parametrize(
    ("counts", "known", "to", "says"),
    [
        ({"a": 12}, Lanes(12), 24, "topic b doesn't exist; run orders init first"),
        (
            {"a": 12, "b": 12},
            Lanes(12),
            6,
            "a topic has 12 partitions, and Kafka takes none away; take 12 or more",
        ),
        (
            {"a": 13, "b": 12},
            Lanes(12),
            12,
            "a topic has 13 partitions, and Kafka takes none away; take 13 or more",
        ),
        (
            {"a": 12, "b": 12},
            Lanes(12),
            18,
            "18 is no multiple of 12: one lane's orders would come out of several; take 24 or 36",
        ),
        (
            {"a": 24, "b": 12},
            Lanes(24, [12]),
            48,
            "a change to 24 was begun and not finished; run orders partitions --to 24 first",
        ),
        (
            {"a": 12, "b": 12},
            Lanes(24),
            24,
            "ORDERS_PARTITIONS is 24, but a topic has 12; leave it as it was until this is done",
        ),
    ],
)
def test_not_these(counts: dict[str, int], known: Lanes, to: int, says: str) -> None:
    with pytest.raises(CannotGrow) as refusal:
        check(["a", "b"], counts, known, to)
    assert str(refusal.value) == says
