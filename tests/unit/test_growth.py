"""Which numbers of partitions may follow each other, and where the history of a lane's orders lies then."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settings import Settings
from streams.growth import CannotGrow, check, sources
from streams.partitioner import partition_of

SETTINGS = Settings()


@given(st.uuids(), st.integers(1, 6), st.lists(st.integers(2, 4), max_size=4))
def test_a_lane_knows_every_partition_that_its_orders_were_in(order_id: UUID, first: int, factors: list[int]) -> None:
    counts = [first]
    for factor in factors:
        counts.append(counts[-1] * factor)
    key = str(order_id).encode()
    *before, now = (partition_of(key, count) for count in counts)
    found = sources(partition_of(key, counts[-1]), counts[:-1])
    assert found == list(dict.fromkeys([*before, now]))


@pytest.mark.parametrize(
    ("counts", "known", "to", "old"),
    [
        ({"a": 12, "b": 12}, [], 24, 12),
        ({"a": 12, "b": 12}, [], 36, 12),
        ({"a": 24, "b": 12}, [12], 24, 12),  # cut short
        ({"a": 24, "b": 24}, [12], 24, 12),  # done, or all but
        ({"a": 48, "b": 48}, [12, 24], 48, 24),
        ({"a": 24, "b": 24}, [12], 48, 24),
        ({"a": 12, "b": 12}, [], 12, 12),
    ],
)
def test_more_partitions(counts: dict[str, int], known: list[int], to: int, old: int) -> None:
    assert check(SETTINGS, list(counts), counts, known, to) == old


@pytest.mark.parametrize(
    ("counts", "to", "says"),
    [
        ({"a": 12}, 24, "topic b doesn't exist; run orders init first"),
        ({"a": 12, "b": 12}, 6, "the topics have 12 partitions, and Kafka takes none away"),
        ({"a": 12, "b": 12}, 18, "18 is no multiple of 12: one lane's orders would come out of several; take 24 or 36"),
        ({"a": 24, "b": 12}, 36, "the topics have 12, 24 partitions; finish that change first"),
    ],
)
def test_not_these(counts: dict[str, int], to: int, says: str) -> None:
    with pytest.raises(CannotGrow) as refusal:
        check(SETTINGS, ["a", "b"], counts, [], to)
    assert str(refusal.value) == says
