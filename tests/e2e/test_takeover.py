"""docs/how-to/take-over.md does what it says: its blocks, run as one shell script on servers of their own. No
import lets a command leave.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.stackfixture import purge
from tests.unit.olist_files import write_olist

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "how-to" / "take-over.md"

COUNT = """
import asyncio, json, sys
from contracts.outgoing import DATA
from settings import get_settings
from wire import clients
async def count():
    topics = sorted(t for t in DATA if not t.startswith(("order.", "suborder.")))
    ends = {}
    async with clients.consumer(get_settings(), "count") as consumer:
        for topic in topics:
            parts = await consumer.end_offsets(consumer_partitions(topic))
            ends[topic] = sum(parts.values())
    return ends
def consumer_partitions(topic):
    from aiokafka import TopicPartition
    return [TopicPartition(topic, n) for n in range(get_settings().partitions)]
there = asyncio.run(count())
before = json.load(open(sys.argv[1])) if len(sys.argv) > 2 else there
print("commands:", there)
assert there == before, (before, there)
json.dump(there, open(sys.argv[1], "w"))
"""
"""Says how many commands there are, by topic, and fails if there are others than before (with a second
argument)."""


def script(count: Path) -> str:
    """All blocks in their order, commands counted around each that imports. The first failing one ends it."""
    blocks = re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) > 9
    counted = [
        f'python {count} "$TAKEOVER/counted"\n{block}python {count} "$TAKEOVER/counted" same\n'
        if "orders import" in block
        else block
        for block in blocks
    ]
    assert sum("counted" in each for each in counted) == 4
    begin = "set -euxo pipefail\ntrap 'kill ${WORKER:-} 2>/dev/null || true' EXIT\n"
    return begin + "\n".join(counted)


def test_the_page_runs_as_it_stands(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORDERS_")}
    environment |= {
        "TAKEOVER": str(tmp_path),
        "OLIST": str(write_olist(tmp_path / "dataset")),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    count = tmp_path / "count.py"
    count.write_text(COUNT)
    try:
        done = subprocess.run(
            ["bash", "-c", script(count)],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=900,
            stdin=subprocess.DEVNULL,
        )
    finally:
        purge(tmp_path / "stack")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    first = done.stdout.partition("From the cut-over on")[0]
    assert "taken in: 4 orders as told, 0 otherwise" in first
    assert "'refund.request': 0" in first.partition("taken in")[2]
