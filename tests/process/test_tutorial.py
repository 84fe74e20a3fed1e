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

import pytest

from gateway.cli import embedded
from tests.deploy.test_validators import cfn_lint
from tests.fix_gateway import until
from tests.fix_tools import debian

pytestmark = pytest.mark.process
ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
LAYER = "pgsluice-layer.zip"


def blocks(kind: str) -> list[str]:
    return [text for _, found, text in BLOCK.findall(TEXT) if found == kind]


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
    (folder / "client").symlink_to(ROOT / "client")
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
