"""What has to be known of the cluster before a worker starts, and the folder that belongs to it."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

from aiokafka.errors import TopicAuthorizationFailedError

from streams.transport.errors import FolderInUse, PartitionMismatch, UnknownTopics
from wire import clients

log = logging.getLogger(__name__)

MARKER = "cluster"
"""File in a data folder that names the Kafka cluster its state was built from."""


class ClusterInfo(NamedTuple):
    """The cluster's id, and the number of partitions of those topics that exist."""

    id: str
    partitions: dict[str, int]


async def inspect_cluster(options: Mapping[str, Any], topics: Iterable[str]) -> ClusterInfo:
    """Ask for the cluster's id and about `topics`. `options`: keyword arguments of wire.clients.admin.

    Blocks for a few round trips. Raises KafkaError if no broker answers, or a topic may not be seen.
    """
    admin = clients.admin(**options)
    try:
        await admin.start()
        cluster = await admin.describe_cluster()
        described = await admin.describe_topics(list(topics))
    finally:
        await admin.close()
    for topic in described:
        if topic["error_code"] == TopicAuthorizationFailedError.errno:
            raise TopicAuthorizationFailedError(topic["topic"])
    partitions = {
        topic["topic"]: len(topic["partitions"])
        for topic in described
        if topic["error_code"] == 0 and topic["partitions"]
    }
    return ClusterInfo(cluster["cluster_id"], partitions)


def check_topics(needed: Iterable[str], partitions: Mapping[str, int]) -> int:
    """The number of partitions that all `needed` topics have. Pure.
    Raises UnknownTopics or PartitionMismatch.
    """
    needed = list(needed)
    missing = sorted(topic for topic in needed if topic not in partitions)
    if missing:
        raise UnknownTopics(f"topics don't exist: {', '.join(missing)}")
    counts = {topic: partitions[topic] for topic in needed}
    if len(set(counts.values())) > 1:
        raise PartitionMismatch(mismatch(counts))
    return next(iter(counts.values()))


def mismatch(counts: Mapping[str, int]) -> str:
    """The message for a person: which topics differ."""
    usual = max(set(counts.values()), key=list(counts.values()).count)
    odd = ", ".join(f"{topic} has {count}" for topic, count in sorted(counts.items()) if count != usual)
    return f"all topics of a lane need the same number of partitions: {odd}, the others have {usual}"


def hold_data_folder(path: Path) -> IO[str]:
    """Take the folder for this process, until the file returned is closed or the
    process ends, however it ends.

    Two workers on one folder would take each other's files for their own.
    Raises FolderInUse if another process has it, OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, which may be deleted.
    # The file stays: to remove it would let two processes lock two files of one name.
    file = path.with_name(f"{path.name}.lock").open("a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        owner = file.read().strip()
        file.close()
        raise FolderInUse(
            f"{path} is in use by another worker{f' (process {owner})' if owner else ''}"
        ) from None
    file.truncate(0)
    file.write(f"{os.getpid()}\n")
    file.flush()
    return file


def prepare_data_folder(path: Path, cluster_id: str) -> None:
    """Make `path` ready for state of the cluster `cluster_id`: state of any other cluster is deleted.

    Offsets in a local store mean nothing in another cluster. Reads and writes the disk. Raises OSError.
    """
    marker = path / MARKER
    if path.exists() and any(path.iterdir()):
        owner = marker.read_text().strip() if marker.exists() else "unknown"
        if owner == cluster_id:
            return
        log.warning(
            "local state in %s belongs to the Kafka cluster %s, not to %s: deleted, it is rebuilt from the"
            " changelog",
            path,
            owner,
            cluster_id,
        )
        shutil.rmtree(path)
    path.mkdir(parents=True, exist_ok=True)
    marker.write_text(cluster_id + "\n")
