"""Alert rules and dashboard: taken by promtool, and about series that a fault moves."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from gateway.observe.metrics import DEFINITIONS
from tests.fix_gateway import Gateway, Process, process, running, settings_for, until
from tests.fix_network import Proxy
from tests.fix_postgres import GATEWAYS, Database
from tests.fix_tools import ROOT, debian
from tests.nodes.house import free_ports
from tests.nodes.test_relay import among

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "pgsluice.json"
RULES = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule["alert"] for rule in RULES if "alert" in rule]
PANELS = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if "targets" in panel]

Labels = frozenset[tuple[str, str]]
Page = dict[tuple[str, Labels], float]


# -- promtool ------------------------------------------------------------------------------


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = debian("promtool", "prometheus")
    return subprocess.run([program, *arguments], capture_output=True, text=True, check=False)


def test_the_rules_are_ones_that_prometheus_takes(tmp_path: Path) -> None:
    done = promtool("check", "rules", str(PROMETHEUS / "alerts.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    text = (PROMETHEUS / "alerts.yml").read_text()
    faulty = tmp_path / "alerts.yml"
    faulty.write_text(text.replace("histogram_quantile(0.95,", "histogram_quantile(", 1))
    assert promtool("check", "rules", str(faulty)).returncode != 0


def test_each_alert_fires_when_it_should_and_none_on_a_healthy_day(tmp_path: Path) -> None:
    done = promtool("test", "rules", str(PROMETHEUS / "alerts_test.yml"))
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(PROMETHEUS, tmp_path, dirs_exist_ok=True)
    text = (tmp_path / "alerts.yml").read_text()
    (tmp_path / "alerts.yml").write_text(text.replace("connect_seconds:p95 > 1", "vector(0) > 1"))
    assert promtool("test", "rules", str(tmp_path / "alerts_test.yml")).returncode != 0


def test_every_alert_has_a_test_and_says_how_grave_it_is() -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    assert {each["name"] for each in tests[1:]} == set(ALERTS)
    for rule in RULES:
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "ticket")
            assert rule["annotations"]["summary"]


# -- what they name ------------------------------------------------------------------------


class Selector(NamedTuple):
    """`name{label="value"}`, with the labels that it is grouped by."""

    name: str
    matchers: tuple[tuple[str, str], ...]
    """Labels, and what their values match."""

    def fits(self, series: tuple[str, Labels]) -> bool:
        labels = dict(series[1])
        return series[0] == self.name and all(
            re.fullmatch(pattern, labels.get(label, "")) for label, pattern in self.matchers
        )


_SERIES = re.compile(r"\b(pgsluice_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)=(~?)"([^"]*)"')
_SUFFIX = re.compile(r"_(?:bucket|sum|count)$")
_OURS = ("instance", "job", "namespace", "pod")
"""Labels that Prometheus adds to every series."""


def selectors(expression: str) -> Iterator[Selector]:
    for name, inside in _SERIES.findall(expression):
        matchers = []
        for label, is_pattern, value in _MATCHER.findall(inside):
            if label not in _OURS:
                value = re.sub(r"\$\w+", ".*", value)
                matchers.append((label, value if is_pattern else re.escape(value)))
        yield Selector(name, tuple(matchers))


EXPRESSIONS = {
    **{rule.get("alert", rule.get("record")): rule["expr"] for rule in RULES},
    **{
        f"{panel['title']} {target['refId']}": target["expr"]
        for panel in PANELS
        for target in panel["targets"]
    },
    "autoscaler": yaml.safe_load((ROOT / "deploy/kubernetes/prometheus-adapter.yaml").read_text())[
        "rules"
    ]["custom"][0]["metricsQuery"],
}
NAMED = sorted({found for each in EXPRESSIONS.values() for found in selectors(each)})


def definition(name: str) -> Any:
    base = _SUFFIX.sub("", name)
    known = {each.name: each for each in DEFINITIONS}
    return known.get(name) or known.get(base)


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_what_is_named_is_defined_with_the_labels_it_is_asked_for(where: str) -> None:
    expression = EXPRESSIONS[where]
    found = list(selectors(expression))
    grouped = {
        label.strip()
        for group in re.findall(r"\bby \(([^)<]*)\)", expression)
        for label in group.split(",")
    } - {"le", *_OURS}  # fmt: skip
    recorded = re.findall(r"pgsluice:\w+:\w+", expression)
    assert found or recorded or "up{" in expression
    assert set(recorded) <= {rule.get("record") for rule in RULES}
    for selector in found:
        defined = definition(selector.name)
        assert defined is not None, selector.name
        assert (defined.kind == "histogram") == (defined.name != selector.name)
        assert {label for label, _ in selector.matchers} | grouped <= set(defined.labels)
        # A rate of what may fall, or a state of what only rises, is a mistake.
        around = expression[: expression.index(selector.name)]
        assert around.endswith(("rate(", "increase(")) == (defined.kind != "gauge")


def test_the_dashboard_shows_every_metric_there_is() -> None:
    shown = {
        definition(selector.name).name
        for panel in PANELS
        for target in panel["targets"]
        for selector in selectors(target["expr"])
    }
    assert shown == {each.name for each in DEFINITIONS}


def test_panels_of_the_dashboard_stand_beside_each_other() -> None:
    places = [each["gridPos"] for each in json.loads(DASHBOARD.read_text())["panels"]]
    cells = [
        (x, y)
        for place in places
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24
    ids = [each["id"] for each in json.loads(DASHBOARD.read_text())["panels"]]
    assert len(ids) == len(set(ids))


def test_the_job_that_an_alert_names_is_the_one_that_is_scraped() -> None:
    [rule] = [rule for rule in RULES if "up{" in rule["expr"]]
    [job] = re.findall(r'job="(\w+)"', rule["expr"])
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert job in [each["job_name"] for each in config["scrape_configs"]]


# -- faults --------------------------------------------------------------------------------


class Watch:
    """Pages of one gateway, one after the other."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.pages: list[Page] = []

    def look(self) -> Page:
        text = httpx2.get(self.url + "/metrics", timeout=60).text
        page = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }
        self.pages.append(page)
        return page

    def value(self, name: str, **labels: str) -> float:
        return self.look().get((name, frozenset(labels.items())), 0.0)

    def moved(self) -> set[tuple[str, Labels]]:
        return {
            series
            for page in self.pages
            for series in page
            if len({each.get(series, 0.0) for each in self.pages}) > 1
        }


