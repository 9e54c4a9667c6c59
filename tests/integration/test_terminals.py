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
from tests.unit.takeover_files import write
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


def of_fill(job: str, letters: list[str], hostile: str) -> list[tuple[tuple[str, ...], int, list[str]]]:
    """Commands for what fill() has made, with their exit codes and what they show whole."""
    return [
        (("show", ORDER), 0, [ORDER, ANNA, parcel(1)]),
        (("show", ORDER, "--json"), 0, [ORDER, ANNA, parcel(1)]),
        (("dlq", "list"), 0, [*letters, "field_malformed", "not_json", "order.paid:", "order.returned:"]),
        (("dlq", "list", "--json"), 0, ["field_malformed", "not_json"]),
        *((("dlq", "show", each), 0, [each]) for each in letters),
        (("dlq", "redrive", "--dry-run"), 0, []),
        (("bulk", "status"), 0, [job]),
        (("bulk", "status", job, "--json"), 0, [job]),
        (
            ("bulk", "submit", "orders", hostile, "--dry-run"),
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


async def test_hostile_texts_steer_no_terminal(
    fresh: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, letters = await fill(fresh, tmp_path)
    hostile = tmp_path / "hostile.csv"
    text = HOSTILE.partition("\r")[0]  # no line break: it would end the header
    hostile.write_text(f'{COLUMNS},"[/bad] {text}"\n{good().rstrip()[:-1]}x\n"{text}",,,,,,,,,,,\n')
    commands = of_fill(job, letters, str(hostile))
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


LETTERS = "LETTERS"
"""In a command: a dead letter of each reason in turn."""
WHILE_A_WORKER_RUNS: tuple[tuple[str, ...], ...] = (
    ("pause", "topic", "order.paid", "--reason", HOSTILE),
    ("pause", "lane", "1", "--reason", HOSTILE, "--json"),
    ("log-level", "debug", "--reason", HOSTILE),
    ("status",),
    ("status", "--json"),
    ("resume", "topic", "order.paid", "--reason", HOSTILE),
    ("resume", "lane", "1", "--reason", HOSTILE),
    ("log-level", "default", "--worker", HOSTILE, "--reason", HOSTILE),
)
OF_EVERY_TEXT: tuple[tuple[str, ...], ...] = (
    ("show", ORDER),
    ("show", ORDER, "--json"),
    ("dlq", "list", "--wide"),
    *(("dlq", "list", "--by", name) for name in ("topic", "source", "seller", "hour")),
    ("dlq", "show", LETTERS),
    ("dlq", "resolve", LETTERS, "--reason", HOSTILE),
    ("dlq", "list", "--state", "resolved", "--wide"),
    ("dlq", "redrive", "--dry-run", "--all"),
    ("attention",),
    ("attention", "--json"),
    ("operations",),
    ("operations", "--wide"),
    ("operations", "--json"),
    ("status",),
    ("wait", "--timeout", "30"),
    ("import", "SHOP", "--live-from", "2026-03-01T00:00:00Z", "--dry-run"),
    ("import", "SHOP", "--live-from", "2026-03-01T00:00:00Z", "--dry-run", "--json"),
    ("rebuild", "start"),
    ("rebuild", "diff"),
    ("rebuild", "notices", "--dry-run"),
    ("rebuild", "status"),
    ("rebuild", "drop", "orders_rebuild"),
    ("audit",),
    ("db",),
)
OF_BROKEN_STORES: tuple[tuple[str, ...], ...] = (
    ("audit",),
    ("repair", "--dry-run"),
    ("whatif",),
    ("personal", USER),
)
REFUSED: tuple[tuple[str, ...], ...] = (
    ("show", HOSTILE),
    ("personal", HOSTILE),
    ("dlq", "show", HOSTILE),
    ("dlq", "list", "--since", HOSTILE),
    ("attention", "--kind", HOSTILE),
    ("operations", "--since", HOSTILE),
    ("pause", "topic", HOSTILE, "--reason", HOSTILE),
    ("resume", "type", HOSTILE),
    ("log-level", HOSTILE),
    ("import", f"/{HOSTILE}", "--live-from", "2026-03-01T00:00:00Z"),
    ("import", "SHOP", "--live-from", HOSTILE),
    ("bulk", "submit", "orders", HOSTILE),
    ("bulk", "status", HOSTILE),
    ("bulk", "mapping", HOSTILE),
    ("bulk", "id", HOSTILE, "orders", HOSTILE),
    ("rebuild", "drop", HOSTILE),
    ("rebuild", "switch", HOSTILE),
    ("db", "regions", "add", HOSTILE),
    ("db", "unlink", HOSTILE),
    ("keys", "add", HOSTILE, "--scope", HOSTILE),
    ("keys", "revoke", HOSTILE),
    ("grants", "kafka", "--role", "worker", "--user", HOSTILE),
    ("grants", "postgres", "--role", "worker", "--user", HOSTILE),
    ("grants", "redis", "--role", "worker", "--user", HOSTILE),
    ("replay", "olist", f"/{HOSTILE}"),
    ("worker", "--name", HOSTILE),
    ("api", "--host", HOSTILE),
    ("console", "--host", HOSTILE),
)
"""What was typed, told again by who refuses it."""
ELSEWHERE = {
    "bench": "measures",
    "db link": "tests/integration/test_references.py",
    "db locks": "tests/integration/test_db.py, with another session's hostile name",
    "db regions list": "tests/integration/test_regions.py",
    "demo": "has orders of its own",
    "events": "prints what is generated from the code",
    "generate": "sends",
    "keys list": "tests/unit/test_keys.py: a name is letters and digits",
    "simulate": "sends",
    "stack down": "of this machine",
    "stack env": "of this machine",
    "stack status": "of this machine",
    "stack up": "of this machine",
}
"""Commands that print nothing that came in, and why."""


def leaves(command: Any, *words: str) -> Iterator[str]:
    """The commands below one, by their words."""
    subcommands = getattr(command, "commands", {})
    if not subcommands or (command.invoke_without_command and words):
        yield " ".join(words)
    for name, each in subcommands.items():
        yield from leaves(each, *words, name)


async def test_every_command_is_in_the_scene() -> None:
    """A new one has to be added to it, or to ELSEWHERE with the reason. All refuse an option that is none."""
    names = {name for each in main.SUBCOMMANDS for name in leaves(main.load(each), each.name)}
    of_scene = [*WHILE_A_WORKER_RUNS, *OF_EVERY_TEXT, *OF_BROKEN_STORES, *REFUSED]
    of_scene += [command for command, _, _ in of_fill("job", ["0:0"], "file")]
    lines = [f"{' '.join(command)} " for command in of_scene]
    covered = {name for name in names if any(line.startswith(f"{name} ") for line in lines)}
    assert names - covered - ELSEWHERE.keys() == set(), "no hostile text was tried on them"
    assert ELSEWHERE.keys() - names == set()
    for name in sorted(names):
        said = await run("utf-8", *name.split(), f"--{HOSTILE}")
        assert said[0] == 2, (name, said)
        steers_nothing(name, "".join(said[1:]))


def steers_nothing(what: str, text: str) -> None:
    assert not harmful(text.replace("\n", "")), (what, text)
    assert not [line for line in text.splitlines() if line.startswith("forged")], (what, text)


async def test_every_text_of_every_event_steers_no_terminal(
    fresh: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = await send_every_text(fresh)
    assert sent > 100
    shop = hostile_shop(tmp_path)
    monkeypatch.setenv("ORDERS_API_KEY_STORE", str(tmp_path / "keys"))
    outputs: dict[str, str] = {}

    async def note(command: tuple[str, ...], codes: tuple[int, ...] = (0, 1)) -> str:
        code, out, err = await run("utf-8", *(str(shop) if word == "SHOP" else word for word in command))
        assert code in codes, (command, out, err)
        assert (out + err).strip(), command
        assert code != 2 or err.startswith("orders: "), (command, err)
        outputs[" ".join(command)] = out + err
        return out

    with worker(tmp_path) as working:
        processed()
        for command in WHILE_A_WORKER_RUNS:
            await note(command)
        assert "paused" in outputs["status"]
        processed()
    outputs["worker"] = re.sub(r"\x1b\[[0-9;]*m", "", working.text())
    letters = json.loads(await note(("dlq", "list", "--json")))
    refused = {each["reason"]: f"{each['partition']}:{each['offset']}" for each in letters["dead_letters"]}
    assert {"field_malformed", "cloudevent_malformed"} & set(refused)
    for command in OF_EVERY_TEXT:
        for letter in refused.values() if LETTERS in command else ("",):
            await note(tuple(letter if word == LETTERS else word for word in command))
    for command in REFUSED:
        await note(command, (2,))
    await break_stores(fresh)
    for command in OF_BROKEN_STORES:
        await note(command)
    assert "cache" in outputs["audit"]
    for what, text in outputs.items():
        steers_nothing(what, text)


def hostile_shop(folder: Path) -> Path:
    """Files for orders import whose names of columns and cells are hostile, beside an order that is good."""
    shop = write(folder / "shop")
    text = HOSTILE.partition("\r")[0]  # no line break: it would end the line
    for file in shop.iterdir():
        header, *lines = file.read_text().splitlines()
        names = header.split(",")
        lines = [f"{line},x" for line in lines]
        for number in range(len(names)):
            cells = lines[0].split(",")
            cells[number] = f'"{text}"'
            lines.append(",".join(cells))
        file.write_text("\n".join([f'{header},"{text}"', *lines, ""]))
    return shop


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
