"""sqlalchemy-aurora-data-api: engine, reflection, ORM with relationships, rollback."""

import datetime
import decimal
import os

import pytest
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB, UUID
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    relationship,
    selectinload,
)


@pytest.fixture(scope="module")
def engine():
    engine = sa.create_engine(
        "postgresql+auroradataapi://:@/" + os.environ["DATABASE"],
        connect_args={
            "aurora_cluster_arn": os.environ["RESOURCE_ARN"],
            "secret_arn": os.environ["SECRET_ARN"],
        },
    )
    Base.metadata.create_all(engine)
    yield engine
    engine.dispose()


class Base(DeclarativeBase):
    pass


class Maker(Base):
    __tablename__ = "maker"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(sa.String(100), unique=True)
    items: Mapped[list["Item"]] = relationship(back_populates="maker", cascade="all, delete-orphan")


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(sa.BigInteger, primary_key=True)
    maker_id: Mapped[int] = mapped_column(sa.ForeignKey("maker.id"))
    key: Mapped[str | None] = mapped_column(UUID(as_uuid=False))
    price: Mapped[decimal.Decimal | None] = mapped_column(sa.Numeric(10, 2))
    made_on: Mapped[datetime.date | None]
    changed: Mapped[datetime.datetime | None]
    mood: Mapped[str | None] = mapped_column(sa.Enum("sad", "glad", name="mood"))
    data: Mapped[dict | None] = mapped_column(JSONB)
    sold: Mapped[bool] = mapped_column(default=False)
    maker: Mapped[Maker] = relationship(back_populates="items")
    __table_args__ = (sa.Index("item_price", "price"), sa.CheckConstraint("price >= 0", "cheap"))


def test_the_engine_connects_and_knows_its_server(engine):
    with engine.connect() as connection:
        assert connection.dialect.server_version_info[0] >= 15
        assert connection.dialect.default_schema_name == "public"
        assert connection.execute(sa.text("select :a + 1"), {"a": 1}).scalar() == 2


def test_values_of_many_types_make_the_round_trip(engine):
    values = {
        "key": "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
        "price": decimal.Decimal("19.90"),
        "made_on": datetime.date(2024, 2, 29),
        "changed": datetime.datetime(2024, 1, 15, 3, 34, 56, 789000),
        "mood": "glad",
        "data": {"a": [1, None, "x"]},
        "sold": True,
    }
    with Session(engine) as session:
        maker = Maker(name="types", items=[Item(**values)])
        session.add(maker)
        session.commit()
        session.expire_all()
        [item] = session.scalars(sa.select(Item).where(Item.maker_id == maker.id)).all()
        assert {name: getattr(item, name) for name in values} == values
        found = session.scalars(
            sa.select(Item).where(
                Item.key == values["key"],
                Item.price == values["price"],
                Item.made_on == values["made_on"],
                Item.changed == values["changed"],
                Item.mood == "glad",
            )
        ).all()
        assert found == [item]


def test_relationships_are_loaded_and_cascade(engine):
    with Session(engine) as session:
        session.add(Maker(name="Acme", items=[Item(price=1), Item(price=2)]))
        session.commit()
    with Session(engine) as session:
        statement = sa.select(Maker).options(selectinload(Maker.items)).where(Maker.name == "Acme")
        acme = session.scalars(statement).one()
        assert sorted(item.price for item in acme.items) == [1, 2]
        assert acme.items[0].maker is acme
        joined = session.execute(
            sa.select(Maker.name, sa.func.sum(Item.price))
            .join(Item)
            .where(Maker.name == "Acme")
            .group_by(Maker.name)
        ).all()
        assert joined == [("Acme", 3)]
        session.delete(acme)
        session.commit()
        assert session.scalars(sa.select(Maker).where(Maker.name == "Acme")).first() is None


def test_a_rollback_leaves_nothing(engine):
    with Session(engine) as session:
        session.add(Maker(name="undone"))
        session.flush()
        session.rollback()
        assert session.scalars(sa.select(Maker).where(Maker.name == "undone")).first() is None


def test_a_violated_constraint_rolls_back_and_the_session_goes_on(engine):
    with Session(engine) as session:
        session.add(Maker(name="once"))
        session.commit()
        session.add(Maker(name="once"))
        with pytest.raises(sa.exc.DBAPIError, match="23505"):
            session.commit()
        session.rollback()
        assert session.scalar(sa.select(sa.func.count()).where(Maker.name == "once")) == 1


def test_a_savepoint_undoes_only_its_own(engine):
    with Session(engine) as session:
        session.add(Maker(name="outer"))
        with pytest.raises(ZeroDivisionError), session.begin_nested():
            session.add(Maker(name="inner"))
            session.flush()
            raise ZeroDivisionError
        session.commit()
        names = session.scalars(sa.select(Maker.name).where(Maker.name.in_(["outer", "inner"])))
        assert names.all() == ["outer"]


def test_reflection_finds_tables_columns_and_constraints(engine):
    inspector = sa.inspect(engine)
    assert {"maker", "item"} <= set(inspector.get_table_names())
    columns = {column["name"]: column for column in inspector.get_columns("item")}
    assert isinstance(columns["price"]["type"], sa.Numeric)
    assert (columns["price"]["type"].precision, columns["price"]["type"].scale) == (10, 2)
    assert columns["sold"]["nullable"] is False
    assert columns["mood"]["type"].enums == ["sad", "glad"]
    assert inspector.get_pk_constraint("item")["constrained_columns"] == ["id"]
    [foreign] = inspector.get_foreign_keys("item")
    assert (foreign["referred_table"], foreign["constrained_columns"]) == ("maker", ["maker_id"])
    assert [index["name"] for index in inspector.get_indexes("item")] == ["item_price"]
    assert [each["name"] for each in inspector.get_check_constraints("item")] == ["cheap"]
    assert [each["column_names"] for each in inspector.get_unique_constraints("maker")] == [
        ["name"]
    ]


def test_a_reflected_table_can_be_used(engine):
    reflected = sa.Table("maker", sa.MetaData(), autoload_with=engine)
    with engine.begin() as connection:
        key = connection.execute(
            sa.insert(reflected).values(name="reflected").returning(reflected.c.id)
        ).scalar_one()
        found = connection.execute(sa.select(reflected).where(reflected.c.id == key)).one()
    assert found.name == "reflected"


def test_many_rows_are_inserted_at_once(engine):
    with engine.begin() as connection:
        connection.execute(sa.insert(Maker), [{"name": f"many {number}"} for number in range(1500)])
        counted = sa.select(sa.func.count()).where(Maker.name.like("many %"))
        assert connection.execute(counted).scalar() == 1500
