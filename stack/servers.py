"""The interface of a server for lifecycle: how to prepare, start, recognise, ask and stop it."""

from __future__ import annotations

import signal
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from stack.processes import Identity
from stack.state import State


class Server(ABC):
    """One server of a stack. `name` is its key in the state and its log's name;
    `kind` is what it is one of.
    """

    kind: ClassVar[str]
    polite: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, name: str, folder: Path, state: State) -> None:
        self.name = name
        self.folder = folder
        self.state = state
        self.log = folder / "logs" / f"{name}.log"

    @property
    def purposes(self) -> frozenset[str]:
        """Names of the ports that it needs; "port" is the one for clients."""
        return frozenset({"port"})

    @property
    def port(self) -> int:
        """Port for clients."""
        return self.state.port(self.name, "port")

    @property
    def address(self) -> str:
        """Its URL with {user} and {password} in it; of the servers that have one."""
        raise NotImplementedError

    @property
    @abstractmethod
    def identity(self) -> Identity:
        """Identity of its process."""

    @abstractmethod
    def prepare(self) -> None:
        """Make its folder and configuration; mend what an unclean end left behind.
        Blocks. Raises StackError.
        """

    @abstractmethod
    def launch(self) -> subprocess.Popen[bytes]:
        """Start its process, without waiting."""

    @abstractmethod
    def ready(self) -> bool:
        """Tell whether it serves clients now. Blocks for a second at most."""
