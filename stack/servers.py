"""What lifecycle knows of a server: how to prepare, start, recognise, ask and stop it."""

from __future__ import annotations

import signal
import subprocess
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from stack.processes import Identity
from stack.state import State


class Server(ABC):
    """One server of a stack. `name` is its key in the state and its log's name; `kind` is what it is one of."""

    kind: ClassVar[str]
    polite: ClassVar[signal.Signals] = signal.SIGTERM

    def __init__(self, name: str, folder: Path, state: State) -> None:
        self.name = name
        self.folder = folder
        self.state = state
        self.log = folder / "logs" / f"{name}.log"

    @property
    def purposes(self) -> frozenset[str]:
        """What it needs ports for; "port" is where clients connect."""
        return frozenset({"port"})

    @property
    def port(self) -> int:
        """Where clients connect."""
        return self.state.port(self.name, "port")

    @property
    @abstractmethod
    def identity(self) -> Identity:
        """How its process is told from all others."""

    @abstractmethod
    def prepare(self) -> None:
        """Make its folder and configuration; mend what an unclean end left behind. Blocks. Raises StackError."""

    @abstractmethod
    def launch(self) -> subprocess.Popen[bytes]:
        """Start its process, without waiting."""

    @abstractmethod
    def ready(self) -> bool:
        """Whether it serves clients now. Blocks for a second at most."""
