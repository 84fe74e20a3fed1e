"""Every way for code of AWS's own libraries to get in, with as little change as the page says."""

from __future__ import annotations

import json
import os
import re
import shlex
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import botocore.session
import httpx2
import pytest
from botocore.config import Config
from botocore.tokens import DeferredRefreshableToken, FrozenAuthToken

from gateway.settings import SigV4Settings, load
from tests.fix_gateway import Gateway, running
from tests.fix_loopback import Loopback, serving
from tests.fix_postgres import Database
from tests.fix_tools import node_project
from tests.wire.test_aws_cli import AWS
from tests.wire.test_iam import AUDIENCE, KEYS, iam_settings, signed, sts
from tests.wire.test_secrets import authority, certificate

pytestmark = pytest.mark.wire
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/how-to/boto3-unchanged.md"
URL = "https://gateway.example.com"


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```$", PAGE.read_text("utf-8"), re.M | re.S)


@pytest.fixture(scope="module")
def house(
    shared_database: Database, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Gateway, Loopback, Path]]:
    """A gateway with TLS, the STS that it asks, and who signed its certificate."""
    folder = tmp_path_factory.mktemp("ways")
    authority(folder, "ca")
    certificate(folder, "gw", "/CN=localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    with serving(sts) as asked:
        settings = iam_settings(shared_database, asked.url)
        server = replace(settings.server, tls_cert=folder / "gw.crt", tls_key=folder / "gw.key")
        settings = replace(settings, server=server, sigv4=SigV4Settings(require_signed_key=True))
        with running(settings, shared_database) as gateway:
            yield (
                replace(gateway, url=f"https://localhost:{gateway.port}"),
                asked,
                folder / "ca.crt",
            )


@pytest.fixture
def gateway(house: tuple[Gateway, Loopback, Path], monkeypatch: pytest.MonkeyPatch) -> Gateway:
    """The same, with nothing of AWS in the environment but its certificate."""
    gateway, _, ca = house
    for name in [name for name in os.environ if name[:4] == "AWS_" or name[:9] == "PGSLUICE_"]:
        monkeypatch.delenv(name)
    for name, text in {
        "AWS_CA_BUNDLE": str(ca),
        "PGSLUICE_CAFILE": str(ca),
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, text)
    return gateway


def where(gateway: Gateway) -> dict[str, str]:
    return {"resourceArn": gateway.resource_arn, "secretArn": gateway.secret_arn}


def asks(client: Any, gateway: Gateway) -> None:
    """Reads twice, with *client*, which is then closed."""
    with closing(client):
        for number in (1, 2):
            done = client.execute_statement(sql=f"select {number}", **where(gateway))
            assert done["records"] == [[{"longValue": number}]]


def run(block: str, gateway: Gateway, **more: Any) -> dict[str, Any]:
    """Run a block of the page against this gateway."""
    names: dict[str, Any] = dict(more)
    exec(compile(block.replace(URL, gateway.url), str(PAGE), "exec"), names)
    return names


def role_in_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", str(KEYS.access_key))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", str(KEYS.secret_key))
    monkeypatch.setenv("AWS_SESSION_TOKEN", str(KEYS.token))


def test_variables_of_the_environment_are_enough(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    exports = [shlex.split(line, comments=True) for line in blocks("sh")[0].splitlines()]
    names = dict(word.split("=", 1) for line in exports for word in line if "=" in word)
    names["AWS_ENDPOINT_URL_RDS_DATA"] = names["AWS_ENDPOINT_URL_RDS_DATA"].replace(
        URL, gateway.url
    )
    names["AWS_ACCESS_KEY_ID"], names["AWS_SECRET_ACCESS_KEY"] = (
        gateway.access_key, gateway.secret_key,
    )  # fmt: skip
    for name, text in names.items():
        monkeypatch.setenv(name, text)
    asks(boto3.client("rds-data"), gateway)


def test_a_session_of_our_client(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    role_in_environment(monkeypatch)
    (block,) = [each for each in blocks("python") if "boto3_session" in each]
    asks(run(block.replace(f'"{URL[8:]}"', f'"{AUDIENCE}"'), gateway)["client"], gateway)


def test_a_token_of_the_environment(gateway: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = [each for each in blocks("python") if '"bearer"' in each]
    monkeypatch.setenv("AWS_BEARER_TOKEN_RDS_DATA", gateway.token)
    asks(run(block, gateway)["client"], gateway)


def test_a_hook_that_brings_the_token(gateway: Gateway) -> None:
    (block,) = [each for each in blocks("python") if "bring_token" in each]
    asked: list[bool] = []

    def current_token() -> str:
        asked.append(True)
        return gateway.token

    asks(run(block, gateway, current_token=current_token)["client"], gateway)
    assert len(asked) == 2


def test_a_provider_of_tokens_in_botocore(gateway: Gateway) -> None:
    class Provider:
        def load_token(self, **_: Any) -> Any:
            until = datetime.now(UTC) + timedelta(hours=1)
            return DeferredRefreshableToken("own", lambda: FrozenAuthToken(gateway.token, until))

    session = botocore.session.Session()
    session.register_component("token_provider", Provider())
    config = Config(signature_version="bearer")
    asks(session.create_client("rds-data", endpoint_url=gateway.url, config=config), gateway)


def test_a_write_of_boto3_with_the_key_of_the_page(gateway: Gateway) -> None:
    (block,) = [each for each in blocks("python") if "before-call" in each]
    client = boto3.client(
        "rds-data", endpoint_url=gateway.url, aws_access_key_id=gateway.access_key,
        aws_secret_access_key=gateway.secret_key,
    )  # fmt: skip
    sql = "create temporary table w (a int)"
    with closing(client):
        with pytest.raises(client.exceptions.ClientError, match="ValidationException"):
            client.execute_statement(sql=sql, **where(gateway))
        run(block, gateway, client=client)
        client.execute_statement(sql=sql, **where(gateway))


def temporary(house: tuple[Gateway, Loopback, Path]) -> dict[str, str]:
    """Keys from `POST /auth/iam`, as a shell would export them."""
    gateway, _, ca = house
    context = ssl.create_default_context(cafile=str(ca))
    with httpx2.Client(verify=context, timeout=60) as client:
        answer = client.post(gateway.url + "/auth/iam", json=signed())
    assert answer.status_code == 200, answer.text
    made = answer.json()["credentials"]
    return {
        "AWS_ACCESS_KEY_ID": made["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": made["SecretAccessKey"],
        "AWS_SESSION_TOKEN": made["SessionToken"],
    }


def test_the_aws_cli_with_a_profile_that_makes_its_keys(
    gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, config = tmp_path / "source", tmp_path / "config"
    source.write_text(
        f"[source]\naws_access_key_id = {KEYS.access_key}\n"
        f"aws_secret_access_key = {KEYS.secret_key}\naws_session_token = {KEYS.token}\n"
    )
    (profile,) = re.findall(
        r"^```ini\n(.*?)^```$", (PAGE.parent / "lambda-role.md").read_text("utf-8"), re.M | re.S
    )
    config.write_text(
        profile.replace("pgsluice cred", f"{sys.executable} -m gateway cred")
        .replace(URL, gateway.url)
        .replace("--source-profile default", f"--source-profile source --audience {AUDIENCE}")
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(source))
    done = subprocess.run(
        [
            str(AWS), "rds-data", "execute-statement", "--output", "json", "--profile", "gateway",
            "--resource-arn", gateway.resource_arn, "--secret-arn", gateway.secret_arn,
            "--sql", "select 1",
        ],
        env={**os.environ, "AWS_ENDPOINT_URL_RDS_DATA": gateway.url, "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["records"] == [[{"longValue": 1}]]


JS = """
import { RDSDataClient, ExecuteStatementCommand } from "@aws-sdk/client-rds-data";
const client = new RDSDataClient({});
const [resourceArn, secretArn] = process.argv.slice(-2);
const sql = "select 1";
const { records } = await client.send(new ExecuteStatementCommand({ resourceArn, secretArn, sql }));
console.log(JSON.stringify(records));
"""


def test_the_javascript_sdk_with_temporary_keys(
    gateway: Gateway, house: tuple[Gateway, Loopback, Path], tmp_path: Path
) -> None:
    place = node_project(Path(__file__).parent / "js")
    environment = {
        "PATH": os.environ["PATH"],
        "NODE_EXTRA_CA_CERTS": str(house[2]),
        "AWS_ENDPOINT_URL_RDS_DATA": gateway.url,
        "AWS_REGION": "us-east-1",
        **temporary(house),
    }

    def ask(**changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["node", "--input-type=module", "-", gateway.resource_arn, gateway.secret_arn],
            input=JS, cwd=place, env={**environment, **changes}, capture_output=True, text=True,
            check=False,
        )  # fmt: skip

    done = ask()
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[{"longValue": 1}]]
    refused = ask(AWS_SECRET_ACCESS_KEY="guessed")
    assert refused.returncode != 0 and "InvalidSignatureException" in refused.stderr


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param({"authorization": "Bearer k8s-aws-v1.aHR0cHM6Ly9zdHMuYW1hem9uYXdz"}, id="EKS"),
        pytest.param(
            {"x-amzn-lattice-identity": "Principal=arn:aws:sts::123456789012:assumed-role/x/y"},
            id="Lattice",
        ),
        pytest.param({"x-amzn-request-context": '{"identity": {}}'}, id="API Gateway"),
        pytest.param({"x-forwarded-client-cert": "Subject=CN=tester"}, id="a proxy's certificate"),
    ],
)
def test_what_is_not_built_lets_nobody_in(
    gateway: Gateway, house: tuple[Gateway, Loopback, Path], headers: dict[str, str]
) -> None:
    context = ssl.create_default_context(cafile=str(house[2]))
    with httpx2.Client(verify=context, timeout=60) as client:
        body = {"sql": "select 1", **where(gateway)}
        native = client.post(gateway.url + "/execute", json={"sql": "select 1"}, headers=headers)
        data_api = client.post(gateway.url + "/Execute", json=body, headers=headers)
    assert (native.status_code, native.json()["code"]) == (401, "unauthenticated")
    assert data_api.status_code == 403


def test_the_switch_for_ci_is_one_of_the_targets(tmp_path: Path) -> None:
    (config,) = blocks("toml")
    file = tmp_path / "gateway.toml"
    file.write_text(
        config + 'hosts = ["127.0.0.1"]\nlogins.app.user = "app"\n[[policy]]\nissuer = "gateway"\n'
    )
    environ = {"PGSLUICE_AUTH__MASTER_KEY": "Zm9ydHktdHdvIGJ5dGVzIG9mIHJhbmRvbSBsb29raW5n"}
    assert load(file, environ).targets["main"].compat == "aws"
