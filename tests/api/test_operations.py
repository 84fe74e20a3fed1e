"""The documents: openapi.yaml against the code, and the page made of it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
import yaml

from gateway.api.auth import PATH as AUTH_PATH
from gateway.api.docs import render_docs
from gateway.api.native import codec
from gateway.api.operations import PUBLIC_PATHS, read_document
from gateway.app import App
from gateway.core import errors, nodes
from gateway.settings import AuthSettings, NodesSettings, Settings

DOCUMENT: dict[str, Any] = yaml.safe_load(read_document())
SCHEMAS: dict[str, Any] = DOCUMENT["components"]["schemas"]


def _errors(kind: type[errors.GatewayError]) -> Iterator[type[errors.GatewayError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from _errors(each)


def _operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield path, method, operation


@pytest.mark.anyio
async def test_the_document_has_every_route_and_no_other() -> None:
    app = App(
        Settings(
            auth=AuthSettings(master_key=b"k" * 32),
            nodes=NodesSettings(peers=("http://127.0.0.1:1",)),
        )
    )
    served = {("/nodes", "post"), (AUTH_PATH, "post")}
    served |= {(path, "get") for path in PUBLIC_PATHS}
    for dialect in (app._native, app._rds_data):
        served |= {(path, method.lower()) for path, method in dialect.routes()}
    await app.close()
    assert served == {(path, method) for path, method, _ in _operations()}


def test_what_nodes_say_is_as_the_document_has_it() -> None:
    said = yaml.safe_load(nodes.write_told(nodes.Told("00" * 6, False, {"main": 3})))
    schema = SCHEMAS["Told"]
    assert said.keys() == schema["properties"].keys() == set(schema["required"])
    assert re.fullmatch(schema["properties"]["boot"]["pattern"], said["boot"])


def test_requests_have_the_members_that_the_codec_reads() -> None:
    for name in ("Execute", "Batch", "Begin", "Statement"):
        fields = {field.name for field in msgspec.structs.fields(getattr(codec, f"_{name}"))}
        assert set(SCHEMAS[name]["properties"]) == fields
        assert SCHEMAS[name]["additionalProperties"] is False


def test_every_error_code_is_in_the_document() -> None:
    codes = {each.code for each in _errors(errors.GatewayError)}
    assert codes <= set(SCHEMAS["Problem"]["properties"]["code"]["enum"])


def test_problems_have_the_words_of_the_code() -> None:
    assert set(SCHEMAS["Retry"]["enum"]) == {each.value for each in errors.Retry}
    assert set(SCHEMAS["Outcome"]["enum"]) == {each.value for each in errors.Outcome}


def test_every_response_is_named_by_its_status() -> None:
    for path, method, operation in _operations():
        assert "default" not in operation["responses"], (path, method)
        assert all(re.fullmatch(r"\d{3}", status) for status in operation["responses"])


def test_every_reference_leads_somewhere() -> None:
    for reference in set(re.findall(r'\$ref: "#/([^"]+)"', read_document())):
        at: Any = DOCUMENT
        for part in reference.split("/"):
            at = at[part]


def test_the_page_lists_every_operation_and_asks_nobody_else() -> None:
    page = render_docs(read_document)
    for path, method, operation in _operations():
        assert f"<b>{method.upper()}</b></td><td><code>{path}</code>" in page
        assert operation["summary"] in page
    assert not re.search(r"(src|href)=", page)


def test_the_page_escapes_what_it_shows() -> None:
    page = render_docs(lambda: "  /a&b:\n    get:\n      summary: <script>\n")
    assert "<script>" not in page
    assert "/a&amp;b" in page
