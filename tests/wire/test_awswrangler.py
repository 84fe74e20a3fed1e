"""awswrangler (the AWS SDK for pandas), its data_api.rds, unmodified."""

from __future__ import annotations

from typing import Any

import pytest

from tests.wire import vendor_suites

pytestmark = [pytest.mark.wire, pytest.mark.slow]

SUITE = vendor_suites.python("awswrangler", "awswrangler")


@pytest.fixture(scope="module")
def results(postgres: Any) -> dict[str, str]:
    return vendor_suites.results(SUITE, postgres)


@pytest.mark.parametrize("promise", SUITE.promises)
def test_awswrangler(results: dict[str, str], promise: str) -> None:
    assert not results[promise], results[promise]
