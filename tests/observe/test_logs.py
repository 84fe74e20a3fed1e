from __future__ import annotations

import io
import json
import math
from typing import Any

import pytest

from gateway.core.model import Call
from gateway.core.observation import (
    ConfigurationLoaded,
    ConfigurationRefused,
    ConnectFailed,
    ConnectionClosed,
    DrainBegan,
)
from gateway.observe.logs import RequestLog
from gateway.observe.told import Ended


def lines(out: io.BytesIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.getvalue().splitlines()]


def request(log: RequestLog, status: int = 200) -> None:
    call = Call("r", math.inf, 0.0, running=0.001)
    log.request(Ended("execute", call, None, status, None, "ok", None, 0, 0.0, 0.002))


def test_what_happens_to_the_node_is_a_line_at_once() -> None:
    out = io.BytesIO()
    log = RequestLog("info", out)
    log.happened(DrainBegan(3, 1))
    log.happened(ConfigurationLoaded(["policy"], ["server.port"]))
    log.happened(ConfigurationRefused(["policy: has no rule (from a file)", "log_level: is wrong"]))
    log.happened(ConnectFailed("main", "database_unavailable", 0.25))
    told = [{key: line[key] for key in line if key != "time"} for line in lines(out)]
    assert told == [
        {"level": "info", "event": "drain_began", "running": 3, "transactions": 1},
        {
            "level": "warning",
            "event": "configuration_loaded",
            "changed": ["policy"],
            "takes_a_restart": ["server.port"],
        },
        {
            "level": "error",
            "event": "configuration_refused",
            "problems": ["policy: has no rule (from a file)", "log_level: is wrong"],
        },
        {
            "level": "warning",
            "event": "connect_failed",
            "target": "main",
            "code": "database_unavailable",
            "took_ms": 250.0,
        },
    ]


def test_what_is_counted_only_has_no_line() -> None:
    out = io.BytesIO()
    RequestLog("debug", out).happened(ConnectionClosed("main", "age"))
    assert out.getvalue() == b""


@pytest.mark.parametrize(
    ("level", "expected"),
    [("info", 3), ("warning", 2), ("error", 2), ("off", 0)],
)
def test_the_level_decides_what_is_written(level: str, expected: int) -> None:
    out = io.BytesIO()
    log = RequestLog("debug", out)
    log.set_level(level)
    request(log)
    request(log, status=500)
    log.happened(ConfigurationRefused(["x"]))
    log.flush()
    assert len(lines(out)) == expected
