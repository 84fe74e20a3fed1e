"""The how-to pages on identity say what works: their files load, their commands run."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pgsluice
import pytest
from click.testing import CliRunner

from gateway.cli.main import main
from gateway.settings import SigV4Settings, load
from tests.fix_gateway import Gateway, running, settings_for, until
from tests.fix_loopback import closed_port, serving
from tests.fix_postgres import Database
from tests.fix_tools import debian
from tests.wire.test_iam import AUDIENCE, KEYS, data_api, iam_settings, sts

pytestmark = pytest.mark.wire
PAGES = Path(__file__).parents[2] / "docs" / "how-to"
NAMES = ("lambda-role", "browser-jwt-rls", "rotate", "behind-a-load-balancer")
MASTER = "Zm9ydHktdHdvIGJ5dGVzIG9mIHJhbmRvbSBsb29raW5n"


def blocks(page: str, kind: str) -> list[str]:
    text = (PAGES / f"{page}.md").read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.M | re.S)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "master.key").write_text(MASTER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", NAMES)
def test_the_configuration_of_a_page_loads_and_its_commands_run(page: str, folder: Path) -> None:
    (config,) = blocks(page, "toml")
    file = folder / "gateway.toml"
    file.write_text(config)
    assert load(file, {}).policy
    commands = [
        line.removeprefix("$ ")
        for block in blocks(page, "console")
        for line in block.splitlines()
        if line.startswith("$ ")
    ]
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "pgsluice"
        done = CliRunner().invoke(main, arguments, env={"PGSLUICE_CONFIG": str(file)})
        assert done.exit_code == 0, (command, done.output)
    if page == "rotate":
        assert tomllib.loads(file.read_text())["auth"]["keys"]["GWAKEXAMPLE0000000001"]["disabled"]
    assert commands or page == "behind-a-load-balancer"


def test_the_roles_of_the_browser_page_see_what_it_says(database: Database) -> None:
    (script,) = blocks("browser-jwt-rls", "sql")
    try:
        database.sql(script)
        database.sql("insert into notes values (1, 'public', 'a'), (2, 'private', 'b')")
        assert database.sql("select id from notes", user="shop_reader").split() == ["1"]
        assert database.sql("select id from notes", user="shop_editor").split() == ["1", "2"]
    finally:
        database.sql("drop table notes; drop role shop_reader; drop role shop_editor")


def test_our_client_gets_in_with_the_role_of_its_environment(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", str(KEYS.access_key))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", str(KEYS.secret_key))
    monkeypatch.setenv("AWS_SESSION_TOKEN", str(KEYS.token))
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with (
        serving(sts) as server,
        running(iam_settings(database, server.url), database) as gateway,
        pgsluice.connect(gateway.url, iam_audience=AUDIENCE) as db,
    ):
        assert db.scalar("select 1") == 1
        assert db.scalar("select 2") == 2
        assert len(server.asked) == 1


# ---- a real proxy in front -------------------------------------------------------------------


@contextmanager
def nginx(location: str) -> Iterator[str]:
    program = debian("nginx", "nginx-light")
    port = closed_port()
    folder = Path(tempfile.mkdtemp(prefix="pgsluice-nginx-"))
    (folder / "nginx.conf").write_text(
        f"""
        daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;
        events {{ }}
        http {{
            access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
            fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
            server {{ listen 127.0.0.1:{port}; {location} }}
        }}
        """
    )
    process = subprocess.Popen(
        [program, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", f"{folder}/error.log"]
    )
    url = f"http://127.0.0.1:{port}"
    try:
        until(lambda: process.poll() is not None or _answers(url), "nginx does not answer")
        assert process.poll() is None, (folder / "error.log").read_text()
        yield url
    finally:
        process.terminate()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _answers(url: str) -> bool:
    try:
        return httpx2.get(url + "/livez").status_code == 200
    except httpx2.HTTPError:
        return False


def _asks(gateway: Gateway, url: str) -> Any:
    keys = {"AccessKeyId": gateway.access_key, "SecretAccessKey": gateway.secret_key}
    client = data_api(replace(gateway, url=url), keys)
    return client.execute_statement(
        resourceArn=gateway.resource_arn, secretArn=gateway.secret_arn, sql="select 1"
    )["records"]


def test_signatures_verify_behind_nginx_as_the_page_configures_it(shared_gateway: Gateway) -> None:
    (location,) = blocks("behind-a-load-balancer", "nginx")
    with nginx(location.replace("127.0.0.1:8080", f"127.0.0.1:{shared_gateway.port}")) as url:
        assert _asks(shared_gateway, url) == [[{"longValue": 1}]]


def test_the_proxy_of_the_page_tells_who_asks(shared_database: Database, tmp_path: Path) -> None:
    (config,) = blocks("behind-a-load-balancer", "toml")
    named = tuple(tomllib.loads(config)["server"]["proxies"])
    settings = settings_for(shared_database)
    settings = replace(
        settings,
        server=replace(settings.server, proxies=named),
        observe=replace(settings.observe, audit_file=tmp_path / "audit"),
    )
    (location,) = blocks("behind-a-load-balancer", "nginx")
    with running(settings, shared_database) as gateway:
        location = location.replace("127.0.0.1:8080", f"127.0.0.1:{gateway.port}")
        # The client of nginx is this test: on an address that is not nginx's own.
        transport = httpx2.HTTPTransport(local_address="127.0.0.77")
        with nginx(location) as url, httpx2.Client(transport=transport) as client:
            headers = {
                "authorization": f"Bearer {gateway.token}", "x-forwarded-for": "203.0.113.7",
            }  # fmt: skip
            client.post(url + "/execute", json={"sql": "select 1"}, headers=headers)
    assert '"source":"127.0.0.77"' in (tmp_path / "audit").read_text()


def test_an_alias_helps_where_the_proxy_writes_its_own_name(database: Database) -> None:
    settings = settings_for(database)
    port = closed_port()
    settings = replace(settings, server=replace(settings.server, port=port, admin_port=0))
    (location,) = blocks("behind-a-load-balancer", "nginx")
    location = location.replace("127.0.0.1:8080", f"127.0.0.1:{port}")
    with nginx_renaming(location) as (url, name):
        with running(settings, database) as gateway, pytest.raises(Exception, match="signature"):
            _asks(gateway, url)
        aliased = replace(settings, sigv4=SigV4Settings(host_aliases=(name,)))
        with running(aliased, database) as gateway:
            assert _asks(gateway, url) == [[{"longValue": 1}]]


@contextmanager
def nginx_renaming(location: str) -> Iterator[tuple[str, str]]:
    """As `nginx`, with a Host of its own making; where it is, and the name that clients dial."""
    location = location.replace("$http_host", "backend.internal")
    location += '\nlocation = /livez { return 200 "ok"; }'
    with nginx(location) as url:
        yield url, url.removeprefix("http://")
