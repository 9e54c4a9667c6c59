"""The record of a stack in its folder: ports, pids, secrets. It is one JSON file, replaced as a whole."""

from __future__ import annotations

import base64
import json
import os
import secrets
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import RLock

from stack import folders, ports
from stack.errors import StackError

FORMAT = 1


@dataclass(slots=True)
class Record:
    """One server as it was last started: its ports, and its process's pid and start time."""

    ports: dict[str, int] = field(default_factory=dict)
    pid: int | None = None
    born: str | None = None


def new_cluster_id() -> str:
    """22 characters of URL-safe base64, never beginning with a dash: Kafka's tool
    would take it for an option.
    """
    while (drawn := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return drawn


@dataclass(slots=True)
class State:
    """The written state of one stack.
    Not for two processes at once: lifecycle holds the folder's lock while it changes.
    """

    path: Path
    brokers: int
    replica: bool = False
    cluster_id: str = field(default_factory=new_cluster_id)
    password: str = field(default_factory=lambda: secrets.token_hex(16))
    postgres_home: str | None = None
    advertise: list[str] = field(default_factory=list)
    users: dict[str, str] = field(default_factory=dict)
    """Name -> password, of those who may come in to a secure stack. None: the stack isn't secure."""
    servers: dict[str, Record] = field(default_factory=dict)
    _guard: RLock = field(default_factory=RLock, repr=False, compare=False)

    @classmethod
    def load(cls, path: Path) -> State | None:
        """The state that was saved at `path`, or None.
        Raises StackError when it cannot be read or understood.
        """
        try:
            document = json.loads(path.read_text())
            if document.pop("format") != FORMAT:
                raise StackError(
                    f"{path} was written by another version of this program", "move its folder away"
                )
            servers = {name: Record(**record) for name, record in document.pop("servers").items()}
            return cls(path=path, servers=servers, **document)
        except FileNotFoundError:
            return None
        except PermissionError as error:
            raise folders.refused(path.parent, error) from error
        except OSError as error:
            raise StackError(
                f"{path} cannot be read ({error.strerror})", "move its folder away and start anew"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StackError(
                f"{path} cannot be understood ({error})", "move its folder away and start anew"
            ) from error

    def save(self) -> None:
        """Write the state whole or not at all; only its owner can read it, as it holds passwords."""
        document = {
            "format": FORMAT,
            "brokers": self.brokers,
            "replica": self.replica,
            "cluster_id": self.cluster_id,
            "password": self.password,
            "postgres_home": self.postgres_home,
            "advertise": self.advertise,
            "users": self.users,
            "servers": {name: asdict(record) for name, record in self.servers.items()},
        }
        with self._guard:
            fresh = self.path.with_suffix(".new")
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
                if (
                    os.geteuid() == 0 and self.path.exists()
                ):  # root stops another user's stack, who is to start it again
                    before = self.path.stat()
                    os.fchown(file.fileno(), before.st_uid, before.st_gid)
                json.dump(document, file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)

    def change(self, action: Callable[[State], None]) -> None:
        """Change and save under the guard: servers start in parallel threads."""
        with self._guard:
            action(self)
            self.save()

    def port(self, server: str, purpose: str) -> int:
        """The written port. Raises KeyError before `assign`."""
        return self.servers[server].ports[purpose]

    def assign(self, server: str, purposes: frozenset[str]) -> None:
        """Give a server that is to start its ports: the last ones where they are still
        free, new ones otherwise.
        """
        with self._guard:
            record = self.servers.setdefault(server, Record())
            taken = {
                port
                for name, other in self.servers.items()
                if name != server
                for port in other.ports.values()
            }
            for purpose in sorted(purposes):
                kept = record.ports.get(purpose)
                if kept is None or kept in taken or not ports.is_free(kept):
                    record.ports[purpose] = ports.choose(taken)
                taken.add(record.ports[purpose])
