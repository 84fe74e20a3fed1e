"""aurora-data-api, a DB-API over boto3, unmodified; what is asserted stands in the suite."""

from __future__ import annotations

from typing import Any

import pytest

from tests.wire import vendor_suites

pytestmark = [pytest.mark.wire, pytest.mark.slow]

SUITE = vendor_suites.python("aurora_data_api", "aurora-data-api")


@pytest.fixture(scope="module")
def results(postgres: Any) -> dict[str, str]:
    return vendor_suites.results(SUITE, postgres)


@pytest.mark.parametrize("promise", SUITE.promises)
def test_aurora_data_api(results: dict[str, str], promise: str) -> None:
    assert not results[promise], results[promise]
