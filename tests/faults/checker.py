"""What was said and what is stored: does every operation's caller know the truth?"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from .operations import ACCOUNTS, COUNTERS, OPENING, Operation


class Said(NamedTuple):
    """What the caller of one operation was told in the end."""

    op: str
    said: str
    """`acknowledged`; else as the error said: `committed`, `not_executed`, `unknown`."""
    keys: list[str]
    """Where `unknown`: what to ask for."""
    start: float
    end: float
    """Seconds since the epoch, by the clock of the machine."""
    word: str = ""
    """The last error, for whoever has to find out."""
    tries: int = 1


@dataclass
class Stored:
    """What is in the database afterwards."""

    effects: dict[str, list[int]]
    """The parts of each operation, in order."""
    wrong_sums: list[str]
    """Counters, accounts and items that do not agree with the effects."""


@dataclass
class Report:
    """The figures of one run."""

    subject: str
    seed: int
    operations: int = 0
    acknowledged: int = 0
    not_executed: int = 0
    """Operations left at that by their caller."""
    unknown: int = 0
    """Operations that had to be asked about afterwards."""
    anew: int = 0
    """Operations asked for anew after being told that nothing happened."""
    faults: int = 0
    in_flight: int = 0
    """Operations that were running at the moment of a fault."""
    lost: list[str] = field(default_factory=list)
    """Acknowledged and not stored."""
    doubled: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    """Stored in part."""
    wrong: list[str] = field(default_factory=list)
    """Said not executed and stored, or said committed (afterwards too) and not stored."""
    unresolved: list[str] = field(default_factory=list)
    """`unknown` to the end."""
    sums: list[str] = field(default_factory=list)
    words: Counter[str] = field(default_factory=Counter)
    """The errors of operations that were not acknowledged."""
    by_fault: Counter[str] = field(default_factory=Counter)
    by_sender: Counter[str] = field(default_factory=Counter)
    """Operations that each client has sent."""
    seconds: float = 0.0

    @property
    def flaws(self) -> list[str]:
        """Everything that must not be."""
        found = [*self.lost, *self.doubled, *self.torn, *self.wrong, *self.unresolved]
        return [*found, *self.sums]

    def add(self, other: Report) -> None:
        """Put the figures of another round to these."""
        for name in (each.name for each in fields(self)):
            if name not in ("subject", "seed"):
                setattr(self, name, getattr(self, name) + getattr(other, name))
        self.seconds = round(self.seconds, 1)

    def figures(self) -> dict[str, Any]:
        """Numbers only."""
        # Not `asdict`, which makes pairs into the keys of a Counter.
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return {
            name: len(value) if isinstance(value, list) else value for name, value in values.items()
        }


def check(
    report: Report,
    operations: Sequence[Operation],
    said: Iterable[Said],
    stored: Stored,
    outcomes: Mapping[str, str],
) -> None:
    """Compare, and write what was found into *report*.

    Args:
        outcomes: By operation, what the subject said of it afterwards.
    """
    told = {each.op: each for each in said}
    report.operations = len(operations)
    report.sums = stored.wrong_sums
    for operation in operations:
        each = told.pop(operation.op, None)
        name = f"{operation.op} {operation.kind}"
        if each is None:
            report.unresolved.append(f"{name}: its caller was told nothing")
            continue
        report.anew += each.tries > 1
        parts = stored.effects.get(operation.op, [])
        times = Counter(parts)
        wanted = operation.parts
        where = f"{name}: said {each.said} ({each.word}), stored {parts}"
        if parts and set(parts) != set(wanted):
            report.torn.append(where)
        elif parts and max(times.values()) > 1:
            report.doubled.append(where)
        if each.said == "acknowledged":
            report.acknowledged += 1
            if not parts:
                report.lost.append(where)
            continue
        report.words[f"{each.said}: {each.word}"] += 1
        word = each.said
        if word == "unknown":
            report.unknown += 1
            word = outcomes.get(operation.op, "unknown")
            if word == "unknown":
                report.unresolved.append(where)
                continue
            where += f", afterwards {word}"
        elif word == "not_executed":
            report.not_executed += 1
        if (word == "committed") != bool(parts):
            report.wrong.append(where)
    for op in stored.effects.keys() - {operation.op for operation in operations}:
        report.wrong.append(f"{op}: nobody asked for it")


def in_flight(said: Iterable[Said], moments: Sequence[float]) -> int:
    """How many operations were running at one of *moments*."""
    ordered = sorted(moments)

    def hit(each: Said) -> bool:
        at = bisect_left(ordered, each.start)
        return at < len(ordered) and ordered[at] <= each.end

    return sum(map(hit, said))


def read_stored(sql: Any) -> Stored:
    """What the database holds; *sql* runs a script and returns what psql prints."""
    effects = {}
    for line in sql(
        "select op, string_agg(part::text, ',' order by part) from effects group by op"
    ).splitlines():
        op, _, parts = line.partition("|")
        effects[op] = [int(part) for part in parts.split(",")]
    wrong = sql(
        f"""
        select 'counter ' || id || ': ' || value || ', effects ' || coalesce(n, 0)
          from counters left join
               (select counter, count(*) n from effects group by counter) e on counter = id
         where value <> coalesce(n, 0);
        select 'account ' || id || ': ' || balance || ', effects ' || b from (
          select id, balance, {OPENING}
                 + coalesce((select sum(amount) from effects where credit = id), 0)
                 - coalesce((select sum(amount) from effects where debit = id), 0) b
            from accounts) x
         where balance <> b;
        select 'money: ' || sum(balance) from accounts
        having sum(balance) <> {OPENING}::bigint * {ACCOUNTS};
        select 'counters: ' || count(*) from counters having count(*) <> {COUNTERS};
        select 'item ' || op || ' without effect' from items
         where op not in (select op from effects where item);
        select 'effect ' || op || ' without item' from effects
         where item and op not in (select op from items);
        """
    ).splitlines()
    return Stored(effects, wrong)
