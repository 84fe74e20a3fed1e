"""What reads callers' bytes, and a fuzzer that is guided by coverage; `make fuzz` for longer."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fix_tools import ROOT, python_environment

pytestmark = pytest.mark.slow

SECONDS = int(os.environ.get("FUZZ_SECONDS", "5"))
TARGETS = ("authorization", "canonical", "bearer", "sql", "names", "values", "key")
SEEDS = {
    "authorization": b"AWS4-HMAC-SHA256 Credential=AK/20260101/eu-west-1/rds-data/aws4_request, "
    b"SignedHeaders=host;x-amz-date, Signature=" + b"0" * 64,
    "canonical": b"/a%20b/../c?b=2&a=1",
    "bearer": b"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.AAAA",
    "sql": b"with x as (select $a$it's$a$, E'\\'', U&\"d\\0061\" /* /* */ */) insert -- end\n",
    "names": b"select :a::int, ':b', \"x:y\", a[1:2], :b",
    "values": b'\x07["1.5", null, {"a": 1e400}]',
    "key": b"tester\0order-7",
}


@pytest.mark.parametrize("target", TARGETS)
def test_whatever_bytes_come_they_are_read_or_refused(
    target: str, tmp_path: Path, record_property: Any, capsys: Any
) -> None:
    python = python_environment(ROOT / "tests" / "faults" / "requirements-fuzz.txt")
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (corpus / "seed").write_bytes(SEEDS[target])
    # The packages of this environment beside the fuzzer's own: both are of one Python.
    packages = [path for path in sys.path if "site-packages" in path]
    done = subprocess.run(
        [str(python), "-m", "tests.faults.fuzz", target, f"-max_total_time={SECONDS}",
         "-timeout=10", "-rss_limit_mb=1024", f"-artifact_prefix={tmp_path}/", str(corpus)],
        cwd=ROOT, env={"PYTHONPATH": os.pathsep.join([str(ROOT), *packages]),
                       "PATH": os.environ["PATH"]},
        capture_output=True, text=True, timeout=SECONDS + 120, check=False,
    )  # fmt: skip
    found = "\n".join(repr(path.read_bytes()[:500]) for path in tmp_path.glob("*-*"))
    assert done.returncode == 0, f"{done.stdout[-2000:]}{done.stderr[-3000:]}\n{found}"
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs is not None and int(runs[1]) > 100, done.stderr[-2000:]
    # Guided: it has seen which ways through the code its inputs take.
    covered = re.findall(r"cov: (\d+)", done.stderr)
    assert covered and int(covered[-1]) > 8, done.stderr[-2000:]
    record_property("runs", int(runs[1]))
    with capsys.disabled():
        sys.stdout.write(f"\n{target}: {int(runs[1]):,} inputs, nothing found\n")
