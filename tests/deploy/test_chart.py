"""The Helm chart: helm takes it, Kubernetes' schemas take what it makes, and the code knows its settings."""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from settings import SECRET_FILES, Settings
from tests.deploy.helm import helm
from tests.stackfixture import ROOT

pytestmark = pytest.mark.helm

CHART: Final = ROOT / "deploy" / "helm" / "orders-stream"
EVERYTHING: Final = Path(__file__).with_name("everything.yaml")
KUBERNETES: Final = ("1.35", "1.36", "1.37")
"""The three newest versions."""
VALUES: Final[dict[str, tuple[str, ...]]] = {
    "defaults": (),
    "everything": ("-f", str(EVERYTHING)),
    "its own account": ("-f", str(EVERYTHING), "--set", "serviceAccount.create=true"),
    "ephemeral": ("--set", "worker.persistence.enabled=false"),
    "nothing": ("--set", "worker.enabled=false,migrate.enabled=false,networkPolicy.enabled=false"),
    "bulk alone": ("--set", "bulk.enabled=true,worker.enabled=false"),
}  # fmt: skip
OTHERS: Final = frozenset({"ServiceMonitor", "PrometheusRule"})
"""Kinds of which Kubernetes itself has no schema: of the Prometheus operator."""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run((str(helm()), *arguments), capture_output=True, text=True, check=False)


def rendered(*values: str) -> list[dict[str, Any]]:
    done = run("template", "shop", str(CHART), *values)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def pods(documents: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, Any]]]:
    for document in documents:
        if "template" in document.get("spec", {}):
            yield document["metadata"]["name"].rpartition("-")[2], document["spec"]["template"]["spec"]


def environment(pod: dict[str, Any]) -> dict[str, str]:
    [container] = pod["containers"]
    names = [each["name"] for each in container["env"]]
    assert len(names) == len(set(names))
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


@pytest.mark.parametrize("values", VALUES)
def test_helm_finds_nothing_to_say(values: str) -> None:
    done = run("lint", "--strict", str(CHART), *VALUES[values])
    assert done.returncode == 0, done.stdout
    assert "WARNING" not in done.stdout
    assert "ERROR" not in done.stdout


def test_the_versions_are_the_newest() -> None:
    utils = import_module("kubernetes_validate.utils")  # its import takes a second
    known = list(dict.fromkeys(utils.major_minor(version) for version in utils.all_versions()))
    assert tuple(known[-3:]) == KUBERNETES


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("values", VALUES)
def test_kubernetes_takes_it(values: str, version: str) -> None:
    documents = rendered("--kube-version", version, *VALUES[values])
    assert documents
    for document in documents:
        if document["kind"] not in OTHERS:
            import_module("kubernetes_validate").validate(document, version, strict=True)


def test_with_everything_on_every_part_is_there() -> None:
    documents = rendered(*VALUES["everything"])
    assert {(document["kind"], document["metadata"]["name"]) for document in documents} == {
        ("StatefulSet", "shop-worker"),
        ("Deployment", "shop-bulk"),
        ("Deployment", "shop-api"),
        ("Deployment", "shop-console"),
        ("Job", "shop-migrate"),
        ("Service", "shop-workers"),
        ("Service", "shop-api"),
        ("Service", "shop-console"),
        ("ServiceMonitor", "shop"),
        ("PrometheusRule", "shop"),
        ("NetworkPolicy", "shop"),
        *(("PodDisruptionBudget", f"shop-{part}") for part in ("worker", "bulk", "api", "console")),
    }


