"""`orders dlq`: the records that were refused, why, and their bytes as they came."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Final, NamedTuple

import typer
from aiokafka import AIOKafkaConsumer, TopicPartition

from cli.errors import UserError
from domain.errors import REASONS
from domain.topics import DLQ, INPUT, INTERNAL
from settings import Settings, get_settings
from streams import topics

app = typer.Typer(help="Dead letters: what was refused and why.", no_args_is_help=True, add_completion=False, rich_markup_mode="rich")

SHOWN_CHARACTERS: Final = 4000
_OURS: Final = ("dlq_topic", "dlq_partition", "dlq_offset", "dlq_reason", "dlq_detail", "dlq_time")


class DeadLetter(NamedTuple):
    """One refused record. `partition` and `offset` are its own in orders.dlq, `origin_...` those of the record; headers as it had them."""

    partition: int
    offset: int
    reason: str
    detail: str
    time: str
    origin_topic: str
    origin_partition: int
    origin_offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]

    @property
    def coordinates(self) -> str:
        return f"{self.partition}:{self.offset}"

    @property
    def origin(self) -> str:
        return f"{self.origin_topic}:{self.origin_partition}:{self.origin_offset}"


@app.callback()
def _dlq() -> None:
    """Dead letters: what was refused and why."""


@app.command("list")
def list_command(
    reason: Annotated[str | None, typer.Option(help="Only this reason code.", show_default=False)] = None,
    topic: Annotated[str | None, typer.Option(help="Only records of this topic.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, help="The newest so many; the summary counts all.")] = 50,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
) -> None:
    """The refused records, the newest last, and a summary by reason.

    Example: [bold]orders dlq list --reason total_mismatch --limit 10[/bold]
    """
    if reason is not None and reason not in REASONS:
        raise UserError(f"no reason code {reason!r}; one of {', '.join(REASONS)}")
    if topic is not None and topic not in (*INPUT, *INTERNAL):
        raise UserError(f"no dead letter comes from a topic {topic!r}; one of {', '.join((*INPUT, *INTERNAL))}")
    newest, reasons = asyncio.run(_collect(get_settings(), reason, topic, limit))
    if as_json:
        rows = [_summary(letter) for letter in newest]
        print(json.dumps({"total": reasons.total(), "by_reason": dict(reasons.most_common()), "dead_letters": rows}))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    if not reasons:
        console.print("no dead letters")
        return
    table = Table("at", "reason", "detail", "record", "time", box=None, header_style="bold", pad_edge=False)
    for letter in newest:
        cells = (letter.coordinates, letter.reason, letter.detail, letter.origin, letter.time)
        table.add_row(*(Text(printable(cell)) for cell in cells))
    console.print(table)
    console.print()
    for code, count in reasons.most_common():
        console.print(Text(f"{count:>8,}  {printable(code)}: {REASONS.get(code, 'an unknown reason')}"))
    console.print(f"{reasons.total():>8,}  in all; one whole with: orders dlq show {newest[-1].coordinates}", style="bold")


@app.command("show")
def show_command(
    coordinates: Annotated[str, typer.Argument(help="PARTITION:OFFSET in orders.dlq, or TOPIC:PARTITION:OFFSET of the refused record.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout, bytes in base64.")] = False,
) -> None:
    """One refused record: its reason, its headers and its bytes as they came.

    Example: [bold]orders dlq show 0:17[/bold]
    """
    parts = coordinates.rsplit(":", 2)
    if len(parts) not in (2, 3) or not all(part.isascii() and part.isdigit() for part in parts[-2:]):
        raise UserError(f"{coordinates!r} is neither PARTITION:OFFSET nor TOPIC:PARTITION:OFFSET; orders dlq list has them")
    partition, offset = int(parts[-2]), int(parts[-1])
    letter = asyncio.run(_find(get_settings(), parts[0] if len(parts) == 3 else None, partition, offset))
    if letter is None:
        raise UserError(f"no dead letter at {coordinates}; orders dlq list has them")
    if as_json:
        headers = [[name, _base64(value)] for name, value in letter.headers]
        print(json.dumps({**_summary(letter), "key": _base64(letter.key), "value": _base64(letter.value), "headers": headers}))
        return
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)

    def line(name: str, text: str, style: str = "") -> None:
        console.print(Text.assemble((f"{name:<12}", "bold"), (printable(text), style)), soft_wrap=True)

    line("reason", f"{letter.reason}: {REASONS.get(letter.reason, 'an unknown reason')}", "red")
    line("detail", letter.detail)
    line("record", letter.origin)
    line("refused at", letter.time)
    line("dead letter", letter.coordinates)
    line("key", "none" if letter.key is None else _decoded(letter.key))
    for name, value in letter.headers:
        line("header", f"{name}: {_decoded(value)}")
    if letter.value is None:
        line("value", "none (a tombstone)")
        return
    line("value", f"{len(letter.value):,} bytes")
    shown = pretty(letter.value)
    console.print(Text(shown[:SHOWN_CHARACTERS]), soft_wrap=True)
    if len(shown) > SHOWN_CHARACTERS:
        console.print(f"... {len(shown) - SHOWN_CHARACTERS:,} characters more; --json has all bytes", style="dim")


async def read(settings: Settings) -> AsyncGenerator[DeadLetter, None]:
    """Every dead letter there is at the call, each partition's in order. Raises UserError when the topic doesn't exist."""
    async with _Reader(settings) as reader:
        for partition in reader.partitions:
            async with aclosing(reader.letters(partition)) as letters:
                async for letter in letters:
                    yield letter


def printable(text: str) -> str:
    """Text that cannot move the cursor, change colours or hide anything: control and format characters escaped."""
    return "".join(char if char.isprintable() or char == "\n" else char.encode("unicode_escape").decode() for char in text)


def pretty(value: bytes) -> str:
    """A value as text for a person: indented when that loses nothing of its JSON, otherwise as it came, what isn't text escaped."""
    try:
        parsed = json.loads(value, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_same_float, parse_int=_same_int)
        return json.dumps(parsed, indent=2, allow_nan=False)
    except (ValueError, RecursionError):
        return printable(_decoded(value))


