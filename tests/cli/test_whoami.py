"""Who am I, asked of a running gateway from the command line."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from gateway.cli.main import main
from tests.fix_gateway import Gateway


def ask(gateway: Gateway, **environ: str) -> Result:
    names = ("PGSLUICE_TOKEN", "PGSLUICE_ACCESS_KEY", "PGSLUICE_SECRET_KEY", "AWS_SESSION_TOKEN")
    env = {**dict.fromkeys(names), "PGSLUICE_URL": gateway.url, **environ}
    return CliRunner().invoke(main, ["whoami"], env=env)


def test_a_token_and_a_key_say_whom_they_speak_for(shared_gateway: Gateway) -> None:
    gateway = shared_gateway
    done = ask(gateway, PGSLUICE_TOKEN=gateway.token)
    assert done.exit_code == 0, done.output
    assert json.loads(done.output)["subject"] == "tester"
    done = ask(
        gateway, PGSLUICE_ACCESS_KEY=gateway.access_key, PGSLUICE_SECRET_KEY=gateway.secret_key
    )
    assert done.exit_code == 0, done.output
    assert json.loads(done.output) == {"kind": "key", "subject": "tester", "issuer": "gateway"}


@pytest.mark.parametrize(
    ("environ", "words"),
    [
        ({"PGSLUICE_TOKEN": "a.b.c"}, "status 401"),
        ({"PGSLUICE_ACCESS_KEY": "GWAKTESTKEY000001", "PGSLUICE_SECRET_KEY": "x"}, "status 401"),
        ({}, "no credentials"),
        ({"PGSLUICE_URL": "http://gw.example.com", "PGSLUICE_TOKEN": "x"}, "in the clear"),
        ({"PGSLUICE_URL": "gw.example.com", "PGSLUICE_TOKEN": "x"}, "https://"),
    ],
)
def test_what_goes_wrong_is_told(
    shared_gateway: Gateway, environ: dict[str, str], words: str
) -> None:
    done = ask(shared_gateway, **environ)
    assert done.exit_code == 1
    assert words in done.output
