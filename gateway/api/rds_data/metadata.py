"""`columnMetadata`: what the Data API says of a column, in the words of JDBC.

AWS answers with the values of the PostgreSQL JDBC driver's `ResultSetMetaData`, and
clients parse by them, so the table of type codes, precisions and scales is that driver's.

Source: java.sql.Types; PostgreSQL's manual, "System Catalogs".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ...core.model import Column

COLUMN_FACTS_SQL = """\
select a.attrelid, a.attnum, c.relname::text as relname,
       a.attnotnull or (t.typtype = 'd' and t.typnotnull) as attnotnull,
       a.attidentity <> '' or coalesce(
         pg_catalog.pg_get_expr(d.adbin, d.adrelid) like '%nextval(%', false) as is_auto
from rows from (pg_catalog.unnest($1::pg_catalog.oid[]),
                pg_catalog.unnest($2::pg_catalog.int2[])) as k(relid, num)
join pg_catalog.pg_attribute a on a.attrelid = k.relid and a.attnum = k.num
join pg_catalog.pg_class c on c.oid = a.attrelid
join pg_catalog.pg_type t on t.oid = a.atttypid
left join pg_catalog.pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
"""
"""`$1` table oids and `$2` column numbers, pairwise → one row each for `column_facts`."""

TYPE_FACTS_SQL = """\
select t.oid, t.typname::text as typname, t.typtype::text as typtype,
       e.typname::text as element_name, e.typtype::text as element_type
from pg_catalog.pg_type t
left join pg_catalog.pg_type e
  on e.oid = t.typelem and t.typinput = 'pg_catalog.array_in'::pg_catalog.regproc
