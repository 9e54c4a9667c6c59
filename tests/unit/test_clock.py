"""When a lane looks for what is due, and when it may fire: decided from times that it is told."""

from __future__ import annotations

from faust.types import TP

from streams.transport.clock import LOOK_AGAIN, Clock, Now

LOG, OTHER = TP("order.paid", 3), TP("orders.decisions", 3)


def at(now: int) -> Now:
    """Both own clocks as they are when nobody sets them."""
    return Now(now, now)


def test_nothing_due_is_nothing_to_wait_for() -> None:
    assert Clock().pause(at(1_000)) is None


def test_it_looks_when_something_may_be_due() -> None:
    clock = Clock()
    clock.see(10_000, fired=False)
    clock.looked(at(5_000), 5_000, {})
    assert clock.pause(at(7_500)) == 2.5
    assert clock.pause(at(10_000)) == 0
    assert clock.pause(at(12_000)) == 0


def test_it_looks_at_once_while_it_does_not_know_how_far_off_its_own_clock_is() -> None:
    clock = Clock()
    clock.see(86_410_000, fired=False)
    assert clock.pause(at(10_000)) == 0
    clock.looked(at(10_000), 86_400_000, {})
    assert clock.pause(at(12_000)) == 8.0


def test_it_looks_again_before_long_whatever_the_clocks_say() -> None:
    clock = Clock()
    clock.see(86_410_000, fired=False)
    clock.looked(Now(86_410_000, 10_000), 10_000, {})  # its own clock was set while the answer was under way
    assert clock.pause(Now(86_412_000, 12_000)) == LOOK_AGAIN - 2
    assert clock.pause(Now(86_800_000, 400_000)) == 0


def test_it_fires_only_when_everything_before_is_taken_in() -> None:
    clock = Clock()
    clock.see(10_000, fired=False)
    clock.looked(at(10_000), 10_050, {LOG: 5, OTHER: 2})
    done = {LOG: 4, OTHER: 2}
    assert not clock.ripe(done.__getitem__)
    assert clock.pause(at(11_000)) is None
    done[LOG] = 5
    assert clock.ripe(done.__getitem__)
    assert clock.moment == 10_050


def test_a_clock_that_is_ahead_of_the_brokers_fires_nothing_and_learns() -> None:
    clock = Clock()
    clock.see(10_000, fired=False)
    clock.looked(at(10_000), 4_000, {LOG: 0})
    assert not clock.ripe(lambda _: 0)
    assert clock.pause(at(10_000)) == 6.0


def test_a_clock_that_is_behind_looks_at_the_right_time_from_then_on() -> None:
    clock = Clock()
    clock.see(10_000, fired=False)
    clock.looked(at(10_000), 15_000, {})
    clock.see(40_000, fired=True)
    assert clock.pause(at(12_000)) == 23.0


def test_two_looks_are_a_second_apart() -> None:
    clock = Clock()
    clock.see(10_000, fired=False)
    clock.looked(at(10_000), 10_000, {})
    clock.see(10_100, fired=True)
    assert clock.pause(at(10_100)) == 0.9


def test_what_did_not_fit_into_a_batch_fires_at_the_same_moment() -> None:
    clock = Clock()
    clock.see(10_000, fired=False)
    clock.looked(at(10_000), 10_050, {})
    clock.see(10_020, fired=True)
    assert clock.ripe(lambda _: 0)
    clock.see(10_051, fired=True)
    assert not clock.ripe(lambda _: 0)


def test_what_becomes_due_meanwhile_waits_for_its_own_look() -> None:
    clock = Clock()
    clock.see(10_000, fired=False)
    clock.looked(at(10_000), 10_050, {LOG: 9})
    clock.see(0, fired=False)  # the answer came
    assert clock.ripe(lambda _: 9)  # fires nothing, and ends the look
    clock.see(0, fired=True)
    assert clock.pause(at(20_000)) is None


def test_it_looks_in_time_though_the_own_clock_is_set_back() -> None:
    clock = Clock()
    clock.see(10_000, fired=False)
    clock.looked(Now(10_000, 500), 10_000, {})
    clock.see(13_000, fired=True)
    assert clock.pause(Now(10_000 - 86_400_000, 1_600)) == 1.9


def test_it_looks_in_time_when_all_clocks_are_set_ahead() -> None:
    clock = Clock()
    clock.see(10_000, fired=False)
    clock.looked(Now(10_000, 500), 10_000, {})
    clock.see(86_413_000, fired=True)
    assert clock.pause(Now(86_411_500, 2_000)) == 1.5
