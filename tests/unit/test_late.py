"""The order of a late seller that the demo sends."""

from __future__ import annotations

from contracts.cloudevents import rfc3339
from domain import events
from workload import late

AT = 1_767_225_600_000_000


def test_the_pipeline_takes_every_event_of_a_late_order() -> None:
    order_id, sent = late.order(1, AT)
    taken = [events.decode(each.topic, each.headers, each.value) for each in sent]
    assert [each.type for each in taken] == ["order.created", "stock.reserved", "order.paid"]
    assert {each.key for each in sent} == {order_id.encode()}
    assert rfc3339(AT + late.SECOND).encode() in (sent[0].value or b"")
    assert late.order(1, AT) == (order_id, sent)
    assert late.order(2, AT)[0] != order_id
