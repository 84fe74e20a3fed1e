from __future__ import annotations

import pytest

from gateway.core.formats.accept import Form, negotiate


@pytest.mark.parametrize(
    ("accept", "form"),
    [
        pytest.param(None, Form.JSON, id="no header accepts anything"),
        pytest.param("", Form.JSON, id="nor does an empty one exclude"),
        ("*/*", Form.JSON),
        ("application/*", Form.JSON),
        ("text/*", Form.CSV),
        ("TEXT/CSV", Form.CSV),
        ("application/x-ndjson", Form.NDJSON),
        ("application/x-ndjson; frames=1", Form.FRAMES),
        ('application/x-ndjson;frames="1"', Form.FRAMES),
        pytest.param("application/x-ndjson; frames=0", Form.NDJSON, id="frames only if 1"),
        ("application/vnd.apache.arrow.stream", Form.ARROW),
        pytest.param("text/csv;q=0.5, application/json;q=0.4", Form.CSV, id="the higher q wins"),
        pytest.param("text/csv, */*", Form.CSV, id="named before anything"),
        pytest.param("*/*;q=0.1, text/csv;q=0.2", Form.CSV, id="also with a low q"),
        pytest.param("text/csv, application/json", Form.CSV, id="between equals the first named"),
        pytest.param("application/json, text/csv", Form.JSON, id="and in the other order"),
        pytest.param("*/*, application/json;q=0", Form.NDJSON, id="q=0 excludes what */* includes"),
        pytest.param("text/csv;q=0", None, id="q=0 alone leaves nothing"),
        pytest.param("image/png, text/csv; q=x", None, id="a q that is no number does not count"),
        ("image/png", None),
        ("nonsense", None),
        pytest.param("text/csv; charset=utf-8", Form.CSV, id="other parameters change nothing"),
        pytest.param("text/html,application/xhtml+xml,*/*;q=0.8", Form.JSON, id="a browser"),
    ],
)
def test_the_form_is_the_one_liked_best(accept: str | None, form: Form | None) -> None:
    assert negotiate(accept) is form


def test_only_what_is_offered_is_given() -> None:
    assert negotiate("text/csv, application/json;q=0.1", (Form.JSON,)) is Form.JSON
    assert negotiate("text/csv", (Form.JSON,)) is None


def test_a_header_without_end_is_read_to_a_limit() -> None:
    assert negotiate("a/b," * 10_000 + "text/csv") is None
