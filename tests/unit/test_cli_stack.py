"""What `orders stack up` prints."""

from __future__ import annotations

from cli.stack import _in_force

OURS = {"ORDERS_KAFKA": "127.0.0.1:1", "ORDERS_DATA": ".stack/workers"}


def test_the_folder_for_data_is_the_one_that_is_exported() -> None:
    assert _in_force(OURS, {}) == OURS
    assert _in_force(OURS, {"ORDERS_DATA": ""}) == OURS
    assert _in_force(OURS, {"ORDERS_DATA": "/srv", "ORDERS_KAFKA": "x"}) == OURS | {"ORDERS_DATA": "/srv"}
