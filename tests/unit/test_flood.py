"""When a flood of refused records is noticed."""

from __future__ import annotations

from operations.grants import acls
from settings import Settings
from streams.flood import Flood


def test_more_than_so_many_within_a_minute() -> None:
    noticed: list[tuple[str, int]] = []
    flood = Flood(10, lambda topic, count: noticed.append((topic, count)))
    flood.add("order.paid", 10, 0.0)
    flood.add("order.created", 10, 1.0)
    flood.add("order.paid", 10, 60.0)  # the first ones are a minute old
    assert noticed == []
    flood.add("order.paid", 1, 61.0)
    assert noticed == [("order.paid", 11)]
    flood.add("order.paid", 10, 62.0)
    assert len(noticed) == 1, "the count begins anew"
    flood.add("order.paid", 1, 63.0)
    assert noticed[1:] == [("order.paid", 11)]


def test_off_by_default() -> None:
    assert Settings().dead_letter_hold == 0
    noticed: list[str] = []
    Flood(0, lambda topic, count: noticed.append(topic)).add("order.paid", 1_000_000, 0.0)
    assert noticed == []


def test_a_worker_may_write_a_pause_only_where_it_holds() -> None:
    def written(settings: Settings) -> set[str]:
        return {acl.name for acl in acls(settings, "worker") if acl.operation == "Write"}

    both = {"orders.control", "orders.operations"}
    assert not written(Settings()) & both
    assert written(Settings(dead_letter_hold=5)) >= both
