"""`make install` in folders as people have them, and what CI does with a test that failed.
Python is a stand-in here, that notes what it is asked for.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.stackfixture import ROOT

PYTHON = """#!/bin/sh
printf '%s\\n' "$*" >> "$NOTES"
case "$*" in
"-m venv --clear .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python;;
"-m pip config list") printf '%s' "$PIP_SETTINGS";;
"-m pip install "*" -r .venv/uv.txt") test -n "$A_UV" && cp "$A_UV" .venv/bin/uv;;
esac
"""

UV = """#!/bin/sh
printf '%s\\n' "uv $* ${UV_NO_CACHE:+without a cache}" >> "$NOTES"
case "$1" in
cache) echo "$CACHE";;
venv) mkdir -p .venv/bin && cp "$4" .venv/bin/python;;
pip) exit "${UV_FAILS:-0}";;
esac
"""


class Clone:
    """What of a clone `make install` looks at, below `name` in a folder that everybody may enter."""

    def __init__(self, place: Path, name: str) -> None:
        self.place = place
        self.folder = place / name
        self.notes = place / "notes"
        (self.folder / ".ci").mkdir(parents=True)
        for file in ("Makefile", "requirements.txt", "pyproject.toml", ".ci/run"):
            shutil.copy(ROOT / file, self.folder / file)
        self.python = place / "my python" / "python3"
        self.python.parent.mkdir()
        self.python.write_text(PYTHON)
        self.python.chmod(0o755)
        (place / "bin").mkdir()
        # Not uv, which this machine may have.
        for tool in ("cat", "cp", "grep", "make", "mkdir", "rm", "sed", "sh"):
            (place / "bin" / tool).symlink_to(str(shutil.which(tool)))

    def install(self, uid: int | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Run it, as another user if need be."""
        return self.make("install", uid, **env)

    def make(self, target: str, uid: int | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Make a target, as another user if need be."""
        self.notes.touch()
        return subprocess.run(
            ["make", target, f"PYTHON={self.python}"],
            cwd=self.folder,
            env={"PATH": str(self.place / "bin"), "NOTES": str(self.notes), **env},
            user=uid,
            capture_output=True,
            text=True,
            check=False,
        )

    @property
    def environments(self) -> int:
        """How many virtual environments were made."""
        return self.notes.read_text().splitlines().count("-m venv --clear .venv")


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that everybody may enter: pytest's own is private."""
    with tempfile.TemporaryDirectory(prefix="orders-test-make-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder).resolve()


@pytest.mark.parametrize(
    "name", ["plain", "Bestellungen größe 1", 'it\'s $HOME "`x`"', "very/" + "long/" * 60]
)
def test_any_folder_will_do_and_twice_is_once(place: Path, name: str) -> None:
    clone = Clone(place, name)
    for _ in range(2):
        done = clone.install()
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
    assert (clone.folder / ".venv" / ".installed").read_text() == str(clone.folder)
    assert clone.environments == 1


def test_an_environment_from_elsewhere_or_without_its_python_is_made_anew(place: Path) -> None:
    clone = Clone(place, "first")
    assert clone.install().returncode == 0
    clone.folder = clone.folder.rename(place / "second")
    assert clone.install().returncode == 0
    assert clone.environments == 2
    (clone.folder / ".venv" / "bin" / "python").unlink()
    assert clone.install().returncode == 0
    assert clone.environments == 3


def test_uv_does_without_a_cache_where_there_is_no_home(place: Path) -> None:
    clone = Clone(place, "first")
    uv = place / "bin" / "uv"
    uv.write_text(UV)
    uv.chmod(0o755)
    assert clone.install(CACHE=str(place / "cache")).returncode == 0
    assert "without a cache" not in clone.notes.read_text()
    (place / "file").touch()
    shutil.rmtree(clone.folder / ".venv")
    done = clone.install(CACHE=str(place / "file" / "uv"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "uv venv -q --python " + str(clone.python) + " .venv without a cache" in clone.notes.read_text()


@pytest.mark.parametrize(
    ("env", "by_pip"),
    [
        ({}, False),
        ({"PIP_SETTINGS": "global.cert='/etc/ssl/ca.pem'\n"}, False),
        ({"PIP_SETTINGS": "global.index-url='https://packages.example/simple'\n"}, True),
        ({"UV_FAILS": "2"}, True),
        ({"A_UV": ""}, True),
    ],
)
def test_without_uv_pip_fetches_it_and_does_the_rest_where_it_fails(
    place: Path, env: dict[str, str], by_pip: bool
) -> None:
    clone = Clone(place, "first")
    uv = place / "uv"
    uv.write_text(UV)
    uv.chmod(0o755)
    done = clone.make("install", None, **{"CACHE": str(place / "cache"), "A_UV": str(uv), **env})
    assert (done.returncode, done.stderr) == (0, "")
    notes = clone.notes.read_text()
    assert ("--no-deps -r requirements.txt" in notes) is by_pip
    assert by_pip or "uv pip install -q --compile-bytecode" in notes
    assert by_pip or (clone.folder / ".venv" / "uv.txt").read_text().startswith("uv==")


def test_a_link_to_the_folder_is_the_folder(place: Path) -> None:
    clone = Clone(place, "first")
    assert clone.install().returncode == 0
    (place / "link").symlink_to(clone.folder)
    clone.folder = place / "link"
    assert clone.install().returncode == 0
    assert clone.environments == 1


def test_a_colon_in_the_name_is_said_in_one_line(place: Path) -> None:
    refused(Clone(place, "a:b").install(), "has a colon in its name")


def test_a_folder_that_programs_are_not_run_from_is_said_in_one_line(place: Path) -> None:
    clone = Clone(place, "noexec")
    (clone.folder / ".ci" / "run").chmod(0o644)  # as every file looks where the mount says noexec
    refused(clone.install(), "Programs cannot be run from")


def test_a_folder_of_another_user_is_said_in_one_line(place: Path) -> None:
    clone = Clone(place, "theirs")
    clone.notes.touch()
    clone.notes.chmod(0o666)
    clone.folder.chmod(0o555)
    refused(clone.install(uid=other()), "cannot be written to by this user")


def test_an_environment_of_another_user_is_said_in_one_line(place: Path) -> None:
    clone = Clone(place, "first")
    assert clone.install().returncode == 0
    clone.folder = clone.folder.rename(place / "second")
    (clone.folder / ".venv").chmod(0o555)
    done = clone.install(uid=other())
    assert done.returncode == 2
    assert "this user cannot delete it" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    (clone.folder / ".venv").chmod(0o755)


TOOL = """#!/bin/sh
printf '%s\\n' "${0##*/} ${MAKEFLAGS-}" >> "$NOTES"
test "${0##*/}" = "$WRONG" || exit 0
left=60  # what is wrong is slow: others have time to begin meanwhile
while test $left != 0; do cat "$NOTES" > /dev/null; left=$((left - 1)); done
exit 1
"""


@pytest.mark.parametrize("target", ["check", "test"])
def test_what_is_wrong_fails_it_a_wrong_style_before_the_tests(place: Path, target: str) -> None:
    clone = Clone(place, "first")
    assert clone.install().returncode == 0
    tools = {"ruff", "yamllint", "lint-imports", "mypy", "pytest"}
    for tool in tools:
        file = clone.folder / ".venv" / "bin" / tool
        file.write_text(TOOL)
        file.chmod(0o755)
    for wrong in ("", *sorted(tools)):
        clone.notes.unlink()
        assert clone.make(target, WRONG=wrong).returncode == (2 if wrong else 0), wrong
        ran = {line.partition(" ")[0] for line in clone.notes.read_text().splitlines()}
        if wrong in ("", "pytest"):
            assert tools <= ran
            assert "pytest \n" in clone.notes.read_text(), "a make that tests start is one of its own"
        elif wrong != "mypy":
            assert "pytest" not in ran


def refused(done: subprocess.CompletedProcess[str], says: str) -> None:
    """One line of ours, and make's own."""
    assert done.returncode == 2
    ours, makes = done.stderr.splitlines()
    assert says in ours
    assert makes.startswith("make: ***")


def other() -> int:
    """A user without root's rights: nobody where root runs the tests, otherwise whoever does."""
    return pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()


CI_PYTEST = """#!/bin/sh
printf '%s\\n' "$#" "$@" >> "$NOTES"
test "$(grep -c '^tests/' "$NOTES")" -lt "$FAILS_AT"
"""


@pytest.mark.parametrize(
    ("failed", "fails_at", "rest", "code", "runs"),
    [
        ((), 9, 0, 2, 0),  # lint, say
        (("tests/unit/test_makefile.py::test_b[c d]",), 9, 0, 0, 3),
        (("tests/unit/test_makefile.py::test_b[c d]",), 9, 1, 1, 3),  # a wrong type beside it
        (("tests/unit/test_makefile.py::test_b[c d]",), 3, 0, 2, 3),
        (("tests/unit/test_makefile.py::test_b[c d]",), 1, 0, 2, 1),
        (tuple(f"tests/unit/test_makefile.py::test_{n}" for n in range(4)), 9, 0, 2, 0),
    ],
)
def test_ci_runs_a_few_failed_tests_again_alone(
    tmp_path: Path, failed: tuple[str, ...], fails_at: int, rest: int, code: int, runs: int
) -> None:
    for folder in (".ci", ".venv/bin", "bin", "new"):
        (tmp_path / folder).mkdir(parents=True)
    script = (ROOT / ".ci" / "run").read_text()
    lacks_one = script.replace("packages=(", "packages=(a-program-that-is-not-there ", 1)
    (tmp_path / ".ci" / "run").write_text(lacks_one)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    pytest_ = tmp_path / ".venv/bin/pytest"
    pytest_.write_text(CI_PYTEST)
    (tmp_path / "new/lastfailed").write_text(json.dumps(dict.fromkeys(failed, True)) if failed else "")
    make = tmp_path / "bin/make"
    make.write_text(
        "#!/bin/sh\nmkdir -p .pytest_cache/v/cache && cp new/lastfailed .pytest_cache/v/cache/"
        f"\n[ \"$*\" = 'lint layers types' ] && exit {rest}; exit 2\n"
    )
    apt = tmp_path / "bin/apt-get"
    apt.write_text('#!/bin/sh\necho "$*" >> "$NOTES.apt"; exit 100\n')
    for program in (make, pytest_, apt):
        program.chmod(0o755)
    notes = tmp_path / "notes"
    notes.touch()
    done = subprocess.run(
        ["bash", str(tmp_path / ".ci/run")],
        env={"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", "NOTES": str(notes), "FAILS_AT": str(fails_at)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert notes.read_text().splitlines() == [str(len(failed)), *failed] * runs
    assert all(name in done.stdout for name in failed) or not runs
    if os.geteuid() == 0:  # nothing is installed, and that changes nothing
        asked = notes.with_name("notes.apt").read_text().splitlines()
        assert asked == ["update"]
        assert "apt-get couldn't install a-program-that-is-not-there" in done.stdout
