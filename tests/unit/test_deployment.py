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

from cli import access
from settings import Settings
from tests.stackfixture import COMPOSE, PASSWORDS, ROOT, WITHOUT_LOGIN, images

DOCUMENT: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
SERVICES: dict[str, Any] = DOCUMENT["services"]


def _given(variable: re.Match[str]) -> str:
    """What has a default is left away, what hasn't is given."""
    return "given" if variable[1] == "?" else ""


@pytest.mark.parametrize("service", sorted(name for name, service in SERVICES.items() if "build" in service))
def test_every_variable_is_a_setting(service: str) -> None:
    values = {
        name: value for name, value in SERVICES[service]["environment"].items() if name.startswith("ORDERS_")
    }
    fields = {f"ORDERS_{name.upper()}" for name in Settings.model_fields}
    assert values.keys() <= fields
    plain = {
        name.removeprefix("ORDERS_").lower(): re.sub(r"\$\{\w+:([-?])[^}]*\}", _given, str(value))
        for name, value in values.items()
    }
    assert Settings.model_validate(plain).kafka in ("kafka:9092", "127.0.0.1:9094")


def test_the_topology_is_complete() -> None:
    assert {"kafka", "postgres", "postgres-replica", "redis", "init", "worker"} <= SERVICES.keys()
    assert SERVICES["worker"]["deploy"]["replicas"] == 2


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_services_restart_and_tell_their_health_and_stay_on_this_machine(service: str) -> None:
    definition = SERVICES[service]
    if service in ("init", "access", "access-to-tables", "orders"):
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
    assert not {"privileged", "cap_add", "pid", "devices"} & definition.keys()
    assert definition.get("network_mode", "service:kafka") == "service:kafka"


def test_what_is_written_has_a_volume_and_what_an_audit_leaves_stays() -> None:
    """The image's own file system is read-only."""
    volumes = {name: service["volumes"] for name, service in OURS.items() if "volumes" in service}
    assert volumes == {
        "worker": ["/data"],
        "bulk": ["/data"],
        "orders": ["commands:/data"],
        "init": ["commands:/data"],
    }
    # `docker compose down --volumes` removes what a service without a profile has.
    always = {name for name, service in SERVICES.items() if "profiles" not in service}
    mounted = {volume.split(":")[0] for name in always for volume in SERVICES[name].get("volumes", [])}
    assert DOCUMENT["volumes"].keys() <= mounted


def test_no_password_has_a_default_and_the_first_lines_make_each() -> None:
    text = COMPOSE.read_text()
    assert re.findall(r"\$\{(\w*PASSWORD):-", text) == []
    named = {f"{name}_PASSWORD" for name in re.findall(r"for name in ([\w ]+);", text)[0].split()}
    assert set(re.findall(r"\$\{(\w*PASSWORD):\?", text)) == named == set(PASSWORDS)


OURS = {name: service for name, service in SERVICES.items() if service["image"].startswith("orders-stream")}
USERS = {
    "init": "orders",
    "orders": "orders",
    "worker": "orders-worker",
    "bulk": "orders-bulk",
    "api": "orders-reader",
    "console": "orders-console",
}
"""Service -> its user on Kafka and on Postgres."""


def test_each_program_has_a_login_of_its_role_and_no_other_ones_password() -> None:
    assert OURS.keys() == {"access", "access-to-tables", *USERS}
    users = {user: name for name, user in access.PASSWORDS.items()}
    for name, user in USERS.items():
        used = OURS[name]["environment"]
        assert used["ORDERS_KAFKA_SECURITY_PROTOCOL"].startswith("SASL_")
        assert used["ORDERS_KAFKA_SASL_USERNAME"] == used["PGUSER"] == user
        own = used["PGPASSWORD"]
        assert own.startswith(f"${{{users[user]}:?")
        assert used["ORDERS_KAFKA_SASL_PASSWORD"] == own
        assert set(re.findall(r"\w+_PASSWORD", str(used))) == {
            users[user],
            "ORDERS_KAFKA_SASL_PASSWORD",
            "REDIS_PASSWORD",
        }
        for server in ("ORDERS_POSTGRES", "ORDERS_POSTGRES_REPLICA"):
            assert urlsplit(used[server]).username is None, "PGUSER has the last word"


