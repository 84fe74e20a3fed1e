"""SQLAlchemy's own dialect suite, by both engines, beside psycopg on the same server."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pgsluice
import pytest

from tests.fix_gateway import Gateway, running, settings_for
from tests.fix_postgres import Database
from tests.fix_tools import python_environment

HERE = Path(__file__).parent
CLIENT = Path(pgsluice.__file__).parents[1]
LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="module")
def python() -> Path:
    """The python of an environment with SQLAlchemy in it."""
    return python_environment(HERE / "requirements-sqlalchemy.txt")


@pytest.fixture
def shop(database: Database) -> Iterator[Gateway]:
    """A gateway with the schemas that the suite wants."""
    database.sql("create extension citext; create extension hstore")
    for schema in ("test_schema", "test_schema_2"):
        database.sql(f"create schema {schema} authorization {database.app_user}")
    with running(settings_for(database), database) as gateway:
        yield gateway


def url_of(gateway: Gateway) -> str:
    return f"postgresql+pgsluice://:{gateway.token}@{LOOPBACK}:{gateway.port}/?tls=false"


def outcomes(python: Path, folder: Path, uri: str) -> dict[str, str]:
    """Each test of the suite with what came of it over *uri*: passed, failed or skipped."""
    folder.mkdir()
    for source in (HERE / "sqlalchemy_suite").iterdir():
        if source.is_file():
            name = "conftest.py" if source.name == "plugin.py" else source.name
            shutil.copy(source, folder / name)
    report = folder / "report.xml"
    command = [str(python), "-m", "pytest", "-q", "-p", "no:cacheprovider", "--dburi", uri]
    done = subprocess.run(
        [*command, "--maxfail=100000", f"--junitxml={report}", "suite.py"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CLIENT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert report.exists(), done.stdout[-2000:] + done.stderr[-2000:]
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        # SQLAlchemy puts the driver into the names of its classes.
        name = f"{case.get('classname', '').partition('_postgresql')[0]}.{case.get('name')}"
        bad = case.find("failure") is not None or case.find("error") is not None
        state = "failed" if bad else "skipped" if case.find("skipped") is not None else "passed"
        found[name] = state
    return found


def exceptions() -> dict[str, str]:
    """Tests that the gateway cannot pass, each with the reason why."""
    found = {}
    for line in (HERE / "sqlalchemy_suite" / "exceptions.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, _, reason = line.partition("  ")
            found[name] = reason.strip()
    assert all(found.values())
    return found


@pytest.mark.slow
def test_what_passes_over_psycopg_passes_over_the_gateway(
    python: Path, shop: Gateway, database: Database, tmp_path: Path
) -> None:
    port = database.server.port
    direct = f"postgresql+psycopg://{database.app_user}@{LOOPBACK}:{port}/{database.name}"
    reference = outcomes(python, tmp_path / "psycopg", direct)
    passed = {name for name, state in reference.items() if state == "passed"}
    assert len(passed) > 1_500
    listed = exceptions()
    assert len(listed) <= 0.02 * len(passed)
    for driver in ("pgsluice", "pgsluice_async"):
        url = url_of(shop).replace("+pgsluice:", f"+{driver}:")
        ours = outcomes(python, tmp_path / driver, url)
        worse = {name for name in passed if ours.get(name) != "passed"}
        assert worse <= set(listed), "\n".join(sorted(worse - set(listed)))
        assert set(listed) <= worse, "these pass by now: take them off the list"


PROGRAM = """
import asyncio, datetime, decimal, enum, sys
import sqlalchemy as sa
from sqlalchemy import orm
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.ext.asyncio.exc import AsyncMethodRequired

registry.register("postgresql.pgsluice", "pgsluice.sqlalchemy", "Dialect")
url = sys.argv[1]

class Mood(enum.Enum):
    glad = 1

class Base(orm.DeclarativeBase):
    pass

class Author(Base):
    __tablename__ = "author"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    name: orm.Mapped[str]
    mood: orm.Mapped[Mood]
    about: orm.Mapped[dict] = orm.mapped_column(JSONB)
    paid: orm.Mapped[decimal.Decimal] = orm.mapped_column(sa.Numeric(10, 2))
    born: orm.Mapped[datetime.datetime] = orm.mapped_column(sa.DateTime(timezone=True))
    books: orm.Mapped[list["Book"]] = orm.relationship(back_populates="author")

