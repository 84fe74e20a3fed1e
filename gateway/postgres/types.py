"""PostgreSQL's types as the driver hands them over: text, but for five native kinds.

asyncpg's own decoders change values (float4 digits, infinite timestamps,
`24:00`, months of an interval), so every type but int2, int4, int8, oid, bool,
text and float8 travels in PostgreSQL's own text form. What asyncpg would ask
the catalog about a type on each new connection is asked once and kept here,
one `TypeCatalog` for each database.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple

from asyncpg.protocol.protocol import BUILTIN_TYPE_OID_MAP

from ..core.arrays import read_array, write_array
from ..core.model import ArrayKind, Kind

_NATIVE = frozenset({16, 20, 21, 23, 25, 26, 701, 1043, 1042, 19, 705})
"""bool, int8, int2, int4, text, oid, float8, varchar, bpchar, name, unknown."""

_JSON = 114
_VECTORS = frozenset({22, 30})
"""int2vector and oidvector: written `1 2 3`, read as arrays."""

KINDS: Mapping[int, Kind] = {
    16: Kind.BOOL,
    20: Kind.INT,
    21: Kind.INT,
    23: Kind.INT,
    26: Kind.INT,
    700: Kind.FLOAT4,
    701: Kind.FLOAT8,
    1700: Kind.NUMERIC,
    114: Kind.JSON,
    3802: Kind.JSON,
    17: Kind.BYTEA,
    1082: Kind.DATE,
    1114: Kind.TIMESTAMP,
    1184: Kind.TIMESTAMPTZ,
}


class TypeFacts(NamedTuple):
    """What the gateway knows of one row of pg_type."""

    oid: int
    name: str
    """`typname`: `_int4` for an array of int4."""
    kind: str
    """`typtype`, one letter; `A` for a true array."""
    element: int = 0
    base: int = 0


def _text_names() -> dict[int, str]:
    known = {oid: name for oid, name in BUILTIN_TYPE_OID_MAP.items() if not name.endswith("[]")}
    # asyncpg takes 210 for smgr, which it was in PostgreSQL 11.
    return {**known, 210: "_pg_type", 22: "int2vector", 30: "oidvector"}


_BUILTIN = _text_names()


def _same(value: str) -> str:
    return value


def _vector(text: str) -> list[int]:
    return [int(part) for part in text.split()]


def _read_vectors(text: str) -> list[Any]:
    return _vectors(read_array(text))


def _vectors(items: list[Any]) -> list[Any]:
    return [
        None if item is None else _vectors(item) if isinstance(item, list) else _vector(item)
        for item in items
    ]


def _write(value: Any, delimiter: str) -> str:
    return value if isinstance(value, str) else write_array(value, delimiter)


class TypeCatalog:
    """Types of one database, learnt once and shared by its connections."""

    def __init__(self) -> None:
        self._facts: dict[int, TypeFacts] = {
            oid: TypeFacts(oid, name.strip('"'), "b") for oid, name in _BUILTIN.items()
        }
        self._facts[1009] = TypeFacts(1009, "_text", "A", 25)
        self._facts[1028] = TypeFacts(1028, "_oid", "A", 26)
        self._rows: dict[int, dict[str, Any]] = {}
        self.changes = 0
        """How often something was altered or dropped through these connections."""

    def prepare(self, settings: Any) -> None:
        """Make the codecs of one fresh connection hand types over as text."""
        self.prepare_only(settings, _BUILTIN)

    def prepare_only(self, settings: Any, oids: Iterable[int]) -> None:
        """As `prepare`, for these types alone."""
        for oid in oids:
            if oid in _NATIVE:
                continue
            name = _BUILTIN[oid]
            if oid in _VECTORS:
                settings.add_python_codec(
                    oid, name, "pg_catalog", [], "scalar", _same, _vector, "text"
                )
                continue
            # The driver's own reader of text, in C: a function of ours, even one that does
            # nothing, costs 60 ns a value.
            settings.remove_python_codec(oid, name, "pg_catalog")
            settings.set_builtin_type_codec(oid, name, "pg_catalog", "scalar", "text", "text")

    def prepare_arrays(self, settings: Any, oids: Iterable[int]) -> None:
        """Make text arrays among *oids* be read and written by our own functions.

        asyncpg's reader of array text skips a quoted empty element and leaves its place in
        the list unset, and whoever touches that crashes the process.
        """
        for oid in oids:
            row = self._rows.get(oid)
            facts = self._facts.get(oid)
            if row is None or facts is None or not facts.element:
                continue
            if self.resolved(facts.element).oid in _NATIVE:
                continue
            delim = row["elemdelim"] or b","
            delimiter = delim.decode() if isinstance(delim, bytes) else delim
            settings.add_python_codec(
                oid,
                row["name"],
                row["ns"],
                [],
                "scalar",
                partial(_write, delimiter=delimiter),
                _read_vectors
                if facts.element in _VECTORS
                else partial(read_array, delimiter=delimiter),
                "text",
            )

    def missing(self, oids: Iterable[int]) -> list[int]:
        """Those of *oids* whose introspection is not kept yet."""
        return [oid for oid in oids if oid not in self._rows]

    def learn(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep what asyncpg's introspection query returned."""
        for row in rows:
            kept = dict(row)
            oid = kept["oid"]
            kind = kept["kind"].decode() if isinstance(kept["kind"], bytes) else kept["kind"]
            if oid in _BUILTIN:
                pass  # name, point and others have elements too, and yet are no arrays
            elif kept["elemtype"]:
                self._facts[oid] = TypeFacts(oid, kept["name"], "A", kept["elemtype"])
            else:
                self._facts[oid] = TypeFacts(oid, kept["name"], kind, 0, kept["basetype"] or 0)
                if kind in "crm" or (kind == "b" and oid not in _BUILTIN):
                    # As a whole in PostgreSQL's text. asyncpg refuses a base type below
                    # 10000 that it does not know, such as int4range taken for one; a
                    # domain it reads with the codec of its base, and that of json is text.
                    kept["kind"] = b"d"
                    kept["basetype"] = _JSON
                    kept["attrtypoids"] = None
                    kept["range_subtype"] = None
            self._rows[oid] = kept

    def rows(self, oids: Iterable[int]) -> list[dict[str, Any]]:
        """Introspection rows for *oids*, each after those that it is made of."""
        ordered: dict[int, dict[str, Any]] = {}

        def add(oid: int | None) -> None:
            row = self._rows.get(oid) if oid else None
            if row is None or row["oid"] in ordered:
                return
            add(row["elemtype"])
            add(row["basetype"])
            ordered[row["oid"]] = row

        for oid in oids:
            add(oid)
        return list(ordered.values())

    def forget(self) -> None:
        """Ask the catalog anew, after a type was changed."""
        self._rows.clear()

    def facts(self, oid: int) -> TypeFacts:
        """What is known of the type *oid*."""
        known = self._facts.get(oid)
        return known if known is not None else TypeFacts(oid, str(oid), "b")

    def resolved(self, oid: int) -> TypeFacts:
        """As `facts`, with domains followed to their base."""
        facts = self.facts(oid)
        while facts.base:
            facts = self.facts(facts.base)
        return facts

    def kind(self, oid: int) -> Kind | ArrayKind:
        """How values of the type *oid* arrive."""
        facts = self.resolved(oid)
        if oid in _VECTORS:
            return ArrayKind(Kind.INT)
        if facts.element:
            element = self.resolved(facts.element)
            return ArrayKind(KINDS.get(element.oid, Kind.TEXT))
        return KINDS.get(facts.oid, Kind.TEXT)
