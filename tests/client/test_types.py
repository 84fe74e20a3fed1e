"""The types that the client promises, as mypy and pyright read them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pgsluice
import pytest

from tests.fix_tools import debian, python_environment

HERE = Path(__file__).parent
CLIENT = Path(pgsluice.__file__).parents[1]
USE = HERE / "typed_use.py"


def test_mypy_agrees(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores"]
    done = subprocess.run(
        [*command, f"--cache-dir={tmp_path}", "--python-version=3.11", "--config-file=", str(USE)],
        env={"MYPYPATH": str(CLIENT)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_client_has_the_types_of_its_oldest_python(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--strict", f"--cache-dir={tmp_path}"]
    config = Path(__file__).parents[2] / "pyproject.toml"
    done = subprocess.run(
        [
            *command,
            "--python-version=3.10",
            f"--config-file={config}",
            "-p",
            "pgsluice",
            "--follow-imports=silent",
        ],
        env={"MYPYPATH": f"{CLIENT}:{CLIENT.parent}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_pyright_agrees(tmp_path: Path) -> None:
    debian("node", "nodejs")
    python = python_environment(HERE / "requirements-conformance.txt")
    settings = {
        "include": [str(USE)],
        "extraPaths": [str(CLIENT)],
        "pythonVersion": "3.11",
        "typeCheckingMode": "strict",
        "reportUnnecessaryTypeIgnoreComment": "error",
        "enableTypeIgnoreComments": False,
    }
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    done = subprocess.run(
        [str(python), "-m", "pyright", "-p", str(tmp_path), "--pythonpath", str(python)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
