"""What is installed is what was looked at, and to import it speaks to nobody."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fix_tools import ROOT

_LISTS = sorted(
    path
    for path in [*ROOT.glob("requirements*.txt"), *ROOT.glob("*/requirements*.txt"),
                 *ROOT.glob("tests/**/requirements*.txt")]
    if not any(part.startswith(".") or part == "node_modules" for part in path.parts[1:])
)  # fmt: skip
_LOCKS = sorted(
    path
    for path in ROOT.glob("**/package-lock.json")
    if "node_modules" not in path.parts and ".tools" not in path.parts
)


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def test_there_are_lists_of_packages() -> None:
    assert {"requirements.txt", "requirements-dev.txt"} <= set(names(_LISTS))
    assert _LOCKS


@pytest.mark.parametrize("file", _LISTS, ids=names(_LISTS))
def test_every_package_has_one_version_and_a_hash_and_no_address(file: Path) -> None:
    text = file.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.match(r"[A-Za-z0-9._\[\]-]+==[^\s;]+", line), line
        assert re.search(r"--hash=sha256:[0-9a-f]{64}", line), line
    assert "://" not in text and "--index" not in text


@pytest.mark.parametrize("file", _LOCKS, ids=names(_LOCKS))
def test_every_package_of_node_has_one_version_and_a_hash_and_no_address(file: Path) -> None:
    packages = json.loads(file.read_text())["packages"]
    installed = {name: each for name, each in packages.items() if name}
    assert installed
    for name, each in installed.items():
        assert each.get("version"), name
        assert each.get("integrity", "").startswith("sha512-"), name
        assert "resolved" not in each, name


_NO_NETWORK = """
import socket, sys
def refuse(event, args):
    if event in {"socket.connect", "socket.bind", "socket.getaddrinfo", "socket.sendto",
                 "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn"}:
        raise SystemExit(f"{event} {args!r} while being imported")
sys.addaudithook(refuse)
import importlib, pkgutil
for package in sys.argv[1:]:
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, package + "."):
        if not module.name.endswith("__main__"):
            try:
                importlib.import_module(module.name)
            except ImportError as error:
                # What an extra would bring.
                print("left out", module.name, error)
try:
    socket.create_connection(("127.0.0.1", 1))
except SystemExit:
    print("done", len(sys.modules))
"""


@pytest.mark.parametrize("package", ["gateway", "pgsluice"])
def test_to_import_a_package_opens_no_connection_and_starts_no_process(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _NO_NETWORK, package],
        cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # The watch would have seen one: its own last try is refused.
    assert "done" in done.stdout, done.stdout + done.stderr
    left = [line for line in done.stdout.splitlines() if line.startswith("left out gateway")]
    assert left == []
