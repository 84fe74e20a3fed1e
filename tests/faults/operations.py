"""What the load does: mixed writes, each with its name stored in everything it leaves behind.

A plan is made from a seed, so that the same seed sends the same operations. Statements are
written once, with `:name`; `numbered` and `percent` turn them into other styles.

    >>> numbered("select :b, :a, :b", {"a": 1, "b": 2})
    ('select $1, $2, $1', [2, 1])
"""

from __future__ import annotations

import random
import re
from typing import Any, NamedTuple

COUNTERS = 64
ACCOUNTS = 64
OPENING = 1_000_000
"""What is on every account at first."""

SCHEMA = f"""
create table effects (op text not null, part int not null, counter int, debit int, credit int,
                      amount int, item boolean not null default false,
                      late boolean not null default false);
create table counters (id int primary key, value bigint not null);
create table accounts (id int primary key, balance bigint not null);
create table items (op text primary key);
insert into counters select n, 0 from generate_series(0, {COUNTERS - 1}) n;
insert into accounts select n, {OPENING} from generate_series(0, {ACCOUNTS - 1}) n;
create function late() returns trigger language plpgsql as
  $$ begin perform pg_sleep(0.05); return null; end $$;
create constraint trigger late after insert on effects deferrable initially deferred
  for each row when (new.late) execute function late();
grant all on effects, counters, accounts, items to public;
"""
"""`effects` has no unique key: it takes what is doubled, and shows it. A row that is `late`
makes its COMMIT take 50 ms, so that there is something to hit."""

INCREMENT = (
    "with e as (insert into effects (op, part, counter)"
    " values (:op, cast(:part as int), cast(:counter as int)))"
    " update counters set value = value + 1 where id = cast(:counter as int) returning value"
)
TRANSFER = (
    "with e as (insert into effects (op, part, debit, credit, amount) values"
    " (:op, cast(:part as int), cast(:debit as int), cast(:credit as int), cast(:amount as int)))"
    " update accounts set balance = balance +"
    " case id when cast(:credit as int) then cast(:amount as int) else - cast(:amount as int) end"
    " where id in (cast(:debit as int), cast(:credit as int)) returning id, balance"
)
INSERT = (
    "with e as (insert into effects (op, part, item, late)"
    " values (:op, cast(:part as int), true, cast(:late as boolean)))"
    " insert into items (op) values (:op) returning op"
)
STATEMENTS = {"increment": INCREMENT, "transfer": TRANSFER, "insert": INSERT}

KINDS = ("increment", "transfer", "insert", "many", "several", "transaction")
"""`many`: one statement with three sets. `several`: three statements in one request, or in a
transaction where there is no such request. `transaction`: begun, used, committed."""
_WEIGHTS = (30, 20, 20, 10, 10, 10)


class Step(NamedTuple):
    """One statement of an operation."""

    sql: str
    """A name in `STATEMENTS`."""
    values: dict[str, Any]


class Operation(NamedTuple):
    """One thing that has to happen once."""

    op: str
    kind: str
    steps: list[Step]
    again: bool
    """What was surely not executed is asked for anew; else it is left at that."""
    twins: int
    """So many send it with the same key at once, where the client lets its user choose one."""

    @property
    def parts(self) -> list[int]:
        """What it leaves in `effects` if it happens once."""
        return list(range(len(self.steps)))


def plan(count: int, seed: int) -> list[Operation]:
    """The operations of a run."""
    rng = random.Random(f"operations {seed}")
    return [_operation(rng, f"{seed}-{number}") for number in range(count)]


def _operation(rng: random.Random, op: str) -> Operation:
    (kind,) = rng.choices(KINDS, _WEIGHTS)

    def increment(part: int, counter: int) -> Step:
        return Step("increment", {"op": op, "part": part, "counter": counter})

    def transfer(part: int) -> Step:
        debit, credit = rng.sample(range(ACCOUNTS), 2)
        values = {"op": op, "part": part, "debit": debit, "credit": credit}
        return Step("transfer", values | {"amount": rng.randint(1, 99)})

    def insert(part: int) -> Step:
        return Step("insert", {"op": op, "part": part, "late": rng.random() < 0.1})

    if kind == "many":
        chosen = sorted(rng.sample(range(COUNTERS), 3))
        steps = [increment(part, counter) for part, counter in enumerate(chosen)]
    elif kind in ("several", "transaction"):
        steps = [increment(0, rng.randrange(COUNTERS)), transfer(1), insert(2)]
    elif kind == "increment":
        steps = [increment(0, rng.randrange(COUNTERS))]
    elif kind == "transfer":
        steps = [transfer(0)]
    else:
        steps = [insert(0)]
    twins = 3 if kind != "transaction" and rng.random() < 0.1 else 1
    return Operation(op, kind, steps, rng.random() < 0.5, twins)


_NAME = re.compile(r":([a-z]+)")


def numbered(sql: str, values: dict[str, Any]) -> tuple[str, list[Any]]:
    """With `$1`, `$2` and so on, as asyncpg and the native API take it."""
    order = list(dict.fromkeys(_NAME.findall(sql)))
    text = _NAME.sub(lambda name: f"${order.index(name[1]) + 1}", sql)
    return text, [values[name] for name in order]