def test_api_and_console_are_reached_each_on_its_own_port_and_asked_on_the_metrics() -> None:
    """By whom its policy lets in. The console stays in service while Postgres is away, and shows it."""
    documents = rendered(*VALUES["everything"])
    [policy] = [each["spec"] for each in documents if each["kind"] == "NetworkPolicy"]
    allowed = {rule["ports"][0]["port"]: rule["from"][1:] for rule in policy["ingress"]}
    assert allowed["http"] != allowed["console"] == [{"podSelector": {"matchLabels": {"app": "proxy"}}}]
    probed = {"api": ["/live", "/live", "/ready"], "console": ["/live", "/live", "/live"]}
    [collected] = [
        each["spec"]["selector"] for each in documents if each["metadata"]["name"] == "shop-workers"
    ]
    for name, paths in probed.items():
        [container] = dict(pods(documents))[name]["containers"]
        [service] = [
            each["spec"]["ports"][0]
            for each in documents
            if each["kind"] == "Service" and each["metadata"]["name"] == f"shop-{name}"
        ]
        asked = [container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")]
        assert [(each["port"], each["path"]) for each in asked] == [("metrics", path) for path in paths]
        assert [each["name"] for each in container["ports"]] == [service["targetPort"], "metrics"]
        assert environment(dict(pods(documents))[name])["ORDERS_METRICS_PORT"] == "9100"
        [labels] = [
            each["spec"]["template"]["metadata"]["labels"]
            for each in documents
            if each["kind"] == "Deployment" and each["metadata"]["name"] == f"shop-{name}"
        ]
        assert collected.items() <= labels.items()
        assert container["args"][0] == name


def test_the_alerts_are_those_of_prometheus_file() -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())
    [alerts] = [each for each in rendered(*VALUES["everything"]) if each["kind"] == "PrometheusRule"]
    assert alerts["spec"] == rules
    assert alerts["metadata"]["labels"]["release"] == "prometheus"


@pytest.mark.parametrize("values", VALUES)
def test_no_pod_has_rights(values: str) -> None:
    for name, pod in pods(rendered(*VALUES[values])):
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        [container] = pod["containers"]
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]
        if name != "migrate":
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys()


@pytest.mark.parametrize("values", VALUES)
def test_what_is_mounted_is_a_volume_and_what_is_named_is_mounted(values: str) -> None:
    for document in rendered(*VALUES[values]):
        for _, pod in pods([document]):
            claims = {each["metadata"]["name"] for each in document["spec"].get("volumeClaimTemplates", ())}
            volumes = {volume["name"] for volume in pod["volumes"]} | claims
            [container] = pod["containers"]
            assert {mount["name"] for mount in container["volumeMounts"]} == volumes
            [files] = [volume for volume in pod["volumes"] if volume["name"] == "files"]
            paths = {
                path
                for source in files["projected"]["sources"]
                for kind in source.values()
                for path in ([kind["path"]] if "path" in kind else [item["path"] for item in kind["items"]])
            }
            named = {
                value.rpartition("/")[2]
                for value in environment(pod).values()
                if value.startswith("/etc/orders/files/")
            }
            assert paths - {"postgres_ca", "redis_ca"} == named


@pytest.mark.parametrize("values", VALUES)
def test_every_variable_is_a_setting_and_no_secret_is_in_one(values: str) -> None:
    fields = {f"ORDERS_{name.upper()}" for name in Settings.model_fields}
    secrets = {f"ORDERS_{name.upper()}" for name in SECRET_FILES}
    for _, pod in pods(rendered(*VALUES[values])):
        names = {name for name in environment(pod) if name.startswith("ORDERS_")}
        assert names <= fields
        assert not names & secrets


