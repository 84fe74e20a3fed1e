"""SQLAlchemy's tests for dialects, all of them."""

from sqlalchemy.testing.suite import *  # noqa: F403
