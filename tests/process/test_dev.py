from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import dev, embedded, sample
from gateway.cli.failing import EmbeddedError
from gateway.core import bearer
from gateway.core.keys import derive_secret, token_key, token_key_id

pytestmark = pytest.mark.process

CLIENT = Path(__file__).parents[2] / "client"

PREPARE = """
import sys
from pathlib import Path
from gateway.cli import dev
with dev.development(port=0, data=Path(sys.argv[1]), admin_port=0) as ready:
    print("pid", ready.server.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """The folder of a development server, filled by whoever comes first."""
    home = Path(tempfile.mkdtemp(prefix="pgsluice-dev-"))
    home.chmod(0o711)
    yield home / ".pgsluice"
    shutil.rmtree(home)


def psql(ready: dev.Development, statement: str) -> str:
    """What *statement* gives in a shell that has read the file of variables."""
    script = f". '{ready.env_file}'; exec psql -XAtc '{statement}' \"$DATABASE_URL\""
    return subprocess.run(
        ["/bin/sh", "-euc", script],
        check=True,
        capture_output=True,
        text=True,
        env={"PATH": f"{ready.server.binaries.bindir}:{os.environ['PATH']}"},
    ).stdout.strip()


def names(text: str) -> dict[str, str]:
    found = dict(re.findall(r"^export ([A-Z_]+)='([^']*)'$", text, re.M))
    assert len(found) == len(text.splitlines())
    return found


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def prepare(folder: Path) -> tuple[subprocess.Popen[str], int]:
    """A process that prepared everything and waits, and its PostgreSQL."""
    process = subprocess.Popen(
        [sys.executable, "-c", PREPARE, folder],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("pid "):
            return process, int(line.split()[1])
    raise AssertionError(f"it ended with {process.wait()}")


def test_the_sample_can_be_asked_with_what_is_in_env(folder: Path) -> None:
    with dev.development(port=0, data=folder, admin_port=0) as ready:
        assert ready.env_file == folder / "env"
        assert psql(ready, "select count(*) from sales") == str(sample.SALES)
        assert psql(ready, "select current_user") == sample.APP_ROLE
        refused = subprocess.run(
            [
                ready.server.binaries.program("psql"),
                "-Xwc",
                "select 1",
                ready.server.dsn("shop", "postgres", tcp=True),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert refused.returncode, "without a password only the socket's owner gets in"


def test_env_holds_every_name_and_only_the_owner_reads_it(folder: Path) -> None:
    with dev.development(port=0, data=folder, admin_port=0) as ready:
        env = names(ready.env_file.read_text())
        url = f"http://127.0.0.1:{ready.settings.server.port}"
    assert env["GATEWAY_URL"] == env["PGSLUICE_URL"] == env["AWS_ENDPOINT_URL_RDS_DATA"] == url
    assert env["ADMIN_URL"].startswith("http://127.0.0.1:")
    assert env["GATEWAY_TOKEN"] == env["PGSLUICE_TOKEN"] != ""
    assert env.keys() >= {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_DEFAULT_REGION",
        "RESOURCE_ARN",
        "SECRET_ARN",
        "DATABASE",
        "DATABASE_URL",
    }
    for name in ("env", "master.key"):
        assert stat.S_IMODE((folder / name).stat().st_mode) == 0o600, name


def test_key_and_token_derive_from_the_master_key(folder: Path) -> None:
    with dev.development(port=0, data=folder, admin_port=0) as ready:
        env = ready.environment
        settings = ready.settings
    master = (folder / "master.key").read_bytes().strip()
    key_id = env["AWS_ACCESS_KEY_ID"]
    assert settings.auth.keys[key_id][0].principal == dev.PRINCIPAL
    assert env["AWS_SECRET_ACCESS_KEY"] == derive_secret(master, key_id, 1)
    key = token_key(master)
    issuer = bearer.gateway_issuer(bearer.GATEWAY_ISSUER, {token_key_id(key): key})
    issued = bearer.read(env["GATEWAY_TOKEN"])
    assert issued.issuer == bearer.GATEWAY_ISSUER
    now = (folder / "env").stat().st_mtime
    principal = bearer.verify(env["GATEWAY_TOKEN"], {bearer.GATEWAY_ISSUER: issuer}, now=now)
    assert principal.subject == dev.PRINCIPAL


def test_a_restart_keeps_data_keys_and_the_databases_port(folder: Path) -> None:
    keep = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "DATABASE_URL")
    seen = []
    for statement in ("create table app.kept as select 7 as n", "drop table app.kept"):
        with dev.development(port=0, data=folder, admin_port=0) as ready:
            ready.server.sql(statement, database=dev.DATABASE, user=sample.APP_ROLE)
            seen.append([ready.environment[name] for name in keep])
    assert seen[0] == seen[1]


def test_the_login_of_the_gateway_is_no_superuser(folder: Path) -> None:
    with dev.development(port=0, data=folder, admin_port=0) as ready:
        (login,) = ready.settings.targets["main"].logins.values()
        power = ready.server.sql(
            "select rolsuper or rolcreaterole or rolcreatedb or rolbypassrls or rolreplication"
            f" from pg_roles where rolname = '{login.user}'"
        )
    assert power == "f"


@pytest.mark.parametrize("busy", ["port", "admin_port"])
def test_a_port_in_use_is_one_line_that_names_the_way_out(folder: Path, busy: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        ports = {"port": 0, "admin_port": 0} | {busy: taken}
        with (
            pytest.raises(EmbeddedError) as refusal,
            dev.development(**ports, data=folder),
        ):
            pass
    line = refusal.value.message
    assert "\n" not in line
    assert f"{taken} is in use" in line
    assert re.search(r"PORT=\d+" if busy == "port" else r"--admin-port \d+", line)


def test_a_broken_master_key_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "master.key").write_text("short")
    with pytest.raises(EmbeddedError, match="holds no master key"):
        dev.read_master_key(tmp_path / "master.key")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_no_signal_leaves_a_process_or_a_lock(folder: Path, number: signal.Signals) -> None:
    process, postgres = prepare(folder)
    with process:
        process.send_signal(number)
    if number is not signal.SIGKILL:
        assert not lives(postgres), "PostgreSQL is awaited"
        assert not (folder / "postgres" / "postmaster.pid").exists()
    with dev.development(port=0, data=folder, admin_port=0) as again:
        assert again.server.pid != postgres
        assert not lives(postgres)


def test_a_second_run_in_the_same_folder_is_told_of_the_first(folder: Path) -> None:
    process, postgres = prepare(folder)
    with process:
        with (
            pytest.raises(EmbeddedError, match=f"another run, process {process.pid}"),
            dev.development(port=0, data=folder, admin_port=0),
        ):
            pass
        assert lives(postgres)
        process.terminate()


def test_a_load_cut_short_by_a_kill_is_done_again() -> None:
    home = Path(tempfile.mkdtemp(prefix="pgsluice-dev-"))
    home.chmod(0o711)
    try:
        with embedded.start(home / "postgres") as server:
            server.sql("create database shop_loading")
            server.sql("create table sales (id int)", database="shop_loading")
        with dev.development(port=0, data=home, admin_port=0) as ready:
            assert ready.server.sql("select count(*) from sales", database="shop") == str(
                sample.SALES
            )
    finally:
        shutil.rmtree(home)


def test_what_is_printed_works_as_printed(folder: Path) -> None:
    port = embedded.free_port()
    # Our client counts as installed, whether it is or not.
    env = {name: os.environ[name] for name in ("PATH", "HOME")} | {"PYTHONPATH": str(CLIENT)}
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "dev", "--data", folder, "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env=env,
    ) as process:
        try:
            printed = ""
            assert process.stdout is not None
            for line in process.stdout:
                printed += line
                if line == "\n" and "# boto3\n" in printed:
                    break
            blocks = dict(re.findall(r"^# (.+)\n((?:.+\n)+)", printed, re.M))
            assert list(blocks) == ["curl", "Python", "AWS CLI", "boto3"]
            for name, block in blocks.items():
                ran = subprocess.run(
                    ["/bin/sh", "-c", block],
                    capture_output=True,
                    text=True,
                    check=False,
                    cwd="/",
                    env=env,
                )
                assert ran.returncode == 0, f"{name}: {ran.stdout}{ran.stderr}"
                assert re.search(r"\b\d{3}\.\d\d\b", ran.stdout), f"{name}: {ran.stdout}"
        finally:
            process.send_signal(signal.SIGINT)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGKILL])
def test_a_gateway_that_serves_takes_its_postgresql_along(
    folder: Path, number: signal.Signals
) -> None:
    port = embedded.free_port()
    with subprocess.Popen(
        [sys.executable, "-m", "gateway", "dev", "--data", folder, "--port", str(port)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line == "# boto3\n")
        postgres = int((folder / "postgres" / "postmaster.pid").read_text().split()[0])
        process.send_signal(number)
        process.stdout.read()
    if number is not signal.SIGKILL:
        assert not lives(postgres)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port))
    with dev.development(port=port, data=folder, admin_port=0):
        assert not lives(postgres)