class Book(Base):
    __tablename__ = "book"
    id: orm.Mapped[int] = orm.mapped_column(primary_key=True)
    title: orm.Mapped[str]
    author_id: orm.Mapped[int] = orm.mapped_column(sa.ForeignKey("author.id"))
    author: orm.Mapped[Author] = orm.relationship(back_populates="books")

born = datetime.datetime(1990, 1, 2, tzinfo=datetime.timezone.utc)

def author(name):
    return Author(name=name, mood=Mood.glad, about={"a": [1]}, paid=decimal.Decimal("1.50"),
                  born=born, books=[Book(title="one"), Book(title="two")])
"""

USES = {
    "orm": """
engine = sa.create_engine(url)
Base.metadata.create_all(engine)
with orm.Session(engine) as session, session.begin():
    session.add_all([author("Ada"), author("Bob")])
with orm.Session(engine) as session:
    ada = session.scalars(sa.select(Author).options(orm.selectinload(Author.books))
                          .where(Author.name == "Ada")).one()
    assert (ada.mood, ada.about, ada.paid, ada.born) == (
        Mood.glad, {"a": [1]}, decimal.Decimal("1.50"), born)
    assert [book.title for book in ada.books] == ["one", "two"]
    ada.name = "Eve"
    session.flush()
    session.rollback()
    assert ada.name == "Ada"
    try:
        session.execute(sa.text("insert into book (title, author_id) values ('x', 0)"))
    except sa.exc.IntegrityError:
        session.rollback()
    else:
        raise AssertionError
    assert len(list(session.scalars(sa.select(Book).execution_options(yield_per=1)))) == 4
Base.metadata.drop_all(engine)
""",
    "reflection": """
engine = sa.create_engine(url)
Base.metadata.create_all(engine)
found = sa.MetaData()
found.reflect(engine)
assert set(found.tables) == {"author", "book"}
assert [key.target_fullname for key in found.tables["book"].foreign_keys] == ["author.id"]
assert isinstance(found.tables["author"].c.about.type, JSONB)
assert found.tables["author"].c.paid.type.scale == 2
assert sa.inspect(engine).get_enums()[0]["labels"] == ["glad"]
Base.metadata.drop_all(engine)
""",
    "async": """
async def main():
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(engine) as session, session.begin():
        session.add(author("Ada"))
    async with AsyncSession(engine) as session:
        ada = (await session.scalars(sa.select(Author))).one()
        assert (ada.mood, ada.paid) == (Mood.glad, decimal.Decimal("1.50"))
        assert [b.title for b in await session.scalars(sa.select(Book).order_by(Book.id))] == [
            "one", "two"]
    async with engine.connect() as connection:
        assert await connection.scalar(sa.text("select 7")) == 7
        numbers = sa.text("select n from generate_series(1, 3) n")
        assert (await connection.execute(numbers)).all() == [(1,), (2,), (3,)]
        try:
            await connection.execute(numbers, execution_options={"stream_results": True})
        except AsyncMethodRequired:
            assert await connection.scalar(sa.text("select 8")) == 8
        else:
            raise AssertionError
        rows = await connection.stream(sa.text("select n from generate_series(1, 5000) n"))
        assert len([row async for row in rows]) == 5000
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.drop_all)
    await engine.dispose()

asyncio.run(main())
""",
    "pandas": """
import pandas
engine = sa.create_engine(url)
frame = pandas.read_sql("select n, n / 2.0::float8 as half from generate_series(1, 3) n", engine)
assert frame["half"].tolist() == [0.5, 1.0, 1.5]
assert frame.to_sql("frame", engine, index=False) == 3
assert pandas.read_sql_table("frame", engine)["n"].tolist() == [1, 2, 3]
with engine.begin() as connection:
    connection.execute(sa.text("drop table frame"))
""",
    "polars": """
import polars
engine = sa.create_engine(url)
frame = polars.read_database("select n, n::text as t from generate_series(1, 3) n", engine)
assert frame.rows() == [(1, "1"), (2, "2"), (3, "3")]
import pgsluice.dbapi
with engine.connect() as connection:
    raw = pgsluice.dbapi.Connection(connection.connection.driver_connection.client)
    assert polars.read_database("select 7 as n", raw).rows() == [(7,)]
