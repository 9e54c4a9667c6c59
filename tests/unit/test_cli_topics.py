"""What `orders init` asks of the topics, without a broker."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from contracts import topics as names
from settings import Settings
from streams import topics
from streams.topics import TopicMismatch, TopicSpec, TopicState

SETTINGS = Settings(partitions=3)


def as_made(spec: TopicSpec) -> TopicState:
    return TopicState(
        spec.name, spec.partitions, spec.replication, {config.name: config.value for config in spec.configs}
    )


@pytest.mark.parametrize(
    ("brokers", "replication", "expected"),
    [(1, None, (1, "1")), (2, None, (2, "1")), (5, None, (3, "2")), (5, 5, (5, "4"))],
)
def test_replication(brokers: int, replication: int | None, expected: tuple[int, str]) -> None:
    for spec in topics.specs(Settings(replication=replication), brokers):
        configs = {config.name: config.value for config in spec.configs}
        assert (spec.replication, configs["min.insync.replicas"]) == expected


def test_every_topic_is_kept_as_the_contract_says() -> None:
    specs = {
        spec.name: {config.name: config.value for config in spec.configs}
        for spec in topics.specs(SETTINGS, 1)
    }
    ours = {
        names.DLQ,
        names.CLOCK,
        names.WORKERS,
        names.REDRIVEN,
        names.PARTITIONS,
        names.OPERATIONS,
        names.CONTROL,
        names.RESOLVED,
        names.BULK_COMPLETED,
        SETTINGS.changelog_topic,
    }
    assert set(specs) == {*names.INPUT, *names.INTERNAL, *names.DERIVED, *names.BULK, *ours}
    for name in (*names.INPUT, *names.INTERNAL, *names.BULK):
        assert (specs[name]["retention.ms"], specs[name]["cleanup.policy"]) == ("-1", "delete")
    for name in (*names.DERIVED, names.DLQ, *names.INTERNAL):
        assert specs[name]["max.message.bytes"] == str(8 << 20)
    assert specs[SETTINGS.changelog_topic]["max.message.bytes"] == str(24 << 20)
    for name in (SETTINGS.changelog_topic, names.REDRIVEN, names.PARTITIONS, names.CONTROL, names.RESOLVED):
        assert specs[name]["cleanup.policy"] == "compact"
    assert {spec.partitions for spec in topics.specs(SETTINGS, 1)} == {3}
    assert all(config.reason for spec in topics.specs(SETTINGS, 1) for config in spec.configs)


def changed(name: str, value: str) -> Callable[[TopicState], TopicState]:
    return lambda state: TopicState(
        state.name, state.partitions, state.replication, {**state.configs, name: value}
    )


@pytest.mark.parametrize(
    ("topic", "change", "says"),
    [
        (
            "order.paid",
            changed("retention.ms", "604800000"),
            "topic order.paid has retention.ms=604800000, not -1",
        ),
        (
            "orders.decisions",
            changed("retention.bytes", "1000000"),
            "topic orders.decisions has retention.bytes=1000000, not -1",
        ),
        (
            "order.paid",
            changed("cleanup.policy", "compact"),
            "--alter --entity-type topics --entity-name order.paid",
        ),
        ("order.paid", changed("max.message.bytes", "9000000"), "not at most 6291456"),
        ("orders.dlq", changed("max.message.bytes", "1000000"), "not at least 8388608"),
        (SETTINGS.changelog_topic, changed("cleanup.policy", "delete"), "not compact"),
        ("order.paid", lambda state: TopicState(state.name, 7, 1, state.configs), "set ORDERS_PARTITIONS=7"),
        # What an operator may do as he likes:
        ("order.paid", changed("max.message.bytes", "1000000"), None),
        ("suborder.created", changed("retention.ms", "1"), None),
        ("order.paid", changed("message.timestamp.type", "CreateTime"), None),
    ],
)
def test_what_differs_from_an_existing_topic(
    topic: str, change: Callable[[TopicState], TopicState], says: str | None
) -> None:
    wanted = topics.specs(SETTINGS, 1)
    existing = {spec.name: as_made(spec) for spec in wanted}
    topics.check(SETTINGS, wanted, existing)
    existing[topic] = change(existing[topic])
    if says is None:
        topics.check(SETTINGS, wanted, existing)
        return
    with pytest.raises(TopicMismatch) as caught:
        topics.check(SETTINGS, wanted, existing)
    assert says in str(caught.value)
    assert topic in str(caught.value)


@pytest.mark.parametrize(
    ("size", "taken", "written"),
    [(1 << 20, 786_432, 1 << 20), (8 << 20, 6 << 20, 8 << 20), (20 << 20, 6 << 20, 8 << 20)],
)
def test_a_kafka_that_takes_smaller_batches(size: int, taken: int, written: int) -> None:
    """Nothing asks for more than it takes; the changelog says to every program how much that is."""
    small = Settings(partitions=3, message_bytes=size)
    wanted = topics.specs(small, 1)
    most = {
        spec.name: int(config.value)
        for spec in wanted
        for config in spec.configs
        if config.name == "max.message.bytes"
    }
    assert most == {
        **dict.fromkeys((*names.INPUT, *names.BULK), taken),
        **dict.fromkeys((*names.INTERNAL, *names.DERIVED, names.DLQ, names.BULK_COMPLETED), written),
        small.changelog_topic: size,
    }
    existing = {spec.name: as_made(spec) for spec in wanted}
    topics.check(small, wanted, existing)
    for other in ("25165824", "1048576", "2000000"):
        if other != str(size):
            existing[small.changelog_topic] = changed("max.message.bytes", other)(
                existing[small.changelog_topic]
            )
            with pytest.raises(TopicMismatch, match=f"max.message.bytes={other}, not {size}"):
                topics.check(small, wanted, existing)
    wider = changed("max.message.bytes", "99999999")(existing[small.changelog_topic])
    assert topics.changelog_bytes(SETTINGS).accepts(wider.configs["max.message.bytes"])


def test_a_grown_cluster_is_no_mismatch_but_a_promise_not_kept_is() -> None:
    existing = {spec.name: as_made(spec) for spec in topics.specs(SETTINGS, 1)}
    topics.check(SETTINGS, topics.specs(SETTINGS, 3), existing)
    unsafe = {name: TopicState(name, 3, 3, state.configs) for name, state in existing.items()}
    with pytest.raises(TopicMismatch, match=r"min\.insync\.replicas=1, not at least 2"):
        topics.check(SETTINGS, topics.specs(SETTINGS, 3), unsafe)
    asked = Settings(partitions=3, replication=3)
    with pytest.raises(TopicMismatch, match=r"has 1 replica\(s\), not 3"):
        topics.check(asked, topics.specs(asked, 3), existing)
