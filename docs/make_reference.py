"""Writes the pages of the reference that are made from the code.

    python docs/make_reference.py

`settings.md` from `gateway/settings/model.py`, `errors.md` from `gateway/core/errors.py`,
`metrics.md` from the definitions in `gateway/observe/metrics.py`, `endpoints.md` from
`openapi.yaml`. A test compares.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from gateway import settings as knobs  # noqa: E402  # found by the path above
from gateway.api.operations import admin  # noqa: E402  # found by the path above
from gateway.core import errors  # noqa: E402  # found by the path above
from gateway.core.model import Limits  # noqa: E402  # found by the path above
from gateway.core.policy import ClaimRef, Rule  # noqa: E402  # found by the path above
from gateway.core.pool_policy import Reason  # noqa: E402  # found by the path above
from gateway.core.transaction import Event, is_end  # noqa: E402  # found by the path above
from gateway.observe.metrics import DEFINITIONS, NODES, REFUSED, RELAYED  # noqa: E402  # found by the path above
from gateway.settings.auth import KeyEntry  # noqa: E402  # found by the path above

REFERENCE = ROOT / "docs" / "reference"
_MADE = "<!-- Made by docs/make_reference.py; change the code instead. -->\n\n"
_SECTIONS: tuple[tuple[str, type, str], ...] = (
    ("[server]", knobs.ServerSettings, "PGSLUICE_SERVER__PORT"),
    ("[auth]", knobs.AuthSettings, "PGSLUICE_AUTH__MASTER_KEY"),
    ("[auth.keys.KEY_ID]", KeyEntry, "PGSLUICE_AUTH__KEYS__GWAK…__PRINCIPAL"),
    ("[sigv4]", knobs.SigV4Settings, "PGSLUICE_SIGV4__HOST_ALIASES"),
    ("[tokens]", knobs.TokenSettings, "PGSLUICE_TOKENS__TTL"),
    ("[iam]", knobs.IamSettings, "PGSLUICE_IAM__ENABLED"),
    ("[cors]", knobs.CorsSettings, "PGSLUICE_CORS__ORIGINS"),
    ("[[issuers]]", knobs.IssuerSettings, ""),
    ("[targets.NAME]", knobs.TargetSettings, "PGSLUICE_TARGETS__MAIN__STATEMENT_TIMEOUT"),
    (
        "[targets.NAME.logins.LOGIN]",
        knobs.LoginSettings,
        "PGSLUICE_TARGETS__MAIN__LOGINS__APP__USER",
    ),
    ("[targets.NAME.pool]", knobs.PoolSettings, "PGSLUICE_TARGETS__MAIN__POOL__MAX_CONNECTIONS"),
    (
        "[targets.NAME.transactions]",
        knobs.TransactionSettings,
        "PGSLUICE_TARGETS__MAIN__TRANSACTIONS__IDLE_TIMEOUT",
    ),
    ("[nodes]", knobs.NodesSettings, "PGSLUICE_NODES__PEERS"),
    ("[observe]", knobs.ObserveSettings, "PGSLUICE_OBSERVE__AUDIT_FILE"),
    ("[[policy]]", Rule, ""),
    ("limits in a [[policy]]", Limits, ""),
    ("a claim in a [[policy]]", ClaimRef, ""),
)


_NOT_THERE = {("AuthSettings", "keys"), ("AuthSettings", "issuers"), ("TargetSettings", "name")}
"""Fields that stand elsewhere in the file: in tables of their own, or in a table's name."""


def _source(kind: type) -> ast.ClassDef:
    tree = ast.parse(inspect.getsource(inspect.getmodule(kind)))  # type: ignore[arg-type]
    return next(
        node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == kind.__name__
    )


def _meanings(kind: type) -> dict[str, tuple[str, str]]:
    """Type as written and the string below it, for each field of *kind*."""
    found: dict[str, tuple[str, str]] = {}
    last = ""
    for node in _source(kind).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            last = node.target.id
            found[last] = (ast.unparse(node.annotation), "")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and last:
            text = inspect.cleandoc(str(node.value.value))
            found[last] = (found[last][0], " ".join(text.split()))
            last = ""
    return found


