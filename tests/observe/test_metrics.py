"""What happens is counted, and what is shown is what Prometheus reads."""

from __future__ import annotations

import subprocess
from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from gateway.core.observation import (
    ConfigurationLoaded,
    ConfigurationRefused,
    ConnectFailed,
    ConnectionClosed,
    ConnectionOpened,
    DrainBegan,
    Observer,
    Observers,
    StatementCancelled,
    TransactionEnded,
    TransactionOpened,
)
from gateway.observe.metrics import (
    DEFINITIONS,
    LIFETIMES,
    SECONDS,
    SIZES,
    Histogram,
    Metrics,
    NodeState,
    TargetState,
)
from tests.fix_gateway import Gateway, running, settings_for, until
from tests.fix_postgres import Database
from tests.fix_tools import debian

QUIET = TargetState(8, 0, 0, 0, 0, 0, 8)


def metrics(**targets: TargetState) -> Metrics:
    state = NodeState(active=0, callers=0, draining=False, targets=targets or {"main": QUIET})
    return Metrics(lambda: state)


Series = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def read(page: bytes) -> Series:
    """Every series of *page*, as Prometheus' own reader finds them."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(page.decode())
        for sample in family.samples
    }


def value(series: Series, name: str, **labels: str) -> float:
    return series[name, tuple(sorted(labels.items()))]


@given(st.lists(st.floats(0, 1e9)), st.sampled_from([SECONDS, LIFETIMES, SIZES]))
def test_each_value_falls_into_the_first_bucket_that_holds_it(
    values: list[float], bounds: Sequence[float]
) -> None:
    histogram = Histogram(bounds)
    for each in values:
        histogram.add(each)
    for index, bound in enumerate(bounds):
        assert sum(histogram.counts[: index + 1]) == sum(each <= bound for each in values)
    assert sum(histogram.counts) == len(values)
    assert histogram.sum == pytest.approx(sum(values))


@pytest.mark.parametrize("bounds", [SECONDS, LIFETIMES, SIZES])
def test_bounds_rise(bounds: Sequence[float]) -> None:
    assert list(bounds) == sorted(set(bounds))
    assert bisect_left(bounds, 0.0) == 0


def happen(observer: Observer) -> None:
    """One of everything."""
    for observation in (
        ConnectionOpened("main", 0.004),
        ConnectFailed("main", "database_unavailable", 5.0),
        ConnectionClosed("main", "age"),
        TransactionOpened("main"),
        TransactionEnded("main", "expired", 180.0),
        StatementCancelled("main", "hangup"),
        DrainBegan(1, 0),
        ConfigurationLoaded(["policy"], []),
        ConfigurationRefused(["policy: is wrong"]),
    ):
        observer.happened(observation)
    observer.turn_taken("main", 0.02)
    observer.turn_refused("main", 1.0, "timeout")
    observer.connection_reset("main")
    observer.statement_finished("main", 0.3)
    observer.request_finished("execute", 200, None, 0.31, 512)
    observer.request_finished("execute", 400, "database_error", 0.01, 90)


def test_what_happened_is_shown() -> None:
    counted = metrics()
    happen(counted)
    series = read(counted.render())
    main = {"target": "main"}
    for name in (
        "connects", "resets", "statements", "transactions_opened",
    ):  # fmt: skip
        assert value(series, f"pgsluice_{name}_total", **main) == 1
    assert value(series, "pgsluice_discards_total", **main, reason="age") == 1
    assert value(series, "pgsluice_cancels_total", **main, reason="hangup") == 1
    assert value(series, "pgsluice_transactions_ended_total", **main, reason="expired") == 1
    assert value(series, "pgsluice_queue_refusals_total", **main, reason="timeout") == 1
    failed = "pgsluice_connect_failures_total"
    assert value(series, failed, **main, code="database_unavailable") == 1
    assert value(series, "pgsluice_refusals_total", code="database_error") == 1
    requests = "pgsluice_requests_total"
    assert value(series, requests, operation="execute", status="200") == 1
    assert value(series, requests, operation="execute", status="400") == 1
    assert value(series, "pgsluice_config_reloads_total", outcome="loaded") == 1
    assert value(series, "pgsluice_config_reloads_total", outcome="refused") == 1
    assert value(series, "pgsluice_config_last_reload_successful") == 0
    assert value(series, "pgsluice_queue_wait_seconds_bucket", **main, le="0.01") == 0
    assert value(series, "pgsluice_queue_wait_seconds_bucket", **main, le="0.025") == 1
    assert value(series, "pgsluice_transaction_seconds_bucket", **main, le="180") == 1
    assert value(series, "pgsluice_transaction_seconds_sum", **main) == 180
    assert value(series, "pgsluice_connect_seconds_count", **main) == 1
    assert value(series, "pgsluice_statement_seconds_sum", **main) == pytest.approx(0.3)
    assert value(series, "pgsluice_request_seconds_count", operation="execute") == 2
    assert value(series, "pgsluice_response_bytes_sum") == 602


def test_everything_defined_is_shown_with_its_labels_and_nothing_else() -> None:
    counted = metrics()
    happen(counted)
    families = {
        family.name: family for family in text_string_to_metric_families(counted.render().decode())
    }
    defined = {each.name.removesuffix("_total"): each for each in DEFINITIONS}
    assert families.keys() == defined.keys()
    for name, definition in defined.items():
        family = families[name]
        assert (family.type, family.documentation) == (definition.kind, definition.help)
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(definition.labels)


def test_a_target_shows_itself_before_anything_happened_on_it() -> None:
    series = read(metrics(main=QUIET, other=QUIET._replace(limit=3, waiting=2)).render())
    for target in ("main", "other"):
        assert value(series, "pgsluice_connects_total", target=target) == 0
        assert value(series, "pgsluice_queue_wait_seconds_count", target=target) == 0
    assert value(series, "pgsluice_connections_limit", target="other") == 3
    assert value(series, "pgsluice_queue_waiting", target="other") == 2


def test_a_target_that_left_is_not_shown() -> None:
    counted = metrics(other=QUIET)
    happen(counted)
    shown = {dict(labels).get("target") for name, labels in read(counted.render())
             if name.endswith(("_seconds_count", "_connects_total"))}  # fmt: skip
    assert "main" not in shown


def test_names_are_escaped_and_large_numbers_keep_their_last_digit() -> None:
    counted = metrics(**{'a"b\\c\nd': QUIET})
    for _ in range(3):
        counted.request_finished("execute", 200, None, 0.1, (1 << 53) // 3)
    series = read(counted.render())
    assert value(series, "pgsluice_connections", target='a"b\\c\nd') == 0
    assert value(series, "pgsluice_response_bytes_sum") == (1 << 53) // 3 * 3


def test_a_listener_hears_what_it_listens_to_once() -> None:
    class Heard(Observer):
        def __init__(self) -> None:
            self.what: list[Any] = []

        def happened(self, observation: Any) -> None:
            self.what.append(observation)

    first, second = Heard(), Heard()
    counted = metrics()
    happen(Observers([first, counted, second]))
    alone = metrics()
    happen(alone)
    assert counted.render() == alone.render()
    assert first.what == second.what
    assert len(first.what) == 9


def test_promtool_finds_no_fault() -> None:
    counted = metrics()
    happen(counted)
    promtool = debian("promtool", "prometheus")
    done = subprocess.run(
        [promtool, "check", "metrics"], input=counted.render(), capture_output=True, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr).decode()


def test_a_running_gateway_counts_what_callers_do(database: Database) -> None:
    def shown(gateway: Gateway) -> Series:
        return read(httpx2.get(gateway.admin_url + "/metrics").content)

    main = {"target": "main"}
    with (
        running(settings_for(database, max_connections=1), database) as gateway,
        gateway.http() as client,
        ThreadPoolExecutor(1) as threads,
    ):
        assert value(shown(gateway), "pgsluice_caller_connections") == 0
        long = {"sql": "select pg_sleep(60)"}
        first = threads.submit(
            lambda: httpx2.post(
                gateway.url + "/execute",
                json=long,
                headers={
                    "authorization": f"Bearer {gateway.token}",
                    "x-gateway-request-id": "long-one",
                },
                timeout=60,
            )
        )
        until(
            lambda: value(shown(gateway), "pgsluice_connections_in_use", **main) == 1,
            "it never began",
        )
        head = {"x-gateway-deadline-ms": "20"}
        late = client.post("/execute", json={"sql": "select 1"}, headers=head)
        assert late.json()["code"] == "queue_timeout"
        until(
            lambda: client.delete("/statements/long-one").status_code == 202, "it was never found"
        )
        assert first.result().json()["sqlstate"] == "57014"
        transaction = client.post("/transactions", json={}).json()["transaction"]
        inside = {"sql": "select 1", "transaction": transaction}
        assert client.post("/execute", json=inside).status_code == 200
        assert client.post(f"/transactions/{transaction}/commit").status_code == 200
        assert client.post("/execute", json={"sql": "select 1/0"}).status_code == 400
        assert httpx2.get(gateway.url + "/nowhere").status_code == 404
        until(
            lambda: value(shown(gateway), "pgsluice_connections_in_use", **main) == 0,
            "a place was not given back",
        )
        until(lambda: value(shown(gateway), "pgsluice_requests_active") == 0, "one goes on")
        page = shown(gateway)
    refusals = "pgsluice_queue_refusals_total"
    assert value(page, refusals, **main, reason="timeout") == 1
    assert value(page, "pgsluice_cancels_total", **main, reason="request") == 1
    assert value(page, "pgsluice_transactions_ended_total", **main, reason="committed") == 1
    assert value(page, "pgsluice_transaction_seconds_count", **main) == 1
    # The long one, the transaction's beginning, its statement and its end, the faulty one.
    assert value(page, "pgsluice_statement_seconds_count", **main) == 5
    assert value(page, "pgsluice_statements_total", **main) == 5
    assert value(page, "pgsluice_queue_wait_seconds_count", **main) >= 3
    assert value(page, "pgsluice_connect_seconds_count", **main) >= 1
    assert value(page, "pgsluice_resets_total", **main) >= 3
    for code in ("queue_timeout", "database_error", "not_found"):
        assert value(page, "pgsluice_refusals_total", code=code) >= 1
    assert value(page, "pgsluice_requests_total", operation="", status="404") == 1
    assert value(page, "pgsluice_caller_connections") == 1
    answered = value(page, "pgsluice_request_seconds_count", operation="execute")
    assert answered == 4
    for name, labels in page:
        assert {label for label, _ in labels} <= {
            "code", "le", "operation", "outcome", "reason", "result", "state", "status", "target",
        }, name  # fmt: skip
