"""What the image is made of is listed, and compared with advisories where their service can be reached."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.deploy.advisories import REQUIREMENTS, check
from tests.stackfixture import ROOT

PINS = dict(
    re.findall(r"^([a-z0-9][\w.-]*)(?:\[\w+\])?==(\S+)", REQUIREMENTS.read_text(), flags=re.MULTILINE)
)


@contextmanager
def service(package: str = "", status: int = 200) -> Iterator[tuple[str, dict[str, str]]]:
    """An advisory service that knows of one package; its URL, and what it has been asked about."""
    asked: dict[str, str] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked[query["package"]["name"]] = query["version"]
            affected = {"id": "PYSEC-1", "summary": "a hole", "affected": [], "schema_version": "1.6.0"}
            answer = {"vulns": [affected]} if query["package"]["name"] == package else {}
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", asked
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of one package. To read all of them with their hashes takes pip-audit seconds."""
    [pin] = re.findall(r"^aiohttp==.*?# via", REQUIREMENTS.read_text(), flags=re.MULTILINE | re.DOTALL)
    path = tmp_path_factory.mktemp("packages") / "one.txt"
    path.write_text(pin)
    return path


def test_every_package_is_asked_about(capsys: pytest.CaptureFixture[str]) -> None:
    with service() as (url, asked):
        assert check("--osv-url", url) == 0
    missing = PINS.keys() - asked.keys()
    assert asked.items() <= PINS.items()
    assert {name for name in missing if name not in only_elsewhere()} == set()
    assert "no known advisory" in capsys.readouterr().out


def only_elsewhere() -> set[str]:
    """Packages that are for other systems or versions of Python than this one."""
    return set(
        re.findall(r"^([a-z0-9][\w.-]*)(?:\[\w+\])?==\S+ ;", REQUIREMENTS.read_text(), flags=re.MULTILINE)
    )


def test_an_advisory_is_told(capsys: pytest.CaptureFixture[str], one: Path) -> None:
    with service("aiohttp") as (url, _):
        assert check("--osv-url", url, requirements=one) == 1
    output = capsys.readouterr().out
    assert "aiohttp" in output
    assert "PYSEC-1" in output


@pytest.mark.parametrize(("strict", "code"), [(False, 0), (True, 2)])
def test_a_service_that_is_away_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], one: Path, strict: bool, code: int
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))  # and nobody listens
        url = f"http://127.0.0.1:{probe.getsockname()[1]}/"
        assert check("--osv-url", url, strict=strict, requirements=one) == code
    says(capsys, "nothing was compared")


def test_a_service_that_fails_is_said_in_one_line(capsys: pytest.CaptureFixture[str], one: Path) -> None:
    with service(status=503) as (url, _):
        assert check("--osv-url", url, strict=True, requirements=one) == 2
    says(capsys, "nothing was compared")


def test_another_failure_isnt_taken_for_a_service_that_is_away(
    capsys: pytest.CaptureFixture[str], one: Path
) -> None:
    assert check("--no-such-option", requirements=one) == 2
    says(capsys, "pip-audit ended")


def says(capsys: pytest.CaptureFixture[str], text: str) -> None:
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert text in err


def test_the_list_of_components_has_every_package_with_its_hashes(tmp_path: Path) -> None:
    recipe = re.search(r"^sbom:.*?\n\n", (ROOT / "Makefile").read_text(), flags=re.MULTILINE | re.DOTALL)
    assert recipe
    command = recipe[0].split("$(BIN)/")[1].split("\n\techo")[0].replace("\\\n", " ").split()
    written = tmp_path / "sbom.json"
    command[command.index("--output-file") + 1] = str(written)
    assert command[0] == "python"
    subprocess.run([sys.executable, *command[1:]], cwd=ROOT, check=True)
    document = json.loads(written.read_text())
    assert document["bomFormat"] == "CycloneDX"
    assert document["metadata"]["component"]["name"] == "orders-stream"
    assert {each["name"]: each["version"] for each in document["components"]} == PINS
    assert all(each["externalReferences"][0]["hashes"] for each in document["components"])
