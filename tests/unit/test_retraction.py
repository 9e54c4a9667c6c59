"""What a killed run has told is compared with what is so, and told anew where it isn't."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Sequence
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from aiokafka.errors import KafkaTimeoutError, TopicAuthorizationFailedError

from contracts import ids
from domain import effects
from streams.folder import BatchOutput
from streams.retraction import ATTEMPTS, ATTENTION, NOTICE_TOPICS, STATUS, SUBORDER, Retractions
from tables import codec
from tests.unit.builders import ORDER, OrderBuilder, created, event, raw

KEY = ORDER.encode()


def notices(built: OrderBuilder) -> dict[str, list[Any]]:
    """Topic -> the notices of an order, as records."""
    records: dict[str, list[Any]] = {topic: [] for topic in NOTICE_TOPICS}
    shared = effects.headers_of(event("order.created", created(), 1, id="cause"))
    for each in built.derived:
        if each.topic in records:
            value, headers = effects.encode(each, raw(ORDER), shared)
            records[each.topic].append(SimpleNamespace(key=KEY, value=value, headers=tuple(headers)))
    return records


class Lane:
    """An OpenLane, as far as it is asked; `state` of every order."""

    partition = 3
    generation = 1

    def __init__(
        self, wrote: dict[str, list[Any]], tracked_ends: tuple[int, ...], state: bytes | None
    ) -> None:
        self.wrote = wrote
        self.tracked_ends = tracked_ends
        self.state = state
        self.forgot: Sequence[int] | None = None
        self.cut = 0
        """Records of each topic that can't be read yet."""
        self.refuses = False

    async def ends(self, topics: Sequence[str]) -> tuple[int, ...]:
        return tuple(len(self.wrote[topic]) for topic in topics)

    async def records(self, topic: str, since: int, end: int) -> AsyncGenerator[Any, None]:
        if self.refuses:
            raise TopicAuthorizationFailedError(topic)
        if since < end - self.cut:
            yield self.wrote[topic][since : end - self.cut], end - self.cut

    def get_states(self, table: object, keys: Sequence[bytes]) -> list[bytes | None]:
        return [self.state] * len(keys)

    def track_from(self, ends: Sequence[int]) -> None:
        self.forgot = ends


async def taken_back(lane: Lane, state: bytes) -> dict[str, list[Any]]:
    """What is published with a batch after which the order has this state, by topic: (data, headers)."""
    retractions, batch, work = Retractions(None), cast(Any, lane), BatchOutput()
    retractions.opened(cast(Any, lane))
    await retractions.read(batch)
    work.orders[raw(ORDER)], work.states[raw(ORDER)] = None, state
    settled = retractions.add(batch, work)
    assert lane.forgot is None or not settled, "not before the batch is done"
    retractions.settle(batch, settled)
    assert lane.forgot == await lane.ends(NOTICE_TOPICS)
    return {
        topic: [(msgspec.json.decode(cast(bytes, each.value)), dict(each.headers)) for each in records]
        for topic, records in work.out.items()
    }


def paid(amount: str = "10.00") -> OrderBuilder:
    built = OrderBuilder()
    built.create()
    built.pay(amount)
    return built


async def test_what_is_not_so_is_told_as_it_is() -> None:
    """The killed run had read more: a parcel, and a payment too many."""
    killed, so = paid("700.00"), paid()
    killed.scan("delivered")
    wrote = notices(killed)
    state = codec.encode(so.order)
    lane = Lane(wrote, (0, 0, 0), None)
    back = await taken_back(lane, state)
    (status, headers), *others = back[STATUS]
    assert not others
    assert (status["from"], status["to"]) == ("delivered", "confirmed")
    last = dict(wrote[STATUS][-1].headers)
    for name in ("ce_causeid", "ce_time", "ce_type", "ce_source"):
        assert headers[name] == last[name]
    version = so.order.version
    assert headers["ce_id"].decode() == ids.uuid5_text(raw(ORDER), f"{STATUS}:{version}")
    assert {data["status"] for data, _ in back[SUBORDER]} == {"confirmed"}
    (attention, headers), *others = back[ATTENTION]
    assert not others
    assert (attention["kind"], attention["state"]) == ("overpaid", "cleared")
    assert attention["detail"] == msgspec.json.decode(wrote[ATTENTION][-1].value)["detail"]
    assert headers["ce_id"].decode() == ids.uuid5_text(raw(ORDER), f"{ATTENTION}:overpaid:cleared:{version}")


