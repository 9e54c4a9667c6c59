"""Who did what: commands that write are noted before they begin and when they end, or do nothing."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from contracts.topics import OPERATIONS
from operations import journal
from settings import Settings
from streams import topics
from tests.servers import admin, kafka
from tests.waiting import until
from tests.workers import ORDERS, finished, orders

RunCommand = Callable[..., tuple[int, str]]


def listed(*arguments: str) -> list[dict[str, Any]]:
    done = orders("operations", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)["operations"]
    return rows


async def test_a_command_that_writes_says_who_when_why_and_how_it_ended(
    fresh: Settings, run_command: RunCommand
) -> None:
    assert run_command("generate", "--orders", "2", "--reason", "a trial")[0] == 0
    assert run_command("dlq", "redrive", "--all", "--why=after the fix")[0] == 0
    assert run_command("dlq", "redrive", "--all", "--dry-run")[0] == 0
    assert run_command("rebuild", "switch", "--schema", "nowhere")[0] == 2
    generate, redrive, switch = listed()
    assert (generate["command"], generate["arguments"]) == ("generate", ["--orders", "2"])
    assert (generate["why"], generate["by"]) == ("a trial", journal.somebody())
    assert generate["began"] <= generate["ended"]
    assert generate["outcome"] == "done"
    assert (redrive["command"], redrive["arguments"]) == ("dlq redrive", ["--all"])
    assert redrive["why"] == "after the fix"
    assert (switch["outcome"], switch.get("why")) == ("failed", None)
    assert "nowhere" in switch["detail"]
    assert [each["command"] for each in listed("--command", "dlq")] == ["dlq redrive"]
    assert listed("--by", "nobody@nowhere") == []
    assert len(listed("--since", "1h")) == 3
    assert listed("--since", "2999-01-01T00:00:00Z") == []
    shown = orders("operations").stdout
    assert "after the fix" in shown
    assert "generate --orders 2" in shown


async def test_the_first_init_is_noted_though_there_is_no_journal_yet(
    fresh: Settings, run_command: RunCommand
) -> None:
    await topics.delete_all(admin(fresh))
    assert run_command("init", "--reason", "the first")[0] == 0
    assert run_command("init", "--reason", "again")[0] == 0
    assert [(each["why"], each["outcome"]) for each in listed()] == [("the first", "done"), ("again", "done")]


async def test_what_cannot_be_noted_is_not_done(
    fresh: Settings, run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka away for the one, no topic for the other: no key is made."""
    store = tmp_path / "keys"
    monkeypatch.setenv("ORDERS_API_KEY_STORE", str(store))
    await topics.delete_all(admin(fresh))
    code, said = run_command("keys", "add", "shop", "--scope", "all")
    assert (code, said.count("\n")) == (2, 1)
    assert "orders.operations doesn't exist" in said
    monkeypatch.setenv("ORDERS_KAFKA", "127.0.0.1:1")
    from settings import get_settings

    get_settings.cache_clear()
    code, said = run_command("keys", "add", "shop", "--scope", "all")
    assert (code, said.count("\n")) == (2, 1)
    assert "cannot reach Kafka" in said
    assert not store.exists()


async def test_a_killed_command_is_seen_as_begun_without_an_end(fresh: Settings) -> None:
    process = subprocess.Popen([*ORDERS, "generate", "--orders", "100000", "--rate", "1"])
    try:
        until(lambda: len(listed()) == 1, "the beginning is noted", 60)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    [generate] = listed()
    assert "ended" not in generate
    assert "outcome" not in generate
    assert "no end" in orders("operations").stdout


async def test_what_others_write_there_is_no_operation(fresh: Settings) -> None:
    async with AIOKafkaProducer(**kafka(fresh.brokers)) as producer:
        for value in (None, b"", b"\xff", b"[]", b'{"id": 1}', b'{"id": "x", "began": "soon"}'):
            await producer.send_and_wait(OPERATIONS, value, key=b"x", partition=0)
    begun = await journal.begin(
        fresh,
        "keys add",
        by="anna",
        arguments=["--url", "redis://u:Marked@h/0", "--password=Marked"],
        why="w",
    )
    assert begun.arguments == ["--url", "redis://***@h/0", "--password=***"]
    assert finished(journal.operations(fresh)) == [begun]


async def test_what_fails_in_a_block_is_noted_so(fresh: Settings) -> None:
    with pytest.raises(ValueError, match="no good"):
        async with journal.noted(fresh, "refund grant", by="key:anna", why="asked for"):
            raise ValueError("no good")
    async with journal.noted(fresh, "refund grant", by="key:anna", why="asked for"):
        pass
    failed, done = await journal.operations(fresh)
    assert (failed.outcome, failed.detail) == ("failed", "ValueError: no good")
    assert (done.outcome, done.detail, done.by) == ("done", None, "key:anna")