MAIN = {"target": "main"}


@contextmanager
def watched(
    database: Database, proxy: Proxy | None = None, **pool: Any
) -> Iterator[tuple[Gateway, Watch]]:
    settings = settings_for(database, **pool)
    target = settings.targets["main"]
    if proxy is not None:
        target = replace(target, hosts=(("127.0.0.1", proxy.port),))
    with running(replace(settings, targets={"main": target}), database) as gateway:
        watch = Watch(gateway.admin_url)
        watch.look()
        yield gateway, watch
        watch.look()


def post(gateway: Gateway, path: str, body: Any, **headers: str) -> httpx2.Response:
    head = {"authorization": f"Bearer {gateway.token}", **headers}
    return httpx2.post(gateway.url + path, json=body, headers=head, timeout=60)


def pressure(database: Database) -> Watch:
    """One connection, held by a statement: others wait, are sent away, and give up."""
    long = {"sql": "select pg_sleep(600)"}
    with (
        watched(database, max_connections=1, max_waiting=1) as (gateway, watch),
        ThreadPoolExecutor(2) as threads,
    ):
        for _ in range(2):
            assert post(gateway, "/execute", {"sql": "select 1"}).status_code == 200
        first = threads.submit(post, gateway, "/execute", long, **{"x-gateway-request-id": "first"})
        until(lambda: watch.value("pgsluice_connections_in_use", **MAIN) == 1, "it never ran")
        second = threads.submit(post, gateway, "/execute", {"sql": "select 1"})
        until(lambda: watch.value("pgsluice_queue_waiting", **MAIN) == 1, "nobody waits")
        assert post(gateway, "/execute", long).json()["code"] == "queue_full"
        with gateway.http() as client:
            assert client.delete("/statements/first").status_code == 202
        assert first.result().status_code == 400
        assert second.result().status_code == 200
        late = {"x-gateway-deadline-ms": "2000"}
        assert post(gateway, "/execute", long, **late).json()["code"] == "statement_timeout"
    return watch


