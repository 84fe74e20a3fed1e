"""`pgsluice query` and `pgsluice copy` against a real gateway."""

from __future__ import annotations

import csv
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fix_gateway import Gateway

ROOT = Path(__file__).parents[2]


def _run(gateway: Gateway, *arguments: str, stdin: bytes = b"", **options: Any) -> Any:
    environment = {
        "PATH": os.environ["PATH"], "PGSLUICE_URL": gateway.url, "PGSLUICE_TOKEN": gateway.token,
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, "-m", "gateway", *arguments],
        cwd=ROOT, env=environment, input=stdin, capture_output=True, check=False, **options,
    )  # fmt: skip


def test_rows_are_a_table(shared_gateway: Gateway) -> None:
    sql = "values (1, 'a' || chr(10), null), (22, 'été', true)"
    done = _run(shared_gateway, "query", sql)
    assert done.stdout.decode() == (
        "column1 | column2 | column3\n"
        "--------+---------+--------\n"
        "1       | a\\n     |\n"
        "22      | été     | true\n"
        "(2 rows)\n"
    )


def test_rows_are_csv_or_one_array(shared_gateway: Gateway) -> None:
    sql = "select i, 'n' || i as name from generate_series(1, :n::int) i"
    done = _run(shared_gateway, "query", sql, "--format", "csv", "-p", "n=30000")
    assert len(list(csv.reader(done.stdout.decode().splitlines()))) == 30_001
    done = _run(shared_gateway, "query", sql, "--format=json", "-p", "n=30000")
    rows = json.loads(done.stdout)
    assert (len(rows), rows[-1]) == (30_000, {"i": 30_000, "name": "n30000"})
    done = _run(shared_gateway, "query", sql, "--format=json", "-p", "n=0")
    assert json.loads(done.stdout) == []


def test_a_statement_without_rows_says_what_it_did(gateway: Gateway) -> None:
    assert _run(gateway, "query", "create table t (a int)").stdout == b"CREATE TABLE 0\n"
    assert _run(gateway, "query", "insert into t values (1), (2)").stdout == b"INSERT 2\n"


@pytest.mark.parametrize("form", ["table", "csv", "json"])
def test_what_goes_wrong_is_said_and_nothing_looks_complete(
    shared_gateway: Gateway, form: str
) -> None:
    done = _run(shared_gateway, "query", "select 1 / 0", "--format", form)
    assert (done.returncode, done.stdout) == (1, b"")
    assert b"division by zero" in done.stderr
    sql = "select 1 / (60000 - i), repeat('x', 30) from generate_series(1, 70000) i"
    done = _run(shared_gateway, "query", sql, "--format", form)
    assert done.returncode == 1
    assert b"broke off" in done.stderr or b"division by zero" in done.stderr
    assert not done.stdout.endswith((b"]\n", b")\n"))


def test_who_cannot_ask_is_told_why(shared_gateway: Gateway) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "query", "select 1", "--url", "http://127.0.0.1:1"],
        cwd=ROOT, env={"PGSLUICE_TOKEN": "x"}, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, b"does not answer" in done.stderr) == (1, True)
    done = subprocess.run(
        [sys.executable, "-m", "gateway", "query", "select 1"],
        cwd=ROOT, env={"PGSLUICE_URL": shared_gateway.url}, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, b"PGSLUICE_TOKEN" in done.stderr) == (1, True)
    wrong = _run(shared_gateway, "query", "--url", shared_gateway.url + "/nowhere", "select 1")
    assert b"not_found" in wrong.stderr


class TestCopy:
    def test_a_file_goes_into_a_table(self, gateway: Gateway, tmp_path: Path) -> None:
        gateway.execute("create table item (id int primary key, name text)")
        file = tmp_path / "item.csv"
        file.write_text("id,name\n" + "".join(f"{i},n{i}\n" for i in range(50_000)))
        done = _run(gateway, "copy", "item", str(file))
        assert (done.stdout, done.stderr) == (b"COPY 50000\n", b"")
        lines = tmp_path / "more.ndjson"
        lines.write_text('{"id":-1,"name":"a"}\n{"id":-2}\n')
        assert _run(gateway, "copy", "public.item", str(lines)).stdout == b"COPY 2\n"

    def test_standard_input_too(self, gateway: Gateway) -> None:
        gateway.execute('create table "My table" (id int, name text)')
        arguments = ("copy", "My table", "-", "--no-header", "--columns", "name,id")
        assert _run(gateway, *arguments, stdin=b"a,1\nb,2\n").stdout == b"COPY 2\n"
        assert gateway.execute('select name from "My table" where id = 2')["rows"] == [["b"]]

    def test_a_bad_line_is_named(self, gateway: Gateway, tmp_path: Path) -> None:
        gateway.execute("create table item (id int primary key, name text)")
        file = tmp_path / "item.csv"
        file.write_text("id,name\n1,a\nx,b\n" + "2,c\n" * 2_000_000)
        done = _run(gateway, "copy", "item", str(file))
        assert (done.returncode, done.stdout) == (1, b"")
        assert b"line 3: " in done.stderr
        assert gateway.execute("select count(*) from item")["rows"] == [[0]]
        done = _run(gateway, "copy", "item", str(tmp_path / "absent"))
        assert b"cannot be read" in done.stderr

    def test_on_a_terminal_a_bar_shows_how_far_it_is(
        self, gateway: Gateway, tmp_path: Path
    ) -> None:
        gateway.execute("create table item (id int, name text)")
        file = tmp_path / "item.csv"
        file.write_text("id,name\n" + "1,abc\n" * 100_000)
        ours, theirs = pty.openpty()
        environment = {
            "PATH": os.environ["PATH"], "PGSLUICE_URL": gateway.url,
            "PGSLUICE_TOKEN": gateway.token, "TERM": "xterm",
        }  # fmt: skip
        command = [sys.executable, "-m", "gateway", "copy", "item", str(file)]
        with subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=theirs
        ) as process:
            os.close(theirs)
            shown = b""
            while True:
                try:
                    piece = os.read(ours, 4_096)
                except OSError:  # the other end is closed
                    break
                if not piece:
                    break
                shown += piece
            assert process.stdout is not None
            assert process.stdout.read() == b"COPY 100000\n"
        os.close(ours)
        assert b"100%" in shown
