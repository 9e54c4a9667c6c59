"""What the commands print of orders, dead letters and jobs whose texts are hostile, in
several kinds of terminal.
"""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import os
import pty
import re
import struct
import subprocess
import termios
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from aiokafka import AIOKafkaProducer
from redis.asyncio import Redis

from cli import main
from settings import Settings, get_settings
from tests.servers import as_admin, kafka
from tests.unit.builders import ANNA, ORDER, USER, VALID, attributes, created, line, parcel, record
from tests.unit.test_terminal import ENVIRONMENTS, harmful, stream, written
from tests.workers import ORDERS, orders, processed, worker

HOSTILE = (
    "gr\u00f6\u00dfe \u65e5\u672c \U0001f600 [/b] [link=http://evil]x[/link] \x1b[2J\x1b]8;;http://evil\x07"
    " \x9b1m \u202ecba \u2066\u200b\u2028\t\r\nforged"
)
COLUMNS = "order_id,user_id,currency,total_amount,time,item_id,product_id,seller_id,sku,quantity,price"


def hostile_copies(value: Any) -> Iterator[Any]:
    """Copies of an event's data, in each of which another text is hostile."""
    if isinstance(value, str):
        yield HOSTILE
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from ({**value, name: copy} for copy in hostile_copies(each))
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from ([*value[:number], copy, *value[number + 1 :]] for copy in hostile_copies(each))


async def send_every_text(settings: Settings) -> int:
    """Of every event that is read, a copy for each text in it, also among its attributes. Their number."""
    sent = 0
    async with AIOKafkaProducer(**kafka(settings.brokers), acks="all") as producer:
        for topic, data in VALID.items():
            copies = [record(topic, copy) for copy in hostile_copies(data)]
            copies += [
                record(topic, data, False, **{name: HOSTILE})
                for name in attributes(topic)
                if name not in ("specversion", "type")
            ]
            for headers, value in copies:
                await producer.send_and_wait(topic, value, key=ORDER.encode(), headers=headers)
            sent += len(copies)
    return sent


async def break_stores(settings: Settings) -> None:
    """Put hostile texts where only the pipeline writes, so that an audit has something to tell."""
    async with Redis.from_url(as_admin(settings.redis)) as redis:
        await redis.mset(dict.fromkeys((f"order:{HOSTILE}", f"tracking:{HOSTILE}", "order:x"), HOSTILE))
        await redis.zadd(f"user:{HOSTILE}:orders", {HOSTILE: 1})
    connection = await asyncpg.connect(settings.postgres.get_secret_value())
    await connection.execute("UPDATE orders_shipment SET carrier = $1", f"{HOSTILE[:40]}, changed")
    await connection.close()


async def fill(settings: Settings, folder: Path) -> tuple[str, list[str]]:
    """An order, a dead letter and a job full of hostile texts.
    The job's id, and the dead letters' coordinates.
    """
    scan = {
        "order_id": ORDER,
        "shipment_id": parcel(1),
        "seller_id": ANNA,
        "status": "in_transit",
        "carrier": HOSTILE,
        "tracking_number": HOSTILE,
    }
    async with AIOKafkaProducer(**kafka(settings.brokers), acks="all") as producer:
        for topic, data in (
            ("order.created", created(line(1), region=HOSTILE)),
            ("shipment.updated", scan),
            (
                "order.returned",
                {
                    "order_id": ORDER,
                    "return_id": parcel(2),
                    "item_id": HOSTILE,
                    "reason": HOSTILE,
                    "status": HOSTILE,
                },
            ),
        ):
            headers, value = record(topic, data)
            await producer.send_and_wait(topic, value, key=ORDER.encode(), headers=headers)
        await producer.send_and_wait(
            "order.paid", HOSTILE.encode(), key=HOSTILE.encode(), headers=[(HOSTILE, HOSTILE.encode())]
        )
    file = folder / "job.csv"
    file.write_text(f"{COLUMNS},note\n{ORDER},x,EUR,1,x,x,x,x,x,1,1,x\n" + good())
    with worker(folder):
        sent = orders("bulk", "submit", "orders", str(file), "--as-new", "--json")
        assert sent.returncode == 1, sent.stderr
        processed()
    listed = json.loads(orders("dlq", "list", "--json").stdout)["dead_letters"]
    assert len(listed) == 2
    return json.loads(sent.stdout)["job_id"], [f"{each['partition']}:{each['offset']}" for each in listed]