where t.oid = any($1::pg_catalog.oid[])
"""
"""`$1` type oids → one row each for `type_facts`."""


class ColumnFacts(NamedTuple):
    """What the catalog knows of the table column behind a result column."""

    nullable: int
    """0 never NULL, 1 may be NULL, 2 unknown (an expression)."""
    table_name: str
    auto_increment: bool
    """Identity, or a default that takes from a sequence."""


class TypeFacts(NamedTuple):
    """What the catalog knows of a type."""

    name: str
    type: str
    """`pg_type.typtype`: `b`ase, `c`omposite, `e`num, `r`ange, …"""
    element: TypeFacts | None = None
    """Of an array, its element type."""


UNKNOWN_COLUMN = ColumnFacts(2, "", False)

_MAX = 2147483647
_SERIAL = {"int2": "smallserial", "int4": "serial", "int8": "bigserial"}

_BIT, _OTHER, _ARRAY, _STRUCT = -7, 1111, 2003, 2002
_VARCHAR = 12

# type code, precision, scale, signed, case sensitive
_Shape = tuple[int, int, int, bool, bool]
_SHAPES: dict[str, _Shape] = {
    "bool": (_BIT, 1, 0, False, False),
    "int2": (5, 5, 0, True, False),
    "int4": (4, 10, 0, True, False),
    "int8": (-5, 19, 0, True, False),
    "oid": (-5, 10, 0, False, False),
    "float4": (7, 8, 8, True, False),
    "float8": (8, 17, 17, True, False),
    "numeric": (2, 0, 0, True, False),
    "money": (8, _MAX, 0, False, True),
    "text": (_VARCHAR, _MAX, 0, False, True),
    "name": (_VARCHAR, _MAX, 0, False, True),
    "varchar": (_VARCHAR, _MAX, 0, False, True),
    "bpchar": (1, _MAX, 0, False, True),
    "char": (1, 1, 0, False, True),
    "bytea": (-2, _MAX, 0, False, True),
    "date": (91, 13, 0, False, False),
    "time": (92, 15, 6, False, False),
    "timetz": (92, 21, 6, False, False),
    "timestamp": (93, 29, 6, False, False),
    "timestamptz": (93, 35, 6, False, False),
    "interval": (_OTHER, 49, 6, False, False),
    "bit": (_BIT, 1, 0, False, False),
    "varbit": (_OTHER, _MAX, 0, False, False),
    "xml": (2009, _MAX, 0, False, True),
}
_UNKNOWN_SHAPE: _Shape = (_OTHER, _MAX, 0, False, True)
_BY_TYPTYPE = {"e": _VARCHAR, "c": _STRUCT}

# Width of the text without a fraction of seconds.
_TIME_WIDTHS = {"time": 8, "timetz": 14, "timestamp": 22, "timestamptz": 28}


def column_facts(record: Mapping[str, Any]) -> tuple[tuple[int, int], ColumnFacts]:
    """One row of `COLUMN_FACTS_SQL` as ((table oid, column number), facts)."""
    facts = ColumnFacts(
        0 if record["attnotnull"] else 1, record["relname"], bool(record["is_auto"])
    )
    return (record["attrelid"], record["attnum"]), facts


def type_facts(record: Mapping[str, Any]) -> tuple[int, TypeFacts]:
    """One row of `TYPE_FACTS_SQL` as (type oid, facts)."""
    element = record["element_name"]
    return record["oid"], TypeFacts(
        record["typname"],
        record["typtype"],
        TypeFacts(element, record["element_type"]) if element is not None else None,
    )


def _guessed(typname: str) -> TypeFacts:
    """Facts of a type of which only the name is known: `_x` is an array of `x`."""
    if typname.startswith("_"):
        return TypeFacts(typname, "b", TypeFacts(typname[1:], "b"))
    return TypeFacts(typname, "b")


def _shape(facts: TypeFacts, typmod: int) -> _Shape:
    shape = _SHAPES.get(facts.name)
    if shape is None or facts.type not in ("b", "d"):
        code = _BY_TYPTYPE.get(facts.type, _OTHER)
        return (code, *_UNKNOWN_SHAPE[1:])
    if typmod == -1:
        return shape
    code, precision, scale, signed, case_sensitive = shape
    name = facts.name
    if name == "numeric":
        precision = (typmod - 4) >> 16 & 0xFFFF
        # 11 bits with a sign: PostgreSQL 15 has negative scales.
        scale = (((typmod - 4) & 0x7FF) ^ 0x400) - 0x400
    elif name in ("varchar", "bpchar"):
        precision = typmod - 4
    elif name in ("bit", "varbit"):
        precision = typmod
    elif name == "interval":
        scale = 6 if typmod & 0xFFFF == 0xFFFF else typmod & 0xFFFF
    elif name in _TIME_WIDTHS:
        scale = typmod
        # JDBC counts one digit like two.
        precision = _TIME_WIDTHS[name] + (1 + max(typmod, 2) if typmod else 0)
    return code, precision, scale, signed, case_sensitive


def column_metadata(
    column: Column, facts: ColumnFacts | None = None, type_facts: TypeFacts | None = None
) -> dict[str, Any]:
    """All fourteen members of one `ColumnMetadata`.

    Args:
        facts: Of the table column; `None` for an expression.
        type_facts: Of the type; `None` lets its name decide, which is enough for all
            built-in types but takes an enum or a composite for "other".
    """
    facts = facts or UNKNOWN_COLUMN
    kind = type_facts or _guessed(column.type)
    base = kind.element or kind
    code, precision, scale, signed, case_sensitive = _shape(base, column.typmod)
    type_name = column.type
    if facts.auto_increment:
        type_name = _SERIAL.get(type_name, type_name)
    return {
        "arrayBaseColumnType": code if kind.element else 0,
        "isAutoIncrement": facts.auto_increment,
        "isCaseSensitive": case_sensitive,
        "isCurrency": base.name == "money",
        "isSigned": signed,
        "label": column.name,
        "name": column.name,
        "nullable": facts.nullable,
        "precision": precision,
        "scale": scale,
        "schemaName": "",
        "tableName": facts.table_name,
        "type": _ARRAY if kind.element else code,
        "typeName": type_name,
    }


def columns_metadata(
    columns: Sequence[Column],
    facts: Mapping[tuple[int, int], ColumnFacts],
    types: Mapping[int, TypeFacts],
) -> list[dict[str, Any]]:
    """`columnMetadata` of a result, from what the catalog said of its columns and types."""
    return [
        column_metadata(
            column, facts.get((column.table_oid, column.attribute)), types.get(column.oid)
        )
        for column in columns
    ]