class _Reader:
    """Reads orders.dlq outside any group. An async context manager."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._begins: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}

    async def __aenter__(self) -> _Reader:
        state = (await topics.describe(self._settings)).get(DLQ)
        if state is None:
            raise UserError(f"topic {DLQ} doesn't exist on Kafka at {self._settings.kafka}; run orders init")
        self._consumer = AIOKafkaConsumer(
            bootstrap_servers=self._settings.brokers,
            client_id="orders-dlq",
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            fetch_max_wait_ms=100,
        )
        await self._consumer.start()
        found = [TopicPartition(DLQ, number) for number in range(state.partitions)]
        self._begins = await self._consumer.beginning_offsets(found)
        self._ends = await self._consumer.end_offsets(found)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._consumer.stop()

    @property
    def partitions(self) -> list[int]:
        return [partition.partition for partition in self._ends]

    async def letters(self, partition: int, start: int | None = None) -> AsyncGenerator[DeadLetter, None]:
        """A partition's dead letters from offset `start` (None: all) to the end; none when start lies outside."""
        place = TopicPartition(DLQ, partition)
        if place not in self._ends:
            return
        begin, end = self._begins[place], self._ends[place]
        position = begin if start is None else start
        if not begin <= position < end:
            return
        self._consumer.assign([place])
        self._consumer.seek(place, position)
        while position < end:
            for records in (await self._consumer.getmany(place, timeout_ms=1000)).values():
                for record in records:
                    if record.offset < end:
                        yield _letter(record)
            position = await self._consumer.position(place)


async def _collect(settings: Settings, reason: str | None, topic: str | None, limit: int) -> tuple[list[DeadLetter], Counter[str]]:
    newest: list[DeadLetter] = []
    reasons: Counter[str] = Counter()
    async for letter in read(settings):
        if (reason is None or letter.reason == reason) and (topic is None or letter.origin_topic == topic):
            reasons[letter.reason] += 1
            newest.append(letter._replace(key=None, value=None, headers=()))
            if len(newest) >= 2 * limit + 1000:
                newest = _newest(newest, limit)
    return _newest(newest, limit), reasons


def _newest(letters: list[DeadLetter], limit: int) -> list[DeadLetter]:
    return sorted(letters, key=lambda letter: (letter.time, letter.partition, letter.offset))[-limit:]


async def _find(settings: Settings, topic: str | None, partition: int, offset: int) -> DeadLetter | None:
    if topic is not None:
        async with aclosing(read(settings)) as letters:
            async for letter in letters:
                if (letter.origin_topic, letter.origin_partition, letter.origin_offset) == (topic, partition, offset):
                    return letter
        return None
    async with _Reader(settings) as reader, aclosing(reader.letters(partition, offset)) as letters:
        async for letter in letters:
            return letter if letter.offset == offset else None
    return None


def _letter(record: Any) -> DeadLetter:
    ours = {name: (value or b"").decode("utf-8", "replace") for name, value in record.headers if name in _OURS}
    theirs = tuple((name, value or b"") for name, value in record.headers if name not in _OURS)
    return DeadLetter(
        record.partition,
        record.offset,
        ours.get("dlq_reason", ""),
        ours.get("dlq_detail", ""),
        ours.get("dlq_time", ""),
        ours.get("dlq_topic", ""),
        _number(ours.get("dlq_partition", "")),
        _number(ours.get("dlq_offset", "")),
        record.key,
        record.value,
        theirs,
    )


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() else -1


def _summary(letter: DeadLetter) -> dict[str, Any]:
    return {
        "partition": letter.partition,
        "offset": letter.offset,
        "reason": letter.reason,
        "detail": letter.detail,
        "time": letter.time,
        "origin": {"topic": letter.origin_topic, "partition": letter.origin_partition, "offset": letter.origin_offset},
    }


def _base64(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _decoded(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice")
    return found


def _refuse(token: str) -> Any:
    raise ValueError(f"{token} is not JSON")


def _same_float(text: str) -> float:
    number = float(text)
    if repr(number) != text:
        raise ValueError(f"{text} would print otherwise")
    return number


def _same_int(text: str) -> int:
    number = int(text)
    if str(number) != text:
        raise ValueError(f"{text} would print otherwise")
    return number
