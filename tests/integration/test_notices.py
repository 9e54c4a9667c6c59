"""orders rebuild notices after a deploy of workers that don't tell what they should."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from operations import auditing
from operations.whatif import NOTICES
from settings import Settings
from tests.integration.test_rebuild import refused, report_of
from tests.servers import kafka
from tests.workers import audit, finished, orders, processed, worker
from wire.log import LogReader
from workload import generator
from workload.producer import send

HISTORY = list(generator.events(120, 95, generator.Shares(duplicates=0.05, shuffle=0.2, poison=0.01)))
THIRD = len(HISTORY) // 3
WRONG = """
import os
os.environ["ORDERS_COMPILED"] = "off"  # compiled rules don't look at what stands in their place
from domain import effects, enums

updated = effects.Writer.suborder_updated
def only_some(self, created, suborder, version):
    if suborder.status is not enums.SuborderStatus.DELIVERED:
        updated(self, created, suborder, version)
effects.Writer.suborder_updated = only_some
effects.Writer.status_changed = lambda *_: None

from cli.main import main
main()
"""
"""A worker that tells no status of an order, and nothing of a suborder that is delivered."""


async def ends(settings: Settings) -> dict[TopicPartition, int]:
    partitions = [TopicPartition(topic, lane) for topic in NOTICES for lane in range(settings.partitions)]
    async with LogReader(settings, "test") as reader:
        return await reader.ends(partitions)


def broken() -> set[str]:
    report = finished(
        auditing.audit(auditing.target_of(Settings(), cache=True, tables=True), max_findings=50)
    )
    return {check for check, count in report.broken.items() if count}


def counted(result: dict[str, Any]) -> int:
    return sum(result["missing"].values())


async def test_what_a_wrong_deploy_did_not_tell_is_told_once(fresh: Settings, tmp_path: Path) -> None:
    # Not forked: there the rules are imported already, compiled.
    wrong = (sys.executable, "-u", "-c", WRONG, "worker", "--name", "w")
    for part, command in ((0, None), (1, wrong), (2, None)):
        with worker(tmp_path, "w", command) as running:
            await send(fresh, HISTORY[part * THIRD : (part + 1) * THIRD])
            processed()
            if part == 2:
                before = await ends(fresh)
                report = report_of("rebuild", "notices", "--examples", "10000", code=1)
                assert (report["dry_run"], report["sent"], report["unsound"], report["inconclusive"]) == (
                    True,
                    0,
                    0,
                    0,
                )
                assert set(report["missing"]) == NOTICES - {"order.attention"}  # it tells that as ever
                assert counted(report) == len(report["examples"])
                assert f"group {fresh.group} has members" in refused("rebuild", "notices", "--send")
            assert running.terminate() == 0
    assert broken() == {"notices"}
    assert await ends(fresh) == before

    assert "records wait to be taken in; let workers finish (orders wait)" in await refused_with_lag(fresh)
    with worker(tmp_path) as running:
        processed()
        assert running.terminate() == 0

    sent = report_of("rebuild", "notices", "--send", "--examples", "10000")
    assert (sent["missing"], sent["examples"]) == (report["missing"], report["examples"])
    after = await ends(fresh)
    assert sum(after.values()) - sum(before.values()) >= sent["sent"] == counted(sent)
    audit()
    again = orders("rebuild", "notices", "--send")
    assert (again.returncode, again.stdout.splitlines()[-1]) == (0, "nothing is missing")
    assert await ends(fresh) == after

    # What readers were told before the first record that is kept isn't told again.
    admin = AIOKafkaAdminClient(**kafka(fresh.brokers))
    await admin.start()
    for kept in (lambda end: end // 2, lambda end: 0):
        await admin.delete_records(
            {partition: RecordsToDelete(end - kept(end)) for partition, end in after.items()}
        )
        assert counted(report_of("rebuild", "notices")) == 0
    await admin.close()


async def refused_with_lag(settings: Settings) -> str:
    await send(settings, list(generator.events(1, 96)))
    return refused("rebuild", "notices", "--send")
