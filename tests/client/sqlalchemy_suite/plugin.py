"""Becomes the `conftest.py` of SQLAlchemy's dialect suite."""

import pytest
from sqlalchemy.dialects import registry

pytest.register_assert_rewrite("sqlalchemy.testing.assertions")
registry.register("postgresql.pgsluice", "pgsluice.sqlalchemy", "Dialect")
registry.register("postgresql.pgsluice_async", "pgsluice.sqlalchemy", "AsyncDialect")

# How the suite makes temporary tables and the like; only SQLAlchemy's own drivers load it.
import sqlalchemy.dialects.postgresql.provision  # noqa: E402, F401
from sqlalchemy.testing.plugin.pytestplugin import *  # noqa: E402, F403
