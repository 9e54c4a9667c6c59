"""Dead letters found, resolved, and sent back with another value, on real servers."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaProducer

from settings import Settings
from tests.servers import kafka
from tests.unit.builders import ANNA, ORDER, VALID, record
from tests.workers import audit, orders, processed, worker

RunCommand = Callable[..., tuple[int, str]]


def listed(*arguments: str) -> dict[str, Any]:
    done = orders("dlq", "list", "--json", *arguments)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def would_go_back(*arguments: str) -> int:
    document: dict[str, int] = json.loads(orders("dlq", "redrive", *arguments, "--dry-run", "--json").stdout)
    return document["would_send"]


def ids(*arguments: str) -> list[str]:
    return [f"{each['partition']}:{each['offset']}" for each in listed(*arguments)["dead_letters"]]


async def test_letters_are_found_resolved_and_sent_back_corrected(
    fresh: Settings, tmp_path: Path, run_command: RunCommand
) -> None:
    key = ORDER.encode()
    with worker(tmp_path):
        async with AIOKafkaProducer(**kafka(fresh.brokers)) as producer:
            headers, whole = record("order.created", VALID["order.created"])
            await producer.send_and_wait("order.created", whole, key, headers=headers)
            headers, paid = record("order.paid", VALID["order.paid"])
            wrong = paid.replace(b'"currency"', b'"monetary"')
            assert wrong != paid
            await producer.send_and_wait("order.paid", wrong, key, headers=headers)
            headers, _ = record("order.paid", VALID["order.paid"], id="another")
            await producer.send_and_wait("order.paid", b"{no json, ANNA here", key, headers=headers)
        processed()
        assert listed()["total"] == 2
        [one] = ids("--text", "MONETARY")
        [other] = ids("--text", "anna here")
        assert set(ids("--topic", "order.paid", "--order", ORDER.upper().replace("-", ""))) == {one, other}
        assert ids("--seller", ANNA) == []
        assert ids("--source", "nobody") == []
        source = next(value.decode() for name, value in headers if name == "ce_source")
        assert len(ids("--source", source, "--since", "1h")) == 2
        later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
        assert (ids("--since", later), len(ids("--until", later))) == ([], 2)
        assert ids("--until", "1h") == []
        for by, names in (
            ("topic", {"order.paid"}),
            ("source", {source}),
            ("reason", {"not_json", "field_missing"}),
        ):
            assert set(listed("--by", by)[f"by_{by}"]) == names
        [(hour, count)] = listed("--by", "hour")["by_hour"].items()
        assert (hour[13:], count) == (":00Z", 2)

        assert would_go_back("--text", "MONETARY", "--since", "1h", "--order", ORDER) == 1
        assert would_go_back("--source", source) == 2
        assert would_go_back("--until", "1h") == would_go_back("--seller", ANNA) == 0
        assert "--all contradicts" in run_command("dlq", "redrive", "--all", "--since", "1h")[1]

        assert run_command("dlq", "resolve", other, "--reason", "sent anew")[0] == 0
        assert ids("--state", "resolved") == [other]
        assert "sent anew" in orders("dlq", "show", other).stdout
        assert "nothing says which" in run_command("dlq", "resolve", "--reason", "x")[1]
        assert "no dead letter at 0:999" in run_command("dlq", "resolve", "0:999", "--reason", "x")[1]
        again = json.loads(
            orders("dlq", "resolve", "--topic", "order.paid", "--reason", "y", "--json").stdout
        )
        assert again == {"resolved": 1, "stay": {"resolved": 1}}
        assert json.loads(orders("dlq", "redrive", "--all", "--json").stdout)["sent"] == 0
        assert orders("dlq", "resolve", one, "--undo", "--reason", "it can be mended").returncode == 0
        assert ids("--state", "new") == [one]

        file = tmp_path / "paid.json"
        file.write_bytes(paid)
        assert run_command("dlq", "redrive", "--all", "--edit", str(file))[0] == 2
        code, said = run_command("dlq", "redrive", "--ids", one, "--edit", str(tmp_path / "none"))
        assert (code, "No such file" in said) == (2, True)
        done = orders("dlq", "redrive", "--ids", one, "--edit", str(file), "--why", "its currency", "--json")
        assert json.loads(done.stdout)["sent"] == 1, done.stderr
        processed()
        [note] = [each["redriven"] for each in listed("--state", "redriven")["dead_letters"]]
        assert (base64.b64decode(note["before"]), base64.b64decode(note["after"])) == (wrong, paid)
        assert listed()["total"] == 2, "the corrected one counts"
        assert "edited" in orders("dlq", "show", one).stdout
        audit()
