"""What is told of a server's log."""

from __future__ import annotations

from pathlib import Path

from stack.errors import failed, tail

TRACE = """INFO starting
ERROR Error while writing (LogDirFailure)
java.io.IOException: {why}
\tat java.base/sun.nio.ch.FileDispatcherImpl.write0(Native Method)
\\tat kafka.Kafka.main(Kafka.scala)
\t... 3 more
"""


def test_frames_of_a_java_trace_are_left_out(tmp_path: Path) -> None:
    log = tmp_path / "kafka.log"
    log.write_text(TRACE.format(why="Broken pipe") + "\tat org.apache.Some$1.run(Some.java:1)\n" * 30)
    assert tail(log).splitlines()[-1].strip() == "java.io.IOException: Broken pipe"
    assert "at " not in tail(log).replace("Error while", "")


def test_a_full_disk_is_said_in_one_line(tmp_path: Path) -> None:
    log = tmp_path / "kafka.log"
    log.write_text(TRACE.format(why="No space left on device"))
    error = failed("kafka-1 did not start", tail(log), tmp_path, "see")
    assert error.message == f"kafka-1 did not start: the disk of {tmp_path} is full"
    assert not error.log
    log.write_text(TRACE.format(why="Broken pipe"))
    assert failed("kafka-1 did not start", tail(log), tmp_path, "see").message == "kafka-1 did not start"