def test_a_file_is_given_by_its_path_as_its_setting_wants_it() -> None:
    """A path that is taken for the secret itself would be one that everybody knows."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    names = set(schema["$defs"]["files"]["propertyNames"]["enum"]) - {"postgres_ca", "redis_ca"}
    given = [environment(pod) for _, pod in pods(rendered(*VALUES["everything"]))]
    for name in names:
        variable = f"ORDERS_{name.upper()}" + ("_FILE" if f"{name}_file" in Settings.model_fields else "")
        paths = [each[variable] for each in given if variable in each]
        assert paths, f"{variable} isn't tried by everything.yaml"
        assert set(paths) == {f"/etc/orders/files/{name}"}


@pytest.mark.parametrize("name", SECRET_FILES)
def test_a_secret_among_the_settings_is_refused(name: str) -> None:
    done = run("template", "shop", str(CHART), "--set", f"settings.{name}=anything")
    assert done.returncode != 0
    assert f"settings.{name}: a secret or a file; it belongs into files" in done.stderr


def test_numbers_arrive_as_they_were_written() -> None:
    pod = dict(pods(rendered(*VALUES["everything"])))
    assert environment(pod["worker"])["ORDERS_PENDING_BYTES"] == "33554432"
    assert environment(pod["worker"])["ORDERS_COMMIT_INTERVAL"] == "0.5"
    assert environment(pod["worker"])["ORDERS_API_ACCESS_LOG"] == "false"


def test_each_part_has_files_and_settings_of_its_own() -> None:
    def secret(pod: dict[str, Any], name: str) -> str | None:
        [files] = [volume for volume in pod["volumes"] if volume["name"] == "files"]
        return next(
            (
                source["secret"]["name"]
                for source in files["projected"]["sources"]
                if "secret" in source and source["secret"]["items"][0]["path"] == name
            ),
            None,
        )

    pod = dict(pods(rendered(*VALUES["everything"])))
    assert {name: secret(each, "postgres") for name, each in pod.items()} == {
        "worker": "orders-postgres-worker",
        "bulk": "orders-postgres-worker",
        "api": "orders-postgres-reader",
        "console": "orders-postgres-console",
        "migrate": "orders-postgres-owner",
    }
    assert secret(pod["worker"], "postgres_replica") is None
    assert secret(pod["worker"], "api_keys") is None
    assert environment(pod["worker"])["ORDERS_POSTGRES_POOL"] == "8"
    assert "ORDERS_POSTGRES_POOL" not in environment(pod["api"])


@pytest.mark.parametrize(
    ("values", "role"),
    [((), "all"), (("--set", "bulk.enabled=true"), "realtime")],
    ids=["one", "two"],
)
def test_bulk_jobs_are_unpacked_by_somebody(values: tuple[str, ...], role: str) -> None:
    pod = dict(pods(rendered(*values)))
    assert pod["worker"]["containers"][0]["args"][-2:] == ["--role", role]


def test_the_image_is_the_projects_version_or_a_digest() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for _, pod in pods(rendered()):
        assert pod["containers"][0]["image"] == f"orders-stream:{version}"
    for _, pod in pods(rendered(*VALUES["everything"])):
        assert pod["containers"][0]["image"].startswith("registry.example/orders-stream@sha256:0123")


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ("api.enabled=true", "api: nobody could read: set api.files.api_keys"),
        ("console.enabled=true", "console: nobody could read: set console.files.api_keys"),
        (
            "console.enabled=true,console.replicas=2,console.settings.console_proxy_user=X-User",
            "set console.files.console_secret",
        ),
        ("settings.metrics_port=1", "metrics_port"),
        ("files.postgers.secret=a,files.postgers.key=b", "postgers"),
        ("worker.replica=3", "replica"),
        ("image.digest=sha256:12", "digest"),
    ],
)
def test_what_cannot_work_is_refused(values: str, says: str) -> None:
    done = run("template", "shop", str(CHART), "--set", values)
    assert done.returncode != 0
    assert says in done.stderr
    assert not done.stdout


def test_every_value_has_a_schema_and_every_file_a_setting() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert schema["properties"].keys() - {"global"} == values.keys()
    for part in (
        "worker",
        "bulk",
        "api",
        "console",
        "migrate",
        "networkPolicy",
        "serviceMonitor",
        "prometheusRule",
        "image",
    ):
        assert schema["properties"][part]["properties"].keys() == values[part].keys(), part
    named = set(schema["$defs"]["files"]["propertyNames"]["enum"]) - {"postgres_ca", "redis_ca"}
    assert named <= Settings.model_fields.keys()
    assert set(SECRET_FILES) <= named
