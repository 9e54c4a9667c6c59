"""Write rows that are older than their states, or missing, from the states in the changelog.

What `orders repair --rows` does after Postgres went back in time. Nothing is folded and the group isn't
locked: a row is never replaced by one with a lower version, so workers may write meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from aiokafka import TopicPartition

from contracts import ids
from operations.auditing import Progress
from operations.changelog import read_changelog
from operations.history import HistoryReader, project
from operations.postgres import compare, ddl
from operations.postgres.compare import COLUMNS, Difference
from operations.replay import LocalStates
from operations.servers import require
from settings import Settings
from sinks.postgres import PostgresSink
from sinks.rows import RowBatch
from streams.folder import BatchFolder
from streams.lanes import lanes

STATES_AT_ONCE: Final = 1_000
_VERSION: Final = {table: columns.index("version") for table, columns in COLUMNS.items()}


@dataclass
class RowsResult:
    """What was written, or with `dry_run` what would be."""

    dry_run: bool
    compared: int = 0
    """Orders that were compared: those with rows."""
    orders: int = 0
    """Orders with a row that was older than their state, or missing."""
    rows: int = 0
    """Rows of these that were written; with `dry_run` those that would be."""
    remaining: int = 0
    """Orders whose rows differ still, with the version that they should have."""


async def repair_rows(
    settings: Settings,
    only: frozenset[str] | None = None,
    *,
    dry_run: bool,
    progress: Progress = lambda what, done, total: None,
) -> RowsResult:
    """Compare the rows of all orders, or of those with the ids in `only`, with their states, and write those
    that are older or missing.

    Needs space below $TMPDIR for a lane's states. Blocks as long as it takes to read the changelog and to
    compare. Raises NewerFormat, SchemaMismatch, TopicsMissing, and what the servers raise; run again, it goes
    on.
    """
    await require(settings, schema=True)
    numbers = range((await lanes(settings)).number)
    result = RowsResult(dry_run)
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="orders-rows-")))
        reader = await stack.enter_async_context(HistoryReader(settings))
        connection = await stack.enter_async_context(ddl.connect(settings))
        sink = PostgresSink(settings)
        stack.push_async_callback(sink.close)
        await sink.start()
        folded = BatchFolder(settings)
        for lane in numbers:
            progress(f"lane {lane}", lane, len(numbers))
            states = LocalStates(folder / str(lane))
            try:
                await read_changelog(reader, TopicPartition(settings.changelog_topic, lane), 0, states)
                for some in states.states(STATES_AT_ONCE):
                    wanted = some if only is None else {k: v for k, v in some.items() if ids.text(k) in only}
                    await _bring_back(connection, sink, project(folded, wanted).rows, result)
            finally:
                states.close()
    return result


async def _bring_back(
    connection: ddl.Connection, sink: PostgresSink, rows: RowBatch, result: RowsResult
) -> None:
    order_ids = [row.id for row in rows.orders]
    if not order_ids:
        return
    result.compared += len(order_ids)
    behind = _behind(await compare.with_rows(connection, rows, order_ids))
    if not behind:
        return
    result.orders += len(behind)
    if result.dry_run:
        result.rows += sum(behind.values())
        return
    mended = rows.of(behind)
    result.rows += await sink.write(mended)
    result.remaining += len(_behind(await compare.with_rows(connection, mended, [*behind])))


def _behind(differences: list[Difference]) -> Mapping[str, int]:
    """Order id -> how many of its rows are missing, or differ and aren't newer than they should be."""
    counts: dict[str, int] = {}
    for each in differences:
        if each.expected is None:
            continue
        at = _VERSION[each.table]
        if each.actual is None or int(each.actual[at] or 0) <= int(each.expected[at] or 0):
            counts[each.order_id] = counts.get(each.order_id, 0) + 1
    return counts
