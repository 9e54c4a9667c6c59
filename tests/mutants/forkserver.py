"""A process that has imported what the project is built on, and forks a child for each run: a run then
imports nothing but the source that it is about, and begins in a third of the time.

Nothing of the project is loaded in it, so that a child takes all of that from its own folder. That is why
this file is run as a program, imports no neighbour, and is not multiprocessing's fork server: a child of
that one imports the module in which its target is.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import random
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

PRELOADED: Final = (
    *("aiokafka", "aiokafka.admin", "aiokafka.coordinator.assignors.roundrobin"),
    *("asyncpg", "cramjam", "hypothesis", "hypothesis.strategies", "lupa.lua51", "msgspec"),
    *("faust", "faust.app.base", "faust.channels", "faust.events", "faust.stores.rocksdb", "faust.worker"),
    *("faust.tables.manager", "faust.tables.recovery", "faust.tables.table"),
    *("faust.transport.drivers", "faust.transport.drivers.aiokafka", "mode", "mode.supervisors"),
    *("platformdirs", "prometheus_client", "psutil", "pydantic", "pydantic_settings", "pytest"),
    *(
        "pytest_asyncio.plugin",
        "pytest_timeout",
        "redis.asyncio",
        "rocksdict",
        "sqlalchemy",
        "sqlalchemy.dialects.postgresql",
    ),
    *("concurrent.futures.process", "structlog", "typer", "unittest.mock", "uuid_utils", "yaml"),
)
"""What the simulation and the tests import of others. One that is missing here only costs time."""
BROKE: Final = 70
"""Exit code of a child that didn't come to the end of its module: neither of pytest's nor of a command's."""


class ForkServer:
    """Runs modules in forked children, one at a time: each thread needs its own. A context manager."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="orders-forkserver-")

    def __enter__(self) -> ForkServer:
        # -P: the folder of this file is no place to import from. The project's is told by each run.
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
        )
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process is not None
        with self._process:
            self._process.terminate()
        self._folder.cleanup()

    def run(
        self, root: Path, module: str, *arguments: str, env: Mapping[str, str], longest: float
    ) -> subprocess.CompletedProcess[str]:
        """What `python -m module arguments` in the folder `root` does, which is first on its path. Blocks.

        After `longest` seconds it is killed, with what it has started, and subprocess.TimeoutExpired raised.
        """
        output = [Path(self._folder.name, name) for name in ("stdout", "stderr")]
        self._send(
            root=str(root), module=module, arguments=arguments, env=dict(env), output=[*map(str, output)]
        )
        pid = self._answer()
        hung = threading.Event()

        def kill() -> None:
            hung.set()
            _kill(pid)

        timer = threading.Timer(longest, kill)
        timer.start()
        try:
            code = self._answer()
        finally:
            timer.cancel()
        if hung.is_set():
            raise subprocess.TimeoutExpired([module, *arguments], longest)
        stdout, stderr = (path.read_text(errors="replace") for path in output)
        return subprocess.CompletedProcess([module, *arguments], code, stdout, stderr)

    def _send(self, **request: object) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()

    def _answer(self) -> int:
        assert self._process is not None
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the fork server has ended"
        return int(line)


def _kill(pid: int) -> None:
    """Kill a child and what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


# -- in the server and its children --------------------------------------------------------------------------


def serve() -> None:
    """Run what stdin asks for, a line for each, until it ends. Tells a child's process id and then its exit
    code, negative for a signal.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: sys.exit())
    for name in PRELOADED:
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork takes no thread along"
    gc.collect()
    gc.freeze()  # a child would copy what a collection writes to
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            code = _child(json.loads(line))
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)  # to take the interpreter down in order costs more than all of a fork
        with contextlib.suppress(PermissionError):  # whoever comes first: it may be killed from now on
            os.setpgid(pid, pid)
        try:
            print(pid, flush=True)
            _, status = os.waitpid(pid, 0)
        finally:
            _kill(pid)
        print(os.waitstatus_to_exitcode(status), flush=True)


def _child(request: dict[str, Any]) -> int:
    """Become what `python -m` would start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    stdout, stderr = (
        os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600) for path in request["output"]
    )
    for wanted, number in ((null, 0), (stdout, 1), (stderr, 2)):
        os.dup2(wanted, number)
    try:
        random.seed()
        os.environ.clear()
        os.environ.update(request["env"])
        os.chdir(request["root"])
        sys.path.insert(0, request["root"])
        here = {path.stem for path in Path(request["root"]).iterdir()}
        loaded = here.intersection(name.partition(".")[0] for name in sys.modules)
        assert not loaded, f"loaded before the fork: {sorted(loaded)}"
        return _run(request["module"], request["arguments"])
    except BaseException:
        traceback.print_exc()
        return BROKE


class Fixtures:
    """A pytest plugin. `failed`: a test was not run, or not cleaned up after: then it says nothing."""

    failed = False

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed |= report.failed and report.when != "call"


def _run(module: str, arguments: list[str]) -> int:
    if module == "pytest":
        import pytest
        import pytest_asyncio.plugin
        from hypothesis import Phase, settings

        # The first example will do, and has to be found each time.
        settings.register_profile(
            "noticing", settings(), phases=(Phase.explicit, Phase.generate), derandomize=True
        )
        settings.load_profile("noticing")
        # pytest warns of a plugin that it finds by itself and that is imported already.
        os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
        fixtures = Fixtures()
        plugins = [pytest_asyncio.plugin, importlib.import_module("pytest_timeout"), fixtures]
        code = int(pytest.main(arguments, plugins=plugins))
        return BROKE if fixtures.failed else code
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
            return BROKE
        return ended.code or 0
    return 0


if __name__ == "__main__":
    serve()
