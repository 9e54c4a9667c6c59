"""What of the container files can be checked without an engine: that they agree with the
code and with each other.
"""

from __future__ import annotations

import inspect
import re
import subprocess
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from operations.grants import grant_lines, grants
from settings import Settings
from tests.stackfixture import COMPOSE, ROOT, images

DOCUMENT: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
SERVICES: dict[str, Any] = DOCUMENT["services"]


@pytest.mark.parametrize("service", sorted(name for name, service in SERVICES.items() if "build" in service))
def test_every_variable_is_a_setting(service: str) -> None:
    values = {
        name: value for name, value in SERVICES[service]["environment"].items() if name.startswith("ORDERS_")
    }
    fields = {f"ORDERS_{name.upper()}" for name in Settings.model_fields}
    assert values.keys() <= fields
    plain = {
        name.removeprefix("ORDERS_").lower(): re.sub(r"\$\{\w+:[-?][^}]*\}", "", str(value))
        for name, value in values.items()
    }
    assert Settings.model_validate(plain).kafka == "kafka:9092"


def test_the_topology_is_complete() -> None:
    assert {"kafka", "postgres", "postgres-replica", "redis", "init", "worker"} <= SERVICES.keys()
    assert SERVICES["worker"]["deploy"]["replicas"] == 2


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_services_restart_and_tell_their_health_and_stay_on_this_machine(service: str) -> None:
    definition = SERVICES[service]
    if service == "init":
        assert definition["restart"] == "no"
    else:
        assert definition["restart"] == "unless-stopped"
        assert definition["healthcheck"]["test"][0] == "CMD"
    assert all(port.startswith("127.0.0.1:") for port in definition.get("ports", []))


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_services_have_no_rights_and_take_no_more_than_their_share(service: str) -> None:
    definition = SERVICES[service]
    assert definition["cap_drop"] == ["ALL"]
    assert definition["security_opt"] == ["no-new-privileges:true"]
    assert definition["deploy"]["resources"]["limits"].keys() == {"memory", "pids"}
    # Kafka's image writes its own configuration into itself.
    assert definition.get("read_only", False) is (service != "kafka")
    assert not {"privileged", "cap_add", "network_mode", "pid", "devices"} & definition.keys()


def test_no_password_has_a_default() -> None:
    text = COMPOSE.read_text()
    assert re.findall(r"\$\{(\w*PASSWORD):-", text) == []
    assert set(re.findall(r"\$\{(\w*PASSWORD):\?", text)) == {
        "POSTGRES_PASSWORD",
        "OWNER_PASSWORD",
        "REDIS_PASSWORD",
    }


def test_no_program_is_a_superuser_of_the_database() -> None:
    """In compose all have what `orders grants` prints for the role owner."""
    script = DOCUMENT["configs"]["owner"]["content"].splitlines()
    assert script[:2] == [
        "\\getenv password OWNER_PASSWORD",
        "CREATE ROLE \"orders\" LOGIN PASSWORD :'password';",
    ]
    assert script[2:] == grant_lines(grants("owner"), "orders")
    ours = [service for service in SERVICES.values() if service["image"].startswith("orders-stream")]
    assert len(ours) == 3
    for service in ours:
        used = service["environment"]
        for name in ("ORDERS_POSTGRES", "ORDERS_POSTGRES_REPLICA"):
            assert urlsplit(used[name]).username == "orders"
        assert used["PGPASSWORD"] == SERVICES["postgres"]["environment"]["OWNER_PASSWORD"]


def test_a_worker_is_asked_what_a_worker_answers() -> None:
    assert "/ready'" in SERVICES["worker"]["healthcheck"]["test"][-1]


def test_the_image_runs_as_a_user_without_rights_named_by_number() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert re.findall(r"^USER (.*)", text, flags=re.MULTILINE) == ["10001:10001"]
    assert re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE) == ["${PYTHON_IMAGE}"] * 2


def test_dependencies_exist_and_can_become_healthy() -> None:
    for name, service in SERVICES.items():
        for other, condition in service.get("depends_on", {}).items():
            assert other in SERVICES, f"{name} depends on {other}"
            if condition["condition"] == "service_healthy":
                assert "healthcheck" in SERVICES[other]