def _default(field: Any) -> str:
    if field.default is not dataclasses.MISSING:
        value = field.default
    elif field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    else:
        return "required"
    if dataclasses.is_dataclass(value):
        return "see below"
    if value is None or value in ((), {}, b""):
        return ""
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def settings_page() -> str:
    """Every knob with its default."""
    lines = [
        "# Settings",
        "",
        "One TOML file (`--config`, or `PGSLUICE_CONFIG`) and the environment, which wins. A",
        "variable is `PGSLUICE_`, then the tables and the name joined by `__`; lists are written",
        "with commas. `PORT` is `server.port`; `DATABASE_URL` is the target `main` with one login.",
        "Times are seconds, sizes are bytes. `log_level`, at the top of the file, is one of",
        "`debug`, `info`, `warning`, `error`, `off`; the default is `info`.",
        "",
        "Secrets can be kept in files: `auth.master_key_file`, `password_file` of a login and",
        "`secret_file` of an issuer are read instead of the value itself. `compat`",
        "is accepted and has no effect yet.",
    ]
    for title, kind, example in _SECTIONS:
        lines += ["", f"## {title}", "", " ".join((kind.__doc__ or "").split())]
        if example:
            lines += ["", f"In the environment for example `{example}`."]
        lines += ["", "| name | type | default | meaning |", "|---|---|---|---|"]
        meanings = _meanings(kind)
        for field in dataclasses.fields(kind):
            if (kind.__name__, field.name) in _NOT_THERE:
                continue
            type_, meaning = meanings.get(field.name, (str(field.type), ""))
            lines.append(
                f"| `{field.name}` | `{_cell(type_)}` | {_cell(_default(field))}"
                f" | {_cell(meaning)} |"
            )
    return _MADE + "\n".join(lines) + "\n"


def errors_page() -> str:
    """Every error with its status and what it means for the caller."""
    lines = [
        "# Errors",
        "",
        "The native API answers with `application/problem+json`; `code` never changes its meaning.",
        "`outcome` says whether the statement took effect, `retry` whether to send it again. The",
        "Data API's answers carry the exception names of AWS instead: see",
        "`gateway/api/rds_data/failures.py`. Rows with one code differ in when they happen.",
        "",
        "| code | status | retry | outcome | meaning |",
        "|---|---|---|---|---|",
    ]
    for node in ast.parse(inspect.getsource(errors)).body:
        kind = getattr(errors, node.name, None) if isinstance(node, ast.ClassDef) else None
        if isinstance(kind, type) and issubclass(kind, errors.GatewayError):
            if kind is errors.GatewayError:
                continue
            meaning = (kind.__doc__ or "").splitlines()[0]
            lines.append(
                f"| `{kind.code}` | {kind.status} | {kind.retry.value} | {kind.outcome.value}"
                f" | {_cell(meaning)} |"
            )
    return _MADE + "\n".join(lines) + "\n"


def metrics_page() -> str:
    """Every metric with its labels, and what others call the nearest thing."""
    lines = [
        "# Metrics",
        "",
        "`GET /metrics` on the admin listener, in Prometheus' text format. No label holds SQL,",
        "a user or a tenant. Times are seconds, sizes are bytes. A histogram has the series",
        "`_bucket`, `_sum` and `_count`.",
        "",
        "Beside each stands the nearest thing that RDS Proxy (in CloudWatch) and PgBouncer (on its",
        "console) have; they do not always count the same.",
        "",
        "| name | kind | labels | meaning | RDS Proxy; PgBouncer |",
        "|---|---|---|---|---|",
    ]
    for metric in DEFINITIONS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        lines.append(
            f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} | {metric.beside} |"
        )
    lines += ["", "## Reasons", "", "| metric | reason | meaning |", "|---|---|---|"]
    for name, reason, meaning in _reasons():
        lines.append(f"| `{name}` | `{reason}` | {_cell(meaning)} |")
    return _MADE + "\n".join(lines) + "\n"


