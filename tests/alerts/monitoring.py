"""A real Prometheus and Alertmanager, as the runbook sets them up, but in less time.

A rule's `for` and its range windows are minutes; here they are a sixtieth, and everything is collected and
judged each second. Thresholds in seconds (of metrics named ..._seconds) are divided by `divisor`.
The rest of each expression is as it is.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from tests.stackfixture import ROOT
from tests.waiting import eventually

RULES: Final = ROOT / "deploy" / "prometheus" / "rules.yaml"
RUNBOOK: Final = ROOT / "docs" / "runbook" / "README.md"
FASTER: Final = 60
"""What `for` and range windows are divided by."""
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION: Final = r"(\d+)([smhd])"
_PROGRAMS: Final = ("prometheus", "prometheus-alertmanager")


def problem() -> str | None:
    """Why they can't be used here, or None."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    named = " and ".join(missing)
    return f"there is no {named}; on Debian and Ubuntu: apt install {' '.join(missing)}" if missing else None


def scaled(rules: dict[str, Any], divisor: float) -> dict[str, Any]:
    """A copy of a file of rules in less time. Pure."""

    def shorter(match: re.Match[str]) -> str:
        return f"{max(1, round(int(match[1]) * _UNITS[match[2]] / FASTER))}s"

    copy: dict[str, Any] = json.loads(json.dumps(rules))
    for rule in (rule for group in copy["groups"] for rule in group["rules"]):
        rule["expr"] = re.sub(
            rf"\[{_DURATION}\]", lambda match: f"[{re.sub(_DURATION, shorter, match[0][1:-1])}]", rule["expr"]
        )
        rule["expr"] = re.sub(
            r"(_seconds(?:\{[^}]*\})?\)? > )([1-9]\d*)",
            lambda match: f"{match[1]}{int(match[2]) / divisor:g}",
            rule["expr"],
        )
        if "for" in rule:
            rule["for"] = re.sub(_DURATION, shorter, rule["for"])
    return copy


def inhibitions() -> list[dict[str, Any]]:
    """What the runbook has Alertmanager mute."""
    text = RUNBOOK.read_text()
    begins = text.index("       inhibit_rules:")
    block = text[begins:].partition("\n\n")[0]
    return list(yaml.safe_load(block)["inhibit_rules"])


class Monitoring:
    """Both programs, and what they say. Made by `monitoring()`."""

    def __init__(self, prometheus: str, alertmanager: str) -> None:
        """Addresses, host:port."""
        self.prometheus = prometheus
        self.alertmanager = alertmanager

    async def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        answer = await _get(f"http://{self.prometheus}/api/v1/alerts")
        return {
            alert["labels"]["alertname"] for alert in answer["data"]["alerts"] if alert["state"] == "firing"
        }

    async def value(self, query: str) -> float | None:
        """What a query that has one result says; None: it has none."""
        answer = await _get(
            f"http://{self.prometheus}/api/v1/query?{urllib.parse.urlencode({'query': query})}"
        )
        result = answer["data"]["result"]
        return float(result[0]["value"][1]) if result else None

    async def broken(self) -> list[str]:
        """Rules that Prometheus can't evaluate, with what it says."""
        answer = await _get(f"http://{self.prometheus}/api/v1/rules")
        rules = [rule for group in answer["data"]["groups"] for rule in group["rules"]]
        return [f"{rule['name']}: {rule.get('lastError')}" for rule in rules if rule["health"] == "err"]

    async def muted(self) -> dict[str, bool]:
        """The alerts that have come to Alertmanager: whether all of a name are muted by another one."""
        muted: dict[str, bool] = {}
        for alert in await _get(f"http://{self.alertmanager}/api/v2/alerts"):
            name = alert["labels"]["alertname"]
            muted[name] = bool(alert["status"]["inhibitedBy"]) and muted.get(name, True)
        return muted


@asynccontextmanager
async def monitoring(
    folder: Path, targets: Mapping[str, list[str]], divisor: float
) -> AsyncIterator[Monitoring]:
    """Both programs on free ports, collecting from `targets` (job -> addresses); ended at the end.

    Their logs are in the folder. Blocks until both are ready, some seconds.
    """
    folder.mkdir(parents=True, exist_ok=True)
    here = Monitoring(address(), address())
    (folder / "rules.yml").write_text(
        yaml.safe_dump(scaled(yaml.safe_load(RULES.read_text()), divisor), width=1000)
    )
    jobs = [
        {"job_name": job, "static_configs": [{"targets": addresses}]} for job, addresses in targets.items()
    ]
    every = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    managers = {"alertmanagers": [{"static_configs": [{"targets": [here.alertmanager]}]}]}
    config = {"global": every, "rule_files": ["rules.yml"], "alerting": managers, "scrape_configs": jobs}
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    routes = {"route": {"receiver": "nobody", "group_wait": "1s"}, "receivers": [{"name": "nobody"}]}
    (folder / "alertmanager.yml").write_text(yaml.safe_dump({**routes, "inhibit_rules": inhibitions()}))
    listen = "--web.listen-address"
    commands = [
        ["prometheus", "--config.file=prometheus.yml", "--storage.tsdb.path=prometheus"],
        ["prometheus-alertmanager", "--config.file=alertmanager.yml", "--storage.path=alertmanager"],
    ]
    commands[0].append(f"{listen}={here.prometheus}")
    commands[1] += [f"{listen}={here.alertmanager}", "--cluster.listen-address="]
    running: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.log").open("wb") as log:
                running.append(subprocess.Popen(command, cwd=folder, stdout=log, stderr=log))
        for program, place in zip(running, (here.prometheus, here.alertmanager), strict=True):
            await eventually(lambda p=program, a=place: _ready(p, a), f"{place} is ready")  # type: ignore[misc]
        yield here
    finally:
        for program in running:
            program.send_signal(signal.SIGTERM)
        for program in running:
            await asyncio.to_thread(program.wait, 30)


def address() -> str:
    """A free one on 127.0.0.1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


async def _ready(program: subprocess.Popen[bytes], place: str) -> bool:
    assert program.poll() is None, f"{program.args!r} ended with {program.returncode}"
    try:
        await _read(f"http://{place}/-/ready")
    except (urllib.error.URLError, OSError):
        return False
    return True


async def _get(url: str) -> Any:
    return json.loads(await _read(url))


async def _read(url: str) -> bytes:
    def read() -> bytes:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return bytes(answer.read())

    return await asyncio.to_thread(read)
