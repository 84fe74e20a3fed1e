"""What is wrong with the settings of identity, secrets and TLS is told at start."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.settings import ConfigurationError, Settings, load

BASE = """
[auth]
master_key = "Zm9ydHktdHdvIGJ5dGVzIG9mIHJhbmRvbSBsb29raW5n"
[targets.main]
hosts = ["127.0.0.1"]
[targets.main.logins.app]
user = "app"
[[policy]]
name = "all"
"""
IAM = (
    '[iam]\nenabled = true\naudience = "gw"\naccounts = ["123456789012"]\nregions = ["eu-west-1"]\n'
)
ROLE = "arn:aws:iam::123456789012:role/"


def read(folder: Path, text: str) -> Settings:
    file = folder / "gateway.toml"
    file.write_text(text)
    return load(file, {})


def problems(folder: Path, text: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigurationError) as caught:
        read(folder, text)
    return [(each.key, each.message) for each in caught.value.problems]


def test_everything_has_its_place(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        IAM
        + """
        [sigv4]
        host_aliases = ["gw.example.com"]
        require_signed_key = true
        [tokens]
        ttl = 600
        not_before = 2026-01-01T00:00:00Z
        denied_subjects = ["x"]
        [cors]
        origins = ["https://app.example.com"]
        [[issuers]]
        issuer = "https://idp.example"
        audience = "gw"
        jwks_url = "https://idp.example/jwks"
        """
        + BASE.replace("[auth]", "[auth]\nfailure_limit = 5"),
    )
    assert settings.iam.accounts == ("123456789012",)
    assert settings.sigv4.host_aliases == ("gw.example.com",)
    assert settings.tokens.not_before == 1_767_225_600.0
    assert settings.tokens.ttl == 600
    assert settings.cors.origins == ("https://app.example.com",)
    assert settings.auth.issuers[0].jwks_url == "https://idp.example/jwks"
    assert settings.auth.failure_limit == 5


def test_the_path_of_a_role_is_left_out_as_sts_leaves_it_out(tmp_path: Path) -> None:
    policy = f'principals = ["{ROLE}svc/orders-fn", "{ROLE}reports-*"]\n'
    settings = read(tmp_path, BASE + policy)
    assert settings.policy[0].principals == (ROLE + "orders-fn", ROLE + "reports-*")


@pytest.mark.parametrize(
    ("more", "key", "message"),
    [
        ("[iam]\nenabled = true", "iam.audience", "is required"),
        ("[iam]\nenabled = true", "iam.accounts", "is required"),
        ("[iam]\nenabled = true", "iam.regions", "is required"),
        (IAM.replace("123456789012", "*"), "iam.accounts", "12 digits"),
        (IAM.replace("eu-west-1", "x/y"), "iam.regions", "names of regions"),
        (IAM + 'sts_endpoint = "http://sts.example"', "iam.sts_endpoint", "https"),
        (IAM + 'sts_endpoint = "ftp://127.0.0.1"', "iam.sts_endpoint", "must be a URL"),
        ('[sigv4]\nhost_aliases = ["a", "b", "c", "d"]', "sigv4.host_aliases", "3 at most"),
        ("[tokens]\nttl = 86400", "tokens.ttl", "from 60 to"),
        ('[tokens]\nnot_before = "soon"', "tokens.not_before", ""),
        ('[cors]\norigins = ["https://a.example/path"]', "cors.origins", "no path"),
        ('[cors]\norigins = ["null"]', "cors.origins", "no path"),
        (
            '[[issuers]]\nissuer = "https://i"\naudience = "a"\njwks_url = "http://i/jwks"',
            "issuers.0.jwks_url",
            "https",
        ),
        (
            '[[issuers]]\nissuer = "https://i"\naudience = "a"\njwks_url = "https://i/j"\n'
            'algorithms = ["HS256"]',
            "issuers.0.algorithms",
            "must not be HS*",
        ),
        (
            f'[[policy]]\nprincipals = ["{ROLE}a/fn", "{ROLE}b/fn"]',
            "policy.1.principals",
            "differ in their path alone",
        ),
        ('[[policy]]\nprincipals = ["arn:aws:iam::*"]', "policy.1.principals", "must fix account"),
        ("[[policy]]\nlimits = { burst = 5 }", "policy.1.limits.burst", "without rps"),
        ("[[policy]]\nlimits = { rps = -1 }", "policy.1.limits.rps", "from 0"),
        ('[[policy]]\nstatements = "listed"', "policy.1", "belong together"),
        (
            '[targets.main.logins.b]\ncredential = "secretsmanager"',
            "targets.main.logins.b.secret_arn",
            "belongs with",
        ),
        (
            '[targets.main.logins.b]\nuser = "u"\nsecret_arn = "x"',
            "targets.main.logins.b.secret_arn",
            "belongs with",
        ),
        (
            '[targets.main.logins.b]\nuser = "u"\ncredential = "vault"',
            "targets.main.logins.b.credential",
            "must be password",
        ),
        (
            '[targets.main.logins.b]\nuser = "u"\ncredential = "rds-iam"',
            "targets.main.logins.b.credential",
            "needs TLS",
        ),
        (
            '[targets.main.logins.b]\ncredential = "secretsmanager"\nsecret_arn = "x"\n'
            'password = "y"',
            "targets.main.logins.b.password",
            "has no meaning",
        ),
        (
            '[targets.main.logins.b]\nuser = "u"\nclient_cert = "/dev/null"',
            "targets.main.logins.b.client_key",
            "belong together",
        ),
        (
            '[targets.main.logins.b]\nuser = "u"\naws_endpoint = "http://aws.example"',
            "targets.main.logins.b.aws_endpoint",
            "https",
        ),
    ],
)
def test_what_cannot_be_used_is_named(tmp_path: Path, more: str, key: str, message: str) -> None:
    found = problems(tmp_path, f"{BASE}\n{more}\n")
    assert any(each[0] == key and message in each[1] for each in found), found
