"""Connections that reach their time are closed, also where nobody asks for them."""

from __future__ import annotations

from dataclasses import replace

import httpx2

from gateway.cli.token import token_for
from gateway.settings import LoginSettings
from tests.fix_gateway import MASTER, Gateway, running, settings_for, until
from tests.fix_postgres import GATEWAYS, Database

OURS = f"from pg_stat_activity where {GATEWAYS}"


def metric(gateway: Gateway, series: str) -> int:
    for line in httpx2.get(gateway.admin_url + "/metrics").text.splitlines():
        if line.startswith(series):
            return int(line.rpartition(" ")[2])
    return 0


def test_idle_connection_is_closed_when_its_time_has_come(database: Database) -> None:
    with running(settings_for(database, max_lifetime=0.2), database) as gateway:
        assert gateway.execute("select 1")["rows"] == [[1]]
        aged = 'pgsluice_discards_total{target="main",reason="age"}'
        until(lambda: metric(gateway, aged) > 0, "it idles for ever")
        until(lambda: database.sql(f"select count(*) {OURS}").strip() == "0", "it lives on")
        assert metric(gateway, 'pgsluice_connections{target="main"}') == 0
        assert gateway.execute("select 1")["rows"] == [[1]]


def test_login_that_needs_a_connection_gets_it_from_the_one_that_has_most_to_spare(
    database: Database,
) -> None:
    settings = settings_for(database, max_connections=3)
    main = settings.targets["main"]
    logins = {**main.logins, "other": LoginSettings(user=database.app_user, secrets=("other",))}
    target = replace(main, logins=logins)
    rule = replace(settings.policy[0], login="app")
    other = replace(rule, name="other", principals=("other-*",), login="other")
    rules = (replace(rule, principals=("tester",)), other)
    with running(replace(settings, targets={"main": target}, policy=rules), database) as gateway:
        transactions = []
        with gateway.http() as client:
            for _ in range(2):
                answer = client.post("/transactions", json={})
                assert answer.status_code == 201, answer.text
                transactions.append(answer.json()["transaction"])
            for each in transactions:
                assert client.post(f"/transactions/{each}/commit").status_code == 200
        stranger = token_for(MASTER, subject="other-1", lifetime=60)
        with gateway.http(stranger) as client:
            begun = [client.post("/transactions", json={}) for _ in range(2)]
            assert [each.status_code for each in begun] == [201, 201]
            assert int(database.sql(f"select count(*) {OURS}")) <= 3
            for each in begun:
                end = f"/transactions/{each.json()['transaction']}/rollback"
                assert client.post(end).status_code == 200
        assert metric(gateway, 'pgsluice_discards_total{target="main",reason="room"}') >= 1
