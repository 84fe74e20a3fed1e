"""Writes the pages of the reference that are made from the code.

    python docs/make_reference.py

`settings.md` from `gateway/settings.py`, `errors.md` from `gateway/core/errors.py`,
`metrics.md` from a gateway that was asked for its metrics. A test compares.
"""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import inspect
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from gateway import settings as knobs  # noqa: E402
from gateway.app import create_app  # noqa: E402
from gateway.core import errors  # noqa: E402
from gateway.core.model import Limits  # noqa: E402
from gateway.core.policy import ClaimRef, Rule  # noqa: E402

REFERENCE = ROOT / "docs" / "reference"
_MADE = "<!-- Made by docs/make_reference.py; change the code instead. -->\n\n"
_SECTIONS: tuple[tuple[str, type, str], ...] = (
    ("[server]", knobs.ServerSettings, "PGSLUICE_SERVER__PORT"),
    ("[auth]", knobs.AuthSettings, "PGSLUICE_AUTH__MASTER_KEY"),
    ("[auth.keys.KEY_ID]", knobs._KeyEntry, "PGSLUICE_AUTH__KEYS__GWAK…__PRINCIPAL"),
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
    """Every metric with its labels."""

    async def gather() -> list[Any]:
        target = knobs.TargetSettings(name="main", hosts=(("127.0.0.1", 5432),))
        app = create_app(knobs.Settings(targets={"main": target}))
        for each in app.targets.by_name.values():
            counters = each.counters
            counters.discard("age")
            counters.cancel("deadline")
            counters.end("committed")
        app.server.counts.add("execute", 400, "database_error")
        return list(app._metrics())

    lines = [
        "# Metrics",
        "",
        "`GET /metrics` on the admin listener, in Prometheus' text format. Counters and gauges;",
        "there are no histograms, the times of each request are in the access log.",
        "",
        "| name | kind | labels | meaning |",
        "|---|---|---|---|",
    ]
    for metric in asyncio.run(gather()):
        labels = ", ".join(f"`{label}`" for label in next(iter(metric.samples)).labels)
        lines.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return _MADE + "\n".join(lines) + "\n"


def pages() -> dict[str, str]:
    """All pages by file name."""
    return {
        "settings.md": settings_page(),
        "errors.md": errors_page(),
        "metrics.md": metrics_page(),
    }


def main() -> None:
    """Write all pages."""
    REFERENCE.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (REFERENCE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
