"""promtool, which checks Prometheus' rules and tries them on series. No Python package has it; Debian's
package prometheus does.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path


def problem() -> str | None:
    """Why promtool can't be used here, or None."""
    return (
        None
        if shutil.which("promtool")
        else "there is no promtool; on Debian and Ubuntu: apt install prometheus"
    )


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run it. Blocks until it ends, some seconds."""
    return subprocess.run(("promtool", *map(str, arguments)), capture_output=True, text=True, check=False)
