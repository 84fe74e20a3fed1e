"""`POST /copy/{table}`: what its headers and its query say, and its answer."""

from __future__ import annotations

from collections.abc import Mapping

import orjson

from ...core.errors import InvalidRequest, UnsupportedMediaType
from ...core.formats.upload import names
from ...core.model import Ask, Call, Principal
from ...engine.copy import CopyIn
from ...engine.engine import Engine, Reply
from ..exchange import Exchange
from . import codec

_FORMS = {"text/csv": "csv", "application/x-ndjson": "ndjson"}
_ARGUMENTS = frozenset({"table", "columns", "target", "database", "timeout", "transaction"})
_MAX_COLUMNS = 1_600
"""What a table of PostgreSQL may have."""


def read_copy(exchange: Exchange, path: Mapping[str, str]) -> CopyIn:
    """The request, but for its body, which is still to come.

    Raises:
        UnsupportedMediaType: The body is neither CSV nor NDJSON.
    """
    unknown = sorted(path.keys() - _ARGUMENTS)
    if unknown:
        raise InvalidRequest("the query has an argument that is not known", field=unknown[0])
    empty = sorted(name for name in _ARGUMENTS if path.get(name) == "")
    if empty:
        # What is left out has a meaning of its own: rows meant for a transaction would be kept.
        raise InvalidRequest("an argument of the query is empty", field=empty[0])
    kind, _, rest = (exchange.header(b"content-type") or b"").decode("latin-1").partition(";")
    form = _FORMS.get(kind.strip().lower())
    parameters = dict(_parameters(rest))
    if form is None or parameters.get("charset", "utf-8") not in ("utf-8", "utf8"):
        raise UnsupportedMediaType(
            "the body is neither CSV nor NDJSON in UTF-8",
            hint="Content-Type: text/csv or application/x-ndjson",
        )
    if parameters.get("header", "present") not in ("present", "absent"):
        raise UnsupportedMediaType("header must be present or absent")
    columns: tuple[str, ...] = ()
    if "columns" in path:
        columns = names(path["columns"], ",", _MAX_COLUMNS)
    timeout = None
    if "timeout" in path:
        try:
            timeout = float(path["timeout"])
        except ValueError:
            timeout = 0.0
        if not 0 < timeout <= 86_400:
            raise InvalidRequest("timeout must be more than 0, 86400 at most", field="timeout")
    return CopyIn(
        Ask(path.get("target"), None, path.get("database")),
        names(path["table"]),
        columns,
        form,
        parameters.get("header") != "absent",
        exchange.upload(),
        timeout,
        path.get("transaction"),
    )


def _parameters(text: str) -> list[tuple[str, str]]:
    pairs = []
    for part in text.split(";"):
        name, equals, value = part.partition("=")
        if equals:
            pairs.append((name.strip().lower(), value.strip().strip('"').lower()))
    return pairs


async def run_copy(engine: Engine, who: Principal, request: CopyIn, call: Call) -> Reply:
    """Put the rows in."""
    return await engine.copy(who, request, call)


async def write_copy(exchange: Exchange, request: CopyIn, reply: Reply) -> None:
    """How many they were."""
    assert reply.result is not None
    answer: dict[str, object] = {"row_count": reply.result.row_count}
    if reply.result.notices:
        answer["notices"] = list(reply.result.notices)
    if reply.transaction is not None:
        answer["transaction"] = codec.write_open(reply.transaction)
    await exchange.send(200, codec.JSON, orjson.dumps(answer))
