"""SQLAlchemy's tests for dialects, all of them.

Two fixtures know the gateway; what the tests ask is untouched.
"""

from sqlalchemy import event
from sqlalchemy.schema import CreateIndex, CreateTable
from sqlalchemy.testing.suite import *  # noqa: F403
from sqlalchemy.testing.suite import ComponentReflectionTest as _ComponentReflectionTest
from sqlalchemy.testing.suite import HasTableTest as _HasTableTest
from sqlalchemy.testing.suite import ServerSideCursorsTest as _ServerSideCursorsTest


class ServerSideCursorsTest(_ServerSideCursorsTest):
    """The suite knows by a driver's name how its cursors say that they stream."""

    def _is_server_side(self, cursor):
        if self.engine.dialect.driver == "pgsluice":
            return cursor.streams
        return super()._is_server_side(cursor)


class _InEachTransaction:
    """Makes the temporary tables of a class at the begin of each transaction.

    Through the gateway they end with the transaction that made them. The suite makes them
    once for a class, in a transaction of their own, and looks for them in later ones.
    """

    @classmethod
    def _setup_once_tables(cls):
        super()._setup_once_tables()
        if cls.bind.dialect.driver == "pgsluice":
            table = cls.tables[cls.temp_table_name()]
            made = [CreateTable(table), *(CreateIndex(index) for index in table.indexes)]
            words = [str(each.compile(dialect=cls.bind.dialect)) for each in made]
            words.append(f"create temporary view user_tmp_v as select * from {table.name}")

            @event.listens_for(cls.bind, "begin")
            def make(connection):
                for sql in words:
                    connection.exec_driver_sql(sql)


class ComponentReflectionTest(_InEachTransaction, _ComponentReflectionTest):
    """Reflection, of temporary tables as well."""


class HasTableTest(_InEachTransaction, _HasTableTest):
    """Whether a table is there, a temporary one as well."""