def _reasons() -> Iterator[tuple[str, str, str]]:
    for name, kind in (
        ("pgsluice_discards_total", Reason),
        ("pgsluice_transactions_ended_total", Event),
    ):
        for member, (value, meaning) in _members(kind).items():
            if kind is Reason or is_end(Event[member]):
                yield name, value, meaning
    for reason, meaning in (
        ("deadline", "The caller's, the statement's or the target's time was over."),
        ("hangup", "The caller went away."),
        ("request", "Somebody asked for it by its request id."),
        ("drain", "The grace time of a node that is to stop was over."),
    ):
        yield "pgsluice_cancels_total", reason, meaning
    for reason, meaning in (
        ("full", "The tenant had as many waiting as it may have."),
        ("early", "It would have waited in vain, and was told at once."),
        ("timeout", "No turn came before its deadline."),
        ("hangup", "The caller went away, or the request was cancelled."),
        ("draining", "The node is to stop."),
    ):
        yield "pgsluice_queue_refusals_total", reason, meaning
    for reason, meaning in REFUSED.items():
        yield "pgsluice_caller_connections_refused_total", reason, meaning
    for state, meaning in NODES.items():
        yield "pgsluice_nodes", state, meaning
    for result, meaning in RELAYED.items():
        yield "pgsluice_relayed_total", result, meaning


def _members(kind: type[Enum]) -> dict[str, tuple[str, str]]:
    """Value and the string below it, for each member of *kind*."""
    found: dict[str, tuple[str, str]] = {}
    last = ""
    for node in _source(kind).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            last = node.targets[0].id
            found[last] = (kind[last].value, "")
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and last:
            found[last] = (found[last][0], " ".join(str(node.value.value).split()))
    return found


_ADMIN = {
    "/metrics": "Counters and gauges for Prometheus.",
    "/livez": "Whether the process answers.",
    "/targets/{name}/pause": "Hold the queue of a target; `timeout` seconds for what runs to end.",
    "/targets/{name}/resume": "Let in what waits.",
}
_METHODS = ("get", "head", "post", "put", "patch", "delete", "options")


def endpoints_page() -> str:
    """Every endpoint of the public listener, from openapi.yaml, and of the admin listener."""
    document = yaml.safe_load((ROOT / "openapi.yaml").read_text(encoding="utf-8"))
    lines = [
        "# Endpoints",
        "",
        "What the public listener serves; `GET /openapi.yaml` has every field, and `GET /docs` a",
        "page to read. What an error means is in [Errors](errors.md).",
    ]
    for tag in document["tags"]:
        rows = [
            f"| `{method.upper()} {path}` | {_cell(operation['summary'])} |"
            f" {_let_in(operation, document)} | {', '.join(operation['responses'])} |"
            for path, item in document["paths"].items()
            for method, operation in item.items()
            if method in _METHODS and tag["name"] in operation["tags"]
        ]
        lines += ["", f"## {tag['name']}", "", tag["description"], ""]
        lines += ["| endpoint | what it does | who may | answers |", "|---|---|---|---|", *rows]
    lines += [
        "",
        "## The admin listener",
        "",
        "On `server.admin_host` and `server.admin_port`. It asks for no credentials: keep it off",
        "public networks.",
        "",
        "| endpoint | what it does |",
        "|---|---|",
    ]
    for route in admin(bytes, None).routes:  # type: ignore[arg-type]
        method = "POST" if "POST" in route.methods else "GET"  # type: ignore[attr-defined]
        path = route.path  # type: ignore[attr-defined]
        lines.append(f"| `{method} {path}` | {_ADMIN[path]} |")
    return _MADE + "\n".join(lines) + "\n"


def _let_in(operation: dict[str, Any], document: dict[str, Any]) -> str:
    schemes = [name for each in operation.get("security", document["security"]) for name in each]
    known = {"bearer": "a token", "sigv4": "a signature", "node": "another node"}
    return " or ".join(known.get(name, name) for name in schemes) or "anybody"


def pages() -> dict[str, str]:
    """All pages by file name."""
    return {
        "settings.md": settings_page(),
        "errors.md": errors_page(),
        "metrics.md": metrics_page(),
        "endpoints.md": endpoints_page(),
    }


def main() -> None:
    """Write all pages."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
