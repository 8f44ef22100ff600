"""The files in deploy/: valid, and consistent with the image and with each other."""

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from executor.parameters import ExecutorOptions, parse_executor_options

ROOT = Path(__file__).resolve().parent.parent
BASE = ROOT / "deploy" / "kubernetes" / "base"
TRAINING = ROOT / "deploy" / "kubernetes" / "training"
MANIFESTS = sorted(file for file in BASE.glob("*.yaml") if file.name != "kustomization.yaml")
WHOLE = [*MANIFESTS, TRAINING / "access.yaml", TRAINING / "jobs.yaml", TRAINING / "job.yaml"]  # the others are patches
COMPOSE = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def resources() -> list[dict[str, Any]]:
    return [resource for file in MANIFESTS for resource in yaml.safe_load_all(file.read_text())]


def of_kind(kind: str) -> list[dict[str, Any]]:
    return [resource for resource in resources() if resource["kind"] == kind]


def pods() -> list[dict[str, Any]]:
    return [workload["spec"]["template"] for workload in (*of_kind("StatefulSet"), *of_kind("Deployment"))]


def commands() -> list[list[str]]:
    """The command line of every container, in Kubernetes and in compose."""
    containers = [container for pod in pods() for container in pod["spec"]["containers"]]
    services = COMPOSE["services"].values()
    return [each["command"] + each["args"] for each in containers] + [
        each["entrypoint"] + each["command"] for each in services
    ]


def test_kustomize_names_every_file() -> None:
    base = yaml.safe_load((BASE / "kustomization.yaml").read_text())
    assert sorted(base["resources"]) == [file.name for file in MANIFESTS]
    gpu = ROOT / "deploy" / "kubernetes" / "gpu"
    patched = yaml.safe_load((gpu / "writer.yaml").read_text())
    assert (patched["kind"], patched["metadata"]["name"]) in {
        (resource["kind"], resource["metadata"]["name"]) for resource in resources()
    }
    assert yaml.safe_load((gpu / "kustomization.yaml").read_text())["patches"] == [{"path": "writer.yaml"}]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands_name_options_that_there_are(command: list[str]) -> None:
    assert command[:4] == ["python", "-m", "executor", "serve"]
    names = [re.sub(r"=.*", "", argument).removeprefix("--").replace("-", "_") for argument in command[4:]]
    assert set(names) - {"workspace"} <= ExecutorOptions.model_fields.keys()
    role = next(argument.partition("=")[2] for argument in command if argument.startswith("--role"))
    assert ("publish_to" in names, "serve_from" in names) == {"train": (True, False), "serve": (False, True)}[role]


def test_there_is_one_writer_and_it_is_never_doubled() -> None:
    (writer,) = of_kind("StatefulSet")
    assert writer["spec"]["replicas"] == 1
    assert writer["spec"]["serviceName"] in {service["metadata"]["name"] for service in of_kind("Service")}
    assert "deploy" not in COMPOSE["services"]["writer"]


def test_selectors_find_the_pods() -> None:
    labels = [pod["metadata"]["labels"] for pod in pods()]
    selectors = [workload["spec"]["selector"]["matchLabels"] for workload in of_kind("Deployment")]
    selectors += [service["spec"]["selector"] for service in of_kind("Service")]
    selectors += [budget["spec"]["selector"]["matchLabels"] for budget in of_kind("PodDisruptionBudget")]
    selectors += [policy["spec"]["podSelector"]["matchLabels"] for policy in of_kind("NetworkPolicy")]
    for selector in selectors:
        assert any(selector.items() <= each.items() for each in labels), selector


