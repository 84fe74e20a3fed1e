"""SQLAlchemy's tests for dialects, all of them."""

from sqlalchemy.testing.suite import *  # noqa: F403
from sqlalchemy.testing.suite import ServerSideCursorsTest as _ServerSideCursorsTest


class ServerSideCursorsTest(_ServerSideCursorsTest):
    """The suite knows by a driver's name how its cursors say that they stream."""

    def _is_server_side(self, cursor):
        if self.engine.dialect.driver == "pgsluice":
            return cursor.streams
        return super()._is_server_side(cursor)
