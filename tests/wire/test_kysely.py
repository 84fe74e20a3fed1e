"""kysely-data-api, unmodified; what is asserted stands in the suite."""

from __future__ import annotations

from typing import Any

import pytest

from tests.wire import vendor_suites

pytestmark = pytest.mark.wire

SUITE = vendor_suites.javascript("kysely")


@pytest.fixture(scope="module")
def results(postgres: Any) -> dict[str, str]:
    return vendor_suites.results(SUITE, postgres)


@pytest.mark.parametrize("promise", SUITE.promises)
def test_kysely(results: dict[str, str], promise: str) -> None:
    assert not results[promise], results[promise]
