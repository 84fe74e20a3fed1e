"""What is deployed is what its validator takes; and the validator does not take everything."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fix_tools import ROOT, debian, python_environment

DEPLOY = ROOT / "deploy"
REQUIREMENTS = Path(__file__).with_name("requirements-validators.txt")
Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run(*command: str, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=300, **more)


def validator(name: str) -> str:
    """The path of a validator, in the environment that they have to themselves."""
    return str(python_environment(REQUIREMENTS).with_name(name))


def hadolint(file: Path) -> subprocess.CompletedProcess[str]:
    return run(validator("hadolint"), "--failure-threshold", "style", str(file))


def compose(file: Path) -> subprocess.CompletedProcess[str]:
    return run(validator("check-jsonschema"), "--builtin-schema", "vendor.compose-spec", str(file))


def cfn_lint(*files: Path) -> subprocess.CompletedProcess[str]:
    return run(validator("cfn-lint"), "--non-zero-exit-code", "informational", *map(str, files))


def kubernetes(file: Path) -> subprocess.CompletedProcess[str]:
    return run(validator("kubernetes-validate"), "--strict", str(file))


@pytest.mark.parametrize(
    ("check", "name", "good", "bad"),
    [
        pytest.param(hadolint, "Dockerfile", "WORKDIR /src", "RUN sudo true", id="Dockerfile"),
        pytest.param(
            compose, "compose.yaml", "restart: unless-stopped", "restrat: always", id="compose"
        ),
        pytest.param(
            cfn_lint,
            "aws/gateway.yaml",
            "StopTimeout: 45",
            "StopTimout: 45",
            id="CloudFormation",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            cfn_lint,
            "aws/function.yaml",
            "MemorySize: 256",
            "MemorySize: 25",
            id="SAM",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_the_validator_takes_the_file_and_no_file_with_a_fault(
    check: Run, name: str, good: str, bad: str, tmp_path: Path
) -> None:
    file = DEPLOY / name
    done = check(file)
    assert done.returncode == 0, done.stdout + done.stderr
    text = file.read_text()
    assert good in text
    faulty = tmp_path / file.name
    faulty.write_text(text.replace(good, bad, 1))
    assert check(faulty).returncode != 0


def test_cloudformation_knows_everything_in_the_templates() -> None:
    names = ("deploy/aws/gateway.yaml", "deploy/aws/function.yaml", "examples/lambda/template.yaml")
    done = cfn_lint(*(ROOT / name for name in names))
    assert done.returncode == 0, done.stdout + done.stderr


STYLE = (
    "{extends: default, rules: {line-length: disable, document-start: disable,"
    " braces: {max-spaces-inside: 0}, comments: {min-spaces-from-content: 1},"
    " truthy: {check-keys: false}}}"
)
YAML = sorted(
    path
    for folder in ("deploy", "examples", ".")
    for kind in ("*.yaml", "*.yml")
    for path in ((ROOT / folder).glob(kind if folder == "." else f"**/{kind}"))
)


def test_yamllint_finds_no_fault_and_would_find_one(tmp_path: Path) -> None:
    assert len(YAML) > 10
    lint = validator("yamllint"), "--strict", "-d", STYLE
    done = run(*lint, *map(str, YAML))
    assert done.returncode == 0, done.stdout
    faulty = tmp_path / "faulty.yaml"
    faulty.write_text((DEPLOY / "compose.yaml").read_text() + "services: {}\n")
    assert "duplication of key" in run(*lint, str(faulty)).stdout


def test_shellcheck_finds_no_fault_in_any_script_and_would_find_one(tmp_path: Path) -> None:
    configs = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["configs"]
    login = tmp_path / "login.sh"
    login.write_text("#!/bin/sh\n" + configs["login"]["content"].replace("$$", "$"))
    check = validator("shellcheck")
    done = run(check, str(ROOT / ".ci/run"), str(login))
    assert done.returncode == 0, done.stdout
    login.write_text('#!/bin/sh\nif [ $1 = "" ]; then exit; fi\n')
    assert run(check, str(login)).returncode != 0


MANIFESTS = sorted(
    path
    for path in (DEPLOY / "kubernetes").glob("*.yaml")
    if path.name not in ("kustomization.yaml", "prometheus-adapter.yaml")
)


def rendered() -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is missing: install it to render deploy/kubernetes")
    done = run(kubectl, "kustomize", str(DEPLOY / "kubernetes"))
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def test_kubernetes_knows_everything_that_kustomize_makes(tmp_path: Path) -> None:
    made = tmp_path / "made.yaml"
    made.write_text(yaml.safe_dump_all(rendered()))
    done = kubernetes(made)
    assert done.returncode == 0, done.stdout + done.stderr
    faulty = tmp_path / "faulty.yaml"
    faulty.write_text(made.read_text().replace("readinessProbe", "readynessProbe"))
    assert kubernetes(faulty).returncode != 0


@pytest.mark.parametrize("manifest", MANIFESTS, ids=lambda path: path.stem)
def test_each_manifest_is_one_that_kustomization_names(manifest: Path) -> None:
    kustomization = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())
    assert manifest.name in kustomization["resources"]


def test_what_belongs_together_in_the_cluster_finds_each_other() -> None:
    made = {each["kind"]: each for each in rendered() if each["kind"] != "Service"}
    services = {
        each["metadata"]["name"]: each["spec"] for each in rendered() if each["kind"] == "Service"
    }
    deployment = made["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    for selector in (
        deployment["selector"]["matchLabels"],
        made["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        made["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        services["pgsluice"]["selector"],
        services["pgsluice-nodes"]["selector"],
    ):
        assert selector
        assert selector.items() <= labels.items()
    assert made["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"] == "pgsluice"
    assert services["pgsluice-nodes"]["clusterIP"] == "None"
    pod = deployment["template"]["spec"]
    [container] = pod["containers"]
    ports = {each["name"] for each in container["ports"]}
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        assert container[name]["httpGet"]["port"] in ports
    assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
    [config] = [each for each in pod["volumes"] if each["name"] == "config"]
    assert config["configMap"]["name"] == made["ConfigMap"]["metadata"]["name"]
    # SIGTERM comes after preStop, and SIGKILL after both and the drain.
    stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= stop + 25 + 5
    metrics = made["HorizontalPodAutoscaler"]["spec"]["metrics"]
    asked = [each["pods"]["metric"]["name"] for each in metrics if each["type"] == "Pods"]
    adapter = yaml.safe_load((DEPLOY / "kubernetes/prometheus-adapter.yaml").read_text())
    assert asked == [each["name"]["as"] for each in adapter["rules"]["custom"]]


def test_systemd_finds_no_fault_in_the_unit_and_little_exposed(tmp_path: Path) -> None:
    program = debian("systemd-analyze", "systemd")
    unit = tmp_path / "pgsluice.service"
    text = (DEPLOY / "pgsluice.service").read_text()
    unit.write_text(text.replace("/opt/pgsluice/bin/pgsluice", "/bin/true"))
    done = run(program, "verify", "--man=no", str(unit))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    unit.write_text(text.replace("NoNewPrivileges", "NoNewPriviliges"))
    assert "Unknown key" in run(program, "verify", "--man=no", str(unit)).stderr
    unit.write_text(text)
    exposed = run(program, "security", "--offline=true", "--no-pager", str(unit))
    found = re.search(r"Overall exposure level for \S+: ([\d.]+)", exposed.stdout)
    if found is None:
        pytest.skip(f"this systemd-analyze cannot judge a file: {exposed.stderr[-200:]}")
    # Of 10; a unit without any setting has 9.6. Each version knows more settings to ask for.
    assert float(found[1]) <= 1.5
    written = re.search(
        r"systemd-analyze (\d+): exposure ([\d.]+) of 10", (DEPLOY / "README.md").read_text()
    )
    assert written is not None
    if f"systemd {written[1]} " in run(program, "--version").stdout:
        assert found[1] == written[2]


def test_promtool_takes_the_configuration_of_prometheus(tmp_path: Path) -> None:
    promtool = debian("promtool", "prometheus")
    done = run(promtool, "check", "config", str(DEPLOY / "prometheus/prometheus.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