def forgotten(database: Database) -> Watch:
    """Transactions that nobody ends, while others want to begin one."""
    with (
        watched(database, max_connections=2, max_open_transactions=1) as (gateway, watch),
        ThreadPoolExecutor(1) as threads,
    ):
        first = post(gateway, "/transactions", {}).json()["transaction"]
        watch.look()
        second = threads.submit(post, gateway, "/transactions", {"idle_timeout": 0.3})
        until(lambda: watch.value("pgsluice_transactions_waiting", **MAIN) == 1, "nobody waits")
        assert post(gateway, f"/transactions/{first}/rollback", {}).status_code == 200
        assert second.result().status_code == 201
        until(
            lambda: watch.value(
                "pgsluice_transactions_ended_total", **MAIN, reason="expired"
            ) == 1,
            "they live on",
        )  # fmt: skip
    return watch


def callers(database: Database) -> Watch:
    """Callers who leave, who are nobody, who send what is no request, and who do not read."""
    with watched(database) as (gateway, watch):
        head = (
            f"POST /execute HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {gateway.token}\r\n"
            "content-length: %d\r\n\r\n"
        )
        long = json.dumps({"sql": "select pg_sleep(600)"})
        with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
            sock.sendall((head % len(long)).encode() + long.encode())
            until(lambda: watch.value("pgsluice_connections_in_use", **MAIN) == 1, "it never ran")
        until(
            lambda: watch.value("pgsluice_cancels_total", **MAIN, reason="hangup") == 1,
            "it was not cancelled",
        )
        assert httpx2.post(gateway.url + "/execute", json={}).status_code == 401
        with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
            sock.sendall(b"nonsense\r\n\r\n")
            assert b"400" in sock.recv(1_000)
        with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
            sock.sendall((head % 100_000).encode() + b"x" * 10_000)
            until(lambda: watch.value("pgsluice_request_bytes_held") == 10_000, "none is held")
        large = json.dumps({"sql": "select repeat('x', 15000000) from set_config('a.b', '', true)"})
        with socket.create_connection(("127.0.0.1", gateway.port)) as sock:
            sock.sendall((head % len(large)).encode() + large.encode())
            until(lambda: watch.value("pgsluice_response_bytes_unread") > 0, "nothing is unread")
    return watch


def doubt(database: Database) -> Watch:
    """A statement outside transactions that is stopped: nobody knows what it did."""
    database.sql("create table vacuumed (n int); grant all on vacuumed to public")
    database.sql(f"alter table vacuumed owner to {database.app_user}")
    with (
        watched(database) as (gateway, watch),
        gateway.http() as client,
        ThreadPoolExecutor(1) as threads,
    ):
        transaction = client.post("/transactions", json={}).json()["transaction"]
        lock = {"sql": "lock table vacuumed", "transaction": transaction}
        assert client.post("/execute", json=lock).status_code == 200
        name = {"x-gateway-request-id": "vacuum"}
        vacuum = threads.submit(post, gateway, "/execute", {"sql": "vacuum vacuumed"}, **name)

        def cancelled() -> bool:
            keep = {"sql": "select 1", "transaction": transaction}
            assert client.post("/execute", json=keep).status_code == 200
            waits = f"select count(*) from pg_stat_activity where {GATEWAYS}" + (
                " and wait_event_type = 'Lock' and query like 'vacuum%'"
            )
            return int(database.sql(waits)) == 1

        until(cancelled, "it does not wait")
        assert client.delete("/statements/vacuum").status_code == 202
        assert vacuum.result().json()["code"] == "outcome_unknown"
        assert client.post(f"/transactions/{transaction}/rollback").status_code == 200
    return watch


def lost(database: Database) -> Watch:
    """A database that is slow to connect to, then away, then back."""
    assert database.server.port
    with (
        Proxy(database.server.port) as proxy,
        watched(database, proxy, connect_timeout=1.0) as (gateway, watch),
    ):
        assert post(gateway, "/execute", {"sql": "select 1"}).status_code == 200
        before = watch.look()
        proxy.replies.delay = 0.15
        with ThreadPoolExecutor(2) as threads:
            body = {"sql": "select pg_sleep(0.2)"}
            list(threads.map(lambda _: post(gateway, "/execute", body), range(2)))
        after = watch.look()
        # Not quick ones besides: all that came are slow.
        name = "pgsluice_connect_seconds_bucket"

        def more(bound: str) -> float:
            series = (name, frozenset({"target": "main", "le": bound}.items()))
            return after[series] - before[series]

        assert more("+Inf") > 0
        assert more("0.1") == 0
        proxy.heal()
        proxy.refuse_connections()
        database.sql(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            f" where {GATEWAYS} and datname = current_database()"
        )

        def refused() -> bool:
            late = {"x-gateway-deadline-ms": "400"}
            post(gateway, "/execute", {"sql": "select 1"}, **late)
            page = watch.look()
            failures = sum(
                number
                for (each, _), number in page.items()
                if each == "pgsluice_connect_failures_total"
            )
            return failures > 0 and page[("pgsluice_connections", frozenset(MAIN.items()))] == 0

        until(refused, "it does not notice")
        proxy.take_connections()
        until(
            lambda: post(gateway, "/execute", {"sql": "select 1"}).status_code == 200,
            "it does not come back",
        )
    return watch


