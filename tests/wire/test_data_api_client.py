"""data-api-client over the AWS SDK for JavaScript v2, unmodified."""

from __future__ import annotations

from typing import Any

import pytest

from tests.wire import vendor_suites

pytestmark = [pytest.mark.wire, pytest.mark.slow]

SUITE = vendor_suites.javascript("data_api_client")


@pytest.fixture(scope="module")
def results(postgres: Any) -> dict[str, str]:
    return vendor_suites.results(SUITE, postgres)


@pytest.mark.parametrize("promise", SUITE.promises)
def test_data_api_client(results: dict[str, str], promise: str) -> None:
    assert not results[promise], results[promise]