def test_only_what_gives_rights_comes_in_as_who_may_and_runs_before_those_who_need_them() -> None:
    for name in ("access", "access-to-tables"):
        service = OURS[name]
        assert service["entrypoint"] == ["python", "-m", access.__name__]
        assert service["network_mode"] == "service:kafka"
        assert access.PASSWORDS.keys() <= service["environment"].keys()
        assert service["environment"]["PGUSER"] == "postgres"
    assert OURS["init"]["depends_on"].keys() == {"access"}
    assert OURS["access-to-tables"]["depends_on"].keys() == {"init"}
    for name in ("worker", "bulk", "api", "console"):
        done = OURS[name]["depends_on"]["access-to-tables"]["condition"]
        assert done == "service_completed_successfully"


def test_who_comes_to_kafka_from_elsewhere_logs_in_and_is_no_superuser() -> None:
    used = SERVICES["kafka"]["environment"]
    listeners = dict(each.split("://") for each in used["KAFKA_LISTENERS"].split(","))
    protocols = dict(each.split(":") for each in used["KAFKA_LISTENER_SECURITY_PROTOCOL_MAP"].split(","))
    assert listeners.keys() == protocols.keys()
    for name, address in listeners.items():
        if protocols[name] == "PLAINTEXT":
            assert address.startswith("127.0.0.1:"), name
        else:
            assert protocols[name] == "SASL_PLAINTEXT"
            module = used[f"KAFKA_LISTENER_NAME_{name}_SCRAM___SHA___512_SASL_JAAS_CONFIG"]
            assert module.endswith(".ScramLoginModule required;")
    assert used["KAFKA_AUTHORIZER_CLASS_NAME"].endswith(".StandardAuthorizer")
    assert used["KAFKA_SUPER_USERS"] == "User:ANONYMOUS"
    over = yaml.safe_load(WITHOUT_LOGIN.read_text())["services"]["kafka"]["environment"]
    [(name, value)] = over.items()
    assert value == used[name].replace("HOST:SASL_PLAINTEXT", "HOST:PLAINTEXT")


def test_nothing_is_put_into_a_container_that_is_read_only() -> None:
    """Docker Compose can't write a config's content there, and refuses to start it."""
    assert "configs" not in DOCUMENT
    assert "secrets" not in DOCUMENT


@pytest.mark.parametrize(
    ("service", "path"), [("worker", "ready"), ("bulk", "ready"), ("api", "ready"), ("console", "live")]
)
def test_a_service_is_asked_what_it_answers(service: str, path: str) -> None:
    port = SERVICES[service]["environment"]["ORDERS_METRICS_PORT"]
    assert f":{port}/{path}'" in SERVICES[service]["healthcheck"]["test"][-1]


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
    advertised = kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    names = {each.split("://")[0] for each in advertised} - {
        kafka["environment"]["KAFKA_INTER_BROKER_LISTENER_NAME"]
    }
    listeners = dict(each.split("://:") for each in kafka["environment"]["KAFKA_LISTENERS"].split(",")[:2])
    assert listeners.keys() == names
    assert set(re.findall(r"/dev/tcp/127\.0\.0\.1/(\d+)", kafka["healthcheck"]["test"][-1])) == set(
        listeners.values()
    )


UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))


def started_by_units() -> set[str]:
    """The commands that units start."""
    texts = "".join(path.read_text() for path in UNITS)
    return set(re.findall(r"^ExecStart=/opt/orders/bin/orders (\w+)", texts, flags=re.MULTILINE))


def test_what_runs_on_can_be_started_in_each_way() -> None:
    """The chart's parts, systemd's units and the services of docker-compose.yml are the same commands."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "deploy/helm/orders-stream/values.yaml").read_text())
    parts = {name for name, part in values.items() if isinstance(part, dict) and "replicas" in part}
    assert {"worker", "bulk", "api", "console"} == parts
    assert started_by_units() == parts - {"bulk"}, "a bulk worker is a worker with another role"
    on = {name: each for name, each in OURS.items() if each.get("restart") == "unless-stopped"}
    assert on.keys() == parts
    assert {each["command"][0] for each in on.values()} == started_by_units()


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
def test_compose_accepts_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    command = ("docker", "compose", "-f", str(COMPOSE), "config", "--quiet")
    for name in PASSWORDS:
        monkeypatch.setenv(name, "any")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    monkeypatch.delenv(PASSWORDS[0])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert f"{PASSWORDS[0]} is missing a value: make one" in done.stderr