def nodes(database: Database) -> Watch:
    """Another node that answers, whose answers are lost, and that says nothing."""
    settings = settings_for(database)
    one, other = free_ports(2)
    with (
        Proxy(other) as proxy,
        running(among(settings, one, proxy.port), database) as near,
        ThreadPoolExecutor(1) as threads,
    ):
        watch = Watch(near.admin_url)
        watch.look()
        with running(among(settings, other, one), database) as far:
            until(lambda: watch.value("pgsluice_nodes", state="sharing") == 2, "they never met")
            transaction = post(far, "/transactions", {}).json()["transaction"]
            body = {"sql": "select pg_sleep(0)", "transaction": transaction}
            assert post(near, "/execute", body).status_code == 200
            body["sql"] = "select pg_sleep(600)"
            broken = threads.submit(post, near, "/execute", body)
            busy = Watch(far.admin_url)
            until(lambda: busy.value("pgsluice_requests_active") == 1, "it was not passed on")
            proxy.reset()
            assert broken.result().json()["code"] == "transaction_gone"
            proxy.replies.swallow = True
            until(lambda: watch.value("pgsluice_nodes", state="silent") == 1, "it sees nothing")
    return watch


def node(database: Database, folder: Path) -> Watch:
    """Other configurations, one of them no good, a full audit log, a stop that takes long."""
    config = folder / "gateway.toml"
    good = (
        "[server]\nport = 0\nadmin_port = 0\ndrain_timeout = 30\n"
        f'[observe]\naudit_file = "{folder}/audit.log"\n'
        f'[targets.main]\nhosts = ["127.0.0.1:{database.server.port}"]\n'
        f'database = "{database.name}"\n[targets.main.logins.app]\nuser = "{database.app_user}"\n'
        '[[policy]]\nname = "all"\n'
    )
    config.write_text(good)
    (folder / "audit.log").symlink_to("/dev/full")
    with process(database, config) as gateway:
        watch = Watch(gateway.admin_url)
        watch.look()
        assert gateway.execute("select 1").status_code == 200
        config.write_text(good + "[targets.main.pool]\nmax_connections = 3\n")
        gateway.signal(signal.SIGHUP)
        until(lambda: watch.value("pgsluice_connections_limit", **MAIN) == 3, "it was not read")
        config.write_text(good + "[nonsense]\n")
        gateway.signal(signal.SIGHUP)
        until(lambda: watch.value("pgsluice_config_last_reload_successful") == 0, "it was not read")
        drain(gateway, watch)
    return watch


def drain(gateway: Process, watch: Watch) -> None:
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(gateway.execute, "select pg_sleep(8)")
        until(lambda: watch.value("pgsluice_connections_in_use", **MAIN) == 1, "it never ran")
        gateway.signal(signal.SIGTERM)
        until(lambda: watch.value("pgsluice_draining") == 1, "it does not drain")
        assert running.result().status_code == 200


@pytest.fixture(scope="module")
def moved(postgres: Any, tmp_path_factory: pytest.TempPathFactory) -> set[tuple[str, Labels]]:
    """Every series that some fault moves."""
    postgres.sql("create database watched strategy wal_log")
    database = Database(postgres, "watched")
    faults: list[Callable[[], Watch]] = [
        lambda: pressure(database),
        lambda: forgotten(database),
        lambda: callers(database),
        lambda: doubt(database),
        lambda: lost(database),
        lambda: nodes(database),
        lambda: node(database, tmp_path_factory.mktemp("node")),
    ]
    return {series for fault in faults for series in fault().moved()}


@pytest.mark.slow
@pytest.mark.parametrize("selector", NAMED, ids=lambda each: f"{each.name}-{each.matchers}")
def test_what_is_named_moves_when_its_fault_is_planted(
    moved: set[tuple[str, Labels]], selector: Selector
) -> None:
    assert [series for series in moved if selector.fits(series)]