def test_images_are_pinned_to_the_versions_of_the_local_stack() -> None:
    from stack import jars

    named = images()
    assert named["kafka"] == f"apache/kafka:{jars.VERSION}"
    assert named["postgres"] == named["postgres-replica"] == "postgres:18"
    assert all(":" in image and not image.endswith(":latest") for image in named.values())


def test_the_worker_image_is_built_from_a_part_of_the_same_pinned_packages() -> None:
    def pins(name: str) -> set[str]:
        return set(
            re.findall(r"^[a-z0-9][\w.-]*(?:\[\w+\])?==\S+", (ROOT / name).read_text(), flags=re.MULTILINE)
        )

    assert pins("requirements-worker.txt") < pins("requirements.txt")
    assert "requirements-worker.txt" in (ROOT / "Dockerfile").read_text()
    assert "--require-hashes" in (ROOT / "Dockerfile").read_text()


def test_whatever_the_image_installs_is_pinned_by_hash() -> None:
    commands = re.split(r"&&|\n", (ROOT / "Dockerfile").read_text().replace("\\\n", ""))
    fetching = [
        command
        for command in commands
        if re.search(r"\bpip\b.* install ", command) and " /wheels/" not in command
    ]
    assert len(fetching) == 2
    assert all("--require-hashes" in command for command in fetching)
    [build] = [command for command in commands if "pip wheel" in command]
    assert "--no-deps" in build
    assert "--no-build-isolation" in build, "isolation fetches the newest build backend"
    [backend] = re.findall(
        r"^setuptools==.*?# via", (ROOT / "requirements.txt").read_text(), flags=re.MULTILINE | re.DOTALL
    )
    assert "--hash=sha256:" in backend


def test_kafka_is_healthy_once_every_listener_for_clients_answers() -> None:
    kafka = SERVICES["kafka"]
    listeners = dict(
        listener.split("://:") for listener in kafka["environment"]["KAFKA_LISTENERS"].split(",")
    )
    del listeners[kafka["environment"]["KAFKA_CONTROLLER_LISTENER_NAMES"]]
    assert set(re.findall(r"/dev/tcp/127\.0\.0\.1/(\d+)", kafka["healthcheck"]["test"][-1])) == set(
        listeners.values()
    )


UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


@pytest.mark.parametrize("path", UNITS, ids=[path.name for path in UNITS])
def test_units_start_what_there_is_with_settings_that_there_are(path: Path) -> None:
    unit = [line for line in path.read_text().splitlines() if "=" in line and not line.startswith("#")]
    settings = {f"ORDERS_{name.upper()}" for name in Settings.model_fields}
    examples = (ROOT / "deploy" / "systemd" / "orders.env").read_text()
    named = re.findall(r"^(ORDERS_\w+)=", examples, flags=re.MULTILINE)
    named += re.findall(r"(?<![\w/])(ORDERS_\w+)=", "\n".join(unit))
    assert "ORDERS_KAFKA" in named
    assert set(named) <= settings
    [started] = [line.removeprefix("ExecStart=") for line in unit if line.startswith("ExecStart=")]
    program, command, *options = started.split()
    assert program == "/opt/orders/bin/orders"
    accepted = inspect.signature(getattr(import_module(f"cli.{command}"), f"{command}_command")).parameters
    assert {option.removeprefix("--") for option in options if option.startswith("--")} <= accepted.keys()
    assert {"NoNewPrivileges=yes", "CapabilityBoundingSet=", "ProtectSystem=strict", "User=orders"} <= {*unit}


def test_the_build_context_holds_every_package() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(re.findall(r"requirements[\w.-]*\.txt", (ROOT / "Dockerfile").read_text())) <= allowed
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {pattern.rstrip("*") for pattern in project["packages"]["find"]["include"]}
    assert packages | {f"{module}.py" for module in project["py-modules"]} <= allowed


def test_requirements_name_no_host_and_pin_by_hash() -> None:
    for name in ("requirements.txt", "requirements-worker.txt"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        for block in re.split(r"\n(?=[a-z0-9])", text):
            assert "--hash=sha256:" in block


@pytest.mark.containers
def test_compose_accepts_the_file() -> None:
    done = subprocess.run(
        ("docker", "compose", "-f", str(COMPOSE), "config", "--quiet"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