async def test_what_is_so_is_not_told_again() -> None:
    killed = paid("700.00")
    killed.scan("in_transit")
    wrote, state = notices(killed), codec.encode(killed.order)
    assert all(wrote.values())
    assert await taken_back(Lane(wrote, (0, 0, 0), None), state) == {}
    lane = Lane(wrote, (0, 0, 0), state)
    retractions = Retractions(None)
    retractions.opened(cast(Any, lane))
    await retractions.read(cast(Any, lane))
    assert lane.forgot == await lane.ends(NOTICE_TOPICS), (
        "its states were written: nothing is left to be compared"
    )


async def test_only_what_lies_behind_the_last_commit_counts() -> None:
    killed = paid("700.00")
    wrote = notices(killed)
    ends = tuple(len(wrote[topic]) for topic in NOTICE_TOPICS)
    for known in (ends, ()):
        assert await taken_back(Lane(wrote, known, None), codec.encode(paid().order)) == {}


async def test_raised_again_where_a_killed_run_has_cleared_it() -> None:
    so = paid("700.00")
    wrote = notices(so)
    data = msgspec.json.decode(wrote[ATTENTION][-1].value) | {"state": "cleared"}
    wrote[ATTENTION] = [SimpleNamespace(key=KEY, value=msgspec.json.encode(data), headers=())]
    back = await taken_back(Lane(wrote, (0, 0, 0), None), codec.encode(so.order))
    assert [data["state"] for data, _ in back[ATTENTION]] == ["raised"]


async def test_what_others_wrote_is_nothing() -> None:
    state = codec.encode(paid().order)
    odd = [
        (None, b"{}"),
        (KEY, None),
        (KEY, b"\xff"),
        (KEY, b"[]"),
        (b"x", b'{"order_id":"x"}'),
        (KEY, b'{"order_id":"%b","kind":7,"state":[],"since":0}' % KEY),
        (KEY, b'{"order_id":"%b","seller_id":{}}' % KEY),
    ]
    records = [SimpleNamespace(key=key, value=value, headers=[("ce_id", None)]) for key, value in odd]
    lane = Lane(dict.fromkeys(NOTICE_TOPICS, records), (0, 0, 0), None)
    assert await taken_back(lane, state)


async def test_without_all_of_it_nothing_is_folded() -> None:
    lane = Lane(notices(paid()), (0, 0, 0), None)
    lane.cut = 1
    retractions = Retractions(None)
    retractions.opened(cast(Any, lane))
    with pytest.raises(KafkaTimeoutError, match="read up to"):
        await retractions.read(cast(Any, lane))
    lane.cut = 0
    await retractions.read(cast(Any, lane))


async def test_what_never_can_be_read_stops_nobody(caplog: pytest.LogCaptureFixture) -> None:
    lane = Lane(notices(paid()), (0, 0, 0), None)
    lane.cut = 1
    retractions = Retractions(None)
    retractions.opened(cast(Any, lane))
    for _ in range(ATTEMPTS - 1):
        with pytest.raises(KafkaTimeoutError):
            await retractions.read(cast(Any, lane))
    with caplog.at_level(logging.WARNING):
        await retractions.read(cast(Any, lane))
    assert "isn't taken back" in caplog.text


async def test_who_may_not_read_goes_on_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    lane = Lane(notices(paid()), (0, 0, 0), None)
    lane.refuses = True
    with caplog.at_level(logging.WARNING):
        assert await taken_back(lane, codec.encode(paid().order)) == {}
    assert "isn't taken back" in caplog.text
