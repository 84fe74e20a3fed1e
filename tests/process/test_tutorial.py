"""The tutorial, done as it says: in a shell, against a gateway with a database of its own."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from gateway.cli import embedded
from tests.deploy.test_validators import cfn_lint
from tests.deploy.test_watching import EXPRESSIONS
from tests.fix_gateway import until
from tests.fix_tools import debian

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
[WATCH] = re.findall(r"^## Watch it\n.*?(?=^## )", PAGE, re.DOTALL | re.MULTILINE)
TEXT = PAGE.replace(WATCH, "")
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
LAYER = "pgsluice-layer.zip"


def blocks(kind: str, page: str = TEXT) -> list[str]:
    return [text for _, found, text in BLOCK.findall(page) if found == kind]


def write(home: Path, kind: str) -> list[str]:
    """Blocks that begin with the name of a file become that file; the others are returned."""
    rest = []
    for text in blocks(kind):
        name = re.match(r"# ([\w/.]+)\n", text)
        if name is None:
            rest.append(text)
        else:
            (home / name[1]).parent.mkdir(exist_ok=True)
            (home / name[1]).write_text(text)
    return rest


def answers_on(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """Where somebody stands who has typed `make run` in another shell."""
    folder = Path(tempfile.mkdtemp(prefix="pgsluice-tutorial-"))
    folder.chmod(0o711)
    for name in ("client", "deploy"):
        (folder / name).symlink_to(ROOT / name)
    port, log = embedded.free_port(), folder / "log"
    serving = [sys.executable, "-m", "gateway", "dev", "--port", str(port), "--admin-port", "0"]
    with log.open("w") as output:
        process = subprocess.Popen(
            [*serving, "--data", str(folder / ".pgsluice")],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        until(lambda: process.poll() is not None or answers_on(port), "nothing listens")
        assert process.poll() is None, log.read_text()
        yield folder
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def answers(home: Path) -> list[str]:
    """What each command of the shell's blocks printed, one line each."""
    debian("curl", "curl")
    done = subprocess.run(
        ["/bin/sh", "-eu", "-c", "\n".join(write(home, "sh"))],
        cwd=home,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.replace("}{", "}\n{").splitlines()


def test_what_is_asked_in_the_shell_is_answered(answers: list[str]) -> None:
    who, read, made, wrote, refused, batch, deleted, rolled_back = (
        json.loads(line) for line in answers if line.startswith("{")
    )
    assert who["subject"] == "dev"
    assert len(read["rows"]) == 2
    assert made["command"] == "CREATE TABLE"
    assert wrote["rows"] == [[1]]
    facts = ("sqlstate", "column", "outcome", "retry")
    assert [refused[name] for name in facts] == ["23502", "text", "not_executed", "never"]
    assert batch["results"][1]["rows"] == [["hello!"]]
    assert deleted["row_count"] == 1
    assert rolled_back == {"status": "rolled_back"}


def run(home: Path, *command: str) -> str:
    done = subprocess.run(
        ["/bin/sh", "-eu", "-c", '. .pgsluice/env; exec "$@"', "sh", *command],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_python_sees_what_the_shell_wrote_and_the_function_runs_from_the_layer(
    home: Path, answers: list[str]
) -> None:
    (first,) = write(home, "python")
    printed = run(home, sys.executable, "-c", f"import sys; sys.path.insert(0, 'client')\n{first}")
    assert "hello!" in printed and "from Python" in printed
    # As Lambda does: the function and the layer, nothing else.
    path = f"import sys; sys.path[:0] = ['.', '{LAYER}/python']; import runpy; "
    printed = run(home, sys.executable, "-I", "-S", "-c", path + "runpy.run_path('call.py')")
    good, bad = printed.splitlines()
    assert "'statusCode': 201" in good and "from a function" in good
    assert bad == "{'statusCode': 400, 'body': 'a note needs a text'}"


def test_the_rule_of_the_function_is_one_of_the_deployed_gateway() -> None:
    (rule,) = tomllib.loads("\n".join(blocks("toml")))["policy"]
    deployed = tomllib.loads((ROOT / "deploy/aws/gateway.toml").read_text(encoding="utf-8"))
    changed = {"name": rule["name"], "principals": rule["principals"]}
    assert rule == {**deployed["policy"][0], **changed}


@pytest.mark.slow
def test_sam_takes_the_template(home: Path, answers: list[str]) -> None:
    write(home, "yaml")
    write(home, "python")
    done = cfn_lint(home / "template.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (home / LAYER).exists() and (home / "notes" / "handlers.py").exists()


def asked(port: int, path: str, **query: str) -> Any:
    """What Prometheus answers."""
    found = httpx2.get(f"http://127.0.0.1:{port}/api/v1/{path}", params=query, timeout=60).json()
    assert found["status"] == "success", found
    return found["data"]


@pytest.mark.slow
def test_prometheus_shows_what_was_done_and_takes_rules_and_dashboard(
    home: Path, answers: list[str]
) -> None:
    debian("prometheus")
    first, second = blocks("sh", WATCH)
    port = embedded.free_port()
    prometheus = subprocess.Popen(
        ["/bin/sh", "-eu", "-c", first.replace("9091", str(port))],
        cwd=home, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        until(lambda: answers_on(port), "Prometheus does not listen")
        scraped = 'pgsluice_requests_total{operation="execute",status="200"}'
        until(lambda: bool(asked(port, "query", query=scraped)["result"]), "nothing is collected")
        said = run(home, "sh", "-eu", "-c", second.replace("9091", str(port)))
        requests, slowest, alerts = (
            json.loads(line)["data"]["result"] for line in said.splitlines()
        )
        counts = {
            (each["metric"]["operation"], each["metric"]["status"]): float(each["value"][1])
            for each in requests
        }
        assert counts["execute", "200"] >= 4
        assert counts["execute", "400"] >= 1
        assert counts["batch", "200"] >= 1
        assert float(slowest[0]["value"][1]) > 0
        assert alerts == []
        until(
            lambda: {
                rule["health"]
                for group in asked(port, "rules")["groups"]
                for rule in group["rules"]
            } == {"ok"},
            "a rule cannot be evaluated",
        )  # fmt: skip
        for expression in EXPRESSIONS.values():
            # As Grafana sends it, with its variables filled in.
            text = expression.replace("$__rate_interval", "1m").replace("$__range", "1m")
            if "<<" not in text:
                asked(port, "query", query=re.sub(r"\$(node|target)", ".*", text))
    finally:
        prometheus.terminate()
        prometheus.wait()
