"""Labels of the metrics of requests are bounded, whoever asks for what."""

from __future__ import annotations

import pytest

from api import counted
from api.callers import Caller
from api.scopes import scopes
from streams.metrics import HTTP_KEYS, HTTP_REQUESTS


def caller(name: str) -> Caller:
    return Caller(name, scopes(()))


def test_keys_have_series_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counted, "_keys", set())
    monkeypatch.setattr(counted, "MOST_KEYS", 2)
    for name in ("a", "b", "c", "d", "a", "jwt:somebody", "jwt:another"):
        counted.counted("test", "GET", "/orders", 200, "cache", caller(name), 0.1)
    counted.counted("test", "GET", "/orders", 200, "cache", None, 0.1)

    def count(key: str) -> float:
        return float(HTTP_KEYS.labels("test", key, "2xx")._value.get())

    assert [count(key) for key in ("a", "b", "others", "token", "none")] == [2, 1, 2, 2, 1]


def test_what_is_refused_before_it_is_there_counts() -> None:
    counted.refused("refused", 503)
    assert HTTP_REQUESTS.labels("refused", "other", "none", "503", "none")._value.get() == 1
    assert HTTP_KEYS.labels("refused", "none", "5xx")._value.get() == 1


def test_what_no_route_takes_and_methods_that_nobody_knows_share_series() -> None:
    for method in ("BREW", "PROPFIND"):
        counted.counted("test", method, "-", 404, "none", None, 0.1)
    labels = {sample.labels["method"] for family in HTTP_REQUESTS.collect() for sample in family.samples}
    assert "BREW" not in labels
    assert HTTP_REQUESTS.labels("test", "other", "none", "404", "none")._value.get() == 2
