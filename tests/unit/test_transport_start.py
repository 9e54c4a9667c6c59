"""Where a tracker begins, what recovery keeps, and what a worker checks before it starts."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
from faust.transport.drivers import aiokafka as driver

from streams.transport.cluster import MARKER, check_topics, hold_data_folder, prepare_data_folder
from streams.transport.consumer_thread import Bounds, ConsumerThread, Start, resolve_start
from streams.transport.errors import FolderInUse, OffsetBeyondEnd, PartitionMismatch, UnknownTopics
from streams.transport.table import newest
from tests.unit.test_offset_tracker import Rec


def test_without_a_committed_offset_reading_begins_at_the_log_start() -> None:
    assert resolve_start("t/0", None, Bounds(0, 10)) == Start(0, None)
    assert resolve_start("t/0", None, Bounds(4, 10)) == Start(4, None)


def test_an_offset_committed_at_zero_is_one() -> None:
    assert resolve_start("t/0", 0, Bounds(0, 10)) == Start(0, 0)


def test_reading_goes_on_at_the_committed_offset() -> None:
    assert resolve_start("t/0", 10, Bounds(0, 10)) == Start(10, 10)


def test_below_the_log_start_is_said_and_reading_goes_on_there(caplog: pytest.LogCaptureFixture) -> None:
    assert resolve_start("t/0", 3, Bounds(5, 10)) == Start(5, 3)
    assert "records of t/0 are lost" in caplog.text


def test_beyond_the_end_nothing_is_read() -> None:
    with pytest.raises(
        OffsetBeyondEnd, match="t/0: the group has finished up to offset 11, but the log ends at 10"
    ):
        resolve_start("t/0", 11, Bounds(0, 10))


def test_the_client_is_left_to_its_own_thread_when_a_rebalance_comes_while_the_worker_stops() -> None:
    thread = ConsumerThread.__new__(ConsumerThread)
    thread._consumer = object()  # to touch anything of it raises
    thread.close()


def test_recovery_keeps_the_highest_version_not_the_last() -> None:
    records = [
        Rec(0, b"\x02a", b"k"),
        Rec(1, b"\x02b", b"k"),
        Rec(2, b"\x01c", b"k"),
        Rec(3, b"\x01", b"other"),
    ]
    assert newest(records, lambda raw: raw[0]) == ({b"k": b"\x02b", b"other": b"\x01"}, set())


def test_a_deletion_is_kept_until_something_is_written_again() -> None:
    records = [Rec(0, b"\x05", b"k"), Rec(1, None, b"k")]
    assert newest(records, lambda raw: raw[0]) == ({b"k": None}, {b"k"})
    assert newest([*records, Rec(2, b"\x01", b"k")], lambda raw: raw[0]) == ({b"k": b"\x01"}, {b"k"})


def test_topics_are_checked_before_the_start() -> None:
    assert check_topics(["a", "b"], {"a": 4, "b": 4}) == 4
    with pytest.raises(UnknownTopics, match=r"topics don't exist: b; create them$"):
        check_topics(["a", "b"], {"a": 4})
    with pytest.raises(PartitionMismatch, match="b has 3, the others have 4"):
        check_topics(["a", "b", "c"], {"a": 4, "b": 3, "c": 4})


HOLD = (
    "import sys; from pathlib import Path; from streams.transport.cluster import hold_data_folder as hold;"
    " held = hold(Path(sys.argv[1]))"
)


def test_a_data_folder_is_one_process_own_until_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "down"
    holder = subprocess.Popen(
        [sys.executable, "-c", f"{HOLD}; print('held', flush=True); sys.stdin.read()", str(folder)],
        stdin=-1,
        stdout=-1,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(
            FolderInUse, match=rf"{folder} is in use by another worker \(process {holder.pid}\)"
        ):
            hold_data_folder(folder)
        hold_data_folder(folder.with_name("other")).close()
        holder.kill()
    with hold_data_folder(folder) as file:
        file.seek(0)
        assert file.read() == f"{os.getpid()}\n"


def test_a_data_folder_belongs_to_one_cluster(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "data"
    prepare_data_folder(folder, "one")
    (folder / "state.db").write_text("x")
    prepare_data_folder(folder, "one")
    assert (folder / "state.db").exists()
    prepare_data_folder(folder, "two")
    assert not (folder / "state.db").exists()
    assert (folder / MARKER).read_text().strip() == "two"
    assert "belongs to the Kafka cluster one, not to two" in caplog.text


def test_state_of_nobody_knows_which_cluster_is_deleted(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "state.db").write_text("x")
    prepare_data_folder(folder, "one")
    assert [path.name for path in folder.iterdir()] == [MARKER]


async def test_a_consumer_that_stops_badly_does_not_hang_the_worker(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(self: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(driver.AIOKafkaConsumerThread, "on_thread_stop", broken)
    await ConsumerThread.on_thread_stop(object.__new__(ConsumerThread))
    assert "did not stop in order" in caplog.text