""",
    "alembic": """
import pathlib, tempfile
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations

engine = sa.create_engine(url)
with engine.begin() as connection:
    operations = Operations(MigrationContext.configure(connection))
    operations.create_table("author", sa.Column("id", sa.Integer, primary_key=True))
    operations.add_column("author", sa.Column("name", sa.String, nullable=False))
with engine.connect() as connection:
    found = compare_metadata(MigrationContext.configure(connection), Base.metadata)
    assert any(each[0] == "add_table" and each[1].name == "book" for each in found), found

folder = pathlib.Path(tempfile.mkdtemp())
config = Config(str(folder / "alembic.ini"))
config.set_main_option("script_location", str(folder / "migrations"))
command.init(config, str(folder / "migrations"))
(folder / "migrations" / "env.py").write_text(
    "from alembic import context\\n"
    "import sqlalchemy\\n"
    f"engine = sqlalchemy.create_engine({url!r})\\n"
    "with engine.connect() as connection:\\n"
    "    context.configure(connection=connection)\\n"
    "    with context.begin_transaction():\\n"
    "        context.run_migrations()\\n")
script = command.revision(config, "first")
path = pathlib.Path(script.path)
path.write_text(path.read_text().replace(
    "def upgrade() -> None:\\n", "def upgrade() -> None:\\n    op.drop_table('author')\\n", 1))
command.upgrade(config, "head")
with engine.begin() as connection:
    assert not sa.inspect(connection).has_table("author")
    version = connection.execute(sa.text("select version_num from alembic_version")).scalar()
    assert version == script.revision
    connection.execute(sa.text("drop table alembic_version"))
""",
    "async reflection": """
async def main():
    engine = create_async_engine(url)
    found = sa.MetaData()
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.run_sync(found.reflect)
        names = await connection.run_sync(lambda c: sa.inspect(c).get_table_names())
        await connection.run_sync(Base.metadata.drop_all)
    assert set(found.tables) == set(names) == {"author", "book"}
    assert [key.target_fullname for key in found.tables["book"].foreign_keys] == ["author.id"]
    await engine.dispose()

asyncio.run(main())
""",
    "async pandas": """
import pandas

def use(connection):
    frame = pandas.read_sql("select n, n::text as t from generate_series(1, 3) n", connection)
    assert frame.to_sql("frame", connection, index=False) == 3
    return pandas.read_sql_table("frame", connection)

async def main():
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        frame = await connection.run_sync(use)
        await connection.execute(sa.text("drop table frame"))
    assert frame["t"].tolist() == ["1", "2", "3"]
    await engine.dispose()

asyncio.run(main())
""",
    "async polars": """
import polars

async def main():
    engine = create_async_engine(url)
    async with engine.connect() as connection:
        query = "select n, n::text as t from generate_series(1, 3) n"
        frame = await connection.run_sync(lambda c: polars.read_database(query, c))
    assert frame.rows() == [(1, "1"), (2, "2"), (3, "3")]
    await engine.dispose()

asyncio.run(main())
""",
    "async alembic": """
import pathlib, tempfile
from alembic import command
from alembic.config import Config

folder = pathlib.Path(tempfile.mkdtemp())
config = Config(str(folder / "alembic.ini"))
command.init(config, str(folder / "migrations"), template="async")
config.set_main_option("sqlalchemy.url", url.replace("%", "%%"))
script = command.revision(config, "first")
path = pathlib.Path(script.path)
path.write_text(path.read_text().replace(
    "def upgrade() -> None:\\n", "def upgrade() -> None:\\n"
    "    op.create_table('made', sa.Column('id', sa.Integer, primary_key=True))\\n", 1))
command.upgrade(config, "head")

async def main():
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        version = await connection.scalar(sa.text("select version_num from alembic_version"))
        assert version == script.revision
        await connection.execute(sa.text("drop table made, alembic_version"))
    await engine.dispose()

asyncio.run(main())
""",
}


@pytest.mark.parametrize("use", USES)
def test_what_is_built_on_sqlalchemy_works(
    python: Path, gateway: Gateway, use: str, tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM + USES[use])
    done = subprocess.run(
        [str(python), "-W", "error::ResourceWarning", str(program), url_of(gateway)],
        env={**os.environ, "PYTHONPATH": str(CLIENT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