@pytest.mark.parametrize("pod", pods(), ids=lambda pod: pod["metadata"]["labels"]["role"])
def test_pods_fit_the_image(pod: dict[str, Any]) -> None:
    (container,) = pod["spec"]["containers"]
    (port,) = {port["containerPort"] for port in container["ports"]}
    assert f"--http-port={port}" in container["args"]
    assert "--http-host=0.0.0.0" in container["args"]  # 127.0.0.1 is no other pod's
    user = re.search(r"useradd .*--uid (\d+)", DOCKERFILE)
    assert user is not None
    assert pod["spec"]["securityContext"]["runAsUser"] == int(user[1])
    assert pod["spec"]["securityContext"]["fsGroup"] == int(user[1])  # else the volume is root's
    volumes = re.search(r"^VOLUME (.+)$", DOCKERFILE, re.MULTILINE)
    assert volumes is not None
    assert container["volumeMounts"][0]["mountPath"] in volumes[1].split()
    assert {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness")} == {"/healthz"}
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_the_token_is_a_secret_and_never_a_value() -> None:
    for pod in pods():
        (container,) = pod["spec"]["containers"]
        (token,) = [each for each in container["env"] if each["name"] == "FINETUNER_TOKEN"]
        assert "secretKeyRef" in token["valueFrom"]
    for service in COMPOSE["services"].values():
        assert service["environment"]["FINETUNER_TOKEN"].startswith("${FINETUNER_TOKEN:?")


def test_volumes_of_compose_can_be_written_by_the_user_of_the_image() -> None:
    for service in COMPOSE["services"].values():
        for volume in service["volumes"]:
            assert re.search(rf"VOLUME .*{volume.split(':')[1]}", DOCKERFILE)


def test_a_writer_whose_runs_are_trained_by_jobs_is_the_writer_with_two_options_more() -> None:
    overlay = yaml.safe_load((TRAINING / "kustomization.yaml").read_text())
    assert {*overlay["resources"]} == {"../base", "access.yaml", "jobs.yaml"}
    assert all((TRAINING / file).exists() for file in overlay["configMapGenerator"][0]["files"])
    patch = yaml.safe_load((TRAINING / "writer.yaml").read_text())
    (writer,) = of_kind("StatefulSet")
    assert patch["metadata"]["name"] == writer["metadata"]["name"]
    (patched,), (container,) = (each["spec"]["template"]["spec"]["containers"] for each in (patch, writer))
    assert patched["name"] == container["name"]
    assert patched["args"][: len(container["args"])] == container["args"]
    more = dict(argument.removeprefix("--").split("=", 1) for argument in patched["args"][len(container["args"]) :])
    options = parse_executor_options({name.replace("-", "_"): value for name, value in more.items()})
    assert options.train_jobs in {mount["mountPath"] for mount in patched["volumeMounts"]}
    assert options.train_command is not None
    assert options.train_command.split()[1] == "/training/launch.py"


def test_the_job_of_a_run_fits_the_image_the_volume_and_the_other_manifests() -> None:
    job = yaml.safe_load((TRAINING / "job.yaml").read_text())
    spec = job["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    found = {resource["kind"]: resource for resource in yaml.safe_load_all((TRAINING / "jobs.yaml").read_text())}
    assert spec["subdomain"] == found["Service"]["metadata"]["name"]
    assert f"$(JOB_NAME)-0.{spec['subdomain']}:{found['Service']['spec']['ports'][0]['port']}" in " ".join(
        container["args"]
    )
    claim = found["PersistentVolumeClaim"]["metadata"]["name"]
    writer = yaml.safe_load((TRAINING / "writer.yaml").read_text())["spec"]["template"]["spec"]
    for pod in (spec, writer):
        assert [
            each["name"] for each in pod["volumes"] if each.get("persistentVolumeClaim", {}).get("claimName") == claim
        ]
    paths = [
        {m["name"]: m["mountPath"] for m in pod["containers"][0]["volumeMounts"]}["jobs"] for pod in (spec, writer)
    ]
    assert paths[0] == paths[1]  # the folder has one path on all machines
    labels = job["spec"]["template"]["metadata"]["labels"]
    for selector in (
        found["Service"]["spec"]["selector"],
        found["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        found["NetworkPolicy"]["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= labels.items()
    user = re.search(r"useradd .*--uid (\d+)", DOCKERFILE)
    assert user is not None
    assert spec["securityContext"]["runAsUser"] == int(user[1])
    assert (
        job["spec"]["completions"] == job["spec"]["parallelism"] == int(container["args"][0].removeprefix("--nnodes="))
    )


@pytest.mark.extra
@pytest.mark.process
@pytest.mark.parametrize("manifest", WHOLE, ids=lambda file: file.name)
def test_manifests_are_valid_by_the_strict_schema(manifest: Path) -> None:
    validate = ROOT / ".venv-extra" / "bin" / "kubernetes-validate"
    checked = subprocess.run([validate, "--strict", manifest], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