def good() -> str:
    ids = [f"{n}0000000-0000-4000-8000-000000000099" for n in range(1, 6)]
    return f"{ids[0]},{ids[1]},EUR,1.00,2026-01-01T01:00:00Z,{ids[2]},{ids[3]},{ids[4]},sku,1,1.00,x\n"


async def test_hostile_texts_steer_no_terminal(
    fresh: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, letters = await fill(fresh, tmp_path)
    hostile = tmp_path / "hostile.csv"
    text = HOSTILE.partition("\r")[0]  # no line break: it would end the header
    hostile.write_text(f'{COLUMNS},"[/bad] {text}"\n{good().rstrip()[:-1]}x\n"{text}",,,,,,,,,,,\n')
    commands: list[tuple[tuple[str, ...], int, list[str]]] = [
        (("show", ORDER), 0, [ORDER, ANNA, parcel(1)]),
        (("show", ORDER, "--json"), 0, [ORDER, ANNA, parcel(1)]),
        (("dlq", "list"), 0, [*letters, "field_malformed", "not_json", "order.paid:", "order.returned:"]),
        (("dlq", "list", "--json"), 0, ["field_malformed", "not_json"]),
        *((("dlq", "show", each), 0, [each]) for each in letters),
        (("dlq", "redrive", "--dry-run"), 0, []),
        (("bulk", "status"), 0, [job]),
        (("bulk", "status", job, "--json"), 0, [job]),
        (
            ("bulk", "submit", "orders", str(hostile), "--dry-run"),
            1,
            ["ignored columns: ", "field_malformed"],
        ),
        (("audit",), 0, ["clean"]),
        (("wait", "--timeout", "30"), 0, []),
        (("repair", "--dry-run"), 0, []),
        (("rebuild", "status"), 0, []),
        (("db",), 0, ["orders_order"]),
        (("partitions",), 0, []),
        (("settings",), 0, ["ORDERS_KAFKA"]),
        (("init",), 0, []),
    ]
    for parameters in (ENVIRONMENTS[number] for number in (0, 1, 4, 9)):
        encoding, environment = parameters.values
        assert isinstance(encoding, str)
        assert isinstance(environment, dict)
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            for command, code, whole in commands:
                if command[0] in ("audit", "repair") and parameters not in (
                    ENVIRONMENTS[0],
                    ENVIRONMENTS[-1],
                ):
                    continue  # a second each
                got, out, err = await run(encoding, *command)
                plain = re.sub(r"\x1b\[[0-9;]*m", "", out) if "FORCE_COLOR" in environment else out
                assert got == code, (parameters.id, command, out, err)
                assert out.strip(), (parameters.id, command)
                assert not harmful((plain + err).replace("\n", "")), (parameters.id, command, out)
                assert not [line for line in out.splitlines() if line.startswith("forged")], (
                    parameters.id,
                    command,
                )
                assert [each for each in whole if each not in plain] == [], (parameters.id, command, out)
                assert "…" not in plain, (parameters.id, command, out)


async def run(encoding: str, *args: str) -> tuple[int, str, str]:
    """One command line in this process, on streams of this encoding -> exit code, stdout, stderr."""
    get_settings.cache_clear()
    out, err = stream(encoding), stream(encoding)
    with redirect_stdout(out), redirect_stderr(err):
        code = await asyncio.to_thread(main.run, list(args))
    return code, written(out), written(err)


async def test_every_text_of_every_event_steers_no_terminal(
    fresh: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sent = await send_every_text(fresh)
    assert sent > 100
    with worker(tmp_path) as working:
        processed()
        said = working.text()
    _, out, _ = await run("utf-8", "dlq", "list", "--json")
    letters = json.loads(out)
    refused = {each["reason"]: f"{each['partition']}:{each['offset']}" for each in letters["dead_letters"]}
    assert {"field_malformed", "cloudevent_malformed"} & set(refused)
    commands: list[tuple[str, ...]] = [
        ("show", ORDER),
        ("show", ORDER, "--json"),
        ("dlq", "list", "--wide"),
        *(("dlq", "show", each) for each in refused.values()),
        ("dlq", "redrive", "--dry-run", "--all"),
        ("wait", "--timeout", "30"),
        ("rebuild", "start"),
        ("rebuild", "diff"),
        ("rebuild", "status"),
        ("rebuild", "drop", "orders_rebuild"),
        ("audit",),
        ("db",),
    ]
    outputs = {"worker": re.sub(r"\x1b\[[0-9;]*m", "", said)}
    for command in commands:
        code, out, err = await run("utf-8", *command)
        assert code in (0, 1), (command, err)
        outputs[" ".join(command)] = out + err
    await break_stores(fresh)
    commands = [("audit",), ("repair", "--dry-run"), ("whatif",), ("personal", USER)]
    for command in commands:
        code, out, err = await run("utf-8", *command)
        assert code in (0, 1), (command, err)
        outputs[f"{' '.join(command)}, of broken stores"] = out + err
    assert "cache" in outputs["audit, of broken stores"]
    for what, text in outputs.items():
        assert not harmful(text.replace("\n", "")), (what, text)
        assert not [line for line in text.splitlines() if line.startswith("forged")], what


# -- a person at a terminal ----------------------------------------------------------------------------------


def at_terminal(*args: str, columns: int, answer: str = "", question: str = "") -> tuple[int, str]:
    """A command line in a process of its own at a terminal of so many columns -> exit
    code, what the person saw.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {
        "TERM": "xterm"
    }
    with subprocess.Popen(
        (*ORDERS, *args), stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    ) as process:
        os.close(theirs)
        seen = io.BytesIO()
        while True:
            try:
                read = os.read(ours, 65536)
            except OSError:  # the terminal's other side is closed
                break
            if not read:
                break
            seen.write(read)
            if answer and question in seen.getvalue().decode(errors="replace"):
                os.write(ours, answer.encode())
                answer = ""
        code = process.wait(30)
    os.close(ours)
    return code, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.getvalue().decode(errors="replace")).replace(
        "\r\n", "\n"
    )


async def test_a_person_at_a_terminal(fresh: Settings, tmp_path: Path) -> None:
    job, letters = await fill(fresh, tmp_path)
    for columns in (0, 40):
        code, seen = at_terminal("bulk", "status", columns=columns)
        assert (code, job in seen) == (0, True)
        assert all(len(line) <= (columns or 80) for line in seen.splitlines())
        code, seen = at_terminal("dlq", "list", columns=columns)
        assert code == 0
        assert all(re.search(rf"^{each}\b", seen, re.MULTILINE) for each in letters)

    code, seen = at_terminal("dlq", "redrive", columns=80, question="[y/N]", answer="\n")
    assert "2 dead letters would go back to their topics (" in seen
    assert (code, "nothing sent" in seen) == (1, True)
    code, seen = at_terminal("dlq", "redrive", columns=80, question="[y/N]", answer="\x04")
    assert code == 130
    assert json.loads(orders("dlq", "list", "--json").stdout)["by_state"]["new"] == 2
    code, seen = at_terminal("dlq", "redrive", columns=80, question="[y/N]", answer="y\n")
    assert (code, "2 sent back" in seen) == (0, True)
    code, seen = at_terminal("dlq", "redrive", columns=80)
    assert (code, "0 sent back" in seen) == (0, True), "nothing is left that anybody could be asked about"
    code, seen = at_terminal("rebuild", "drop", columns=80)
    assert (code, "there is nothing to drop" in seen) == (0, True)
