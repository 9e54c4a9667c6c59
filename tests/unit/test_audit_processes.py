"""Work side by side in processes: what they say arrives, what they raise is raised, none is left."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from audit.findings import Finding, Report
from audit.index import Index, Letter, Pending
from audit.log import LogUnavailable
from audit.processes import Job, ProcessLost, side_by_side
from audit.reference import RecordId
from tests.unit.audit_jobs import die, leave, say_and_fail, say_and_wait, say_some
from tests.waiting import until


async def test_each_job_is_done_in_a_process_of_its_own_and_heard_in_order() -> None:
    heard: dict[int, list[int]] = {}
    await side_by_side([say_some] * 3, lambda message: heard.setdefault(message[0], []).append(message[1]))
    assert [*heard.values()] == [[0, 1, 2]] * 3
    assert os.getpid() not in heard
    for pid in heard:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


async def test_what_one_raises_is_raised_and_the_others_end() -> None:
    pids: list[int] = []
    with pytest.raises(LogUnavailable, match="no Kafka; start it"):
        await side_by_side([say_and_wait, say_and_fail], pids.append)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize(("job", "how"), [(die, "by signal 9"), (leave, "with code 3")])
async def test_one_that_is_lost_is_told(job: Job, how: str) -> None:
    with pytest.raises(ProcessLost, match=f"ended {how}; run it again"):
        await side_by_side([job], print)


PARENT = """
import asyncio
from audit.processes import side_by_side
from tests.unit.audit_jobs import say_and_block
asyncio.run(side_by_side([say_and_block], lambda pid: print(pid, flush=True)))
"""


def test_it_ends_when_its_parent_was_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        os.kill(pid, 0)
        parent.kill()
        until(lambda: not _runs(pid), "it ends too", 20)


def _runs(pid: int) -> bool:
    """Whether there is such a process, and it isn't only waited for."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_index_takes_over_what_lanes_found(tmp_path: Path) -> None:
    record_ids = [RecordId("order.paid", 0, at) for at in range(3)]
    index = Index(tmp_path)
    index.add_letters(
        [Letter(each, "not_json", "d", None, b"1", None, 0, each.offset) for each in record_ids]
    )
    index.add_copies(record_ids[:1])
    index.flush()
    for number in (1, 0):
        branch = index.read.branch(number)
        assert [letter.record_id for letter in branch.letters_of(record_ids[:2])] == record_ids[:2]
        assert (branch.has_copy(record_ids[0]), branch.has_copy(record_ids[1])) == (True, False)
        branch.wait(Pending(f"order {number}", "rows", "broken", "w", "e", "a", ""))
        branch.add_placed("made of a checkout")
        branch.add_checkout(f"order {number}", record_ids[number])
        branch.add_sent("0:1", record_ids[0])
        branch.flush()
        branch.close()
    for number in (0, 1):
        index.take_over(number)
    assert [each.order_id for each in index.pending()] == ["order 0", "order 1"]
    assert index.waiting == 2
    assert [letter.record_id for letter in index.unmatched_letters()] == record_ids[2:]
    assert [order_id for order_id, _ in index.unplaced_checkouts()] == ["order 0", "order 1"]
    assert len([*index.sent_without_note()]) == 2
    index.close()
    assert [path.name for path in tmp_path.iterdir()] == ["index.sqlite"]


def test_a_report_takes_over_a_lanes() -> None:
    def finding(order_id: str, severity: str = "broken") -> Finding:
        return Finding("rows", "broken" if severity == "broken" else "report", order_id, "w", "e", "a")

    whole, lane = Report("g"), Report("g")
    whole.compared, lane.compared = ["log"], ["log", "local tables"]
    whole.add(finding("a"), 2)
    for order_id in ("b", "c", "d"):
        lane.add(finding(order_id), 2)
    lane.add(finding("e", "report"), 2)
    lane.counts["old"] += 0
    lane.notices.append("n")
    whole.take_over(lane, 2)
    assert [each.order_id for each in whole.findings] == ["a", "b", "e"]
    assert (whole.broken, whole.reported) == ({"rows": 4}, {"rows": 1})
    assert dict(whole.counts) == {"old": 0}
    assert (whole.compared, whole.notices) == (["log", "local tables"], ["n"])
