"""Who may come in to a secure stack, and by what: certificates, passwords, URLs, each in a file that only its
owner can read.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import ClassVar
from urllib.parse import quote

import psutil

from stack import front, ports
from stack.processes import Identity, spawn
from stack.servers import Server
from stack.state import State

ADMIN = "admin"
"""Who may do everything on Kafka and Valkey, and give others their rights; on Postgres it is `postgres`."""

FOLDER = "secure"
AUTHORITY, SERVER = "ca.pem", "server.pem"
SUBJECT = "orders-stack"
"""Of the servers' certificate, by which the nodes of Kafka know each other, too."""

DAYS = 3650.0
"""How long certificates hold: as long as anybody keeps a stack."""


def folder(state: State) -> Path:
    """Where the files are."""
    return state.path.parent / FOLDER


def password(state: State, user: str) -> str:
    """Of a user, or of the administrator."""
    return state.password if user == ADMIN else state.users[user]


def prepare(state: State) -> None:
    """Make the folder and the certificates, unless they are there. The key of the authority isn't kept."""
    home = folder(state)
    home.mkdir(mode=0o700, exist_ok=True)
    if (home / SERVER).exists():
        return
    from stack.certificates import certificate

    key, own = home / "key.new", home / "certificate.new"
    authority = certificate(home / AUTHORITY, key, name=f"{SUBJECT}-authority", days=DAYS)
    key.unlink()
    certificate(own, key, name=SUBJECT, days=DAYS, by=authority)
    write(home / SERVER, key.read_text() + own.read_text())
    key.unlink()
    own.unlink()


def write(path: Path, text: str) -> None:
    """Write a file that only its owner can read, whole or not at all."""
    fresh = path.with_name(f"{path.name}.new")
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    fresh.replace(path)


def hand_out(state: State, urls: dict[str, str]) -> None:
    """Write each user's password of Kafka, and URLs. `urls`: name of the file's end -> its text, with
    {user} and {password} in it.
    """
    for user in (*state.users, ADMIN):
        secret = password(state, user)
        write(folder(state) / f"{user}.kafka", secret)
        for server, url in urls.items():
            name = "postgres" if user == ADMIN and server != "redis" else user
            write(folder(state) / f"{user}.{server}", url.format(user=quote(name), password=secret))


def environment(state: State, user: str) -> dict[str, str]:
    """The ORDERS_* values by which a user comes in, but the addresses of Kafka. Secrets are in files."""
    home = folder(state)
    values = {
        "ORDERS_KAFKA_SECURITY_PROTOCOL": "SASL_SSL",
        "ORDERS_KAFKA_SASL_MECHANISM": "SCRAM-SHA-512",
        "ORDERS_KAFKA_SASL_USERNAME": user,
        "ORDERS_KAFKA_SASL_PASSWORD_FILE": str(home / f"{user}.kafka"),
        "ORDERS_KAFKA_SSL_CAFILE": str(home / AUTHORITY),
        "ORDERS_POSTGRES_FILE": str(home / f"{user}.postgres"),
        "ORDERS_REDIS_FILE": str(home / f"{user}.redis"),
    }
    if state.replica:
        values["ORDERS_POSTGRES_REPLICA_FILE"] = str(home / f"{user}.postgres-replica")
    return values


class Front(Server):
    """What speaks TLS for a server that can't: the packages of Postgres and Valkey are built without it."""

    kind: ClassVar[str] = "tls"

    def __init__(self, server: Server) -> None:
        super().__init__(f"{server.name}-tls", server.folder, server.state)
        self.server = server

    @property
    def identity(self) -> Identity:
        here = front.COMM if Path("/proc/self/comm").exists() else psutil.Process().name()
        return Identity(here, self._mark)

    @property
    def _mark(self) -> str:
        where = f"{self.folder}/{self.name}"
        return f"orders-stack-{hashlib.sha256(os.fsencode(where)).hexdigest()[:32]}"

    @property
    def address(self) -> str:
        plain = self.server.address.replace(f":{self.server.port}/", f":{self.port}/")
        trusted = quote(str(folder(self.state) / AUTHORITY))
        if self.server.kind == "redis":
            return f"{plain.replace('redis:', 'rediss:')}?ssl_ca_certs={trusted}"
        return f"{plain}?sslmode=verify-full&sslrootcert={trusted}"

    def prepare(self) -> None:
        """Nothing: its certificate is there."""

    def launch(self) -> subprocess.Popen[bytes]:
        pem = str(folder(self.state) / SERVER)
        argv = [sys.executable, "-P", front.__file__, str(self.port), str(self.server.port), pem]
        return spawn([*argv, self.server.kind, self._mark], log=self.log, cwd=self.folder)

    def ready(self) -> bool:
        # It listens when it has its name and certificate, and not before.
        return ports.listens(self.port)
